"""Optimisers that step along the gradient at perturbed weights, around any other optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustclf.losses._hyperparameters import check_range
from robustclf.optimizers._base import OPTIMIZERS, get_optimizer
from robustclf.optimizers._members import (
    ONE_MEMBER,
    TINY,
    Group,
    Trained,
    is_matrix,
    of_members,
    sum_each,
    sum_members,
    with_gradient,
)


class Perturbed(Optimizer):
    """Evaluate the loss, move the weights, evaluate again, go back and let the base step.

    A subclass gives the perturbation, from the weights and their gradients.

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups.
    base : str or optimiser class
        What takes the step.
    **base_params
        Passed to ``base``.
    """

    def __init__(self, params: Any, base: str | type[Optimizer], **base_params: Any) -> None:
        self.base = find_base(base)(params, **base_params)
        super().__init__(self.base.param_groups, ONE_MEMBER)
        self._share()

    def _share(self) -> None:
        """Have the groups and the state of the base, so that what is set on them reaches it."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate ``closure`` twice, take one step of the base and return the first value."""
        if closure is None:
            name = type(self).__name__
            raise TypeError(f"{name} evaluates the loss twice: call step(closure).")
        closure = torch.enable_grad()(closure)
        loss = closure()
        trained = with_gradient(self.param_groups)
        here = [p.clone() for _, p, _ in trained]
        self.perturb(trained)
        try:
            perturbed_loss = closure()
        finally:
            for (_, p, _), value in zip(trained, here, strict=True):
                p.copy_(value)
        self.base.step(lambda: perturbed_loss)
        return loss

    def perturb(self, trained: Trained) -> None:
        """Move the parameters, given with their groups and gradients."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict()`` was taken."""
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def find_base(base: str | type[Optimizer]) -> type[Optimizer]:
    """Return the class of the optimiser inside; ``ValueError`` if it is around another itself."""
    kind = get_optimizer(base)
    if issubclass(kind, Perturbed):
        raise ValueError(f"base must step along one gradient, as 'adamw' does, got {base!r}.")
    return kind


@OPTIMIZERS.register("sam")
class SAM(Perturbed):
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
        Radius of the neighbourhood, positive. At the published value little changes in a table;
        with wrong labels 0.5 to 1 can help, and costs accuracy where the network underfits.
    **base_params
        Passed to ``base``: ``lr``, ``weight_decay``, ``momentum``, ...

    Raises
    ------
    ValueError
        If ``rho`` is not positive, or ``base`` is such a wrapper itself.
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
        check_range("rho", rho, "(0, inf)")
        super().__init__(params, base, **base_params)
        self.rho = rho

    def perturb(self, trained: Trained) -> None:
        """Move to the worst point of the neighbourhood, to first order."""
        scaled = [(group, p, g, self.scale(group, p)) for group, p, g in trained]
        squares = ((group, (t * g).square()) for group, _, g, t in scaled)
        length = self.rho / (sum_members(self.param_groups, squares).sqrt() + 1e-12)
        for group, p, g, t in scaled:
            p.add_(t * t * g * of_members(length, group, p))

    def scale(self, group: Group, p: Tensor) -> Tensor | float:
        """Return the half-axes of the neighbourhood, in units of ``rho``."""
        return 1.0


@OPTIMIZERS.register("asam")
class ASAM(SAM):
    r"""Adaptive sharpness-aware minimisation: SAM in a neighbourhood that scales with the weights.

    .. math::
        \epsilon = \rho\, T^2 g / \lVert T g \rVert_2, \qquad T = |\theta| + \eta

    for the entries of matrices and :math:`T = 1` for biases and other vectors, as in the authors'
    program. With :math:`\eta = 0` and no biases the perturbed loss is the same for networks that
    differ by factors that cancel between layers.

    Parameters
    ----------
    params : iterable
        As for :class:`SAM`.
    base : str or optimiser class, default="adamw"
        What takes the step.
    rho : float, default=0.5
        Radius of the neighbourhood relative to the weights, positive.
    eta : float, default=0.01
        What a weight of zero is moved by, at least 0.
    **base_params
        Passed to ``base``: ``lr``, ``weight_decay``, ``momentum``, ...

    Raises
    ------
    ValueError
        If ``rho`` is not positive or ``eta`` is negative, or ``base`` is such a wrapper itself.
    TypeError
        If ``step`` is called without a closure.

    References
    ----------
    Kwon, Kim, Park, Choi. ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
    Learning of Deep Neural Networks. ICML 2021. arXiv:2102.11600.

    Examples
    --------
    >>> import torch
    >>> from robustclf.optimizers import ASAM
    >>> w = torch.nn.Parameter(torch.tensor([[2.0]]))
    >>> optimizer = ASAM([w], base="sgd", lr=0.1, rho=0.5, eta=0.0)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (w ** 2).sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure)  # half as much again as 2 is 3, where the gradient is 6
    tensor(4., grad_fn=<SumBackward0>)
    >>> w.data
    tensor([[1.4000]])
    """

    def __init__(
        self,
        params: Any,
        base: str | type[Optimizer] = "adamw",
        rho: float = 0.5,
        eta: float = 0.01,
        **base_params: Any,
    ) -> None:
        check_range("eta", eta, "[0, inf)")
        super().__init__(params, base, rho, **base_params)
        self.eta = eta

    def scale(self, group: Group, p: Tensor) -> Tensor | float:
        """Return ``T``."""
        return p.abs() + self.eta if is_matrix(group, p) else 1.0


@OPTIMIZERS.register("awp")
class AWP(Perturbed):
    r"""Adversarial weight perturbation: each layer is moved by a share of its own norm.

    .. math::
        v_l = \gamma\, \frac{\lVert \theta_l \rVert_2}{\lVert g_l \rVert_2}\, g_l, \qquad
        \theta \leftarrow \mathrm{base}\left(\theta,\; \nabla L(\theta + v)\right)

    for every matrix :math:`\theta_l`; biases and other vectors stay. The paper finds the direction
    by ascent on a copy of the network: after its one step of gradient ascent, normalised, that is
    the gradient at the present weights, which is taken here.

    Parameters
    ----------
    params : iterable
        As for :class:`SAM`. The norms are those of each layer of each member.
    base : str or optimiser class, default="adamw"
        What takes the step.
    gamma : float, default=0.01
        Size of the perturbation relative to the layer, positive. Published: 0.01, with adversarial
        rows. Against wrong labels 0.05 can be better by far, and costs accuracy where the network
        underfits.
    **base_params
        Passed to ``base``: ``lr``, ``weight_decay``, ``momentum``, ...

    Raises
    ------
    ValueError
        If ``gamma`` is not positive, or ``base`` is such a wrapper itself.
    TypeError
        If ``step`` is called without a closure.

    References
    ----------
    Wu, Xia, Wang. Adversarial Weight Perturbation Helps Robust Generalization. NeurIPS 2020.
    arXiv:2004.05884.

    Examples
    --------
    >>> import torch
    >>> from robustclf.optimizers import AWP
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = AWP([w], base="sgd", lr=0.1, gamma=0.1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = w[0, 0] ** 2
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure)  # a tenth of the norm 5 leads to 3.5, where the gradient is 7
    tensor(9., grad_fn=<PowBackward0>)
    >>> w.data
    tensor([[2.3000, 4.0000]])
    """

    def __init__(
        self,
        params: Any,
        base: str | type[Optimizer] = "adamw",
        gamma: float = 0.01,
        **base_params: Any,
    ) -> None:
        check_range("gamma", gamma, "(0, inf)")
        super().__init__(params, base, **base_params)
        self.gamma = gamma

    def perturb(self, trained: Trained) -> None:
        """Move each matrix along its gradient."""
        for group, p, g in trained:
            if is_matrix(group, p):
                steepness = sum_each(g.square(), group).clamp_min(TINY)
                p.add_(g * (self.gamma * (sum_each(p.square(), group) / steepness).sqrt()))
