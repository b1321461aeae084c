"""Rows that are read chunk by chunk from where they are: arrays, Parquet files, torch datasets."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from robustclf.sources._arrays import ArraySource
from robustclf.sources._base import Source
from robustclf.sources._datasets import DatasetSource
from robustclf.sources._parquet import ParquetSource

__all__ = ["ArraySource", "DatasetSource", "ParquetSource", "Source"]


def as_source(X: Any) -> Source | None:
    """Return X as a source, None for what is in memory already."""
    if isinstance(X, Source):
        return X
    if isinstance(X, np.memmap) and X.ndim == 2:
        return ArraySource(X)
    if isinstance(X, DataLoader):
        raise TypeError("A DataLoader cuts batches itself: pass its dataset instead.")
    if isinstance(X, str | PathLike):
        raise TypeError(f"X is the path {str(X)!r}: is it ParquetSource({str(X)!r}, label=...)?")
    return DatasetSource(X) if isinstance(X, Dataset) else None
