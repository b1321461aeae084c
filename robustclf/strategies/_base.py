"""What a strategy is: an edit of one place of ``mean_i w_i * loss(f(x_i), t_i) + R``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import Tensor

from robustclf._registry import Registry

if TYPE_CHECKING:
    from robustclf.losses import Loss


@dataclass(slots=True)
class Mixing:
    """How a batch was mixed: row i became ``lam * row_i + (1 - lam) * row_partner[i]``."""

    lam: float
    partner: Tensor  # (sample,)
    x: Tensor  # (sample, feature), the rows before any mixing
    first: Mixing | None = None  # how the rows were mixed before

    def __call__(self, values: Tensor) -> Tensor:
        """Mix ``values`` of shape ``(..., sample, k)`` the way the rows were mixed."""
        if self.first is not None:
            values = self.first(values)
        return self.lam * values + (1 - self.lam) * values.index_select(-2, self.partner)

    def batch(self, before: Batch, x: Tensor, n_classes: int) -> Batch:
        """Return the batch that ``before``, of rows ``self.x``, becomes with the mixed rows ``x``.

        Weights move into the targets: each of the two labels counts with its own row's weight.
        """
        target = self(before.weight.unsqueeze(-1) * before.distribution(n_classes))
        weight = target.sum(-1)
        target = target / weight.unsqueeze(-1).clamp_min(torch.finfo(weight.dtype).tiny)
        first = before.mixing
        mixing = self if first is None else replace(self, x=first.x, first=first)
        return Batch(x, target, weight, before.index, mixing)


@dataclass(slots=True)
class Batch:
    """The rows of one step: the `x`, `t` and `w` of the formula."""

    x: Tensor  # ([member,] sample, feature)
    target: Tensor  # (sample,) labels or ([member,] sample, class) distributions
    weight: Tensor  # (member or 1, sample)
    index: Tensor  # (sample,) row numbers in the training set
    mixing: Mixing | None = None
    features: Tensor | None = None  # (member, sample, width), where a strategy needs them
    logits: Tensor | None = None  # (member, sample, class), of the first evaluation, detached

    def __iter__(self) -> Iterator[Tensor]:
        """Unpack into inputs and targets, as skorch's callbacks do."""
        return iter((self.x, self.target))

    def distribution(self, n_classes: int) -> Tensor:
        """Return the target as a distribution over classes, ``([member,] sample, class)``."""
        if self.target.is_floating_point():
            return self.target
        one_hot = torch.nn.functional.one_hot(self.target, n_classes)
        return one_hot.to(self.weight.dtype)


class Strategy(BaseEstimator, Callback):
    """An edit of one place of the training formula; every hook is an identity by default.

    ========== ===================================== ===========================================
    place      hook                                  returns
    ========== ===================================== ===========================================
    i          ``epoch_rows(net, rows)``             the rows of an epoch, before they are shuffled
    x, t       ``on_batch(net, batch)``              the batch, before the forward pass
    t          ``relabel(net, batch, logits)``       targets, ``([member,] sample, class)``
    f          ``observe(net, batch, logits)``       logits of the given labels, not the true ones
    w          ``weigh(net, batch, loss)``           weights, ``(member, sample)``
    R          ``penalty(net, batch, logits)``       a term that broadcasts to ``(member, sample)``
    ========== ===================================== ===========================================

    Targets and weights are constants of a step: ``relabel`` and ``weigh`` run without gradient and
    once per batch, also when an optimiser such as SAM evaluates the objective twice. ``weigh``
    finds the logits in ``batch.logits``. Draw random numbers in ``on_batch``; update memories in
    ``on_batch_end``. A strategy is a skorch callback too, so ``on_train_begin``, ``on_epoch_begin``
    and the others are there when it needs them: ``on_train_begin(net, X)`` gets the training set,
    with `groups`, `trusted` and `unlabelled`. Attributes whose names end in ``_`` are deleted after
    the fit.
    """

    n_members: ClassVar[int] = 1
    """Networks that have to be trained together; the stack holds a multiple of it."""

    uses_unlabelled: ClassVar[bool] = False
    """Whether rows without label take part; otherwise they are left out of the fit."""

    needs: ClassVar[tuple[str, ...]] = ()
    """What the fit has to provide: "groups" or "trusted" rows; "folds", members that do not train
    on them; "features", those of the last hidden layer, in ``batch.features``; "network", that is
    ``net.module_`` inside a step; "all_rows", the encoded rows in memory all at once, which rules
    out data that are read through a buffer."""

    stackable: ClassVar[bool] = False
    """Whether fits with the same parameters can share one instance: all hooks broadcast over the
    members, and read nothing of the training set but its size."""

    keeps: ClassVar[tuple[str, ...]] = ()
    """Attributes that outlast the fit, of those whose names end in ``_``."""

    def check(self, loss: Loss, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range or a loss it cannot work with."""

    def epoch_rows(self, net: Any, rows: Tensor) -> Tensor:
        """Choose the rows of this epoch, ``(any,)``, from those that train, ``(row,)``."""
        return rows

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Edit the inputs and targets before the forward pass."""
        return batch

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the targets of this step."""
        return batch.target

    def observe(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the logits of the labels as they are given; the loss reads these."""
        return logits

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return the weights of this step, given the loss of each sample, ``(member, sample)``."""
        return batch.weight

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor | float:
        """Return what is added to the weighted loss of each sample."""
        return 0.0

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Forget the fit: a pickled model holds nothing per training row."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            if name not in self.keeps:
                delattr(self, name)


STRATEGIES = Registry("strategy", Strategy)


def overrides(callback: Callback, hook: str) -> bool:
    """Tell whether a callback does anything in ``hook``.

    A step asks this once per fit, not once per batch, and then calls only who listens.
    """
    base = Strategy if isinstance(callback, Strategy) else Callback
    return getattr(type(callback), hook) is not getattr(base, hook)
