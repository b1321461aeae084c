"""What holds a classifier, and learns something more from rows that it did not see."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.utils import get_tags, indexable
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_array, check_is_fitted

from robustclf._held_out import generator, held_out_proba
from robustclf._rows import as_labels
from robustclf.conformal._noise import Noise, read_noise
from robustclf.noise._inputs import check_proba
from robustclf.noise.matrices import CONVENTIONS

Floats = NDArray[np.float64]

NOISE_CONSTRAINTS = {
    "noise": [None, "array-like", StrOptions({"estimate"}), HasMethods("__array__"), Real],
    "noise_convention": [StrOptions(set(CONVENTIONS))],
    "cv": ["cv_object"],
    "random_state": ["random_state"],
}


class HeldOutRows(NamedTuple):
    """Rows that a classifier did not see: given labels as codes, probabilities and the noise."""

    codes: NDArray[np.int64]  # (row,)
    proba: Floats  # (row, class)
    noise: Noise


class WrappedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Base class: predicts as its classifier does.

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from robustclf.conformal import RiskController
    >>> X, y = np.arange(20.0)[:, None], np.repeat(["no", "yes"], 10)
    >>> print(RiskController(GaussianNB()).fit(X, y).predict(X[:2]))
    ['no' 'no']
    """

    estimator: Any
    noise: Any
    noise_convention: str
    cv: Any
    random_state: Any

    def _hold_out(self, X: Any, y: Any) -> HeldOutRows:
        """Fit the classifier, and return the rows as it predicts those that it did not see."""
        if y is None:
            name = type(self).__name__
            raise ValueError(f"{name} requires y to be passed, but the target y is None.")
        X, _ = indexable(X, y)
        labels = as_labels(y)
        held = held_out_proba(self.estimator, X, labels, cv=self.cv, random_state=self.random_state)
        codes, proba, self.classes_ = check_proba(labels, held.proba, held.classes)
        self._take(held.estimator)
        return HeldOutRows(
            codes, proba, read_noise(self.noise, self.noise_convention, codes, proba)
        )

    def _take(self, fitted: Any) -> None:
        self.estimator_ = fitted
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the predictions of the classifier.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        labels: NDArray[Any] = self.estimator_.predict(X)
        return labels

    def predict_proba(self, X: Any) -> Floats:
        """Return the probabilities of the classifier, in the order of ``classes_``.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return label_proba(self.estimator_, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def usable_inverse(noise: Noise) -> Floats:
    """Return the inverse of the transition; ``ValueError`` if it is close to singular."""
    if noise.inverse is None:
        raise ValueError(
            "the transition is close to singular: labels do not tell the risk of some classes. "
            "Merge these classes, or pass a smaller rate as noise=, which is safe."
        )
    return noise.inverse


def label_proba(fitted: Any, X: Any) -> Floats:
    """Return probabilities ``(row, class)``, also of classifiers with a list of those by label."""
    given = fitted.predict_proba(X)
    if isinstance(given, list):
        given = np.column_stack(
            [
                part[:, list(known).index(1)] if 1 in known else np.zeros(len(part))
                for part, known in zip(given, fitted.classes_, strict=True)
            ]
        )
    return np.asarray(given, dtype=np.float64)


def is_multilabel(y: Any) -> bool:
    """Whether y has a column for each label, and ones where it is true."""
    shape = np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1 and type_of_target(y) == "multilabel-indicator"


def held_out_labels(
    estimator: Any, X: Any, y: Any, cv: Any, random_state: Any
) -> tuple[Any, NDArray[np.bool_], Floats]:
    """Return a fitted multi-label classifier, its targets and probabilities of rows not seen."""
    X, y = indexable(X, y)
    target = check_array(y, dtype=bool)
    if isinstance(estimator, FrozenEstimator):
        return estimator, target, label_proba(estimator, X)
    folds = cv
    if isinstance(cv, int):
        folds = KFold(cv, shuffle=True, random_state=generator(random_state))
    fitted = clone(estimator).fit(X, y)
    given = cross_val_predict(clone(estimator), X, y, cv=folds, method="predict_proba")
    if isinstance(given, list):
        given = np.column_stack([part[:, -1] for part in given])
    return fitted, target, np.asarray(given, dtype=np.float64)
