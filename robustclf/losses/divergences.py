"""Divergences between the label and the prediction."""

from __future__ import annotations

import torch
from scipy.stats import uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, PointwiseLoss
from robustclf.losses._hyperparameters import Scalar, check_integer, check_range, log
from robustclf.losses._row_sum import negative_entropy
from robustclf.losses.cross_entropy import CompSum
from robustclf.losses.symmetric import MeanAbsoluteError


@LOSSES.register("js")
class JensenShannon(PointwiseLoss):
    r"""Jensen-Shannon divergence of label and prediction, scaled to lie between CE and MAE.

    .. math:: \frac{\pi_1 \operatorname{KL}(e_y \| m) + (1 - \pi_1) \operatorname{KL}(p \| m)}
        {-(1 - \pi_1) \log(1 - \pi_1)}, \qquad m = \pi_1 e_y + (1 - \pi_1) p

    It tends to cross entropy for pi1 to 0, and slowly to mean absolute error for pi1 to 1.

    Parameters
    ----------
    pi1 : float, default=0.5
        Weight of the label in (0, 1). Published: 0.7 to 0.9 (CIFAR-10).

    References
    ----------
    E. Englesson, H. Azizpour, "Generalized Jensen-Shannon divergence loss for learning with noisy
    labels", NeurIPS 2021, arXiv:2105.04522.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import JensenShannon
    >>> JensenShannon().per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1247, 1.4524]])
    """

    bounded = True
    search_space = {"pi1": uniform(0.05, 0.9)}

    def __init__(self, pi1: Scalar = 0.5) -> None:
        self.pi1 = pi1

    def check(self, n_classes: int) -> None:
        """Check pi1."""
        check_range("pi1", self.pi1, "(0, 1)")

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        pi2 = 1 - self.pi1
        shift = pi2 * torch.expm1(log_p)  # m_y = 1 + shift, exact where p_y is near one
        own = pi2 * log_p.exp() * log_p - (1 + shift) * torch.log1p(shift)
        divergence: Tensor = own / (-pi2 * log(pi2)) - shift / pi2
        return divergence


@LOSSES.register("gjs")
class GeneralizedJensenShannon(Loss):
    r"""Generalised Jensen-Shannon divergence of the label and several views: also their agreement.

    .. math:: \frac{H(m) - \frac{1 - \pi_1}{V} \sum_v H(p_v)}{-(1 - \pi_1) \log(1 - \pi_1)},
        \qquad m = \pi_1 e_y + \frac{1 - \pi_1}{V} \sum_v p_v

    The views of a sample are the members of the stack, `n_views` after one another on the axis
    before the samples; each gets the common value. In a training loop of your own they may as well
    be predictions for augmented copies. Logits without that axis are one view, for which the loss
    is `JensenShannon`.

    Parameters
    ----------
    pi1 : float, default=0.3
        Weight of the label in (0, 1). Published: 0.1 to 0.9 (CIFAR-10), 0.3 to start with.
    n_views : int, default=2
        V, at least 1.

    Raises
    ------
    ValueError
        On a call, if the axis before the samples is no multiple of `n_views`.

    References
    ----------
    E. Englesson, H. Azizpour, "Generalized Jensen-Shannon divergence loss for learning with noisy
    labels", NeurIPS 2021, arXiv:2105.04522.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import GeneralizedJensenShannon
    >>> views = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])
    >>> GeneralizedJensenShannon()(views, torch.tensor([1]))
    tensor([[1.5689],
            [1.5689]])
    """

    search_space = {"pi1": uniform(0.05, 0.9)}
    bounded = True

    def __init__(self, pi1: Scalar = 0.3, n_views: int = 2) -> None:
        self.pi1 = pi1
        self.n_views = n_views

    n_members = property(lambda self: self.n_views)

    def check(self, n_classes: int) -> None:
        """Check pi1 and the number of views."""
        check_range("pi1", self.pi1, "(0, 1)")
        check_integer("n_views", self.n_views, "[1, inf)")

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities are `x_y`."""
        pi1, pi2 = self.pi1, 1 - self.pi1
        p_y = self._mean(x_y.exp())
        entropy = mixed = -negative_entropy(x)
        if x.ndim > 2 and self.n_views > 1:
            entropy = self._mean(entropy)
            mixed = -negative_entropy(torch.log(self._mean(x.exp()) + torch.finfo(x.dtype).tiny))
        # H(m): that of pi2 times the mean view, but for the term of the label, which gains pi1
        of_label = _x_log_x(pi2 * p_y) - _x_log_x(pi2 * p_y + pi1)
        divergence: Tensor = of_label + pi2 * (mixed - log(pi2) - entropy)
        return divergence / (-pi2 * log(pi2))

    def _mean(self, values: Tensor) -> Tensor:
        """Mean of the views, for each of them."""
        if values.ndim < 3 or self.n_views == 1:
            return values
        if values.shape[-3] % self.n_views:
            raise ValueError(
                f"n_views={self.n_views} must divide the number of members, got {values.shape[-3]}"
            )
        views: Tensor = values.unflatten(-3, (-1, self.n_views))
        return views.mean(-3, keepdim=True).expand_as(views).flatten(-4, -3)


def _x_log_x(x: Tensor) -> Tensor:
    return x * torch.log(x + torch.finfo(x.dtype).tiny)


@LOSSES.register("le_cam")
class LeCam(PointwiseLoss):
    r"""Vincze-Le Cam divergence of label and prediction: bounded, and steeper than MAE.

    .. math:: \frac12 \sum_k \frac{(e_{yk} - p_k)^2}{e_{yk} + p_k} = \frac{1 - p_y}{1 + p_y}

    References
    ----------
    L. Le Cam, "Asymptotic methods in statistical decision theory", Springer 1986. As a loss for
    noisy labels, f-divergences are studied in J. Wei, Y. Liu, "When optimizing f-divergence is
    robust with label noise", ICLR 2021, arXiv:2011.03687.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import LeCam
    >>> LeCam().per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.0634, 0.7870]])
    """

    bounded = True

    def of_log_p(self, log_p: Tensor) -> Tensor:
        """Loss as an elementwise function of log p."""
        return -torch.expm1(log_p) / (1 + log_p.exp())


@LOSSES.register("tv")
def total_variation() -> MeanAbsoluteError:
    r"""Total variation distance of label and prediction, which is the mean absolute error.

    .. math:: \frac12 \sum_k |e_{yk} - p_k| = 1 - p_y

    References
    ----------
    J. Wei, Y. Liu, "When optimizing f-divergence is robust with label noise", ICLR 2021,
    arXiv:2011.03687.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("tv").per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1192, 0.8808]])
    """
    return MeanAbsoluteError()


@LOSSES.register("hellinger")
def squared_hellinger() -> CompSum:
    r"""Squared Hellinger distance of label and prediction, the comp-sum loss of tau = 3/2.

    .. math:: \sum_k \bigl(\sqrt{e_{yk}} - \sqrt{p_k}\bigr)^2 = 2 (1 - \sqrt{p_y})

    References
    ----------
    J. Wei, Y. Liu, "When optimizing f-divergence is robust with label noise", ICLR 2021,
    arXiv:2011.03687.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("hellinger").per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1230, 1.3095]])
    """
    return CompSum(tau=1.5)._replaced(search_space={})


@LOSSES.register("pearson")
def pearson_chi_square() -> CompSum:
    r"""Pearson chi-square divergence of label and prediction, the comp-sum loss of tau = 0.

    .. math:: \sum_k \frac{(e_{yk} - p_k)^2}{p_k} = \frac{1}{p_y} - 1

    It grows faster than cross entropy: for clean labels, and to see what wrong ones do.

    References
    ----------
    J. Wei, Y. Liu, "When optimizing f-divergence is robust with label noise", ICLR 2021,
    arXiv:2011.03687.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import make_loss
    >>> make_loss("pearson").per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1353, 7.3891]])
    """
    return CompSum(tau=0.0)._replaced(search_space={})
