"""Encoded rows that are read when they are asked for, and batches of them through a buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from robustclf._training_set import TrainingSet, batch_cuts
from robustclf.sources import Source
from robustclf.strategies import Batch

SAMPLE_ROWS = 100_000  # most that an encoder is fitted to
SAMPLE_PIECES = 256  # most that are read for that
HELD_ROWS = 50_000  # most that are held out


def sample_rows(source: Source, weight: NDArray[Any] | None) -> NDArray[np.int64]:
    """Draw the rows that an encoder is fitted to from pieces spread evenly over the source."""
    rng = generator()
    bounds = source.bounds()
    strata = np.linspace(0, len(bounds) - 1, min(SAMPLE_PIECES, len(bounds) - 1) + 1)
    pieces = np.unique(np.floor(rng.uniform(strata[:-1], strata[1:])).astype(int))
    rows = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in pieces])
    if weight is not None:
        present = rows[weight[rows] > 0]
        rows = present if len(present) else np.flatnonzero(weight)
    most = min(SAMPLE_ROWS, source.auto_rows)
    return np.sort(rng.choice(rows, most, replace=False)) if len(rows) > most else rows


def generator() -> np.random.Generator:
    """Return a generator of numpy that torch's generator seeds."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


class StreamedRows:
    """Rows of a source, read and encoded whenever they are asked for.

    Parameters
    ----------
    source : Source
        The number of its rows is known.
    encode : callable
        From what the source reads to an array or a CSR matrix.
    sample : array or CSR matrix of shape (any, feature)
        Some encoded rows.
    """

    def __init__(self, source: Source, encode: Callable[[Any], Any], sample: Any) -> None:
        self.source = source
        self.sample = sample
        self.shape = (len(source), sample.shape[1])
        self._encode = encode

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Read rows by their ascending numbers: all of them are in memory then."""
        return self.encode(self.source.take(rows))

    def encode(self, chunk: Any) -> NDArray[Any]:
        """Return encoded rows, never sparse."""
        x = self._encode(chunk)
        dense: NDArray[Any] = x.toarray() if sparse.issparse(x) else x
        return dense

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield all rows in their order."""
        return map(self.encode, self.source.read())

    def shuffled(
        self, times: NDArray[np.integer[Any]], rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield numbers and rows of the pieces in random order, each row as often as ``times``."""
        bounds = self.source.bounds()
        for piece in rng.permutation(len(bounds) - 1):
            at = int(bounds[piece])
            for chunk in self.source.read(at, int(bounds[piece + 1])):
                stop = at + len(chunk)
                index = np.repeat(np.arange(at, stop), times[at:stop])
                if len(index):
                    x = self.encode(chunk)
                    whole = (times[at:stop] == 1).all()
                    yield index, x if whole else x[index - at]
                at = stop


class ShuffleBuffer:
    """Rows in memory: random ones leave, others come in.

    Parameters
    ----------
    n_rows : int
        Most rows in memory.
    blocks : iterable of (index, x)
        Numbers and rows that come in.
    rng : Generator

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> blocks = ((np.array([i]), np.full((1, 2), 10 * i)) for i in range(6))
    >>> buffer = ShuffleBuffer(3, blocks, rng)
    >>> sorted(row for _ in range(3) for row in buffer.draw(2)[0].tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        n_rows: int,
        blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
        rng: np.random.Generator,
    ) -> None:
        self.n_rows = n_rows
        self.rng = rng
        self._blocks = iter(blocks)
        self._index = np.empty(n_rows, dtype=np.int64)
        self._x: NDArray[Any] | None = None
        self._n = 0
        self._next: tuple[NDArray[np.int64], NDArray[Any]] | None = None

    def draw(self, n: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Fill the buffer and take ``n`` rows out."""
        self._fill()
        assert self._x is not None
        at = self.rng.choice(self._n, n, replace=False, shuffle=False)
        drawn = self._index[at], self._x.take(at, axis=0)
        left = self._n - n
        stays = np.ones(n, dtype=bool)
        stays[at[at >= left] - left] = False
        last, holes = left + np.flatnonzero(stays), at[at < left]  # the last rows fill the holes
        self._index[holes], self._x[holes] = self._index[last], self._x[last]
        self._n = left
        return drawn

    def _fill(self) -> None:
        while self._n < self.n_rows:
            index, x = self._next or next(self._blocks, (None, None))
            if index is None or x is None:
                return
            if self._x is None:
                self._x = np.empty((self.n_rows, x.shape[1]), x.dtype)
            n = min(len(index), self.n_rows - self._n)
            self._index[self._n : self._n + n] = index[:n]
            self._x[self._n : self._n + n] = x[:n]
            self._n += n
            self._next = (index[n:], x[n:]) if n < len(index) else None


@dataclass
class StreamedSet(TrainingSet):
    """A training set whose rows are not in memory; what is known of each row is."""

    long_epochs: ClassVar[bool] = True

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[float, float, Batch]]:
        """Cut the batches of an epoch from a shuffle buffer."""
        x: Any = self.x
        rng = generator()
        times = np.bincount(rows.cpu().numpy(), minlength=len(x)).astype(np.int32)
        cuts = batch_cuts(len(rows), batch_size)
        most = max(x.source.buffer_rows, *np.diff(cuts).tolist())
        return self._drawn(cuts, ShuffleBuffer(most, x.shuffled(times, rng), rng))

    def _drawn(
        self, cuts: list[int], buffer: ShuffleBuffer
    ) -> Iterator[tuple[float, float, Batch]]:
        n = cuts[-1]
        for start, stop in pairwise(cuts):
            index, x = buffer.draw(stop - start)
            rows = torch.from_numpy(index).to(self.y.device)
            weight = self.weight.index_select(1, rows)
            batch = Batch(torch.from_numpy(x).to(weight), self.y[rows], weight, rows)
            yield start / n, (stop - start) / n, batch
