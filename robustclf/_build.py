"""From the parameters of an estimator to what a fit needs: encoder, method, rows and net."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import validate_data
from torch import Tensor

from robustclf._device import check_precision, find_device
from robustclf._dynamics import DynamicsRecorder
from robustclf._net import CHUNK, SCHEDULES, Criterion, RobustNet, out_of_fold
from robustclf._progress import Progress
from robustclf._random import resumed
from robustclf._rows import Rows, encode_labels, row_weights
from robustclf._stream import HELD_ROWS, StreamedRows, StreamedSet, sample_rows
from robustclf._training_set import TrainingSet
from robustclf.losses import Loss, make_loss
from robustclf.losses._hyperparameters import check_integer
from robustclf.modules import (
    TabularInput,
    embeddable,
    make_embedding,
    make_network,
    needs_held_out,
)
from robustclf.optimizers import check_optimizer, fused, get_optimizer
from robustclf.preprocessing import TabularEncoder
from robustclf.preprocessing._columns import unmasked
from robustclf.sources import DatasetSource, ParquetSource, Source, as_source
from robustclf.stopping import check_monitor, make_stopping
from robustclf.strategies import Strategy, make_strategy

LARGEST = float(np.finfo(np.float32).max)  # number that a network can take
BIN_ROWS = 10_000  # rows that the bins of a piecewise-linear embedding are quantiles of
SAMPLES_SEEN = 60_000  # by max_epochs="auto", between 40 and 150 epochs
SAMPLES_STREAMED = 20_000_000  # at most by max_epochs="auto" of a stream, in at least one epoch
DROPOUT = 0.3
SINGLE = "gce"  # what loss="auto" is where no portfolio can be weighed
FOLDS = 5  # of a strategy that needs some, unless cross_fit says how many


@dataclass
class Prepared:
    """A fit that can begin: nothing of the estimator has changed yet."""

    classes: NDArray[Any]
    encoder: Any
    net: RobustNet
    data: TrainingSet
    missing: NDArray[np.bool_]
    folds: NDArray[np.int64] | None
    states: list[Tensor]  # of the random generators

    def train(self) -> None:
        """Train the networks."""
        with resumed(self.states, self.net.device):
            self.net.fit(self.data, None)

    def so_far(self) -> dict[str, Any]:
        """Return what predicts, while the training may go on."""
        return {"classes_": self.classes, "encoder_": self.encoder, "net_": self.net}

    def fitted(self, every_member: bool = False) -> dict[str, Any]:
        """Return what the estimator has learned, and keep no more than that.

        With ``every_member`` those that left a fold out predict as well.
        """
        net, data, learned = self.net, self.data, self.so_far()
        if self.folds is not None:
            proba = out_of_fold(net, data, torch.from_numpy(self.folds))
            learned["oof_proba_"] = proba
            quality = proba[np.arange(len(proba)), data.y.cpu().numpy()]
            learned["label_quality_"] = np.where(self.missing, np.nan, quality)
        for _, callback in net.callbacks_:
            if isinstance(callback, DynamicsRecorder):
                learned["dynamics_"] = callback.dynamics_.without(self.missing)
                del callback.dynamics_
        if every_member:
            net.n_members = net.n_stacked
        net.release()
        return learned


@dataclass(frozen=True)
class Method:
    """What the parameters of an estimator name, built and checked."""

    classes: NDArray[Any]
    loss: Loss
    strategies: tuple[Strategy, ...]
    device: str
    n_members: int
    peers: int
    cross_fit: int | None
    stopping: Any
    needs_held_out: bool

    @classmethod
    def of(cls, clf: Any, classes: NDArray[Any]) -> Method:
        """Build what ``clf`` names, before anything is computed."""
        check_classes(classes)
        loss = make_loss(SINGLE if clf._is_auto() else clf.loss, **clf._part_params("loss"))
        loss.check(len(classes))
        strategies = make_strategies(clf)
        for strategy in strategies:
            strategy.check(loss, len(classes))
        for width in clf.hidden:
            check_integer("hidden", width, "[1, inf)")
        check_precision(clf.precision, device := find_device(clf.device))
        check_optimizer(clf.optimizer, clf._part_params("optimizer"))
        peers = math.lcm(loss.n_members, *(s.n_members for s in strategies))
        n_members = peers * math.ceil(clf.n_members / peers)
        folds = FOLDS if any("folds" in s.needs for s in strategies) else None
        stopping = make_stopping(clf.early_stopping)
        if not (strategies or clf.callbacks):  # which can record anything
            check_monitor(stopping)
        watches = stopping is not None and getattr(stopping, "needs_held_out", True)
        held = needs_held_out(clf.module) or watches
        return cls(
            classes,
            loss,
            strategies,
            device,
            n_members,
            peers,
            clf.cross_fit or folds,
            stopping,
            held,
        )

    @property
    def uses_unlabelled(self) -> bool:
        """Whether rows without label take part in the fit."""
        return any(s.uses_unlabelled for s in self.strategies)

    def check_told(self, missing: NDArray[np.bool_], stacklevel: int = 4, **known: Any) -> None:
        """Raise ``ValueError`` for what a strategy needs to know; warn of what none reads."""
        for name, value in known.items():
            needing = [s for s in self.strategies if name in s.needs]
            if needing and value is None:
                raise ValueError(f"strategy {needing[0]!r} needs {name}: fit(X, y, {name}=...).")
            if not needing and value is not None:
                self._warn(f"{name} has no effect", stacklevel)
        if missing.any() and not self.uses_unlabelled:
            n = missing.sum()
            self._warn(f"{n} of {len(missing)} rows have no label and are left out", stacklevel)

    def check_trusted(self, rows: Rows) -> None:
        """Raise ``ValueError`` if a strategy needs trusted rows and none is trained on."""
        needing = [s for s in self.strategies if "trusted" in s.needs]
        if needing and rows.trusted is not None and not rows.trusted[rows.trained].any():
            raise ValueError(f"strategy {needing[0]!r} needs trusted rows: none is trained on.")

    def _warn(self, what: str, stacklevel: int) -> None:
        strategies = ", ".join(map(repr, self.strategies)) or "none"
        warnings.warn(
            f"{what}: no strategy of this classifier ({strategies}) learns from that.",
            UserWarning,
            stacklevel=stacklevel,
        )


def make_strategies(clf: Any) -> tuple[Strategy, ...]:
    """Build the strategies that ``clf`` names."""
    given = clf.strategy if isinstance(clf.strategy, list | tuple) else [clf.strategy]
    listed = [s for s in given if s is not None]
    params = clf._part_params("strategy")
    if params and not listed:
        raise ValueError(
            f"strategy__{next(iter(params))} is given, but strategy is {clf.strategy!r}."
        )
    if params and len(listed) > 1:
        raise ValueError(
            f"strategy__{next(iter(params))} is ambiguous for a list of strategies: give "
            "instances, such as make_strategy('mixup', alpha=0.4)."
        )
    return tuple(make_strategy(s, **params) for s in listed)


def open_rows(clf: Any, X: Any, y: Any) -> tuple[Any, Any]:
    """Return the rows and labels of a fit; the rows of a source where they do not fit in memory.

    What cannot be done without all rows in memory is refused before anything is read.
    """
    source = as_source(X)
    if source is None:
        return X, y
    if not source.fits:
        _check_streamable(clf, source)
    if y is None:
        y = source.labels()
    if isinstance(source, DatasetSource) and source.n_rows is None:
        source.n_rows = len(y)
    return (source.load() if source.fits else source), y


def in_memory(X: Any) -> bool:
    """Tell whether a fit has all rows of X in memory."""
    source = as_source(X)
    return source is None or source.fits


def load_rows(X: Any, y: Any) -> tuple[Any, Any]:
    """Return rows and labels in memory, where X is a source."""
    source = as_source(X)
    if source is None:
        return X, y
    return source.load(), source.labels() if y is None else y


def _check_streamable(clf: Any, source: Source) -> None:
    parts = [f"strategy {s!r}" for s in make_strategies(clf) if "all_rows" in s.needs]
    if getattr(clf.early_stopping, "needs_all_rows", False):
        parts.append(f"early_stopping={clf.early_stopping!r}")
    if parts:
        n = "unknown" if source.n_rows is None else f"{source.n_rows:,}"
        raise ValueError(
            f"{parts[0]} needs the features of all rows at once, but the data (number of rows: "
            f"{n}) are read through a buffer of {source.buffer_rows:,} rows. Leave it out, give an "
            f"array in memory, or a larger {type(source).__name__}(..., shuffle_buffer=...)."
        )


def held_share(clf: Any, method: Method, X: Any) -> float:
    """Return the share of the rows to hold out; of a stream no more than fit in memory."""
    if not method.needs_held_out:
        return 0.0
    most = min(HELD_ROWS, X.auto_rows) / len(X) if isinstance(X, Source) else 1.0
    return min(float(clf.validation_fraction), most)


def plan_rows(
    clf: Any,
    method: Method,
    labels: NDArray[Any],
    missing: NDArray[np.bool_],
    sample_weight: Any,
    rng: np.random.RandomState,
    **plan: Any,
) -> Rows:
    """Encode and weigh the labels of a fit and say what each row is for, as :meth:`Rows.plan`."""
    codes = encode_labels(labels, method.classes, missing)
    weight = row_weights(sample_weight, clf.class_weight, labels, missing)
    return Rows.plan(codes, weight, missing, rng, use_unlabelled=method.uses_unlabelled, **plan)


def check_classes(classes: NDArray[Any]) -> None:
    """Raise ``ValueError`` for fewer than two classes."""
    if len(classes) < 2:
        raise ValueError(
            "RobustClassifier needs at least two classes in rows of positive weight, got "
            f"{len(classes)} class: {classes.tolist()}."
        )


class Numbers(BaseEstimator):
    """Take finite numbers as they are, dense or CSR: ``preprocess=None``."""

    def fit_transform(self, X: Any) -> Any:
        """Validate the training rows."""
        return self._validate(X, reset=True)

    def transform(self, X: Any) -> Any:
        """Validate rows against the training rows."""
        return self._validate(X, reset=False)

    def _validate(self, X: Any, reset: bool) -> Any:
        dtypes = [np.float64, np.float32]
        return validate_data(self, X, accept_sparse="csr", dtype=dtypes, reset=reset)


def make_encoder(clf: Any) -> Any:
    """Return the unfitted transformer that ``preprocess`` stands for."""
    if clf.preprocess is None:
        return Numbers()
    if clf.preprocess != "auto":
        if get_tags(clf.preprocess).target_tags.required:
            raise ValueError(
                f"preprocess={clf.preprocess!r} learns from labels, which nothing keeps from "
                "memorising wrong ones: put it in front, in a Pipeline."
            )
        return clone(clf.preprocess)
    dtype = "float64" if clf.precision == "float64" else "float32"
    encoder = TabularEncoder(categorical_features=clf.categorical_features, dtype=dtype)
    return encoder.set_output(transform="default")


def fit_encoder(encoder: Any, X: Any, weight: NDArray[Any] | None) -> tuple[Any, Any]:
    """Fit the encoder; return it and the encoded rows: an array, a CSR matrix or those of a source.

    The encoder of a source is fitted to a sample.
    """
    if isinstance(X, Source):
        rows = sample_rows(X, weight)
        weight = None if weight is None else weight[rows]
        sample = fit_encoder(encoder, X.take(rows), weight)[1]
        return encoder, StreamedRows(X, partial(encode, encoder), sample)
    X = _readable(encoder, X)
    if isinstance(encoder, TabularEncoder):
        return encoder, encoder.fit_transform(X, sample_weight=weight)
    return encoder, _as_rows(encoder.fit_transform(X), encoder)


def encode(encoder: Any, X: Any) -> Any:
    """Return the encoded rows, an array or a CSR matrix."""
    return _as_rows(encoder.transform(_readable(encoder, X)), encoder)


def encoded_chunks(encoder: Any, X: Any) -> Iterator[Any]:
    """Yield the encoded rows in parts, so that those of a large X are never all there."""
    source = as_source(X)
    if isinstance(source, ParquetSource) and hasattr(encoder, "feature_names_in_"):
        source = source.select(list(encoder.feature_names_in_))
    if source is not None:
        empty = True
        for chunk in source.read():
            empty = False
            yield encode(encoder, chunk)
        if empty:
            raise ValueError(f"Found 0 rows in this {type(source).__name__}: 1 is the least.")
    elif isinstance(encoder, TabularEncoder) and type(X) is np.ndarray and X.ndim == 2:
        for start in range(0, max(len(X), 1), CHUNK):
            yield encoder.transform(X[start : start + CHUNK])
    else:
        yield encode(encoder, X)


def _readable(encoder: Any, X: Any) -> Any:
    """Return an arrow table as a data frame of pandas, which transformers of others can read.

    They take no notice of the mask of an array, so that it has NaN in its place.
    """
    X = unmasked(X)
    arrow = type(X).__module__.startswith("pyarrow") and not isinstance(encoder, TabularEncoder)
    return X.to_pandas() if arrow else X


def _as_rows(x: Any, encoder: Any) -> Any:
    rows: Any = sparse.csr_array(x) if sparse.issparse(x) else np.asarray(x)
    rows = rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)
    if rows.ndim != 2:
        raise ValueError(f"preprocess={encoder!r} must give a table, got shape {rows.shape}.")
    values = rows.data if sparse.issparse(rows) else rows
    if not (values.min(initial=0) >= -LARGEST and values.max(initial=0) <= LARGEST):  # or nan
        n = values.size - np.count_nonzero(np.abs(values) <= LARGEST)
        by = None if isinstance(encoder, Numbers) else encoder
        raise ValueError(
            f"preprocess={by!r} leaves nan, infinity or numbers beyond float32 in {n} of "
            f"{values.size} values, which no network can learn from. preprocess='auto' takes gaps "
            "and numbers of any size."
        )
    return rows


def make_net(
    clf: Any,
    encoder: Any,
    x: Any,
    rows: Rows,
    method: Method,
    rng: np.random.RandomState,
) -> RobustNet:
    """Build the skorch net that trains the stack of networks."""
    n = len(rows.trained)
    n_stacked = method.n_members + method.peers * (method.cross_fit or 0)
    batch_size = auto_batch_size(n) if clf.batch_size == "auto" else int(clf.batch_size)
    most = SAMPLES_STREAMED if isinstance(x, StreamedRows) else None
    max_epochs = auto_epochs(n, most) if clf.max_epochs == "auto" else int(clf.max_epochs)
    # a full batch is small: in float64 without dropout a weight is the same as a repetition
    full = n <= batch_size
    dropout = (0.0 if full else DROPOUT) if clf.dropout == "auto" else float(clf.dropout)
    schedule = clf.lr_schedule
    chosen = clf._part_params("optimizer")
    params = {"weight_decay": clf.weight_decay}
    params |= fused(clf.optimizer, method.device, chosen) | chosen
    seeds = [int(seed) for seed in rng.randint(2**31 - 1, size=n_stacked)]
    network = make_network(
        clf.module,
        _inputs(clf, encoder, x, rows, n_stacked),
        n_stacked,
        len(method.classes),
        hidden=clf.hidden,
        activation=clf.activation,
        dropout=dropout,
        seeds=seeds,
        **clf._part_params("module"),
    )
    return RobustNet(
        network,
        n_members=method.n_members,
        n_stacked=n_stacked,
        n_codes=len(getattr(encoder, "cardinalities_", ())),
        strategies=method.strategies,
        warm_up=clf.warm_up,
        schedule=SCHEDULES[schedule] if isinstance(schedule, str) else schedule,
        precision="float64" if full and clf.precision == "float32" else clf.precision,
        criterion=Criterion,
        criterion__loss=method.loss,
        criterion__n_classes=len(method.classes),
        criterion__n_members=n_stacked,
        criterion__seed=seeds[0],
        optimizer=get_optimizer(clf.optimizer),
        lr=clf.lr,
        batch_size=batch_size,
        max_epochs=max_epochs,
        callbacks=_callbacks(clf, max_epochs, method.stopping),
        classes=np.arange(len(method.classes)),
        device=method.device,
        verbose=0,
        train_split=None,
        **{f"optimizer__{name}": value for name, value in params.items()},
    )


def _inputs(clf: Any, encoder: Any, x: Any, rows: Rows, n_stacked: int) -> TabularInput:
    """Build what reads the encoded rows ``x``: the numbers, the indicators and the codes."""
    encoded = isinstance(encoder, TabularEncoder)
    n_dense = encoder.n_dense_ if encoded else x.shape[1]
    n_numeric = encoder.numeric_.stop if encoded else x.shape[1]
    columns = n_dense, n_numeric, encoder.cardinalities_ if encoded else ()
    if clf.numeric_embedding is None:
        return TabularInput(n_stacked, *columns)
    if isinstance(x, StreamedRows):
        some = x.sample
    else:
        some = x[rows.trained[:: max(1, len(rows.trained) // BIN_ROWS)]]
    embedded = embeddable(some[:, :n_numeric])
    embedding = make_embedding(clf.numeric_embedding, some[:, embedded], n_stacked)
    return TabularInput(n_stacked, *columns, embedding, embedded)


def auto_epochs(
    n: int, most: int | None = None, *, samples: int = SAMPLES_SEEN, least: int = 40
) -> int:
    """Return the epochs that ``n`` rows are trained for: about ``samples`` rows, ``most`` at most.

    At least ``least`` and at most 150 epochs, whatever ``samples`` says.
    """
    epochs = round(min(max(samples / n, least), 150))
    return epochs if most is None else max(min(epochs, most // n), 1)


def auto_batch_size(n: int) -> int:
    """Return the batch size for ``n`` rows: an epoch of a large table has about 200 steps."""
    return min(max(128, n // 200), 1024)


def _callbacks(clf: Any, max_epochs: int, stopping: Any) -> list[Any]:
    callbacks = list(clf.callbacks or ())
    if clf.verbose:
        callbacks.append(Progress(max_epochs))
    if clf.track_dynamics:
        callbacks.append(DynamicsRecorder())
    if stopping is not None:
        callbacks.append(stopping)
    return callbacks


def training_set(x: Any, rows: Rows, net: RobustNet, method: Method) -> TrainingSet:
    """Put the encoded rows and what is known about them together."""
    data = (StreamedSet if isinstance(x, StreamedRows) else TrainingSet)(
        x,
        torch.from_numpy(rows.codes),
        torch.from_numpy(rows.member_weights(net.n_members, method.peers)),
        torch.from_numpy(rows.trained),
    )
    if (unlabelled := rows.unlabelled_weights()) is not None:
        data.unlabelled = torch.from_numpy(unlabelled)
    if rows.groups is not None:
        data.groups = torch.from_numpy(rows.groups)
    if rows.trusted is not None:
        data.trusted = torch.from_numpy(rows.trusted)
    if rows.held is not None:
        data.x_valid, data.y_valid = x[rows.held], data.y[rows.held]
        if rows.weight is not None:
            data.weight_valid = torch.from_numpy(rows.weight[rows.held])
    return data
