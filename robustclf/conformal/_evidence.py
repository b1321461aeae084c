"""What given labels say of the true ones, of rows and classes that share a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from robustclf.conformal._levels import steps
from robustclf.noise._guards import LARGEST_CONDITION

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

UNIFORM = 1e-12  # difference of entries that are taken as equal


@dataclass(frozen=True, eq=False)
class Noise:
    """How labels were made wrong.

    Attributes
    ----------
    transition : ndarray of shape (n_classes, n_classes)
        Probability of each given label (column) for each true class (row).

    Examples
    --------
    >>> from robustclf.noise import uniform_transition
    >>> noise = Noise(uniform_transition(0.15, 4))
    >>> round(noise.uniform, 12), noise.inverse[0].round(4)
    (0.2, array([ 1.1875, -0.0625, -0.0625, -0.0625]))
    """

    transition: Floats

    @property
    def clean(self) -> bool:
        """Whether no label is wrong."""
        return bool((self.transition == np.eye(len(self.transition))).all())

    @cached_property
    def uniform(self) -> float | None:
        """Share of labels drawn from all classes alike; None where noise is of another kind."""
        k = len(self.transition)
        apart = self.transition[~np.eye(k, dtype=bool)]
        share = float(apart.mean() * k)
        return share if np.ptp(apart) < UNIFORM and share < 1 else None

    @cached_property
    def inverse(self) -> Floats | None:
        """Weight of a row for each true class, by its label; None where T is close to singular."""
        if self.clean:
            return self.transition
        if np.linalg.cond(self.transition) > LARGEST_CONDITION:
            return None
        return np.asarray(np.linalg.inv(self.transition), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Scores and given labels of calibration rows, for some of the classes.

    Attributes
    ----------
    scores : ndarray of shape (n_rows, n_of_classes)
        Scores of the classes of the cell.
    codes : ndarray of shape (n_rows,)
        Given labels, places among all classes.
    columns : ndarray of shape (n_of_classes,)
        The classes of the cell, places among all classes.
    noise : Noise
    """

    scores: Floats
    codes: NDArray[np.int64]
    columns: NDArray[np.intp]
    noise: Noise

    @property
    def kind(self) -> str:
        """Which classes share the threshold: all ("marginal"), one ("class"), or some."""
        if len(self.columns) == self.n_classes:
            return "marginal"
        return "class" if len(self.columns) == 1 else "cluster"

    @property
    def n_classes(self) -> int:
        """Number of all classes."""
        return len(self.noise.transition)

    @property
    def n(self) -> int:
        """Number of rows, of whatever label."""
        return len(self.codes)

    @property
    def n_own(self) -> int:
        """Number of rows whose label is one of the classes."""
        return int(self.counts[self.columns].sum())

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of rows with each label."""
        return np.bincount(self.codes, minlength=self.n_classes)

    @cached_property
    def given(self) -> Floats:
        """Shares of the labels."""
        shares: Floats = self.counts / max(self.n, 1)
        return shares

    @cached_property
    def prior(self) -> Floats:
        """Shares of the true classes, ``given @ inv(T)``; may be negative where rows are few."""
        assert self.noise.inverse is not None
        shares: Floats = self.given @ self.noise.inverse
        return shares

    @property
    def mass(self) -> float:
        """Share of the rows whose true class is one of the classes."""
        return 1.0 if self.kind == "marginal" else float(self.prior[self.columns].sum())

    @property
    def usable(self) -> bool:
        """Whether there is anything to calibrate on."""
        return self.noise.inverse is not None and self.n_own > 0 and self.mass > 0

    @cached_property
    def weight(self) -> Floats:
        r"""Weight of each score in the distribution function of those of true labels.

        .. math:: \hat F(t) = \frac 1 n \sum_i \sum_k (T^{-1})_{\tilde y_i k} 1[S(x_i, k) \le t]

        is unbiased for noise that depends on the true class alone. For some classes the sum is
        over these, divided by the estimated share of the rows that are of them.
        """
        weight: Floats = self.label_weight[self.codes]
        return weight

    @cached_property
    def label_weight(self) -> Floats:
        """Weight of the scores of a row with each label, ``(label, class of the cell)``."""
        assert self.noise.inverse is not None
        weight: Floats = self.noise.inverse[:, self.columns] / (self.n * self.mass)
        return weight

    @cached_property
    def distribution(self) -> tuple[Floats, Floats]:
        """Return increasing scores, and the estimate of the share up to each.

        Of uniform noise they are those of given labels, the only ones of positive weight: two plain
        sorts are several times faster than one that carries the weights along.
        """
        if self.noise.uniform is None:
            return steps(self.scores, self.weight)
        assert self.noise.inverse is not None
        right, wrong = self.noise.inverse[0, :2]
        own, every = np.sort(self.own_scores), np.sort(self.scores, axis=None)
        n_own = np.searchsorted(own, own, side="right")
        n_all = np.searchsorted(every, own, side="right")
        share: Floats = ((right - wrong) * n_own + wrong * n_all) / (self.n * self.mass)
        return own, share

    @cached_property
    def own(self) -> NDArray[np.bool_]:
        """Which scores are those of given labels, ``(row, class)``."""
        own: NDArray[np.bool_] = self.codes[:, None] == self.columns
        return own

    @property
    def own_scores(self) -> Floats:
        """Scores of the given labels, of the rows whose label is one of the classes."""
        if self.kind == "marginal":
            return np.take_along_axis(self.scores, self.codes[:, None], axis=1)[:, 0]
        return self.scores[self.own]
