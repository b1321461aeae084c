"""Rows of a torch dataset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from robustclf._rows import exact
from robustclf.sources._base import Source


class DatasetSource(Source):
    """Items ``(x, y)`` of a torch ``Dataset`` or ``IterableDataset``, x a row of numbers.

    A dataset given to ``fit`` is taken for one without being asked. Before training, one pass reads
    the labels, unless ``fit(dataset, y)`` has them; items may be ``x`` alone then.
    A ``Dataset`` with ``__getitems__`` is asked for many items at once.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        An ``IterableDataset`` must give the same rows in the same order in every pass; leave the
        shuffling to ``shuffle_buffer``.
    shuffle_buffer : int or "auto", default="auto"
        As :class:`Source`.

    Raises
    ------
    ValueError
        If items are not pairs, if rows differ in length, or if a pass over an ``IterableDataset``
        gives other rows than the first one.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from robustclf import DatasetSource, RobustClassifier
    >>> x = torch.randn(1_000, 3, generator=torch.Generator().manual_seed(0))
    >>> dataset = TensorDataset(x, (x[:, 0] > 0).long())
    >>> source = DatasetSource(dataset, shuffle_buffer=200)
    >>> clf = RobustClassifier(random_state=0).fit(source)
    >>> clf.score(dataset, source.labels()) > 0.95
    True
    """

    def __init__(self, dataset: Any, *, shuffle_buffer: int | str = "auto") -> None:
        super().__init__(shuffle_buffer)
        self.dataset = dataset
        self.once = isinstance(dataset, IterableDataset)  # read from its beginning to its end
        self.n_rows = None if self.once else len(dataset)  # known after a pass, or told
        self._labels: NDArray[Any] | None = None

    @cached_property
    def n_columns(self) -> int:  # type: ignore[override]  # which can be set
        """Number of features, those of the first item."""
        first = next(self._items(1, 0, 1), None)
        if not first:
            raise ValueError(f"{self.dataset!r} has no items: nothing to learn from.")
        return len(_row(first[0]))

    def bounds(self) -> NDArray[np.int64]:
        """Return where pieces begin; an ``IterableDataset`` is one."""
        return np.array([0, len(self)]) if self.once else super().bounds()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield the rows of items, stacked."""
        at = start
        for items in self._items(self.chunk_rows, start, stop):
            if self.once and self._labels is not None:
                self._check_order(_labels(items), at)
            yield self._stacked(items, at)
            at += len(items)
        if self.once and self.n_rows not in (None, at):
            raise ValueError(
                f"{self.dataset!r} gave {at} rows in this pass instead of {self.n_rows}: each pass "
                "must give the same rows in the same order."
            )

    def labels(self) -> NDArray[Any]:
        """Read the labels in one pass.

        Returns
        -------
        labels : ndarray of shape (n_rows,)

        Raises
        ------
        ValueError
            If an item is no pair ``(x, y)``.
        """
        parts = [_labels(items) for items in self._items(self.chunk_rows)]
        self._labels = exact([label for part in parts for label in part])
        self.n_rows = len(self._labels)
        return self._labels

    def _items(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[list[Any]]:
        """Yield ``size`` items at a time."""
        if self.once:
            items = iter(self.dataset)
            while part := list(islice(items, size)):
                yield part
            return
        stop = len(self) if stop is None else min(stop, len(self))
        many = getattr(self.dataset, "__getitems__", lambda rows: [self.dataset[i] for i in rows])
        for at in range(start, stop, size):
            yield list(many(list(range(at, min(at + size, stop)))))

    def _stacked(self, items: list[Any], at: int) -> NDArray[Any]:
        rows = [_row(item) for item in items]
        wrong = [i for i, row in enumerate(rows) if len(row) != self.n_columns]
        if wrong:
            raise ValueError(
                f"Row {at + wrong[0]} of {self.dataset!r} has {len(rows[wrong[0]])} features, the "
                f"first row has {self.n_columns}."
            )
        if isinstance(rows[0], Tensor):
            return torch.stack(rows).cpu().numpy()
        return np.stack(rows)

    def _check_order(self, labels: list[Any], at: int) -> None:
        assert self._labels is not None
        former = self._labels[at : at + len(labels)]
        now = np.array(labels, dtype=former.dtype)
        same = (now == former[: len(now)]) | (now != now) if len(former) == len(now) else False
        if not np.all(same):
            raise ValueError(
                f"The labels of {self.dataset!r} from row {at} on differ from those of the first "
                "pass: each pass must give the same rows in the same order. Leave the shuffling to "
                "DatasetSource(dataset, shuffle_buffer=...)."
            )


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and np.ndim(item[0]) > 0


def _row(item: Any) -> Any:
    row = item[0] if _is_pair(item) else item
    row = row if isinstance(row, Tensor) else np.asarray(row)
    if row.ndim != 1:
        raise ValueError(f"An item must be (x, y) or x, a vector of numbers, got {item!r}.")
    return row


def _labels(items: list[Any]) -> list[Any]:
    wrong = [item for item in items if not _is_pair(item)]
    if wrong:
        raise ValueError(f"An item must be (x, y), x a vector of numbers, got {wrong[0]!r}.")
    return [y.item() if hasattr(y, "item") else y for _, y in items]
