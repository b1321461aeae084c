"""Data-parallel fits: each process runs the network on its share of every batch.

All processes hold the same rows and cut the same batches. A network that is shared gives each of
them the outputs for the whole batch, so that losses, weights, memories and decisions are those of
one process, in every process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from robustclf._random import default_generators, drawing_from

Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, Tensor])


def n_processes() -> int:
    """Return how many processes fit together: 1 without a process group of torch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def is_first() -> bool:
    """Tell whether this process is the one that speaks for all."""
    return n_processes() == 1 or distributed.get_rank() == 0


def own_cuda() -> str:
    """Return the CUDA device of this process: that of its number on this machine."""
    if n_processes() == 1:
        return "cuda"
    number = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    return f"cuda:{number % torch.cuda.device_count()}"


def common_random_state(random_state: Any, device: str) -> np.random.RandomState:
    """Return the generator of a fit, where there is no seed that of the first process."""
    rng: np.random.RandomState = check_random_state(random_state)
    if random_state is None and n_processes() > 1:
        seed = torch.tensor(rng.randint(2**31 - 1), device=device)
        distributed.broadcast(seed, src=0)
        rng = np.random.RandomState(int(seed))
    return rng


@contextmanager
def data_parallel(net: Any, data: Any) -> Iterator[None]:
    """Share the network of ``net`` among the processes, if there are several.

    Parameters
    ----------
    net : RobustNet
    data : TrainingSet
        The same in every process.

    Raises
    ------
    ValueError
        In every process, if their data or parameters differ.
    """
    if n_processes() == 1:
        yield
        return
    _check_same(net, data)
    for part in (net.module_, net.criterion_):  # a module of the user may start at random
        for tensor in part.state_dict().values():
            distributed.broadcast(tensor, src=0)
    net.module_.share = Share(net.module_, net.device)
    try:
        yield
    finally:
        del net.module_.share


def _check_same(net: Any, data: Any) -> None:
    same = {
        "training rows": len(data.rows),
        "features": data.x.shape[1],
        "labels": _checksum(data.y),
        "weights": _checksum(data.weight),
        "batch_size": net.batch_size,
        "max_epochs": net.max_epochs,
        "random_state": torch.initial_seed() % 2**63,
        "parameters": sum(p.numel() for _, p in net.get_all_learnable_params()),
    }
    all_ = torch.zeros(n_processes(), len(same), dtype=torch.int64, device=net.device)
    all_[distributed.get_rank()] = torch.tensor(list(same.values()))
    distributed.all_reduce(all_)
    wrong = [
        f"{name} {values}"
        for name, values in zip(same, all_.T.tolist(), strict=True)
        if len(set(values)) > 1
    ]
    if wrong:
        raise ValueError(
            f"The {n_processes()} processes of a data-parallel fit have to call it with the same "
            f"rows in the same order and the same parameters, but they differ in: "
            f"{', '.join(wrong)}. Give all rows to each process; it takes its share of every batch."
        )


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.cpu().numpy().tobytes())


def average_gradients(net: Any) -> None:
    """Take the mean of the gradients over the processes that share the network of ``net``."""
    if net.module_.share is not None:
        net.module_.share.average(
            p.grad for _, p in net.get_all_learnable_params() if p.grad is not None
        )


def by_share(forward: Callable[[Any, Tensor], Outputs]) -> Callable[[Any, Tensor], Outputs]:
    """Have a method that maps rows to outputs look at its share of them where there is one."""

    @wraps(forward)
    def shared(network: Any, x: Tensor) -> Outputs:
        share: Share | None = network.share
        if share is None:
            return forward(network, x)
        return share.run(partial(forward, network), x)

    return shared


class Share:
    """The share of this process in the rows of each batch.

    The outputs of the shares, joined, are the same in every process, and so is all that is computed
    from them. Their gradient goes back to the own rows alone, times the number of processes: the
    mean over the processes is then the gradient of the whole batch, both for what the gradient
    reaches through the network and for what it reaches in each process alike (penalties on
    parameters, learned parts of a loss).

    Parameters
    ----------
    module : Network
    device : str
    """

    def __init__(self, module: Any, device: str) -> None:
        self.rank, self.n = distributed.get_rank(), distributed.get_world_size()
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self.device = device
        self.generators = [
            torch.Generator(g.device).manual_seed(g.initial_seed() + 1 + self.rank)
            for g in default_generators(device)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as None: a copy of a shared network runs alone."""
        return type(None), ()

    def run(self, function: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
        """Return what ``function`` gives for all rows of ``x``, ``([member,] sample, any)``."""
        n_rows = x.shape[-2]
        with drawing_from(self.generators, self.device):  # drop other units than the others
            outputs = function(_Split.apply(x, self))  # type: ignore[no-untyped-call]
        if statistics := [s for m in self.norms if m.training for s in _statistics(m)]:
            self.average(statistics)
        if isinstance(outputs, Tensor):
            return self._whole(outputs, n_rows)
        features, logits = outputs
        return self._whole(features, n_rows), self._whole(logits, n_rows)

    def _whole(self, part: Tensor, n_rows: int) -> Tensor:
        whole: Tensor = _Join.apply(part, self, n_rows)  # type: ignore[no-untyped-call]
        return whole

    def own(self, x: Tensor) -> Tensor:
        """Return the own rows of ``(..., sample, any)``."""
        n = x.shape[-2]
        start, stop = n * self.rank // self.n, n * (self.rank + 1) // self.n
        return x.narrow(-2, start, stop - start)

    def join(self, part: Tensor, n_rows: int) -> Tensor:
        """Put the rows ``(..., sample, any)`` of all processes together."""
        whole = part.new_zeros((*part.shape[:-2], n_rows, part.shape[-1]))
        self.own(whole).copy_(part)
        distributed.all_reduce(whole)  # shares may be unequal, which a gather does not take
        return whole

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one type by their means over the processes, at one go."""
        parts = list(tensors)
        flat = torch.cat([part.flatten() for part in parts])
        distributed.all_reduce(flat)
        means = (flat / self.n).split([part.numel() for part in parts])
        for part, mean in zip(parts, means, strict=True):
            part.data.copy_(mean.view_as(part))  # running means may be part of a graph


def _statistics(norm: _BatchNorm) -> list[Tensor]:
    return [s for s in (norm.running_mean, norm.running_var) if s is not None]


class _Split(torch.autograd.Function):
    """The own rows of a batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share) -> Tensor:
        ctx.share, ctx.n_rows = share, x.shape[-2]
        return share.own(x).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.share.join(gradient, ctx.n_rows) / ctx.share.n, None


class _Join(torch.autograd.Function):
    """The rows of all processes."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, share: Share, n_rows: int) -> Tensor:
        ctx.share = share
        return share.join(part, n_rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.share.own(gradient) * ctx.share.n, None, None
