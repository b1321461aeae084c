"""A loss drawn anew for every batch."""

from __future__ import annotations

import torch
from scipy.stats import uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss
from robustclf.losses._hyperparameters import Scalar, check_range, nonzero


@LOSSES.register("ensloss")
class EnsLoss(Loss):
    r"""Ensemble loss: every batch draws a calibrated loss of its own, which prevents overfitting.

    .. math:: \frac{1}{K - 1} \sum_{k \ne y} g_k s_k, \qquad s_k = z_y - z_k, \quad
        g_k = \frac{\max(r_{(k)}, -1)}{\max(s_k, 1)} - 10^{-6}, \quad
        r = -(1 + \lambda u)_+^{1 / \lambda}, \quad u \sim N(0, 1)

    The draws r, one for each margin s of a batch, are sorted: the smallest margin gets the
    steepest slope. The slopes g, negative and rising with the margin, are then those of a convex
    and calibrated loss; they are constants of the gradient. Only the gradient of this loss means
    something, not its value, and its `predict_proba`, the softmax, is right about the most likely
    class only.

    Parameters
    ----------
    box_cox : float, default=0.0
        Exponent lambda in [-1, 1] of the inverse Box-Cox transformation that makes slopes of
        normal numbers; in the limit 0 it is the exponential. The default is that of all published
        experiments.

    Notes
    -----
    Published is the loss for two classes, which this is for K = 2. For more, the sum over pairs is
    our extension: all margins of a batch share one random loss, and with a fixed decreasing loss
    whose slope at 0 is negative such a sum is calibrated (Zhang, 2004). A batch is the second to
    last axis of the logits; members draw on their own, from the global generator of torch.
    A soft target needs the slopes of every label, each drawn as if all samples had that label:
    memory of `(class, sample, class)`.

    References
    ----------
    B. Dai, "EnsLoss: stochastic calibrated loss ensembles for preventing overfitting in
    classification", ICML 2025, arXiv:2409.00908.

    T. Zhang, "Statistical analysis of some multi-category large margin classification methods",
    JMLR 5, 2004.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import EnsLoss
    >>> _ = torch.manual_seed(0)
    >>> logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> EnsLoss()(logits, torch.tensor([0, 0, 0])).sum().backward()
    >>> logits.grad
    tensor([[-0.0566,  0.0566],
            [-0.7457,  0.7457],
            [-1.0000,  1.0000]])
    """

    stochastic = True
    takes_log_p = False
    labelwise = False
    search_space = {"box_cox": uniform(-1, 2)}

    def __init__(self, box_cox: Scalar = 0.0) -> None:
        self.box_cox = box_cox

    def check(self, n_classes: int) -> None:
        """Check box_cox."""
        check_range("box_cox", self.box_cox, "[-1, 1]")

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the logits, of which the margins are differences."""
        return logits

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label; only its gradient means something."""
        batch = torch.atleast_2d(x)
        n_classes = x.shape[-1]
        labels = torch.arange(n_classes, device=x.device).view(-1, *[1] * batch.dim())
        each = self.value_at(
            batch.expand(n_classes, *batch.shape), labels.expand(-1, *batch.shape[:-1], 1)
        )
        return each.squeeze(-1).movedim(0, -1).reshape(x.shape)

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`; only its gradient means something."""
        others = torch.arange(x.shape[-1] - 1, device=x.device)
        margins = x.gather(-1, index) - x.gather(-1, others + (others >= index))
        return (self._slopes(margins.detach()) * margins).mean(-1, keepdim=True)

    def _slopes(self, margins: Tensor) -> Tensor:
        """Draw one loss a batch, and return its slopes at margins `(..., sample, other class)`."""
        power = nonzero(self.box_cox)
        u = torch.randn_like(margins)
        draws = -torch.exp(torch.log1p((power * u).clamp(min=-1)) / power)
        ascending = _flat(draws.clamp(min=-1)).sort(-1).values
        order = _flat(margins).argsort(-1)
        slopes = torch.empty_like(ascending).scatter(-1, order, ascending).reshape(margins.shape)
        return slopes / margins.clamp(min=1) - 1e-6


def _flat(batch: Tensor) -> Tensor:
    rows: Tensor = torch.atleast_2d(batch)
    return rows.flatten(-2)
