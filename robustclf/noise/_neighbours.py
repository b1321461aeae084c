"""Nearest rows of a table, for what looks at the labels around a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state

from robustclf.preprocessing import TabularEncoder

N_NEIGHBOURS = 30
MAX_REFERENCE = 20_000  # rows among which neighbours are sought: the cost grows with both numbers
MAX_LEVELS = 100  # of a category that says which rows are near; more would be names


def nearest(X: Any, random_state: Any = None) -> NDArray[np.intp]:
    """Return the nearest rows of each row, never itself, ``(sample, neighbour)``.

    Numbers are scaled robustly, categories are 1 apart; those with more than 100 levels are left
    out. Of more than 20,000 rows a random 20,000
    can be neighbours.
    """
    rows = _as_numbers(X)
    n = rows.shape[0]
    reference = np.arange(n)
    if n > MAX_REFERENCE:
        rng = check_random_state(random_state)
        reference = np.sort(rng.permutation(n)[:MAX_REFERENCE])
    k = min(N_NEIGHBOURS, len(reference) - 1)
    found = (
        NearestNeighbors(n_neighbors=k + 1)
        .fit(rows[reference])
        .kneighbors(rows, return_distance=False)
    )
    neighbours = reference[found]
    # the row itself comes first, but for ties and rows that are no reference
    itself = neighbours == np.arange(n)[:, None]
    itself[~itself.any(axis=1), -1] = True
    others: NDArray[np.intp] = neighbours[~itself].reshape(n, k)
    return others


def _as_numbers(X: Any) -> Any:
    """Encode a table; categories become indicators that are 1 apart, but for names and ids."""
    encoder = TabularEncoder(max_one_hot=0)
    encoded = encoder.set_output(transform="default").fit_transform(X)
    if sparse.issparse(encoded) or not encoder.cardinalities_:
        return encoded
    dense, codes = np.hsplit(encoded, [encoder.n_dense_])
    indicators = [
        np.eye(size, dtype=encoded.dtype)[column.astype(int)] / np.sqrt(2)
        for column, size in zip(codes.T, encoder.cardinalities_, strict=True)
        if size <= MAX_LEVELS
    ]
    near = np.hstack([dense, *indicators])
    return near if near.shape[1] else np.zeros((len(near), 1))
