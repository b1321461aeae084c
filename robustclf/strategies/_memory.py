"""What strategies that remember the loss of each row share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustclf.strategies._base import Batch, Strategy


class LossMemory(Strategy):
    """Base of the strategies that keep the last loss of each row, nan where there is none."""

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start without losses: they belong to the rows of one fit."""
        self.rows_ = X
        self.loss_ = X.weight.new_full((net.n_stacked, len(X.y)), torch.nan)

    def remember(self, index: Tensor, loss: Tensor) -> None:
        """Keep the losses, ``(member, sample)``, of the rows that a member trains on."""
        trains = self.rows_.weight[:, index] > 0
        self.loss_[:, index] = torch.where(trains, loss, torch.nan)


class StepLosses(LossMemory):
    """Base of those whose losses are the ones of the training steps."""

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Keep the losses; the weights stay."""
        if batch.mixing is None:
            self.remember(batch.index, loss)
        return batch.weight

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **kw: Any) -> None:
        """Take the losses of the unmixed rows, where a batch was mixed."""
        if training and batch.mixing is not None:
            with torch.no_grad():
                logits = net.module_(batch.mixing.x).to(self.loss_)
                self.remember(batch.index, net.criterion_(logits, self.rows_.y[batch.index]))
