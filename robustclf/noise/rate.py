"""How many labels are wrong, and whether any are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from robustclf.noise._inputs import check_proba

SHARES = (0.1, 0.2, 0.3, 0.5)  # of the rows, the most confident first
FEWEST_ROWS = 100
FEWEST_OF_CLASS = 10
LEVEL = 0.05  # at which classes are found to differ in their noise


@dataclass(frozen=True)
class NoiseRate:
    """A share of wrong labels.

    Attributes
    ----------
    rate : float
        Estimate.
    low, high : float
        Interval for the sampling of the rows that the estimate counts.
    lower_bound : float
        Bound that stays below the rate also where the confidence misleads; for what must not
        over-estimate the noise, such as prediction sets.
    by_class : bool
        Whether the classes were found to differ, so that the estimate looks at each.
    confidence_level : float
        Of the interval, two-sided, and of the bound, one-sided.
    n_rows : int
        Rows that the estimate counts.
    """

    rate: float
    low: float
    high: float
    lower_bound: float
    by_class: bool
    confidence_level: float
    n_rows: int

    def __float__(self) -> float:
        """Return the estimate."""
        return self.rate


def noise_rate(
    y: ArrayLike,
    proba: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> NoiseRate:
    r"""Estimate the share of wrong labels where the classifier is sure of the label.

    The most confident rows, by :math:`\max_k p_k` out of fold, are nearly always predicted right,
    so there a given label that differs is a wrong one:

    .. math:: \hat r = \min_s \frac{1}{|S_s|} \sum_{i \in S_s} [\arg\max_k p_{ik} \ne y_i]

    with :math:`S_s` the share s of most confident rows, s = 0.1, 0.2, 0.3, 0.5 (where rows of one
    confidence are more than fit in, a part of each). Where the labels of
    some classes are evidently worse than those of others (the same count within each predicted
    class, in the mean over the classes, has a lower limit above :math:`\hat r` at level 0.05), the
    minimum is taken in each class, and the mean over the classes is the estimate.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Given labels.
    proba : array-like of shape (n_samples, n_classes)
        Out-of-fold probabilities; in-sample ones have learned the wrong labels and show none.
    classes : array-like of shape (n_classes,), optional
        Sorted classes, where y lacks some.
    confidence_level : float, default=0.95

    Returns
    -------
    NoiseRate
        The interval is that of Clopper and Pearson for the share that attains the minimum. The
        bound is the least of the lower limits over the shares of all rows, each at a level of its
        own so that all hold together.

    Raises
    ------
    ValueError
        If labels, probabilities or the level are not what they must be.

    Notes
    -----
    Assumed is that within a class wrong labels are as frequent where the classifier is sure as
    elsewhere, and that the classifier is right where it is surest. Noise that hits hard rows alone
    is under-estimated; two classes that the features do not tell apart look noisy. Counting all
    rows, as confident joints do, adds the classifier's own errors.

    Nothing here checks the second assumption, and nothing can: labels and probabilities of a
    classifier that gives its surest rows .64, of which .36 are labelled otherwise, are the same
    whether the rows are hard and labels right or rows are easy and .36 of the labels wrong. To
    subtract what the classifier's own doubt explains, :math:`1 - \max_k p_k`, takes all of the
    noise away from a classifier that learned from noisy labels. So neither the estimate nor the
    bound is for a classifier that is often wrong where it is surest, as a linear one can be.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(3)
    >>> p = rng.beta(0.3, 0.3, 4000)
    >>> true = rng.random(4000) < p
    >>> given = np.where(rng.random(4000) < 0.2, ~true, true)
    >>> rate = noise_rate(given, np.column_stack([1 - p, p]))
    >>> print(f"{rate.rate:.2f} in [{rate.low:.2f}, {rate.high:.2f}], >= {rate.lower_bound:.2f}")
    0.20 in [0.17, 0.22], >= 0.16
    """
    _check_level("confidence_level", confidence_level)
    codes, p, _ = check_proba(y, proba, classes)
    alpha = 1 - confidence_level
    overall, by_class = _count(codes, p)(np.ones(len(codes)))
    differ = by_class.bound(LEVEL) > overall.rate
    counted = by_class if differ and by_class.rate > overall.rate else overall
    k, m = counted.wrong[counted.best], counted.rows[counted.best]
    return NoiseRate(
        rate=counted.rate,
        low=min(_low(k, m, alpha / 2), counted.rate),
        high=_high(k, m, alpha / 2),
        lower_bound=overall.bound(alpha),
        by_class=counted is by_class,
        confidence_level=confidence_level,
        n_rows=round(m),
    )


def is_noisy(
    y: ArrayLike,
    proba: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    tolerance: float = 0.02,
    level: float = 0.05,
) -> bool:
    r"""Test whether more than a tolerable share of labels is wrong.

    The hypothesis :math:`r \le r_0` is rejected where the lower limit of what :func:`noise_rate`
    counts, over all rows or within the classes, exceeds the tolerance :math:`r_0` at the level
    :math:`\alpha`.

    Parameters
    ----------
    y, proba, classes
        As in :func:`noise_rate`.
    tolerance : float, default=0.02
        Share of wrong labels that is not worth cleaning; also what hard rows may look like.
    level : float, default=0.05
        Probability :math:`\alpha` of a false alarm, where the most confident predictions of right
        labels are right.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If labels, probabilities, tolerance or level are not what they must be.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> p = rng.beta(0.3, 0.3, 4000)
    >>> true = rng.random(4000) < p
    >>> proba = np.column_stack([1 - p, p])
    >>> is_noisy(true, proba), is_noisy(true ^ (rng.random(4000) < 0.1), proba)
    (False, True)
    """
    _check_level("tolerance", tolerance)
    _check_level("level", level)
    codes, p, _ = check_proba(y, proba, classes)
    counts = _count(codes, p)(np.ones(len(codes)))
    return max(counted.bound(level / 2) for counted in counts) > tolerance


def rate_estimator(
    codes: NDArray[np.int64], p: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], float]:
    """Return the estimate of :func:`noise_rate` as a function of the weights of the rows."""
    count = _count(codes, p)

    def rate(weight: NDArray[np.float64]) -> float:
        overall, by_class = count(weight)
        differ = by_class.bound(LEVEL) > overall.rate
        return max(overall.rate, by_class.rate) if differ else overall.rate

    return rate


def _check_level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}.")


class _Counted(NamedTuple):
    """Rows with a prediction unlike the label, among the most confident of each share."""

    wrong: NDArray[np.float64]  # (share,)
    rows: NDArray[np.float64]  # (share,)
    rate: float

    @property
    def best(self) -> int:
        """The share with the lowest rate; of equal ones that with most rows."""
        order = np.lexsort((-self.rows, self.wrong / self.rows))
        return int(order[0])

    def bound(self, alpha: float) -> float:
        """Lower limit of the rate that holds for all shares together."""
        pairs = set(zip(self.wrong.tolist(), self.rows.tolist(), strict=True))
        return min(_low(k, m, alpha / len(pairs)) for k, m in pairs)


def _count(
    codes: NDArray[np.int64], p: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], tuple[_Counted, _Counted]]:
    """Return what counts weighted rows: all together, and within the predicted classes."""
    confidence = p.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    confidence, predicted = confidence[order], p.argmax(axis=1)[order]
    differs = predicted != codes[order]
    groups = [np.flatnonzero(predicted == k) for k in np.unique(predicted)]

    def count(weight: NDArray[np.float64]) -> tuple[_Counted, _Counted]:
        w = weight[order]
        wrong, rows = _at_shares(w, differs, confidence, FEWEST_ROWS)
        overall = _Counted(wrong, rows, float((wrong / rows).min()))
        some = [group for group in groups if w[group].any()]
        if len(some) == 1:
            return overall, overall
        share = np.array([w[group].sum() for group in some]) / w.sum()
        parts = [
            _at_shares(w[group], differs[group], confidence[group], FEWEST_OF_CLASS)
            for group in some
        ]
        rates = np.array([wrong / rows for wrong, rows in parts])  # (class, share)
        sizes = np.sum([rows for _, rows in parts], axis=0)
        mean = float(share @ rates.min(axis=1))
        return overall, _Counted(share @ rates * sizes, sizes, mean)

    return count


def _at_shares(
    weight: NDArray[np.float64],
    differs: NDArray[np.bool_],
    confidence: NDArray[np.float64],
    fewest: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weight of wrong labels among the first rows, and of these, ``(share,)``.

    Of rows with the same confidence, of which a share takes some, it takes a part of each.
    """
    rows = np.cumsum(np.append(0, weight))
    wrong = np.cumsum(np.append(0, weight * differs))
    sizes = np.minimum([max(fewest, round(share * rows[-1])) for share in SHARES], rows[-1])
    last = np.append(0, np.flatnonzero(np.diff(confidence, append=-1)) + 1)
    return np.interp(sizes, rows[last], wrong[last]), sizes


def _low(k: float, m: float, alpha: float) -> float:
    """Return the lower limit of a binomial share at one-sided level alpha."""
    return float(beta.ppf(alpha, k, m - k + 1)) if k else 0.0


def _high(k: float, m: float, alpha: float) -> float:
    return float(beta.ppf(1 - alpha, k + 1, m - k)) if k < m else 1.0
