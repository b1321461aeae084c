"""What ``verbose=1`` shows."""

from __future__ import annotations

from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor
from tqdm.auto import tqdm

from robustclf._distributed import is_first


def announce(text: str) -> None:
    """Show a text, above the progress bars there are."""
    if is_first():
        tqdm.write(text)


class Progress(Callback):
    """A progress bar over epochs, with the loss and the accuracy on held-out or training labels."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar_ = tqdm(total=self.epochs, unit="epoch", disable=not is_first())
        long = X is not None and X.long_epochs
        self.per_row_ = 1 / len(X.rows) if long else 0.0

    def on_epoch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Start counting right predictions."""
        self.right_: list[Tensor] = []
        self.epoch_, self.share_ = self.bar_.n, 0.0

    def on_batch_end(
        self, net: Any, batch: Any = None, training: Any = None, **kwargs: Any
    ) -> None:
        """Compare the predictions of a training step with its labels."""
        if training:
            labels = batch.target.argmax(-1) if batch.target.is_floating_point() else batch.target
            self.right_.append((kwargs["y_pred"].argmax(-1) == labels).float().flatten())
            if self.per_row_:
                self.share_ += len(batch.index) * self.per_row_
                self.bar_.n = round(self.epoch_ + self.share_, 2)
                self.bar_.update(0)

    def on_epoch_end(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Show the epoch."""
        net.history.record("train_acc", torch.cat(self.right_).mean().item())
        last = net.history[-1]
        accuracy = last.get("valid_acc", last["train_acc"])
        self.bar_.set_postfix(loss=f"{last['train_loss']:.4f}", accuracy=f"{accuracy:.3f}")
        self.bar_.n = self.epoch_
        self.bar_.update()

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()
        del self.bar_, self.right_
