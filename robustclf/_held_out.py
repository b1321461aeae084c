"""Probabilities of rows by a classifier that did not see them, and the one that is to be used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

Floats = NDArray[np.float64]
Views = Callable[[Any], list[Any]]


class HeldOut(NamedTuple):
    """A fitted classifier, its classes and its answers for rows that it did not learn from."""

    estimator: Any
    classes: NDArray[Any]
    proba: Floats  # (row, class), or (row, view, class) where views were asked for


def held_out_proba(
    estimator: Any,
    X: Any,
    labels: NDArray[Any],
    *,
    cv: Any = 5,
    weight: Floats | None = None,
    views: Views | None = None,
    n_jobs: int | None = None,
    random_state: Any = None,
) -> HeldOut:
    """Return probabilities of rows by a classifier that did not see them.

    A frozen classifier has seen none of the rows. Any other is fitted to all of them, and copies of
    it to all but a fold; one with a parameter ``cross_fit`` does so in a single fit. ``views`` of a
    part of X are predicted by the copy that did not see that part.

    Raises
    ------
    ValueError
        If there are fewer than two classes, fewer rows than folds, or weights for a classifier
        that takes none.

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = np.array([[0.0], [1], [5], [6]]), np.array(["no", "no", "yes", "yes"])
    >>> held_out_proba(GaussianNB(), X, y, cv=2, random_state=0).proba.shape
    (4, 2)
    """
    if isinstance(estimator, FrozenEstimator):
        check_is_fitted(estimator)
        return HeldOut(estimator, estimator.classes_, _respond(estimator, X, views))
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(
            f"at least two classes are needed, got {len(classes)} class: {classes.tolist()}."
        )
    if weight is not None and not has_fit_parameter(estimator, "sample_weight"):
        raise ValueError(f"{type(estimator).__name__} takes no sample_weight: leave it out.")
    fitted = clone(estimator)
    known = {} if weight is None else {"sample_weight": weight}
    whole = isinstance(cv, Integral) and "cross_fit" in fitted.get_params(deep=False)
    if whole and views is None:
        fitted.set_params(cross_fit=int(cv)).fit(X, labels, **known)
        return HeldOut(fitted, classes, np.asarray(fitted.oof_proba_, dtype=np.float64))
    fitted.fit(X, labels, **known)
    with warnings.catch_warnings():  # a class with fewer rows than folds is no reason to stop
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = list(_folds(cv, labels, random_state).split(X, labels))
    proba = _out_of_fold(estimator, X, labels, classes, folds, weight, views, n_jobs)
    return HeldOut(fitted, classes, proba)


def generator(random_state: Any) -> np.random.RandomState:
    """Return the generator of a seed; of None a new one, not the global one of the caller."""
    if random_state is None:
        return np.random.RandomState()
    rng: np.random.RandomState = check_random_state(random_state)
    return rng


def _folds(cv: Any, labels: NDArray[Any], random_state: Any) -> Any:
    if not isinstance(cv, Integral):
        return check_cv(cv, labels, classifier=True)
    most = np.unique(labels, return_counts=True)[1].max()
    rng = generator(random_state)
    return StratifiedKFold(max(2, min(int(cv), int(most))), shuffle=True, random_state=rng)


def _out_of_fold(
    estimator: Any,
    X: Any,
    labels: NDArray[Any],
    classes: NDArray[Any],
    folds: Any,
    weight: Floats | None,
    views: Views | None,
    n_jobs: int | None,
) -> Floats:
    def one(train: NDArray[np.intp], test: NDArray[np.intp]) -> tuple[NDArray[np.intp], Floats]:
        known = {} if weight is None else {"sample_weight": weight[train]}
        fitted = clone(estimator).fit(_safe_indexing(X, train), labels[train], **known)
        answer = _respond(fitted, _safe_indexing(X, test), views)
        full = np.zeros((*answer.shape[:-1], len(classes)))
        full[..., np.searchsorted(classes, fitted.classes_)] = answer
        return test, full

    parts = Parallel(n_jobs=n_jobs)(delayed(one)(*fold) for fold in folds)
    rows = np.concatenate([test for test, _ in parts])
    if not np.array_equal(np.sort(rows), np.arange(len(labels))):
        raise ValueError("cv must put each row into exactly one test fold, such as KFold does.")
    proba = np.concatenate([answer for _, answer in parts])
    ordered: Floats = proba[np.argsort(rows)]
    return ordered


def _respond(fitted: Any, X: Any, views: Views | None) -> Floats:
    if views is None:
        return np.asarray(fitted.predict_proba(X), dtype=np.float64)
    return np.stack([fitted.predict_proba(view) for view in views(X)], axis=1, dtype=np.float64)
