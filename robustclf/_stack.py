"""Train fits whose networks have one shape as one stack, each as it would be trained alone.

A stack holds the members of all fits side by side: one forward pass, one backward pass and one
step of the optimiser train them all. Fits that begin with the same random numbers and differ in
numbers alone (learning rate, parameters of the loss) form a lane, which draws once and computes its
losses at once; a fit with a strategy that is not ``stackable``, or with a callback that looks at
batches, is a lane of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robustclf._lanes import MEMBER_RATES, Fit, Lane, dropout_of
from robustclf._random import resumed
from robustclf.modules import Dropout, Network
from robustclf.optimizers import LINEAR, StackedOptimizer
from robustclf.strategies import Batch


class Stack:
    """Fits whose networks have one shape, trained as one network with a member axis.

    Parameters
    ----------
    fits : list of Fit
        All of one :meth:`Fit.shape`; none that :func:`stands_alone`.
    """

    def __init__(self, fits: Sequence[Fit]) -> None:
        by_lane: dict[Hashable, list[Fit]] = {}
        for fit in fits:
            by_lane.setdefault(fit.lane(), []).append(fit)
        self.lanes: list[Lane] = []
        start = 0
        for members in by_lane.values():
            self.lanes.append(Lane(members, start))
            start = self.lanes[-1].members.stop
        self.net = self.lanes[0].net
        self.epoch = 0
        self.module = _side_by_side([fit.net.module_ for fit in self.fits])
        self._read_by(start)
        self.optimizer = self._make_optimizer()
        with self._forked():
            for lane in self.lanes:
                with lane.drawing():
                    for fit in lane.fits:
                        with fit.judged():
                            fit.net.notify("on_train_begin", X=fit.data, y=None)
                lane.tell("on_train_begin", X=lane.fits[0].data, y=None)

    @property
    def fits(self) -> list[Fit]:
        """Fits in the order of their members."""
        return [fit for lane in self.lanes for fit in lane.fits]

    def members(self) -> Iterator[tuple[Fit, slice]]:
        """Yield the fits and where their members are."""
        for lane in self.lanes:
            for i, fit in enumerate(lane.fits):
                start = lane.members.start + i * lane.width
                yield fit, slice(start, start + lane.width)

    def train(self, until: int | None = None) -> None:
        """Train until so many epochs are done, or to the end."""
        until = self.net.max_epochs if until is None else until
        with self._forked():
            while self.epoch < until and not all(fit.done for fit in self.fits):
                self._train_epoch()
                self.epoch += 1
                done = [fit for fit in self.fits if fit.done]
                if len(self.fits) > len(done) >= len(self.fits) / 2:
                    self.keep([fit for fit in self.fits if not fit.done])

    def hand_over(self) -> None:
        """Copy the networks as they are into those of the fits."""
        for fit, members in self.members():
            if not fit.done:
                self._hand_over(fit, members)

    def finish(self) -> None:
        """Hand the networks to their fits, and tell these that the training has ended."""
        self.hand_over()
        for lane in self.lanes:
            lane.tell("on_train_end", X=lane.fits[0].data)
            for fit in lane.fits:
                if not fit.done:
                    fit.end()

    def _forked(self) -> AbstractContextManager[None]:
        return resumed(self.lanes[0].fits[0].prepared.states, self.net.device)

    # An epoch -------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        started = time.perf_counter()
        for lane in self.lanes:
            for fit in lane.fits:
                if not fit.done:
                    with fit.judged(), lane.drawing() if lane.draws else nullcontext():
                        fit.net.notify("on_epoch_begin", **fit.data.datasets())
            lane.tell("on_epoch_begin", **lane.fits[0].data.datasets())
            lane.begin_epoch(self.epoch)
        self.module.train()
        total: Tensor | float = 0.0
        for step in range(len(self.lanes[0].cuts) - 1):
            rates = [lane.begin_step(self.epoch, step) for lane in self.lanes]
            total = total + self._train_step(step, rates)
        assert isinstance(total, Tensor)
        for lane in self.lanes:
            lane.tell("on_epoch_end", **lane.fits[0].data.datasets())
        seconds = (time.perf_counter() - started) / len(self.fits)
        by_lane = list(zip(rates, self.lanes, strict=True))
        for fit, members in self.members():
            if not fit.done:
                with fit.judged():
                    lr = fit.net.lr * next(r for r, lane in by_lane if fit in lane.fits)
                    fit.net.record(float(total[members].mean()), lr, seconds)
                    if fit.watched:
                        self._hand_over(fit, members)
                        fit.net.validate(fit.data)
                        fit.net.notify("on_epoch_end", **fit.data.datasets())

    def _train_step(self, step: int, rates: list[float]) -> Tensor:
        """Take one step of all members; return their shares of the loss of the epoch."""
        batches = [lane.batch(step) for lane in self.lanes]
        x = self._rows(batches)
        logits: list[Tensor] = []

        def objective() -> Tensor:
            first = not logits
            self.optimizer.zero_grad()
            with self.net._autocast():
                out = self.module(x).to(self.net.dtype)
            logits[:] = [out[lane.members, : lane.size] for lane in self.lanes]
            each = zip(self.lanes, batches, logits, strict=True)
            value = torch.cat([lane.objective(b, z, first) for lane, b, z in each])
            value.sum().backward()
            return value.detach()

        value = self._moved(objective, rates)
        shares = []
        for lane, batch, z in zip(self.lanes, batches, logits, strict=True):
            lane.end_step(batch, z, value[lane.members])
            shares.append(value[lane.members] * lane.share(step))
        return torch.cat(shares)

    def _moved(self, objective: Callable[[], Tensor], rates: list[float]) -> Tensor:
        """Take the step of the optimiser, with the factor of the learning rate of each lane."""
        if not isinstance(self.optimizer, StackedOptimizer):
            for group in self.optimizer.param_groups:
                group["lr"] = self.net.lr * rates[0]
            value: Tensor = self.optimizer.step(objective)
            return value
        if len(set(rates)) == 1:
            return self.optimizer.step(objective, rates[0])
        counts = torch.tensor([lane.members.stop - lane.members.start for lane in self.lanes])
        rate = torch.tensor(rates, dtype=self.net.dtype).repeat_interleave(counts)
        return self.optimizer.step(objective, rate.to(self.net.device))

    def _rows(self, batches: list[Batch]) -> Tensor:
        if len(self.lanes) == 1:
            return batches[0].x
        parts, size = [], max(lane.size for lane in self.lanes)
        for lane, batch in zip(self.lanes, batches, strict=True):
            n = lane.members.stop - lane.members.start
            rows = batch.x.expand(n, *batch.x.shape[-2:])
            short = size - lane.size
            parts.append(nn.functional.pad(rows, (0, 0, 0, short)) if short else rows)
        return torch.cat(parts)

    def _hand_over(self, fit: Fit, members: slice) -> None:
        """Copy the members of a fit into its own network."""
        pairs = zip(fit.net.module_.parameters(), self.module.parameters(), strict=True)
        with torch.no_grad():
            for own, stacked in pairs:
                own.copy_(stacked[members])

    # The optimiser --------------------------------------------------------------------------------

    def _make_optimizer(self) -> Any:
        """Return the optimiser of all members."""
        named = [(name, p, self._all) for name, p in self.module.named_parameters()]
        for lane in self.lanes:
            if len(lane.fits) == 1:
                learned = lane.net.criterion_.named_parameters()
                named += [(name, p, lane.members) for name, p in learned]
        if self.net.optimizer not in LINEAR:
            own = [(name, p) for name, p, _ in named]
            groups, options = self.net.get_params_for_optimizer("optimizer", own)
            return self.net.optimizer(*groups, **options)
        settings = [fit.setting for fit, m in self.members() for _ in range(m.start, m.stop)]
        rates = {
            name: torch.tensor([setting[name] for setting in settings], dtype=self.net.dtype)
            for name in MEMBER_RATES
        }
        rates = {name: rate.to(self.net.device) for name, rate in rates.items()}
        parameters = [(p, members, self.net.decays(name, p)) for name, p, members in named]
        return StackedOptimizer(self.net.optimizer, parameters, **settings[0] | rates)

    @property
    def _all(self) -> slice:
        return slice(0, self.lanes[-1].members.stop)

    def keep(self, fits: Sequence[Fit]) -> None:
        """Drop all other fits, and what the optimiser remembers of them."""
        if not isinstance(self.optimizer, StackedOptimizer):
            return
        together = [fit for lane in self.lanes for fit in lane.together(fits)]
        if not together:  # these have stopped, and were dropped then
            for fit in self.fits:
                fit.done = True
            return
        kept = [torch.arange(m.start, m.stop) for fit, m in self.members() if fit in together]
        index = torch.cat(kept).to(self.net.device)
        self.optimizer.keep(index)
        for p in self.module.parameters():
            p.data, p.grad = p.data[index], None
        start, lanes = 0, []
        for lane in self.lanes:
            if staying := lane.together(fits):
                lane.keep(staying, start)
                lanes.append(lane)
                start = lane.members.stop
        self.lanes, self.net = lanes, lanes[0].net
        self._read_by(start)

    def _read_by(self, n: int) -> None:
        """Tell the layers how many members there are, and who draws their dropout."""
        self.module.n_members = n
        drops = any(dropout_of(fit.net.module_) for fit in self.fits)
        for layer in self.module.modules():
            if isinstance(layer, Dropout):
                layer.p, layer.lanes = 0.0, self.lanes if drops else ()


@torch.no_grad()
def _side_by_side(networks: Sequence[Network]) -> Network:
    """Return one network with the members of all."""
    stacked = copy.deepcopy(networks[0])
    each = zip(stacked.parameters(), *(network.parameters() for network in networks), strict=True)
    for parameter, *parts in each:
        parameter.data = torch.cat([part.data for part in parts])
    return stacked
