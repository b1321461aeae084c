"""Predictions of which the doubtful ones are left to a human."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from robustclf._held_out import generator
from robustclf._wrapped import MostProbable
from robustclf.conformal._calibration import Calibration
from robustclf.conformal._evidence import Floats
from robustclf.conformal._noise_aware import (
    CONSTRAINTS,
    HeldOutRows,
    NoiseAwareClassifier,
    usable_inverse,
)
from robustclf.conformal._p_values import hoeffding_bentkus
from robustclf.conformal._scores import LAC

Mask = NDArray[np.bool_]

SHARES = np.arange(1, 21) / 20  # of the rows, the most confident ones, that are tested


class SelectiveClassifier(MostProbable, NoiseAwareClassifier):
    r"""Predict where the classifier can be relied on, and defer the other rows.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned. One in :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, and all rows
        calibrate it.
    rule : {"confidence", "sets", "centroid"}, default="confidence"
        What is accepted. See Notes for what each promises.
    alpha : float, default=0.05
        Share of wrong predictions, in (0, 1); of which rows, the rule says.
    delta : float, default=0.1
        Probability that the promise of "confidence" is broken.
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
    threshold_ : float or ndarray of shape (n_classes,)
        Confidence above which rows are accepted, score 1 - p up to which classes are in the set, or
        largest distance to the centroid of each class.
    centroids_ : ndarray of shape (n_classes, n_classes)
        For "centroid".
    accepted_ : float
        Share of the calibration rows that is accepted.
    risk_ : float
        Estimated share of wrong predictions among these, by the true labels; nan if there are none.

    Notes
    -----
    "confidence"
        Accepts where :math:`\max_k p_k` is above a threshold: that of the largest of 20 shares of
        the rows for which :math:`P(\hat y \ne y \mid \text{accepted}) \le \alpha` is certified. The
        test is the exact binomial one, with noise that of Hoeffding and Bentkus, at the level
        :math:`\delta / 20`, so that the promise holds with probability :math:`1 - \delta`.
    "sets"
        Accepts where the conformal set of level :math:`\alpha` is a single class. A row is accepted
        and wrong with probability at most :math:`\alpha`, on average over calibration rows.
    "centroid"
        Accepts where p is near the mean probabilities of right predictions of the same class, so
        near that a share :math:`\alpha` of the wrong predictions of that class is accepted. The
        published rule takes the smallest distance of a wrong prediction: one wrong label defers
        everything. An estimate, not a promise.

    References
    ----------
    Geifman, El-Yaniv. Selective Classification for Deep Neural Networks. NeurIPS 2017.
    arXiv:1705.08500.
    Sikar et al. When to Accept Automated Predictions and When to Defer to Human Judgment? 2024.
    arXiv:2407.07821.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, rest, y, true = train_test_split(*load_digits(return_X_y=True), random_state=0)
    >>> clf = SelectiveClassifier(GaussianNB(), alpha=0.1, random_state=0).fit(X, y)
    >>> accepted, right = clf.accept(rest), clf.predict(rest) == true
    >>> print(f"{right.mean():.2f} right, {right[accepted].mean():.2f} of {accepted.mean():.2f}")
    0.83 right, 0.92 of 0.76
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "rule": [StrOptions({"confidence", "sets", "centroid"})],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        rule: str = "confidence",
        alpha: float = 0.05,
        delta: float = 0.1,
        noise: Any = None,
        noise_convention: str = "rest",
        cv: Any = 5,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.rule = rule
        self.alpha = alpha
        self.delta = delta
        self.noise = noise
        self.noise_convention = noise_convention
        self.cv = cv
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the classifier, and find what may be accepted on rows that it did not see.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Given labels, some of them wrong.

        Returns
        -------
        self : SelectiveClassifier

        Raises
        ------
        ValueError
            If noise does not fit the classes or cannot be undone.

        Warns
        -----
        UserWarning
            If nothing can be accepted.
        """
        self._validate_params()
        rows = self._hold_out(X, y)
        inverse = usable_inverse(rows.noise)
        self.threshold_: Any
        wrong = 1 - inverse[rows.codes, rows.proba.argmax(axis=1)]
        if self.rule == "confidence":
            self.threshold_ = self._certified(rows, wrong, inverse)
        elif self.rule == "sets":
            self.threshold_ = self._of_single_sets(rows)
        else:
            self.centroids_ = _centroids(rows.proba, 1 - wrong)
            self.threshold_ = self._distances_of_wrong(rows.proba, wrong)
        accepted = self._accepted(rows.proba)
        self.accepted_ = float(accepted.mean())
        self.risk_ = float(wrong[accepted].mean().clip(0, 1)) if accepted.any() else float("nan")
        if not accepted.any():
            warnings.warn(
                f"no row can be accepted with alpha={self.alpha:g} by {len(wrong)} rows: all are "
                "deferred. Pass more rows or a larger alpha.",
                UserWarning,
                stacklevel=2,
            )
        return self

    def _certified(self, rows: HeldOutRows, wrong: Floats, inverse: Floats) -> float:
        """Return the confidence of the largest share of rows that is certified."""
        confidence = rows.proba.max(axis=1)
        lowest, highest = 1 - inverse.max(), 1 - inverse.min()
        # given the smallest confidence that is not accepted, the rows above are a sample of all
        # that will be: so thresholds may be taken from the rows, but not tested in sequence
        ordered = np.append(np.sort(confidence)[::-1], -np.inf)
        for share in SHARES[::-1]:
            threshold = float(ordered[int(share * len(confidence))])
            above = confidence > threshold
            n = int(above.sum())
            if not n:
                continue
            if rows.noise.clean:
                p = binom.cdf(round(wrong[above].sum()), n, self.alpha)
            else:
                width = highest - lowest
                mean, limit = (wrong[above].mean() - lowest) / width, (self.alpha - lowest) / width
                p = hoeffding_bentkus(mean, n, limit)
            if p <= self.delta / len(SHARES):
                return threshold
        return np.inf

    def _of_single_sets(self, rows: HeldOutRows) -> float:
        """Return the score up to which classes are in the set."""
        calibration = Calibration.of(
            LAC()(rows.proba),
            rows.codes,
            rows.noise,
            self.classes_,
            coverage="marginal",
            groups=None,
            correction="auto",
            optimistic=False,
            folds=None,
            rng=generator(self.random_state),
        )
        return float(calibration.thresholds(np.array([self.alpha]))[0, 0])

    def _distances_of_wrong(self, proba: Floats, wrong: Floats) -> Floats:
        """Return the distance within which a share alpha of the wrong predictions of a class is."""
        distance, predicted = _distance(proba, self.centroids_), proba.argmax(axis=1)
        threshold = np.full(proba.shape[1], -np.inf)
        for k in np.unique(predicted):
            order = np.argsort(distance[predicted == k])
            near = distance[predicted == k][order]
            within = np.maximum.accumulate(np.cumsum(wrong[predicted == k][order]))
            few = within <= self.alpha * max(within[-1], 0.0)
            if few.any():
                threshold[k] = near[np.flatnonzero(few)[-1]]
        return threshold

    def _accepted(self, proba: Floats) -> Mask:
        accepted: Mask
        if self.rule == "confidence":
            accepted = proba.max(axis=1) > self.threshold_
        elif self.rule == "sets":
            accepted = (LAC()(proba) <= self.threshold_).sum(axis=1) == 1
        else:
            accepted = _distance(proba, self.centroids_) <= self.threshold_[proba.argmax(axis=1)]
        return accepted

    def accept(self, X: Any) -> Mask:
        """Return which rows are accepted; the others are deferred.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        accepted : ndarray of bool of shape (n_samples,)
        """
        return self._accepted(self.predict_proba(X))

    def predict_or_defer(self, X: Any, deferred: Any = None) -> NDArray[Any]:
        """Return the predictions, the most probable classes, of the rows that are accepted.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        deferred : object, default=None
            What stands for the other rows.

        Returns
        -------
        labels : ndarray of object of shape (n_samples,)
        """
        labels = self.predict(X).astype(object)
        labels[~self.accept(X)] = deferred
        return labels


def _centroids(proba: Floats, right: Floats) -> Floats:
    """Return the mean probabilities of the right predictions of each class."""
    k = proba.shape[1]
    member = np.eye(k)[proba.argmax(axis=1)]
    total = member.T @ right
    enough = total > 0
    centroids = np.eye(k)  # of classes that are never predicted right
    centroids[enough] = ((member * right[:, None]).T @ proba)[enough] / total[enough, None]
    return centroids


def _distance(proba: Floats, centroids: Floats) -> Floats:
    """Return the distance of each row to the centroid of its prediction."""
    distance: Floats = np.linalg.norm(proba - centroids[proba.argmax(axis=1)], axis=1)
    return distance
