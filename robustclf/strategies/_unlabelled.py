"""What strategies that learn from rows without label share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf.strategies._base import Batch, Strategy


class SemiSupervised(Strategy):
    """Base of the strategies that learn from rows without label, where there are any."""

    uses_unlabelled: ClassVar[bool] = True
    unlabelled_: Tensor | None = None  # (1, row), 0 for rows with a label

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Take the weights of the rows without label."""
        self.unlabelled_ = X.unlabelled


def with_guesses(batch: Batch, target: Tensor, weight: Tensor) -> Batch:
    """Add targets ``(member, sample, class)`` with weights ``(member, sample)`` to a batch.

    They are those of the rows before any mixing, and are mixed as the rows are.

    Examples
    --------
    >>> import torch
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([1, 0]), torch.tensor([[2.0, 0.0]]),
    ...               torch.arange(2))
    >>> guess = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]])
    >>> both = with_guesses(batch, guess, torch.tensor([[0.0, 2.0]]))
    >>> both.target, both.weight
    (tensor([[[0.0000, 1.0000],
             [0.2500, 0.7500]]]), tensor([[2., 2.]]))
    """
    guessed = weight.unsqueeze(-1) * target
    if batch.mixing is not None:
        guessed = batch.mixing(guessed)
    both = batch.weight.unsqueeze(-1) * batch.distribution(target.shape[-1]) + guessed
    total = both.sum(-1)
    target = both / total.unsqueeze(-1).clamp_min(torch.finfo(both.dtype).tiny)
    return replace(batch, target=target, weight=total)
