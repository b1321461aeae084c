"""How far the estimated coverage may be above the true one: what noisy labels cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from robustclf._registry import Registry, check_known
from robustclf.conformal._deviations import (
    crossing_bias,
    expected_maximum,
    largest_excess,
    limiting_process,
    split_bound,
)
from robustclf.conformal._evidence import Evidence
from robustclf.noise._inputs import check_count

Floats = NDArray[np.float64]


class Correction(BaseEstimator):
    r"""Base class of the corrections :math:`\delta`: classes are kept up to the smallest score t
    of estimated coverage :math:`\hat F(t) \ge 1 - \alpha + \delta`.

    Examples
    --------
    >>> from robustclf.conformal import Bortolotti
    >>> Bortolotti()
    Bortolotti()
    """  # noqa: D205

    kinds: ClassVar[frozenset[str]] = frozenset({"marginal", "class", "cluster"})
    auto_from: ClassVar[float] = 0  # rows of each cell from which "auto" trusts its promise
    order: ClassVar[float] = 0.5  # power of 1 / n that it falls with
    next_row: ClassVar[bool] = False  # whether the row to come counts, as in (n + 1)(1 - alpha)
    of_clean: ClassVar[bool] = False  # whether it means anything where labels are right

    def check(self) -> None:
        """Raise ``ValueError`` for parameters out of range."""

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the correction; inf where it does not exist."""
        raise NotImplementedError


CORRECTIONS: Registry[Correction] = Registry("correction", Correction)


@CORRECTIONS.register("none")
class Uncorrected(Correction):
    """No correction: coverage is right on average where there are many rows, but not promised.

    References
    ----------
    Penso, Goldberger, Fetaya. Noise-Aware Conformal Prediction. COPA 2025. arXiv:2501.12749.

    Examples
    --------
    >>> Uncorrected().size(None)
    0.0
    """

    auto_from = np.inf
    next_row = True

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return 0."""
        return 0.0


@CORRECTIONS.register("crossing")
class Crossing(Correction):
    r"""Noise-adaptive prediction: the bias where the estimate first reaches the level.

    The other corrections bound the deviation of the estimate at its worst threshold, which is of
    order :math:`1 / \sqrt n`. At the threshold of the sets, the first of estimated coverage
    :math:`1 - \alpha`, it is positive on average, by the order of :math:`1 / n` only:

    .. math:: E[\hat F(\hat t) - F(\hat t)]
       = \frac 1 n \cdot \frac{E[(R(t) - (1 - F(t)) D) \, dZ(t)]}{E[dZ(t)]} + o(1/n)

    with Z(t) the weight of a row's scores up to t, R(t) of those from t on, D of all. The
    correction leaves out the term with D, which makes it smaller, and is the largest over the
    tenths of the distribution. Of right labels it is :math:`1/n`, where the textbook takes
    :math:`(1 - \alpha) / n`: of this correction it is the generalisation to signed weights.

    Notes
    -----
    Rows enter in the order of their scores, so the crossing is a stopping time: up to it,
    :math:`\hat F - F` is the sum of a martingale and of the difference between the rate at which
    weight arrives, given what has arrived, and its mean. To first order that difference is
    constant between t and :math:`\hat t`, where :math:`\hat t - t` is
    :math:`-(\hat F - F)(t) / F'(t)`; the covariance of both is the right-hand side. In simulated
    calibrations (``tests/test_conformal_engine.py``) coverage was at or above the level from
    50 rows of each threshold on. Unlike bounds at the worst threshold it leaves no margin for a
    wrong matrix.

    Examples
    --------
    >>> from robustclf.conformal import ConformalClassifier
    >>> ConformalClassifier(None, correction="crossing", noise=0.1).correction
    'crossing'
    """

    auto_from = 50
    order = 1.0

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the bias of the tenth where it is largest."""
        return crossing_bias(evidence)


@CORRECTIONS.register("dkw")
class DKW(Correction):
    r"""Noise-aware prediction: coverage holds for these calibration rows, not only on average.

    With probability :math:`1 - \delta_0` over the calibration rows. For uniform noise, of which a
    share :math:`\epsilon` is drawn from all K classes, and for a matrix T,

    .. math:: \sqrt{\frac{\log(4 / \delta_0)}{2n}} \frac{1 + \epsilon}{1 - \epsilon} \qquad
       \lVert T^{-1} \rVert_\infty K \sqrt{\frac{\log(2 K^2 / \delta_0)}{2n}}

    For one class it is the bound of Sesia et al. for given calibration rows.

    Parameters
    ----------
    delta : float, default=0.1
        :math:`\delta_0`; published tables have 0.001.

    References
    ----------
    Penso, Goldberger, Fetaya. Noise-Aware Conformal Prediction. COPA 2025. arXiv:2501.12749.

    Examples
    --------
    >>> from robustclf.conformal import ConformalClassifier, DKW
    >>> ConformalClassifier(None, correction=DKW(delta=0.01)).correction.delta
    0.01
    """

    kinds = frozenset({"marginal", "class"})
    of_clean = True

    def __init__(self, *, delta: float = 0.1) -> None:
        self.delta = delta

    def check(self) -> None:
        """Raise ``ValueError`` for a ``delta`` outside (0, 1)."""
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}.")

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the bound of the largest difference."""
        if evidence.kind == "class":
            return self._of_class(evidence)
        k, share, W = evidence.n_classes, evidence.noise.uniform, evidence.noise.inverse
        assert W is not None
        if share is not None:
            spread = (1 + share) / (1 - share)
            return float(spread * np.sqrt(np.log(4 / self.delta) / (2 * evidence.n)))
        norm = abs(W).sum(axis=1).max()
        return float(norm * k * np.sqrt(np.log(2 * k**2 / self.delta) / (2 * evidence.n)))

    def _of_class(self, evidence: Evidence) -> float:
        V = abs(posterior_inverse(evidence)[evidence.columns[0]])
        others = V.sum() - V[evidence.columns[0]]
        fewest = evidence.counts.min()
        part = others / V.sum() / 2
        size = np.sqrt(-np.log(self.delta * (1 - part)) / (2 * evidence.n_own))
        if part > 0 and fewest == 0:
            return np.inf
        if part > 0:
            deviation = np.log(2 * evidence.n_classes) - np.log(self.delta * part)
            size += 2 * others * np.sqrt(deviation / (2 * fewest))
        return float(size)


@CORRECTIONS.register("sesia")
class Sesia(Correction):
    r"""Adaptive classification: a bound through the scarcest label, for all classes or one.

    References
    ----------
    Sesia, Wang, Tong. Adaptive conformal classification with noisy labels. JRSS-B 2024.
    arXiv:2309.05092.

    Examples
    --------
    >>> from robustclf.conformal import ConformalClassifier
    >>> ConformalClassifier(None, correction="sesia", coverage="class")
    ConformalClassifier(correction='sesia', coverage='class', estimator=None)
    """

    kinds = frozenset({"marginal", "class"})

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the expected largest difference, bounded by one label at a time."""
        k, fewest = evidence.n_classes, int(evidence.counts.min())
        if fewest == 0:
            return np.inf
        V = abs(posterior_inverse(evidence))
        np.fill_diagonal(V, 0)  # not subtracted: rows of classes without a share are infinite
        others = V.sum(axis=1)
        if evidence.kind == "class":
            total, terms = 2 * others[evidence.columns[0]], k
        else:
            moved = abs(evidence.prior - evidence.given).sum()
            total, terms = 2 * others.max() + moved, k**2
        spread = 1 / np.sqrt(fewest) + np.sqrt((np.log(2 * terms) + np.log(fewest)) / 2)
        step = min(terms * np.sqrt(np.pi / 2), spread) / np.sqrt(fewest)
        return float(largest_excess(evidence.n_own) + total * step)


@CORRECTIONS.register("crcp")
class CRCP(Correction):
    r"""Contamination-robust prediction: each label's part moves by at most its own deviation.

    .. math:: \sum_{j,k} \tilde\rho_j \, |T^{-1} - I|_{jk}
       \left( \sqrt{\frac{\pi}{n \tilde\rho_j}} + (1 - \tilde\rho_j)^n \right)

    with :math:`\tilde\rho` the shares of the labels.

    References
    ----------
    Clarkson, Xu, Cucuringu, Swan, Reinert. Split Conformal Prediction under Data Contamination.
    COPA 2024. arXiv:2407.07700.

    Examples
    --------
    >>> from robustclf.conformal import ConformalClassifier
    >>> ConformalClassifier(None, correction="crcp", noise=0.1).correction
    'crcp'
    """

    kinds = frozenset({"marginal"})
    next_row = True

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the sum over labels and classes."""
        W, given = evidence.noise.inverse, evidence.given
        assert W is not None
        deviation = np.sqrt(np.pi * given / evidence.n) + given * (1 - given) ** evidence.n
        return float(deviation @ abs(W - np.eye(len(W))).sum(axis=1))


@CORRECTIONS.register("bortolotti")
class Bortolotti(Correction):
    r"""Noise-adaptive prediction: the expected largest difference, a part of the matrix at a time.

    For uniform noise, of which a share :math:`\epsilon` is drawn from all classes, it is
    :math:`c(n) (1 + \epsilon) / (1 - \epsilon)` with
    :math:`c(n) = E \max_i (i/n - U_{(i)}) \approx 0.63 / \sqrt n`, for any number of classes.

    References
    ----------
    Bortolotti, Wang, Tong, Menafoglio, Vantini, Sesia. Noise-Adaptive Conformal Classification
    with Marginal Coverage. 2025. arXiv:2501.18060.

    Notes
    -----
    :math:`T^{-1}` is split into a multiple of the identity, a row that all labels share, and a
    rest, by weighted medians instead of the paper's convex programme; any split gives a bound. The
    rest is bounded as published, or label by label where this is less. For one class, and for some,
    it is the same argument, with the deviation of the estimated class shares added.

    Examples
    --------
    >>> from robustclf.conformal import ConformalClassifier
    >>> ConformalClassifier(None, correction="bortolotti", noise=0.1).correction
    'bortolotti'
    """

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the smallest bound over the splits that were tried."""
        return split_bound(evidence)


@CORRECTIONS.register("asymptotic")
class Asymptotic(Correction):
    r"""Noise-adaptive prediction for many rows: the expected maximum of the limiting process.

    The estimate of coverage moves about the truth like a Gaussian process. Its covariance is
    estimated on a grid, its maximum drawn; the smallest correction, right for :math:`n \to \infty`
    and close to simulated deviations from 100 rows on.

    Parameters
    ----------
    n_draws : int, default=5000
        Draws of the process.

    References
    ----------
    Bortolotti, Wang, Tong, Menafoglio, Vantini, Sesia. Noise-Adaptive Conformal Classification
    with Marginal Coverage. 2025. arXiv:2501.18060.

    Examples
    --------
    >>> from robustclf.conformal import Asymptotic
    >>> Asymptotic(n_draws=1000)
    Asymptotic(n_draws=1000)
    """

    auto_from = 100

    def __init__(self, *, n_draws: int = 5_000) -> None:
        self.n_draws = n_draws

    def check(self) -> None:
        """Raise ``ValueError`` unless ``n_draws`` is a number from 1 on."""
        check_count("n_draws", self.n_draws)

    def size(self, evidence: Evidence, random_state: Any = None) -> float:
        """Return the mean of the maxima of the draws."""
        rng = np.random.default_rng(random_state)
        largest = expected_maximum(limiting_process(evidence), self.n_draws, rng)
        return largest / float(np.sqrt(evidence.n))


def posterior_inverse(evidence: Evidence) -> Floats:
    """Return the inverse of P(true | given), whose row k makes the scores of class k clean."""
    W = evidence.noise.inverse
    assert W is not None
    prior = np.where(evidence.prior > 0, evidence.prior, np.nan)[:, None]
    inverse: Floats = np.nan_to_num(W.T * evidence.given / prior, nan=np.inf)
    return inverse


class Chosen(NamedTuple):
    """A correction, its alias, and its size for each cell."""

    alias: str
    correction: Correction
    sizes: Floats


def choose(
    correction: str | Correction, cells: Sequence[Evidence], random_state: Any = None
) -> Chosen:
    """Return the correction that "auto" picks, or the one given.

    "auto" is the one with the smallest sizes, on average over the cells, of those that promise
    coverage for as many rows as each cell has. Where labels are right, nothing is corrected.

    Raises
    ------
    ValueError
        If there is no such correction, or none for some classes alone.
    """
    auto = isinstance(correction, str) and correction == "auto"
    if isinstance(correction, str) and not auto:
        check_known("correction", [correction], ["auto", *CORRECTIONS.names()])
    kinds = {cell.kind for cell in cells}
    tried = [CORRECTIONS.make(alias) for alias in CORRECTIONS.names()]
    fewest = min(cell.n_own for cell in cells)
    trusted = [c for c in tried if fewest >= c.auto_from and not c.of_clean]
    options = sorted((c for c in trusted if kinds <= c.kinds), key=lambda c: -c.order)
    given = options if auto else [CORRECTIONS.make(correction)]
    check_kinds(given[0], kinds)
    if all(cell.noise.clean for cell in cells) and not given[0].of_clean:
        return Chosen("none", Uncorrected(), np.zeros(len(cells)))
    sizes: list[Floats] = []
    for option in given:
        sizes.append(_sizes(option, cells, random_state))
        if option.order == 1 and _below_all_bounds(sizes[-1], cells):
            return Chosen(alias_of(option), option, sizes[-1])
    best = int(np.argmin([np.minimum(size, 1).mean() for size in sizes]))
    return Chosen(alias_of(given[best]), given[best], sizes[best])


def check_kinds(correction: Correction, kinds: set[str]) -> None:
    """Raise ``ValueError`` unless the correction is for each kind of cell."""
    if not kinds <= correction.kinds:
        tried = [CORRECTIONS.make(alias) for alias in CORRECTIONS.names()]
        able = [alias_of(c) for c in tried if kinds <= c.kinds]
        raise ValueError(
            f"correction {alias_of(correction)!r} knows no coverage by "
            f"{max(kinds - correction.kinds)}; take 'auto' or one of {able}."
        )


def _below_all_bounds(sizes: Floats, cells: Sequence[Evidence]) -> bool:
    """Whether bounds at the worst threshold, at least those of right labels, are all larger."""
    return all(size < largest_excess(cell.n) for size, cell in zip(sizes, cells, strict=True))


def _sizes(correction: Correction, cells: Sequence[Evidence], random_state: Any) -> Floats:
    sizes = [correction.size(c, random_state) if c.usable else np.inf for c in cells]
    return np.array(sizes)


def alias_of(correction: Correction) -> str:
    """Return the alias of a correction; the name of its class if it has none."""
    names = {CORRECTIONS.get(alias): alias for alias in CORRECTIONS.names()}
    return names.get(type(correction), type(correction).__name__)
