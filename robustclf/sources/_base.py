"""What a source is: rows that are read chunk by chunk from where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUFFER_CELLS = 2**26  # of shuffle_buffer="auto": 256 MB in float32
CHUNK_CELLS, CHUNK_ROWS = 2**22, 16_384  # most that is read at once
PIECE_ROWS = 4_096  # in a row that a shuffled pass reads; of a file at least one row group


class Source(ABC):
    """Base of what ``fit`` and the methods that predict take for data larger than memory.

    Row numbers are positions in the order in which the source has its rows. They run from 0 and
    are what ``sample_weight``, ``groups`` and ``oof_proba_`` refer to.

    Parameters
    ----------
    shuffle_buffer : int or "auto", default="auto"
        Rows in memory that the rows of a training step are drawn from. With ``"auto"`` as many as
        make 2**26 numbers, 256 MB in float32. Data with no more rows than that are loaded, and
        fitted as any array in memory.

    Attributes
    ----------
    n_rows : int or None
        Number of rows; None while it is not known.
    n_columns : int
        Number of features.

    Raises
    ------
    ValueError
        If ``shuffle_buffer`` is no positive integer.
    """

    n_rows: int | None
    n_columns: int

    def __init__(self, shuffle_buffer: int | str = "auto") -> None:
        number = isinstance(shuffle_buffer, int | np.integer) and shuffle_buffer >= 1
        if shuffle_buffer is True or (not number and shuffle_buffer != "auto"):
            raise ValueError(
                "shuffle_buffer must be a number of rows, at least 1, or 'auto', got "
                f"{shuffle_buffer!r}."
            )
        self.shuffle_buffer = shuffle_buffer

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Yield rows from ``start`` to ``stop``, which are bounds of pieces, in chunks."""

    def bounds(self) -> NDArray[np.int64]:
        """Return where the pieces begin that can be read by themselves, and the end."""
        step = max(min(PIECE_ROWS, self.buffer_rows // 32), 1)
        return np.append(np.arange(0, len(self), step), len(self))

    def labels(self) -> NDArray[Any]:
        """Return the labels that come with the rows.

        Returns
        -------
        labels : ndarray of shape (n_rows,)

        Raises
        ------
        ValueError
            If the source has none.
        """
        raise ValueError(f"{type(self).__name__} has no labels: fit(X, y) with y in memory.")

    def __len__(self) -> int:
        if self.n_rows is None:
            raise TypeError(f"the number of rows of this {type(self).__name__} is not known")
        return self.n_rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of features."""
        return len(self), self.n_columns

    @property
    def buffer_rows(self) -> int:
        """Rows that ``shuffle_buffer`` stands for."""
        return self.auto_rows if self.shuffle_buffer == "auto" else int(self.shuffle_buffer)

    @property
    def auto_rows(self) -> int:
        """Rows that make 2**26 numbers."""
        return max(BUFFER_CELLS // max(self.n_columns, 1), 1)

    @property
    def fits(self) -> bool:
        """Whether all rows are known to fit into the shuffle buffer."""
        return self.n_rows is not None and self.n_rows <= self.buffer_rows

    @property
    def chunk_rows(self) -> int:
        """Most rows that are read at once."""
        return max(min(CHUNK_CELLS // max(self.n_columns, 1), CHUNK_ROWS), 1)

    def take(self, rows: NDArray[np.integer[Any]]) -> Any:
        """Return rows by their ascending numbers, from one pass over the pieces that hold them."""
        parts = []
        for first, last in pairwise(self.bounds().tolist()):
            if np.searchsorted(rows, first) == np.searchsorted(rows, last):
                continue
            for chunk in self.read(first, last):
                low, high = np.searchsorted(rows, [first, first + len(chunk)])
                parts.append(_take(chunk, rows[low:high] - first))
                first += len(chunk)
        return _join(parts)

    def load(self) -> Any:
        """Return all rows at once."""
        return _join(list(self.read()))


def _take(chunk: Any, index: NDArray[np.integer[Any]]) -> Any:
    return chunk[index] if isinstance(chunk, np.ndarray) else chunk.take(index)


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import pyarrow as pa

    return pa.concat_tables(parts)
