"""Layers with a member axis: parameters ``(member, ...)``, activations ``(member, sample, k)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

LARGEST = torch.finfo(torch.float32).max


class MemberLayer(nn.Module):
    """A layer whose parameters are drawn one member at a time."""

    def reset_member(self, member: int, generator: Generator) -> None:
        """Draw the parameters of one member."""
        raise NotImplementedError


class MemberLinear(MemberLayer):
    """One affine map per member, ``x_m @ W_m + b_m``, as one batched product.

    Parameters
    ----------
    n_members, in_features, out_features : int
    gain : float, default=sqrt(2)
        Weights start uniform in ``+-gain * sqrt(3 / in_features)`` (standard deviation
        ``gain / sqrt(in_features)``): sqrt(2) before a ReLU (He), smaller for an output layer.

    Examples
    --------
    >>> layer = MemberLinear(4, in_features=3, out_features=2)
    >>> layer(torch.zeros(4, 5, 3)).shape
    torch.Size([4, 5, 2])
    """

    def __init__(
        self, n_members: int, in_features: int, out_features: int, gain: float = math.sqrt(2)
    ) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(n_members, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(n_members, 1, out_features))

    def reset_member(self, member: int, generator: Generator) -> None:
        """Draw the weights of one member."""
        bound = self.gain * math.sqrt(3 / max(self.weight.shape[1], 1))
        self.weight[member].uniform_(-bound, bound, generator=generator)
        self.bias[member].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(member, sample, in_features)`` to ``(member, sample, out_features)``."""
        return torch.baddbmm(self.bias, x, self.weight)


class MemberLayerNorm(nn.Module):
    """Layer normalisation with one scale and shift per member."""

    def __init__(self, n_members: int, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n_members, 1, features))
        self.shift = nn.Parameter(torch.zeros(n_members, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``(member, sample, features)``."""
        return torch.addcmul(self.shift, F.layer_norm(x, x.shape[-1:]), self.scale)


class Dropout(nn.Module):
    """Set units to zero with probability p and divide the others by 1 - p.

    On a CPU a unit takes 16 random bits, four units a draw, which is several times faster than the
    Bernoulli draws of :func:`torch.nn.functional.dropout`; p is rounded to a multiple of 2^-16.

    Parameters
    ----------
    p : float in [0, 1)

    Examples
    --------
    >>> Dropout(0.5)(torch.ones(2, 8, 4)).unique()
    tensor([0., 2.])
    """

    lanes: Sequence[Any] = ()  # of a stack of fits, which draw apart: see robustclf._lanes

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop units of ``(member, sample, k)`` while training."""
        if self.training and self.lanes:
            masks = [lane.drop_mask(x) for lane in self.lanes]
            return x * (torch.cat(masks) if len(masks) > 1 else masks[0])
        if not self.training or not self.p:
            return x
        if x.is_cuda:
            return F.dropout(x, self.p)
        return x * drop_mask(x.shape, self.p, x)


def drop_mask(
    shape: Sequence[int], p: float | Tensor, like: Tensor, generator: Generator | None = None
) -> Tensor:
    """Return 0 with probability p and else 1 / (1 - p), for each of ``shape``.

    A tensor p broadcasts with the shape; all of its probabilities then read the same bits.
    """
    n, levels = math.prod(shape), 2**16
    draws = torch.empty(-(-n // 4), dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    bits = draws.view(torch.int16)[:n].view(*shape)
    kept = like.new_empty(0)  # comparisons are written to it at once: from bool takes much longer
    if isinstance(p, Tensor):
        dropped = (p.double() * levels).round().clamp(max=levels - 1)
        torch.ge(bits, (dropped - levels // 2).to(torch.int16), out=kept)
        return kept.mul_((levels / (levels - dropped)).to(like.dtype))
    rounded = min(round(p * levels), levels - 1)
    return torch.ge(bits, rounded - levels // 2, out=kept).mul_(levels / (levels - rounded))


class CategoryEmbedding(MemberLayer):
    """One embedding table per member for a column of category codes.

    Parameters
    ----------
    n_members, cardinality, features : int
    """

    def __init__(self, n_members: int, cardinality: int, features: int) -> None:
        super().__init__()
        self.cardinality = cardinality
        self.weight = nn.Parameter(torch.empty(n_members, cardinality, features))

    def reset_member(self, member: int, generator: Generator) -> None:
        """Draw the vectors of one member, at the scale of a one-hot column."""
        features = self.weight.shape[-1]
        self.weight[member].normal_(0, 1 / math.sqrt(features), generator=generator)

    def forward(self, code: Tensor) -> Tensor:
        """Look up ``([member,] sample)`` codes."""
        if code.ndim == 1:
            return self.weight[:, code]
        return torch.take_along_dim(self.weight, code.unsqueeze(-1), dim=1)


class PeriodicEmbedding(MemberLayer):
    r"""Periodic features of each number, densely mixed, next to the number itself (PBLD).

    .. math:: x_j \mapsto \left(x_j,\; A_j^\top \cos(2 \pi w_j x_j + b_j)\right)

    Parameters
    ----------
    n_members, n_numeric : int
    n_frequencies : int, default=16
        Length of :math:`w_j`, drawn from N(0, sigma^2).
    n_outputs : int, default=3
        Columns of :math:`A_j`.
    sigma : float, default=0.1

    References
    ----------
    Holzmueller, Grinsztajn, Steinwart. Better by Default. NeurIPS 2024. arXiv:2407.04491.
    """

    def __init__(
        self,
        n_members: int,
        n_numeric: int,
        n_frequencies: int = 16,
        n_outputs: int = 3,
        sigma: float = 0.1,
    ) -> None:
        super().__init__()
        self.sigma = sigma
        shape = (n_members, 1, n_numeric, n_frequencies)
        self.frequency = nn.Parameter(torch.empty(shape))
        self.phase = nn.Parameter(torch.empty(shape))
        self.mix = nn.Parameter(torch.empty(n_members, n_numeric, n_frequencies, n_outputs))
        self.out_features = n_numeric * (1 + n_outputs)

    def reset_member(self, member: int, generator: Generator) -> None:
        """Draw the frequencies, phases and mixing weights of one member."""
        self.frequency[member].normal_(0, self.sigma, generator=generator)
        self.phase[member].uniform_(-math.pi, math.pi, generator=generator)
        bound = math.sqrt(3 / self.mix.shape[2])
        self.mix[member].uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``([member,] sample, n_numeric)`` numbers."""
        frequency, phase = self.frequency.movedim(1, -1), self.phase.movedim(1, -1)
        columns = x.mT.contiguous().unsqueeze(-2)
        angle = torch.addcmul(phase, 2 * math.pi * frequency, columns)
        mixed = (self.mix.mT @ angle.cos()).permute(0, 3, 1, 2).flatten(-2)  # rows last: faster
        return torch.cat([x.expand(*mixed.shape[:-1], -1), mixed], dim=-1)


class PiecewiseLinearEmbedding(nn.Module):
    """How far each number has got through each of its quantile bins, clipped to [0, 1].

    Parameters
    ----------
    edges : tensor of shape (bin + 1, n_numeric)
        Non-decreasing bin edges; an empty bin gives 0. The first and last bin are open, so that
        numbers beyond the training range keep their order.

    References
    ----------
    Gorishniy, Rubachev, Babenko. On Embeddings for Numerical Features in Tabular Deep Learning.
    NeurIPS 2022. arXiv:2203.05556.

    Examples
    --------
    >>> PiecewiseLinearEmbedding(torch.tensor([[0.0], [1.0], [3.0]]))(torch.tensor([[2.0]]))
    tensor([[1.0000, 0.5000]])
    """

    left: Tensor
    inverse_width: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        edges = edges.T.contiguous()  # (n_numeric, bin + 1)
        width = edges.diff(dim=-1)
        n_numeric, n_bins = width.shape
        low, high = torch.zeros(n_bins), torch.ones(n_bins)
        low[0], high[-1] = -torch.inf, torch.inf
        self.register_buffer("left", edges[:, :-1].contiguous())
        inverse = 1 / width
        self.register_buffer("inverse_width", torch.where(inverse < LARGEST, inverse, 0.0))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.out_features = n_numeric * n_bins

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``([member,] sample, n_numeric)`` numbers."""
        progress = (x.unsqueeze(-1) - self.left) * self.inverse_width
        return progress.clamp(self.low, self.high).flatten(-2)


NumericEmbedding = PeriodicEmbedding | PiecewiseLinearEmbedding


class TabularInput(nn.Module):
    """Turn encoded rows into what a network reads: embed the numbers and the category codes.

    Parameters
    ----------
    n_members : int
    n_dense : int
        Width of the leading dense block of a row.
    n_numeric : int
        Leading columns of that block that are numbers.
    cardinalities : sequence of int
        Number of codes of each of the trailing code columns.
    embedding : module, optional
        Maps ``(sample, len(embedded))`` to ``([member,] sample, embedding.out_features)``.
    embedded : sequence of int, optional
        Columns that ``embedding`` reads; None for all numbers. The others stand behind.
    max_features : int, default=8
        Largest size of a category's vector.
    """

    order: Tensor | None

    def __init__(
        self,
        n_members: int,
        n_dense: int,
        n_numeric: int,
        cardinalities: Sequence[int],
        embedding: NumericEmbedding | None = None,
        embedded: Sequence[int] | None = None,
        max_features: int = 8,
    ) -> None:
        super().__init__()
        self.n_dense = n_dense
        self.n_numeric = n_numeric
        self.embedding = embedding
        self.embedded = list(range(n_numeric)) if embedded is None else list(embedded)
        order = [*self.embedded, *sorted(set(range(n_dense)).difference(self.embedded))]
        moved = None if order == sorted(order) else torch.tensor(order)
        self.register_buffer("order", moved, persistent=False)
        self.categories = nn.ModuleList(
            CategoryEmbedding(n_members, n, min(max_features, n)) for n in cardinalities
        )
        self.out_features = n_dense + sum(min(max_features, n) for n in cardinalities)
        if embedding is not None:
            self.out_features += embedding.out_features - len(self.embedded)

    def forward(self, x: Tensor) -> Tensor:
        """Map encoded rows ``([member,] sample, n_dense + n_codes)`` to the network's input."""
        if self.embedding is None and not self.categories:
            return x
        dense = x[..., : self.n_dense]
        parts = [dense]
        if self.embedding is not None:
            dense = dense if self.order is None else dense.index_select(-1, self.order)
            n = len(self.embedded)
            parts = [self.embedding(dense[..., :n]), dense[..., n:]]
        codes = x[..., self.n_dense :].long().unbind(-1)
        parts += [table(code) for table, code in zip(self.categories, codes, strict=True)]
        if any(part.ndim == 3 for part in parts):
            members = max(part.shape[0] for part in parts if part.ndim == 3)
            parts = [part.expand(members, *part.shape[-2:]) for part in parts]
        parts = [part for part in parts if part.shape[-1]] or parts[:1]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


Activation = Callable[[Tensor], Tensor]
