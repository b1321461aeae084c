"""CSV and Parquet files, read chunk by chunk, and rows written as CSV."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import lzma
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import pandas as pd

from robustclf._registry import closest
from robustclf.cli.files import InputError, check_file

CELLS = 1_000_000  # of a chunk
SEPARATORS = ",;\t|"
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MISSING = ["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>", "?"]
FOREIGN = {  # first bytes of what is no table
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "compressed by gzip, but its name does not end in .gz",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "HTML or XML",
}


class Table(Protocol):
    """A file whose rows come in chunks."""

    path: Path
    names: list[str]

    def chunks(
        self, columns: Sequence[str], text: Sequence[str] = (), exact: Sequence[str] = ()
    ) -> Iterator[Any]:
        """Yield data frames with ``columns``.

        Those in ``text`` and ``exact`` are strings, as they are in the file; of the others pandas
        finds the type. In ``exact`` nothing but an empty cell is missing; there it may be "".
        """


def open_table(path: Path, encoding: str = "utf-8") -> Table:
    """Open a CSV or Parquet file, told apart by its content.

    Raises
    ------
    InputError
        If there is no such file or it is no table, with what it seems to be.
    """
    check_file(path)
    with _reading(path), OPENERS.get(path.suffix, open)(path, "rb") as handle:
        start: bytes = handle.read(2**16)
    if start.startswith(b"PAR1"):
        return ParquetTable(path)
    bare = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = next((kind for first, kind in FOREIGN.items() if bare.startswith(first)), None)
    if kind is None and b"\0" in start and not _codec(encoding).startswith(("utf-16", "utf-32")):
        kind = "binary"
    if kind is not None or not bare:
        raise InputError(
            f"{path} is not a table but {kind or 'empty'}: give a CSV or a Parquet file"
        )
    return CsvTable(path, encoding)


def _codec(encoding: str) -> str:
    """Return the one name of an encoding that has several; an unknown one shows when it is used."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return encoding


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the readers raise into sentences."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells beyond the columns
            yield
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is not a table but empty: give a CSV or Parquet file") from error
    except UnicodeError as error:
        raise InputError(
            f"{path} is not text in this encoding ({error}): give its --encoding, such as cp1252 "
            "for a file that Excel wrote"
        ) from error
    except LookupError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except pd.errors.ParserWarning as error:
        raise InputError(
            f"{path} is not a table: some row has more cells than the header has columns"
        ) from error
    except (pd.errors.ParserError, gzip.BadGzipFile, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{path} is not a table: {error}".rstrip()) from error


def chunk_rows(n_columns: int) -> int:
    """Return the rows of a chunk."""
    return max(CELLS // max(n_columns, 1), 100)


class CsvTable:
    """Text with one row a line; the separator is the one that splits the header most."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.encoding = encoding
        with _reading(path):
            headers = {sep: self._header(sep) for sep in SEPARATORS}
            with self._open() as handle:
                self.line_end = "\r\n" if handle.readline().endswith("\r\n") else "\n"
        self.separator = max(headers, key=lambda sep: len(headers[sep][1]))
        self.n_blank, self.header = headers[self.separator]
        names = (name.strip() for name in self.header)
        self.names = [name or f"column {i}" for i, name in enumerate(names, start=1)]
        _check_names(path, self.names)

    def _open(self) -> TextIO:
        encoding = "utf-8-sig" if _codec(self.encoding) == "utf-8" else self.encoding
        opener = OPENERS.get(self.path.suffix, open)
        handle: TextIO = opener(self.path, "rt", encoding=encoding, newline="")
        return handle

    def _header(self, separator: str) -> tuple[int, list[str]]:
        """Return the first row with anything in it, and how many are before it."""
        with self._open() as handle:
            rows = csv.reader(handle, delimiter=separator)
            try:
                return next(
                    (n, row) for n, row in enumerate(rows) if any(cell.strip() for cell in row)
                )
            except csv.Error as error:
                raise InputError(f"{self.path} is not a table: {error}") from error

    def chunks(
        self, columns: Sequence[str], text: Sequence[str] = (), exact: Sequence[str] = ()
    ) -> Iterator[Any]:
        """Yield data frames, of whole rows that are read: only these show cells too many."""
        whole = len(columns) == len(self.names)
        with _reading(self.path):
            reader = pd.read_csv(
                self.path,
                sep=self.separator,
                encoding=self.encoding,
                names=self.names,
                skiprows=self.n_blank,
                header=0,
                index_col=False,
                dtype=dict.fromkeys([*text, *exact], str),
                keep_default_na=False,
                na_values={name: MISSING for name in columns if name not in exact},
                chunksize=chunk_rows(len(self.names)),
                low_memory=False,
            )
        with reader:
            while True:
                with _reading(self.path):
                    chunk = next(reader, None)
                if chunk is None:
                    return
                if not whole:
                    chunk = chunk[list(columns)]
                yield chunk
                del chunk  # before the next is read


class _Lines:
    """A text file that gives the lines of a csv writer, one a call, an end of its own."""

    def __init__(self, handle: TextIO, end: str) -> None:
        self.handle = handle
        self.end = end

    def write(self, line: str) -> int:
        return self.handle.write(line.removesuffix("\r\n") + self.end)


def write_rows(rows: Any, handle: TextIO, line_end: str = "\n", **how: Any) -> None:
    r"""Write a data frame as CSV, with quotes around cells that hold a line end of any kind.

    A csv writer quotes only the characters of its own: beyond "\n", a "\r" would end the row.

    Examples
    --------
    >>> import io
    >>> handle = io.StringIO()
    >>> write_rows(pd.DataFrame({"a": ["first\rsecond"], "b": [1]}), handle)
    >>> handle.getvalue()
    'a,b\n"first\rsecond",1\n'
    """
    rows.to_csv(_Lines(handle, line_end), lineterminator="\r\n", index=False, **how)


def save_rows(rows: Any, path: Path) -> None:
    """Write a data frame into a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        write_rows(rows, handle)


class ParquetTable:
    """A Parquet file; columns of nested or binary values are left out."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self.schema = file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a whole Parquet file: {error}") from error
        self.names = [str(name) for name in self.schema.names]
        _check_names(path, self.names)

    def unreadable(self) -> list[str]:
        """Return the columns that are neither numbers nor text."""
        import pyarrow.types as t

        kinds = (t.is_nested, t.is_binary, t.is_large_binary, t.is_fixed_size_binary)
        return [field.name for field in self.schema if any(kind(field.type) for kind in kinds)]

    def chunks(
        self, columns: Sequence[str], text: Sequence[str] = (), exact: Sequence[str] = ()
    ) -> Iterator[Any]:
        """Yield data frames."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(chunk_rows(len(columns)), columns=list(columns)):
                    arrays = {
                        name: _plain(batch.column(name), name in text, name in exact).to_pandas()
                        for name in columns
                    }
                    del batch
                    yield pd.DataFrame(arrays, copy=False)
                    del arrays
        except pa.ArrowException as error:
            raise InputError(f"{self.path} cannot be read: {error}") from error


def _plain(array: Any, text: bool, exact: bool) -> Any:
    """Return an arrow array as strings, or what counts time or has decimals as numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as t

    if t.is_dictionary(array.type):
        array = array.dictionary_decode()
    if t.is_boolean(array.type) and not exact:
        return pc.if_else(array, "True", "False")  # as pandas writes them into a CSV file
    if text or exact:
        return array.cast(pa.string())
    if t.is_temporal(array.type):
        return array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64())
    return array.cast(pa.float64()) if t.is_decimal(array.type) else array


def _check_names(path: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]!r} more than once: rename one of them")


def check_column(table: Table, name: str, option: str) -> None:
    """Raise an InputError unless the table has the column that an option names."""
    if name not in table.names:
        shown = ", ".join(map(repr, table.names[:20])) + (", ..." if len(table.names) > 20 else "")
        raise InputError(
            f"{table.path} has no column {name!r} for {option}: it has {shown}"
            f"{closest(name, table.names)}"
        )
