"""The training step and the loop around it, on skorch: ``mean_i w_i * loss(f(x_i), t_i) + R``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from skorch import NeuralNetClassifier
from skorch.callbacks import EarlyStopping
from skorch.dataset import Dataset
from skorch.history import History
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from robustclf._device import device_exists
from robustclf._distributed import average_gradients, data_parallel
from robustclf._packing import from_arrays, pack, to_arrays, unpack
from robustclf._random import seeded
from robustclf._training_set import TrainingSet, as_tensor
from robustclf.losses import CrossEntropy, Loss
from robustclf.modules import NestedDropout, Network
from robustclf.optimizers import get_optimizer, optimizer_alias
from robustclf.strategies import Batch, Strategy, overrides

WARM_UP_LOSS = CrossEntropy()
CHUNK = 16_384  # rows of a forward pass without gradient
OF_SKORCH = {"dataset": Dataset, "iterator_train": DataLoader, "iterator_valid": DataLoader}


class DivergenceError(ArithmeticError):
    """The training loss became infinite or not a number."""


class Criterion(nn.Module):
    """A checked loss in the form skorch wants; its learned parts are trained with the networks.

    Parameters
    ----------
    loss : Loss
    n_classes : int
    n_members : int, default=1
        Networks stacked.
    seed : int, default=0
        Of the draws that learned parts start from.

    Raises
    ------
    ValueError
        If a hyper-parameter of the loss is out of range.
    """

    def __init__(self, loss: Loss, n_classes: int, n_members: int = 1, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed, "cpu"):
            self.loss = self.built = loss.build(n_classes, n_members)
        self.learned = nn.ModuleList(self.loss.learned())

    def at_epoch(self, epoch: int) -> None:
        """Go on with the loss of this epoch."""
        self.loss = self.built.at_epoch(epoch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, ``(member, sample)``."""
        return self.loss(logits, target)


def _one_cycle(t: float, warm_up: float = 0.1) -> float:
    if t < warm_up:
        return 0.04 + 0.96 * t / warm_up
    return _cosine((t - warm_up) / (1 - warm_up))


def _cosine(t: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * t))


def _constant(t: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one_cycle": _one_cycle,
    "cosine": _cosine,
    "constant": _constant,
}


class RobustNet(NeuralNetClassifier):
    """A skorch net that trains a stack of members with a loss and strategies.

    Parameters
    ----------
    module : Network
        Gives logits ``(member, sample, class)``.
    n_members, n_stacked : int
        Leading members, which predict, and all members; the others give out-of-fold probabilities.
    n_codes : int
        Trailing columns of the encoded rows that are category codes.
    strategies : sequence of Strategy
        Also notified as callbacks, before those of the user.
    warm_up : float
        Share of the epochs that minimise the cross entropy before the criterion takes over.
    schedule : callable or None
        Factor of the learning rate at each time in [0, 1] of the fit; None leaves it alone.
    precision : {"float32", "float64", "bf16"}
    **kwargs
        As :class:`skorch.NeuralNet`.
    """

    warming = False
    module_: Network
    criterion_: Criterion
    optimizer_: Any
    device: str

    def __init__(
        self,
        module: Network,
        *args: Any,
        n_members: int = 1,
        n_stacked: int = 1,
        n_codes: int = 0,
        strategies: tuple[Strategy, ...] = (),
        warm_up: float = 0.0,
        schedule: Callable[[float], float] | None = None,
        precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        self.n_members = n_members
        self.n_stacked = n_stacked
        self.n_codes = n_codes
        self.strategies = strategies
        self.warm_up = warm_up
        self.schedule = schedule
        self.precision = precision
        super().__init__(module, *args, **kwargs)

    @property
    def _default_callbacks(self) -> list[Any]:
        return [(f"{type(s).__name__}_{i}", s) for i, s in enumerate(self.strategies)]

    def initialize_module(self) -> RobustNet:
        """Take the network in the precision of the fit."""
        super().initialize_module()
        self.module_ = self.module_.to(self.dtype)
        return self

    def initialize_criterion(self) -> RobustNet:
        """Take the learned parts of the loss in the precision of the fit."""
        super().initialize_criterion()
        self.criterion_ = self.criterion_.to(self.dtype)
        return self

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return max(len(self.history) - 1, 0)

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Split the parameters: weight decay acts on weights alone."""
        kwargs = self.get_params_for(prefix)
        kwargs.setdefault("lr", self.lr)
        decay = kwargs.pop("weight_decay", 0.0)
        groups: dict[tuple[bool, int | None], dict[str, Any]] = {}
        for name, p in named_parameters:
            member = int(name.split(".")[2]) if name.startswith("body.members.") else None
            decays = self.decays(name, p)
            group: dict[str, Any] = {"stacked": member is None, "member": member or 0}
            group |= {"params": [], "weight_decay": decay if decays else 0.0}
            groups.setdefault((decays, member), group)["params"].append(p)
        return (list(groups.values()),), kwargs

    @staticmethod
    def decays(name: str, p: Tensor) -> bool:
        """Tell whether weight decay acts on a parameter."""
        return p.ndim >= 2 and "weight" in name.rpartition(".")[2]

    def train_step(self, batch: Batch, **fit_params: Any) -> Tensor:
        """Take one step on ``mean_i w_i * loss(f(x_i), t_i) + R`` and return its value."""
        batch, logits = self.edited(batch), None

        def objective() -> Tensor:
            nonlocal logits
            first, optimizer = logits is None, self.optimizer_
            optimizer.zero_grad()
            with self._autocast() if first else self._second_look():
                logits = self._forward(batch)
            value = self.objective(batch, logits, first)
            value.sum().backward()
            average_gradients(self)
            if self._listening["on_grad_computed"]:
                parameters = list(self.get_all_learnable_params())
                self.notify("on_grad_computed", named_parameters=parameters, batch=batch)
            return value.detach()

        value: Tensor = self.optimizer_.step(objective).sum()
        if self._listening["on_batch_end"]:
            self.notify("on_batch_end", batch=batch, training=True, y_pred=logits, loss=value)
        return value

    def edited(self, batch: Batch) -> Batch:
        """Return the batch as the strategies want it."""
        for strategy in self._listening["on_batch"]:
            batch = strategy.on_batch(self, batch)
        return batch

    def objective(self, batch: Batch, logits: Tensor, first: bool) -> Tensor:
        """Return ``mean_i w_i * loss(f(x_i), t_i) + R`` of each member.

        Targets and weights are set at the first evaluation of a step.
        """
        if first:
            batch.logits = logits.detach()
            self._relabel(batch, batch.logits)
        criterion = WARM_UP_LOSS if self.warming else self.criterion_
        loss = criterion(self._observed(batch, logits), batch.target)
        if first:
            self._weigh(batch, loss.detach())
        weighted = batch.weight * loss
        for strategy in self._listening["penalty"]:
            weighted = weighted + strategy.penalty(self, batch, logits)
        return weighted.mean(-1)  # over samples; each member has its own mean

    def _forward(self, batch: Batch) -> Tensor:
        if self._needs_features:
            batch.features, logits = self.module_.with_features(batch.x)
        else:
            logits = self.module_(batch.x)
        return logits.to(batch.weight.dtype)

    def _observed(self, batch: Batch, logits: Tensor) -> Tensor:
        for strategy in self._listening["observe"]:
            logits = strategy.observe(self, batch, logits)
        return logits

    @torch.no_grad()
    def _relabel(self, batch: Batch, logits: Tensor) -> None:
        for strategy in self._listening["relabel"]:
            batch.target = strategy.relabel(self, batch, logits)

    @torch.no_grad()
    def _weigh(self, batch: Batch, loss: Tensor) -> None:
        for strategy in self._listening["weigh"]:
            batch.weight = strategy.weigh(self, batch, loss)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    @contextmanager
    def _second_look(self) -> Iterator[None]:
        """Forward pass at SAM's perturbed weights, which batch statistics should not see."""
        norms = [m for m in self.module_.modules() if isinstance(m, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            with self._autocast():
                yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    # The loop -----------------------------------------------------------------------------------

    def fit_loop(
        self, X: TrainingSet, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> RobustNet:
        """Train for ``epochs`` epochs on batches cut from a permutation of the rows."""
        self.listen()
        if self.optimizer_ is None:
            self._initialize_optimizer()
        epochs = self.max_epochs if epochs is None else epochs
        data = X.datasets()
        try:
            with data_parallel(self, X):
                for epoch in range(epochs):
                    self.notify("on_epoch_begin", **data)
                    self._train_epoch(X, epoch, epochs)
                    self.validate(X)
                    self.notify("on_epoch_end", **data)
        except KeyboardInterrupt:
            self.interrupted_ = not self.has_stopped()
        return self

    def listen(self) -> None:
        """Find out who does anything in which hook."""
        hooks = ("epoch_rows", "on_batch", "relabel", "observe", "weigh", "penalty")
        self._listening: dict[str, list[Any]] = {
            hook: [s for s in self.strategies if overrides(s, hook)] for hook in hooks
        } | {
            hook: [c for _, c in self.callbacks_ if overrides(c, hook)]
            for hook in ("on_batch_begin", "on_batch_end", "on_grad_computed")
        }
        self._needs_features = any("features" in s.needs for s in self.strategies)
        self.interrupted_ = False

    def with_members(self, n: int, criterion: Criterion) -> RobustNet:
        """Return this net for the objective of n members, of which it has some."""
        wider: RobustNet = object.__new__(type(self))
        wider.__dict__ |= self.__dict__ | {"n_stacked": n, "criterion_": criterion}
        return wider

    def has_stopped(self) -> bool:
        """Tell whether a rule of early stopping ended the training."""
        stops = [c for _, c in self.callbacks_ if isinstance(c, EarlyStopping)]
        return any(c.misses_ == c.patience for c in stops)

    def _train_epoch(self, data: TrainingSet, epoch: int, epochs: int) -> None:
        started = time.perf_counter()
        rows = data.rows
        for strategy in self._listening["epoch_rows"]:
            rows = strategy.epoch_rows(self, rows)
        batches = data.batches(rows, self.batch_size)
        total: Tensor | float = 0.0
        self.warming = epoch < round(self.warm_up * epochs)
        self.criterion_.at_epoch(self.epoch)
        self.module_.train()
        for start, share, batch in batches:
            time_of_fit = (epoch + start) / epochs
            self._set_lr(time_of_fit)
            if data.long_epochs:
                self.warming = time_of_fit < self.warm_up
            if self._listening["on_batch_begin"] or self._listening["on_batch_end"]:
                self.notify("on_batch_begin", batch=batch, training=True)
            total = total + self.train_step(batch) * share
        lr = self.optimizer_.param_groups[0]["lr"]
        self.record(float(total) / self.n_stacked, lr, time.perf_counter() - started)

    def record(self, loss: float, lr: float, seconds: float) -> None:
        """Write an epoch into the history; raise ``DivergenceError`` for a loss that is none."""
        self.history.record("train_loss", loss)
        self.history.record("lr", lr)
        self.history.record("dur", seconds)
        if not math.isfinite(loss):
            raise DivergenceError(
                f"The training loss became {loss} in epoch {len(self.history)} of "
                f"{self.max_epochs} (lr={self.lr:g}, loss={self.criterion_.loss!r}). Try a smaller "
                "lr, precision='float32', or a bounded loss such as 'gce' or 'mae'."
            )

    def _set_lr(self, t: float) -> None:
        if self.schedule is not None:
            for group in self.optimizer_.param_groups:
                group["lr"] = self.lr * self.schedule(t)

    def validate(self, data: TrainingSet) -> None:
        """Record the accuracy on the rows held out, where there are any."""
        if data.x_valid is None or data.y_valid is None:
            return
        weight = data.weight_valid
        if weight is None:
            weight = torch.ones_like(data.y_valid, dtype=data.weight.dtype)
        if isinstance(body := self.module_.body, NestedDropout):
            body.keep_all()
            features = self._chunks(data.x_valid, self.module_.embed, self.n_stacked)
            body.keep_best(features, data.y_valid, weight)
        logits = torch.cat(list(self.logits(data.x_valid)), dim=1)
        correct = self.mean_proba(logits).argmax(-1) == data.y_valid
        accuracy = (correct * weight).sum() / weight.sum()
        self.history.record("valid_acc", accuracy.item())
        if self._listening["on_batch_end"]:
            batch = (data.x_valid, data.y_valid)
            self.notify("on_batch_end", batch=batch, training=False, y_pred=logits)

    # Prediction ---------------------------------------------------------------------------------

    def logits(self, x: Tensor | sparse.csr_array, *, oof: bool = False) -> Iterator[Tensor]:
        """Yield logits ``(member, sample, class)`` of chunks of encoded rows.

        Only of the members that predict, unless ``oof`` asks for all of the stack.
        """
        return self._chunks(x, self.module_, self.n_stacked if oof else self.n_members)

    def _chunks(self, x: Any, function: Callable[[Tensor], Tensor], n: int) -> Iterator[Tensor]:
        if self.module_.training:
            self.module_.eval()
        for chunk in _chunks_of(x):
            rows = self.to_device(chunk)
            with torch.inference_mode(), self._autocast():
                yield function(rows)[:n].to(self.dtype)

    def to_device(self, x: Any) -> Tensor:
        """Make a dense tensor of encoded rows on the device of the network."""
        if not isinstance(x, Tensor):
            x = as_tensor(x if isinstance(x, np.ndarray) else x.toarray())
        moved: Tensor = x.to(self.device, self.dtype)
        return moved

    @property
    def dtype(self) -> torch.dtype:
        """Type of rows, parameters and losses."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def embed(self, x: Any) -> Iterator[Tensor]:
        """Yield penultimate features ``(member, sample, width)`` of chunks of encoded rows."""
        return self._chunks(x, self.module_.embed, self.n_members)

    def forward_iter(self, X: Any, training: bool = False, device: str = "cpu") -> Iterator[Tensor]:
        """Yield logits of encoded rows, as skorch's scoring callbacks ask for them."""
        rows = X.X if isinstance(X, Dataset) else X
        return (chunk.to(device) for chunk in self.logits(rows))

    def _get_predict_nonlinearity(self) -> Callable[[Tensor], Tensor]:
        return self.mean_proba

    @torch.inference_mode()
    def proba(self, logits: Tensor) -> Tensor:
        """Return the class probabilities that the loss reads off the logits."""
        return self.criterion_.loss.inverse_link(logits)

    def mean_proba(self, logits: Tensor) -> Tensor:
        """Return the mean probabilities of the members, ``(sample, class)``."""
        return self.proba(logits).mean(0)

    # What a fitted model keeps --------------------------------------------------------------------

    def release(self) -> None:
        """Keep what predicts: drop the out-of-fold members, gradients and the optimiser."""
        for part in (self.module_, *self.criterion_.learned):
            part.keep_members(self.n_members)
        self.n_stacked = self.n_members
        self.optimizer_ = None

    def __getstate__(self) -> dict[str, Any]:
        """Tell in plain data what predicts and can be trained on, without the optimiser's state."""
        state = self.__dict__.copy()
        for name in (*OF_SKORCH, "module_", "virtual_params_", "_listening"):
            state.pop(name, None)
        state["module"] = pack(self.module_)
        state["criterion_"] = to_arrays(self.criterion_)
        state["history_"] = list(self.history_)
        state["optimizer"] = optimizer_alias(self.optimizer)
        state["optimizer_"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go back to the device of the fit where there is one like it, else stay on the CPU."""
        self.__dict__.update(OF_SKORCH | state)
        if not device_exists(self.device):
            self.device = "cpu"
        self.virtual_params_: dict[str, Any] = {}
        self.history_ = History(state["history_"])
        self.optimizer = get_optimizer(state["optimizer"])
        self.module = self.module_ = unpack(state["module"]).to(self.device)
        params = self.get_params_for("criterion") | {"n_members": self.n_stacked}
        criterion = Criterion(**params)
        if self.history_:
            criterion.at_epoch(self.epoch)
        self.criterion_ = from_arrays(criterion, state["criterion_"]).to(self.device)


def _chunks_of(x: Any) -> Iterator[Any]:
    if hasattr(x, "chunks"):  # rows that are read when they are asked for
        return iter(x.chunks())
    return (x[start : start + CHUNK] for start in range(0, x.shape[0], CHUNK))


def out_of_fold(net: RobustNet, data: TrainingSet, folds: Tensor) -> NDArray[Any]:
    """Return the probabilities of each row by members that did not train on it.

    Parameters
    ----------
    net : RobustNet
        After its members ``(n_members + fold * peer)``.
    data : TrainingSet
    folds : tensor of shape (sample,)
        Fold that left each row out, -1 for rows no member trained on: the mean of all then.

    Returns
    -------
    proba : ndarray of shape (sample, class)
    """
    k = int(folds.max()) + 1
    parts: list[Tensor] = []
    for logits in net.logits(data.x, oof=True):
        p = net.proba(logits)[net.n_members :].unflatten(0, (k, -1)).mean(1)
        start = sum(len(part) for part in parts)
        fold = folds[start : start + p.shape[1]].to(p.device)
        own = p[fold.clamp_min(0), torch.arange(len(fold), device=p.device)]
        parts.append(torch.where((fold >= 0)[:, None], own, p.mean(0)))
    return torch.cat(parts).cpu().numpy()
