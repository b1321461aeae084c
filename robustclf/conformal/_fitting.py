"""Classifiers, and probabilities of rows that they were not fitted to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _check_method_params

from robustclf._rows import held_out, stratified_folds

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Table(NamedTuple):
    """What a fit is given."""

    X: Any
    labels: NDArray[Any]
    codes: Codes
    classes: NDArray[Any]
    params: dict[str, Any]

    def fitted(self, estimator: Any, rows: NDArray[np.intp]) -> Any:
        """Return a copy of the estimator that is fitted to some rows."""
        some = _safe_indexing(self.X, rows)
        params = _check_method_params(self.X, self.params, rows)
        return clone(estimator).fit(some, self.labels[rows], **params)


class Fitted(NamedTuple):
    """Classifiers, and the rows that they calibrate on."""

    estimators: list[Any]
    rows: NDArray[np.intp]
    proba: Floats  # (calibration row, class)
    folds: NDArray[np.intp] | None = None  # classifier of each calibration row, of several


def generator(random_state: Any) -> np.random.RandomState:
    """Return the generator of a fit."""
    # None means numpy's global generator to scikit-learn, which is the caller's
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


def fit_split(estimator: Any, table: Table, share: float, rng: np.random.RandomState) -> Fitted:
    """Fit to some rows and calibrate on the others, stratified by the given labels."""
    try:
        out = held_out(table.codes, share, rng)
    except ValueError:
        raise ValueError(
            f"calibration_size={share:g} of {len(table.codes)} rows leaves none to calibrate on; "
            "give more rows, a larger share, or cv=5."
        ) from None
    held = np.flatnonzero(out)
    fitted = table.fitted(estimator, np.flatnonzero(~out))
    return Fitted([fitted], held, class_proba(fitted, _safe_indexing(table.X, held), table.classes))


def fit_folds(
    estimator: Any, table: Table, cv: Any, n_jobs: int | None, rng: np.random.RandomState
) -> Fitted:
    """Fit to all rows but a fold, for each fold.

    Raises
    ------
    ValueError
        If a row is in no fold, or in several.
    """
    folds = _folds(table, cv, rng)

    def fit_one(fold: int) -> tuple[Any, Floats]:
        held = np.flatnonzero(folds == fold)
        fitted = table.fitted(estimator, np.flatnonzero(folds != fold))
        return fitted, class_proba(fitted, _safe_indexing(table.X, held), table.classes)

    numbers = range(int(folds.max()) + 1)
    made = Parallel(n_jobs=n_jobs)(delayed(fit_one)(fold) for fold in numbers)
    proba = np.empty((len(folds), len(table.classes)))
    for fold, (_, of_fold) in enumerate(made):
        proba[folds == fold] = of_fold
    return Fitted([fitted for fitted, _ in made], np.arange(len(folds)), proba, folds)


def _folds(table: Table, cv: Any, rng: np.random.RandomState) -> NDArray[np.intp]:
    n = len(table.codes)
    if isinstance(cv, int | np.integer):
        if not 2 <= cv <= n:
            raise ValueError(
                f"cv={cv} must be at least 2 folds, and at most one for each of {n} rows."
            )
        return stratified_folds(table.codes, int(cv), rng)
    folds = np.full(n, -1)
    times = np.zeros(n, dtype=int)
    for fold, (_, held) in enumerate(check_cv(cv, table.labels).split(table.X, table.labels)):
        folds[held] = fold
        times[held] += 1
    if (times != 1).any():
        raise ValueError(
            f"cv must hold out each row once, got {(times == 0).sum()} rows in no fold and "
            f"{(times > 1).sum()} in several: take a KFold, not repeated or random splits."
        )
    return folds


def fit_crossed(estimator: Any, table: Table) -> Fitted:
    """Fit once, with the out-of-fold probabilities that the classifier gives by itself."""
    fitted = clone(estimator).fit(table.X, table.labels, **table.params)
    return Fitted(
        [fitted], np.arange(len(table.codes)), np.asarray(fitted.oof_proba_, dtype=np.float64)
    )


def class_proba(estimator: Any, X: Any, classes: NDArray[Any]) -> Floats:
    """Return the probabilities of ``classes``, 0 for those that the classifier has not seen."""
    proba = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    known = estimator.classes_
    if len(known) == len(classes):
        return proba
    spread = np.zeros((len(proba), len(classes)))
    spread[:, np.searchsorted(classes, known)] = proba
    return spread
