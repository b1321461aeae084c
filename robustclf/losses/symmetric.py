"""Symmetric losses: their sum over all labels is a constant."""

from __future__ import annotations

import math

import torch
from scipy.stats import uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, PointwiseLoss
from robustclf.losses._hyperparameters import Scalar, check_range

LOG_1E_4 = math.log(1e-4)


@LOSSES.register("mae")
class MeanAbsoluteError(PointwiseLoss):
    r"""Mean absolute error: robust to symmetric noise, slow to fit many classes.

    .. math:: 1 - p_y

    The L1 distance between the one-hot label and the probabilities is twice this. The asymmetric
    loss code (ALFs) uses the distance, the APL, ANL and GJS code the value here.

    References
    ----------
    A. Ghosh, H. Kumar, P. S. Sastry, "Robust loss functions under label noise for deep neural
    networks", AAAI 2017, arXiv:1712.09482.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import MeanAbsoluteError
    >>> MeanAbsoluteError()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.8808])
    """

    bounded = True
    symmetric = True

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -torch.expm1(log_p)


@LOSSES.register("rce")
class ReverseCrossEntropy(PointwiseLoss):
    r"""Reverse cross entropy: label and prediction trade places, and log 0 is set to A.

    .. math:: -\sum_k p_k \log \mathbb{1}[k = y] = -A (1 - p_y)

    With soft targets it is the target-weighted mean of its values at the labels, as every loss
    here, not the cross entropy with the soft target inside the logarithm.

    Parameters
    ----------
    A : float, default=log(1e-4)
        Stand-in for log 0, in (-inf, 0). The default, -9.21, is what the authors' code computes;
        their paper quotes -4.

    References
    ----------
    Y. Wang, X. Ma, Z. Chen, Y. Luo, J. Yi, J. Bailey, "Symmetric cross entropy for robust
    learning with noisy labels", ICCV 2019, arXiv:1908.06112.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import ReverseCrossEntropy
    >>> ReverseCrossEntropy(A=-4.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([3.5232])
    """

    bounded = True
    symmetric = True
    search_space = {"A": uniform(-10, 9)}

    def __init__(self, A: Scalar = LOG_1E_4) -> None:
        self.A = A

    def check(self, n_classes: int) -> None:
        """Check A."""
        check_range("A", self.A, "(-inf, 0)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return self.A * torch.expm1(log_p)


@LOSSES.register("unhinged")
class Unhinged(Loss):
    r"""Unhinged loss: the hinge loss without its hinge, symmetric and convex.

    .. math:: 1 - \Bigl(z_y - \frac{1}{K - 1} \sum_{k \ne y} z_k\Bigr)

    With two classes this is the published `1 - y v` of the margin v. It is unbounded below: only
    weight decay keeps the logits from growing for ever.

    References
    ----------
    B. van Rooyen, A. K. Menon, R. C. Williamson, "Learning with symmetric label noise: the
    importance of being unhinged", NeurIPS 2015, arXiv:1505.07634.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Unhinged
    >>> Unhinged().per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[-1.,  3.]])
    """

    symmetric = True
    convex = True
    takes_log_p = False

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the logits: a shift of them does not matter."""
        return logits

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose logits are `x_y`."""
        n_classes = x.shape[-1]
        return 1 - (x_y - x.mean(-1, keepdim=True)) * (n_classes / (n_classes - 1))
