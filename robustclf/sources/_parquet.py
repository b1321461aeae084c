"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustclf._registry import check_known
from robustclf.sources import _base
from robustclf.sources._base import Source


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
        between the files, if one is given twice or is the label, or if there are no files or rows.
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
        if not files:
            raise ValueError(f"path must be a file, a folder or a list of some, got {path}.")
        schemas = {file: metadata.schema.to_arrow_schema() for file, metadata in files.items()}
        names = next(iter(schemas.values())).names
        self.columns = [name for name in names if name != label]
        if columns is not None:
            self.columns = list(columns)
        needed = self.columns if label is None else [*self.columns, label]
        if len(set(needed)) < len(needed):
            raise ValueError(
                f"columns must be distinct and without the label {label!r}, got {self.columns}."
            )
        _check_schemas(schemas, needed)
        self._pieces = [piece for file, meta in files.items() for piece in _pieces(file, meta)]
        self._bounds = np.cumsum([0, *(piece.n_rows for piece in self._pieces)])
        self.n_rows, self.n_columns = int(self._bounds[-1]), len(self.columns)
        if not self.n_rows or not self.columns:
            raise ValueError(
                f"{path} has {self.n_rows} rows and {self.n_columns} columns of features: nothing "
                "to learn from."
            )

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
        if n_rows >= _base.PIECE_ROWS or group == metadata.num_row_groups - 1:
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
