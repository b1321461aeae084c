"""What a loss is: a value for each sample at each label, never reduced."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from numbers import Real
from operator import add
from typing import Any, Self

from sklearn.base import BaseEstimator
from torch import Tensor, nn

from robustclf._registry import Registry
from robustclf.losses._hyperparameters import Scalar, check_range


def log_softmax(logits: Tensor) -> Tensor:
    """Return the log probabilities, ``(..., class)``.

    torch's softmax along the last axis has no vector code on a CPU for fewer classes than a
    register holds numbers (16 with AVX-512). Along another axis it has, and takes a third of the
    time for a stack of networks.
    """
    few = logits.shape[-1] < 16 and logits.numel() > 1024 and logits.device.type == "cpu"
    return logits.mT.log_softmax(-2).mT if few and logits.ndim > 1 else logits.log_softmax(-1)


class Loss(BaseEstimator):
    """Base class of all losses: hyper-parameters and formulas, no state and no reduction.

    A subclass implements `of`, or `of_log_p` if it is a `PointwiseLoss`. Every formula
    broadcasts over leading axes: logits are `(..., class)`, and a hyper-parameter is a number or
    a tensor of shape `(member, 1, 1)` for logits `(member, sample, class)`.

    Attributes
    ----------
    bounded : bool
        Whether no logits give a loss beyond some constant, so one wrong label costs little.
    symmetric : bool
        Whether the losses at all labels sum to a constant. The minimiser of the risk then does
        not change under symmetric label noise.
    convex : bool
        Whether the loss is convex in the logits.
    proper : bool
        Whether the true class probabilities, as `inverse_link` reads them off the logits,
        minimise the risk.
    pointwise : bool
        Whether the loss depends on the probability p_y of the label alone.
    shift_invariant : bool
        Whether adding a number to all logits of a sample changes nothing.
    needs_memory : bool
        Whether the loss remembers rows between epochs. None of the package does: what published
        code remembers is computed anew.
    stochastic : bool
        Whether a call draws random numbers, so that only the gradient means something.
    takes_log_p : bool
        Whether `prepare` returns log probabilities, which the terms of a sum share.
    labelwise : bool
        Whether the loss has `of`, and not only `values`.
    n_members : int
        Consecutive stacked networks that one value involves.
    search_space : dict
        Distributions of the hyper-parameters that are worth tuning, for `RandomizedSearchCV`. All
        can be set on the instance, and on the alias that made it.

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

    # facts; Any, so that a loss whose fact depends on its hyper-parameters makes it a property
    bounded: Any = False
    symmetric: Any = False
    convex: Any = False
    proper: Any = False
    pointwise: Any = False
    shift_invariant: Any = True
    needs_memory: Any = False
    stochastic: Any = False
    takes_log_p: Any = True
    labelwise: Any = True
    n_members: Any = 1
    search_space: Any = {}

    # What a subclass fills in --------------------------------------------------------------------

    def check(self, n_classes: int) -> None:
        """Raise a ValueError that names any hyper-parameter out of its range."""

    def prepare(self, logits: Tensor) -> Tensor:
        """Return what the formula is about, `(..., class)`: the log probabilities, to begin with.

        A step of its own, so that the terms of a sum share it.
        """
        return log_softmax(logits)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose entries of the prepared `x` are `x_y`.

        `x_y` is all of `x`, for the loss at each label, or of shape `(..., 1)`.
        """
        raise NotImplementedError

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label, given the prepared logits."""
        return self.of(x, x)

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`, given the prepared logits."""
        return self.of(x.gather(-1, index), x)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return self.values(x).sum(-1, keepdim=True)

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities that the logits stand for, `(..., class)`: the softmax.

        It is what `predict_proba` of a classifier with this loss returns.
        """
        return logits.softmax(-1)

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the loss in the form that trains: checked, and with its learned parts made.

        Parameters
        ----------
        n_classes : int
        n_members : int, default=1
            Stacked networks, of which each has learned parts of its own.

        Raises
        ------
        ValueError
            If a hyper-parameter is out of range; the message says which range.
        """
        self.check(n_classes)
        return self

    def at_epoch(self, epoch: int) -> Loss:
        """Return the loss of this epoch, from 0; differs for losses with an annealed term."""
        return self

    def learned(self) -> Iterator[nn.Module]:
        """Yield the learned parts that `build` made; their parameters have a member axis."""
        yield from ()

    # What a user calls ---------------------------------------------------------------------------

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

    def per_label(self, logits: Tensor) -> Tensor:
        """Loss of each sample at each label, `(..., class)` like `logits`."""
        return self.values(self.prepare(logits))

    def at_label(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`; the last axis lets `(member, 1, 1)` broadcast."""
        return self.value_at(self.prepare(logits), index)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the learned parameters, for the optimiser of a training loop of your own."""
        for module in self.learned():
            yield from module.parameters()

    def set_params(self, **params: Any) -> Self:
        """Set hyper-parameters; what `build` made of former ones is forgotten."""
        for name in [name for name in vars(self) if params and name.endswith("_")]:
            delattr(self, name)
        return super().set_params(**params)  # type: ignore[no-any-return]

    def _replaced(self, **changes: Any) -> Self:
        """Shallow copy with attributes changed, which keeps learned parts."""
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

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

    pointwise = True

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        raise NotImplementedError

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities are `x_y`."""
        return self.of_log_p(x_y)


LOSSES = Registry("loss", Loss)


class Wrapper(Loss):
    """Base class of the losses around one other, held as `loss`: an alias or an instance."""

    loss: str | Loss
    own_search_space: Any = {}

    shift_invariant = property(lambda self: self.inner.shift_invariant)
    takes_log_p = property(lambda self: self.inner.takes_log_p)
    labelwise = property(lambda self: self.inner.labelwise)
    needs_memory = property(lambda self: self.inner.needs_memory)
    stochastic = property(lambda self: self.inner.stochastic)
    n_members = property(lambda self: self.inner.n_members)

    @property
    def inner(self) -> Loss:
        """The loss inside."""
        return as_loss(self.loss)

    @property
    def search_space(self) -> dict[str, Any]:
        """Distributions of the hyper-parameters, those of the loss inside as `loss__...`."""
        inner = {f"loss__{name}": values for name, values in self.inner.search_space.items()}
        return {**self.own_search_space, **inner}

    def set_params(self, **params: Any) -> Self:
        """Set hyper-parameters; those of the loss inside, be it an alias, as `loss__...`."""
        if any(name.startswith("loss__") for name in params):
            self.loss = as_loss(params.pop("loss", self.loss))
        return super().set_params(**params)

    def check(self, n_classes: int) -> None:
        """Check the loss inside."""
        self.inner.check(n_classes)

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the checked loss, with the learned parts of the loss inside."""
        self.check(n_classes)
        return self._replaced(loss=self.inner.build(n_classes, n_members))

    def at_epoch(self, epoch: int) -> Loss:
        """Return the loss of this epoch."""
        return self._replaced(loss=self.inner.at_epoch(epoch))

    def learned(self) -> Iterator[nn.Module]:
        """Yield the learned parts of the loss inside."""
        return self.inner.learned()

    def prepare(self, logits: Tensor) -> Tensor:
        """Return what the loss inside takes."""
        return self.inner.prepare(logits)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose entries of `x` are `x_y`."""
        return self.inner.of(x_y, x)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        return self.inner.values(x)

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        return self.inner.value_at(x, index)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return self.inner.total(x)

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities, as the loss inside reads the logits."""
        return self.inner.inverse_link(logits)


class Sum(Loss):
    """Weighted sum of losses, `sum_i weights[i] * losses[i]`; `2 * a + b` builds one.

    Parameters
    ----------
    losses : sequence of str or Loss, default=("ce",)
        Aliases or instances. `inverse_link` is that of the first.
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

    bounded = property(lambda self: self._all("bounded"))
    symmetric = property(lambda self: self._all("symmetric"))
    convex = property(lambda self: self._all("convex"))
    pointwise = property(lambda self: self._all("pointwise"))
    takes_log_p = property(lambda self: self._all("takes_log_p"))
    labelwise = property(lambda self: self._all("labelwise") and self.takes_log_p)
    shift_invariant = property(lambda self: self._all("shift_invariant"))
    needs_memory = property(lambda self: any(loss.needs_memory for loss in self._losses()))
    stochastic = property(lambda self: any(loss.stochastic for loss in self._losses()))
    n_members = property(lambda self: math.lcm(*(loss.n_members for loss in self._losses())))

    @property
    def proper(self) -> bool:
        """Whether every term is, and all read the softmax: others read other probabilities."""
        return self._all("proper") and (self.takes_log_p or len(self.losses) == 1)

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

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the checked loss, with the learned parts of every term."""
        self.check(n_classes)
        return self._replaced(losses=[loss.build(n_classes, n_members) for loss in self._losses()])

    def at_epoch(self, epoch: int) -> Loss:
        """Return the loss of this epoch."""
        return self._replaced(losses=[loss.at_epoch(epoch) for loss in self._losses()])

    def learned(self) -> Iterator[nn.Module]:
        """Yield the learned parts of every term."""
        for loss in self._losses():
            yield from loss.learned()

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities, as the first term reads the logits."""
        return self._losses()[0].inverse_link(logits)

    def prepare(self, logits: Tensor) -> Tensor:
        """Return log probabilities if all terms take them, else the logits."""
        return super().prepare(logits) if self.takes_log_p else logits

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities are `x_y`, if the sum is `labelwise`."""
        return self._weighted(lambda loss: loss.of(x_y, x))

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p, if every term is one."""
        return self.of(log_p, log_p)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        if self.takes_log_p:
            return self._weighted(lambda loss: loss.values(x))
        return self._weighted(lambda loss: loss.per_label(x))

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        if not self.takes_log_p:
            return self._weighted(lambda loss: loss.at_label(x, index))
        x_y = x.gather(-1, index)
        return self._weighted(
            lambda loss: loss.of(x_y, x) if loss.labelwise else loss.value_at(x, index)
        )

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        if self.takes_log_p:
            return self._weighted(lambda loss: loss.total(x))
        return self._weighted(lambda loss: loss.total(loss.prepare(x)))

    def _all(self, fact: str) -> bool:
        return all(getattr(loss, fact) for loss in self._losses())

    def _weighted(self, value: Any) -> Tensor:
        weights = self._terms()[1]
        parts = (w * value(loss) for w, loss in zip(weights, self._losses(), strict=True))
        total: Tensor = reduce(add, parts)
        return total

    def _losses(self) -> list[Loss]:
        return [as_loss(loss) for loss in self.losses]

    def _terms(self) -> tuple[tuple[str | Loss, ...], tuple[Scalar, ...]]:
        weights = (1.0,) * len(self.losses) if self.weights is None else self.weights
        return tuple(self.losses), tuple(weights)


def as_loss(loss: str | Loss) -> Loss:
    """Loss called `loss` with its default hyper-parameters, or the instance itself."""
    return loss if isinstance(loss, Loss) else LOSSES.make(loss)
