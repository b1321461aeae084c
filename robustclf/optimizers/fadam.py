"""Fisher Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustclf.losses._hyperparameters import check_range
from robustclf.optimizers._base import OPTIMIZERS, check_betas
from robustclf.optimizers._members import ONE_MEMBER, Group, sum_each, with_gradient


@OPTIMIZERS.register("fadam")
class FAdam(Optimizer):
    r"""Fisher Adam: momentum of clipped natural gradients, and a weight decay that is one, too.

    .. math::
        F &\leftarrow \hat\beta_2 F + (1 - \hat\beta_2) g^2, \qquad
        \hat\beta_2 = \beta_2 \frac{1 - \beta_2^{t-1}}{1 - \beta_2^t}, \qquad
        P = F^p + \min(\varepsilon, \varepsilon_2 \mathrm{RMS}(g))^{2p} \\
        m &\leftarrow \beta_1 m + (1 - \beta_1)\, \mathrm{clip}(g / P), \qquad
        \theta \leftarrow \theta - \eta \left(m + \lambda\, \mathrm{clip}(\theta / P)\right)

    with :math:`\mathrm{clip}(x) = x / \max(1, \mathrm{RMS}(x) / c)`. The root mean square, RMS, is
    that of each tensor of each member. The formula is taken from a description of the method and
    has not been compared with the text of the paper. The program lessw2020/FAdam_PyTorch differs
    from it: it forgets F after each step and divides by :math:`\max(1, \mathrm{RMS}) / c`. In
    small networks on tables it does as well as AdamW, not better.

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups. A group with ``stacked=True`` holds parameters
        ``(member, ...)``.
    lr : float, default=1e-3
        Learning rate :math:`\eta`.
    betas : pair of float, default=(0.9, 0.999)
        Momentum of the natural gradients and of the Fisher information, in [0, 1).
    eps, eps2 : float, default=1e-8, 0.01
        Bounds of what is added to the Fisher information, absolute and relative to the gradient.
    weight_decay : float, default=0.001
        Factor :math:`\lambda` of the natural gradient of the weights.
    clip : float, default=1.0
        Largest root mean square :math:`c` of a natural gradient.
    p : float, default=0.5
        Power of the Fisher information: 1 for the natural gradient, 1/2 for Adam's.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    References
    ----------
    Hwang. FAdam: Adam is a natural gradient optimizer using diagonal empirical Fisher
    information. 2024. arXiv:2405.12807.

    Examples
    --------
    >>> import torch
    >>> from robustclf.optimizers import FAdam
    >>> w = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
    >>> optimizer = FAdam([w], lr=0.1, weight_decay=0.0)
    >>> w.square().sum().backward()
    >>> optimizer.step()  # g / |g| enters the momentum with the weight 0.1
    >>> w.data
    tensor([ 2.9900, -0.9900])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps2: float = 0.01,
        weight_decay: float = 0.001,
        clip: float = 1.0,
        p: float = 0.5,
    ) -> None:
        check_range("lr", lr, "[0, inf)")
        check_betas(betas)
        check_range("weight_decay", weight_decay, "[0, inf)")
        for name, value in {"eps": eps, "eps2": eps2, "clip": clip, "p": p}.items():
            check_range(name, value, "(0, inf)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "eps2": eps2}
        defaults |= {"weight_decay": weight_decay, "clip": clip, "p": p}
        super().__init__(params, ONE_MEMBER | defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate ``closure`` if there is one, take one step and return the value."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, w, g in with_gradient(self.param_groups):
            state = self.state[w]
            if not state:
                state |= {"step": 0, "fisher": torch.zeros_like(w), "momentum": torch.zeros_like(w)}
            metric = self._metric(state, g, group)
            update = state["momentum"].lerp_(_clip(g / metric, group), 1 - group["betas"][0])
            if group["weight_decay"]:
                update = update + group["weight_decay"] * _clip(w / metric, group)
            w.sub_(group["lr"] * update)
        return loss

    def _metric(self, state: dict[str, Any], g: Tensor, group: Group) -> Tensor:
        """Average the diagonal Fisher information and return ``P``."""
        state["step"] += 1
        t, p, beta2 = state["step"], group["p"], group["betas"][1]
        beta2 *= (1 - beta2 ** (t - 1)) / (1 - beta2**t)
        fisher: Tensor = state["fisher"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        rms = _mean(g.square(), group).sqrt()
        # at a gradient of zero, P stays positive
        eps = torch.where(rms > 0, group["eps2"] * rms, group["eps"]).clamp_max(group["eps"])
        metric: Tensor = fisher**p + eps ** (2 * p)
        return metric


def _clip(x: Tensor, group: Group) -> Tensor:
    excess: Tensor = _mean(x.square(), group).sqrt() / group["clip"]
    return x / excess.clamp_min(1.0)


def _mean(x: Tensor, group: Group) -> Tensor:
    n = len(x) if group["stacked"] else 1
    return sum_each(x, group) * (n / x.numel())
