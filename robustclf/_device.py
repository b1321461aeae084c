"""Where and in which precision a fit runs, and the random generators it forks there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustclf._distributed import own_cuda
from robustclf._registry import check_known, closest


def device_exists(device: str) -> bool:
    """Tell whether torch sees ``device`` on this machine."""
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return True
    backend = getattr(torch, wanted.type, None)
    if backend is None or not backend.is_available():
        return False
    return (wanted.index or 0) < int(backend.device_count())


def find_device(device: str) -> str:
    """Return the device to fit on; ``"auto"`` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return own_cuda() if device_exists("cuda") else "cpu"
    try:
        exists = device_exists(device)
    except (RuntimeError, TypeError) as error:
        options = ("auto", "cpu", "cuda")
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda' or another device of torch, got {device!r}"
            f"{closest(device, options)}"
        ) from error
    if not exists:
        raise ValueError(
            f"device={device!r} was asked for, but torch {torch.__version__} sees none here; use "
            "device='auto' or 'cpu'."
        )
    return device


def check_precision(precision: str, device: str) -> None:
    """Raise ``ValueError`` for an unknown precision, or bf16 on hardware that has none."""
    check_known("precision", [precision], ["float32", "float64", "bf16"])
    if precision == "bf16":
        on_cuda = torch.device(device).type == "cuda"
        cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        if not (torch.cuda.is_bf16_supported() if on_cuda else cpu.get("avx512_bf16")):
            raise ValueError(f"precision='bf16' needs hardware with it, and {device!r} has none.")


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch for a fit and leave the caller's generators as they were."""
    with torch.random.fork_rng(_cuda(device)):
        for generator in default_generators(device):
            generator.manual_seed(seed)
        yield


def random_states(device: str) -> list[Tensor]:
    """Return the states of the generators that a fit on ``device`` draws from."""
    return [generator.get_state() for generator in default_generators(device)]


@contextmanager
def resumed(states: list[Tensor], device: str) -> Iterator[None]:
    """Go on drawing from states, and leave the caller's generators as they were."""
    with torch.random.fork_rng(_cuda(device)):
        for generator, state in zip(default_generators(device), states, strict=True):
            generator.set_state(state)
        yield


def _cuda(device: str) -> list[torch.device]:
    return [torch.device(device)] if torch.device(device).type == "cuda" else []


def default_generators(device: str) -> list[torch.Generator]:
    """Return the generators that a fit on ``device`` draws from: of the CPU and of the device."""
    on_cuda = [torch.cuda.default_generators[d.index or 0] for d in _cuda(device)]
    return [torch.default_generator, *on_cuda]


def generators_at(states: list[Tensor], device: str) -> list[torch.Generator]:
    """Return generators of their own that go on from states."""
    places = [torch.device("cpu"), *_cuda(device)]
    generators = [torch.Generator(place) for place in places]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return generators
