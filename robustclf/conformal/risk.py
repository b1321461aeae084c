"""Sets of classes whose expected loss is at most what was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from robustclf.conformal._deviations import split_bound
from robustclf.conformal._evidence import Evidence, Floats
from robustclf.conformal._noise_aware import (
    CONSTRAINTS,
    HeldOutRows,
    NoiseAwareClassifier,
    is_multilabel,
    usable_inverse,
)
from robustclf.conformal._p_values import hoeffding_bentkus
from robustclf.conformal._set_losses import SET_LOSSES, SetLoss, make_set_loss

Mask = NDArray[np.bool_]

# thresholds before any row is seen, as guarantees need; dense where probabilities are extreme
LOGITS = np.concatenate([np.arange(20, 8, -1.0), np.linspace(8, -8, 161), -np.arange(9, 100, 2.0)])
THRESHOLDS = np.concatenate([[1.0], expit(LOGITS), [0.0]])
SLACK = 1e-12  # of a bound, which may equal alpha but for rounding


class RiskCurve(NamedTuple):
    """Mean loss of the sets of each threshold, and what is known of it."""

    risk: Floats  # (threshold,), estimated on true labels
    size: Floats  # (threshold,), mean number of classes
    n: int
    lowest: float  # loss of a row, as it enters the mean: noise takes it out of [0, largest]
    highest: float
    largest: float  # loss there is
    falls: bool  # in each row as sets grow
    grows: bool


class _SetsByThreshold(NoiseAwareClassifier):
    r"""Sets :math:`C_t(x) = \{k: p_k(x) \ge t\}`."""

    loss: Any
    _curve: RiskCurve

    def _fit_curve(self, X: Any, y: Any) -> tuple[RiskCurve, HeldOutRows | None]:
        self._validate_params()
        self.loss_ = make_set_loss(self.loss)
        if not is_multilabel(y):
            rows = self._hold_out(X, y, undone=self.loss_.of_labels)
            return _curve(rows, self.loss_), rows
        if self.noise is not None:
            raise ValueError("noise= is for labels of one class for each row: pass noise=None.")
        return _multilabel_curve(*self._hold_out_labels(X, y), self.loss_), None

    def predict_set(self, X: Any, alpha: float = 0.1) -> Mask:
        """Return which classes are in the set of each row.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float, default=0.1
            Largest risk, in units of the loss.

        Returns
        -------
        sets : ndarray of shape (n_samples, n_classes)
        """
        threshold = self.threshold(alpha)
        return sets_of(self.predict_proba(X), threshold)

    def _followed(self, alpha: float) -> RiskCurve:
        check_is_fitted(self)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha!r}.")
        return self._curve

    def threshold(self, alpha: float = 0.1) -> float:
        """Return the threshold for a risk; overridden."""
        raise NotImplementedError


class RiskController(_SetsByThreshold):
    r"""Conformal risk control: sets of classes whose expected loss is at most :math:`\alpha`.

    The sets :math:`C_t(x) = \{k: p_k(x) \ge t\}` grow as t falls. For a loss in [0, B] that falls
    as sets grow, the largest threshold with

    .. math:: \frac{n}{n + 1} \hat R(t) + \frac{B}{n + 1} \le \alpha

    gives :math:`E[\ell(C(x), y)] \le \alpha` for the next row. For one that grows, the smallest
    does. Where labels are noisy the mean loss on true labels is estimated with the inverse of the
    transition,

    .. math:: \hat R(t) = \frac 1 n \sum_i \sum_k T^{-1}[\tilde y_i, k] \, \ell(C_t(x_i), k),

    and the rule is :math:`\hat R(t) + \delta \le \alpha` for this and all larger sets;
    :math:`\delta` bounds its expected largest deviation, as the correction "bortolotti" of
    :class:`ConformalClassifier` does.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned. One in :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, and all rows
        calibrate it.
    loss : {"fnr", "size"}, SetLoss or callable, default="fnr"
        Share of true classes that are missed, size of the set, or ``loss(sets, target)`` of two
        masks ``(row, class)`` that returns a number in [0, 1] for each row. It has to fall as sets
        grow, or to grow: see :class:`LearnThenTest` for others.
    noise : float, array-like of shape (n_classes, n_classes), "estimate" or None, default=None
        How labels were made wrong: uniformly at a rate, by a transition matrix (rows are true
        classes), not at all (None), or as the calibration rows show, by the lower bound of
        :func:`~robustclf.noise.noise_rate`. Estimate only with a classifier that is right where it
        is surest: any other has its own errors counted as noise, and too large a rate breaks the
        promise. Too small a one keeps it.
    noise_convention : {"rest", "all"}, default="rest"
        What a rate counts: wrong labels, or labels drawn from all classes.
    cv : int, splitter or None, default=5
        Folds that calibrate, each by a classifier that did not see it; then one of all rows takes
        their place. An estimator with a parameter ``cross_fit``, such as
        :class:`~robustclf.RobustClassifier`, does this in one fit. None holds rows out instead.
        The promise is exact for rows that are held out and for a frozen classifier; with folds it
        takes the classifier of all rows to be no worse than those of the folds.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, stratified by the given labels.
    random_state : int, RandomState or None, default=None
        Governs which rows are held out, and the folds.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
    transition_ : ndarray of shape (n_classes, n_classes)
        How labels are taken to be wrong: the rows are true classes.
    thresholds_, risk_ : ndarray of shape (n_thresholds,)
        Thresholds and the estimated mean loss of their sets.
    correction_ : float
        What is added to the mean loss for noise; 0 without.

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei, Schuster. Conformal Risk Control. ICLR 2024. arXiv:2208.02814.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.model_selection import train_test_split
    >>> X, rest, y, true = train_test_split(*load_digits(return_X_y=True), random_state=0)
    >>> control = RiskController(GaussianNB(), random_state=0).fit(X, y)
    >>> sets = control.predict_set(rest, alpha=0.1)
    >>> print(f"{1 - sets[np.arange(450), true].mean():.2f} missed")
    0.10 missed
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "loss": [StrOptions(set(SET_LOSSES.names())), SetLoss, callable],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        loss: Any = "fnr",
        noise: Any = None,
        noise_convention: str = "rest",
        cv: Any = 5,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.loss = loss
        self.noise = noise
        self.noise_convention = noise_convention
        self.cv = cv
        self.calibration_size = calibration_size
        self.random_state = random_state

    def _validate_params(self) -> None:
        super()._validate_params()
        self._check_monotone(make_set_loss(self.loss).monotone)

    def _check_monotone(self, monotone: bool) -> None:
        if not monotone:
            raise ValueError(
                f"the loss {self.loss!r} neither falls nor grows with all sets: use LearnThenTest."
            )

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the classifier, and estimate the risk on rows that it did not see.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Given labels, or a column of zeros and ones for each label of a row.

        Returns
        -------
        self : RiskController

        Raises
        ------
        ValueError
            If the loss neither falls nor grows with the sets, or noise does not fit the classes.
        """
        curve, rows = self._fit_curve(X, y)
        self.thresholds_, self.risk_, self._curve = THRESHOLDS, curve.risk, curve
        self._check_monotone(curve.falls or curve.grows)
        self.correction_ = 0.0
        if rows is not None and self.loss_.of_labels and not rows.noise.clean:
            self.correction_ = curve.largest * _deviation(rows)
        return self

    def threshold(self, alpha: float = 0.1) -> float:
        """Return the least probability of the classes in sets of this risk.

        Parameters
        ----------
        alpha : float, default=0.1
            Largest risk.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If alpha is not positive, or the loss is larger even for the safest sets.

        Warns
        -----
        UserWarning
            If there are too few rows for any but the safest sets.
        """
        curve = self._followed(alpha)
        if self.correction_ > 0:
            bound = curve.risk + self.correction_
        else:
            bound = (curve.n * curve.risk + curve.largest) / (curve.n + 1)
        fits = bound <= alpha + SLACK
        order = slice(None, None, -1) if curve.falls else slice(None)  # the safest sets first
        safe = np.logical_and.accumulate(fits[order])
        if safe.any():
            return float(self.thresholds_[order][safe.sum() - 1])
        least = curve.risk[order][0]
        if least > alpha:
            raise ValueError(
                f"alpha={alpha:g} is below the loss of the safest sets, {least:.3g}: no threshold "
                "can hold it."
            )
        warnings.warn(
            f"{curve.n} rows cannot promise a risk of {alpha:g}: the sets are "
            f"{'full' if curve.falls else 'empty'}. Pass more rows or a larger alpha.",
            UserWarning,
            stacklevel=2,
        )
        return float(self.thresholds_[order][0])


class LearnThenTest(_SetsByThreshold):
    r"""Sets whose expected loss is at most :math:`\alpha`, for any loss, with high probability.

    Each threshold is a hypothesis :math:`E[\ell(C_t(x), y)] > \alpha`, tested by the bound of
    Hoeffding and Bentkus; of those rejected one is taken, as ``prefer`` says. With
    probability :math:`1 - \delta` over the calibration rows all of them hold the risk.

    Parameters
    ----------
    estimator : classifier with predict_proba
        As for :class:`RiskController`.
    loss : {"fdr", "fnr", "size"}, SetLoss or callable, default="fdr"
        Share of the set that is wrong, share of the true classes that are missed, size of the set,
        or ``loss(sets, target)`` of two masks ``(row, class)`` with values in [0, 1].
    delta : float, default=0.1
        Probability that the promise is broken.
    prefer : {"auto", "small", "large"}, default="auto"
        Which of the thresholds that hold the risk is taken: the smallest sets or the largest. With
        "auto" the largest of a loss that an empty set has none of, such as "fdr" and "size", and
        the smallest of any other.
    testing : {"fixed_sequence", "bonferroni"}, default="fixed_sequence"
        Test thresholds from either end until one is not rejected, at half of ``delta`` each, or
        each of them at its share of ``delta``, which finds thresholds that hold in the middle only.
    noise, noise_convention, cv, calibration_size, random_state
        As for :class:`RiskController`; the tests allow for noise, so that there is no correction.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
    transition_ : ndarray of shape (n_classes, n_classes)
        How labels are taken to be wrong: the rows are true classes.
    thresholds_, risk_ : ndarray of shape (n_thresholds,)
        Thresholds and the estimated mean loss of their sets.

    References
    ----------
    Angelopoulos, Bates, Candès, Jordan, Lei. Learn then Test: Calibrating Predictive Algorithms to
    Achieve Risk Control. AOAS 2025. arXiv:2110.01052.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.model_selection import train_test_split
    >>> X, rest, y, true = train_test_split(*load_digits(return_X_y=True), random_state=0)
    >>> test = LearnThenTest(GaussianNB(), random_state=0).fit(X, y)
    >>> sets = test.predict_set(rest, alpha=0.2)
    >>> wrong = sets.sum(axis=1) - sets[np.arange(450), true]
    >>> print(f"{(wrong / np.maximum(sets.sum(axis=1), 1)).mean():.2f} of a set is wrong")
    0.18 of a set is wrong
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "loss": [StrOptions(set(SET_LOSSES.names())), SetLoss, callable],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "prefer": [StrOptions({"auto", "small", "large"})],
        "testing": [StrOptions({"fixed_sequence", "bonferroni"})],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        loss: Any = "fdr",
        delta: float = 0.1,
        prefer: str = "auto",
        testing: str = "fixed_sequence",
        noise: Any = None,
        noise_convention: str = "rest",
        cv: Any = 5,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.loss = loss
        self.delta = delta
        self.prefer = prefer
        self.testing = testing
        self.noise = noise
        self.noise_convention = noise_convention
        self.cv = cv
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the classifier, and estimate the risk on rows that it did not see.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Given labels, or a column of zeros and ones for each label of a row.

        Returns
        -------
        self : LearnThenTest

        Raises
        ------
        ValueError
            If noise does not fit the classes, or a loss is no number in [0, 1].
        """
        self._curve, _ = self._fit_curve(X, y)
        self.thresholds_, self.risk_ = THRESHOLDS, self._curve.risk
        return self

    def certified(self, alpha: float = 0.1) -> Mask:
        """Return which of ``thresholds_`` hold the risk.

        Parameters
        ----------
        alpha : float, default=0.1
            Largest risk.

        Returns
        -------
        certified : ndarray of shape (n_thresholds,)
        """
        curve = self._followed(alpha)
        width = curve.highest - curve.lowest
        p = hoeffding_bentkus(
            (curve.risk - curve.lowest) / width, curve.n, (alpha - curve.lowest) / width
        )
        if self.testing == "bonferroni":
            return p <= self.delta / len(p)
        rejected = p <= self.delta / 2
        up = np.logical_and.accumulate(rejected)
        down: Mask = np.logical_and.accumulate(rejected[::-1])[::-1]
        return up | down

    def threshold(self, alpha: float = 0.1) -> float:
        """Return the threshold that holds the risk and is preferred.

        Parameters
        ----------
        alpha : float, default=0.1
            Largest risk.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If no threshold is certified to hold the risk.
        """
        certified = np.flatnonzero(self.certified(alpha))
        if not len(certified):
            raise ValueError(
                f"no threshold is certified to hold the risk {alpha:g} with probability "
                f"{1 - self.delta:g} by {self._curve.n} rows: the smallest estimate is "
                f"{self.risk_.min():.3g}. Pass more rows, a larger alpha or a larger delta."
            )
        size = self._curve.size[certified]
        best = len(size) - 1 - size[::-1].argmax() if self._prefers_large() else size.argmin()
        return float(self.thresholds_[certified[best]])

    def _prefers_large(self) -> bool:
        if self.prefer != "auto":
            return self.prefer == "large"
        empty = np.zeros((1, len(self.classes_)), dtype=bool)
        return not self.loss_.per_label(empty).any()


def sets_of(proba: Floats, threshold: float) -> Mask:
    """Return the classes of probability ``threshold`` or more."""
    sets: Mask = proba >= threshold
    return sets


def _curve(rows: HeldOutRows, loss: SetLoss) -> RiskCurve:
    """Return the mean loss on true labels, by the inverse of the transition."""
    n, k = rows.proba.shape
    noise, largest = rows.noise, loss.largest(k)
    weight, lowest, highest = np.eye(k), 0.0, largest
    if loss.of_labels and not noise.clean:
        weight = usable_inverse(noise)
        lowest = largest * float(weight.clip(max=0).sum(axis=1).min())
        highest = largest * float(weight.clip(min=0).sum(axis=1).max())
    of_row = weight[rows.codes] / n
    return _followed(
        rows.proba,
        loss.per_label,
        lambda losses: float((of_row * losses).sum()),
        (lowest, highest, largest),
    )


def _multilabel_curve(target: Mask, proba: Floats, loss: SetLoss) -> RiskCurve:
    largest = loss.largest(proba.shape[1])
    return _followed(
        proba,
        lambda sets: loss(sets, target),
        lambda losses: float(losses.mean()),
        (0.0, largest, largest),
    )


def _followed(
    proba: Floats,
    losses_of: Callable[[Mask], Floats],
    mean: Callable[[Floats], float],
    bounds: tuple[float, float, float],
) -> RiskCurve:
    """Follow the losses of the sets as these grow."""
    risk, size = np.empty(len(THRESHOLDS)), np.empty(len(THRESHOLDS))
    falls, grows, last = True, True, None
    for i, threshold in enumerate(THRESHOLDS):
        sets = sets_of(proba, threshold)
        size[i] = sets.sum() / len(proba)
        if i and size[i] == size[i - 1]:  # the same sets
            risk[i] = risk[i - 1]
            continue
        losses = losses_of(sets)
        risk[i] = mean(losses)
        falls &= last is None or bool((losses <= last + SLACK).all())
        grows &= last is None or bool((losses >= last - SLACK).all())
        last = losses
    return RiskCurve(risk, size, len(proba), *bounds, falls, grows)


def _deviation(rows: HeldOutRows) -> float:
    """Bound the expected largest deviation of the estimated mean of a loss in [0, 1]."""
    k = rows.proba.shape[1]
    return split_bound(Evidence(rows.proba, rows.codes, np.arange(k), rows.noise))
