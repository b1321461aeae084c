"""Normalised and normalised negative losses: active and passive losses made from any loss."""

from __future__ import annotations

import torch
from scipy.stats import loguniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, Wrapper
from robustclf.losses._hyperparameters import Scalar, at_least, check_range, like, log


@LOSSES.register("normalized")
class Normalized(Wrapper):
    r"""Normalised loss: any non-negative loss made symmetric and bounded.

    .. math:: \frac{\ell_y}{\sum_k \ell_k}

    Parameters
    ----------
    loss : str or Loss, default="ce"
        The loss to normalise.

    References
    ----------
    X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey, "Normalized loss functions for deep
    learning with noisy labels", ICML 2020, arXiv:2006.13554.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Normalized
    >>> Normalized("gce").per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.0989, 0.9011]])
    """

    bounded = True
    symmetric = True

    def __init__(self, loss: str | Loss = "ce") -> None:
        self.loss = loss

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose entries of `x` are `x_y`."""
        return self.inner.of(x_y, x) / self.inner.total(x)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        losses = self.inner.values(x)
        return losses / losses.sum(-1, keepdim=True)

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        return self.inner.value_at(x, index) / self.inner.total(x)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`: one."""
        return torch.ones_like(x[..., :1])


@LOSSES.register("normalized_negative")
class NormalizedNegative(Wrapper):
    r"""Normalised negative loss: the credit of the label, normalised; a passive, symmetric loss.

    .. math:: 1 - \frac{a_y}{\sum_k a_k}, \qquad a_k = (A - \ell_k)_+

    where A is the loss of a label of probability p_min, the rest being spread evenly. Where
    p_y < p_min the loss is exactly 1 and its gradient exactly 0, as in the published code, so a
    confident mistake is never corrected.

    Parameters
    ----------
    loss : str or Loss, default="ce"
        A non-negative loss that falls with p_y.
    p_min : float, default=1e-7
        Probability of zero credit, in (0, 1 / n_classes). The default is the paper's.

    References
    ----------
    X. Ye, X. Li, S. Dai, T. Liu, Y. Sun, W. Tong, "Active negative loss functions for learning
    with noisy labels", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import NormalizedNegative
    >>> NormalizedNegative("ce").per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.4666, 0.5334]])
    """

    bounded = True
    symmetric = True
    own_search_space = {"p_min": loguniform(1e-8, 1e-3)}

    def __init__(self, loss: str | Loss = "ce", p_min: Scalar = 1e-7) -> None:
        self.loss = loss
        self.p_min = p_min

    def check(self, n_classes: int) -> None:
        """Check p_min and the loss inside."""
        check_range("p_min", self.p_min, f"(0, {1 / n_classes:.6g})")
        super().check(n_classes)

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose entries of `x` are `x_y`."""
        worst, total = self._worst(x), self._total_credit(x)
        return 1 - (worst - self.inner.of(x_y, x)).relu() / total

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        credit = (self._worst(x) - self.inner.values(x)).relu()
        return 1 - credit / _positive(credit.sum(-1, keepdim=True))

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        credit = (self._worst(x) - self.inner.value_at(x, index)).relu()
        return 1 - credit / self._total_credit(x)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return torch.full_like(x[..., :1], x.shape[-1] - 1)

    def _total_credit(self, x: Tensor) -> Tensor:
        worst = self._worst(x)
        if not self.inner.pointwise:
            return _positive((worst - self.inner.values(x)).relu().sum(-1, keepdim=True))
        # a loss that falls with p_y reaches A where p_y reaches p_min
        return _positive(x.shape[-1] * worst - self.inner.total(at_least(x, log(self.p_min))))

    def _worst(self, x: Tensor) -> Tensor:
        """Loss of a label of probability p_min."""
        p_min, n_classes = like(self.p_min, x), x.shape[-1]
        if self.inner.pointwise:
            return self.inner.of(p_min.log(), p_min.log())
        rest = ((1 - p_min) / (n_classes - 1)).expand(*p_min.shape[:-1], n_classes - 1)
        unlikely = torch.cat([p_min.expand(*p_min.shape[:-1], 1), rest], -1).log()
        if x.dim() > unlikely.dim():  # of all members, which may have learned links of their own
            unlikely = unlikely.expand(*x.shape[:-2], 1, n_classes)
        label = torch.zeros(*unlikely.shape[:-1], 1, dtype=torch.int64, device=x.device)
        return self.inner.at_label(unlikely, label)


def _positive(total: Tensor) -> Tensor:
    """Return the total credit, which is 0 where the loss of every label is beyond A."""
    return total.clamp_min(torch.finfo(total.dtype).tiny)
