"""Coverage that calibration scores certify: thresholds and p-values are read from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SLACK = 1e-12  # (n + 1) * (1 - alpha) is a whole number more often than its rounding


@dataclass(frozen=True, eq=False)
class Levels:
    """Step function of the score: the coverage certified by keeping all classes up to a score.

    Attributes
    ----------
    scores : ndarray of shape (n_steps,)
        Increasing.
    levels : ndarray of shape (n_steps,)
        Level of the sets ``{y: S(x, y) <= score}``, not decreasing; 0 below the first score.

    Examples
    --------
    >>> levels = Levels.textbook([0.1, 0.4, 0.2])
    >>> levels.threshold([0.5, 0.25, 0.1]), levels.p_values([0.3, 0.4, 0.5])
    (array([0.2, 0.4, inf]), array([0.5 , 0.5 , 0.25]))
    """

    scores: Floats
    levels: Floats

    @classmethod
    def textbook(cls, scores: ArrayLike) -> Levels:
        """Return the levels k / (n + 1) of the sorted scores of right labels."""
        ordered = np.sort(np.asarray(scores, dtype=np.float64))
        return cls(ordered, np.arange(1, len(ordered) + 1) / (len(ordered) + 1))

    @classmethod
    def running(cls, scores: Floats, share: Floats, size: float) -> Levels:
        """Return the largest share of any score so far, or 1, less ``size``."""
        return cls(scores, np.minimum(np.maximum.accumulate(share), 1) - size)

    def threshold(self, alpha: ArrayLike) -> Floats:
        """Return the smallest score of level 1 - alpha; inf, for full sets, if there is none."""
        wanted = 1 - np.asarray(alpha, dtype=np.float64) - SLACK
        place = np.searchsorted(self.levels, wanted, side="left")
        threshold: Floats = np.asarray(np.append(self.scores, np.inf)[place])
        return threshold

    def p_values(self, scores: ArrayLike) -> Floats:
        """Return the smallest alpha at which a class of this score is left out."""
        return _p_values(_below(self.scores, self.levels, np.asarray(scores)))

    @property
    def highest(self) -> float:
        """Highest level of any score."""
        return float(self.levels[-1]) if len(self.levels) else 0.0


@dataclass(frozen=True, eq=False)
class FoldLevels:
    """Levels of scores by several classifiers: each row counts for the one that did not see it.

    Attributes
    ----------
    folds : list of (ndarray, ndarray)
        For each classifier, increasing scores and the sums of the weights up to them.
    size : float
        What is taken off the sum over the classifiers.

    Examples
    --------
    >>> levels = FoldLevels.of(np.array([0.1, 0.4, 0.2]), np.full(3, 1 / 4), np.array([0, 0, 1]))
    >>> levels.p_values([[0.3, 0.1], [0.3, 0.1]])
    array([0.5, 1. ])
    """

    folds: list[tuple[Floats, Floats]]
    size: float = 0.0

    @classmethod
    def of(
        cls, scores: Floats, weight: Floats, folds: NDArray[np.intp], size: float = 0.0
    ) -> FoldLevels:
        """Return the levels of scores, their weights and the classifiers they are from."""
        parts = range(int(folds.max(initial=0)) + 1)
        return cls([steps(scores[folds == f], weight[folds == f]) for f in parts], size)

    def levels_below(self, scores: ArrayLike) -> Floats:
        """Return the levels that scores of shape (n_classifiers, n_rows) exceed."""
        pairs = zip(self.folds, np.asarray(scores), strict=False)  # the last may have no row
        below = [_below(at, total, s) for (at, total), s in pairs]
        levels: Floats = np.minimum(np.sum(below, axis=0), 1) - self.size
        return levels

    def p_values(self, scores: ArrayLike) -> Floats:
        """Return the smallest alpha at which a class of these scores is left out."""
        return _p_values(self.levels_below(scores))

    @property
    def highest(self) -> float:
        """Level of all scores together."""
        return float(sum(total[-1] for _, total in self.folds if len(total)) - self.size)


@dataclass(frozen=True, eq=False)
class Either:
    """The better of two levels.

    Examples
    --------
    >>> either = Either(Levels.textbook([0.1, 0.4, 0.2]), Levels.textbook([0.3]))
    >>> either.threshold([0.5, 0.25]), either.p_values([0.3, 0.4])
    (array([0.2, 0.4]), array([0.5, 0.5]))
    """

    first: Levels | FoldLevels
    second: Levels | FoldLevels

    def threshold(self, alpha: ArrayLike) -> Floats:
        """Return the smaller threshold; of single classifiers only."""
        assert isinstance(self.first, Levels)
        assert isinstance(self.second, Levels)
        threshold: Floats = np.minimum(self.first.threshold(alpha), self.second.threshold(alpha))
        return threshold

    def p_values(self, scores: ArrayLike) -> Floats:
        """Return the smaller p-value."""
        smaller: Floats = np.minimum(self.first.p_values(scores), self.second.p_values(scores))
        return smaller

    @property
    def highest(self) -> float:
        """The higher of both."""
        return max(self.first.highest, self.second.highest)


def steps(scores: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Return the different scores, increasing, and the sums of the weights up to each.

    Examples
    --------
    >>> steps(np.array([[0.1, 0.9], [0.1, 0.5]]), np.array([[1.0, -0.5], [0.5, 0.0]]))
    (array([0.1, 0.9]), array([1.5, 1. ]))
    """
    used = weight != 0
    at, weight = (a.ravel() if used.all() else a[used] for a in (scores, weight))
    order = np.argsort(at)  # five times faster than a stable one, which ties do not need
    at, total = at[order], np.cumsum(weight[order])
    last = np.append(at[1:] != at[:-1], True)[: len(at)]
    return at[last], total[last]


def _below(at: Floats, levels: Floats, scores: Floats) -> Floats:
    place = np.searchsorted(at, scores, side="left")
    below: Floats = np.append(0.0, levels)[place]
    return below


def _p_values(level: Floats) -> Floats:
    p_values: Floats = np.clip(1 - level, 0, 1)
    return p_values


def conformal_quantile(scores: ArrayLike, alpha: ArrayLike) -> Floats:
    r"""Return the :math:`\lceil (n + 1)(1 - \alpha) \rceil`-th smallest score, inf if n is less.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Nonconformity scores of the true labels of calibration rows.
    alpha : float or array-like
        Share of labels that sets may miss, in (0, 1).

    Returns
    -------
    ndarray of the shape of alpha

    Examples
    --------
    >>> conformal_quantile(np.arange(1, 20), [0.1, 0.05, 0.01])
    array([18., 19., inf])
    """
    return Levels.textbook(scores).threshold(alpha)


def check_alpha(alpha: ArrayLike) -> Floats:
    """Return levels as a vector; ``ValueError`` if some are not in (0, 1)."""
    alphas = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    if alphas.ndim != 1 or not len(alphas) or not ((alphas > 0) & (alphas < 1)).all():
        raise ValueError(
            f"alpha must be in (0, 1), got {alpha!r}: one number, or several in a list. It is the "
            "share of what is true that sets may miss: 0.1 for sets that hold 90 %."
        )
    return alphas


def check_one_alpha(alpha: ArrayLike) -> float:
    """Return a level; ``ValueError`` if it is several, or not in (0, 1)."""
    if np.ndim(alpha):
        raise ValueError(f"alpha must be one number, got {alpha!r}.")
    return float(check_alpha(alpha)[0])
