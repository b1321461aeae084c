"""Optimisers: those of torch by alias, and sharpness-aware minimisation around any of them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch.optim import Optimizer

from robustclf._registry import Registry, check_known


class SAM(Optimizer):
    r"""Sharpness-aware minimisation: descend along the gradient at a nearby worse point.

    .. math::
        \epsilon = \rho\, g / \lVert g \rVert_2, \qquad
        \theta \leftarrow \mathrm{base}\left(\theta,\; \nabla L(\theta + \epsilon)\right)

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups. A group with ``stacked=True`` holds parameters
        ``(member, ...)`` and every member gets a norm of its own, as if it were trained alone.
    base : str or optimiser class, default="adamw"
        What takes the step.
    rho : float, default=0.05
        Radius of the neighbourhood, positive.
    **base_params
        Passed to ``base``: ``lr``, ``weight_decay``, ``momentum``, ...

    Raises
    ------
    ValueError
        If ``rho`` is not positive.
    TypeError
        If ``step`` is called without a closure.

    References
    ----------
    Foret, Kleiner, Mobahi, Neyshabur. Sharpness-Aware Minimization for Efficiently Improving
    Generalization. ICLR 2021. arXiv:2010.01412.

    Examples
    --------
    >>> import torch
    >>> from robustclf.optimizers import SAM
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SAM([w], base="sgd", lr=0.1, rho=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (w ** 2).sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure)  # the gradient at 1.5 is 3
    tensor(1., grad_fn=<SumBackward0>)
    >>> w.data
    tensor([0.7000])
    """

    def __init__(
        self,
        params: Any,
        base: str | type[Optimizer] = "adamw",
        rho: float = 0.05,
        **base_params: Any,
    ) -> None:
        if not rho > 0:
            raise ValueError(f"rho must be positive, got {rho!r}.")
        self.rho = rho
        self.base = get_optimizer(base)(params, **base_params)
        super().__init__(self.base.param_groups, {"stacked": False, "member": 0})
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate ``closure`` twice and take one step of the base optimiser."""
        if closure is None:
            raise TypeError("SAM evaluates the loss twice: call step(closure).")
        closure = torch.enable_grad()(closure)
        loss = closure()
        here = {p: p.clone() for group in self.param_groups for p in group["params"]}
        self._climb()
        try:
            closure()
        finally:
            for p, value in here.items():
                p.copy_(value)
        self.base.step()
        return loss

    def _climb(self) -> None:
        """Move to the worst point of the neighbourhood, to first order."""
        trained = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not trained:
            return
        n = max(p.shape[0] if g["stacked"] else g["member"] + 1 for g, p in trained)
        squared = trained[0][1].new_zeros(n)
        for group, p in trained:
            square = p.grad.square()
            if group["stacked"]:
                squared += square.flatten(1).sum(1)
            else:
                squared[group["member"]] += square.sum()
        scale = self.rho / (squared.sqrt() + 1e-12)
        for group, p in trained:
            if group["stacked"]:
                p.add_(p.grad * scale.view(-1, *[1] * (p.ndim - 1)))
            else:
                p.add_(p.grad * scale[group["member"]])


OPTIMIZERS = Registry("optimizer", Optimizer)
for _alias, _optimizer in {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sam": SAM,
}.items():
    OPTIMIZERS.register(_alias)(_optimizer)


def get_optimizer(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """Return the optimiser class an alias or a class stands for.

    Parameters
    ----------
    optimizer : str or class
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"nadam"``, ``"radam"``, ``"rmsprop"``, ``"sam"``, or
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


def fused(optimizer: str | type[Optimizer], device: str, params: dict[str, Any]) -> dict[str, bool]:
    """Return ``{"fused": True}`` where torch updates all parameters in one kernel."""
    kind = get_optimizer(optimizer)
    kind = get_optimizer(params.get("base", "adamw")) if kind is SAM else kind
    has_kernel = kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
    return {"fused": True} if has_kernel and torch.device(device).type in ("cpu", "cuda") else {}


def check_optimizer(optimizer: str | type[Optimizer], params: dict[str, Any]) -> None:
    """Raise ``ValueError`` for an unknown alias or a parameter the optimiser does not have."""
    kind = get_optimizer(optimizer)
    known = set(signature(kind).parameters)
    if kind is SAM:
        known |= set(signature(get_optimizer(params.get("base", "adamw"))).parameters)
    name = optimizer if isinstance(optimizer, str) else kind.__name__
    if "lr" in params:
        raise ValueError("the learning rate is the parameter lr, not optimizer__lr")
    check_known(f"parameter of optimizer {name!r}", params, sorted(known - {"params", "lr"}))
