"""Hyper-parameters: one number, or one per stacked network."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# a tensor is of shape (member, 1, 1), for logits (member, sample, class)
Scalar = float | Tensor


def check_range(name: str, value: Scalar, interval: str) -> None:
    """Raise a ValueError unless all of `value` lies in `interval`.

    Examples
    --------
    >>> check_range("q", 1.5, "(0, 1]")
    Traceback (most recent call last):
    ValueError: q must lie in (0, 1], got 1.5
    """
    low, high = map(float, interval[1:-1].split(","))
    number = value if isinstance(value, Real | Tensor) else math.nan
    x = torch.as_tensor(number, dtype=torch.float64, device="cpu")
    above = x >= low if interval[0] == "[" else x > low
    below = x <= high if interval[-1] == "]" else x < high
    if not (above & below).all():
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def log(value: Scalar) -> Scalar:
    """Natural logarithm of a hyper-parameter."""
    return value.log() if isinstance(value, Tensor) else math.log(value)


def nonzero(value: Scalar) -> Scalar:
    """Return the value, or 1e-30 for 0, with which `expm1(s * x) / s` is its limit x."""
    if isinstance(value, Tensor):
        return torch.where(value == 0, 1e-30, value)
    return value or 1e-30


def every(value: Scalar, condition: Callable[[Tensor], Tensor]) -> bool:
    """Whether a condition holds for a hyper-parameter of all members."""
    return bool(condition(torch.as_tensor(value)).all())


def check_integer(name: str, value: int | Tensor, interval: str) -> None:
    """Raise a ValueError unless all of `value` are whole numbers in `interval`."""
    check_range(name, value, interval)
    whole = every(value, lambda x: x % 1 == 0)
    if not whole or not isinstance(value, Integral | Tensor) or isinstance(value, bool):
        kind = f" (a {type(value).__name__})" if whole else ""
        raise ValueError(f"{name} must be a whole number in {interval}, got {value!r}{kind}")


def check_flag(name: str, value: bool) -> None:
    """Raise a ValueError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def largest(value: int | Tensor) -> int:
    """Return the largest value of any member."""
    return int(value.max()) if isinstance(value, Tensor) else value


def at_least(x: Tensor, bound: Scalar) -> Tensor:
    """Return the larger of `x` and `bound`: faster backwards than `clamp`, where it is a number."""
    return x.maximum(bound) if isinstance(bound, Tensor) else F.threshold(x, bound, bound)


def like(value: Scalar, x: Tensor) -> Tensor:
    """Return the value as a tensor of the type and on the device of `x`."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)
