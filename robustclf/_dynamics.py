"""Records losses and margins of every row after every epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from robustclf.noise.dynamics import TrainingDynamics

STRICTNESS = 4  # an epoch one standard error of accuracy below the best counts exp(-4)


class DynamicsRecorder(Callback):
    """Looks at all rows after each epoch, without dropout, by the members that train on the row."""

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with no epochs."""
        self.data_ = X
        self.share_, self.unseen_ = _shares(X.weight, net.n_stacked)
        self.epochs_: list[Tensor] = []
        self.proba_ = torch.zeros(len(X.y), net.n_classes).to(self.share_)
        self.total_, self.most_ = 0.0, 0.0

    def on_epoch_end(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Record the epoch."""
        logits = torch.cat(list(net.logits(self.data_.x, oof=True)), dim=1)
        proba = net.proba(logits)
        given = self.data_.y.expand(len(logits), -1)[..., None]
        loss = -proba.gather(-1, given).clamp_min(torch.finfo(proba.dtype).tiny).log()[..., 0]
        others = logits.scatter(-1, given, -torch.inf).amax(-1)
        margin = logits.gather(-1, given)[..., 0] - others
        error = proba.scatter_add(-1, given, -torch.ones_like(proba))  # p - e_y
        rows = torch.stack([loss, margin, error.norm(dim=-1)])
        self.epochs_.append((rows * self.share_).sum(1).cpu())
        self._average(proba)

    def _average(self, proba: Tensor) -> None:
        """Go on with the mean of the probabilities, weighted by the accuracy out of fold."""
        judged = self.unseen_.any(0)
        out_of_fold = torch.einsum("ms,msc->sc", self.unseen_, proba)[judged]
        right = (out_of_fold.argmax(-1) == self.data_.y[judged]).to(proba)
        deviations = 2 * float(right.sum()) / max(float(judged.sum()), 1.0) ** 0.5
        most = max(self.most_, STRICTNESS * deviations)
        fade, weight = math.exp(self.most_ - most), math.exp(STRICTNESS * deviations - most)
        seen = (proba * self.share_[..., None]).sum(0)
        self.proba_ = fade * self.proba_ + weight * seen
        self.total_ = fade * self.total_ + weight
        self.most_ = most

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Turn what was recorded into arrays."""
        parts = torch.stack(self.epochs_, dim=1) if self.epochs_ else torch.empty(3, 0, len(X.y))
        loss, margin, error_norm = parts.numpy()
        mean_proba = (self.proba_ / self.total_).cpu().numpy()
        self.dynamics_ = TrainingDynamics(loss, margin, error_norm, mean_proba)
        del self.data_, self.share_, self.unseen_, self.epochs_, self.proba_


def _shares(weight: Tensor, n_members: int) -> tuple[Tensor, Tensor]:
    """Return weights ``(member, sample)`` of the members that train on a row, and of the others."""
    seen = (weight > 0).to(weight).expand(n_members, -1)
    unseen = torch.where(seen.any(0), 1 - seen, 0.0)
    seen = torch.where(seen.any(0), seen, 1.0)  # rows that no member sees
    return seen / seen.sum(0), unseen
