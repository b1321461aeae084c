"""Where and in which precision a fit runs."""

from __future__ import annotations

from typing import Any

import torch

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
