"""Normalised negative losses: passive losses made from active ones."""

from __future__ import annotations

import math

from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, Scalar, check_range


@LOSSES.register("nnce")
class NormalizedNegativeCrossEntropy(Loss):
    """Normalised negative cross entropy, `1 - a_y / sum_k a_k` with `a = relu(log p - log p_min)`.

    The values are those of the published code: where p_y < p_min the loss is exactly 1 and its
    gradient exactly 0, so a confident mistake is never corrected.

    Parameters
    ----------
    p_min : float, default=1e-7
        Probability of zero credit, in (0, 1 / n_classes). The default is the paper's.

    References
    ----------
    X. Ye, X. Li, S. Dai, T. Liu, Y. Sun, W. Tong, "Active negative loss functions for learning
    with noisy labels", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import NormalizedNegativeCrossEntropy
    >>> NormalizedNegativeCrossEntropy()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    tensor([0.5334])
    """

    bounded = True
    symmetric = True

    def __init__(self, p_min: Scalar = 1e-7) -> None:
        self.p_min = p_min

    def check(self, n_classes: int) -> None:
        """Check p_min."""
        check_range("p_min", self.p_min, f"(0, {1 / n_classes:.6g})")

    def per_label(self, logits: Tensor) -> Tensor:
        """Loss of each sample at each label, `(..., class)` like `logits`."""
        a = self._credit(logits)
        return 1 - a / a.sum(-1, keepdim=True)

    def at_label(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        a = self._credit(logits)
        return 1 - a.gather(-1, index) / a.sum(-1, keepdim=True)

    def _credit(self, logits: Tensor) -> Tensor:
        log_p_min = self.p_min.log() if isinstance(self.p_min, Tensor) else math.log(self.p_min)
        return (logits.log_softmax(-1) - log_p_min).relu()
