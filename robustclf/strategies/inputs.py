"""Strategies that change the rows of a batch: noise, exchanged features, adversarial rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_flag, check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Mixing, Strategy
from robustclf.strategies.batch import Mixup, _symmetric_beta


@STRATEGIES.register("feature_noise")
class FeatureNoise(Strategy):
    r"""Add Gaussian noise to the numbers of every row.

    .. math:: x_{ij} \leftarrow x_{ij} + b_{ij}\, \sigma\, \varepsilon_{ij}, \qquad
              \varepsilon_{ij} \sim N(0, 1), \quad b_{ij} \sim \mathrm{Bernoulli}(p)

    Indicators and codes of categories stay as they are.

    Parameters
    ----------
    scale : float, default=0.1
        Standard deviation sigma, non-negative, in the units of the encoded numbers: the
        interquartile range of a feature is about 1.
    p : float, default=1.0
        Share of the numbers that get noise, in [0, 1].

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    To first order this adds ``scale ** 2 / 2`` times the curvature of the loss in x to the
    objective. A missing number is encoded as 0 and gets noise like any other.

    References
    ----------
    Bishop. Training with Noise is Equivalent to Tikhonov Regularization. Neural Computation 7(1),
    1995.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies.inputs import FeatureNoise
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=FeatureNoise(scale=0.3), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, scale: float = 0.1, p: float = 1.0) -> None:
        self.scale = scale
        self.p = p

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("scale", self.scale, "[0, inf)")
        check_range("p", self.p, "[0, 1]")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Return the batch with noise on its numbers."""
        numbers = batch.x[..., : n_numeric(net)]
        noise = self.scale * torch.randn_like(numbers)
        if self.p < 1:
            noise = noise * (torch.rand_like(numbers) < self.p)
        return replace(batch, x=with_numbers(batch.x, numbers + noise))


@STRATEGIES.register("feature_swap")
class FeatureSwap(Strategy):
    r"""CutMix for tables: give every row some features of a partner, and mix their losses.

    .. math::
        \tilde x_{ij} = m_{ij}\, x_{ij} + (1 - m_{ij})\, x_{\pi(i)j}, \qquad
        \lambda\, w_i \ell(f(\tilde x_i), t_i) + (1 - \lambda)\, w_{\pi(i)} \ell(f(\tilde x_i),
        t_{\pi(i)})

    with one permutation :math:`\pi` per batch. Each row has a random mask m of its own, with the
    same number of zeros: the share of the partner, drawn from Beta(alpha, alpha) and rounded to
    whole columns. :math:`\lambda` is the share of the columns that a row keeps.

    Parameters
    ----------
    alpha : float, default=1.0
        Concentration of the Beta distribution, in (0, inf). Small values exchange few features, or
        nearly all.
    p : float, default=0.5
        Share of the batches in which features are exchanged, in [0, 1]. Published for images: 0.5
        (CIFAR), 1 (ImageNet).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Columns are those of the encoded row: a number, a code, or an indicator. A category with few
    values has one indicator per value, and a swapped row may mix the indicators of two values.
    Each value of a swapped row is one that occurs in its column, unlike those of mixup.

    References
    ----------
    Yun et al. CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features. ICCV 2019. arXiv:1905.04899. In tables, without mixed losses: Somepalli et al. SAINT.
    arXiv:2106.01342.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies.inputs import FeatureSwap
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=FeatureSwap(alpha=0.5), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, alpha: float = 1.0, p: float = 0.5) -> None:
        self.alpha = alpha
        self.p = p

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("alpha", self.alpha, "(0, inf)")
        check_range("p", self.p, "[0, 1]")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Exchange features between the rows of the batch."""
        if float(torch.rand(())) >= self.p:
            return batch
        n, n_columns = batch.x.shape[-2:]
        device = batch.x.device
        n_taken = round((1 - _symmetric_beta(float(self.alpha))) * n_columns)
        partner = torch.randperm(n, device=device)
        taken = torch.rand(n, n_columns, device=device).argsort(-1) < n_taken
        x = torch.where(taken, batch.x.index_select(-2, partner), batch.x)
        mixing = Mixing(1 - n_taken / max(n_columns, 1), partner, batch.x)
        return mixing.batch(batch, x, net.n_classes)


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
    >>> from robustclf.strategies.inputs import Adversarial
    >>> X, y = load_wine(return_X_y=True)
    >>> pgd = Adversarial(eps=0.2, steps=3, random_start=True)
    >>> clf = RobustClassifier(strategy=pgd, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

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
        step_size = self.step_size or (self.eps if self.steps == 1 else 2.5 * self.eps / self.steps)
        shift = torch.zeros_like(numbers)
        if self.random_start:
            # the same draw for all members: those of a member do not depend on its stack
            shift = self._anywhere(torch.zeros_like(batch.x[..., : n_numeric(net)])) + shift
        with evaluating(net.module_):
            for _ in range(self.steps):
                shift.requires_grad_()
                logits = net.module_(with_numbers(x, numbers + shift)).to(batch.weight.dtype)
                loss = net.criterion_(logits, batch.target).sum()
                (gradient,) = torch.autograd.grad(loss, shift)
                shift = self._project(shift.detach() + step_size * self._steepest(gradient))
        # rows that a member does not train on must not tell it their labels through mixup
        shift = shift * (batch.weight > 0).unsqueeze(-1)
        return replace(batch, x=with_numbers(x, numbers + shift))

    def _anywhere(self, zeros: Tensor) -> Tensor:
        """Draw uniformly from the ball."""
        if self.norm == "inf":
            return zeros.uniform_(-self.eps, self.eps)
        radius = torch.rand_like(zeros[..., :1]) ** (1 / max(zeros.shape[-1], 1))
        return self.eps * radius * unit(torch.randn_like(zeros))

    def _steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.norm == "inf" else unit(gradient)

    def _project(self, shift: Tensor) -> Tensor:
        if self.norm == "inf":
            return shift.clamp(-self.eps, self.eps)
        length = shift.norm(dim=-1, keepdim=True)
        factor: Tensor = self.eps / length.clamp_min(torch.finfo(shift.dtype).tiny)
        return shift * factor.clamp_max(1)


@STRATEGIES.register("decoupled_mixup")
class DecoupledMixup(Mixup):
    r"""Mixup that also asks for each of the two labels as if the other were not there.

    .. math::
        \mathrm{mixup} - \eta \left( w_i \log \frac{e^{z_a}}{\sum_{c \ne b} e^{z_c}}
        + w_{\pi(i)} \log \frac{e^{z_b}}{\sum_{c \ne a} e^{z_c}} \right)

    for a mixed row with logits z and the labels :math:`a = y_i \ne b = y_{\pi(i)}`. Neither term
    depends on how much of a label is in the mixture, so both classes are told from the others with
    confidence. Where :math:`a = b` it is mixup.

    Parameters
    ----------
    alpha : float, default=1.0
        Concentration of the Beta distribution of mixup, in (0, inf).
    eta : float, default=0.1
        Strength of the decoupled terms, non-negative. Published: 0.1 (CIFAR-100: 0.01).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    With two classes nothing is left to decouple, and it is mixup. The decoupled terms are left out
    where a row of weight 0 takes part: a held-out label stays unknown. The published code also
    leaves them out for mixtures of equal parts, which it cannot tell apart. A target that is a
    distribution already counts as its most probable class.

    References
    ----------
    Liu et al. Harnessing Hard Mixed Samples with Decoupled Regularizer. NeurIPS 2023.
    arXiv:2203.10761.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies.inputs import DecoupledMixup
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=DecoupledMixup(alpha=0.4), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, alpha: float = 1.0, eta: float = 0.1) -> None:
        super().__init__(alpha)
        self.eta = eta

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        super().check(loss, n_classes)
        check_range("eta", self.eta, "[0, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Mix every row with a partner of the same batch."""
        mixed = super().on_batch(net, batch)
        assert mixed.mixing is not None
        label = batch.target.argmax(-1) if batch.target.is_floating_point() else batch.target
        partner = mixed.mixing.partner
        self.pair_ = [(label, batch.weight)]
        self.pair_ += [(label.index_select(-1, partner), batch.weight.index_select(-1, partner))]
        return mixed

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the decoupled terms of each sample, ``(member, sample)``."""
        (a, w_a), (b, w_b) = self.pair_
        decoupled = (a != b) & (w_a > 0) & (w_b > 0)
        terms = w_a * _without(logits, a, b) + w_b * _without(logits, b, a)
        return self.eta * torch.where(decoupled, terms, 0.0)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Free the labels of the last batch."""
        self.__dict__.pop("pair_", None)


def _without(logits: Tensor, label: Tensor, other: Tensor) -> Tensor:
    """Cross entropy of ``label`` among all classes but ``other``, ``(member, sample)``."""
    shape = (*logits.shape[:-1], 1)
    others = logits.scatter(-1, other.unsqueeze(-1).expand(shape), -torch.inf)
    kept = others.gather(-1, label.unsqueeze(-1).expand(shape)).squeeze(-1)
    entropy: Tensor = others.logsumexp(-1) - kept
    return entropy


def n_numeric(net: Any) -> int:
    """Return how many leading columns of an encoded row are numbers."""
    n: int = net.module_.inputs.n_numeric
    return n


def with_numbers(x: Tensor, numbers: Tensor) -> Tensor:
    """Return the encoded rows with other numbers."""
    return torch.cat([numbers, x[..., numbers.shape[-1] :]], dim=-1)


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
