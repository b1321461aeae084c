"""Perturbed copies of a table, and how the predictions of a row change with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from robustclf._held_out import class_proba

Floats = NDArray[np.float64]

MOST_CLASSES = 4  # whose probabilities are compared


@dataclass(frozen=True, eq=False)
class Views:
    """In view v, the columns ``swapped[v]`` of all rows are those of the reference row v.

    So a view of a row depends on this row alone, and each value in it is one that the column has.
    """

    reference: Any  # (view, column)
    swapped: NDArray[np.bool_]  # (view, column)

    @classmethod
    def draw(cls, X: Any, n_views: int, share: float, rng: np.random.RandomState) -> Views:
        """Draw reference rows, and a share of the columns for each (at least one, never all)."""
        if sparse.issparse(X) or (not hasattr(X, "iloc") and np.ndim(X) != 2):
            raise ValueError(
                "method='correctness' swaps columns: X must be a 2-D array or a data frame, "
                f"not sparse, got {type(X).__name__}. Use method='temperature' or 'vector'."
            )
        n, width = X.shape if hasattr(X, "shape") else np.shape(X)
        rows = rng.randint(n, size=n_views)
        count = int(np.clip(round(share * width), 1, max(width - 1, 1)))
        swapped = rng.random((n_views, width)).argsort(axis=1) < count
        if hasattr(X, "iloc"):
            return cls(X.iloc[rows], swapped)
        if nw.dependencies.is_into_dataframe(X):
            return cls(nw.from_native(X)[rows.tolist()].to_native(), swapped)
        return cls(np.asarray(X)[rows], swapped)

    def __call__(self, X: Any) -> list[Any]:
        """Return the rows as they are, and each view of them."""
        if not hasattr(X, "iloc") and nw.dependencies.is_into_dataframe(X):
            return self._of_frame(nw.from_native(X))
        if not hasattr(X, "iloc"):
            table = np.asarray(X)
            return [table] + [
                np.where(mask, row, table)
                for mask, row in zip(self.swapped, self.reference, strict=True)
            ]
        views = [X]
        for v, mask in enumerate(self.swapped):
            other = self.reference.iloc[np.full(len(X), v)]
            view = X.copy()
            for j in np.flatnonzero(mask):
                view.isetitem(int(j), other.iloc[:, j].array)
            views.append(view)
        return views

    def _of_frame(self, X: nw.DataFrame[Any]) -> list[Any]:
        """Return the views of a frame other than of pandas."""
        views, names = [X.to_native()], np.array(X.columns)
        for v, mask in enumerate(self.swapped):
            other = nw.from_native(self.reference)[[v] * len(X)]
            views.append(X.with_columns(*other[names[mask].tolist()].iter_columns()).to_native())
        return views

    def proba(self, fitted: Any, X: Any, classes: NDArray[Any]) -> Floats:
        """Return what a classifier says of all of these, ``(row, 1 + view, class)``."""
        return np.stack([class_proba(fitted, view, classes) for view in self(X)], axis=1)


def view_features(proba: Floats) -> Floats:
    """Return what tells right rows from wrong ones, from probabilities ``(row, 1 + view, class)``.

    They are the largest probabilities of the row, those of the same classes in each view, and those
    of the row for the classes that are the largest in the view.

    Examples
    --------
    >>> view_features(np.array([[[0.7, 0.3], [0.4, 0.6]]]))
    array([[0.7, 0.3, 0.4, 0.6, 0.3, 0.7]])
    """
    top = (-proba).argsort(axis=2, kind="stable")[:, :, :MOST_CLASSES]
    own, of_row = top[:, :1], proba[:, :1]
    parts = [np.take_along_axis(proba, own.repeat(proba.shape[1], axis=1), axis=2)]
    parts.append(np.take_along_axis(of_row.repeat(proba.shape[1] - 1, axis=1), top[:, 1:], axis=2))
    features: Floats = np.concatenate(parts, axis=1).reshape(len(proba), -1)
    return features
