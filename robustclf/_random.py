"""The random generators of torch that a fit draws from, and contexts that swap their states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Generator, Tensor

DRAWING = RLock()  # torch's own generators are one for all threads: fits in several take turns


def default_generators(device: str) -> list[Generator]:
    """Return the generators that a fit on ``device`` draws from: of the CPU and of the device."""
    on_cuda = [torch.cuda.default_generators[d.index] for d in _cuda(device)]
    return [torch.default_generator, *on_cuda]


def generators_at(states: Sequence[Tensor], device: str) -> list[Generator]:
    """Return generators of their own that go on from states."""
    generators = [Generator(place) for place in (torch.device("cpu"), *_cuda(device))]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return generators


def random_states(device: str) -> list[Tensor]:
    """Return the states of the generators that a fit on ``device`` draws from."""
    return [generator.get_state() for generator in default_generators(device)]


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch for a fit and leave the caller's generators as they were."""
    with DRAWING, torch.random.fork_rng(_cuda(device)):
        for generator in default_generators(device):
            generator.manual_seed(seed)
        yield


@contextmanager
def resumed(states: Sequence[Tensor], device: str) -> Iterator[None]:
    """Go on drawing from states, and leave the caller's generators as they were."""
    with drawing_from(generators_at(states, device), device):
        yield


@contextmanager
def drawing_from(generators: Sequence[Generator], device: str) -> Iterator[None]:
    """Let torch draw from these generators in the place of its own, which stay as they were."""
    defaults = default_generators(device)
    with DRAWING:
        before = [default.get_state() for default in defaults]
        for default, own in zip(defaults, generators, strict=True):
            default.set_state(own.get_state())
        try:
            yield
        finally:
            for default, own, state in zip(defaults, generators, before, strict=True):
                own.set_state(default.get_state())
                default.set_state(state)


def _cuda(device: str) -> list[torch.device]:
    place = torch.device(device)
    if place.type != "cuda":
        return []
    return [torch.device("cuda", torch.cuda.current_device()) if place.index is None else place]
