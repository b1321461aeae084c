"""Columns that a classifier reads: numbers and text, always read alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustclf.cli.files import InputError
from robustclf.cli.tables import Table

MOSTLY = 0.9  # of the cells must be numbers for the others to be missing numbers
ENOUGH = 10_000  # cells that tell text from numbers
FEW_ROWS_A_VALUE = 2  # text with fewer rows for each of its values, on average, teaches nothing


@dataclass(frozen=True)
class Features:
    """Which columns a classifier reads, and how; kept with it.

    Attributes
    ----------
    kinds : dict of str to str
        ``"number"`` or ``"text"`` for each column.

    Examples
    --------
    >>> frame = pd.DataFrame({"size": ["1", "?", "3"], "kind": ["a", "b", "a"], "id": [1, 2, 3]})
    >>> Features({"size": "number", "kind": "text"}).of(frame)
       size kind
    0   1.0    a
    1   NaN    b
    2   3.0    a
    """

    kinds: dict[str, str]

    @property
    def text(self) -> list[str]:
        """Columns of text."""
        return [name for name, kind in self.kinds.items() if kind == "text"]

    def of(self, frame: Any) -> Any:
        """Return the columns of a chunk, numbers as float32 and text as it is."""
        columns = {
            name: frame[name] if kind == "text" else _numbers(frame[name])
            for name, kind in self.kinds.items()
        }
        return pd.DataFrame(columns, index=frame.index)

    def read(self, table: Table, rows: NDArray[np.intp]) -> Any:
        """Return these rows of a table, numbers as float32 and text as categories."""
        parts, start = [], 0
        for chunk in table.chunks(list(self.kinds), text=self.text):
            first, last = np.searchsorted(rows, [start, start + len(chunk)])
            parts.append(self.of(chunk.iloc[rows[first:last] - start]))
            start += len(chunk)
        if len(rows) and start <= rows[-1]:
            raise InputError(f"{table.path} has changed while it was read")
        return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(self.text, "category"))

    def useful(self, X: Any, rows: NDArray[np.intp]) -> tuple[Self, dict[str, str]]:
        """Return the columns that can teach something, and of the others why they cannot."""
        reasons = {name: _useless(X[name], rows) for name in self.kinds}
        dropped = {name: reason for name, reason in reasons.items() if reason}
        kept = {name: kind for name, kind in self.kinds.items() if name not in dropped}
        return replace(self, kinds=kept), dropped


def _numbers(column: Any) -> NDArray[np.float32]:
    if not _is_number(column):
        column = pd.to_numeric(column.astype(str), errors="coerce")
    with np.errstate(over="ignore"):
        values = column.to_numpy(dtype=np.float32, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _is_number(column: Any) -> bool:
    """Tell whether pandas read numbers: "True" and "False" are none, alone or among others."""
    kinds = pd.api.types
    return bool(kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column))


def _useless(column: Any, rows: NDArray[np.intp]) -> str | None:
    n_values = column.nunique()
    if n_values < 2 and (n_values == 0 or column.notna().all()):
        return "it is the same in all rows" if n_values else "it is empty"
    if column.dtype == "category":
        few = n_values * FEW_ROWS_A_VALUE > column.notna().sum()
        return f"it is text with {n_values:,} values in {len(column):,} rows" if few else None
    counts_rows = len(rows) > 2 and bool(np.ptp(column.to_numpy(np.float64) - rows) == 0)
    return "it counts the rows" if counts_rows else None


class Kinds:
    """Finds the kind of each column while the chunks of a table go by."""

    def __init__(self, names: list[str]) -> None:
        self.filled = dict.fromkeys(names, 0)
        self.numbers = dict.fromkeys(names, 0)
        self.other: dict[str, str] = {}  # an example of what is no number
        self.infinite: dict[str, int] = {}

    def see(self, chunk: Any) -> None:
        """Count the numbers among the cells of a chunk."""
        for name in self.filled:
            filled = chunk[name].dropna()
            known = self._is_text(name)
            self.filled[name] += len(filled)
            if known:
                continue
            if not _is_number(filled):
                values = pd.to_numeric(filled.astype(str), errors="coerce")
                if values.isna().any():
                    self.other.setdefault(name, str(filled[values.isna()].iloc[0]))
                filled = values.dropna()
            self.numbers[name] += len(filled)
            infinite = int(np.isinf(filled.to_numpy(dtype=np.float64)).sum())
            self.infinite[name] = self.infinite.get(name, 0) + infinite

    def _is_text(self, name: str) -> bool:
        """Tell whether the chunks before leave no doubt, as a closer look takes time."""
        return self.filled[name] > ENOUGH and self.numbers[name] < 0.5 * self.filled[name]

    def features(self) -> tuple[Features, list[str]]:
        """Return the kinds, and what a person should know of them."""
        kinds, notes = {}, []
        for name, filled in self.filled.items():
            number = self.numbers[name] >= MOSTLY * filled
            kinds[name] = "number" if number else "text"
            odd = filled - self.numbers[name]
            if number and odd:
                notes.append(
                    f"column {name!r}: {odd:,} of {filled:,} cells are not numbers, such as "
                    f"{self.other[name]!r}; they count as missing"
                )
            if number and self.infinite.get(name):
                notes.append(
                    f"column {name!r}: {self.infinite[name]:,} infinite cells count as missing"
                )
        return Features(kinds), notes
