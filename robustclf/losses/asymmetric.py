"""Asymmetric losses: robust as long as the true label is the most probable one."""

from __future__ import annotations

import torch
from scipy.stats import loguniform, uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, PointwiseLoss
from robustclf.losses._hyperparameters import Scalar, check_range
from robustclf.losses._row_sum import power_sum


@LOSSES.register("agce")
class AsymmetricGeneralizedCrossEntropy(PointwiseLoss):
    r"""Asymmetric generalised cross entropy: generalised cross entropy of a + p_y.

    .. math:: \frac{(a + 1)^q - (a + p_y)^q}{q}

    Parameters
    ----------
    a : float, default=1.0
        In (0, inf); the limit 0 is generalised cross entropy.
    q : float, default=2.0
        In (0, inf). Both defaults are the published code's; (a, q) published: MNIST (4, 0.2),
        CIFAR-10 (0.6, 0.6), beside NCE on CIFAR-10 (6, 1.5) and CIFAR-100 (1.8, 3).

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import AsymmetricGeneralizedCrossEntropy
    >>> AsymmetricGeneralizedCrossEntropy()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.3737])
    """

    bounded = True
    search_space = {"a": loguniform(0.1, 10), "q": loguniform(0.1, 3)}

    def __init__(self, a: Scalar = 1.0, q: Scalar = 2.0) -> None:
        self.a = a
        self.q = q

    def check(self, n_classes: int) -> None:
        """Check a and q."""
        check_range("a", self.a, "(0, inf)")
        check_range("q", self.q, "(0, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return ((self.a + 1) ** self.q - (self.a + log_p.exp()) ** self.q) / self.q


@LOSSES.register("aul")
class AsymmetricUnhinged(PointwiseLoss):
    r"""Asymmetric unhinged loss: a power of a - p_y.

    .. math:: \frac{(a - p_y)^q - (a - 1)^q}{q}

    Parameters
    ----------
    a : float, default=1.5
        In (1, inf); at 1 the gradient of a certain prediction is infinite if q < 1.
    q : float, default=0.9
        In (0, inf). Both defaults are the published code's; (a, q) published: MNIST (3, 0.1),
        CIFAR-10 (5.5, 3), beside NCE on CIFAR-10 (6.3, 1.5) and CIFAR-100 (6, 3).

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import AsymmetricUnhinged
    >>> AsymmetricUnhinged()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.8901])
    """

    bounded = True
    search_space = {"a": uniform(1.5, 6), "q": loguniform(0.1, 3)}

    def __init__(self, a: Scalar = 1.5, q: Scalar = 0.9) -> None:
        self.a = a
        self.q = q

    def check(self, n_classes: int) -> None:
        """Check a and q."""
        check_range("a", self.a, "(1, inf)")
        check_range("q", self.q, "(0, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return ((self.a - log_p.exp()) ** self.q - (self.a - 1) ** self.q) / self.q


@LOSSES.register("ael")
class AsymmetricExponential(PointwiseLoss):
    r"""Asymmetric exponential loss: never zero, nearly linear in p_y.

    .. math:: e^{-p_y / a}

    Parameters
    ----------
    a : float, default=3.0
        In (0, inf). The default is the published code's; published: MNIST 3.5, CIFAR 2.5, beside
        NCE on CIFAR-10 5 and CIFAR-100 1.5.

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import AsymmetricExponential
    >>> AsymmetricExponential()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.9610])
    """

    bounded = True
    search_space = {"a": loguniform(0.5, 10)}

    def __init__(self, a: Scalar = 3.0) -> None:
        self.a = a

    def check(self, n_classes: int) -> None:
        """Check a."""
        check_range("a", self.a, "(0, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return torch.exp(-log_p.exp() / self.a)


@LOSSES.register("anorm")
class AsymmetricNorm(Loss):
    r"""Asymmetric norm loss: the distance of p from a times the label, to the power p.

    .. math:: \frac{\sum_k \bigl|a \mathbb{1}[k = y] - p_k\bigr|^p - (a - 1)^p}{p}

    Published code clamps the probabilities at 1e-5, which stops the gradient of rare classes;
    here it is exact.

    Parameters
    ----------
    a : float, default=1.5
        In (1, inf).
    p : float, default=0.9
        In (0, inf). Both defaults are the published code's.

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import AsymmetricNorm
    >>> AsymmetricNorm()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.8812])
    """

    bounded = True
    search_space = {"a": uniform(1.5, 6), "p": loguniform(0.3, 3)}

    def __init__(self, a: Scalar = 1.5, p: Scalar = 0.9) -> None:
        self.a = a
        self.p = p

    def check(self, n_classes: int) -> None:
        """Check a and p."""
        check_range("a", self.a, "(1, inf)")
        check_range("p", self.p, "(0, inf)")

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities are `x_y`."""
        others = power_sum(x, self.p) - torch.exp(self.p * x_y)
        label = (self.a - x_y.exp()) ** self.p - (self.a - 1) ** self.p
        return (others + label) / self.p
