"""Label-distributionally robust losses: the worst case over what the label might be."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.stats import loguniform, uniform
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses._base import LOSSES, Loss, log_softmax
from robustclf.losses._hyperparameters import (
    Scalar,
    check_integer,
    check_range,
    largest,
    like,
)


def _softplus_scores(z: Tensor) -> tuple[Tensor, Tensor | float]:
    positive = F.softplus(z)
    return positive, positive.mean(-1, keepdim=True) + 1e-30  # of logits below -70 all underflow


def _l1_scores(z: Tensor) -> tuple[Tensor, Tensor | float]:
    size = z.abs().mean(-1, keepdim=True)
    return z, torch.where(size > 0, size, 1.0)


# scores as a function of the logits, and the size they are divided by; the two published ones
# then have a mean, or a mean of absolute values, of one
NORMALIZATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | float]]] = {
    "softplus": _softplus_scores,
    "l1": _l1_scores,
    "none": lambda z: (z, 1.0),
}


class LabelRobust(Loss):
    """Base class of the LDR losses: functions of the normalised scores f and a margin."""

    margin: Scalar
    normalization: str
    takes_log_p = False

    bounded = property(lambda self: self.normalization != "none")
    convex = property(lambda self: self.normalization == "none")
    shift_invariant = property(lambda self: self.normalization == "none")

    def check(self, n_classes: int) -> None:
        """Check the margin and the normalisation."""
        check_range("margin", self.margin, "[0, inf)")
        check_known("normalization", [self.normalization], NORMALIZATIONS)

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the scores f."""
        return self._scores(logits, 1.0)

    def _scores(self, logits: Tensor, scale: Scalar) -> Tensor:
        """Scores f over a scale: one division of a large array for two, none where it is by one."""
        scores, size = NORMALIZATIONS[self.normalization](logits)
        divisor = size * scale
        return scores if isinstance(divisor, float) and divisor == 1 else scores / divisor


def _worst_case(log_q_y: Tensor, log_q: Tensor, margin: Scalar, lam: Scalar) -> Tensor:
    """LDR-KL loss of the labels whose entries of log softmax(f / lambda) are `log_q_y`."""
    top = log_q.detach().max(-1, keepdim=True).indices
    below_top = log_q.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    # log(1 - q_y) has no digits left where q_y is near 1, as that of the top label alone can be
    others = torch.log(-torch.expm1(log_q_y.clamp_max(-0.5)))
    others = torch.where(log_q_y > -0.5, below_top, others)
    excess = F.softplus(others - log_q_y + like(margin / lam, log_q))
    return lam * (excess - math.log(log_q.shape[-1]))


@LOSSES.register("ldr_kl")
class LabelRobustKL(LabelRobust):
    r"""LDR-KL loss: the worst label distribution, at a price for its divergence from uniform.

    .. math:: \max_{p} \sum_k p_k \bigl(f_k - f_y + c \mathbb{1}[k \ne y]\bigr)
        - \lambda \operatorname{KL}(p \| u)
        = \lambda \log \frac1K \sum_k e^{(f_k - f_y + c \mathbb{1}[k \ne y]) / \lambda}

    With `lam=1, margin=0, normalization="none"` it is cross entropy minus log K; a small lambda
    looks at the strongest wrong class alone, a large one at all alike.

    Parameters
    ----------
    lam : float, default=10.0
        lambda in (0, inf). Published: 0.1, 1 and 10.
    margin : float, default=0.1
        c in [0, inf). Published: 0.1 (command line) and 2 (class).
    normalization : {"softplus", "l1", "none"}, default="softplus"
        Scores f: `softplus(z) / mean(softplus(z))`, as published for this loss; `z / mean(|z|)`, as
        published for ALDR-KL; or the logits themselves. The first two are bounded, and not
        invariant to shifts of the logits.

    References
    ----------
    D. Zhu, Y. Ying, T. Yang, "Label distributionally robust losses for multi-class
    classification: consistency, robustness and adaptivity", ICML 2023, arXiv:2112.14869.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import LabelRobustKL
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> LabelRobustKL().per_label(logits)
    tensor([[-0.4479,  0.5740]])
    >>> LabelRobustKL(lam=1.0, margin=0.0, normalization="none").per_label(logits) + 2**0.5
    tensor([[0.8480, 2.8480]])
    """

    search_space = {
        "lam": loguniform(0.1, 10),
        "margin": uniform(0, 2),
        "normalization": list(NORMALIZATIONS),
    }

    def __init__(
        self, lam: Scalar = 10.0, margin: Scalar = 0.1, normalization: str = "softplus"
    ) -> None:
        self.lam = lam
        self.margin = margin
        self.normalization = normalization

    def check(self, n_classes: int) -> None:
        """Check lambda, the margin and the normalisation."""
        check_range("lam", self.lam, "(0, inf)")
        super().check(n_classes)

    def prepare(self, logits: Tensor) -> Tensor:
        """Return log softmax(f / lambda)."""
        return log_softmax(self._scores(logits, self.lam))

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log softmax(f / lambda) are `x_y`."""
        return _worst_case(x_y, x, self.margin, self.lam)


@LOSSES.register("aldr_kl")
class AdaptiveLabelRobustKL(LabelRobust):
    r"""ALDR-KL loss: LDR-KL with a lambda of each sample, smaller where the scores are decided.

    .. math:: \lambda \log \frac1K \sum_k e^{(f_k - f_y + c \mathbb{1}[k \ne y]) / \lambda}
        - \frac{\alpha \log K}{2 \lambda_0} (\lambda - \lambda_0)^2, \qquad
        \lambda = \lambda_0 - \frac{\lambda_0}{\alpha \log K} \operatorname{KL}(q \| u)

    with q the softmax of f / lambda, mixed with 1e-5 of the uniform distribution before it is
    compared. Published code keeps lambda per row and moves it by one such step at each visit; here
    the steps start from lambda_0 at every call, so that no memory is needed. One step is the
    published first visit, more tend to the lambda that repeated visits would reach. It is a
    constant of the gradient, exactly so there, since that lambda maximises the loss (but for the
    margin and the 1e-5).

    Parameters
    ----------
    lam0 : float, default=10.0
        lambda_0 in (0, inf); lambda stays between (1 - 1 / alpha) lambda_0 and lambda_0.
    alpha : float, default=2.0
        In (1, inf). The defaults are the published ones.
    margin : float, default=0.1
        c in [0, inf).
    normalization : {"softplus", "l1", "none"}, default="l1"
        Scores f, see `LabelRobustKL`.
    n_steps : int, default=2
        Steps of lambda, at least 1.

    References
    ----------
    D. Zhu, Y. Ying, T. Yang, "Label distributionally robust losses for multi-class
    classification: consistency, robustness and adaptivity", ICML 2023, arXiv:2112.14869.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import AdaptiveLabelRobustKL
    >>> AdaptiveLabelRobustKL(n_steps=1).per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[-0.9049,  1.1051]])
    """

    convex = False
    search_space = {
        "lam0": loguniform(0.1, 10),
        "alpha": uniform(1.1, 5),
        "margin": uniform(0, 2),
        "normalization": list(NORMALIZATIONS),
    }

    def __init__(
        self,
        lam0: Scalar = 10.0,
        alpha: Scalar = 2.0,
        margin: Scalar = 0.1,
        normalization: str = "l1",
        n_steps: int = 2,
    ) -> None:
        self.lam0 = lam0
        self.alpha = alpha
        self.margin = margin
        self.normalization = normalization
        self.n_steps = n_steps

    def check(self, n_classes: int) -> None:
        """Check all hyper-parameters."""
        check_range("lam0", self.lam0, "(0, inf)")
        check_range("alpha", self.alpha, "(1, inf)")
        check_integer("n_steps", self.n_steps, "[1, inf)")
        super().check(n_classes)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose scores are `x_y`."""
        lam = self._adapted(x)
        normaliser = (x / lam).logsumexp(-1, keepdim=True)
        price = self.alpha * math.log(x.shape[-1]) / (2 * self.lam0) * (lam - self.lam0) ** 2
        log_q_y, log_q = x_y / lam - normaliser, x / lam - normaliser
        return _worst_case(log_q_y, log_q, self.margin, lam) - price

    @torch.no_grad()
    def _adapted(self, f: Tensor) -> Tensor:
        """Lambda of each sample, `(..., 1)`."""
        log_k = math.log(f.shape[-1])
        lam = self.lam0 * torch.ones_like(f[..., :1])
        for _ in range(largest(self.n_steps)):
            q = (f / lam).softmax(-1).add_(1e-5).div_(1 + 1e-5 * f.shape[-1])
            kl = q.log().mul_(q).sum(-1, keepdim=True) + log_k
            lam = self.lam0 - self.lam0 / (self.alpha * log_k) * kl
        return lam


@LOSSES.register("ldr_k")
class LabelRobustTopK(LabelRobust):
    r"""LDR-k loss: the mean of the k largest margin violations, the label's own zero among them.

    .. math:: \max_{p \in \Delta,\ p_k \le 1 / k} \sum_k p_k
        \bigl(f_k - f_y + c \mathbb{1}[k \ne y]\bigr)

    The member of the family without a divergence and with capped weights: k = 1 is the hinge loss
    of Crammer and Singer, k = K the mean over all classes. The published code names this loss and
    does not contain it; this is its definition, solved.

    Parameters
    ----------
    k : int, default=1
        From 1 to the number of classes.
    margin : float, default=1.0
        c in [0, inf).
    normalization : {"softplus", "l1", "none"}, default="none"
        Scores f, see `LabelRobustKL`.

    References
    ----------
    D. Zhu, Y. Ying, T. Yang, "Label distributionally robust losses for multi-class
    classification: consistency, robustness and adaptivity", ICML 2023, arXiv:2112.14869.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import LabelRobustTopK
    >>> LabelRobustTopK().per_label(torch.tensor([[2.0, 0.0, 1.5]]))
    tensor([[0.5000, 3.0000, 1.5000]])
    """

    search_space = {
        "k": [1, 2],
        "margin": uniform(0, 2),
        "normalization": list(NORMALIZATIONS),
    }

    def __init__(
        self, k: int | Tensor = 1, margin: Scalar = 1.0, normalization: str = "none"
    ) -> None:
        self.k = k
        self.margin = margin
        self.normalization = normalization

    def check(self, n_classes: int) -> None:
        """Check k, the margin and the normalisation."""
        check_integer("k", self.k, f"[1, {n_classes}]")
        super().check(n_classes)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose scores are `x_y`."""
        top = F.pad(_top(x, largest(self.k) + 1) + self.margin, (0, 1), value=-math.inf)
        k = torch.as_tensor(self.k, device=x.device).long().expand(*x.shape[:-1], 1)
        total = top.cumsum(-1).gather(-1, k - 1)
        kth, following = top.gather(-1, k - 1), top.gather(-1, k)
        # a label among the k largest is there without its margin, or makes room for the next one
        own = x_y + self.margin
        total = torch.where(own >= kth, total - own + x_y.maximum(following), total)
        return total / self.k - x_y


def _top(x: Tensor, n: int) -> Tensor:
    """Return the n largest entries (or all), `(..., n)`, largest first."""
    n = min(n, x.shape[-1])
    rest, index = x.detach(), []
    for _ in range(n):  # topk is slower, for the few that are wanted
        index.append(rest.max(-1, keepdim=True).indices)
        rest = rest.scatter(-1, index[-1], -math.inf)
    return x.gather(-1, torch.cat(index, -1))
