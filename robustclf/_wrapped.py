"""What holds a classifier and learns something more."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils import get_tags, indexable
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from robustclf._held_out import label_proba
from robustclf._rows import as_labels

Floats = NDArray[np.float64]

CALIBRATION_CONSTRAINTS: dict[str, list[Any]] = {
    "cv": ["cv_object"],
    "calibration_size": [Interval(Real, 0, 1, closed="neither")],
    "random_state": ["random_state"],
}


class Wrapper(MetaEstimatorMixin, BaseEstimator):
    """Base class of what holds an ``estimator`` and takes the input that it takes."""

    estimator: Any

    def _check_given(self, y: Any) -> None:
        if y is None:
            name = type(self).__name__
            raise ValueError(f"{name} requires y to be passed, but the target y is None.")

    def _labelled(self, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
        """Return rows that can be indexed and their labels."""
        self._check_given(y)
        X, _ = indexable(X, y)
        return X, as_labels(y)

    def _take(self, fitted: Any) -> None:
        """Keep the fitted classifier and what it knows of the columns."""
        self.estimator_ = fitted
        self._take_columns(fitted)

    def _take_columns(self, fitted: Any) -> None:
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


class WrappedClassifier(ClassifierMixin, Wrapper):
    """Base class of what predicts as the classifier that it holds.

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from robustclf.conformal import RiskController
    >>> X, y = np.arange(20.0)[:, None], np.repeat(["no", "yes"], 10)
    >>> print(RiskController(GaussianNB(), random_state=0).fit(X, y).predict(X[:2]))
    ['no' 'no']
    """

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


class MostProbable(WrappedClassifier):
    """Base class of what predicts by its probabilities, which it calibrates or certifies."""

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class.

        A classifier that itself predicts another, such as by a tuned threshold, differs.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        most_probable = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[most_probable]
        return labels
