"""Rows that are read chunk by chunk from where they are: arrays, Parquet files, torch datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from robustclf._registry import check_known

__all__ = ["ArraySource", "DatasetSource", "ParquetSource", "Source"]

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

    Raises
    ------
    ValueError
        If ``shuffle_buffer`` is no positive integer.
    """

    def __init__(self, shuffle_buffer: int | str = "auto") -> None:
        number = isinstance(shuffle_buffer, int | np.integer) and shuffle_buffer >= 1
        if shuffle_buffer is True or (not number and shuffle_buffer != "auto"):
            raise ValueError(
                "shuffle_buffer must be a number of rows, at least 1, or 'auto', got "
                f"{shuffle_buffer!r}."
            )
        self.shuffle_buffer = shuffle_buffer

    @property
    @abstractmethod
    def n_rows(self) -> int | None:
        """Number of rows; None while it is not known."""

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number of features."""

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


def as_source(X: Any) -> Source | None:
    """Return X as a source, None for what is in memory already."""
    if isinstance(X, Source):
        return X
    if isinstance(X, np.memmap) and X.ndim == 2:
        return ArraySource(X)
    if isinstance(X, DataLoader):
        raise TypeError("A DataLoader cuts batches itself: pass its dataset instead.")
    if isinstance(X, str | PathLike):
        raise TypeError(f"X is the path {str(X)!r}: is it ParquetSource({str(X)!r}, label=...)?")
    return DatasetSource(X) if isinstance(X, Dataset) else None


def _take(chunk: Any, index: NDArray[np.integer[Any]]) -> Any:
    return chunk[index] if isinstance(chunk, np.ndarray) else chunk.take(index)


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import pyarrow as pa

    return pa.concat_tables(parts)


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

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.X.shape[0])

    @property
    def n_columns(self) -> int:
        """Number of features."""
        return int(self.X.shape[1])

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield slices."""
        stop = len(self) if stop is None else stop
        for at in range(start, stop, self.chunk_rows):
            yield np.asarray(self.X[at : min(at + self.chunk_rows, stop)])

    def load(self) -> NDArray[Any]:
        """Return all rows; of a memmap without copying them."""
        return np.asarray(self.X[:])


class _Piece(NamedTuple):
    path: Path
    metadata: Any
    groups: list[int]
    n_rows: int


class ParquetSource(Source):
    """Rows of a Parquet file, of several, or of all Parquet files in a folder and its subfolders.

    Files are read in the order of their names, a row group at a time (small ones together), and
    with the columns that are needed. Numbers, booleans, text and categories may have missing
    values. Needs pyarrow: ``pip install robustclf[parquet]``.

    Parameters
    ----------
    path : path, or list of paths
        Of files or a folder.
    label : str, optional
        Column of the labels.
    columns : sequence of str, optional
        Columns of the features; all but ``label`` if None. The methods that predict read the
        columns that ``fit`` had, whatever else the file holds.
    shuffle_buffer : int or "auto", default="auto"
        As :class:`Source`. Row groups are read in random order, so it mixes rows of as many of
        them as fit in: sort the rows of a file by nothing, or write small row groups.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no Parquet file in the folder.
    ValueError
        If a file is no Parquet file or lacks a column (with the closest match), if columns differ
        between the files, or if there are no rows.
    ImportError
        If pyarrow is not installed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> from robustclf import ParquetSource, RobustClassifier
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "train.parquet")
    >>> colour, size = ["red", "blue"] * 200, list(range(400))
    >>> pq.write_table(pa.table({"colour": colour, "size": size, "kind": colour}), path)
    >>> source = ParquetSource(path, label="kind", shuffle_buffer=100)
    >>> source.shape, source.columns
    ((400, 2), ['colour', 'size'])
    >>> clf = RobustClassifier(random_state=0).fit(source)
    >>> clf.score(source, source.labels())
    1.0
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | PathLike[str] | Sequence[str | PathLike[str]],
        label: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        shuffle_buffer: int | str = "auto",
    ) -> None:
        super().__init__(shuffle_buffer)
        self.path = path
        self.label = label
        files = {file: _metadata(file) for file in _files(path)}
        schemas = {file: metadata.schema.to_arrow_schema() for file, metadata in files.items()}
        names = next(iter(schemas.values())).names
        self.columns = [name for name in names if name != label]
        if columns is not None:
            self.columns = list(columns)
        _check_schemas(schemas, self.columns if label is None else [*self.columns, label])
        self._pieces = [piece for file, meta in files.items() for piece in _pieces(file, meta)]
        self._bounds = np.cumsum([0, *(piece.n_rows for piece in self._pieces)])
        if not self.n_rows or not self.columns:
            raise ValueError(
                f"{path} has {self.n_rows} rows and {self.n_columns} columns of features: nothing "
                "to learn from."
            )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self._bounds[-1])

    @property
    def n_columns(self) -> int:
        """Number of features."""
        return len(self.columns)

    def bounds(self) -> NDArray[np.int64]:
        """Return where the row groups begin."""
        return self._bounds

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Yield arrow tables."""
        return self._read(self.columns, start, stop)

    def select(self, columns: Sequence[str]) -> ParquetSource:
        """Return the same rows with these columns."""
        return ParquetSource(self.path, columns=columns, shuffle_buffer=self.shuffle_buffer)

    def labels(self) -> NDArray[Any]:
        """Return the labels, a missing one as None.

        Returns
        -------
        labels : ndarray of shape (n_rows,)

        Raises
        ------
        ValueError
            If no column was named as ``label``.
        """
        if self.label is None:
            raise ValueError("Which column holds the labels? ParquetSource(path, label=...).")
        import pyarrow as pa

        tables = self._read([self.label])
        return _label_array(pa.chunked_array([c for t in tables for c in t.column(0).chunks]))

    def _read(self, columns: list[str], start: int = 0, stop: int | None = None) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        first, last = np.searchsorted(self._bounds, [start, len(self) if stop is None else stop])
        for piece in self._pieces[first:last]:
            with pq.ParquetFile(piece.path, metadata=piece.metadata) as file:
                batches = file.iter_batches(self.chunk_rows, piece.groups, columns)
                for batch in batches:
                    yield pa.Table.from_batches([batch]).select(columns)


def _files(path: Any) -> list[Path]:
    """Return the files that a path, or a list of paths, stands for."""
    if not isinstance(path, str | PathLike):
        return [file for one in path for file in _files(one)]
    path = Path(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not path.exists():
        what = "no Parquet file (*.parquet) in" if path.exists() else "no file or folder"
        raise FileNotFoundError(f"There is {what} {path}.")
    return files


def _metadata(file: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("ParquetSource needs pyarrow: pip install robustclf[parquet]") from error
    try:
        return pq.read_metadata(file)
    except pa.ArrowException as error:
        raise ValueError(f"{file} is not a whole Parquet file: {error}") from error


def _check_schemas(schemas: dict[Path, Any], columns: list[str]) -> None:
    """Raise ValueError unless all files have these columns, of the same types."""
    first = next(iter(schemas.values()))
    for file, schema in schemas.items():
        check_known(f"column of {file}", columns, schema.names)
        for name in columns:
            here, there = schema.field(name).type, first.field(name).type
            if here != there:
                raise ValueError(
                    f"Column {name!r} is of type {here} in {file} and of type {there} in "
                    f"{next(iter(schemas))}: write all files with one schema."
                )


def _pieces(file: Path, metadata: Any) -> Iterator[_Piece]:
    """Put neighbouring row groups together until they have PIECE_ROWS rows."""
    groups: list[int] = []
    n_rows = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        n_rows += metadata.row_group(group).num_rows
        if n_rows >= PIECE_ROWS or group == metadata.num_row_groups - 1:
            yield _Piece(file, metadata, groups, n_rows)
            groups, n_rows = [], 0


def _label_array(column: Any) -> NDArray[Any]:
    import pyarrow.types as t

    kinds = (t.is_integer, t.is_floating, t.is_boolean)
    if not column.null_count and any(kind(column.type) for kind in kinds):
        return np.asarray(column.to_numpy())
    if t.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode().combine_chunks()  # each label is one object
    values = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    labels: NDArray[Any] = values[encoded.indices.fill_null(len(values) - 1).to_numpy()]
    return labels


class DatasetSource(Source):
    """Items ``(x, y)`` of a torch ``Dataset`` or ``IterableDataset``, x a row of numbers.

    A dataset given to ``fit`` is taken for one without being asked. Before training, one pass reads
    the labels, unless ``fit(dataset, y)`` has them; items may be ``x`` alone then.
    A ``Dataset`` with ``__getitems__`` is asked for many items at once.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        An ``IterableDataset`` must give the same rows in the same order in every pass; leave the
        shuffling to ``shuffle_buffer``.
    shuffle_buffer : int or "auto", default="auto"
        As :class:`Source`.

    Raises
    ------
    ValueError
        If items are not pairs, if rows differ in length, or if a pass over an ``IterableDataset``
        gives other rows than the first one.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from robustclf import DatasetSource, RobustClassifier
    >>> x = torch.randn(1_000, 3, generator=torch.Generator().manual_seed(0))
    >>> dataset = TensorDataset(x, (x[:, 0] > 0).long())
    >>> source = DatasetSource(dataset, shuffle_buffer=200)
    >>> clf = RobustClassifier(random_state=0).fit(source)
    >>> clf.score(dataset, source.labels()) > 0.95
    True
    """

    def __init__(self, dataset: Any, *, shuffle_buffer: int | str = "auto") -> None:
        super().__init__(shuffle_buffer)
        self.dataset = dataset
        self.once = isinstance(dataset, IterableDataset)  # read from its beginning to its end
        self._n_rows = None if self.once else len(dataset)
        self._n_columns: int | None = None
        self._labels: NDArray[Any] | None = None

    @property
    def n_rows(self) -> int | None:
        """Number of rows; of an ``IterableDataset`` known after a pass, or told."""
        return self._n_rows

    @n_rows.setter
    def n_rows(self, n: int) -> None:
        self._n_rows = n

    @property
    def n_columns(self) -> int:
        """Number of features, those of the first item."""
        if self._n_columns is None:
            first = next(self._items(1, 0, 1), None)
            if not first:
                raise ValueError(f"{self.dataset!r} has no items: nothing to learn from.")
            self._n_columns = len(_row(first[0]))
        return self._n_columns

    def bounds(self) -> NDArray[np.int64]:
        """Return where pieces begin; an ``IterableDataset`` is one."""
        return np.array([0, len(self)]) if self.once else super().bounds()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield the rows of items, stacked."""
        at = start
        for items in self._items(self.chunk_rows, start, stop):
            if self.once and self._labels is not None:
                self._check_order(_labels(items), at)
            yield self._stacked(items, at)
            at += len(items)
        if self.once and self.n_rows not in (None, at):
            raise ValueError(
                f"{self.dataset!r} gave {at} rows in this pass instead of {self.n_rows}: each pass "
                "must give the same rows in the same order."
            )

    def labels(self) -> NDArray[Any]:
        """Read the labels in one pass.

        Returns
        -------
        labels : ndarray of shape (n_rows,)

        Raises
        ------
        ValueError
            If an item is no pair ``(x, y)``.
        """
        parts = [_labels(items) for items in self._items(self.chunk_rows)]
        self._labels = np.array([label for part in parts for label in part])
        self._n_rows = len(self._labels)
        return self._labels

    def _items(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[list[Any]]:
        """Yield ``size`` items at a time."""
        if self.once:
            items = iter(self.dataset)
            while part := list(islice(items, size)):
                yield part
            return
        stop = len(self) if stop is None else min(stop, len(self))
        many = getattr(self.dataset, "__getitems__", lambda rows: [self.dataset[i] for i in rows])
        for at in range(start, stop, size):
            yield list(many(list(range(at, min(at + size, stop)))))

    def _stacked(self, items: list[Any], at: int) -> NDArray[Any]:
        rows = [_row(item) for item in items]
        wrong = [i for i, row in enumerate(rows) if len(row) != self.n_columns]
        if wrong:
            raise ValueError(
                f"Row {at + wrong[0]} of {self.dataset!r} has {len(rows[wrong[0]])} features, the "
                f"first row has {self.n_columns}."
            )
        if isinstance(rows[0], Tensor):
            return torch.stack(rows).cpu().numpy()
        return np.stack(rows)

    def _check_order(self, labels: list[Any], at: int) -> None:
        assert self._labels is not None
        former = self._labels[at : at + len(labels)]
        now = np.array(labels, dtype=former.dtype)
        same = (now == former[: len(now)]) | (now != now) if len(former) == len(now) else False
        if not np.all(same):
            raise ValueError(
                f"The labels of {self.dataset!r} from row {at} on differ from those of the first "
                "pass: each pass must give the same rows in the same order. Leave the shuffling to "
                "DatasetSource(dataset, shuffle_buffer=...)."
            )


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and np.ndim(item[0]) > 0


def _row(item: Any) -> Any:
    row = item[0] if _is_pair(item) else item
    row = row if isinstance(row, Tensor) else np.asarray(row)
    if row.ndim != 1:
        raise ValueError(f"An item must be (x, y) or x, a vector of numbers, got {item!r}.")
    return row


def _labels(items: list[Any]) -> list[Any]:
    wrong = [item for item in items if not _is_pair(item)]
    if wrong:
        raise ValueError(f"An item must be (x, y), x a vector of numbers, got {wrong[0]!r}.")
    return [y.item() if hasattr(y, "item") else y for _, y in items]
