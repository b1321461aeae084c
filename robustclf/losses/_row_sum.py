"""Sums over the classes whose derivative is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import Scalar

BLOCK = 65_536  # numbers at a time, so that what is computed from them stays in the cache


def row_sum(
    x: Tensor, plain: Callable[[Tensor], Tensor], fast: Callable[[Tensor, Tensor, Tensor], object]
) -> Tensor:
    """Return `plain(x).sum(-1, keepdim=True)`, at half the cost for a large `x`.

    Automatic differentiation keeps or makes an array of the size of `x` for each operation, and
    with many classes most of its time goes into fetching their memory. Here value and derivative
    come out of one pass over blocks of rows.

    Parameters
    ----------
    x : Tensor of shape (..., class)
    plain : callable
        The summand, elementwise. It serves where `fast` cannot: under `torch.func` and
        `torch.compile`, and for second derivatives.
    fast : callable
        `fast(x, total, slope)` of a block of rows writes the sums of the summand to `total`, of
        shape `(row, 1)`, and its derivative to `slope`.

    Examples
    --------
    >>> def fast(x, total, slope):
    ...     torch.exp(x, out=slope)
    ...     torch.sum(slope, -1, keepdim=True, out=total)
    >>> row_sum(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.exp, fast)
    tensor([[ 3.7183],
            [27.4746]])
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return plain(x).sum(-1, keepdim=True)
    total: Tensor = _RowSum.apply(x, plain, fast)  # type: ignore[no-untyped-call]  # of torch
    return total


def power_sum(log_p: Tensor, q: Scalar) -> Tensor:
    """Return `sum_k p_k^q`, `(..., 1)`."""

    def plain(log_p: Tensor) -> Tensor:
        return torch.exp(q * log_p)

    def fast(log_p: Tensor, total: Tensor, slope: Tensor) -> None:
        torch.sum(torch.exp(torch.mul(log_p, q, out=slope), out=slope), -1, True, out=total)
        slope.mul_(q)

    if isinstance(q, Tensor):
        return plain(log_p).sum(-1, keepdim=True)
    return row_sum(log_p, plain, fast)


def square_sum(z: Tensor) -> Tensor:
    """Return `sum_k z_k^2`, `(..., 1)`."""

    def fast(z: Tensor, total: Tensor, slope: Tensor) -> None:
        torch.sum(torch.mul(z, z, out=slope), -1, True, out=total)
        torch.mul(z, 2, out=slope)

    return row_sum(z, torch.square, fast)


def negative_entropy(log_p: Tensor) -> Tensor:
    """Return `sum_k p_k log p_k`, `(..., 1)`."""

    def plain(log_p: Tensor) -> Tensor:
        return log_p.exp() * log_p

    def fast(log_p: Tensor, total: Tensor, slope: Tensor) -> None:
        p = log_p.exp()
        torch.sum(torch.mul(p, log_p, out=slope), -1, True, out=total)
        slope.add_(p)

    return row_sum(log_p, plain, fast)


class _RowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plain: Any, fast: Any) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        total, slope = rows.new_empty(len(rows), 1), torch.empty_like(rows)
        n = max(1, BLOCK // x.shape[-1])
        for block in zip(*(part.split(n) for part in (rows, total, slope)), strict=True):
            fast(*block)
        ctx.save_for_backward(x, slope.view_as(x))
        ctx.plain = plain
        return total.view(*x.shape[:-1], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            (slope,) = torch.autograd.grad(ctx.plain(x).sum(), x, create_graph=True)
        return grads[0] * slope, None, None
