"""Cross entropy and the losses of p_y that generalise it."""

from __future__ import annotations

import torch
from scipy.stats import loguniform, uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, PointwiseLoss
from robustclf.losses._hyperparameters import (
    Scalar,
    check_flag,
    check_integer,
    check_range,
    every,
    largest,
    nonzero,
)
from robustclf.losses._row_sum import power_sum, row_sum

TANGENT = 40.0  # exponent from which an exponential loss goes on along its tangent


@LOSSES.register("ce")
class CrossEntropy(PointwiseLoss):
    r"""Cross entropy: the loss of clean labels, which fits every wrong one in the end.

    .. math:: -\log p_y

    References
    ----------
    C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27,
    1948.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import CrossEntropy
    >>> CrossEntropy()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([2.1269])
    """

    convex = True
    proper = True

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -log_p

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return -x.sum(-1, keepdim=True)


@LOSSES.register("focal")
class Focal(PointwiseLoss):
    r"""Focal loss: cross entropy that cares less for easy samples.

    .. math:: -(1 - p_y)^\gamma \log p_y

    Parameters
    ----------
    gamma : float, default=0.5
        Focusing exponent in [0, inf); 0 gives cross entropy. The default is that of the
        noisy-label literature (Ma et al., ICML 2020); the focal loss paper itself takes 2.
    detach_focal : bool, default=False
        Whether the factor `(1 - p_y)^gamma` is constant in the gradient. False is the gradient of
        the formula; True is the convention of the published noisy-label code (APL, ANL).

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal loss for dense object detection",
    ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Focal
    >>> Focal(gamma=2.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.6501])
    """

    search_space = {"gamma": uniform(0, 3)}

    def __init__(self, gamma: Scalar = 0.5, detach_focal: bool = False) -> None:
        self.gamma = gamma
        self.detach_focal = detach_focal

    convex = property(lambda self: every(self.gamma, lambda gamma: gamma == 0))
    proper = property(lambda self: self.convex)

    def check(self, n_classes: int) -> None:
        """Check gamma and detach_focal."""
        check_range("gamma", self.gamma, "[0, inf)")
        check_flag("detach_focal", self.detach_focal)

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        # at p = 1 the slope of the power may be infinite; tiny changes no other value of 1 - p
        missing = torch.finfo(log_p.dtype).tiny - torch.expm1(log_p)
        focal = missing**self.gamma
        return -((focal.detach() if self.detach_focal else focal) * log_p)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        gamma = self.gamma
        if isinstance(gamma, Tensor):
            return super().total(x)

        def fast(log_p: Tensor, total: Tensor, slope: Tensor) -> None:
            # exp costs a fifth of expm1, and what it loses near p = 1 is nothing to the sum
            p = log_p.exp()
            missing = (1 + torch.finfo(p.dtype).eps) - p
            focal = missing.sqrt() if gamma == 0.5 else missing**gamma
            losses = focal * log_p
            torch.sum(losses, -1, keepdim=True, out=total)
            if self.detach_focal:
                slope.copy_(focal)
            else:
                torch.addcdiv(focal, losses.mul_(p), missing, value=-gamma, out=slope)

        return -row_sum(x, lambda log_p: -self.of_log_p(log_p), fast)


@LOSSES.register("gce")
class GeneralizedCrossEntropy(PointwiseLoss):
    r"""Generalised cross entropy: between cross entropy and mean absolute error.

    .. math:: \frac{1 - p_y^q}{q}

    Published code clamps p_y at 1e-7, which stops the gradient of confident mistakes; here it is
    exact for every p_y.

    Parameters
    ----------
    q : float, default=0.7
        Exponent in (0, 1]; 1 is the mean absolute error, the limit 0 is cross entropy. The
        default is the paper's.

    References
    ----------
    Z. Zhang, M. R. Sabuncu, "Generalized cross entropy loss for training deep neural networks
    with noisy labels", NeurIPS 2018, arXiv:1805.07836.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import GeneralizedCrossEntropy
    >>> GeneralizedCrossEntropy(q=0.7)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.1062])
    """

    bounded = True
    search_space = {"q": uniform(0.1, 0.9)}

    def __init__(self, q: Scalar = 0.7) -> None:
        self.q = q

    symmetric = property(lambda self: every(self.q, lambda q: q == 1))

    def check(self, n_classes: int) -> None:
        """Check q."""
        check_range("q", self.q, "(0, 1]")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -torch.expm1(self.q * log_p) / self.q

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        if isinstance(self.q, Tensor) or self.q < 0.01:
            return -torch.expm1(self.q * x).sum(-1, keepdim=True) / self.q
        # exp costs a fifth of expm1, and unless q is tiny the sum loses nothing by it
        return (x.shape[-1] - power_sum(x, self.q)) / self.q


@LOSSES.register("comp_sum")
class CompSum(PointwiseLoss):
    r"""Comp-sum loss: one exponent from the sum of exponentials to mean absolute error.

    .. math:: \Phi^\tau(u) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}
        = \frac{1 - p_y^{\tau - 1}}{\tau - 1}, \qquad
        u = \sum_{k \ne y} e^{z_k - z_y} = \frac{1}{p_y} - 1

    tau = 0 is the sum of exponentials, 1 cross entropy, between 1 and 2 generalised cross entropy
    with q = tau - 1, and 2 mean absolute error. Below 1 the loss grows like a power of `1 / p_y`,
    beyond any floating-point number: where the power exceeds exp(40) it goes on along its tangent
    in log p_y.

    Parameters
    ----------
    tau : float, default=1.5
        In [0, inf).

    References
    ----------
    A. Mao, M. Mohri, Y. Zhong, "Cross-entropy loss functions: theoretical analysis and
    applications", ICML 2023, arXiv:2304.07288.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import CompSum
    >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    >>> torch.cat([CompSum(tau)(logits, target) for tau in (0.0, 1.0, 1.7, 2.0)])
    tensor([7.3891, 2.1269, 1.1062, 0.8808])
    """

    search_space = {"tau": uniform(0.5, 1.5)}

    def __init__(self, tau: Scalar = 1.5) -> None:
        self.tau = tau

    bounded = property(lambda self: every(self.tau, lambda tau: tau > 1))
    symmetric = property(lambda self: every(self.tau, lambda tau: tau == 2))
    convex = property(lambda self: every(self.tau, lambda tau: tau <= 1))
    proper = property(lambda self: every(self.tau, lambda tau: tau == 1))

    def check(self, n_classes: int) -> None:
        """Check tau."""
        check_range("tau", self.tau, "[0, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        s = nonzero(self.tau - 1)
        power = s * log_p
        if not isinstance(s, Tensor) and s > 0:
            return -power.expm1() / s
        near = power.clamp(max=TANGENT)
        return -(near.expm1() + near.exp() * (power - near)) / s


@LOSSES.register("taylor_ce")
class TaylorCrossEntropy(PointwiseLoss):
    r"""Taylor cross entropy: the first t terms of the series of the cross entropy in 1 - p_y.

    .. math:: \sum_{i=1}^{t} \frac{(1 - p_y)^i}{i}

    Parameters
    ----------
    t : int, default=2
        Terms, at least 1; one is the mean absolute error, all are cross entropy.

    References
    ----------
    L. Feng, S. Shu, Z. Lin, F. Lv, L. Li, B. An, "Can cross entropy loss be robust to label
    noise?", IJCAI 2020.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import TaylorCrossEntropy
    >>> TaylorCrossEntropy(t=2)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.2687])
    """

    bounded = True
    search_space = {"t": [1, 2, 3, 4, 6, 8]}

    def __init__(self, t: int | Tensor = 2) -> None:
        self.t = t

    symmetric = property(lambda self: every(self.t, lambda t: t == 1))

    def check(self, n_classes: int) -> None:
        """Check t."""
        check_integer("t", self.t, "[1, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        u = -torch.expm1(log_p)
        one = u.new_ones(())
        series = torch.zeros_like(u)
        for i in range(largest(self.t), 0, -1):  # Horner's scheme
            series = u * (series + one / i * (i <= self.t))
        return series


@LOSSES.register("poly1")
class Poly1(PointwiseLoss):
    r"""Poly-1 loss: cross entropy with another weight on the first term of its series.

    .. math:: -\log p_y + \epsilon (1 - p_y)

    Parameters
    ----------
    epsilon : float, default=1.0
        In [-1, inf); 0 is cross entropy. The paper tunes it per task.

    References
    ----------
    Z. Leng, M. Tan, C. Liu, E. D. Cubuk, X. Shi, S. Cheng, D. Anguelov, "PolyLoss: a polynomial
    expansion perspective of classification loss functions", ICLR 2022, arXiv:2204.12511.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Poly1
    >>> Poly1(epsilon=2.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([3.8885])
    """

    search_space = {"epsilon": loguniform(0.3, 10)}

    def __init__(self, epsilon: Scalar = 1.0) -> None:
        self.epsilon = epsilon

    convex = property(lambda self: every(self.epsilon, lambda epsilon: epsilon <= 1))
    proper = property(lambda self: every(self.epsilon, lambda epsilon: epsilon == 0))

    def check(self, n_classes: int) -> None:
        """Check epsilon."""
        check_range("epsilon", self.epsilon, "[-1, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -(log_p + self.epsilon * torch.expm1(log_p))
