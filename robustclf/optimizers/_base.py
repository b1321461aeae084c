"""Aliases of the optimisers, with those of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.optim import Optimizer

from robustclf._registry import Registry
from robustclf.losses._hyperparameters import check_range

OPTIMIZERS = Registry("optimizer", Optimizer)
for _alias, _optimizer in {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
}.items():
    OPTIMIZERS.register(_alias)(_optimizer)


def get_optimizer(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """Return the optimiser class an alias or a class stands for.

    Parameters
    ----------
    optimizer : str or class
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"nadam"``, ``"radam"``, ``"rmsprop"`` of torch,
        ``"fadam"``, ``"momo"``, ``"momo_adam"``, the wrappers ``"sam"``, ``"asam"``, ``"awp"``, or
        any class with the interface of :class:`torch.optim.Optimizer`.

    Raises
    ------
    ValueError
        For an unknown alias, with the closest match.

    Examples
    --------
    >>> from robustclf.optimizers import get_optimizer
    >>> get_optimizer("sgd").__name__
    'SGD'
    """
    if isinstance(optimizer, type):
        return optimizer
    kind = OPTIMIZERS.get(optimizer)
    assert isinstance(kind, type)
    return kind


def optimizer_alias(kind: type[Optimizer]) -> str | type[Optimizer]:
    """Return the alias of an optimiser class, or a class that has none.

    Examples
    --------
    >>> from robustclf.optimizers import get_optimizer, optimizer_alias
    >>> optimizer_alias(get_optimizer("sgd"))
    'sgd'
    """
    aliases = {OPTIMIZERS.get(alias): alias for alias in OPTIMIZERS.names()}
    return aliases.get(kind, kind)


def check_betas(betas: Sequence[float]) -> None:
    """Raise a ValueError unless `betas` are two numbers in [0, 1).

    Examples
    --------
    >>> check_betas((0.9,))
    Traceback (most recent call last):
    ValueError: betas must be two numbers in [0, 1), got (0.9,)
    """
    if np.shape(betas) != (2,):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    for i, beta in enumerate(betas):
        check_range(f"betas[{i}]", beta, "[0, 1)")
