"""Networks with a member axis, and the embeddings of numbers and categories in front of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional as F

from robustclf._random import seeded
from robustclf._registry import Registry, check_known
from robustclf.modules._layers import (
    Activation,
    Dropout,
    MemberLayerNorm,
    MemberLinear,
    NumericEmbedding,
    PeriodicEmbedding,
    PiecewiseLinearEmbedding,
    TabularInput,
    drop_mask,
)
from robustclf.modules._nested import NestedDropout, NestedMLP, NestedResNet
from robustclf.modules._networks import MLP, ModuleMembers, Network, ResNet

__all__ = [
    "MLP",
    "Dropout",
    "MemberLayerNorm",
    "MemberLinear",
    "ModuleMembers",
    "NestedDropout",
    "NestedMLP",
    "NestedResNet",
    "Network",
    "PeriodicEmbedding",
    "PiecewiseLinearEmbedding",
    "ResNet",
    "TabularInput",
    "drop_mask",
    "embeddable",
    "make_embedding",
    "make_network",
    "needs_held_out",
]

MODULES = Registry("module", nn.Module)
MODULES.register("mlp")(MLP)
MODULES.register("resnet")(ResNet)
MODULES.register("nested_mlp")(NestedMLP)
MODULES.register("nested_resnet")(NestedResNet)

# relu in place: nothing else reads what the layer before it computes
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu_, "tanh": torch.tanh} | {
    name: getattr(F, name) for name in ("gelu", "silu", "selu", "elu", "mish", "leaky_relu")
}

EMBEDDINGS = Registry("numeric_embedding", nn.Module)
EMBEDDINGS.register("periodic")(PeriodicEmbedding)
EMBEDDINGS.register("piecewise_linear")(PiecewiseLinearEmbedding)


def embeddable(numbers: Any) -> list[int]:
    """Return the columns that an embedding can tell more of: of two values any function is linear.

    Parameters
    ----------
    numbers : ndarray or CSR matrix of shape (sample, n_numeric)

    Returns
    -------
    columns : list of int
        Those of three values or more, in their order.

    Examples
    --------
    >>> embeddable(np.array([[0.0, 1.0, 5.0], [1.0, 1.5, 5.0], [0.0, 2.0, 5.0]]))
    [1]
    """
    n, d = numbers.shape
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    if sparse.issparse(numbers):
        low, high = low.toarray().ravel(), high.toarray().ravel()
        column, value = numbers.indices, numbers.data
        between = (value > low[column]) & (value < high[column])
        three = np.bincount(column, between, minlength=d) > 0
        three |= (low < 0) & (high > 0) & (np.bincount(column, minlength=d) < n)
    else:
        three = ((numbers > low) & (numbers < high)).any(axis=0)
    columns: list[int] = np.flatnonzero(three).tolist()
    return columns


def make_embedding(
    name: str | None, numbers: Any, n_members: int, n_bins: int = 16
) -> NumericEmbedding | None:
    """Build the numeric embedding ``name`` for training rows ``(sample, n_numeric)``.

    Parameters
    ----------
    name : {None, "periodic", "piecewise_linear"}
    numbers : ndarray or sparse matrix of shape (sample, n_numeric)
        The bins of ``"piecewise_linear"`` are quantiles of these rows.
    n_members : int
    n_bins : int, default=16

    Raises
    ------
    ValueError
        For an unknown name, with the closest match.
    """
    if name is None:
        return None
    kind = EMBEDDINGS.get(name)
    if numbers.shape[1] == 0:
        return None
    if kind is PeriodicEmbedding:
        return PeriodicEmbedding(n_members, numbers.shape[1])
    rows = numbers if isinstance(numbers, np.ndarray) else numbers.toarray()
    edges = np.quantile(rows, np.linspace(0, 1, n_bins + 1), axis=0)
    return PiecewiseLinearEmbedding(torch.from_numpy(edges))


def make_network(
    module: str | Callable[..., nn.Module] | nn.Module,
    inputs: TabularInput,
    n_members: int,
    n_classes: int,
    *,
    hidden: Sequence[int],
    activation: str | Activation,
    dropout: float,
    seeds: Sequence[int],
    **params: Any,
) -> Network:
    """Build a stack of ``n_members`` networks behind ``inputs`` and draw their weights.

    Parameters
    ----------
    module : {"mlp", "resnet", "nested_mlp", "nested_resnet"}, module class or module
        A class is called as ``module(in_features, n_classes, **params)`` once per member; an
        instance that maps ``(sample, in_features)`` to ``(sample, n_classes)`` is copied, and all
        but its first copy reset with ``reset_parameters`` where its layers have that.
    inputs : TabularInput
    n_members, n_classes : int
    hidden, activation, dropout
        For the networks of this package; see :class:`MLP`.
    seeds : sequence of int, one per member
    **params
        Further arguments of ``module``.

    Raises
    ------
    ValueError
        For an unknown alias, with the closest match, for an activation that has parameters, and
        where a module of the user cannot take the inputs or has another number of outputs.
    TypeError
        For an activation that is a class, and where ``module`` is called and does not make a
        module, or this gives no tensor.
    """
    if isinstance(module, str):
        kind = MODULES.get(module)
        allowed = list(signature(kind).parameters)[6:]
        check_known(f"parameter of module {module!r}", params, allowed)
        if isinstance(activation, str):
            check_known("activation", [activation], ACTIVATIONS)
            activation = ACTIVATIONS[activation]
        _check_activation(activation)
        body = kind(
            n_members, inputs.out_features, n_classes, tuple(hidden), activation, dropout, **params
        )
    else:
        if isinstance(module, nn.Module) and params:
            raise ValueError(
                f"module__{next(iter(params))} has no effect on a module that is built."
            )
        built = []
        for i in range(n_members):
            with seeded(seeds[i], "cpu"):
                built.append(_build(module, i, inputs.out_features, n_classes, params))
        _check_outputs(built[0], inputs.out_features, n_classes)
        body = ModuleMembers(built)
    network = Network(inputs, body, n_members)
    if isinstance(module, str) and not isinstance(activation, nn.Module):
        alias = [name for name, function in ACTIVATIONS.items() if function is activation]
        network.arguments = {
            "module": module,
            "n_classes": n_classes,
            "hidden": tuple(hidden),
            "activation": alias[0] if alias else activation,
            "dropout": dropout,
            **params,
        }
    network.reset_members(seeds)
    return network


def _check_activation(activation: Activation) -> None:
    if isinstance(activation, type):
        raise TypeError(f"activation must be a function or a module, got the class {activation!r}.")
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        raise ValueError(
            f"activation={activation!r} has parameters, which all members would share: put it into "
            "a module of your own."
        )


@torch.no_grad()
def _check_outputs(module: nn.Module, in_features: int, n_classes: int) -> None:
    training = module.training
    try:
        like = next(module.parameters(), torch.empty(0))
        rows = torch.zeros(2, in_features, dtype=like.dtype, device=like.device)
        with torch.random.fork_rng([]):
            logits = module.eval()(rows)
    except RuntimeError as error:
        raise ValueError(
            f"module cannot take rows of {in_features} encoded columns: {error}"
        ) from error
    module.train(training)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"module must map rows to a tensor of logits, got {type(logits).__name__}.")
    if logits.shape != (2, n_classes):
        raise ValueError(
            f"module must map (sample, {in_features}) to (sample, {n_classes}), a column for each "
            f"class; of 2 rows it makes {tuple(logits.shape)}."
        )


def needs_held_out(module: Any) -> bool:
    """Whether ``module``, as :func:`make_network` takes it, chooses something on held-out rows.

    Examples
    --------
    >>> needs_held_out("mlp"), needs_held_out("nested_mlp")
    (False, True)
    """
    return isinstance(module, str) and bool(getattr(MODULES.get(module), "needs_held_out", False))


def _build(
    module: Callable[..., nn.Module] | nn.Module,
    member: int,
    in_features: int,
    n_classes: int,
    params: dict[str, Any],
) -> nn.Module:
    if not isinstance(module, nn.Module):
        made = module(in_features, n_classes, **params)
        if not isinstance(made, nn.Module):
            raise TypeError(f"module must make a torch.nn.Module, got {made!r} of {module!r}.")
        return made
    network = copy.deepcopy(module)
    if member:
        for layer in network.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return network
