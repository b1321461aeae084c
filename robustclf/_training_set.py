"""The rows of a fit, and the batches that are cut from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from skorch.dataset import Dataset
from torch import Tensor
from torch.utils.data import Subset

from robustclf.strategies import Batch

if TYPE_CHECKING:
    from robustclf._net import RobustNet


@dataclass
class TrainingSet:
    """All rows as one tensor on the device; `rows` says which of them train."""

    x: Tensor | sparse.csr_array  # (sample, feature)
    y: Tensor  # (sample,)
    weight: Tensor  # (member or 1, sample), mean one over `rows`
    rows: Tensor  # (trained,)
    x_valid: Tensor | sparse.csr_array | None = None
    y_valid: Tensor | None = None
    weight_valid: Tensor | None = None
    unlabelled: Tensor | None = None  # (1, sample), weights of the rows without label, mean one
    groups: Tensor | None = None  # (sample,), from 0
    trusted: Tensor | None = None  # (sample,), whether the label is known to be right

    long_epochs: ClassVar[bool] = False
    """Whether the warm-up may end, and the progress bar moves, within an epoch."""

    def to(self, net: RobustNet) -> Self:
        """Move everything to the device and into the precision of ``net``."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = as_tensor(value)
            if isinstance(value, Tensor):
                dtype = net.dtype if value.is_floating_point() else value.dtype
                setattr(self, field.name, value.to(net.device, dtype))
        return self

    def datasets(self) -> dict[str, Any]:
        """Return the rows as skorch hands them to callbacks."""
        return {
            "dataset_train": Subset(Dataset(self.x, self.y), self.rows),  # type: ignore[arg-type]
            "dataset_valid": None if self.x_valid is None else Dataset(self.x_valid, self.y_valid),
        }

    def batch(self, index: Tensor) -> Batch:
        """Gather the rows of one step."""
        weight = self.weight.index_select(1, index)
        if isinstance(self.x, Tensor):
            x = self.x.index_select(0, index)
        else:  # sparse rows become dense only here
            x = torch.from_numpy(self.x[index.cpu().numpy()].toarray()).to(weight)
        return Batch(x, self.y.index_select(0, index), weight, index)

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[float, float, Batch]]:
        """Shuffle the rows of an epoch; yield where a batch starts, its share of them, and it."""
        n = len(rows)
        order = rows[torch.randperm(n).to(rows.device)]
        return (
            (start / n, (stop - start) / n, self.batch(order[start:stop]))
            for start, stop in pairwise(batch_cuts(n, batch_size))
        )


def batch_cuts(n: int, batch_size: int) -> list[int]:
    """Cut an epoch of ``n`` rows into batches of equal size, none tiny at the end."""
    n_batches = max(1, round(n / batch_size))
    return [n * k // n_batches for k in range(n_batches + 1)]


def as_tensor(x: NDArray[Any]) -> Tensor:
    """Share the memory of ``x``, or copy it where torch cannot: read-only or backwards."""
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))
