"""What a loss is: a value for each sample at each label, never reduced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from numbers import Real
from operator import add

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from robustclf._registry import Registry

# a hyper-parameter: one number, or one per stacked network as a tensor of shape (member, 1, 1)
Scalar = float | Tensor


class Loss(BaseEstimator):
    """Base class of all losses: hyper-parameters and formulas, no state and no reduction.

    A subclass implements `per_label`, or `of_log_p` if it is a `PointwiseLoss`. Every formula
    broadcasts over leading axes: logits are `(..., class)`, and a hyper-parameter is a number or
    a tensor of shape `(member, 1, 1)` for logits `(member, sample, class)`.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import CrossEntropy, MeanAbsoluteError
    >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
    >>> loss = 0.5 * CrossEntropy() + MeanAbsoluteError()
    >>> loss.per_label(logits)
    tensor([[0.3328, 2.0133, 2.0133]])
    >>> loss(logits, torch.tensor([1]))
    tensor([2.0133])
    >>> loss(logits, torch.tensor([[0.5, 0.5, 0.0]]))
    tensor([1.1730])
    """

    @property
    def bounded(self) -> bool:
        """Whether no logits give a loss beyond some constant, so one wrong label costs little."""
        return False

    @property
    def symmetric(self) -> bool:
        """Whether the losses at all labels sum to a constant, for all hyper-parameters allowed.

        The minimiser of the risk then does not change under symmetric label noise.
        """
        return False

    def check(self, n_classes: int) -> None:
        """Raise a ValueError that names any hyper-parameter out of its range."""

    def per_label(self, logits: Tensor) -> Tensor:
        """Loss of each sample at each label, `(..., class)` like `logits`."""
        raise NotImplementedError

    def at_label(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`; the last axis lets `(member, 1, 1)` broadcast."""
        return self.per_label(logits).gather(-1, index)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each sample, `(...)`.

        Parameters
        ----------
        logits : Tensor of shape (..., class)
        target : Tensor
            Labels, int64 of a shape that broadcasts to the leading axes of `logits`; or
            floating-point weights of the labels, of a shape that broadcasts to that of `logits`.
        """
        if target.is_floating_point():
            return (target * self.per_label(logits)).sum(-1)
        index = target.unsqueeze(-1).expand(*logits.shape[:-1], 1)
        return self.at_label(logits, index).squeeze(-1)

    def _terms(self) -> tuple[tuple[str | Loss, ...], tuple[Scalar, ...]]:
        return (self,), (1.0,)

    def __add__(self, other: Loss) -> Sum:
        if not isinstance(other, Loss):
            return NotImplemented
        (losses, weights), (more_losses, more_weights) = self._terms(), other._terms()
        return Sum(losses + more_losses, weights + more_weights)

    def __mul__(self, weight: Scalar) -> Sum:
        if not isinstance(weight, Real | Tensor):
            return NotImplemented
        losses, weights = self._terms()
        return Sum(losses, tuple(weight * w for w in weights))

    __rmul__ = __mul__


class PointwiseLoss(Loss):
    """Base class of the losses that depend on the probability p_y of the label alone.

    A subclass implements `of_log_p`. For integer targets log p is gathered before it is applied,
    so that hard labels cost no more than `torch.nn.functional.cross_entropy`.
    """

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        raise NotImplementedError

    def per_label(self, logits: Tensor) -> Tensor:
        """Loss of each sample at each label, `(..., class)` like `logits`."""
        return self.of_log_p(logits.log_softmax(-1))

    def at_label(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        return self.of_log_p(logits.log_softmax(-1).gather(-1, index))


LOSSES = Registry("loss", Loss)


class Sum(Loss):
    """Weighted sum of losses, `sum_i weights[i] * losses[i]`; `2 * a + b` builds one.

    Parameters
    ----------
    losses : sequence of str or Loss, default=("ce",)
        Aliases or instances.
    weights : sequence of float or Tensor, default=None
        One weight in [0, inf) for each loss; None means ones.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import MeanAbsoluteError, Sum
    >>> Sum(["ce", "mae"], [2.0, 1.0])(torch.zeros(1, 4), torch.tensor([0]))
    tensor([3.5226])
    >>> 2 * MeanAbsoluteError()
    Sum(losses=(MeanAbsoluteError(),), weights=(2.0,))
    """

    def __init__(
        self, losses: Sequence[str | Loss] = ("ce",), weights: Sequence[Scalar] | None = None
    ) -> None:
        self.losses = losses
        self.weights = weights

    @property
    def bounded(self) -> bool:
        """Whether every term is."""
        return all(as_loss(loss).bounded for loss in self.losses)

    @property
    def symmetric(self) -> bool:
        """Whether every term is."""
        return all(as_loss(loss).symmetric for loss in self.losses)

    def check(self, n_classes: int) -> None:
        """Check the weights and every term."""
        losses, weights = self._terms()
        if not len(losses) == len(weights) > 0:
            raise ValueError(
                f"weights must hold one number for each of {len(losses)} losses (at least one), "
                f"got {len(weights)}"
            )
        for loss, weight in zip(losses, weights, strict=True):
            check_range("weights", weight, "[0, inf)")
            as_loss(loss).check(n_classes)

    def per_label(self, logits: Tensor) -> Tensor:
        """Loss of each sample at each label, `(..., class)` like `logits`."""
        terms = zip(*self._terms(), strict=True)
        return reduce(add, (weight * as_loss(loss).per_label(logits) for loss, weight in terms))

    def at_label(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        terms = zip(*self._terms(), strict=True)
        return reduce(
            add, (weight * as_loss(loss).at_label(logits, index) for loss, weight in terms)
        )

    def _terms(self) -> tuple[tuple[str | Loss, ...], tuple[Scalar, ...]]:
        weights = (1.0,) * len(self.losses) if self.weights is None else self.weights
        return tuple(self.losses), tuple(weights)


def as_loss(loss: str | Loss) -> Loss:
    """Loss called `loss` with its default hyper-parameters, or the instance itself."""
    return loss if isinstance(loss, Loss) else LOSSES.make(loss)


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
