"""How many labels of a table are wrong, and which."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from robustclf.classifier import RobustClassifier
from robustclf.cli.features import Features
from robustclf.cli.files import InputError
from robustclf.cli.survey import UNLABELLED, Survey, survey
from robustclf.cli.tables import open_table
from robustclf.noise import (
    LabelIssues,
    NoiseRate,
    TrainingDynamics,
    TransitionEstimate,
    estimate_transition,
    find_label_issues,
    is_noisy,
    noise_rate,
)

FEWEST_ROWS = 20
LARGE = 10_000  # rows beyond which fewer folds and shorter training rank labels hardly worse
SCORED = 50_000  # rows that are scored together


@dataclass(frozen=True)
class Settings:
    """How to read a table and fit a classifier to it."""

    encoding: str = "utf-8"
    row_id: str | None = None
    drop: tuple[str, ...] = ()
    max_rows: int = 200_000
    max_epochs: int | None = None
    seed: int = 0
    device: str = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class Training:
    """The rows and columns that a classifier is fitted to.

    Attributes
    ----------
    source : Survey
    rows : ndarray of shape (n_rows,)
        Numbers of the rows in the table.
    features : Features
    X : data frame of shape (n_rows, n_features)
    notes : list of str
    """

    source: Survey
    rows: NDArray[np.intp]
    features: Features
    X: Any
    notes: list[str]

    @property
    def codes(self) -> NDArray[np.int32]:
        """Labels of the rows, as places among the classes."""
        return self.source.codes[self.rows]

    @property
    def labels(self) -> NDArray[np.object_]:
        """Labels of the rows; None where there is none."""
        return np.array([*self.source.classes, None], dtype=object)[self.codes]


@dataclass(frozen=True)
class Pair:
    """Labels of one true class that were given as another."""

    true: str
    given: str
    share: float
    low: float
    high: float
    issues: int


@dataclass(frozen=True)
class Audit:
    """What an audit finds.

    Attributes
    ----------
    source : Survey
    training : Training
    rate : NoiseRate
    blind : bool
        Whether the predictions are no better than guesses: then nothing is known of the labels.
    noisy : bool
        Whether the test sees more wrong labels than are worth a thought; never where it is blind.
    transition : TransitionEstimate
    probability : ndarray of shape (n_rows,)
        That the label is wrong, of each row of the table; nan without label.
    suggested : ndarray of shape (n_rows,)
        Place of the most probable other class.
    quality : ndarray of shape (n_training_rows,)
        Out-of-fold probability of the label.
    dynamics : TrainingDynamics or None
    """

    source: Survey
    training: Training
    rate: NoiseRate
    blind: bool
    noisy: bool
    transition: TransitionEstimate
    probability: NDArray[np.float32]
    suggested: NDArray[np.int32]
    quality: NDArray[np.floating]
    dynamics: TrainingDynamics | None

    @property
    def n_labelled(self) -> int:
        """Number of rows with a label."""
        return len(self.source.labelled)

    @property
    def n_wrong(self) -> int:
        """Estimated number of wrong labels; none where the test sees no noise."""
        return round(self.rate.rate * self.n_labelled) if self.noisy else 0

    @cached_property
    def ranking(self) -> NDArray[np.intp]:
        """Numbers of the labelled rows, the most suspicious first."""
        order = np.argsort(-self.probability, kind="stable")
        return order[: self.n_labelled]  # those without label, nan, come last

    def issues(self, rows: NDArray[np.intp]) -> Any:
        """Return a data frame of these rows: id, given, suggested, probability."""
        classes = self.source.classes
        columns = {
            "id": self.source.ids[rows],
            "given": classes[self.source.codes[rows]],
            "suggested": classes[self.suggested[rows]],
            "probability": self.probability[rows].astype(float).round(4),
        }
        return pd.DataFrame(columns)

    def pairs(self) -> list[Pair]:
        """Return the pairs of classes that were confused, those with most labels first."""
        estimate, k = self.transition, len(self.source.classes)
        rows = self.ranking[: self.n_wrong]
        found = np.zeros((k, k), dtype=int)
        np.add.at(found, (self.suggested[rows], self.source.codes[rows]), 1)
        expected = estimate.prior[:, None] * estimate.transition * (1 - np.eye(k))
        pairs = []
        for i, j in np.argwhere(expected > 0)[np.argsort(-expected[expected > 0], kind="stable")]:
            parts = (estimate.transition, estimate.low, estimate.high)
            share, low, high = (float(part[i, j]) for part in parts)
            true, given = self.source.classes[[i, j]]
            pairs.append(Pair(true, given, share, low, high, int(found[i, j])))
        return pairs


def prepare(
    path: Path, label: str, settings: Settings, *, keep_unlabelled: bool = False
) -> Training:
    """Survey a table and read the rows to fit to.

    Raises
    ------
    InputError
        If the table, its labels or its columns cannot be worked with.
    """
    source = survey(open_table(path, settings.encoding), label, settings.row_id, settings.drop)
    rows = source.sample(settings.max_rows, settings.seed)
    notes = list(source.notes)
    if len(rows) < FEWEST_ROWS:
        raise InputError(
            f"{path} has {len(rows)} rows with a label: at least {FEWEST_ROWS} are needed"
        )
    if keep_unlabelled:
        more = source.unlabelled(settings.max_rows - len(rows), settings.seed)
        rows = np.sort(np.concatenate([rows, more]))
    if not source.features.kinds:
        raise InputError(f"{path} has no column but the label to learn from")
    X = source.features.read(source.table, rows)
    features, dropped = source.features.useful(X, rows)
    notes += [f"column {name!r} left out: {reason}" for name, reason in dropped.items()]
    if not features.kinds:
        raise InputError(f"{path} has no column to learn from: " + "; ".join(notes))
    return Training(source, rows, features, X[list(features.kinds)], notes)


def audit(path: Path, label: str, settings: Settings) -> Audit:
    """Find out how many labels of a table are wrong, and which.

    Of a table with more than ``settings.max_rows`` labelled rows the classifier sees a sample; the
    other rows are read again in chunks and scored by networks that saw none of them.

    Raises
    ------
    InputError
        If the table, its labels or its columns cannot be worked with.
    """
    training = prepare(path, label, settings)
    source = training.source
    whole = len(training.rows) == len(source.labelled)
    how = training_of(len(training.rows))
    clf = classifier(settings, loss="gce", track_dynamics=whole, **how)
    fit(clf, training.X, training.codes, training.notes)
    y, proba, classes = training.labels, clf.oof_proba_, source.classes
    with _noted(training.notes):
        transition = estimate_transition(y, proba, classes=classes, random_state=settings.seed)
    probability, suggested = _suspicions(clf, training, whole, settings)
    blind = guesses(training.codes, proba)
    return Audit(
        source,
        training,
        rate=noise_rate(y, proba, classes=classes),
        blind=blind,
        noisy=not blind and is_noisy(y, proba, classes=classes),
        transition=transition,
        probability=probability,
        suggested=suggested,
        quality=clf.label_quality_,
        dynamics=clf.dynamics_ if whole else None,
    )


def training_of(n_rows: int) -> dict[str, Any]:
    """Return the parameters of the classifier that audits so many rows.

    Examples
    --------
    >>> training_of(5_000), training_of(20_000)
    ({'cross_fit': 5}, {'cross_fit': 3, 'max_epochs': 15, 'lr': 0.008})
    """
    if n_rows <= LARGE:
        return {"cross_fit": 5}
    return {"cross_fit": 3, "max_epochs": 15, "lr": 0.008}


def guesses(codes: NDArray[np.int32], proba: NDArray[np.floating]) -> bool:
    """Tell whether predictions are no better than guesses, by three standard errors.

    Guesses, whatever they favour, are right in one of K rows of each class, on average over the K
    classes.

    Examples
    --------
    >>> codes = np.repeat([0, 1], [90, 10])
    >>> guesses(codes, np.tile([0.9, 0.1], (100, 1))), guesses(codes, np.eye(2)[codes])
    (True, False)
    """
    right = proba.argmax(axis=1) == codes
    count = np.bincount(codes)
    share = np.bincount(codes, right)[count > 0] / count[count > 0]
    error = np.sqrt((share * (1 - share) / count[count > 0]).sum()) / len(share)
    return bool(share.mean() <= 1 / proba.shape[1] + 3 * error)


def classifier(settings: Settings, recipe: str | None = None, **params: Any) -> RobustClassifier:
    """Return the classifier that the settings ask for, not fitted."""
    params = params | {
        "device": settings.device,
        "random_state": settings.seed,
        "verbose": 0 if settings.quiet else 2,  # bars, also those of a portfolio
    }
    if settings.max_epochs is not None:
        params["max_epochs"] = settings.max_epochs
    return RobustClassifier.from_recipe(recipe, **params) if recipe else RobustClassifier(**params)


def fit(clf: RobustClassifier, X: Any, y: Any, notes: list[str]) -> None:
    """Fit a classifier and note its warnings; an interrupt ends it for good."""
    with _noted(notes), redirect_stdout(sys.stderr):
        clf.fit(X, y)
    if clf.net_.interrupted_:
        raise KeyboardInterrupt


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Turn warnings into notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    notes += [str(warning.message).rstrip(".") for warning in caught]


def _suspicions(
    clf: RobustClassifier, training: Training, whole: bool, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the probability of each row of the table to be wrong, and the better label."""
    codes, proba = training.codes, clf.oof_proba_
    n = len(training.source.codes)
    probability, suggested = np.full(n, np.nan, dtype=np.float32), np.zeros(n, dtype=np.int32)
    known = {"X": training.X, "dynamics": clf.dynamics_} if whole else {}
    ranked = _ranked(codes, proba, random_state=settings.seed, **known)
    probability[training.rows[ranked.rows]] = ranked.probability
    suggested[training.rows[ranked.rows]] = ranked.suggested
    if not whole:
        for rows, p in _unseen(clf, training, quiet=settings.quiet):
            # with the sample, which says how certain the networks are when they are wrong
            both = np.concatenate([codes, training.source.codes[rows]])
            ranked = _ranked(both, np.concatenate([proba, p]))
            unseen = ranked.rows >= len(codes)
            rows = rows[ranked.rows[unseen] - len(codes)]
            probability[rows] = ranked.probability[unseen]
            suggested[rows] = ranked.suggested[unseen]
    return probability, suggested


def _ranked(codes: NDArray[np.int32], proba: NDArray[np.floating], **known: Any) -> LabelIssues:
    classes = np.arange(proba.shape[1])
    return find_label_issues(codes, proba, classes=classes, n_issues="all", **known)


def _unseen(
    clf: RobustClassifier, training: Training, *, quiet: bool
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.floating]]]:
    """Yield the labelled rows that were not trained on, with the probabilities of their classes."""
    source, features = training.source, training.features
    left = source.codes != UNLABELLED
    left[training.rows] = False
    rows: list[NDArray[np.intp]] = []
    proba: list[NDArray[np.floating]] = []
    start = 0
    with tqdm(total=len(left), unit="row", unit_scale=True, disable=quiet) as bar:
        for chunk in source.table.chunks(list(features.kinds), text=features.text):
            inside = np.flatnonzero(left[start : start + len(chunk)])
            if len(inside):
                rows.append(inside + start)
                proba.append(clf.predict_proba(features.of(chunk.iloc[inside])))
            start += len(chunk)
            bar.update(len(chunk))
            del chunk
            if sum(map(len, rows)) >= SCORED:
                yield np.concatenate(rows), np.concatenate(proba)
                rows, proba = [], []
    if start != len(left):
        raise InputError(f"{source.table.path} has changed while it was read")
    if rows:
        yield np.concatenate(rows), np.concatenate(proba)
