"""Step sizes from the value of the loss: momentum models of SGD and of Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustclf.losses._hyperparameters import check_flag, check_range
from robustclf.optimizers._base import OPTIMIZERS, check_betas
from robustclf.optimizers._members import (
    ONE_MEMBER,
    TINY,
    Group,
    of_members,
    sum_members,
    with_gradient,
)

# group, parameter, averaged gradient d and preconditioned direction D^-1 d
Moves = list[tuple[Group, Tensor, Tensor, Tensor]]


@OPTIMIZERS.register("momo")
class MoMo(Optimizer):
    r"""Momentum model: SGD with momentum whose step ends where its model meets a lower bound.

    .. math::
        d &\leftarrow \beta d + (1 - \beta) g, \qquad
        \bar f \leftarrow \beta \bar f + (1 - \beta) f, \qquad
        c \leftarrow \beta c + (1 - \beta) \langle g, \theta \rangle \\
        \tau &= \min\left(\frac{\eta}{\rho},\; \frac{\left[(1 + \eta\lambda)(\bar f - c
        - \rho f_*) + \langle d, \theta \rangle\right]_+}{\lVert d \rVert_2^2}\right), \qquad
        \theta \leftarrow \frac{\theta - \tau d}{1 + \eta\lambda}

    with the learning rate :math:`\eta`, the weight decay :math:`\lambda` and :math:`\rho = 1`, or
    :math:`1 - \beta^k` at step :math:`k` with ``bias_correction``. Where groups differ in
    :math:`\eta` and :math:`\lambda`, it is the same minimum of the truncated model over all of
    them. Each member has its own step size.

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups. A group with ``stacked=True`` holds parameters
        ``(member, ...)``.
    lr : float, default=1.0
        The largest step size, so a schedule of it works. Take 1 rather than the classifier's 0.003.
    beta : float, default=0.9
        Momentum, in [0, 1).
    weight_decay : float, default=0.0
        Factor of the squared norm of the weights over 2, kept out of the model.
    lb : float, default=0.0
        Lower bound :math:`f_*` of the loss. Few losses reach 0 on wrong labels: a larger value
        makes smaller steps.
    use_fstar : bool, default=False
        Raise the bound of each member along the way, from ``lb`` on.
    bias_correction : bool, default=False
        Averages start at zero, and are corrected for it, rather than at the first value.

    Raises
    ------
    ValueError
        If a parameter is out of range, or the closure returns another number of losses than there
        are members: it returns ``(member,)``, or a number for one.
    TypeError
        If ``step`` is called without a closure.

    References
    ----------
    Schaipp, Ohana, Eickenberg, Defazio, Gower. MoMo: Momentum Models for Adaptive Learning Rates.
    ICML 2024. arXiv:2305.07583.

    Examples
    --------
    >>> import torch
    >>> from robustclf.optimizers import MoMo
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = MoMo([w], lr=1.0)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (w ** 2).sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure)  # Polyak's step f / g^2 is 4 / 16
    tensor(4., grad_fn=<SumBackward0>)
    >>> w.data
    tensor([1.])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        lb: float = 0.0,
        use_fstar: bool = False,
        bias_correction: bool = False,
    ) -> None:
        check_range("lr", lr, "[0, inf)")
        check_range("beta", beta, "[0, 1)")
        check_range("weight_decay", weight_decay, "[0, inf)")
        check_range("lb", lb, "(-inf, inf)")
        check_flag("use_fstar", use_fstar)
        check_flag("bias_correction", bias_correction)
        super().__init__(params, ONE_MEMBER | {"lr": lr, "weight_decay": weight_decay})
        self.defaults |= {"beta": beta, "lb": lb}
        self.defaults |= {"use_fstar": use_fstar, "bias_correction": bias_correction}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate ``closure``, which returns the loss of each member, and take one step."""
        if closure is None:
            raise TypeError(f"{type(self).__name__} needs the loss: call step(closure).")
        loss = torch.enable_grad()(closure)()
        trained = with_gradient(self.param_groups)
        products = sum_members(self.param_groups, ((group, p * g) for group, p, g in trained))
        values = self._values(loss, products)
        state = self._members()
        state["step"] += 1
        k = state["step"]
        new, rho = self._weights(k)
        state["intercept"] = torch.lerp(state["intercept"], values - products, new)
        moves = [(group, p, *self.direction(p, g, new, k)) for group, p, g in trained]
        share = self._share_of_cap(moves, state, rho)
        for group, p, _, direction in moves:
            tau = of_members(share, group, p) * (group["lr"] / rho)
            p.sub_(direction * tau).div_(1 + group["lr"] * group["weight_decay"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict()`` was taken, which stays as it is."""
        super().load_state_dict(state_dict)
        members: dict[Any, Any] = self.state
        if "members" in members:
            members["members"] = dict(members["members"])

    def _values(self, loss: Any, products: Tensor) -> Tensor:
        n = len(products)
        values = products.new_zeros(0) if loss is None else torch.as_tensor(loss).detach()
        if values.numel() != n:
            raise ValueError(
                f"{type(self).__name__} needs the loss of each of the {n} members: the closure "
                f"must return a tensor of shape ({n},), got {loss!r}."
            )
        return values.reshape(n).to(products)

    def _members(self) -> dict[str, Any]:
        """Return the step, and of each member the model at zero and the lower bound."""
        members: dict[Any, Any] = self.state
        if "members" not in members:
            zero = sum_members(self.param_groups, ())
            members["members"] = {"step": 0, "intercept": zero, "lb": zero + self.defaults["lb"]}
        state: dict[str, Any] = members["members"]
        return state

    def _weights(self, k: int) -> tuple[float, float]:
        """Return the weight of what is new in the averages, and the sum of all weights."""
        beta = self.defaults["beta"]
        if self.defaults["bias_correction"]:
            return 1 - beta, 1 - beta**k
        return (1 - beta if k > 1 else 1.0), 1.0

    def direction(self, p: Tensor, g: Tensor, new: float, k: int) -> tuple[Tensor, Tensor]:
        """Return the averaged gradient ``d`` and the direction of the step, here the same."""
        state = self.state[p]
        if not state:
            state["d"] = torch.zeros_like(p)
        d: Tensor = state["d"].lerp_(g, new)
        return d, d

    def _share_of_cap(self, moves: Moves, state: dict[str, Any], rho: float) -> Tensor:
        """Return the step of each member as a share of the largest: to where the model ends."""
        floor, estimated = self.defaults["lb"], self.defaults["use_fstar"]
        slope, fall = self._model(moves, rho, decays=True)
        start = state["intercept"] + slope
        if estimated:
            reset = (start / (2 * rho)).clamp_min(floor)
            state["lb"] = torch.where(start < rho * state["lb"], reset, state["lb"])
        share: Tensor = ((start - rho * state["lb"]) / fall.clamp_min(TINY)).clamp(0, 1)
        if estimated:
            slope, fall = self._model(moves, rho, decays=False)
            end = state["intercept"] + slope - share * fall / 2
            state["lb"] = (end / rho).clamp_min(floor)
        return share

    def _model(self, moves: Moves, rho: float, decays: bool) -> tuple[Tensor, Tensor]:
        """Return the slope times the weights of each member, and its fall in the largest step."""
        steps = [group["lr"] for group, *_ in moves]
        decay = [group["weight_decay"] if decays else 0.0 for group, *_ in moves]
        shrink = [1 / (1 + lr * wd) for lr, wd in zip(steps, decay, strict=True)]
        at = [(g, p * d * s) for (g, p, d, _), s in zip(moves, shrink, strict=True)]
        falls = [
            (g, d * direction * (s * g["lr"] / rho))
            for (g, _, d, direction), s in zip(moves, shrink, strict=True)
        ]
        return sum_members(self.param_groups, at), sum_members(self.param_groups, falls)


@OPTIMIZERS.register("momo_adam")
class MoMoAdam(MoMo):
    r"""Momentum model of Adam: :class:`MoMo` in the norm of Adam's preconditioner.

    .. math::
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        D = \sqrt{v / (1 - \beta_2^k)} + \varepsilon

    at step :math:`k`; then :math:`D^{-1} d` and :math:`\langle d, D^{-1} d \rangle` stand for
    :math:`d` and its squared norm, with :math:`\rho = 1 - \beta_1^k`.

    Parameters
    ----------
    params : iterable
        As for :class:`MoMo`.
    lr : float, default=0.01
        The largest learning rate, so a schedule of it works.
    betas : pair of float, default=(0.9, 0.999)
        Momentum of the gradients and of their squares, in [0, 1).
    eps : float, default=1e-8
        Added to the preconditioner, positive.
    weight_decay : float, default=0.0
        Factor of the squared norm of the weights over 2 in the preconditioner's norm, which is the
        decoupled decay of AdamW.
    lb : float, default=0.0
        Lower bound of the loss.
    use_fstar : bool, default=False
        Raise the bound of each member along the way, from ``lb`` on.

    Raises
    ------
    ValueError
        If a parameter is out of range, or the closure returns another number of losses than there
        are members.
    TypeError
        If ``step`` is called without a closure.

    References
    ----------
    Schaipp, Ohana, Eickenberg, Defazio, Gower. MoMo: Momentum Models for Adaptive Learning Rates.
    ICML 2024. arXiv:2305.07583.

    Examples
    --------
    >>> import torch
    >>> from robustclf.optimizers import MoMoAdam
    >>> w = torch.nn.Parameter(torch.tensor([2.0, -2.0]))
    >>> optimizer = MoMoAdam([w], lr=10.0)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (w ** 2).sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure)  # Adam's direction is the sign, 8 / |(4, -4)|_1 the way to zero
    tensor(8., grad_fn=<SumBackward0>)
    >>> w.data
    tensor([ 1., -1.])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lb: float = 0.0,
        use_fstar: bool = False,
    ) -> None:
        check_betas(betas)
        check_range("eps", eps, "(0, inf)")
        super().__init__(params, lr, betas[0], weight_decay, lb, use_fstar, bias_correction=True)
        self.defaults |= {"beta2": betas[1], "eps": eps}

    def direction(self, p: Tensor, g: Tensor, new: float, k: int) -> tuple[Tensor, Tensor]:
        """Return the averaged gradient ``d`` and ``D^-1 d``."""
        d, _ = super().direction(p, g, new, k)
        beta2, state = self.defaults["beta2"], self.state[p]
        if "v" not in state:
            state["v"] = torch.zeros_like(p)
        v: Tensor = state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        return d, d / ((v / (1 - beta2**k)).sqrt() + self.defaults["eps"])
