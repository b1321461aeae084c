"""The transition matrix of the labels: how often each class is given for each true class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from robustclf._registry import check_known
from robustclf._rows import as_labels, row_mask
from robustclf.noise._bootstrap import percentile_interval
from robustclf.noise._guards import (
    NO_TRUSTED,
    Codes,
    Estimator,
    Floats,
    Guarded,
    class_prior,
    guarded,
    label_counts,
    limiter,
    warn_of,
)
from robustclf.noise._inputs import check_proba

SLACK = 1e-6  # below a threshold that still counts as confident, as in cleanlab
ANCHOR_QUANTILE = 0.97
EM_ITERATIONS = 500
EM_TOLERANCE = 1e-8
ROUGH_TOLERANCE = 1e-5  # of a replicate: far below its deviation from the estimate


@dataclass(frozen=True, eq=False)
class TransitionEstimate:
    """A transition matrix with intervals; ``np.asarray(estimate)`` is the matrix.

    Attributes
    ----------
    transition : ndarray of shape (n_classes, n_classes)
        T[i, j], the probability of the given label j where the true class is i; rows sum to one.
    low, high : ndarray of shape (n_classes, n_classes)
        Ends of the interval of each entry; nan where none was asked for.
    classes : ndarray of shape (n_classes,)
        Classes of the rows and columns.
    prior : ndarray of shape (n_classes,)
        Shares of the true classes: those that T turns into the shares of the given labels.
    method : str
        How T was estimated.
    confidence_level : float
        Level of the intervals.

    Examples
    --------
    >>> T = np.array([[0.9, 0.1], [0.3, 0.7]])
    >>> nan = np.full((2, 2), np.nan)
    >>> estimate = TransitionEstimate(
    ...     T, nan, nan, np.array(["no", "yes"]), np.array([0.5, 0.5]), "em", 0.95
    ... )
    >>> print(round(estimate.noise_rate, 2), np.array([0.5, 0.5]) @ estimate)
    0.2 [0.6 0.4]
    """

    transition: Floats
    low: Floats
    high: Floats
    classes: NDArray[Any]
    prior: Floats
    method: str
    confidence_level: float

    @property
    def noise_rate(self) -> float:
        """Share of labels that are wrong, ``1 - sum_i prior_i T_ii``."""
        return float(1 - self.prior @ self.transition.diagonal())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.transition, dtype=dtype, copy=copy)


def estimate_transition(
    y: ArrayLike,
    proba: ArrayLike,
    method: str = "confident_joint",
    *,
    classes: ArrayLike | None = None,
    trusted: ArrayLike | None = None,
    y_trusted: ArrayLike | None = None,
    rate: float | str | None = "estimate",
    n_bootstrap: int = 200,
    confidence_level: float = 0.95,
    random_state: Any = None,
) -> TransitionEstimate:
    r"""Estimate how labels were corrupted, :math:`T_{ij} = P(\text{given } j \mid \text{true } i)`.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Given labels.
    proba : array-like of shape (n_samples, n_classes)
        Probabilities of a classifier that did not see the row: out-of-fold ones.
    method : {"confident_joint", "anchor", "dual_t", "em", "trusted"}, default="confident_joint"
        See Notes for what each does, and what it takes the probabilities to be.
    classes : array-like of shape (n_classes,), optional
        The sorted classes, where ``y`` lacks some.
    trusted : array-like, optional
        Mask or numbers of the rows whose true label is known, for method "trusted".
    y_trusted : array-like of shape (n_trusted,), optional
        True labels of these rows, in their order; ``y`` holds the given ones.
    rate : float, "estimate" or None, default="estimate"
        Share of wrong labels that the matrix may not exceed: what is above is the classifier's own
        confusion, and the entries off the diagonal are scaled down by one factor. "estimate" is
        :func:`noise_rate`; None, and method "trusted", leave the matrix as the method has it.
    n_bootstrap : int, default=200
        Replicates of the percentile bootstrap over rows; 0 leaves ``low`` and ``high`` nan.
    confidence_level : float, default=0.95
        Level of the interval of each entry, in (0, 1).
    random_state : int, RandomState instance or None, default=None
        Seed of the bootstrap.

    Returns
    -------
    TransitionEstimate
        The matrix, intervals, and the shares of the true classes.

    Raises
    ------
    ValueError
        For labels and probabilities that do not fit together, an unknown method, and trusted rows
        that are missing, that do not fit their labels or that no method asked for.

    Warns
    -----
    UserWarning
        If the row of a class rests on m < 5 rows (given, predicted or trusted; m = 0 for a class
        that nobody predicts): it is moved towards the identity by 1 - m/5. If T is close to
        singular: the rows that depend on each other are moved towards the identity until the
        condition number is at most 1000. If a class has no trusted row: its row is that of
        "confident_joint".

    Notes
    -----
    "confident_joint"
        Counts rows by given label and by the most probable of the classes k with
        :math:`p_k \ge t_k`, the mean of :math:`p_k` over the rows given k, and scales the counts
        to those of the given labels. Where two classes reach their thresholds, cleanlab takes the
        most probable class of all, even one that does not reach its own.
    "anchor"
        :math:`T_i = p(x_i^*)`, where :math:`x_i^*` is the row at the 97th percentile of
        :math:`p_i`; above it for a class predicted for less than 6 % of the rows, where at most
        half of these rows are left out. For probabilities of the *given* labels.
    "dual_t"
        The matrix of "anchor" times the shares of given labels among the rows predicted to be of
        each class. For overconfident probabilities: of calibrated ones of the given labels it
        makes about T T, twice the noise.
    "em"
        Maximum likelihood, :math:`\max_T \sum_i \log \sum_k p_{ik} T_{k y_i}`, until T moves by
        less than 1e-8 or for 500 iterations. For probabilities of the *true* labels; those of
        the given ones leave no noise to explain.
    "trusted"
        GLC: mean of p over the trusted rows of true class i. For probabilities of the *given*
        labels; where classes overlap, rows of one class that look like another count as noise.

    The intervals tell the uncertainty from the number of rows alone: neither that of the
    classifier, nor the bias of a method whose probabilities are not what it takes them to be.

    References
    ----------
    Northcutt, Jiang, Chuang. Confident Learning. JAIR 2021. arXiv:1911.00068. "anchor": Patrini
    et al. CVPR 2017. arXiv:1609.03683. "dual_t": Yao et al. NeurIPS 2020. arXiv:2006.07805. "em":
    Dawid, Skene. Applied Statistics 1979, with one annotator. "trusted": Hendrycks et al. NeurIPS
    2018. arXiv:1802.05300.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> true = rng.integers(2, size=1000)
    >>> proba = np.eye(2)[true] * 0.8 + 0.1
    >>> y = np.where(rng.random(1000) < 0.3 * true, 1 - true, true)
    >>> estimate = estimate_transition(y, proba, random_state=0)
    >>> print(estimate.transition.round(2), estimate.low[1].round(2), estimate.high[1].round(2))
    [[1.   0.  ]
     [0.34 0.66]] [0.3  0.63] [0.37 0.7 ]
    """
    check_known("method", [method], METHODS)
    codes, p, known = check_proba(y, proba, classes)
    told: tuple[Any, ...] = ()
    if method == "trusted":
        told = _trusted_rows(trusted, y_trusted, known, len(codes))
        warn_of(known[np.bincount(told[1], minlength=len(known)) == 0], NO_TRUSTED)
    elif trusted is not None or y_trusted is not None:
        raise ValueError(f"trusted rows are for method='trusted', got method={method!r}.")
    rough = {"tolerance": ROUGH_TOLERANCE} if method == "em" else {}
    limited = limiter(None if method == "trusted" else rate, codes, p)
    estimate = guarded(METHODS[method](codes, p, *told), limited)
    low, high = percentile_interval(
        lambda weight: estimate(weight, **rough).transition,
        len(codes),
        p.shape[1:] * 2,
        n_bootstrap=n_bootstrap,
        confidence_level=confidence_level,
        random_state=random_state,
    )
    transition = estimate(np.ones(len(codes))).warned(known)
    prior = class_prior(transition, np.bincount(codes, minlength=len(known)) / len(codes))
    return TransitionEstimate(transition, low, high, known, prior, method, confidence_level)


def transition_matrix(
    codes: Codes,
    proba: Floats,
    method: str = "confident_joint",
    *,
    weight: Floats | None = None,
    rate: float | str | None = "estimate",
) -> Floats:
    """Return the matrix of :func:`estimate_transition` for weighted rows, without an interval.

    Examples
    --------
    >>> codes = np.repeat([0, 0, 1, 1], [40, 10, 50, 0])
    >>> proba = np.eye(2)[np.repeat([0, 1, 1, 1], [40, 10, 50, 0])] * 0.8 + 0.1
    >>> transition_matrix(codes, proba, rate=None).round(2)
    array([[1.  , 0.  ],
           [0.17, 0.83]])
    """
    return guarded_transition(codes, proba, method, weight=weight, rate=rate).warned(
        np.arange(proba.shape[1])
    )


def guarded_transition(
    codes: Codes,
    proba: Floats,
    method: str = "confident_joint",
    *,
    weight: Floats | None = None,
    rate: float | str | None = "estimate",
) -> Guarded:
    """Return the matrix of :func:`transition_matrix`, and what was mended in it, without a word."""
    estimate = guarded(METHODS[method](codes, proba), limiter(rate, codes, proba))
    return estimate(np.ones(len(codes)) if weight is None else weight)


def confident_joint(codes: Codes, proba: Floats, weight: Floats | None = None) -> Floats:
    """Count the rows by true class, where the probabilities are sure of one, and by given label.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,)
        Given labels, places in the columns of ``proba``.
    proba : ndarray of shape (n_samples, n_classes)
        Out-of-fold probabilities.
    weight : ndarray of shape (n_samples,), optional
        How often each row counts.

    Returns
    -------
    ndarray of shape (n_classes, n_classes)
        Counts by true class (row) and given label (column), whose sums are those of the labels.

    Examples
    --------
    >>> proba = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    >>> confident_joint(np.array([0, 0, 1, 1, 1]), proba)
    array([[2., 1.],
           [0., 2.]])
    """
    weight = np.ones(len(codes)) if weight is None else weight
    return _calibrated(_confident_counts(codes, proba, weight), codes, weight)


def confident_guess(
    codes: Codes, proba: Floats, weight: Floats | None = None
) -> tuple[Codes, NDArray[np.bool_]]:
    """Return the true class of each row by the confident joint, and whether it is sure of one.

    Sure are the classes whose probability reaches its mean over the rows given that class; the most
    probable of them is taken.
    """
    weight = np.ones(len(codes)) if weight is None else weight
    own = proba[np.arange(len(codes)), codes]
    labels = label_counts(codes, proba, weight)
    total = np.bincount(codes, weight * own, minlength=len(labels))
    threshold = np.divide(total, labels, out=np.full(len(labels), np.inf), where=labels > 0)
    confident = proba >= np.maximum(threshold, 2 * SLACK) - SLACK
    return np.where(confident, proba, -1.0).argmax(axis=1), confident.any(axis=1)


def _confident_counts(codes: Codes, proba: Floats, weight: Floats) -> Floats:
    guess, sure = confident_guess(codes, proba, weight)
    return _cross_counts(guess, codes, weight * sure, proba.shape[1])


def _calibrated(counts: Floats, codes: Codes, weight: Floats) -> Floats:
    joint = np.maximum(counts, np.eye(len(counts)))  # a label nobody is sure of is taken as right
    calibrated: Floats = joint / joint.sum(axis=0) * label_counts(codes, joint, weight)
    return calibrated


# Methods: each prepares a function of row weights that the bootstrap calls often; it returns a
# matrix, and on how many rows each row of it rests ------------------------------------------------


def _confident_joint(codes: Codes, proba: Floats) -> Estimator:
    def estimate(weight: Floats) -> tuple[Floats, Floats]:
        counts = _confident_counts(codes, proba, weight)
        labels = label_counts(codes, proba, weight)
        transition = _row_stochastic(_calibrated(counts, codes, weight))
        return transition, np.minimum(counts.sum(axis=1), labels)

    return estimate


def _anchor(codes: Codes, proba: Floats) -> Estimator:
    predicted = proba.argmax(axis=1)
    order = proba.argsort(axis=0, kind="stable").T

    def estimate(weight: Floats) -> tuple[Floats, Floats]:
        total = weight.sum()
        support = label_counts(predicted, proba, weight)
        quantile = np.maximum(ANCHOR_QUANTILE, 1 - support / total / 2)
        place = np.ceil(quantile * (total - 1))
        below = weight[order].cumsum(axis=1)  # "higher" quantile of rows that count several times
        anchors = [
            rows[np.searchsorted(counted, at, side="right")]
            for rows, counted, at in zip(order, below, place, strict=True)
        ]
        return proba[anchors], np.minimum(support, label_counts(codes, proba, weight))

    return estimate


def _dual_t(codes: Codes, proba: Floats) -> Estimator:
    predicted = proba.argmax(axis=1)
    of_intermediate = _anchor(codes, proba)

    def estimate(weight: Floats) -> tuple[Floats, Floats]:
        transition, support = of_intermediate(weight)
        counts = _cross_counts(predicted, codes, weight, proba.shape[1])
        return transition @ _row_stochastic(counts), support

    return estimate


def _em(codes: Codes, proba: Floats) -> Estimator:
    def estimate(weight: Floats, tolerance: float = EM_TOLERANCE) -> tuple[Floats, Floats]:
        groups = by_label(codes, proba, weight)
        joint = np.stack([w @ p for p, w in groups], axis=1)
        transition = _row_stochastic(joint)
        for _ in range(EM_ITERATIONS):
            joint = em_step(transition, groups)
            last, transition = transition, _row_stochastic(joint)
            if abs(transition - last).max() < tolerance:
                break
        return transition, np.minimum(joint.sum(axis=1), label_counts(codes, proba, weight))

    return estimate


def by_label(codes: Codes, proba: Floats, weight: Floats) -> list[tuple[Floats, Floats]]:
    """Return the probabilities and weights of the rows given each label."""
    groups = [np.flatnonzero((codes == k) & (weight > 0)) for k in range(proba.shape[1])]
    return [(proba[group], weight[group]) for group in groups]


def em_step(transition: Floats, groups: list[tuple[Floats, Floats]]) -> Floats:
    """Return the expected counts by true class and given label; ``groups`` from `by_label`."""
    columns = [t * ((w / (p @ t)) @ p) for t, (p, w) in zip(transition.T, groups, strict=True)]
    return np.stack(columns, axis=1)


def _trusted(codes: Codes, proba: Floats, rows: NDArray[np.intp], true: Codes) -> Estimator:
    member = np.eye(proba.shape[1])[true]
    fallback = _confident_joint(codes, proba)

    def estimate(weight: Floats) -> tuple[Floats, Floats]:
        counted = member * weight[rows, None]
        support = counted.sum(axis=0)
        transition = _row_stochastic(counted.T @ proba[rows])
        none = support == 0
        if none.any():
            of_joint, rests_on = fallback(weight)
            transition[none], support[none] = of_joint[none], rests_on[none]
        return transition, support

    return estimate


METHODS: dict[str, Callable[..., Estimator]] = {
    "confident_joint": _confident_joint,
    "anchor": _anchor,
    "dual_t": _dual_t,
    "em": _em,
    "trusted": _trusted,
}


def _cross_counts(true: NDArray[np.integer[Any]], given: Codes, weight: Floats, k: int) -> Floats:
    counts = np.bincount(true * k + given, weight, minlength=k * k)
    return counts.astype(np.float64).reshape(k, k)


def _row_stochastic(counts: Floats) -> Floats:
    """Divide rows by their sums; rows of zeros become those of the identity."""
    total = counts.sum(axis=1, keepdims=True)
    rows: Floats = np.divide(counts, total, out=np.eye(len(counts)), where=total > 0)
    return rows


def _trusted_rows(
    trusted: ArrayLike | None, y_trusted: ArrayLike | None, classes: NDArray[Any], n: int
) -> tuple[NDArray[np.intp], Codes]:
    if trusted is None or y_trusted is None:
        raise ValueError("method 'trusted' needs trusted= (rows) and y_trusted= (their labels).")
    mask = row_mask(trusted, n, "trusted")
    assert mask is not None
    given = np.asarray(trusted)
    rows = np.flatnonzero(mask) if given.dtype == bool else given.astype(np.intp).ravel()
    if not 0 < len(rows) == np.size(y_trusted):
        raise ValueError(
            f"trusted and y_trusted must tell of the same rows, at least one: got {len(rows)} rows "
            f"and {np.size(y_trusted)} labels."
        )
    labels = as_labels(y_trusted, classes, name="y_trusted")
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise ValueError(
            f"y_trusted contains labels {unknown.tolist()} beyond the classes {classes.tolist()}."
        )
    return rows, np.searchsorted(classes, labels).astype(np.int64)
