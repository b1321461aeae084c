"""How many labels are wrong, and whether any are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from robustclf.noise._inputs import check_proba

SHARES = (0.1, 0.2, 0.3, 0.5)  # of the rows, the most confident first
FEWEST_ROWS = 100


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
    confidence_level : float
        Of the interval, two-sided, and of the bound, one-sided.
    n_rows : int
        Rows that the estimate counts.
    """

    rate: float
    low: float
    high: float
    lower_bound: float
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

    with :math:`S_s` the share s of most confident rows, s = 0.1, 0.2, 0.3, 0.5. The interval is
    that of Clopper and Pearson for the share that attains the minimum; the bound is the smallest
    lower limit over the shares, each at a level of its own so that all hold together.

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

    Raises
    ------
    ValueError
        If labels, probabilities or the level are not what they must be.

    Notes
    -----
    Assumed is that wrong labels are as frequent where the classifier is sure as elsewhere. Noise
    that hits hard rows alone, or classes that are never predicted with confidence, is
    under-estimated. Counting all rows, as confident joints do, adds the classifier's own errors.

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
    _, wrong = _by_confidence(codes, p)
    alpha = 1 - confidence_level
    counted = {m: int(wrong[:m].sum()) for m in _sizes(len(wrong))}
    m = min(counted, key=lambda m: (counted[m] / m, -m))
    bounds = [_low(k, m, alpha / len(counted)) for m, k in counted.items()]
    return NoiseRate(
        rate=counted[m] / m,
        low=_low(counted[m], m, alpha / 2),
        high=_high(counted[m], m, alpha / 2),
        lower_bound=min(bounds),
        confidence_level=confidence_level,
        n_rows=m,
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

    The hypothesis :math:`r \le r_0` is rejected where the safe lower bound of :func:`noise_rate`
    at confidence :math:`1 - \alpha` exceeds the tolerance :math:`r_0`.

    Parameters
    ----------
    y, proba, classes
        As in :func:`noise_rate`.
    tolerance : float, default=0.02
        Share of wrong labels that is not worth cleaning; also what hard rows may look like.
    level : float, default=0.05
        Probability :math:`\alpha` of a false alarm.

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
    rate = noise_rate(y, proba, classes=classes, confidence_level=1 - level)
    return rate.lower_bound > tolerance


def _check_level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}.")


def rate_estimator(
    codes: NDArray[np.int64], p: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], float]:
    """Return the estimate of :func:`noise_rate` as a function of the weights of the rows."""
    order, wrong = _by_confidence(codes, p)

    def rate(weight: NDArray[np.float64]) -> float:
        rows = np.cumsum(np.append(0, weight[order]))
        bad = np.cumsum(np.append(0, weight[order] * wrong))
        sizes = np.minimum(_sizes(round(rows[-1])), rows[-1])
        return float((np.interp(sizes, rows, bad) / sizes).min())

    return rate


def _by_confidence(
    codes: NDArray[np.int64], p: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows, the most confident first, and whether the prediction is not the label."""
    order = np.argsort(-p.max(axis=1), kind="stable")
    return order, (p.argmax(axis=1) != codes)[order]


def _sizes(n: int) -> list[int]:
    """Return numbers of most confident rows, from small to large."""
    return sorted({min(n, max(FEWEST_ROWS, round(share * n))) for share in SHARES})


def _low(k: int, m: int, alpha: float) -> float:
    """Return the lower limit of a binomial share at one-sided level alpha."""
    return float(beta.ppf(alpha, k, m - k + 1)) if k else 0.0


def _high(k: int, m: int, alpha: float) -> float:
    return float(beta.ppf(1 - alpha, k + 1, m - k)) if k < m else 1.0
