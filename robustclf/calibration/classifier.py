"""Any classifier with probabilities that mean what they say, fitted to noisy labels."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, has_fit_parameter

from robustclf._held_out import class_proba, generator, hold_out
from robustclf._wrapped import CALIBRATION_CONSTRAINTS, MostProbable
from robustclf.calibration._maps import Calibrating, RowTemperature, Temperature, Vector
from robustclf.calibration._views import Views, view_features
from robustclf.noise._given import NOISE_CONSTRAINTS, check_noise, given_transition
from robustclf.noise._inputs import check_proba
from robustclf.noise.scoring import check_invertible

Floats = NDArray[np.float64]

TINY = 1e-12  # a probability that is as good as none


class RobustCalibrator(MostProbable):
    r"""Calibrate a classifier for the true labels, with labels of which some are wrong.

    Calibration to noisy labels learns the noise too: it makes a classifier that is rightly sure
    look unsure. Here the labels are corrected by the transition T first:

    - "temperature" divides the logits by one T that brings the confidence of 15 bins nearest to
      their corrected accuracies, :math:`\sum_B |\hat A_B - \bar c_B(T)|`; without noise it is the
      temperature scaling of scikit-learn.
    - "vector" gives each class a factor and an offset, which maximise the likelihood
      :math:`(p^\top T)_{\tilde y}` of the given labels.
    - "correctness" gives each row a temperature, told by a network of five hidden units from how
      its prediction changes when some of its columns are swapped with those of other rows; it
      minimises the squared distance of confidence and corrected correctness.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned. One in :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, and all rows
        calibrate it.
    method : {"temperature", "vector", "correctness"}, default="temperature"
        How logits are changed. "temperature" and "correctness" keep the most probable class, which
        is predicted; a classifier that predicts another, such as by a tuned threshold, differs.
    noise : float, array-like of shape (n_classes, n_classes), "estimate" or None, default=None
        How labels were made wrong: uniformly at a rate, by a transition matrix (rows are true
        classes), not at all (None), or as the calibration rows show, by
        :func:`~robustclf.noise.estimate_transition`. Estimate only with a classifier that is right
        where it is surest: any other has its own errors counted as noise, and becomes
        overconfident.
    noise_convention : {"rest", "all"}, default="rest"
        What a rate counts: wrong labels, or labels drawn from all classes.
    cv : int, splitter or None, default=5
        Folds that calibrate, each by a classifier that did not see it; then one of all rows takes
        their place. An estimator with a parameter ``cross_fit``, such as
        :class:`~robustclf.RobustClassifier`, does this in one fit, except for "correctness". None
        holds rows out instead.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, stratified by the given labels.
    n_views : int, default=4
        Copies of a row with swapped columns, for "correctness".
    swap : float, default=0.2
        Share of columns that are swapped in a copy.
    n_jobs : int or None, default=None
        Folds fitted at a time.
    random_state : int, RandomState or None, default=None
        Governs which rows are held out, the folds, the views and the network.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
        Not calibrated.
    transition_ : ndarray of shape (n_classes, n_classes)
        Rows are true classes; the identity without noise.
    temperature_ : float
        For "temperature".
    factor_, offset_ : ndarray of shape (n_classes,)
        For "vector".
    n_features_in_ : int

    References
    ----------
    Penso, Frenkel, Goldberger. Confidence calibration of a medical imaging classification system
    that is robust to label noise. IEEE TMI 2024 ("temperature").
    Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017 ("vector").
    Liu et al. Optimizing Calibration by Gaining Aware of Prediction Correctness. 2024.
    arXiv:2404.13016 ("correctness": for images, with the rows weighted so that right and wrong
    ones count the same, which moves confidence away from accuracy; here they are not weighted).

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from robustclf.calibration import RobustCalibrator, expected_calibration_error
    >>> from robustclf.noise import inject_noise
    >>> X, y = make_classification(4000, n_informative=6, n_redundant=10, random_state=0)
    >>> noisy, rest = inject_noise(y, rate=0.3, random_state=0), slice(2000, None)
    >>> for noise in (None, 0.3):
    ...     clf = RobustCalibrator(GaussianNB(), noise=noise, random_state=0)
    ...     p = clf.fit(X[:2000], noisy[:2000]).predict_proba(X[rest])
    ...     print(f"{expected_calibration_error(y[rest], p):.2f}")
    0.18
    0.02
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "method": [StrOptions({"temperature", "vector", "correctness"})],
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "swap": [Interval(Real, 0, 1, closed="neither")],
        "n_jobs": [None, Integral],
        **NOISE_CONSTRAINTS,
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        method: str = "temperature",
        noise: Any = None,
        noise_convention: str = "rest",
        cv: Any = 5,
        calibration_size: float = 0.25,
        n_views: int = 4,
        swap: float = 0.2,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.noise = noise
        self.noise_convention = noise_convention
        self.cv = cv
        self.calibration_size = calibration_size
        self.n_views = n_views
        self.swap = swap
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the classifier, and calibrate it with rows that it did not see.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Given labels of any type, some of them wrong.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each row, in the fit and in the calibration; 0 leaves a row out.

        Returns
        -------
        self : RobustCalibrator

        Raises
        ------
        ValueError
            If there is one class only, the noise does not fit the classes or cannot be undone.
        """
        self._validate_params()
        X, labels = self._labelled(X, y)
        known = self._weights(sample_weight, X)
        noise = check_noise(self.noise, self.noise_convention, labels, self.estimator)
        if noise is not None and self.method != "vector":
            check_invertible(noise)
        rng = generator(self.random_state)
        views = None
        if self.method == "correctness":
            views = Views.draw(X, self.n_views, self.swap, rng)
        held = hold_out(
            self.estimator,
            X,
            labels,
            cv=self.cv,
            calibration_size=self.calibration_size,
            params=known,
            answer=class_proba if views is None else views.proba,
            n_jobs=self.n_jobs,
            random_state=rng,
        )
        self.classes_, self._views = held.classes, views
        self._take(held.estimators[0])
        weight = known.get("sample_weight", np.ones(len(labels)))[held.rows]
        kept = weight > 0
        proba = held.proba[kept]
        own = proba if views is None else proba[:, 0]
        codes, p, _ = check_proba(held.codes[kept], own, np.arange(len(self.classes_)))
        self.transition_ = given_transition(
            self.noise, self.classes_, self.noise_convention, codes=codes, proba=p
        )
        self._fit_map(Calibrating(_logits(p), codes, self.transition_, weight[kept]), proba, rng)
        return self

    def _weights(self, sample_weight: ArrayLike | None, X: Any) -> dict[str, Floats]:
        if sample_weight is None:
            return {}
        frozen = isinstance(self.estimator, FrozenEstimator)
        if not frozen and not has_fit_parameter(self.estimator, "sample_weight"):
            name = type(self.estimator).__name__
            raise ValueError(f"{name} takes no sample_weight: leave it out.")
        return {"sample_weight": _check_sample_weight(sample_weight, X, ensure_non_negative=True)}

    def _fit_map(self, rows: Calibrating, proba: Floats, rng: np.random.RandomState) -> None:
        """Fit what changes the logits."""
        self._map: Any
        if self.method == "temperature":
            self._map = Temperature.fit(rows)
            self.temperature_ = self._map.temperature
        elif self.method == "vector":
            self._map = Vector.fit(rows)
            self.factor_, self.offset_ = self._map.factor, self._map.offset
        else:
            self._map = RowTemperature.fit(rows, view_features(proba), rng)

    def predict_proba(self, X: Any) -> Floats:
        """Return calibrated probabilities, in the order of ``classes_``.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        if self._views is None:
            logits = self._map(_logits(self.estimator_.predict_proba(X)))
        else:
            own = self.estimator_.predict_proba(X)  # which checks X
            seen = [own] + [self.estimator_.predict_proba(v) for v in self._views(X)[1:]]
            logits = self._map(_logits(own), view_features(np.stack(seen, axis=1)))
        proba: Floats = softmax(logits, axis=1)
        return proba

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse &= self.method != "correctness"
        return tags


def _logits(proba: Floats) -> Floats:
    logits: Floats = np.log(np.maximum(np.asarray(proba, dtype=np.float64), TINY))
    return logits
