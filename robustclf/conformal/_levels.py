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
    def joined(cls, *parts: Levels) -> Levels:
        """Return the largest of several levels at each score."""
        scores = np.concatenate([part.scores for part in parts])
        levels = np.concatenate([part.levels for part in parts])
        order = np.argsort(scores, kind="stable")
        return cls(scores[order], np.maximum.accumulate(levels[order]))

    def threshold(self, alpha: ArrayLike) -> Floats:
        """Return the smallest score of level 1 - alpha; inf, for full sets, if there is none."""
        wanted = 1 - np.asarray(alpha, dtype=np.float64) - SLACK
        place = np.searchsorted(self.levels, wanted, side="left")
        threshold: Floats = np.asarray(np.append(self.scores, np.inf)[place])
        return threshold

    def p_values(self, scores: ArrayLike) -> Floats:
        """Return the smallest alpha at which a class of this score is left out."""
        below = np.searchsorted(self.scores, scores, side="left")
        p_values: Floats = np.clip(1 - np.append(0.0, self.levels)[below], 0, 1)
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
