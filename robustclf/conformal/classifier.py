"""ConformalClassifier: prediction sets around any classifier, also where labels are wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.utils import indexable
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from robustclf._held_out import class_proba, generator, hold_out
from robustclf._registry import check_known
from robustclf._rows import as_labels, encode_labels
from robustclf.conformal._calibration import Calibration
from robustclf.conformal._corrections import CORRECTIONS, Correction, check_kinds
from robustclf.conformal._coverage import COVERAGES, known_groups, refuse_groups
from robustclf.conformal._evidence import Codes, Floats, Noise
from robustclf.conformal._levels import check_alpha
from robustclf.conformal._noise_aware import CONSTRAINTS, NoiseAwareClassifier
from robustclf.conformal._parameter import ScoreParameter
from robustclf.conformal._scores import SCORES, Score, row_uniforms
from robustclf.noise._given import check_noise


def _estimator_has(name: str) -> Callable[[Any], bool]:
    def check(self: Any) -> bool:
        if self._folds_predict():
            raise AttributeError(f"{name} is of one classifier, got cv={self.cv!r}.")
        getattr(self.estimator_ if hasattr(self, "estimator_") else self.estimator, name)
        return True

    return check


class ConformalClassifier(ScoreParameter, NoiseAwareClassifier):
    r"""Sets of classes that hold the true one in a share :math:`1 - \alpha` of the rows.

    A class is kept where its score is at most that of :math:`1 - \alpha` of the calibration rows,

    .. math:: C(x) = \{y : S(x, y) \le t\}, \quad
       t = \min \{t : \hat F(t) \ge 1 - \alpha + \delta\},

    with :math:`\hat F` the distribution of the scores of *true* labels. Where labels are right it
    is that of the calibration rows, and t the textbook's quantile. Where some are wrong, ``noise``
    says how, the scores of all classes are weighed with the inverse of the transition matrix, and
    :math:`\delta` pays for the uncertainty that this adds.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned. One in :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, and all rows
        calibrate it.
    score : {"lac", "topk", "aps", "raps", "saps", "margin"} or Score, default="lac"
        How ill a class suits a row. ``"lac"`` has the smallest sets, ``"aps"`` larger ones for
        harder rows. The method ``score`` gives the accuracy, as always.
    coverage : {"marginal", "class", "group", "cluster"}, default="marginal"
        For which rows coverage holds: all together, those of each true class, those of each group,
        or of each cluster of classes with similar scores.
    noise : float, array-like of shape (n_classes, n_classes), "estimate" or None, default=None
        How labels were made wrong: uniformly at a rate, by a transition matrix (rows are true
        classes), not at all (None), or as the calibration rows show, by the lower bound of
        :func:`~robustclf.noise.noise_rate`. Estimate only with a classifier that is right where it
        is surest: any other has its own errors counted as noise, and too large a rate breaks the
        promise. Too small a one keeps it.
    correction : str or Correction, default="auto"
        :math:`\delta`: ``"none"``, ``"dkw"``, ``"sesia"``, ``"crcp"``, ``"bortolotti"``,
        ``"asymptotic"``, ``"crossing"``; ``"auto"`` takes the smallest that holds for so many rows.
    cv : int, splitter or None, default=5
        Folds that calibrate, each by a classifier that did not see it; then these predict together
        (CV+). An estimator with a parameter ``cross_fit``, such as
        :class:`~robustclf.RobustClassifier`, does this in one fit. None holds rows out instead.
        The promise is exact for rows that are held out and for a frozen classifier; with folds what
        is proven is a share :math:`1 - 2 \alpha`, and in practice it is hardly less than promised.
    random_state : int, RandomState or None, default=None
        Governs which rows are held out, the folds, and the one uniform number of each row.
    noise_convention : {"rest", "all"}, default="rest"
        What a rate counts: wrong labels, or labels drawn from all classes.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, stratified by the given labels.
    optimistic : bool, default=False
        Take labels as right where this gives the smaller threshold. Right for noise that makes
        sets larger, which is the rule.
    allow_empty : bool, default=True
        Whether a set may hold no class, which tells of a row unlike those calibrated on. Otherwise
        the most probable class is always kept, and more are covered than promised.
    n_jobs : int or None, default=None
        Folds fitted at a time.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
        The one that predicts, but for folds.
    estimators_ : list of classifiers
        One for each fold. Their mean probabilities predict.
    transition_ : ndarray of shape (n_classes, n_classes)
        How labels are taken to be wrong: the rows are true classes.
    correction_ : str
        The correction that was taken.
    correction_size_ : ndarray of shape (n_cells,)
        :math:`\delta` for all rows, each class, each group, or each cluster.
    n_calibration_ : int
        Rows that calibrate.
    n_features_in_ : int

    References
    ----------
    Vovk, Gammerman, Shafer. Algorithmic Learning in a Random World. Springer 2005. CV+: Romano,
    Sesia, Candès. NeurIPS 2020. arXiv:2006.02544. Noise: Penso, Goldberger, Fetaya. COPA 2025.
    arXiv:2501.12749. Sesia, Wang, Tong. JRSS-B 2024. arXiv:2309.05092.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import train_test_split
    >>> from robustclf.conformal import ConformalClassifier
    >>> from robustclf.noise import inject_noise
    >>> X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    >>> noisy = inject_noise(y, "symmetric", rate=0.2, random_state=0)
    >>> plain = LogisticRegression(C=0.001, max_iter=1000)
    >>> for noise in (None, 0.2):
    ...     clf = ConformalClassifier(plain, noise=noise, random_state=0)
    ...     sets = clf.fit(X, noisy).predict_set(X_test, alpha=0.1)
    ...     covered = sets[range(len(sets)), y_test].mean()
    ...     print(f"{covered:.2f} covered by {sets.sum(axis=1).mean():.1f} classes")
    1.00 covered by 5.8 classes
    0.90 covered by 0.9 classes
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "score": [str, Score],
        "coverage": [str],
        "correction": [str, Correction],
        "optimistic": ["boolean"],
        "allow_empty": ["boolean"],
        "n_jobs": [None, Integral],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        score: str | Score = "lac",
        coverage: str = "marginal",
        noise: Any = None,
        correction: str | Correction = "auto",
        cv: Any = 5,
        random_state: Any = None,
        noise_convention: str = "rest",
        calibration_size: float = 0.25,
        optimistic: bool = False,
        allow_empty: bool = True,
        n_jobs: int | None = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.coverage = coverage
        self.noise = noise
        self.correction = correction
        self.cv = cv
        self.random_state = random_state
        self.noise_convention = noise_convention
        self.calibration_size = calibration_size
        self.optimistic = optimistic
        self.allow_empty = allow_empty
        self.n_jobs = n_jobs

    # Fitting --------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None, **fit_params: Any) -> Self:
        """Fit the classifier to some rows and calibrate on the others, or on all in turn.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Labels of any type, some of them wrong.
        groups : array-like of shape (n_samples,), optional
            The group of each row, for ``coverage="group"``.
        **fit_params
            Passed to the classifier; arrays of n_samples entries are split like the rows.

        Returns
        -------
        self : ConformalClassifier

        Raises
        ------
        ValueError
            For unknown names, labels that do not go with the probabilities, one class only, and too
            few rows to hold some out.

        Warns
        -----
        UserWarning
            If the transition matrix is close to singular: sets hold all classes then.
        """
        self._validate_params()
        self._check_names()
        X, labels = self._labelled(X, y)
        check_noise(self.noise, self.noise_convention, labels, self.estimator)
        if self.coverage == "group":
            groups = known_groups(groups, len(labels))
        else:
            refuse_groups(groups)
        rng = generator(self.random_state)
        for name in ("estimator_", "estimators_", "n_features_in_", "feature_names_in_"):
            if name in vars(self):  # of the last fit
                delattr(self, name)
        held = hold_out(
            self.estimator,
            X,
            labels,
            cv=self.cv,
            calibration_size=self.calibration_size,
            params=fit_params,
            refit=False,
            n_jobs=self.n_jobs,
            random_state=rng,
        )
        self.classes_ = held.classes
        if held.folds is None:
            self._take(held.estimators[0])
        else:
            self.estimators_ = held.estimators
            self._take_columns(held.estimators[0])
        some = None if groups is None else np.asarray(groups)[held.rows]
        return self._calibrate(held.proba, held.codes, some, rng, held.folds)

    def _calibrate(
        self,
        proba: Floats,
        codes: Codes,
        groups: Any,
        rng: np.random.RandomState,
        folds: NDArray[np.intp] | None = None,
    ) -> Self:
        _, p, noise = self._noisy_rows(codes, proba)
        _warn_if_singular(noise)
        score = SCORES.make(vars(self)["score"])
        uniform = rng.random_sample(len(p))
        self.calibration_ = Calibration.of(
            score(p, uniform),
            codes,
            noise,
            self.classes_,
            coverage=self.coverage,
            groups=groups,
            correction=self.correction,
            optimistic=self.optimistic,
            folds=folds,
            rng=rng,
        )
        self.score_, self._seed = score, int(rng.randint(2**31 - 1))
        self.n_calibration_ = len(p)
        self.correction_ = self.calibration_.chosen.alias
        self.correction_size_ = self.calibration_.chosen.sizes
        return self

    def calibrate(self, X: Any, y: Any, groups: ArrayLike | None = None) -> Self:
        """Calibrate the fitted classifier anew, on rows that it was not fitted to.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Labels, of known classes.
        groups : array-like of shape (n_samples,), optional
            The group of each row, for ``coverage="group"``.

        Returns
        -------
        self : ConformalClassifier

        Raises
        ------
        ValueError
            For labels beyond the classes of the fit, and what ``fit`` refuses.
        """
        check_is_fitted(self)
        self._validate_params()
        self._check_names()
        X, _ = indexable(X, y)
        codes = encode_labels(as_labels(y, self.classes_), self.classes_)
        rng = generator(self.random_state)
        return self._calibrate(self.predict_proba(X), codes, groups, rng)

    def _folds_predict(self) -> bool:
        """Whether a fit keeps, or would keep, a classifier for each fold."""
        if hasattr(self, "classes_"):
            return hasattr(self, "estimators_")
        crosses = "cross_fit" in self.estimator.get_params(deep=False)
        one = isinstance(self.estimator, FrozenEstimator) or self.cv is None
        return not (one or (crosses and isinstance(self.cv, Integral)))

    def _check_names(self) -> None:
        score = vars(self)["score"]
        if isinstance(score, str):
            check_known("conformal score", [score], SCORES.names())
        check_known("coverage", [self.coverage], COVERAGES)
        if isinstance(self.correction, str):
            check_known("correction", [self.correction], ["auto", *CORRECTIONS.names()])
        if self.correction != "auto":
            correction = CORRECTIONS.make(self.correction)
            correction.check()
            if self.coverage == "class":
                check_kinds(correction, {"class"})

    # Prediction -----------------------------------------------------------------------------------

    def predict_set(
        self, X: Any, alpha: ArrayLike = 0.1, groups: ArrayLike | None = None
    ) -> NDArray[np.bool_]:
        """Return which classes the set of each row holds.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float or array-like of shape (n_alphas,), default=0.1
            Share of the true classes that sets may miss, in (0, 1).
        groups : array-like of shape (n_samples,), optional
            The group of each row, for ``coverage="group"``.

        Returns
        -------
        sets : ndarray of bool of shape (n_samples, n_classes) or (n_samples, n_classes, n_alphas)

        Raises
        ------
        ValueError
            For an alpha outside (0, 1), and groups that do not go with the coverage.

        Warns
        -----
        UserWarning
            Where sets hold all classes, because calibration rows are too few for alpha or the
            correction; says how many would do. And for groups without calibration rows.
        """
        check_is_fitted(self)
        alphas = check_alpha(alpha)
        sets = self.calibration_.sets(self._scores(X), alphas, groups)
        if not self.allow_empty:
            sets[np.arange(len(sets)), self.predict_proba(X).argmax(axis=1)] = True
        return sets if np.ndim(alpha) else sets[..., 0]

    def predict_set_labels(
        self, X: Any, alpha: float = 0.1, groups: ArrayLike | None = None
    ) -> list[NDArray[Any]]:
        """Return the labels in the set of each row, the most probable first.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float, default=0.1
        groups : array-like of shape (n_samples,), optional

        Returns
        -------
        labels : list of ndarray
            One for each row, of any length down to 0.
        """
        if np.ndim(alpha):
            raise ValueError(f"alpha must be one number, got {alpha!r}; predict_set takes several.")
        sets = self.predict_set(X, alpha, groups)
        order = np.argsort(-self.predict_proba(X), axis=1, kind="stable")
        pairs = zip(order, sets, strict=True)
        return [self.classes_[first[kept[first]]] for first, kept in pairs]

    def p_values(self, X: Any, groups: ArrayLike | None = None) -> Floats:
        """Return the p-value of each class: the set of level alpha holds those above alpha.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        groups : array-like of shape (n_samples,), optional

        Returns
        -------
        p_values : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.calibration_.p_values(self._scores(X), groups)

    def _scores(self, X: Any) -> Floats:
        """Return the scores ``(classifier, row, class)``."""
        crossed = self.calibration_.crossed
        proba = self._fold_proba(X) if crossed else self.predict_proba(X)[None]
        uniform = row_uniforms(proba.mean(axis=0), self._seed) if self.score_.randomized else None
        if not crossed:
            return self.score_(proba[0], uniform)[None]
        return np.stack([self.score_(p, uniform) for p in proba])

    def _fold_proba(self, X: Any) -> Floats:
        return np.stack([class_proba(fitted, X, self.classes_) for fitted in self.estimators_])

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        labels: NDArray[Any]
        if hasattr(self, "estimators_"):
            labels = self.classes_[self.predict_proba(X).argmax(axis=1)]
        else:
            labels = self.estimator_.predict(X)
        return labels

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        if hasattr(self, "estimators_"):
            mean: Floats = self._fold_proba(X).mean(axis=0)
            return mean
        return class_proba(self.estimator_, X, self.classes_)

    @available_if(_estimator_has("decision_function"))
    def decision_function(self, X: Any) -> Floats:
        """Return the scores of the classifier; where there is one, and it has this method.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
        check_is_fitted(self)
        scores: Floats = self.estimator_.decision_function(X)
        return scores


def _warn_if_singular(noise: Noise) -> None:
    if noise.inverse is None:
        condition = np.linalg.cond(noise.transition)
        warnings.warn(
            f"the transition matrix is close to singular (condition {condition:.2g}): labels do "
            "not tell some classes apart, and sets hold all classes. Merge these classes, or "
            "pass a smaller rate as noise=, which is safe.",
            UserWarning,
            stacklevel=4,
        )
