"""Published combinations of losses, each a composition and its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy.stats import loguniform, uniform

from robustclf.losses._base import LOSSES, Sum
from robustclf.losses._hyperparameters import Scalar
from robustclf.losses.active_negative import Normalized, NormalizedNegative
from robustclf.losses.asymmetric import (
    AsymmetricExponential,
    AsymmetricGeneralizedCrossEntropy,
    AsymmetricUnhinged,
)
from robustclf.losses.cross_entropy import CrossEntropy, Focal, GeneralizedCrossEntropy
from robustclf.losses.symmetric import LOG_1E_4, MeanAbsoluteError, ReverseCrossEntropy
from robustclf.losses.transforms import EpsilonSoftmax

WEIGHT = loguniform(0.1, 10)


def _recipe(alias: str, **search_space: Any) -> Callable[[Any], Any]:
    """Register a function that composes a loss, with the distributions worth searching."""

    def add(factory: Any) -> Any:
        factory.search_space = search_space
        return LOSSES.register(alias)(factory)

    return add


@_recipe("nce")
def normalized_cross_entropy() -> Normalized:
    r"""Normalised cross entropy: the active part of the active passive losses.

    .. math:: \frac{\log p_y}{\sum_k \log p_k}

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


@_recipe("nfl", gamma=uniform(0, 3))
def normalized_focal(gamma: Scalar = 0.5, detach_focal: bool = False) -> Normalized:
    r"""Normalised focal loss: the focal loss made symmetric and bounded.

    .. math:: \frac{(1 - p_y)^\gamma \log p_y}{\sum_k (1 - p_k)^\gamma \log p_k}

    `gamma` and `detach_focal` are those of `Focal`; published code detaches.

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nfl")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.9785])
    """
    return Normalized(Focal(gamma, detach_focal))


@_recipe("ngce", q=uniform(0.1, 0.9))
def normalized_generalized_cross_entropy(q: Scalar = 0.7) -> Normalized:
    r"""Normalised generalised cross entropy.

    .. math:: \frac{1 - p_y^q}{K - \sum_k p_k^q}

    `q` is that of `GeneralizedCrossEntropy`, in (0, 1].

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("ngce")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.9011])
    """
    return Normalized(GeneralizedCrossEntropy(q))


@_recipe("nnce", p_min=loguniform(1e-8, 1e-3))
def normalized_negative_cross_entropy(p_min: Scalar = 1e-7) -> NormalizedNegative:
    r"""Normalised negative cross entropy: the passive part of the active negative losses.

    .. math:: 1 - \frac{a_y}{\sum_k a_k}, \qquad a_k = (\log p_k - \log p_{\min})_+

    Where p_y < p_min there is no gradient, as in the published code.

    References
    ----------
    X. Ye, X. Li, S. Dai, T. Liu, Y. Sun, W. Tong, "Active negative loss functions for learning
    with noisy labels", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nnce")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.5334])
    """
    return NormalizedNegative(CrossEntropy(), p_min)


@_recipe("nnfl", gamma=uniform(0, 3), p_min=loguniform(1e-8, 1e-3))
def normalized_negative_focal(
    gamma: Scalar = 0.5, detach_focal: bool = False, p_min: Scalar = 1e-7
) -> NormalizedNegative:
    r"""Normalised negative focal loss.

    .. math:: 1 - \frac{a_y}{\sum_k a_k}, \qquad
        a_k = \bigl((1 - p_k)^\gamma \log p_k - (1 - p_{\min})^\gamma \log p_{\min}\bigr)_+

    `gamma` and `detach_focal` are those of `Focal`; published code detaches.

    References
    ----------
    X. Ye, X. Li, S. Dai, T. Liu, Y. Sun, W. Tong, "Active negative loss functions for learning
    with noisy labels", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nnfl")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.5323])
    """
    return NormalizedNegative(Focal(gamma, detach_focal), p_min)


@_recipe("sce", alpha=WEIGHT, beta=WEIGHT)
def symmetric_cross_entropy(alpha: Scalar = 1.0, beta: Scalar = 1.0, A: Scalar = LOG_1E_4) -> Sum:
    r"""Symmetric cross entropy: cross entropy both ways round.

    .. math:: \alpha \operatorname{CE} + \beta \operatorname{RCE}

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


@_recipe("nce+rce", alpha=WEIGHT, beta=WEIGHT)
def normalized_and_reverse_cross_entropy(
    alpha: Scalar = 1.0, beta: Scalar = 1.0, A: Scalar = LOG_1E_4
) -> Sum:
    r"""Active passive loss of normalised and reverse cross entropy.

    .. math:: \alpha \operatorname{NCE} + \beta \operatorname{RCE}

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


@_recipe("nce+mae", alpha=WEIGHT, beta=WEIGHT)
def normalized_cross_entropy_and_absolute_error(alpha: Scalar = 1.0, beta: Scalar = 1.0) -> Sum:
    r"""Active passive loss of normalised cross entropy and mean absolute error.

    .. math:: \alpha \operatorname{NCE} + \beta \operatorname{MAE}

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


@_recipe("nfl+rce", alpha=WEIGHT, beta=WEIGHT)
def normalized_focal_and_reverse_cross_entropy(
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    gamma: Scalar = 0.5,
    detach_focal: bool = False,
    A: Scalar = LOG_1E_4,
) -> Sum:
    r"""Active passive loss of normalised focal loss and reverse cross entropy.

    .. math:: \alpha \operatorname{NFL} + \beta \operatorname{RCE}

    Published (alpha, beta): MNIST (1, 10), CIFAR-10 (1, 1), CIFAR-100 (10, 0.1). Weights lie in
    [0, inf); see `Focal` and `ReverseCrossEntropy` for the others.

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nfl+rce")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([9.0910])
    """
    return Sum([normalized_focal(gamma, detach_focal), ReverseCrossEntropy(A)], [alpha, beta])


@_recipe("nfl+mae", alpha=WEIGHT, beta=WEIGHT)
def normalized_focal_and_absolute_error(
    alpha: Scalar = 1.0, beta: Scalar = 1.0, gamma: Scalar = 0.5, detach_focal: bool = False
) -> Sum:
    r"""Active passive loss of normalised focal loss and mean absolute error.

    .. math:: \alpha \operatorname{NFL} + \beta \operatorname{MAE}

    Published (alpha, beta): MNIST (1, 10), CIFAR-10 (1, 1), CIFAR-100 (10, 1). Weights lie in
    [0, inf); see `Focal` for the others.

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nfl+mae")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([1.8593])
    """
    return Sum([normalized_focal(gamma, detach_focal), MeanAbsoluteError()], [alpha, beta])


@_recipe("nce+agce", alpha=WEIGHT, beta=WEIGHT)
def normalized_cross_entropy_and_asymmetric_generalized(
    alpha: Scalar = 1.0, beta: Scalar = 4.0, a: Scalar = 6.0, q: Scalar = 1.5
) -> Sum:
    r"""Active passive loss of normalised and asymmetric generalised cross entropy.

    .. math:: \alpha \operatorname{NCE} + \beta \operatorname{AGCE}_{a, q}

    Published (alpha, beta, a, q): CIFAR-10 (1, 4, 6, 1.5), the default, CIFAR-100 (10, 0.1, 1.8,
    3), WebVision (50, 0.1, 2.5, 3). Weights lie in [0, inf).

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nce+agce")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([9.9655])
    """
    return Sum([normalized_cross_entropy(), AsymmetricGeneralizedCrossEntropy(a, q)], [alpha, beta])


@_recipe("nce+aul", alpha=WEIGHT, beta=WEIGHT)
def normalized_cross_entropy_and_asymmetric_unhinged(
    alpha: Scalar = 1.0, beta: Scalar = 4.0, a: Scalar = 6.3, q: Scalar = 1.5
) -> Sum:
    r"""Active passive loss of normalised cross entropy and the asymmetric unhinged loss.

    .. math:: \alpha \operatorname{NCE} + \beta \operatorname{AUL}_{a, q}

    Published (alpha, beta, a, q): CIFAR-10 (1, 4, 6.3, 1.5), the default, CIFAR-100 (10, 0.015, 6,
    3). Weights lie in [0, inf).

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nce+aul")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([9.3829])
    """
    return Sum([normalized_cross_entropy(), AsymmetricUnhinged(a, q)], [alpha, beta])


@_recipe("nce+ael", alpha=WEIGHT, beta=WEIGHT)
def normalized_cross_entropy_and_asymmetric_exponential(
    alpha: Scalar = 1.0, beta: Scalar = 4.0, a: Scalar = 5.0
) -> Sum:
    r"""Active passive loss of normalised cross entropy and the asymmetric exponential loss.

    .. math:: \alpha \operatorname{NCE} + \beta \operatorname{AEL}_a

    Published (alpha, beta, a): CIFAR-10 (1, 4, 5), the default, CIFAR-100 (10, 0.1, 1.5). Weights
    lie in [0, inf).

    References
    ----------
    X. Zhou, X. Liu, J. Jiang, X. Gao, X. Ji, "Asymmetric loss functions for learning with noisy
    labels", ICML 2021, arXiv:2106.03110.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("nce+ael")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([4.8494])
    """
    return Sum([normalized_cross_entropy(), AsymmetricExponential(a)], [alpha, beta])


@_recipe("anl_ce", alpha=WEIGHT, beta=WEIGHT)
def active_negative_cross_entropy(
    alpha: Scalar = 5.0, beta: Scalar = 5.0, p_min: Scalar = 1e-7
) -> Sum:
    r"""Active negative loss of the cross entropy: both parts are symmetric.

    .. math:: \alpha \operatorname{NCE} + \beta \operatorname{NNCE}

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
    return Sum(
        [normalized_cross_entropy(), normalized_negative_cross_entropy(p_min)], [alpha, beta]
    )


@_recipe("anl_fl", alpha=WEIGHT, beta=WEIGHT)
def active_negative_focal(
    alpha: Scalar = 5.0,
    beta: Scalar = 5.0,
    gamma: Scalar = 0.5,
    detach_focal: bool = False,
    p_min: Scalar = 1e-7,
) -> Sum:
    r"""Active negative loss of the focal loss.

    .. math:: \alpha \operatorname{NFL} + \beta \operatorname{NNFL}

    Published (alpha, beta) as for `"anl_ce"`, with gamma = 0.5 and the focal factor detached.
    Weights lie in [0, inf).

    References
    ----------
    X. Ye, X. Li, S. Dai, T. Liu, Y. Sun, W. Tong, "Active negative loss functions for learning
    with noisy labels", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("anl_fl")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([7.5542])
    """
    return Sum(
        [
            normalized_focal(gamma, detach_focal),
            normalized_negative_focal(gamma, detach_focal, p_min),
        ],
        [alpha, beta],
    )


@_recipe("ce_eps+mae", alpha=loguniform(1e-3, 1), beta=WEIGHT, m=loguniform(1, 1e5))
def epsilon_softmax_cross_entropy_and_absolute_error(
    alpha: Scalar = 0.01, beta: Scalar = 10.0, m: Scalar = 1e5
) -> Sum:
    r"""Cross entropy of the epsilon-softmax and mean absolute error.

    .. math:: \alpha \operatorname{CE}_\epsilon + \beta \operatorname{MAE}

    Published (alpha, beta, m): CIFAR-10 (0.01, 10, 1e5), the default, CIFAR-100 (0.03, 2, 1e4);
    beta is twice that of the authors, whose MAE is the L1 distance. Weights lie in [0, inf); see
    `EpsilonSoftmax` for `m`.

    References
    ----------
    J. Wang, X. Zhou, D. Zhai, J. Jiang, X. Ji, X. Liu, "epsilon-softmax: approximating one-hot
    vectors for mitigating label noise", NeurIPS 2024.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("ce_eps+mae")(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([8.9444])
    """
    return Sum([EpsilonSoftmax("ce", m), MeanAbsoluteError()], [alpha, beta])
