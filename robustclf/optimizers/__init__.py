"""Optimisers: those of torch by alias, and those that know of the members of a stack.

A stack of networks is trained as if each were alone: a norm, an inner product or a step size is of
one member. Those that are not of torch:

=============== ==================================================================================
``"sam"``       sharpness-aware minimisation: the gradient at a nearby worse point
``"asam"``      the same in a neighbourhood that scales with the weights
``"awp"``       adversarial weight perturbation: each layer is moved by a share of its norm
``"momo"``      SGD with momentum whose step size comes from the value of the loss; try ``lr=1``
``"momo_adam"`` the same for Adam; try ``lr=0.01``
``"fadam"``     Adam as a natural gradient, clipped
=============== ==================================================================================

The first three are around another: ``optimizer="sam", optimizer__base="sgd"``. The learning rate of
all is the classifier's ``lr``, with its schedule; for ``"momo"`` and ``"momo_adam"`` it is the
largest that a step may have.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch.optim import Optimizer

from robustclf._registry import check_known
from robustclf.optimizers._base import OPTIMIZERS, get_optimizer, optimizer_alias
from robustclf.optimizers._stacked import LINEAR, StackedOptimizer
from robustclf.optimizers.fadam import FAdam
from robustclf.optimizers.momo import MoMo, MoMoAdam
from robustclf.optimizers.perturbed import ASAM, AWP, SAM, Perturbed, find_base

__all__ = [
    "ASAM",
    "AWP",
    "LINEAR",
    "OPTIMIZERS",
    "SAM",
    "FAdam",
    "MoMo",
    "MoMoAdam",
    "Perturbed",
    "StackedOptimizer",
    "check_optimizer",
    "fused",
    "get_optimizer",
    "knows_members",
    "optimizer_alias",
]


def fused(optimizer: str | type[Optimizer], device: str, params: dict[str, Any]) -> dict[str, bool]:
    """Return ``{"fused": True}`` where torch updates all parameters in one kernel."""
    *_, kind = _kinds(optimizer, params)
    has_kernel = kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
    if params.get("foreach"):  # the other way, which torch does not take beside this one
        return {}
    return {"fused": True} if has_kernel and torch.device(device).type in ("cpu", "cuda") else {}


def check_optimizer(optimizer: str | type[Optimizer], params: dict[str, Any]) -> None:
    """Raise ``ValueError`` for an unknown alias or a parameter the optimiser does not have."""
    kinds = _kinds(optimizer, params)
    name = optimizer if isinstance(optimizer, str) else kinds[0].__name__
    known = {parameter for kind in kinds for parameter in signature(kind).parameters}
    if "lr" in params:
        raise ValueError("the learning rate is the parameter lr, not optimizer__lr")
    own = known - {"params", "lr", "base_params"}
    check_known(f"parameter of optimizer {name!r}", params, sorted(own))


def knows_members(optimizer: str | type[Optimizer], params: dict[str, Any]) -> bool:
    """Tell whether an optimiser is one of ours: any other may couple the members of a stack."""
    known = [OPTIMIZERS.get(alias) for alias in OPTIMIZERS.names()]
    return all(kind in known for kind in _kinds(optimizer, params))


def _kinds(optimizer: str | type[Optimizer], params: dict[str, Any]) -> list[type[Optimizer]]:
    """Return the class of the optimiser and, of one around another, that of its base."""
    kind = get_optimizer(optimizer)
    if not issubclass(kind, Perturbed):
        return [kind]
    default = signature(kind).parameters["base"].default
    return [kind, find_base(params.get("base", default))]
