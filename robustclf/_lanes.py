"""The fits of a stack, and the lanes of those that draw and compute their losses at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from pickle import PicklingError
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from robustclf._build import Prepared
from robustclf._net import Criterion
from robustclf._random import drawing_from, generators_at
from robustclf._training_set import TrainingSet, batch_cuts
from robustclf.losses import Loss
from robustclf.modules import MLP, Dropout, Network, ResNet, drop_mask
from robustclf.optimizers import LINEAR, knows_members
from robustclf.strategies import Batch, overrides

MEMBER_RATES = ("lr", "weight_decay")  # of an optimiser, that differ within a stack
COPIES = 6  # of a weight or an activation: its gradient, moments, masks and the fit's own


class Fit:
    """One prepared fit in a stack, and how it ended.

    Parameters
    ----------
    prepared : Prepared

    Attributes
    ----------
    error : Exception or None
        Why it has no result.
    done : bool
        Whether it has stopped training.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.net = prepared.net
        self.data = prepared.data
        self.error: Exception | None = None
        self.done = False
        self.net.initialize()
        self.net.listen()

    @property
    def watched(self) -> bool:
        """Whether anything looks at the network between epochs."""
        hooks = ("on_epoch_begin", "on_epoch_end")
        looking = [c for _, c in self.net.callbacks_ if any(overrides(c, hook) for hook in hooks)]
        return bool(looking) or self.data.x_valid is not None

    @property
    def setting(self) -> dict[str, Any]:
        """Parameters of the optimiser."""
        chosen: dict[str, Any] = self.net.get_params_for("optimizer")
        return {"lr": self.net.lr, "weight_decay": 0.0} | chosen

    def shape(self) -> tuple[Hashable, ...]:
        """Return what fits of one stack have in common."""
        net, body = self.net, self.net.module_.body
        alike = (*body.named_buffers(), *net.module_.inputs.named_buffers())
        kind = net.optimizer
        parts: tuple[Any, ...] = (
            type(body),
            getattr(body, "activation", None),
            tuple((name, p.shape[1:]) for name, p in net.module_.named_parameters()),
            tuple((name, tuple(b.flatten().tolist())) for name, b in alike),
            net.module_.inputs.n_dense,
            (net.device, net.precision, net.n_classes, net.max_epochs),
            len(batch_cuts(len(self.data.rows), net.batch_size)),
            kind,
        )
        setting = self.setting
        if kind in LINEAR:
            return (*parts, repr({k: setting[k] for k in setting if k not in MEMBER_RATES}))
        return (*parts, repr(setting), repr(net.schedule), len(self.data.rows))

    def memory(self) -> int:
        """Return about how many bytes a member of a stack takes."""
        network = self.net.module_
        weights = sum(p.numel() for p in network.parameters()) / self.net.n_stacked
        units = sum(p.shape[-1] for p in network.parameters() if p.shape[1] == 1)
        size = min(self.net.batch_size, len(self.data.rows))
        itemsize = torch.empty((), dtype=self.net.dtype).element_size()
        return int(itemsize * COPIES * (weights + units * size))

    def lane(self) -> tuple[Hashable, ...]:
        """Return what fits of one lane have in common."""
        net, loss = self.net, self.net.criterion_.loss
        own = loss.stochastic or self.net.criterion_.learned or self.batch_listeners()
        if own or not all(strategy.stackable for strategy in net.strategies):
            return (id(self),)
        return (
            hashed((net.strategies, self.data.rows.numpy(force=True))),
            tuple(state.numpy().tobytes() for state in self.prepared.states),
            net.batch_size,
            (net.n_members, net.n_stacked),
            bool(dropout_of(net.module_)),
            self.data.x_valid is None,
            (net.warm_up, repr(net.schedule)),
            repr(_skeleton(loss)),
        )

    def end(self) -> None:
        """Stop training, as if the last epoch were over."""
        self.done = True
        if self.error is None:
            with self.judged():
                self.net.notify("on_train_end", X=self.data, y=None)

    def batch_listeners(self) -> list[Any]:
        """Return the callbacks, strategies aside, that look at every batch."""
        listening = (*self.net._listening["on_batch_begin"], *self.net._listening["on_batch_end"])
        return [callback for callback in listening if callback not in self.net.strategies]

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Take an error, or the end of the training, for that of this fit alone."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.net.has_stopped():
                raise
            self.end()
        except Exception as error:
            self.error, self.done = error, True


def stands_alone(fit: Fit) -> str:
    """Return why a fit cannot be part of a stack, or nothing."""
    net, data = fit.net, fit.data
    if type(body := net.module_.body) not in (MLP, ResNet):
        (given, *_) = getattr(body, "members", [body])
        return f"module {type(given).__name__}"
    if not isinstance(data.x, Tensor):
        return "sparse rows"
    if data.unlabelled is not None:
        return "rows without label, which the network makes guesses for in a step"
    for strategy in net.strategies:
        if {"network", "features"} & set(strategy.needs) or overrides(strategy, "epoch_rows"):
            return f"strategy {strategy!r}"
    if len(net.strategies) > 1:
        return "a list of strategies"
    if net._listening["on_grad_computed"]:
        return "a callback that reads gradients"
    if not knows_members(net.optimizer, fit.setting):
        return f"optimizer {net.optimizer.__name__}"
    if net.criterion_.learned and net.optimizer not in LINEAR:
        return f"a learned loss with optimizer {net.optimizer.__name__}"
    if net.schedule is None:
        return "lr_schedule=None, which leaves the rate to a callback"
    return ""


def hashed(value: Any) -> Hashable:
    """Return a hash of a value; what cannot be pickled, such as a lambda, equals nothing."""
    try:
        return str(joblib.hash(value))
    except (AttributeError, TypeError, PicklingError):  # which of them is pickle's choice
        return object()


def dropout_of(network: Network) -> float:
    """Return the probability of dropping a unit."""
    return next((layer.p for layer in network.modules() if isinstance(layer, Dropout)), 0.0)


def _skeleton(loss: Loss) -> Any:
    """Return a loss without the numbers that can differ within a lane."""
    kinds = signature(type(loss)).parameters
    params = loss.get_params(deep=False)
    return type(loss), {k: _outline(v, str(kinds[k].annotation)) for k, v in params.items()}


def _outline(value: Any, kind: str) -> Any:
    """Return a parameter of a loss; a number is left out whose type says it can be a tensor."""
    if isinstance(value, Loss):
        return _skeleton(value)
    if isinstance(value, list | tuple) and "Sequence" in kind:
        return [_outline(part, kind) for part in value]
    if _is_number(value) and ("Scalar" in kind or "Tensor" in kind):
        return "number"
    return value.tolist() if isinstance(value, Tensor) else np.asarray(value).tolist()


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def merged(values: Sequence[Any], width: int, dtype: torch.dtype) -> Any:
    """Return losses of one skeleton as one, with a number for each member where they differ.

    Parameters
    ----------
    values : sequence of Loss, or of the values of one of their parameters
    width : int
        Members that each of them is for.
    dtype : torch.dtype
    """
    first = values[0]
    if isinstance(first, Loss):
        names = first.get_params(deep=False)
        parts = {k: merged([getattr(v, k) for v in values], width, dtype) for k in names}
        return type(first)(**parts)
    if isinstance(first, list | tuple):
        return type(first)(merged(parts, width, dtype) for parts in zip(*values, strict=True))
    if not _is_number(first) or all(value == first for value in values):
        return first
    return torch.tensor(values, dtype=dtype).repeat_interleave(width).view(-1, 1, 1)


@dataclass(eq=False)
class Source:
    """Rows that some fits of a lane train on."""

    data: TrainingSet
    fits: list[Fit] = field(default_factory=list)

    def trains_like(self, data: TrainingSet) -> bool:
        """Whether the fit of ``data`` trains on the same rows, labels and weights."""
        mine = self.data
        return mine is data or (
            mine.x is data.x
            and torch.equal(mine.rows, data.rows)
            and torch.equal(mine.y, data.y)
            and torch.equal(mine.weight, data.weight)
        )


class Lane:
    """Consecutive fits of a stack that draw the same random numbers.

    Parameters
    ----------
    fits : list of Fit
    start : int
        Number of their first member in the stack.
    """

    def __init__(self, fits: list[Fit], start: int) -> None:
        self.net = fits[0].net
        self.width = self.net.n_stacked  # members of a fit
        self.epochs: int = self.net.max_epochs
        self.generators = generators_at(fits[0].prepared.states, self.net.device)
        self.strategies = self.net.strategies
        self.draws = bool(self.strategies or self.net.criterion_.loss.stochastic)
        if len(fits) > 1:  # those of the first fit are for all
            for net in (fit.net for fit in fits):
                net.callbacks_ = [(n, c) for n, c in net.callbacks_ if c not in net.strategies]
        self.keep(fits, start)

    def keep(self, fits: list[Fit], start: int) -> None:
        """Go on with some of the fits, whose members now begin at ``start``."""
        self.fits, n = fits, len(fits)
        self.members = slice(start, start + self.width * n)
        self.net = fits[0].net
        if n > 1:
            losses = [fit.net.criterion_.built for fit in fits]
            loss = merged(losses, self.width, self.net.dtype)
            criterion = Criterion(loss, self.net.n_classes, self.width * n).to(self.net.device)
            self.net = self.net.with_members(self.width * n, criterion)
        self.sources = _sources(fits)
        place = [next(i for i, s in enumerate(self.sources) if fit in s.fits) for fit in fits]
        self.place = torch.tensor(place).repeat_interleave(self.width).to(self.net.device)
        rates = [dropout_of(fit.net.module_) for fit in fits]
        self.rate: float | Tensor = rates[0]
        if any(rate != rates[0] for rate in rates):
            self.rate = torch.tensor(rates, device=self.net.device).view(-1, 1, 1, 1)

    @property
    def done(self) -> bool:
        """Whether all of its fits have stopped training: nothing of theirs may change then."""
        return all(fit.done for fit in self.fits)

    def together(self, fits: Sequence[Fit]) -> list[Fit]:
        """Return the fits that stay if some do: a strategy's memory of several is not cut."""
        staying = [fit for fit in self.fits if fit in fits]
        if not staying or not self.strategies:
            return staying
        for fit in self.fits:
            fit.done = fit.done or fit not in staying
        return self.fits

    def drawing(self) -> AbstractContextManager[None]:
        """Let torch draw from the generators of this lane."""
        return drawing_from(self.generators, self.net.device)

    def tell(self, hook: str, **known: Any) -> None:
        """Call a hook of the strategies that several fits share."""
        if len(self.fits) > 1 and self.strategies:
            with self.drawing():
                for strategy in self.strategies:
                    getattr(strategy, hook)(self.net, **known)

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle the rows."""
        net, rows = self.net, self.fits[0].data.rows
        net.warming = epoch < round(net.warm_up * net.max_epochs)
        net.criterion_.at_epoch(epoch)
        self.cuts = batch_cuts(len(rows), net.batch_size)
        order = torch.randperm(len(rows), generator=self.generators[0]).to(rows.device)
        self.orders = [source.data.rows[order] for source in self.sources]

    def begin_step(self, epoch: int, step: int) -> float:
        """Return the factor of the learning rate."""
        schedule = self.net.schedule
        assert schedule is not None
        rate = schedule((epoch + self.cuts[step] / self.cuts[-1]) / self.epochs)
        if self.strategies:  # some ask the net
            self.net.optimizer_.param_groups[0]["lr"] = self.net.lr * rate
        return float(rate)

    def share(self, step: int) -> float:
        """Return the share of the rows that a step has."""
        return (self.cuts[step + 1] - self.cuts[step]) / self.cuts[-1]

    def batch(self, step: int) -> Batch:
        """Return the rows of a step; ``x`` has a member axis where the fits differ in rows."""
        cut = slice(self.cuts[step], self.cuts[step + 1])
        pairs = zip(self.sources, self.orders, strict=True)
        batch = self._joined([source.data.batch(order[cut]) for source, order in pairs])
        self.size = cut.stop - cut.start
        if self.done:
            return batch
        listening = self.net._listening
        if listening["on_batch_begin"] or listening["on_batch_end"]:
            self._notify("on_batch_begin", batch=batch, training=True)
        if listening["on_batch"]:
            with self.drawing():
                batch = self.net.edited(batch)
        return batch

    def _joined(self, parts: list[Batch]) -> Batch:
        first = parts[0]
        if len(first.weight) > 1 and len(self.fits) > 1:
            each = torch.arange(self.width, device=self.place.device).repeat(len(self.fits))
            weight = torch.stack([part.weight for part in parts])[self.place, each]
        elif len(parts) > 1:
            weight = torch.cat([part.weight for part in parts])[self.place]
        else:
            weight = first.weight
        if len(parts) == 1:
            return Batch(first.x, first.target, weight, first.index)
        x = torch.stack([part.x for part in parts])[self.place]
        target = torch.stack([part.target for part in parts])[self.place]
        return Batch(x, target, weight, first.index)

    def objective(self, batch: Batch, logits: Tensor, first: bool) -> Tensor:
        """Return the value of each member."""
        if self.done:
            return logits.new_zeros(len(logits))
        with self.drawing() if self.draws else nullcontext():
            return self.net.objective(batch, logits, first)

    def drop_mask(self, x: Tensor) -> Tensor:
        """Return the mask of dropout for this lane, ``(member or 1, sample, unit)``."""
        n, (_, size, units) = self.members.stop - self.members.start, x.shape
        if isinstance(self.rate, float) and not self.rate:
            return x.new_ones(n, size, units)
        shape = (self.width, self.size, units)
        mask = drop_mask(shape, self.rate, x, self.generators[-1])
        if mask.ndim == 4:
            mask = mask.flatten(0, 1)
        elif n < x.shape[0] or self.width > 1:
            mask = mask.repeat(len(self.fits), 1, 1)
        return nn.functional.pad(mask, (0, 0, 0, size - self.size)) if size > self.size else mask

    def end_step(self, batch: Batch, logits: Tensor, value: Tensor) -> None:
        """Let strategies remember."""
        if self.net._listening["on_batch_end"] and not self.done:
            known = {"y_pred": logits, "loss": value.sum()}
            self._notify("on_batch_end", batch=batch, training=True, **known)

    def _notify(self, hook: str, **known: Any) -> None:
        if len(self.fits) > 1:
            self.tell(hook, **known)
        else:
            with self.drawing():
                self.net.notify(hook, **known)


def _sources(fits: list[Fit]) -> list[Source]:
    sources: list[Source] = []
    for fit in fits:
        known = next((source for source in sources if source.trains_like(fit.data)), None)
        if known is None:
            sources.append(known := Source(fit.data))
        known.fits.append(fit)
    return sources
