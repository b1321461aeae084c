"""Nonconformity scores: how ill each class suits a row, from the probabilities of a classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from robustclf._registry import Registry

Floats = NDArray[np.float64]

MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64
GOLDEN = 0x9E3779B97F4A7C15
DIGITS = 9  # of a probability that count


class Score(BaseEstimator):
    """Base class of the scores :math:`S(x, y)`: small where the class y suits the row x.

    A score is called with probabilities of shape (n_samples, n_classes) and, if it is randomised,
    one number in [0, 1) for each row; it returns the score of every class.

    Examples
    --------
    >>> from robustclf.conformal import APS, LAC
    >>> proba = np.array([[0.7, 0.2, 0.1]])
    >>> LAC()(proba)
    array([[0.3, 0.8, 0.9]])
    >>> APS()(proba, np.array([0.5])).round(2), APS(randomized=False)(proba).round(2)
    (array([[0.35, 0.8 , 0.95]]), array([[0.7, 0.9, 1. ]]))
    """

    randomized: bool = False

    def __call__(self, proba: ArrayLike, uniform: ArrayLike | None = None) -> Floats:
        """Return the scores, of shape (n_samples, n_classes)."""
        p = np.asarray(proba, dtype=np.float64)
        if not self.randomized:
            return self.nonconformity(p, np.zeros((len(p), 1)))
        if uniform is None:
            raise ValueError(f"{self} is randomised: pass one uniform number for each row.")
        return self.nonconformity(p, np.asarray(uniform, dtype=np.float64).reshape(len(p), 1))

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return the scores for ``uniform`` of shape (n_samples, 1), zeros if not randomised."""
        raise NotImplementedError


SCORES: Registry[Score] = Registry("conformal score", Score)


@SCORES.register("lac")
class LAC(Score):
    r"""Least ambiguous classes: :math:`S = 1 - p_y`; the smallest sets on average.

    References
    ----------
    Sadinle, Lei, Wasserman. Least Ambiguous Set-Valued Classifiers with Bounded Error Levels.
    JASA 2019. arXiv:1609.00451.

    Examples
    --------
    >>> LAC()([[0.7, 0.2, 0.1]])
    array([[0.3, 0.8, 0.9]])
    """

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return 1 - p."""
        return 1 - proba


@SCORES.register("margin")
class Margin(Score):
    r"""Distance to the best other class: :math:`S = \max_{j \ne y} p_j - p_y`.

    References
    ----------
    Johansson, Linusson, Löfström, Boström. Model-agnostic nonconformity functions for conformal
    classification. IJCNN 2017.

    Examples
    --------
    >>> Margin()([[0.7, 0.2, 0.1]])
    array([[-0.5,  0.5,  0.6]])
    """

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return what the best other class is ahead."""
        second, first = np.partition(proba, -2, axis=1)[:, -2:].T[..., None]
        best = np.zeros_like(proba, dtype=bool)
        best[np.arange(len(proba)), proba.argmax(axis=1)] = True
        margin: Floats = np.where(best, second, first) - proba
        return margin


@SCORES.register("topk")
class TopK(Score):
    r"""Rank of the class: :math:`S = o(y) - U`, with :math:`o(y) = 1` for the most probable one.

    Parameters
    ----------
    randomized : bool, default=True
        Without U, the ranks alone: sets of one size, larger than needed.

    References
    ----------
    Angelopoulos, Bates, Jordan, Malik. Uncertainty Sets for Image Classifiers using Conformal
    Prediction. ICLR 2021. arXiv:2009.14193.

    Examples
    --------
    >>> TopK()([[0.2, 0.7, 0.1]], [0.25])
    array([[1.75, 0.75, 2.75]])
    """

    def __init__(self, *, randomized: bool = True) -> None:
        self.randomized = randomized

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return the ranks, less U."""
        return _ranks(proba)[1] - uniform


@SCORES.register("aps")
class APS(Score):
    r"""Adaptive sets: :math:`S = \sum_{j: o(j) \le o(y)} p_j - U p_y`; larger for harder rows.

    Parameters
    ----------
    randomized : bool, default=True
        Without U, sets are larger than needed and never empty.

    References
    ----------
    Romano, Sesia, Candès. Classification with Valid and Adaptive Coverage. NeurIPS 2020.
    arXiv:2006.02544.

    Examples
    --------
    >>> APS()([[0.2, 0.7, 0.1]], [0.5]).round(2)
    array([[0.8 , 0.35, 0.95]])
    """

    def __init__(self, *, randomized: bool = True) -> None:
        self.randomized = randomized

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return the mass down to the class, less a part of its own."""
        return _mass_down_to(proba, _ranks(proba)[0]) - uniform * proba


@SCORES.register("raps")
class RAPS(Score):
    r"""Regularised adaptive sets: that of APS plus :math:`\lambda \max(0, o(y) - k_{reg})`.

    Parameters
    ----------
    penalty : float, default=0.1
        :math:`\lambda`. The paper tunes it; of published code, one takes 0, which is APS.
    k_reg : int, default=1
        Rank up to which classes are not penalised.
    randomized : bool, default=True

    References
    ----------
    Angelopoulos, Bates, Jordan, Malik. Uncertainty Sets for Image Classifiers using Conformal
    Prediction. ICLR 2021. arXiv:2009.14193.

    Examples
    --------
    >>> RAPS()([[0.2, 0.7, 0.1]], [0.5]).round(2)
    array([[0.9 , 0.35, 1.15]])
    """

    def __init__(self, *, penalty: float = 0.1, k_reg: int = 1, randomized: bool = True) -> None:
        self.penalty = penalty
        self.k_reg = k_reg
        self.randomized = randomized

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return the score of APS and the penalty of far ranks."""
        order, rank = _ranks(proba)
        far = self.penalty * np.maximum(rank - self.k_reg, 0)
        return _mass_down_to(proba, order) - uniform * proba + far


@SCORES.register("saps")
class SAPS(Score):
    r"""Sorted adaptive sets, which keep only the largest probability.

    .. math:: S = U p_{(1)} \text{ if } o(y) = 1 \text{, else } p_{(1)} + w (o(y) - 1 - U)

    Parameters
    ----------
    weight : float, default=0.2
        w, of a step down the ranks.

    References
    ----------
    Huang, Xi, Zhang, Yao, Qiu, Wei. Conformal Prediction for Deep Classifier via Label Ranking.
    ICML 2024. arXiv:2310.06430.

    Examples
    --------
    >>> SAPS()([[0.2, 0.7, 0.1]], [0.5])
    array([[0.8 , 0.35, 1.  ]])
    """

    randomized = True

    def __init__(self, *, weight: float = 0.2) -> None:
        self.weight = weight

    def nonconformity(self, proba: Floats, uniform: Floats) -> Floats:
        """Return the largest probability and a step for each rank below it."""
        rank = _ranks(proba)[1]
        most = proba.max(axis=1, keepdims=True)
        steps = most + self.weight * (rank - 1 - uniform)
        scores: Floats = np.where(rank == 1, uniform * most, steps)
        return scores


def row_uniforms(proba: ArrayLike, seed: int) -> Floats:
    """Return a number in [0, 1) for each row, drawn by hashing its probabilities and a seed.

    So a row gets the same set alone as among others: one generator for each call would give
    rows that come one at a time always the same number. Nine digits count, as the last ones of
    a row's probabilities can depend on the rows beside it.

    Examples
    --------
    >>> proba = np.array([[0.7, 0.3], [0.6, 0.4]])
    >>> print(row_uniforms(proba, 0).round(2), row_uniforms(proba[1:], 0).round(2))
    [0.52 0.68] [0.68]
    """
    rounded = np.round(np.ascontiguousarray(proba, dtype=np.float64), DIGITS) + 0.0  # no -0
    bits = rounded.view(np.uint64)
    state = np.full(len(bits), seed, dtype=np.uint64)
    for column in bits.T:
        state = _mixed(state + np.uint64(GOLDEN) ^ column)
    return np.asarray((_mixed(state) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the state, mixed in place."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(multiplier)
    state ^= state >> np.uint64(31)
    return state


def _ranks(proba: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return the order of the classes, most probable first, and the rank of each, from 1."""
    order = np.argsort(-proba, axis=1, kind="stable")
    rank: Floats = np.empty(proba.shape)
    np.put_along_axis(rank, order, np.arange(1.0, proba.shape[1] + 1)[None], axis=1)
    return order, rank


def _mass_down_to(proba: Floats, order: NDArray[np.intp]) -> Floats:
    mass = np.empty(proba.shape)
    np.put_along_axis(mass, order, np.take_along_axis(proba, order, 1).cumsum(axis=1), axis=1)
    return mass
