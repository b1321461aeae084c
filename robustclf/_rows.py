"""The rows of a fit: their labels, their weights, the folds and the part that is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array

UNLABELLED = -1


def as_labels(y: Any, classes: ArrayLike | None = None, name: str = "y") -> NDArray[Any]:
    """Return labels as a vector, refusing missing and continuous ones."""
    labels, missing = split_labels(y, classes)
    if missing.any():
        rows = np.flatnonzero(missing)
        raise ValueError(
            f"{name} has no label in {len(rows)} of {len(missing)} rows (first: row {rows[0]}). "
            "Drop these rows."
        )
    return labels


def split_labels(
    y: Any, classes: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels of the rows that have one, and which rows have none.

    A row has no label where it is missing (None, nan, NA), or the integer -1 as in scikit-learn's
    semi-supervised estimators: among more than two values, or where ``classes`` lack it.
    """
    if y is None:
        raise ValueError("RobustClassifier requires y to be passed, but the target y is None.")
    labels: NDArray[Any] = column_or_1d(exact(y), warn=True)
    missing = missing_values(labels)
    known = _checked(labels[~missing])
    values = np.unique(known if classes is None else np.asarray(classes))
    marks = UNLABELLED not in values if classes is not None else len(values) > 2
    if known.dtype.kind == "i" and marks:
        none = known == UNLABELLED
        missing[~missing] = none
        known = known[~none]
    if missing.any() and not len(known):
        raise ValueError(f"y has no label in any of {len(labels)} rows: nothing to learn from.")
    return known, missing


def known_classes(classes: ArrayLike) -> NDArray[Any]:
    """Return classes sorted, each once; what stands for a missing label is none."""
    values = column_or_1d(exact(classes), input_name="classes")
    known: NDArray[Any] = np.unique(_checked(values[~missing_values(values)], "classes"))
    return known


def exact(y: Any) -> NDArray[Any]:
    """Return values as an array that tells them, and gaps, apart as they were given.

    numpy makes integers beside gaps floats, and in a list gaps and numbers beside text text.
    """
    if isinstance(y, np.ma.MaskedArray):
        y = np.ma.filled(y.astype(object), np.nan)
    values = np.asarray(y)
    if values.dtype.kind == "T":  # of numpy's variable-width strings
        return values.astype(object)
    if values.dtype.kind == "U" and not hasattr(y, "dtype"):
        objects = np.asarray(y, dtype=object)
        return values if all(isinstance(v, str) for v in objects.flat) else objects
    column = not isinstance(y, np.ndarray) and values.ndim == 1
    if column and values.dtype.kind == "f" and np.isnan(values).any():
        return np.array(y.to_pylist() if hasattr(y, "to_pylist") else list(y), dtype=object)
    return values


def missing_values(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are None, nan or NA."""
    if values.dtype.kind != "O":
        unlike: NDArray[np.bool_] = values != values
        return unlike
    # NA of pandas, which is an optional dependency, refuses to be compared
    return np.array([v is None or type(v).__name__ == "NAType" or v != v for v in values], bool)


def _checked(labels: NDArray[Any], name: str = "y") -> NDArray[Any]:
    if labels.dtype.kind == "f" and np.isinf(labels).any():
        raise ValueError(
            f"Input {name} contains infinity in {np.isinf(labels).sum()} of {len(labels)} rows "
            f"(first: row {np.isinf(labels).argmax()})."
        )
    if labels.dtype.kind == "O" and not all(isinstance(v, str) for v in labels):
        kinds = sorted({type(v).__name__ for v in labels})
        labels = np.array(labels.tolist())  # nullable integers and booleans of pandas
        if labels.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold labels of one type, got a mix of {kinds}.")
    check_classification_targets(labels)
    return labels


def encode_labels(
    y: NDArray[Any], classes: NDArray[Any], missing: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return the place of each label in the sorted ``classes``; 0 for rows without label."""
    codes = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    unknown = classes[codes] != y
    if unknown.any():
        extra = np.unique(y[unknown])
        raise ValueError(
            f"y contains labels {extra.tolist()} beyond the classes {classes.tolist()}."
        )
    if missing is None:
        return codes.astype(np.int64)
    spread = np.zeros(len(missing), dtype=np.int64)
    spread[~missing] = codes
    return spread


def row_weights(
    sample_weight: ArrayLike | None,
    class_weight: Mapping[Any, float] | str | None,
    y: NDArray[Any],
    missing: NDArray[np.bool_],
) -> NDArray[np.float64] | None:
    """Return the weight of each row, None where all are one; ``y`` of the rows with label."""
    if sample_weight is None and class_weight is None:
        return None
    weight = np.ones(len(missing))
    if sample_weight is not None:
        weight = check_array(
            sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
        ).copy()
        if weight.shape != missing.shape:
            raise ValueError(
                f"sample_weight.shape == {weight.shape}, expected {missing.shape}: one weight per "
                "row."
            )
        if (weight < 0).any():
            raise ValueError(
                f"sample_weight must not be negative, got {weight.min():g} in row "
                f"{weight.argmin()} ({(weight < 0).sum()} negative weights)."
            )
        if not weight[~missing].any():
            raise ValueError("sample_weight is zero for every row: nothing is left to learn from.")
    if class_weight is not None:
        rows = np.flatnonzero(~missing & (weight > 0))
        y = y[weight[~missing] > 0]
        classes, codes = np.unique(y, return_inverse=True)
        known = {"classes": classes, "y": y, "sample_weight": weight[rows]}
        weight[rows] *= compute_class_weight(class_weight, **known)[codes]
    return weight


def group_codes(groups: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    """Return the groups of the ``n`` rows, numbered from 0."""
    if groups is None:
        return None
    values = column_or_1d(exact(groups), input_name="groups")
    if len(values) != n:
        raise ValueError(f"groups has {len(values)} entries, expected {n}: one group per row.")
    missing = missing_values(values)
    if missing.any():
        raise ValueError(f"groups is missing for {missing.sum()} of {n} rows.")
    try:
        codes: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    except TypeError as error:
        kinds = sorted({type(v).__name__ for v in values})
        raise ValueError(f"groups must be of one type, got a mix of {kinds}.") from error
    return codes


def row_mask(rows: ArrayLike | None, n: int, name: str) -> NDArray[np.bool_] | None:
    """Return a mask of ``n`` rows from a mask or from row numbers."""
    if rows is None:
        return None
    given: NDArray[Any] = column_or_1d(np.asarray(rows), input_name=name)
    if given.dtype == bool and len(given) == n:
        return given.copy()
    numbers = given.dtype.kind in "iu"
    if len(given) and not (numbers and 0 <= given.min() <= given.max() < n):
        raise ValueError(
            f"{name} must be a mask of {n} rows or row numbers from 0 to {n - 1}, got "
            f"{given.dtype} of shape {given.shape}."
        )
    mask = np.zeros(n, dtype=bool)
    mask[given.astype(np.int64)] = True
    if repeated := len(given) - mask.sum():
        raise ValueError(
            f"{name} names {repeated} of {len(given)} rows twice: give a number once each, and a "
            "mask of zeros and ones as booleans."
        )
    return mask


def stratified_folds(
    codes: NDArray[np.int64], k: int, rng: np.random.RandomState
) -> NDArray[np.int64]:
    """Deal the rows of each class, shuffled, to ``k`` folds in turn."""
    folds = np.empty(len(codes), dtype=np.int64)
    folds[_by_class(codes, rng)] = np.arange(len(codes)) % k
    return folds


def held_out(
    codes: NDArray[np.int64], fraction: float, rng: np.random.RandomState
) -> NDArray[np.bool_]:
    """Mark a stratified part of the rows, evenly spaced in their order by class."""
    out = np.zeros(len(codes), dtype=bool)
    marks = np.floor(np.arange(len(codes) + 1) * fraction)
    out[_by_class(codes, rng)] = np.diff(marks) > 0
    for label in np.setdiff1d(codes, codes[~out]):  # a class needs a row to learn from
        out[codes == label] = False
    if not out.any():
        raise ValueError(
            f"validation_fraction={fraction:g} of {len(codes)} rows leaves none to hold out; give "
            "more rows, a larger fraction, or X_val and y_val."
        )
    return out


def _by_class(codes: NDArray[np.int64], rng: np.random.RandomState) -> NDArray[np.intp]:
    shuffled = rng.permutation(len(codes))
    order: NDArray[np.intp] = shuffled[np.argsort(codes[shuffled], kind="stable")]
    return order


@dataclass(frozen=True)
class Rows:
    """Which rows of a fit train, which are held out, and which fold leaves each out."""

    codes: NDArray[np.int64]
    weight: NDArray[np.float64] | None
    missing: NDArray[np.bool_]  # which rows have no label
    trained: NDArray[np.intp]
    held: NDArray[np.intp] | None = None
    folds: NDArray[np.int64] | None = None  # -1 for rows that no member trains on
    groups: NDArray[np.int64] | None = None
    trusted: NDArray[np.bool_] | None = None

    @classmethod
    def plan(
        cls,
        codes: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
        missing: NDArray[np.bool_],
        rng: np.random.RandomState,
        *,
        hold_out: float = 0.0,
        cross_fit: int | None = None,
        use_unlabelled: bool = False,
        **known: Any,
    ) -> Rows:
        """Drop the rows of weight zero, hold a part out, deal the rest to folds.

        Rows without label are dropped unless some strategy uses them; they are never held out.
        """
        # drawn whether used or not, so that cross-fitting leaves all other draws as they are
        of_folds = check_random_state(rng.randint(2**31 - 1))
        present = np.ones(len(codes), dtype=bool) if weight is None else weight > 0
        trained, held = np.flatnonzero(present & ~missing), None
        if hold_out:
            out = held_out(codes[trained], hold_out, rng)
            trained, held = trained[~out], trained[out]
        folds = None
        if cross_fit is not None:
            folds = cls._deal(codes, trained, cross_fit, of_folds)
        if use_unlabelled:
            trained = np.union1d(trained, np.flatnonzero(present & missing))
        return cls(codes, weight, missing, trained, held, folds, **known)

    @staticmethod
    def _deal(
        codes: NDArray[np.int64], trained: NDArray[np.intp], k: int, rng: np.random.RandomState
    ) -> NDArray[np.int64]:
        if k > len(trained):
            raise ValueError(
                f"cross_fit={k} needs at least that many rows to train on, got {len(trained)}."
            )
        folds = np.full(len(codes), -1)
        folds[trained] = stratified_folds(codes[trained], k, rng)
        return folds

    def member_weights(self, n_members: int, peers: int) -> NDArray[np.float64]:
        """Return weights ``(member or 1, n_samples)`` with mean one over the trained rows.

        The first ``n_members`` train on all rows; each fold has ``peers`` members that do not.
        """
        base = np.where(self.missing, 0.0, 1.0 if self.weight is None else self.weight)
        if self.folds is None:
            weight = base[None]
        else:
            k = self.folds.max() + 1
            left_out = np.arange(k)[:, None] == self.folds
            weight = np.concatenate(
                [base[None].repeat(n_members, 0), np.where(left_out, 0, base).repeat(peers, 0)]
            )
        total = weight[:, self.trained].mean(axis=1, keepdims=True)
        member_weights: NDArray[np.float64] = weight / total
        return member_weights

    def unlabelled_weights(self) -> NDArray[np.float64] | None:
        """Return weights ``(1, n_samples)`` of the rows without label, mean one as the others."""
        weight = np.where(self.missing, 1.0 if self.weight is None else self.weight, 0.0)
        mean = weight[self.trained].mean()
        return weight[None] / mean if mean else None
