"""Networks with a member axis: logits are ``(member, sample, class)``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclf._distributed import Share, by_share
from robustclf.modules._layers import (
    Activation,
    Dropout,
    MemberLayer,
    MemberLayerNorm,
    MemberLinear,
    TabularInput,
)


class Headed(nn.Module):
    """Networks that are a linear head on features, one per member."""

    needs_held_out: ClassVar[bool] = False
    head: MemberLinear

    def embed(self, x: Tensor) -> Tensor:
        """Return what the last hidden layer says, ``(member, sample, width)``."""
        raise NotImplementedError

    def drop(self, features: Tensor) -> Tensor:
        """Set some of the features to zero before the head reads them."""
        return features

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``(member, sample, width)`` and the logits of one pass."""
        features = self.embed(x)
        return features, self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(member, sample, in_features)`` to logits ``(member, sample, class)``."""
        return self.with_features(x)[1]


class MLP(Headed):
    """Multi-layer perceptrons, one per member: linear, activation, dropout, repeated.

    Parameters
    ----------
    n_members, in_features, n_classes : int
    hidden : sequence of int, default=(256, 256)
        Widths of the hidden layers; empty gives a linear model.
    activation : callable, default=torch.nn.functional.relu
    dropout : float, default=0.0
        Probability of setting a hidden unit to zero.

    Examples
    --------
    >>> from robustclf.modules import MLP
    >>> MLP(2, in_features=4, n_classes=3, hidden=(8,)).embed(torch.ones(2, 5, 4)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        n_members: int,
        in_features: int,
        n_classes: int,
        hidden: Sequence[int] = (256, 256),
        activation: Activation = F.relu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.layers = nn.ModuleList(MemberLinear(n_members, i, o) for i, o in pairwise(widths))
        self.head = MemberLinear(n_members, widths[-1], n_classes, gain=math.sqrt(1 / 3))
        self.activation = activation
        self.dropout = Dropout(dropout)

    def embed(self, x: Tensor) -> Tensor:
        """Return what the last hidden layer says, ``(member, sample, width)``."""
        for i, layer in enumerate(self.layers, start=1):
            x = self.activation(layer(x))
            x = self.dropout(x) if i < len(self.layers) else self.drop(x)
        return x

    def drop(self, features: Tensor) -> Tensor:
        """Apply dropout to the last hidden layer as to the others."""
        dropped: Tensor = self.dropout(features)
        return dropped


class ResNet(Headed):
    """Residual networks for tables, one per member.

    Every block adds ``dropout(linear(dropout(activation(linear(norm(x))))))`` to its input.

    Parameters
    ----------
    n_members, in_features, n_classes : int
    hidden : sequence of int, default=(256, 256)
        One block per entry, with that many hidden units; the first is also the width of the
        residual stream.
    activation : callable, default=torch.nn.functional.relu
    dropout : float, default=0.0

    Notes
    -----
    The paper normalises batches; here layers are normalised, so that a sample's prediction does
    not depend on its neighbours and members with different weights do not disturb each other.

    References
    ----------
    Gorishniy, Rubachev, Khrulkov, Babenko. Revisiting Deep Learning Models for Tabular Data.
    NeurIPS 2021. arXiv:2106.11959.

    Examples
    --------
    >>> from robustclf.modules import ResNet
    >>> ResNet(2, in_features=4, n_classes=3, hidden=(8, 16))(torch.ones(2, 5, 4)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        n_members: int,
        in_features: int,
        n_classes: int,
        hidden: Sequence[int] = (256, 256),
        activation: Activation = F.relu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("module 'resnet' needs at least one entry in hidden, got none.")
        width = hidden[0]
        self.stem = MemberLinear(n_members, in_features, width, gain=1.0)
        self.norms = nn.ModuleList(MemberLayerNorm(n_members, width) for _ in (*hidden, width))
        self.expand = nn.ModuleList(MemberLinear(n_members, width, h) for h in hidden)
        self.project = nn.ModuleList(MemberLinear(n_members, h, width, gain=1.0) for h in hidden)
        self.head = MemberLinear(n_members, width, n_classes, gain=math.sqrt(1 / 3))
        self.activation = activation
        self.dropout = Dropout(dropout)

    def embed(self, x: Tensor) -> Tensor:
        """Return the normalised residual stream after the last block."""
        x = self.stem(x)
        for norm, expand, project in zip(self.norms, self.expand, self.project, strict=False):
            inner = self.dropout(self.activation(expand(norm(x))))
            x = x + self.dropout(project(inner))
        return self.drop(self.activation(self.norms[-1](x)))


class ModuleMembers(nn.Module):
    """Members made of any torch module, one copy each, run one after the other.

    Parameters
    ----------
    modules : sequence of module
        Each maps ``(sample, feature)`` to ``(sample, class)``.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)

    def embed(self, x: Tensor) -> Tensor:
        """Return the input of each member's last linear layer."""
        return self.with_features(x)[0]

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of each member's last linear layer, and the logits."""
        pairs = [_with_features(member, rows) for member, rows in self._with_rows(x)]
        features, logits = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return features, logits

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(member, sample, feature)`` to logits ``(member, sample, class)``."""
        return torch.stack([member(rows) for member, rows in self._with_rows(x)])

    def _with_rows(self, x: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yield the members, each with rows of its own, which it may change in place."""
        return ((member, rows.clone()) for member, rows in zip(self.members, x, strict=True))


def _with_features(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"embed needs a module with a torch.nn.Linear layer, got {module!r}.")
    seen: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = module(x)
    finally:
        hook.remove()
    return seen[-1], logits


class Network(nn.Module):
    """A stack of members: input embeddings, then the members' networks.

    Parameters
    ----------
    inputs : TabularInput
    body : module
        Maps ``(member, sample, inputs.out_features)`` to ``(member, sample, class)``.
    n_members : int
    """

    share: Share | None = None
    """Rows that this process runs, while several processes train the stack together."""
    arguments: dict[str, Any] | None = None
    """What :func:`make_network` builds the body from; None around modules that are not of here."""

    def __init__(self, inputs: TabularInput, body: nn.Module, n_members: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.body = body
        self.n_members = n_members

    @by_share
    def forward(self, x: Tensor) -> Tensor:
        """Map ``([member,] sample, feature)`` to logits ``(member, sample, class)``."""
        logits: Tensor = self.body(self._read(x))
        return logits

    @by_share
    def embed(self, x: Tensor) -> Tensor:
        """Return the penultimate features, ``(member, sample, width)``."""
        features: Tensor = self.body.embed(self._read(x))  # type: ignore[operator]
        return features

    @by_share
    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penultimate features and the logits of one pass."""
        both: tuple[Tensor, Tensor] = self.body.with_features(self._read(x))  # type: ignore[operator]
        return both

    def _read(self, x: Tensor) -> Tensor:
        read: Tensor = self.inputs(x)
        return read.expand(self.n_members, *read.shape[-2:])

    @torch.no_grad()
    def reset_members(self, seeds: Sequence[int]) -> None:
        """Draw each member's weights from a generator of its own.

        A member starts from the same weights whatever stack it is part of.
        """
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for layer in self.modules():
                if isinstance(layer, MemberLayer):
                    layer.reset_member(member, generator)

    def keep_members(self, n: int) -> None:
        """Drop all members but the first ``n``."""
        self.n_members = n
        if isinstance(self.body, ModuleMembers):
            self.body.members = self.body.members[:n]
        elif isinstance(n_kept := getattr(self.body, "n_kept", None), Tensor):
            self.body.n_kept = n_kept[:n].clone()
        stacked = self.inputs if isinstance(self.body, ModuleMembers) else self
        for parameter in stacked.parameters():
            parameter.data = parameter.data[:n].clone()
            parameter.grad = None
