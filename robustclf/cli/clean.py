"""A table with its suspicious labels pruned or corrected, and the log of what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustclf.cli.audit import Audit
from robustclf.cli.files import InputError
from robustclf.cli.tables import CsvTable, ParquetTable, chunk_rows, write_rows

ACTIONS = ("prune", "relabel")
SUFFIXES = {CsvTable: (".csv", ".tsv", ".txt"), ParquetTable: (".parquet", ".pq")}


def check_suffix(table: Any, out: Path) -> None:
    """Raise an InputError if the name of the output promises another format than the input's."""
    allowed = SUFFIXES[type(table)]
    if out.suffix.lower() not in allowed:
        raise InputError(
            f"{out} would have the format of {table.path}: name it with one of {', '.join(allowed)}"
        )


def chosen(audit: Audit, threshold: float | None) -> NDArray[np.intp]:
    """Return the rows to change, the most suspicious first.

    As many as labels are estimated to be wrong, none where the test sees no noise; with a
    threshold all rows at least that probably wrong.
    """
    ranking = audit.ranking
    if threshold is None:
        return ranking[: audit.n_wrong]
    return ranking[audit.probability[ranking] >= threshold]


def change_log(audit: Audit, rows: NDArray[np.intp], action: str) -> Any:
    """Return a data frame with what happens to each row, in the order of the table."""
    return audit.issues(np.sort(rows)).assign(action=action)


def write_clean(audit: Audit, rows: NDArray[np.intp], action: str, out: Path) -> int:
    """Write the table without, or with other labels of, these rows; return how many rows it has.

    All other cells are as they were.
    """
    new = np.full(len(audit.source.codes), -1, dtype=np.int32)
    new[rows] = audit.suggested[rows]
    table = audit.source.table
    write = _write_parquet if isinstance(table, ParquetTable) else _write_csv
    return write(audit, new, action == "prune", out)


def _write_csv(audit: Audit, new: NDArray[np.int32], prune: bool, out: Path) -> int:
    table, label = audit.source.table, audit.source.label
    assert isinstance(table, CsvTable)
    start = n_written = 0
    with out.open("w", encoding=table.encoding, newline="") as handle:
        write_rows(pd.DataFrame(columns=table.header), handle, table.line_end, sep=table.separator)
        for chunk in table.chunks(table.names, exact=table.names):
            codes = new[start : start + len(chunk)]
            start += len(chunk)
            if prune:
                chunk = chunk[codes < 0]
            elif (codes >= 0).any():
                given = chunk[label].to_numpy(dtype=object)
                chunk[label] = np.where(codes < 0, given, audit.source.spelling[codes])
            write_rows(chunk, handle, table.line_end, sep=table.separator, header=False)
            n_written += len(chunk)
    return n_written


def _write_parquet(audit: Audit, new: NDArray[np.int32], prune: bool, out: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, label = audit.source.table, audit.source.label
    assert isinstance(table, ParquetTable)
    place = table.names.index(label)
    start = n_written = 0
    with pq.ParquetFile(table.path) as file, pq.ParquetWriter(out, table.schema) as writer:
        for batch in file.iter_batches(chunk_rows(len(table.names))):
            codes = new[start : start + len(batch)]
            start += len(batch)
            if prune:
                batch = batch.filter(pa.array(codes < 0))
            else:
                field = table.schema.field(label)
                known = pa.array(audit.source.spelling.tolist(), pa.string())
                values = known.take(pa.array(codes, mask=codes < 0))
                labels = _filled(values, batch.column(place))
                batch = batch.set_column(place, field, labels)
            writer.write_batch(batch)
            n_written += len(batch)
    return n_written


def _filled(values: Any, given: Any) -> Any:
    """Return text, the given labels where it is null, in their type and with all its categories."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as t

    kind = given.type
    if not t.is_dictionary(kind):
        return pc.coalesce(values.cast(kind), given)
    labels = pc.coalesce(values.cast(kind.value_type), given.dictionary_decode())
    known = pa.concat_arrays([given.dictionary, labels]).unique().drop_null()
    places = pc.index_in(labels, known).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(places, known, ordered=kind.ordered)
