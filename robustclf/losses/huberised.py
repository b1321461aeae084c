"""Partially Huberised and truncated losses: their slope in p_y is bounded where p_y is small."""

from __future__ import annotations

import torch
from scipy.stats import loguniform, uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, PointwiseLoss, Wrapper, log_softmax
from robustclf.losses._hyperparameters import Scalar, at_least, check_range, like, log


@LOSSES.register("phuber_ce")
class PHuberCrossEntropy(PointwiseLoss):
    r"""Partially Huberised cross entropy: linear in p_y where its slope would exceed tau.

    .. math:: \begin{cases} -\log p_y & p_y > 1 / \tau \\
        1 + \log \tau - \tau p_y & \text{else} \end{cases}

    Parameters
    ----------
    tau : float, default=2.0
        Largest slope, in [1, inf); 1 is the mean absolute error. Published: 2 (CIFAR-10), 10
        (MNIST, CIFAR-100).

    References
    ----------
    A. K. Menon, A. S. Rawat, S. J. Reddi, S. Kumar, "Can gradient clipping mitigate label
    noise?", ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import PHuberCrossEntropy
    >>> PHuberCrossEntropy(tau=2.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.4547])
    """

    bounded = True
    search_space = {"tau": loguniform(1.5, 50)}

    def __init__(self, tau: Scalar = 2.0) -> None:
        self.tau = tau

    def check(self, n_classes: int) -> None:
        """Check tau."""
        check_range("tau", self.tau, "[1, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return (1 - self.tau * log_p.exp()).relu() - at_least(log_p, -log(self.tau))


@LOSSES.register("phuber_gce")
class PHuberGeneralizedCrossEntropy(PointwiseLoss):
    r"""Partially Huberised generalised cross entropy: linear where its slope would exceed tau.

    .. math:: \begin{cases} (1 - p_y^q) / q & p_y > \theta \\
        (1 - \theta^q) / q + \tau (\theta - p_y) & \text{else} \end{cases}
        \qquad \theta = \tau^{1 / (q - 1)}

    Parameters
    ----------
    q : float, default=0.7
        Exponent in (0, 1).
    tau : float, default=2.0
        Largest slope, in [1, inf).

    References
    ----------
    A. K. Menon, A. S. Rawat, S. J. Reddi, S. Kumar, "Can gradient clipping mitigate label
    noise?", ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import PHuberGeneralizedCrossEntropy
    >>> PHuberGeneralizedCrossEntropy(q=0.5)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.2616])
    """

    bounded = True
    search_space = {"q": uniform(0.1, 0.85), "tau": loguniform(1.5, 50)}

    def __init__(self, q: Scalar = 0.7, tau: Scalar = 2.0) -> None:
        self.q = q
        self.tau = tau

    def check(self, n_classes: int) -> None:
        """Check q and tau."""
        check_range("q", self.q, "(0, 1)")
        check_range("tau", self.tau, "[1, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        log_theta = log(self.tau) / (self.q - 1)  # theta itself may be too small for a number
        gce = -torch.expm1(self.q * at_least(log_p, log_theta)) / self.q
        theta = self.tau ** (1 / (self.q - 1))
        return gce + self.tau * (theta - log_p.exp()).relu()


@LOSSES.register("truncated_gce")
class TruncatedGeneralizedCrossEntropy(PointwiseLoss):
    r"""Truncated generalised cross entropy: constant where the label has a probability below k.

    .. math:: \min\left\{ \frac{1 - p_y^q}{q}, \frac{1 - k^q}{q} \right\}

    Rows below k have no gradient, so that training from scratch with it would never start: let
    cross entropy warm up. The published training keeps a pruning flag per row, renewed every ten
    epochs by the best model so far; here a row is in or out by its probability at each step,
    which is the formula and needs no memory.

    Parameters
    ----------
    q : float, default=0.7
        Exponent in (0, 1].
    k : float, default=0.5
        Probability of truncation, in (0, 1). Both defaults are the paper's.

    References
    ----------
    Z. Zhang, M. R. Sabuncu, "Generalized cross entropy loss for training deep neural networks
    with noisy labels", NeurIPS 2018, arXiv:1805.07836.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import TruncatedGeneralizedCrossEntropy
    >>> loss = TruncatedGeneralizedCrossEntropy()
    >>> loss.per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1215, 0.5492]])
    """

    bounded = True
    search_space = {"q": uniform(0.1, 0.9), "k": uniform(0.05, 0.5)}

    def __init__(self, q: Scalar = 0.7, k: Scalar = 0.5) -> None:
        self.q = q
        self.k = k

    def check(self, n_classes: int) -> None:
        """Check q and k."""
        check_range("q", self.q, "(0, 1]")
        check_range("k", self.k, "(0, 1)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -torch.expm1(self.q * at_least(log_p, log(self.k))) / self.q


@LOSSES.register("clipped")
class Clipped(Wrapper):
    r"""Partially Huberised form of any loss: linear in p_y below a threshold, slope and all.

    .. math:: \ell(p^\theta) + \tau (\theta - p_y)_+, \qquad
        \tau = -\frac{\partial \ell}{\partial p_y}(p^\theta)

    where p^theta is p with p_y raised to theta if it is below, and the other probabilities scaled
    to make room. Value and slope are continuous, so the slope in p_y never exceeds tau if the
    loss is convex in p_y. The published clipped losses (OGC) drop the constant and jump at theta.

    Parameters
    ----------
    loss : str or Loss, default="ce"
        The loss to clip. Of one that depends on p_y alone, soft targets cost no more than hard
        ones; else they take one evaluation for each class.
    theta : float, default=0.5
        Probability of the label in (0, 1) below which the loss is linear. For cross entropy the
        slope is bounded by `1 / theta`.

    References
    ----------
    A. K. Menon, A. S. Rawat, S. J. Reddi, S. Kumar, "Can gradient clipping mitigate label
    noise?", ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Clipped, PHuberCrossEntropy
    >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    >>> Clipped("ce", theta=0.5)(logits, target)
    tensor([1.4547])
    >>> PHuberCrossEntropy(tau=2.0)(logits, target)
    tensor([1.4547])
    >>> Clipped("nce+rce")(logits, target)
    tensor([9.1618])
    """

    own_search_space = {"theta": uniform(0.05, 0.7)}

    def __init__(self, loss: str | Loss = "ce", theta: Scalar = 0.5) -> None:
        self.loss = loss
        self.theta = theta

    pointwise = property(lambda self: self.inner.pointwise)
    takes_log_p = property(lambda self: self.inner.pointwise)
    labelwise = property(lambda self: self.inner.pointwise)
    bounded = property(lambda self: self.inner.bounded or self.inner.pointwise)

    def check(self, n_classes: int) -> None:
        """Check theta and the loss inside."""
        check_range("theta", self.theta, "(0, 1)")
        super().check(n_classes)

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the checked loss, with its slope below theta."""
        built = super().build(n_classes, n_members)
        if self.inner.pointwise:
            built = built._replaced(tau_=self._tau(torch.zeros((), dtype=torch.float64)))
        return built

    def _tau(self, x: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(lambda x: self.inner.of(x, x).sum())(
            like(log(self.theta), x)
        )
        return -slope / self.theta

    def prepare(self, logits: Tensor) -> Tensor:
        """Return log probabilities if the loss inside is pointwise, else the logits."""
        return self.inner.prepare(logits) if self.inner.pointwise else logits

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p, if the loss inside is one."""
        return self.of(log_p, log_p)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities are `x_y`, if the loss inside is pointwise."""
        tau = like(self.tau_ if hasattr(self, "tau_") else self._tau(x), x)
        near = at_least(x_y, log(self.theta))
        linear: Tensor = tau * (self.theta - x_y.exp()).relu()
        return self.inner.of(near, near) + linear

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return self.values(x).sum(-1, keepdim=True)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        if self.inner.pointwise:
            return self.of(x, x)
        labels = torch.zeros_like(x[..., :1], dtype=torch.int64)
        return torch.cat([self.value_at(x, labels + k) for k in range(x.shape[-1])], -1)

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        if self.inner.pointwise:
            return self.of(x.gather(-1, index), x)
        p_y = log_softmax(x).gather(-1, index).exp()
        below = p_y < self.theta
        low = torch.where(below, x, 0.0)  # at p_y = 1 the slope of the slope may be infinite

        def raised(z_y: Tensor) -> Tensor:
            return low.scatter(-1, index, z_y)

        log_theta = like(log(self.theta), x)
        others = raised(torch.full_like(p_y, -torch.inf)).logsumexp(-1, keepdim=True)
        z_y = others + log_theta - torch.log(-torch.expm1(log_theta))  # at which p_y is theta
        slope = torch.func.grad(lambda z_y: self.inner.at_label(raised(z_y), index).sum())(z_y)
        linear: Tensor = -slope / (self.theta * (1 - self.theta)) * (self.theta - p_y).relu()
        return self.inner.at_label(torch.where(below, raised(z_y), x), index) + linear
