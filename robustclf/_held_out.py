"""Classifiers, and their probabilities of rows that they did not learn from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _check_method_params, check_is_fitted

from robustclf._rows import encode_labels, held_out, stratified_folds

MOST_UNSEEN = 0.05  # share of rows whose class no other fold has, beyond which that is no chance

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Answer = Callable[[Any, Any, NDArray[Any]], Floats]
Prepare = Callable[[Any, NDArray[Any]], Any]


class HeldOut(NamedTuple):
    """Fitted classifiers, and their answers for rows that they did not learn from."""

    estimators: list[Any]  # the one to be used, or those of the folds
    classes: NDArray[Any]
    rows: NDArray[np.intp]  # that are answered
    codes: Codes  # (row,), places of their labels in `classes`; zeros for rows of several labels
    proba: Floats  # (row, class), or whatever the answer is for each row
    folds: NDArray[np.intp] | None = None  # (row,), classifier of each row where there are several


def class_proba(fitted: Any, X: Any, classes: NDArray[Any]) -> Floats:
    """Return the probabilities of ``classes``, 0 for those that the classifier has not seen."""
    proba = np.asarray(fitted.predict_proba(X), dtype=np.float64)
    if len(fitted.classes_) == len(classes):
        return proba
    spread = np.zeros((len(proba), len(classes)))
    spread[:, np.searchsorted(classes, fitted.classes_)] = proba
    return spread


def label_proba(fitted: Any, X: Any, classes: NDArray[Any] | None = None) -> Floats:
    """Return the probability of each label of a row that may have several, ``(row, label)``."""
    given = fitted.predict_proba(X)
    if isinstance(given, list):  # forests and the like: (row, absent or present) for each label
        pairs = zip(given, fitted.classes_, strict=True)
        columns = [p[:, list(k).index(1)] if 1 in k else np.zeros(len(p)) for p, k in pairs]
        given = np.column_stack(columns)
    return np.asarray(given, dtype=np.float64)


def as_it_is(copy: Any, y: NDArray[Any]) -> Any:
    """Return a copy of a classifier without a change for the labels that it is to learn from."""
    return copy


def hold_out(
    estimator: Any,
    X: Any,
    y: NDArray[Any],
    *,
    cv: Any = 5,
    calibration_size: float = 0.25,
    params: Mapping[str, Any] | None = None,
    refit: bool = True,
    answer: Answer = class_proba,
    prepare: Prepare = as_it_is,
    n_jobs: int | None = None,
    random_state: Any = None,
) -> HeldOut:
    """Fit a classifier, and have rows answered by one that did not see them.

    A frozen classifier has seen none of the rows. Copies that are fitted to all rows but a fold
    answer this fold; ``refit`` says whether one that is fitted to all rows then takes their place.
    An estimator with a parameter ``cross_fit`` does this in one fit: with the folds that it is set
    to, or else ``cv``. Without any of these a part of the rows is held out. ``prepare`` is given
    each copy and the labels that it is to learn from, and returns what is fitted.

    Raises
    ------
    ValueError
        If there are fewer than two classes, labels that a frozen classifier does not know, too few
        rows, or folds that do not hold out each row once.

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = np.array([[0.0], [1], [5], [6]]), np.array(["no", "no", "yes", "yes"])
    >>> hold_out(GaussianNB(), X, y, cv=2, random_state=0).proba.shape
    (4, 2)
    """
    table, rng = _Table.of(estimator, X, y, params or {}), generator(random_state)
    table = table._replace(prepare=prepare)
    if isinstance(estimator, FrozenEstimator):
        return table.answered([estimator], answer(estimator, X, table.classes))
    own = estimator.get_params(deep=False) if answer is class_proba else {}
    if "cross_fit" in own and (cv is None or isinstance(cv, Integral)):
        k = cv if own["cross_fit"] is None else own["cross_fit"]
        if k is not None:
            return table.crossed(clone(estimator).set_params(cross_fit=int(k)))
    if cv is None:
        return table.split(estimator, calibration_size, answer, rng)
    made = table.folded(estimator, cv, answer, n_jobs, rng)
    if not refit:
        return made
    return table.answered([table.fitted(estimator)], made.proba)


def generator(random_state: Any) -> np.random.RandomState:
    """Return the generator of a seed; of None a new one, not the global one of the caller."""
    if random_state is None:
        return np.random.RandomState()
    rng: np.random.RandomState = check_random_state(random_state)
    return rng


class _Table(NamedTuple):
    """What a fit is given."""

    X: Any
    y: NDArray[Any]
    codes: Codes
    classes: NDArray[Any]
    params: Mapping[str, Any]
    prepare: Prepare = as_it_is

    @classmethod
    def of(cls, estimator: Any, X: Any, y: NDArray[Any], params: Mapping[str, Any]) -> _Table:
        """Find the classes: those of a frozen classifier, or of the labels."""
        frozen = isinstance(estimator, FrozenEstimator)
        if frozen:
            check_is_fitted(estimator)
        if y.ndim == 2:
            return cls(X, y, np.zeros(len(y), dtype=np.int64), np.arange(y.shape[1]), params)
        classes = np.asarray(estimator.classes_) if frozen else np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"at least two classes are needed, got {len(classes)} class: {classes.tolist()}."
            )
        return cls(X, y, encode_labels(y, classes), classes, params)

    def fitted(self, estimator: Any, rows: NDArray[np.intp] | None = None) -> Any:
        """Return a copy of the estimator that is fitted to some rows, or to all."""
        if rows is None:
            return self.prepare(clone(estimator), self.y).fit(self.X, self.y, **self.params)
        params = _check_method_params(self.X, self.params, rows)
        copy = self.prepare(clone(estimator), self.y[rows])
        return copy.fit(_safe_indexing(self.X, rows), self.y[rows], **params)

    def answered(
        self, estimators: list[Any], proba: Floats, folds: NDArray[np.intp] | None = None
    ) -> HeldOut:
        """Return answers for all rows."""
        rows = np.arange(len(self.y))
        return HeldOut(estimators, self.classes, rows, self.codes, proba, folds)

    def crossed(self, estimator: Any) -> HeldOut:
        """Fit once, with the out-of-fold probabilities that the classifier gives by itself."""
        estimator = self.prepare(estimator, self.y).fit(self.X, self.y, **self.params)
        return self.answered([estimator], np.asarray(estimator.oof_proba_, dtype=np.float64))

    def split(
        self, estimator: Any, share: float, answer: Answer, rng: np.random.RandomState
    ) -> HeldOut:
        """Fit to some rows and have the others answered, stratified by the given labels."""
        try:
            out = held_out(self.codes, share, rng)
        except ValueError:
            raise ValueError(
                f"calibration_size={share:g} of {len(self.y)} rows leaves none to "
                "calibrate on; give more rows, a larger share, or cv=5."
            ) from None
        rows = np.flatnonzero(out)
        fitted = self.fitted(estimator, np.flatnonzero(~out))
        proba = answer(fitted, _safe_indexing(self.X, rows), self.classes)
        return HeldOut([fitted], self.classes, rows, self.codes[rows], proba)

    def folded(
        self,
        estimator: Any,
        cv: Any,
        answer: Answer,
        n_jobs: int | None,
        rng: np.random.RandomState,
    ) -> HeldOut:
        """Fit to all rows but a fold, and have this fold answered, for each fold."""
        splits = self._splits(cv, rng)

        def one(train: NDArray[np.intp], held: NDArray[np.intp]) -> tuple[Any, Floats]:
            fitted = self.fitted(estimator, train)
            return fitted, answer(fitted, _safe_indexing(self.X, held), self.classes)

        made = Parallel(n_jobs=n_jobs)(delayed(one)(*split) for split in splits)
        order = np.argsort(np.concatenate([held for _, held in splits]))
        folds = np.repeat(np.arange(len(splits)), [len(held) for _, held in splits])
        proba = np.concatenate([of_fold for _, of_fold in made])
        return self.answered([fitted for fitted, _ in made], proba[order], folds[order])

    def _splits(
        self, cv: Any, rng: np.random.RandomState
    ) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Return the rows to learn from and those to answer, of each fold."""
        n = len(self.y)
        if isinstance(cv, Integral):
            if not 2 <= int(cv) <= n:
                raise ValueError(
                    f"cv={cv} must be at least 2 folds, and at most one for each of {n} rows."
                )
            dealt = stratified_folds(self.codes, int(cv), rng)
            return [
                (np.flatnonzero(dealt != f), np.flatnonzero(dealt == f)) for f in range(int(cv))
            ]
        splits = list(check_cv(cv, self.y).split(self.X, self.y))
        times = np.bincount(np.concatenate([held for _, held in splits]), minlength=n)
        if (times != 1).any():
            raise ValueError(
                f"cv must hold out each row once, got {(times == 0).sum()} rows in no fold and "
                f"{(times > 1).sum()} in several: take a KFold, not repeated or random splits."
            )
        unseen = sum(
            (~np.isin(self.codes[held], self.codes[train])).sum() for train, held in splits
        )
        if unseen > MOST_UNSEEN * n:
            warnings.warn(
                f"cv={cv!r} has {unseen} of {n} rows answered by a classifier that knows no row of "
                "their class and gives it probability 0: shuffle the rows, or take a number of "
                "folds, which have each class.",
                UserWarning,
                stacklevel=5,
            )
        return splits
