"""Sums over the values of a member and factors for them, however its parameters are stored.

A parameter of a group with ``stacked=True`` is ``(member, ...)``; a group with ``stacked=False``
holds parameters of one member, whose number is ``group["member"]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]
Trained = list[tuple[Group, Tensor, Tensor]]  # group, parameter, gradient

ONE_MEMBER = {"stacked": False, "member": 0}  # of the groups outside a stack
TINY = torch.finfo(torch.float32).tiny


def with_gradient(groups: Iterable[Group]) -> Trained:
    """Return the parameters that have a gradient, each after its group and before the gradient."""
    return [(g, p, p.grad) for g in groups for p in g["params"] if p.grad is not None]


def sum_each(value: Tensor, group: Group) -> Tensor:
    """Sum one tensor over all but the members; of a shape that broadcasts with ``value``."""
    summed = list(range(int(group["stacked"]), value.ndim))
    return value.sum(summed, keepdim=True) if summed else value


def sum_members(groups: list[Group], terms: Iterable[tuple[Group, Tensor]]) -> Tensor:
    """Sum tensors of the shapes of the parameters over all of each member, ``(member,)``."""
    parameters = [(group, p) for group in groups for p in group["params"]]
    n = max(len(p) if group["stacked"] else group["member"] + 1 for group, p in parameters)
    total: Tensor = parameters[0][1].new_zeros(n)
    for group, term in terms:
        summed = sum_each(term, group).flatten()
        if group["stacked"]:
            total += summed
        else:
            total[group["member"]] += summed[0]
    return total


def of_members(values: Tensor, group: Group, p: Tensor) -> Tensor:
    """Return a value per member, ``(member,)``, in a shape that broadcasts with ``p``."""
    return values.view(-1, *[1] * (p.ndim - 1)) if group["stacked"] else values[group["member"]]


def is_matrix(group: Group, p: Tensor) -> bool:
    """Whether a parameter has two axes or more in each member."""
    return p.ndim - int(group["stacked"]) > 1
