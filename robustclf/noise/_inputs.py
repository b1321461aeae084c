"""What every function here is given: labels and the probabilities of some classifier."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_consistent_length

from robustclf._rows import as_labels, encode_labels

SUM_TOLERANCE = 1e-3  # of the probabilities of a row, which may be float16 or rounded


class LabelledProba(NamedTuple):
    """Given labels as codes, and the probability of each class."""

    codes: NDArray[np.int64]  # (sample,), places in `classes`
    proba: NDArray[np.float64]  # (sample, class)
    classes: NDArray[Any]  # (class,)


def check_labels(
    y: ArrayLike, classes: ArrayLike | None = None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return labels as codes, and the sorted classes.

    Raises
    ------
    ValueError
        For missing labels, ones that are not among ``classes``, or classes that are not sorted.

    Examples
    --------
    >>> check_labels(["no", "yes", "no"])
    (array([0, 1, 0]), array(['no', 'yes'], dtype='<U3'))
    """
    labels = as_labels(y, classes)
    known = np.unique(labels if classes is None else np.asarray(classes))
    if classes is not None and not np.array_equal(known, classes):
        raise ValueError(
            f"classes must be sorted and without repetition, got {np.asarray(classes).tolist()}."
        )
    return encode_labels(labels, known), known


def check_proba(y: ArrayLike, proba: ArrayLike, classes: ArrayLike | None = None) -> LabelledProba:
    """Return checked labels and probabilities.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Given labels, of any one type.
    proba : array-like of shape (n_samples, n_classes)
        Probabilities in the order of ``classes``.
    classes : array-like of shape (n_classes,), optional
        The sorted classes, ``clf.classes_``; needed where ``y`` lacks some. Default: those of y.

    Raises
    ------
    ValueError
        If the shapes do not go together or the numbers are not probabilities.

    Examples
    --------
    >>> check_proba(["no", "yes"], [[0.9, 0.1], [0.4, 0.6]]).codes
    array([0, 1])
    >>> check_proba(["no", "yes"], [0, 1])
    Traceback (most recent call last):
    ValueError: proba must have a column for each class, got shape (2,): pass predict_proba...
    """
    codes, known = check_labels(y, classes)
    p = check_class_proba(proba, known)
    check_consistent_length(codes, p)
    return LabelledProba(codes, p, known)


def check_count(name: str, count: Any) -> None:
    """Raise a ValueError unless there are as many as a number from 1 on.

    Examples
    --------
    >>> check_count("n_bins", 2.5)
    Traceback (most recent call last):
    ValueError: n_bins must be an integer >= 1, got 2.5.
    """
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {count!r}.")


def check_class_proba(proba: ArrayLike, classes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities of known classes; each row sums to 1.

    Raises
    ------
    ValueError
        If there are not as many columns as classes, or the numbers are not probabilities.

    Examples
    --------
    >>> check_class_proba([[0.9, 0.0999], [0.4, 0.6]], np.array(["no", "yes"])).sum(axis=1)
    array([1., 1.])
    """
    shape = np.shape(proba)
    if len(shape) != 2:
        raise ValueError(
            f"proba must have a column for each class, got shape {shape}: pass "
            "predict_proba, not labels."
        )
    p: NDArray[np.float64] = check_array(proba, dtype=np.float64, input_name="proba")
    if p.shape[1] != len(classes):
        raise ValueError(
            f"proba has {p.shape[1]} columns for {len(classes)} classes {classes.tolist()}. Pass "
            "classes=clf.classes_ if some class has no row."
        )
    if len(classes) < 2:
        raise ValueError(f"y has only one class: {classes.tolist()}.")
    total = p.sum(axis=1, keepdims=True)
    if p.min() < 0 or abs(total - 1).max() > SUM_TOLERANCE:
        row = int(np.argmax((p < 0).any(axis=1) | (abs(total[:, 0] - 1) > SUM_TOLERANCE)))
        raise ValueError(
            f"proba must hold probabilities that sum to 1 in each row, got {p[row]} in row {row}."
        )
    shares: NDArray[np.float64] = p / total
    return shares
