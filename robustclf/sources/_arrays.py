"""Rows of an array on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustclf.sources._base import Source


class ArraySource(Source):
    """Array on disk of which slices are read: ``numpy.memmap``, or one of h5py or zarr.

    A ``numpy.memmap`` is taken for one without being asked; say ``numpy.asarray(X)`` to train on it
    in memory.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        Anything with ``shape`` and slices of rows. The labels go to ``fit(X, y)``.
    shuffle_buffer : int or "auto", default="auto"
        As :class:`Source`.

    Raises
    ------
    ValueError
        If X is not two-dimensional.

    Examples
    --------
    >>> import numpy as np
    >>> from robustclf import ArraySource, RobustClassifier
    >>> X = np.random.default_rng(0).normal(size=(2_000, 4))  # or numpy.load(..., mmap_mode="r")
    >>> y = X[:, 0] > 0
    >>> clf = RobustClassifier(random_state=0).fit(ArraySource(X, shuffle_buffer=500), y)
    >>> bool(clf.score(ArraySource(X), y) > 0.95)
    True
    """

    def __init__(self, X: Any, *, shuffle_buffer: int | str = "auto") -> None:
        super().__init__(shuffle_buffer)
        if len(X.shape) != 2:
            raise ValueError(f"Expected 2D array, got an array of shape {tuple(X.shape)}.")
        self.X = X
        self.n_rows, self.n_columns = map(int, X.shape)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield slices."""
        stop = len(self) if stop is None else stop
        for at in range(start, stop, self.chunk_rows):
            yield np.asarray(self.X[at : min(at + self.chunk_rows, stop)])

    def load(self) -> NDArray[Any]:
        """Return all rows; of a memmap without copying them."""
        return np.asarray(self.X[:])
