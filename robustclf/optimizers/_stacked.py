"""An optimiser of torch whose members have rates of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# of torch, those whose step is the learning rate times what does not depend on it
LINEAR: tuple[type[Optimizer], ...] = (
    torch.optim.AdamW,
    torch.optim.Adam,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)


@dataclass(eq=False)
class Moved:
    """A parameter, ``(member, ...)``, and what a step of rate 1 would add to it."""

    parameter: Tensor
    step: Tensor
    members: slice  # of the stack
    decays: bool

    def of_members(self, values: Tensor) -> Tensor:
        """Return values of all members, ``(member,)``, such that they broadcast."""
        return values[self.members].view(-1, *[1] * (self.parameter.ndim - 1))


class StackedOptimizer:
    r"""Steps of one optimiser of torch, each member at its learning rate and weight decay.

    .. math:: \theta_m \leftarrow (1 - \eta_m \lambda_m) \theta_m + \eta_m u_m

    with u the step that the optimiser takes at the rate 1, from zero. The decay is part of the
    gradient instead where torch has it so, that is but for AdamW.

    Parameters
    ----------
    kind : type
        One of ``LINEAR``.
    parameters : iterable of (tensor, slice, bool)
        Parameters, the members of the stack that they have, and whether they decay.
    lr, weight_decay : tensor of shape (member,)
    **options
        Of the optimiser, besides these two.
    """

    def __init__(
        self,
        kind: type[Optimizer],
        parameters: Iterable[tuple[Tensor, slice, bool]],
        lr: Tensor,
        weight_decay: Tensor,
        **options: Any,
    ) -> None:
        self.moved = [Moved(p, torch.zeros_like(p.data), m, decays) for p, m, decays in parameters]
        self.lr = lr
        self.weight_decay = weight_decay
        self.options = options
        decoupled = options.get("decoupled_weight_decay", kind is torch.optim.AdamW)
        self.decays_alone = bool(decoupled)
        steps = [moved.step for moved in self.moved]
        self.inner: Any = kind(steps, lr=1.0, weight_decay=0.0, **options)  # type: ignore[call-arg]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for moved in self.moved:
            moved.parameter.grad = None

    @torch.no_grad()
    def step(self, objective: Callable[[], Tensor], rate: Tensor | float = 1.0) -> Tensor:
        """Take a step at ``rate``, ``(member,)`` or a number, times the learning rates."""
        with torch.enable_grad():
            value = objective()
        lr = self.lr * rate
        shrink, slope = 1 - self.weight_decay * lr, self.weight_decay
        if self.options.get("maximize"):  # the gradient will change its sign, and that of the decay
            slope = -slope
        for moved in self.moved:
            p = moved.parameter
            moved.step.zero_()
            moved.step.grad = p.grad
            if p.grad is None or not moved.decays:
                continue
            if self.decays_alone:
                p.mul_(moved.of_members(shrink))
            else:
                moved.step.grad = torch.addcmul(p.grad, p, moved.of_members(slope))
        self.inner.step()
        for moved in self.moved:
            moved.parameter.addcmul_(moved.step, moved.of_members(lr))
        return value

    def keep(self, index: Tensor) -> None:
        """Go on with some members; parameters that only some members have stay or go as a whole."""
        n, kept = len(self.lr), []
        for moved in self.moved:
            first, last = moved.members.start, moved.members.stop
            there = index[(index >= first) & (index < last)] - first
            start = int((index < first).sum())
            moved.members = slice(start, start + len(there))
            former = self.inner.state.pop(moved.step, {})
            moved.step.grad = None
            if not len(there):
                continue
            kept.append(moved)
            if last - first == n:
                moved.step.data = moved.step.data[there]
                former = {
                    name: value[there] if value.ndim == moved.step.ndim else value
                    for name, value in former.items()
                }
            self.inner.state[moved.step] = former
        self.moved = kept
        self.inner.param_groups[0]["params"] = [moved.step for moved in kept]
        self.lr, self.weight_decay = self.lr[index], self.weight_decay[index]
