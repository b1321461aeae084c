"""Models of tables: a classifier with the columns it reads, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

import robustclf
from robustclf.classifier import RobustClassifier
from robustclf.cli.audit import Settings, Training, classifier, fit, prepare
from robustclf.cli.features import Features
from robustclf.cli.files import InputError, check_file
from robustclf.cli.tables import CsvTable, Table, check_column, write_rows


@dataclass(frozen=True)
class TableModel:
    """A fitted classifier and how to read a table for it.

    Attributes
    ----------
    classifier : RobustClassifier
    features : Features
        The columns it was fitted to.
    label : str
        The column of the labels.
    version : str
        Of robustclf, when it was fitted.
    """

    classifier: RobustClassifier
    features: Features
    label: str
    version: str


def fit_model(
    path: Path, label: str, settings: Settings, recipe: str | None = None, **params: Any
) -> tuple[TableModel, Training]:
    """Fit a classifier to a table.

    Raises
    ------
    InputError
        If the table, its labels or its columns cannot be worked with.
    """
    training = prepare(path, label, settings, keep_unlabelled=True)
    clf = classifier(settings, recipe, **params)
    fit(clf, training.X, training.labels, training.notes)
    return TableModel(clf, training.features, label, robustclf.__version__), training


def load_model(path: Path) -> TableModel:
    """Load a model that ``robustclf fit`` wrote.

    Raises
    ------
    InputError
        If the file holds anything else.
    """
    check_file(path)
    try:
        model = joblib.load(path)
    except Exception as error:  # what is no pickle may raise anything
        raise InputError(f"{path} is not a model: {type(error).__name__}: {error}") from error
    if not isinstance(model, TableModel):
        raise InputError(
            f"{path} holds a {type(model).__name__}, not a model that `robustclf fit` wrote"
        )
    return model


def write_predictions(
    model: TableModel, table: Table, out: Path, row_id: str | None = None, *, proba: bool = False
) -> int:
    """Write the prediction of each row as CSV, chunk by chunk; return how many rows there are.

    Raises
    ------
    InputError
        If the table lacks columns of the model.
    """
    features = model.features
    for name in features.kinds:
        check_column(table, name, "the model")
    ids: Sequence[str] = () if row_id is None else (row_id,)
    for name in ids:
        check_column(table, name, "--id")
    apart = [name for name in ids if name not in features.kinds]
    # an id may be a feature too: a number is then told from its text, other cells are read as one
    numbers = [name for name in ids if features.kinds.get(name) == "number"]
    exact = [*apart, *(numbers if isinstance(table, CsvTable) else [])]
    n = 0
    with out.open("w", encoding="utf-8", newline="") as handle:
        for chunk in table.chunks([*features.kinds, *apart], text=features.text, exact=exact):
            row_ids = np.arange(n, n + len(chunk)) + 1 if row_id is None else chunk[row_id]
            frame = _predictions(model, chunk, row_ids, proba)
            write_rows(frame, handle, header=n == 0)
            n += len(chunk)
    if not n:
        raise InputError(f"{table.path} has columns but no rows")
    return n


def _predictions(model: TableModel, chunk: Any, ids: Any, proba: bool) -> Any:
    classes = model.classifier.classes_
    p = model.classifier.predict_proba(model.features.of(chunk))
    columns = {
        "id": np.asarray(ids),
        "predicted": classes[p.argmax(axis=1)],
        "probability": p.max(axis=1).astype(float).round(4),
    }
    if proba:
        each = p.astype(float).round(4).T
        columns |= {f"proba_{name}": values for name, values in zip(classes, each, strict=True)}
    return pd.DataFrame(columns)
