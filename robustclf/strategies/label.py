"""Strategies that edit the targets after the forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy


@STRATEGIES.register("label_smoothing")
class LabelSmoothing(Strategy):
    r"""Move a part of every target to the uniform distribution.

    .. math:: t \leftarrow (1 - \varepsilon)\, t + \varepsilon / K

    Parameters
    ----------
    epsilon : float, default=0.1
        Probability mass spread over all K classes, the given one included; in [0, 1].

    Raises
    ------
    ValueError
        If ``epsilon`` lies outside [0, 1].

    Notes
    -----
    On a symmetric loss (MAE, normalised losses), whose sum over the labels is a constant, smoothing
    only scales the loss by ``1 - epsilon``.

    References
    ----------
    Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016.
    arXiv:1512.00567. Under label noise: Lukasik et al. ICML 2020. arXiv:2003.02819.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import STRATEGIES, Batch, LabelSmoothing
    >>> logits = torch.zeros(1, 2, 4)
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 2]), torch.ones(1, 2), torch.arange(2))
    >>> LabelSmoothing(epsilon=0.2).relabel(None, batch, logits)
    tensor([[0.8500, 0.0500, 0.0500, 0.0500],
            [0.0500, 0.0500, 0.8500, 0.0500]])
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        self.epsilon = epsilon

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` unless epsilon lies in [0, 1]."""
        check_range("epsilon", self.epsilon, "[0, 1]")

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the smoothed targets, ``([member,] sample, class)``."""
        n_classes = logits.shape[-1]
        return (1 - self.epsilon) * batch.distribution(n_classes) + self.epsilon / n_classes
