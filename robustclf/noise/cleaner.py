"""Any classifier, fitted to cleaner labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    has_fit_parameter,
)

from robustclf._held_out import hold_out
from robustclf._wrapped import WrappedClassifier
from robustclf.noise._detectors import METHODS, PRUNE
from robustclf.noise._inputs import check_labels
from robustclf.noise.dynamics import TrainingDynamics
from robustclf.noise.issues import find_label_issues
from robustclf.noise.rate import noise_rate

FROM_DYNAMICS = ("aum", "forgetting")


def _estimator_has(name: str) -> Callable[[Any], bool]:
    def check(self: Any) -> bool:
        getattr(self.estimator_ if hasattr(self, "estimator_") else self.estimator, name)
        return True

    return check


class LabelCleaner(WrappedClassifier):
    """Find the wrong labels out of fold, clean them, and fit a classifier to the rest.

    Where :func:`is_noisy` sees no noise nothing is cleaned: the classifier is fitted to all rows,
    as if it stood alone.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned, never fitted itself. One with a parameter ``cross_fit``, such as
        :class:`~robustclf.RobustClassifier`, gives out-of-fold probabilities in a single fit.
    action : {"prune", "reweight", "relabel"}, default="prune"
        Leave the issues out, weigh them by the probability that their labels are right, or give
        them the suggested labels. Of a class that would lose all rows the best one stays.
    method : str, default="combined"
        How issues are found: see :func:`find_label_issues`.
    prune : str, default="by_noise_rate"
        Which rows ``method="confident_learning"`` takes.
    n_issues : int, float or "auto", default="auto"
        How many rows, or which share of them, are issues.
    cv : int or splitter, default=5
        Folds, stratified by the given labels.
    n_jobs : int or None, default=None
        Folds fitted at a time.
    random_state : int, RandomState or None, default=None
        Deals the rows to the folds; of a :class:`~robustclf.RobustClassifier` that has none, it is
        the seed.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
        Fitted to the cleaned labels.
    issues_ : LabelIssues
        The rows that were cleaned.
    noise_rate_ : NoiseRate
    oof_proba_ : ndarray of shape (n_samples, n_classes)
        Out-of-fold probabilities that the issues were found in.
    sample_weight_ : ndarray of shape (n_samples,)
        Weight of each row in the last fit.
    n_features_in_ : int

    References
    ----------
    Northcutt, Jiang, Chuang. Confident Learning. JAIR 2021. arXiv:1911.00068.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustclf.noise import LabelCleaner, inject_noise
    >>> X, y = load_digits(return_X_y=True)
    >>> X, noisy = X / 16, inject_noise(y, "symmetric", rate=0.4, random_state=0)
    >>> plain = LogisticRegression(max_iter=1000)
    >>> cleaner = LabelCleaner(plain, random_state=0).fit(X, noisy)
    >>> print(f"{plain.fit(X, noisy).score(X, y):.2f}, cleaned {cleaner.score(X, y):.2f}")
    0.93, cleaned 0.96
    >>> len(LabelCleaner(plain, random_state=0).fit(X, y).issues_)
    0
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "action": [StrOptions({"prune", "reweight", "relabel"})],
        "method": [StrOptions(set(METHODS))],
        "prune": [StrOptions(set(PRUNE))],
        "n_issues": [
            StrOptions({"auto"}),
            Interval(Integral, 0, None, closed="left"),
            Interval(Real, 0, 1, closed="both"),
        ],
        "cv": ["cv_object"],
        "n_jobs": [None, Integral],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        action: str = "prune",
        method: str = "combined",
        prune: str = "by_noise_rate",
        n_issues: int | float | str = "auto",
        cv: Any = 5,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.action = action
        self.method = method
        self.prune = prune
        self.n_issues = n_issues
        self.cv = cv
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Find the issues, clean them and fit the classifier.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Labels of any type, some of them wrong. They are not changed.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each row in the fits. All rows count alike for what is estimated of the noise,
            so drop those that are to have no say in it.

        Returns
        -------
        self : LabelCleaner

        Raises
        ------
        ValueError
            If there is one class only, or the classifier takes no weights and gets some.
        """
        self._validate_params()
        X, labels = self._labelled(X, y)
        check_classification_targets(labels)
        codes, classes = check_labels(labels)
        if len(classes) < 2:
            raise ValueError(
                f"LabelCleaner needs at least two classes, got {len(classes)} class: "
                f"{classes.tolist()}."
            )
        weighted = sample_weight is not None or self.action == "reweight"
        if weighted and not has_fit_parameter(self.estimator, "sample_weight"):
            raise ValueError(
                f"{type(self.estimator).__name__} takes no sample_weight: leave it out and use "
                "action='prune' or 'relabel'."
            )
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        self._check_method(X)
        proba, dynamics = self._out_of_fold(X, labels, weight)
        self.issues_ = find_label_issues(
            y if hasattr(y, "iloc") else labels,
            proba,
            self.method,
            X=X if _is_table(X) else None,
            dynamics=dynamics,
            n_issues=self.n_issues,
            prune=self.prune,
            random_state=self.random_state,
        )
        self.classes_, self.oof_proba_ = classes, proba
        self.noise_rate_ = noise_rate(labels, proba)
        return self._fit_cleaned(X, labels, codes, weight)

    def _is_own(self) -> bool:
        """Tell whether the classifier cross-fits by itself, and records what it goes through."""
        known = self.estimator.get_params(deep=False)
        return {"cross_fit", "track_dynamics"} <= known.keys() and isinstance(self.cv, Integral)

    def _check_method(self, X: Any) -> None:
        """Refuse what the method needs and will not get, before anything is fitted."""
        if self.method in FROM_DYNAMICS and not self._is_own():
            raise ValueError(
                f"method={self.method!r} needs what a fit went through: take a RobustClassifier, "
                f"and for cv a number of folds, not {self.estimator!r} and cv={self.cv!r}."
            )
        if self.method == "neighbours" and not _is_table(X):
            raise ValueError(
                f"method='neighbours' compares the rows of a dense table, got {type(X).__name__}."
            )

    def _out_of_fold(
        self, X: Any, labels: NDArray[Any], weight: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], TrainingDynamics | None]:
        """Return probabilities by classifiers that did not see the row, and what they learned."""
        estimator = clone(self.estimator)
        known = {} if weight is None else {"sample_weight": weight}
        if self._is_own():
            estimator.set_params(cross_fit=int(self.cv), track_dynamics=True)
            if estimator.random_state is None:
                estimator.set_params(random_state=self.random_state)
            estimator.fit(X, labels, **known)
            return np.asarray(estimator.oof_proba_, dtype=np.float64), estimator.dynamics_
        folds = check_cv(self.cv, labels, classifier=True)
        if isinstance(self.cv, Integral):
            most = np.unique(labels, return_counts=True)[1].max()
            if most < 2:
                raise ValueError("folds need a class with at least two rows, got one row of each.")
            rng = check_random_state(self.random_state)
            folds = StratifiedKFold(min(int(self.cv), most), shuffle=True, random_state=rng)
        with warnings.catch_warnings():  # a class with fewer rows than folds is no reason to stop
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            if isinstance(self.cv, Integral):
                warnings.filterwarnings("ignore", "(?s)cv=.* answered by a classifier", UserWarning)
            held = hold_out(
                estimator, X, labels, cv=folds, params=known, refit=False, n_jobs=self.n_jobs
            )
        return held.proba, None

    def _fit_cleaned(
        self,
        X: Any,
        labels: NDArray[Any],
        codes: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
    ) -> Self:
        """Fit the classifier to what the issues leave."""
        rows = self.issues_.rows
        changed = np.zeros(len(labels), dtype=bool)
        changed[rows] = True
        left = np.bincount(codes, ~changed, minlength=len(self.classes_))
        for k in np.flatnonzero(left == 0):
            changed[rows[codes[rows] == k][-1]] = False  # issues come with the worst first
        listed, cleaned = changed[rows], labels.copy()
        kept = ~changed if self.action == "prune" else np.ones(len(labels), dtype=bool)
        if self.action == "relabel":
            cleaned[rows[listed]] = self.issues_.suggested[listed]
        elif self.action == "reweight" and len(rows):
            weight = np.ones(len(labels)) if weight is None else weight.copy()
            weight[rows[listed]] *= 1 - self.issues_.probability[listed]
        known = {} if weight is None else {"sample_weight": weight[kept]}
        self.sample_weight_ = np.where(kept, 1.0 if weight is None else weight, 0.0)
        some = X if kept.all() else _safe_indexing(X, np.flatnonzero(kept))
        self._take(clone(self.estimator).fit(some, cleaned[kept], **known))
        return self

    @available_if(_estimator_has("decision_function"))
    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the scores of the classifier; where it has this method.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
        check_is_fitted(self)
        scores: NDArray[np.float64] = self.estimator_.decision_function(X)
        return scores


def _is_table(X: Any) -> bool:
    """Whether rows can be compared: neighbours are for tables, not for texts or sparse counts."""
    shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
    return len(shape) == 2 and not sparse.issparse(X)
