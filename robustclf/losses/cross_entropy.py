"""Cross entropy and the losses that generalise it by one exponent."""

from __future__ import annotations

import torch
from torch import Tensor

from robustclf.losses._base import LOSSES, PointwiseLoss, Scalar, check_range


@LOSSES.register("ce")
class CrossEntropy(PointwiseLoss):
    """Cross entropy, `-log p_y`: the loss of clean labels, which fits every wrong one in the end.

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

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -log_p


@LOSSES.register("focal")
class Focal(PointwiseLoss):
    """Focal loss, `-(1 - p_y)^gamma log p_y`: cross entropy that cares less for easy samples.

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

    def __init__(self, gamma: Scalar = 0.5, detach_focal: bool = False) -> None:
        self.gamma = gamma
        self.detach_focal = detach_focal

    def check(self, n_classes: int) -> None:
        """Check gamma."""
        check_range("gamma", self.gamma, "[0, inf)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        # at p = 1 the slope of x^gamma is infinite; tiny changes no other value of 1 - p
        focal = (torch.finfo(log_p.dtype).tiny - torch.expm1(log_p)) ** self.gamma
        return -(focal.detach() if self.detach_focal else focal) * log_p


@LOSSES.register("gce")
class GeneralizedCrossEntropy(PointwiseLoss):
    """Generalised cross entropy, `(1 - p_y^q) / q`: between cross entropy and absolute error.

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

    def __init__(self, q: Scalar = 0.7) -> None:
        self.q = q

    def check(self, n_classes: int) -> None:
        """Check q."""
        check_range("q", self.q, "(0, 1]")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -torch.expm1(self.q * log_p) / self.q
