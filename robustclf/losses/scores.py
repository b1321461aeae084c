"""Losses of the logits themselves, or of another softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.stats import loguniform, uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss
from robustclf.losses._hyperparameters import Scalar, check_range, every, nonzero
from robustclf.losses._row_sum import power_sum, square_sum

ITERATIONS = 4  # of Newton's method, which then is exact to float64 (see the tests)


@LOSSES.register("bi_tempered")
class BiTempered(Loss):
    r"""Bi-tempered logistic loss: a bounded logarithm of a heavy-tailed softmax.

    .. math:: -\log_{t_1} p_y - \frac{1 - \sum_k p_k^{2 - t_1}}{2 - t_1}, \qquad
        p_k = \exp_{t_2}(z_k - \lambda), \quad \sum_k p_k = 1

    with the tempered logarithm :math:`\log_t u = (u^{1 - t} - 1) / (1 - t)` and exponential
    :math:`\exp_t u = (1 + (1 - t) u)_+^{1 / (1 - t)}`; at t = 1 they are the usual ones. The
    normaliser lambda is found by Newton's method on :math:`\log_{t_2} \sum_k p_k`, its gradient
    is that of the equation it solves. `predict_proba` is the tempered softmax.

    Parameters
    ----------
    t1 : float, default=0.8
        In [0, 1]; below 1 the loss is bounded.
    t2 : float, default=1.2
        In [1, 4]; above 1 the softmax has a heavy tail. (1, 1) is cross entropy.

    References
    ----------
    E. Amid, M. K. Warmuth, R. Anil, T. Koren, "Robust bi-tempered logistic loss based on Bregman
    divergences", NeurIPS 2019, arXiv:1906.03361.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import BiTempered
    >>> BiTempered().per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1096, 1.4531]])
    >>> BiTempered(t1=1.0, t2=1.0).per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1269, 2.1269]])
    """

    proper = True
    takes_log_p = False
    search_space = {"t1": uniform(0.2, 0.8), "t2": uniform(1, 1.5)}

    def __init__(self, t1: Scalar = 0.8, t2: Scalar = 1.2) -> None:
        self.t1 = t1
        self.t2 = t2

    bounded = property(lambda self: every(self.t1, lambda t1: t1 < 1))
    convex = property(lambda self: all(every(t, lambda t: t == 1) for t in (self.t1, self.t2)))

    def check(self, n_classes: int) -> None:
        """Check t1 and t2."""
        check_range("t1", self.t1, "[0, 1]")
        check_range("t2", self.t2, "[1, 4]")

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities, of the tempered softmax, are `x_y`."""
        s, power = nonzero(1 - self.t1), 2 - self.t1
        rest = (1 - power_sum(x, power)) / power
        return -torch.expm1(s * x_y) / s - rest

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities: the tempered softmax."""
        return self.prepare(logits).exp()

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the logarithm of the tempered softmax."""
        z, s = logits, nonzero(self.t2 - 1)
        with torch.no_grad():
            normaliser = z.amax(-1, keepdim=True)
            for _ in range(ITERATIONS):
                base = (normaliser - z).mul_(s)
                p = torch.log1p(base).div_(-s).exp_()
                total, slope = p.sum(-1, keepdim=True), p.div_(base.add_(1)).sum(-1, keepdim=True)
                normaliser = normaliser + torch.expm1(s * total.log()) / s * total / slope
        # the step that is left carries the gradient of the normaliser as a function of z
        base = s * (normaliser - z)
        p = torch.exp(torch.log1p(base) / -s)
        slope = (p.detach() / (1 + base.detach())).sum(-1, keepdim=True)
        normaliser = normaliser + (p.sum(-1, keepdim=True) - 1) / slope
        return torch.log1p(s * (normaliser - z)) / -s


@LOSSES.register("squentropy")
class Squentropy(Loss):
    r"""Squentropy: cross entropy plus the mean square of the logits of the other classes.

    .. math:: -\log p_y + \frac{1}{K - 1} \sum_{k \ne y} z_k^2

    No hyper-parameters; the square calibrates the logits. Shifting them changes the loss.

    References
    ----------
    L. Hui, M. Belkin, S. Wright, "Cut your losses with squentropy", ICML 2023, arXiv:2302.03952.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Squentropy
    >>> Squentropy().per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.1269, 6.1269]])
    """

    convex = True
    shift_invariant = False
    takes_log_p = False

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the logits."""
        return logits

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose logits are `x_y`."""
        cross_entropy = x.logsumexp(-1, keepdim=True) - x_y
        others = square_sum(x) - x_y.square()
        return cross_entropy + others / (x.shape[-1] - 1)


@LOSSES.register("z_loss")
class ZLoss(Loss):
    r"""Z-loss: a soft hinge of the standardised logit of the label.

    .. math:: \frac1a \log\left(1 + e^{a (b - \tilde z_y)}\right), \qquad
        \tilde z = \frac{z - \mathrm{mean}(z)}{\sqrt{\mathrm{var}(z) + 10^{-6}}}

    Neither shift nor scale of the logits matters (up to the 1e-6, without which equal logits would
    have no loss), so probabilities need calibration.

    Parameters
    ----------
    a : float, default=1.0
        Sharpness of the hinge, in (0, inf).
    b : float, default=1.0
        Where the hinge is, in standard deviations. The paper tunes both; the largest standardised
        logit of K classes is sqrt(K - 1).

    References
    ----------
    A. de Brébisson, P. Vincent, "The Z-loss: a shift and scale invariant classification loss
    belonging to the spherical family", 2016, arXiv:1604.08859.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import ZLoss
    >>> ZLoss().per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.6931, 2.1269]])
    """

    bounded = True
    takes_log_p = False
    search_space = {"a": loguniform(0.1, 10), "b": uniform(0, 4)}

    def __init__(self, a: Scalar = 1.0, b: Scalar = 1.0) -> None:
        self.a = a
        self.b = b

    def check(self, n_classes: int) -> None:
        """Check a and b."""
        check_range("a", self.a, "(0, inf)")
        check_range("b", self.b, "(-inf, inf)")

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the centred logits."""
        return logits - logits.mean(-1, keepdim=True)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose centred logits are `x_y`."""
        deviation = torch.sqrt(square_sum(x) / x.shape[-1] + 1e-6)
        return F.softplus(self.a * (self.b - x_y / deviation)) / self.a
