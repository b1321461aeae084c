"""Published combinations of losses, each a composition and its reference."""

from __future__ import annotations

from robustclf.losses._base import LOSSES, Scalar, Sum
from robustclf.losses.active_negative import NormalizedNegativeCrossEntropy
from robustclf.losses.cross_entropy import CrossEntropy
from robustclf.losses.symmetric import LOG_1E_4, MeanAbsoluteError, ReverseCrossEntropy
from robustclf.losses.wrappers import Normalized


@LOSSES.register("sce")
def symmetric_cross_entropy(alpha: Scalar = 1.0, beta: Scalar = 1.0, A: Scalar = LOG_1E_4) -> Sum:
    """Symmetric cross entropy, `alpha CE + beta RCE`.

    Published (alpha, beta): MNIST (0.01, 1), CIFAR-10 (0.1, 1), CIFAR-100 (6, 0.1), with the
    constant `A` of the authors' code (see `ReverseCrossEntropy`). Weights lie in [0, inf).

    References
    ----------
    Y. Wang, X. Ma, Z. Chen, Y. Luo, J. Yi, J. Bailey, "Symmetric cross entropy for robust
    learning with noisy labels", ICCV 2019, arXiv:1908.06112.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("sce", alpha=0.1)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([8.3251])
    """
    return Sum([CrossEntropy(), ReverseCrossEntropy(A)], [alpha, beta])


@LOSSES.register("nce")
def normalized_cross_entropy() -> Normalized:
    """Build the normalised cross entropy, `log p_y / sum_k log p_k`.

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nce")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.9437])
    """
    return Normalized(CrossEntropy())


@LOSSES.register("nce+rce")
def normalized_and_reverse_cross_entropy(
    alpha: Scalar = 1.0, beta: Scalar = 1.0, A: Scalar = LOG_1E_4
) -> Sum:
    """Active passive loss, `alpha NCE + beta RCE`.

    Published (alpha, beta): MNIST (1, 10), CIFAR-10 (1, 1), CIFAR-100 (10, 0.1). Weights lie in
    [0, inf); see `ReverseCrossEntropy` for `A`.

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nce+rce", beta=0.1)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.7549])
    """
    return Sum([normalized_cross_entropy(), ReverseCrossEntropy(A)], [alpha, beta])


@LOSSES.register("nce+mae")
def normalized_cross_entropy_and_absolute_error(alpha: Scalar = 1.0, beta: Scalar = 1.0) -> Sum:
    """Active passive loss, `alpha NCE + beta MAE`.

    Published (alpha, beta): MNIST (1, 10), CIFAR-10 (1, 1), CIFAR-100 (10, 1). Weights lie in
    [0, inf).

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nce+mae")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.8245])
    """
    return Sum([normalized_cross_entropy(), MeanAbsoluteError()], [alpha, beta])


@LOSSES.register("anl_ce")
def active_negative_cross_entropy(alpha: Scalar = 5.0, beta: Scalar = 5.0) -> Sum:
    """Active negative loss, `alpha NCE + beta NNCE`.

    Published (alpha, beta): MNIST (1, 1), CIFAR-10 (5, 5), the default, CIFAR-100 (10, 1),
    WebVision (20, 1). Weights lie in [0, inf). The paper's L1 norm of all parameters is a penalty
    and no part of the loss: add `strategy="l1"` and switch weight decay off.

    References
    ----------
    X. Ye, X. Li, S. Dai, T. Liu, Y. Sun, W. Tong, "Active negative loss functions for learning
    with noisy labels", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("anl_ce")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([7.3852])
    """
    return Sum([normalized_cross_entropy(), NormalizedNegativeCrossEntropy()], [alpha, beta])
