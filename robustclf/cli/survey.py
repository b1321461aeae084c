"""The first pass through a table: labels, ids and the kinds of its columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from robustclf.cli.features import Features, Kinds
from robustclf.cli.files import InputError
from robustclf.cli.tables import MISSING, ParquetTable, Table, check_column

UNLABELLED = -1
ROWS_OF_A_CLASS = 5  # that a sample has at least: one for each fold
MOST_CLASSES = 1_000
ROWS_PER_CLASS = 2  # on average; with fewer, the labels are no classes


@dataclass(frozen=True)
class Survey:
    """What one pass through a table finds.

    Attributes
    ----------
    table : Table
    label : str
        The column of the labels.
    id : str or None
        The column of the ids; None numbers the rows from 1.
    classes : ndarray of str of shape (n_classes,)
        Sorted labels, without the spaces around them.
    spelling : ndarray of str of shape (n_classes,)
        What most cells of each class hold, spaces included.
    codes : ndarray of shape (n_rows,)
        Place of each label in ``classes``; -1 for rows without label.
    ids : ndarray or pandas array of shape (n_rows,)
    features : Features
        All other columns that are not dropped by name.
    notes : list of str
    """

    table: Table
    label: str
    id: str | None
    classes: NDArray[Any]
    spelling: NDArray[Any]
    codes: NDArray[np.int32]
    ids: Any
    features: Features
    notes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> NDArray[np.intp]:
        """Numbers of the rows that have a label."""
        return np.flatnonzero(self.codes != UNLABELLED)

    def sample(self, size: int, seed: int) -> NDArray[np.intp]:
        """Draw labelled rows, five of each class or what there are among them; sorted."""
        rows = self.labelled
        if len(rows) <= size:
            return rows
        rows = check_random_state(seed).permutation(rows)
        place = pd.Series(self.codes[rows]).groupby(self.codes[rows]).cumcount().to_numpy()
        first = np.argsort(place >= ROWS_OF_A_CLASS, kind="stable")
        needed = int((place < ROWS_OF_A_CLASS).sum())
        if needed > size:
            raise InputError(
                f"--max-rows {size} is too few for {len(self.classes)} classes: give at least "
                f"{needed}"
            )
        return np.sort(rows[first[:size]])

    def unlabelled(self, size: int, seed: int) -> NDArray[np.intp]:
        """Draw rows without label, or take what there are."""
        rows = np.flatnonzero(self.codes == UNLABELLED)
        return rows if len(rows) <= size else check_random_state(seed).permutation(rows)[:size]


def survey(
    table: Table, label: str, row_id: str | None = None, drop: tuple[str, ...] = ()
) -> Survey:
    """Go through a table once.

    Raises
    ------
    InputError
        If a column is missing, an id repeats or the labels are no classes.
    """
    _check_columns(table, label, row_id, drop)
    apart = [label] if row_id is None else [label, row_id]
    unreadable = table.unreadable() if isinstance(table, ParquetTable) else []
    names = [name for name in table.names if name not in (*apart, *drop, *unreadable)]
    kinds, ids = Kinds(names), _Ids(table, row_id or "")
    parts: list[NDArray[np.int32]] = []
    known: dict[str, int] = {}
    cells: Counter[tuple[str, str]] = Counter()
    wanted = table.names if not unreadable else [*apart, *names]
    for chunk in table.chunks(wanted, exact=apart):
        if row_id is not None:
            ids.add(chunk[row_id], start=sum(map(len, parts)))
        parts.append(_codes(chunk[label], known, cells))
        kinds.see(chunk)
        del chunk
        if len(known) > MOST_CLASSES:
            raise InputError(
                f"column {label!r} of {table.path} has more than {MOST_CLASSES:,} different "
                "values: they are no classes"
            )
    classes, codes = _sorted(known, parts)
    _check_classes(table, label, classes, codes)
    most = {name: cell for (name, cell), _ in reversed(cells.most_common())}
    spelling = np.array([most[name] for name in classes], dtype=object)
    row_ids = np.arange(1, len(codes) + 1) if row_id is None else ids.checked()
    features, notes = kinds.features()
    notes += [f"column {name!r} is neither numbers nor text: left out" for name in unreadable]
    notes += [
        f"the label {name!r} is taken for a class; a row without label has an empty cell"
        for name in classes.tolist()
        if name in MISSING
    ]
    return Survey(table, label, row_id, classes, spelling, codes, row_ids, features, notes)


def _check_columns(table: Table, label: str, row_id: str | None, drop: tuple[str, ...]) -> None:
    check_column(table, label, "--label")
    for name in drop:
        check_column(table, name, "--drop")
    if row_id is not None:
        check_column(table, row_id, "--id")
        if row_id == label:
            raise InputError(f"{label!r} cannot be both --label and --id")


def _sorted(
    known: dict[str, int], parts: list[NDArray[np.int32]]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the sorted classes, and the labels as places among them."""
    classes = np.array(sorted(known), dtype=object)
    places = np.full(len(known) + 1, UNLABELLED, dtype=np.int32)  # the last is that of no label
    places[[known[name] for name in classes]] = np.arange(len(classes))
    return classes, places[np.concatenate(parts) if parts else []]


def _codes(
    column: Any, known: dict[str, int], cells: Counter[tuple[str, str]]
) -> NDArray[np.int32]:
    """Return the number of each label in the order of ``known``, which grows; -1 for none.

    A label is a cell without the spaces around it; ``cells`` counts them, ``(label, cell)``.
    """
    places, values = pd.factorize(column.fillna("").astype(str))
    labels = [str(value).strip() for value in values]
    cells.update(dict(zip(zip(labels, values, strict=True), np.bincount(places), strict=True)))
    number = [known.setdefault(v, len(known)) if v else UNLABELLED for v in labels]
    codes: NDArray[np.int32] = np.array(number, dtype=np.int32)[places]
    return codes


def _check_classes(
    table: Table, label: str, classes: NDArray[Any], codes: NDArray[np.int32]
) -> None:
    n = int((codes != UNLABELLED).sum())
    where = f"column {label!r} of {table.path}"
    if not len(codes):
        raise InputError(f"{table.path} has columns but no rows")
    if not n:
        raise InputError(f"{where} is empty in all {len(codes):,} rows: nothing to learn from")
    if len(classes) < 2:
        raise InputError(f"{where} has one class only, {str(classes[0])!r}: it takes two")
    if n < ROWS_PER_CLASS * len(classes):
        raise InputError(
            f"{where} has {len(classes):,} different values in {n:,} rows: they are no classes"
        )


class _Ids:
    """Ids of the chunks, none of which may be empty or there twice."""

    def __init__(self, table: Table, column: str) -> None:
        self.what = f"column {column!r} of {table.path} cannot be the --id"
        self.parts: list[Any] = []
        self.hashes: list[NDArray[np.uint64]] = []
        self.empty: list[int] = []

    def add(self, ids: Any, start: int) -> None:
        """Take the ids of a chunk whose first row has the number ``start``."""
        self.empty += (np.flatnonzero(ids.isna() | (ids == "")) + start).tolist()
        self.hashes.append(pd.util.hash_pandas_object(ids, index=False).to_numpy())
        self.parts.append(ids.reset_index(drop=True))

    def checked(self) -> Any:
        """Return all ids; a hash table of them all would take ten times the memory."""
        if self.empty:
            raise InputError(
                f"{self.what}: it is empty in {len(self.empty):,} rows, the first is row "
                f"{self.empty[0] + 1}"
            )
        hashes = np.concatenate(self.hashes)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        ids = pd.concat(self.parts, ignore_index=True)
        doubtful = ids.iloc[np.unique(order[np.concatenate([same, same + 1])])]
        repeated = doubtful[doubtful.duplicated(keep=False)]
        if len(repeated):
            value = repeated.iloc[0]
            first, second = repeated.index[repeated == value][:2] + 1
            raise InputError(
                f"{self.what}: {value!r} is in rows {first} and {second}, and "
                f"{repeated.duplicated().sum():,} rows repeat an id"
            )
        return ids.to_numpy() if ids.dtype == object else ids.array
