"""Strategies that move rows, by little, to where it hurts most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_flag, check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies._unlabelled import SemiSupervised
from robustclf.strategies.perturbation import n_numeric, with_numbers


@STRATEGIES.register("adversarial")
class Adversarial(Strategy):
    r"""Train on the worst rows within a small distance of the given ones.

    .. math:: \max_{\lVert \delta_i \rVert \le \epsilon} \ell(f(x_i + \delta_i), t_i)

    by ``steps`` projected gradient steps: one is the fast gradient sign method, x + eps * sign(g),
    several are PGD. Every member gets perturbations of its own. Only numbers move: indicators and
    codes of categories stay as they are.

    Parameters
    ----------
    eps : float, default=0.1
        Radius, non-negative, in the units of the encoded numbers: the interquartile range of a
        feature is about 1.
    steps : int, default=1
        Gradient steps, at least 1; each costs a forward and a backward pass.
    step_size : float or None, default=None
        Length of a step, positive. None is ``eps`` for a single step, else ``2.5 * eps / steps``.
    norm : {"inf", "2"}, default="inf"
        Whether ``eps`` bounds each number or the Euclidean length of the perturbation of a row.
    random_start : bool, default=False
        Start at a random point of the ball. PGD as published does.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The step trains on the adversarial rows alone, as Madry et al. do; Goodfellow et al. weigh them
    and the clean rows equally. The rows are found without dropout, with running batch statistics
    and with the loss of the fit, also during the fit's warm-up. Under label noise, a perturbation
    that raises the loss of a wrong label moves the row to its true class.

    References
    ----------
    Goodfellow, Shlens, Szegedy. Explaining and Harnessing Adversarial Examples. ICLR 2015.
    arXiv:1412.6572. Madry et al. Towards Deep Learning Models Resistant to Adversarial Attacks.
    ICLR 2018. arXiv:1706.06083.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import Adversarial
    >>> X, y = load_wine(return_X_y=True)
    >>> pgd = Adversarial(eps=0.2, steps=3, random_start=True)
    >>> clf = RobustClassifier(loss="gce", strategy=pgd, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    needs = ("network",)

    def __init__(
        self,
        eps: float = 0.1,
        steps: int = 1,
        step_size: float | None = None,
        norm: str = "inf",
        random_start: bool = False,
    ) -> None:
        self.eps = eps
        self.steps = steps
        self.step_size = step_size
        self.norm = norm
        self.random_start = random_start

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("eps", self.eps, "[0, inf)")
        check_integer("steps", self.steps, "[1, inf)")
        if self.step_size is not None:
            check_range("step_size", self.step_size, "(0, inf)")
        check_known("norm of strategy 'adversarial'", [self.norm], ["inf", "2"])
        check_flag("random_start", self.random_start)

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Return the batch with adversarial rows, ``(member, sample, feature)``."""
        x = batch.x.expand(net.n_stacked, *batch.x.shape[-2:])
        numbers = x[..., : n_numeric(net)]
        ball = Ball(self.eps, self.norm)
        shift = torch.zeros_like(numbers)
        if self.random_start:
            # the same draw for all members: those of a member do not depend on its stack
            shift = ball.anywhere(torch.zeros_like(batch.x[..., : n_numeric(net)])) + shift

        def loss(shift: Tensor) -> Tensor:
            logits = net.module_(with_numbers(x, numbers + shift)).to(batch.weight.dtype)
            value: Tensor = net.criterion_(logits, batch.target)
            return value

        with evaluating(net.module_):
            shift = ball.climb(loss, shift, self.steps, self.step_size)
        # rows that a member does not train on must not tell it their labels through mixup
        shift = shift * (batch.weight > 0).unsqueeze(-1)
        return replace(batch, x=with_numbers(x, numbers + shift))


@STRATEGIES.register("smooth_adversarial")
class SmoothAdversarial(Strategy):
    r"""Keep the margins of a row the same within a small distance, and train on the row itself.

    .. math::
        R_i = \nu \max_{\lVert \delta_i \rVert \le \gamma}
        \lVert \Delta(x_i + \delta_i, y_i) - \Delta(x_i, y_i) \rVert_2, \qquad
        \Delta(x, y) = \left( z_y(x) - z_k(x) \right)_{k \ne y}

    with z the logits. Added to a comp-sum loss, such as ``"ce"``, ``"gce"`` or ``"mae"``, this is
    the smooth adversarial comp-sum loss. The maximum is sought by ``steps`` projected gradient
    steps from a random point. Only numbers move: indicators and codes of categories stay as they
    are.

    Parameters
    ----------
    nu : float, default=0.1
        Strength, non-negative. Bounded losses need a smaller one than the cross entropy.
    gamma : float, default=0.1
        Radius, non-negative, in the units of the encoded numbers: the interquartile range of a
        feature is about 1.
    steps : int, default=2
        Gradient steps, at least 1; each costs a forward and a backward pass.
    step_size : float or None, default=None
        Length of a step, positive. None is ``gamma`` for a single step, else ``2.5 * gamma /
        steps``.
    norm : {"inf", "2"}, default="inf"
        Whether ``gamma`` bounds each number or the Euclidean length of the perturbation of a row.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    All logits of the penalty are those of the network without dropout, and with running batch
    statistics: with dropout the difference would measure two draws of it. The gradient flows
    through both sides of the difference. A target that is a distribution counts with the penalty
    expected under it. In a list, put this after the strategies that change rows.
    The form of the smooth term has not been compared with the text of the paper.

    References
    ----------
    Mao, Mohri, Zhong. Cross-Entropy Loss Functions: Theoretical Analysis and Applications. ICML
    2023. arXiv:2304.07288.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies.adversarial import margin_change
    >>> change = torch.tensor([[[1.0, 0.0, 0.0]]])  # of the logits: (member, sample, class)
    >>> margin_change(change, torch.tensor([[1.0, 0.0, 0.0]]))  # both margins grow by 1
    tensor([[1.4142]])
    >>> margin_change(change, torch.tensor([[0.0, 1.0, 0.0]]))  # one shrinks, one stays
    tensor([[1.]])
    """

    needs = ("network",)

    def __init__(
        self,
        nu: float = 0.1,
        gamma: float = 0.1,
        steps: int = 2,
        step_size: float | None = None,
        norm: str = "inf",
    ) -> None:
        self.nu = nu
        self.gamma = gamma
        self.steps = steps
        self.step_size = step_size
        self.norm = norm

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("nu", self.nu, "[0, inf)")
        check_range("gamma", self.gamma, "[0, inf)")
        check_integer("steps", self.steps, "[1, inf)")
        if self.step_size is not None:
            check_range("step_size", self.step_size, "(0, inf)")
        check_known("norm of strategy 'smooth_adversarial'", [self.norm], ["inf", "2"])

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Find the perturbations, ``(member, sample, number)``."""
        x = batch.x.expand(net.n_stacked, *batch.x.shape[-2:])
        numbers = x[..., : n_numeric(net)]
        target = batch.distribution(net.n_classes)
        ball = Ball(self.gamma, self.norm)
        # the same draw for all members: those of a member do not depend on its stack
        start = ball.anywhere(torch.zeros_like(batch.x[..., : n_numeric(net)]))

        def change(shift: Tensor) -> Tensor:
            moved = net.module_(with_numbers(x, numbers + shift))
            return margin_change(moved.to(clean) - clean, target)

        with evaluating(net.module_):
            with torch.no_grad():
                clean = net.module_(x).to(batch.weight.dtype)
            shift = start.expand_as(numbers)
            shift = ball.climb(change, shift, self.steps, self.step_size)
        # rows that a member does not train on must not tell it their labels through mixup
        self.shift_ = shift * (batch.weight > 0).unsqueeze(-1)
        return batch

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each sample, ``(member, sample)``."""
        x = batch.x.expand(net.n_stacked, *batch.x.shape[-2:])
        moved = with_numbers(x, x[..., : n_numeric(net)] + self.shift_)
        with evaluating(net.module_):
            both = net.module_(torch.cat([x, moved], dim=-2)).to(logits.dtype)
        clean, perturbed = both.unflatten(-2, (2, -1)).unbind(-3)
        target = batch.distribution(logits.shape[-1])
        return self.nu * batch.weight * margin_change(perturbed - clean, target)


@STRATEGIES.register("vat")
class VirtualAdversarial(SemiSupervised):
    r"""Keep the prediction the same in the direction in which it changes fastest.

    .. math::
        R_i = \lambda\, w_i\, \mathrm{KL}\left( p(x_i) \,\Vert\, p(x_i + \epsilon d_i) \right),
        \qquad
        d_i \leftarrow \frac{g}{\lVert g \rVert_2}, \quad
        g = \nabla_r \mathrm{KL}\left( p(x_i) \,\Vert\, p(x_i + r) \right) \big|_{r = \xi d_i}

    with p the softmax of the logits. d starts as a random direction and ``n_iter`` steps of the
    power method turn it to the largest curvature. No label is used: rows without one take part, so
    that R is the mean over the rows with a label plus the mean over those without. No gradient
    flows through p(x) or d. Only numbers move: indicators and codes of categories stay as they are.

    Parameters
    ----------
    lam : float, default=1.0
        Strength, non-negative.
    eps : float, default=0.3
        Euclidean length of the perturbation of a row, non-negative, in the units of the encoded
        numbers: the interquartile range of a feature is about 1. The authors tune this alone; a
        length at which classes meet merges them.
    xi : float, default=1e-3
        Length at which the gradient is taken, positive. Published: 1e-6, at which few digits of
        the gradient are left in single precision.
    n_iter : int, default=1
        Steps of the power method, at least 1; each costs a forward and a backward pass.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Both predictions are those of the network without dropout, and with running batch statistics:
    with them the divergence would measure two draws of the dropout, not the perturbation.

    References
    ----------
    Miyato, Maeda, Koyama, Ishii. Virtual Adversarial Training. IEEE TPAMI 41(8), 2018.
    arXiv:1704.03976.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import VirtualAdversarial
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", strategy=VirtualAdversarial(eps=0.2), random_state=0)
    >>> clf = clf.fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    needs = ("network",)

    def __init__(
        self, lam: float = 1.0, eps: float = 0.3, xi: float = 1e-3, n_iter: int = 1
    ) -> None:
        self.lam = lam
        self.eps = eps
        self.xi = xi
        self.n_iter = n_iter

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lam", self.lam, "[0, inf)")
        check_range("eps", self.eps, "[0, inf)")
        check_range("xi", self.xi, "(0, inf)")
        check_integer("n_iter", self.n_iter, "[1, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Draw the directions to start from, the same for all members."""
        self.start_ = unit(torch.randn_like(batch.x[..., : n_numeric(net)]))
        return batch

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each sample, ``(member, sample)``."""
        x = batch.x.expand(net.n_stacked, *batch.x.shape[-2:])
        numbers = x[..., : n_numeric(net)]
        direction = self.start_.expand_as(numbers)

        def divergence(shift: Tensor) -> Tensor:
            moved: Tensor = net.module_(with_numbers(x, numbers + shift)).to(logits.dtype)
            return (log_p.exp() * (log_p - moved.log_softmax(-1))).sum(-1)

        with evaluating(net.module_):
            with torch.no_grad():
                log_p: Tensor = net.module_(x).to(logits.dtype).log_softmax(-1)
            for _ in range(self.n_iter):
                shift = (self.xi * direction).requires_grad_()
                (gradient,) = torch.autograd.grad(divergence(shift).sum(), shift)
                direction = unit(gradient)
            return self.lam * self._weight_of(batch) * divergence(self.eps * direction)

    def _weight_of(self, batch: Batch) -> Tensor:
        """Return weights, ``(member or 1, sample)``, also of rows whose label nobody guesses."""
        if self.unlabelled_ is None:
            return batch.weight
        weight = self.unlabelled_.index_select(1, batch.index)
        if batch.mixing is not None:
            weight = batch.mixing(weight.unsqueeze(-1)).squeeze(-1)
        return batch.weight.maximum(weight)


@dataclass
class Ball:
    """Perturbations up to a radius, and how to find the worst of them."""

    radius: float
    norm: str  # "inf" or "2"

    def anywhere(self, zeros: Tensor) -> Tensor:
        """Draw uniformly from the ball."""
        if self.norm == "inf":
            return zeros.uniform_(-self.radius, self.radius)
        length = torch.rand_like(zeros[..., :1]) ** (1 / max(zeros.shape[-1], 1))
        return self.radius * length * unit(torch.randn_like(zeros))

    def climb(
        self,
        function: Callable[[Tensor], Tensor],
        shift: Tensor,
        steps: int,
        step_size: float | None,
    ) -> Tensor:
        """Take projected gradient steps up a function of the perturbation of each row."""
        step_size = step_size or (self.radius if steps == 1 else 2.5 * self.radius / steps)
        for _ in range(steps):
            shift = shift.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(function(shift).sum(), shift)
            steepest = gradient.sign() if self.norm == "inf" else unit(gradient)
            shift = self._project(shift.detach() + step_size * steepest)
        return shift

    def _project(self, shift: Tensor) -> Tensor:
        if self.norm == "inf":
            return shift.clamp(-self.radius, self.radius)
        length = shift.norm(dim=-1, keepdim=True)
        factor: Tensor = self.radius / length.clamp_min(torch.finfo(shift.dtype).tiny)
        return shift * factor.clamp_max(1.0)


def margin_change(change: Tensor, target: Tensor) -> Tensor:
    """Return how far the margins move when the logits change, expected under the target.

    ``sum_k (d_y - d_k)^2`` is ``K d_y^2 + sum_k d_k^2`` for changes d of mean zero.
    """
    d = change - change.mean(-1, keepdim=True)
    square = d.shape[-1] * d.square() + d.square().sum(-1, keepdim=True)
    length = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    expected: Tensor = (target * length).sum(-1)
    return expected


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one; zero stays zero, and squares do not underflow."""
    tiny = torch.finfo(x.dtype).tiny
    if x.shape[-1]:
        x = x / x.abs().amax(-1, keepdim=True).clamp_min(tiny)
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp_min(tiny)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a module without dropout and without learning batch statistics."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
