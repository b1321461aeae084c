"""Percentile bootstrap over rows, as weights of the rows and not as copies of them."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_scalar

from robustclf._held_out import generator


def percentile_interval(
    statistic: Callable[[NDArray[np.float64]], ArrayLike],
    n: int,
    shape: tuple[int, ...] = (),
    *,
    n_bootstrap: int,
    confidence_level: float,
    random_state: Any = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the quantiles of ``statistic(weight)``, where ``weight`` counts each of ``n`` rows.

    The statistic returns an array of ``shape``; without replicates both ends are nan.

    Raises
    ------
    ValueError, TypeError
        If ``n_bootstrap`` is no number of replicates or ``confidence_level`` is not in (0, 1).

    Examples
    --------
    >>> x = np.arange(100.0)
    >>> low, high = percentile_interval(
    ...     lambda weight: weight @ x / 100,
    ...     100,
    ...     n_bootstrap=500,
    ...     confidence_level=0.9,
    ...     random_state=0,
    ... )
    >>> print(low.round(), high.round())
    45.0 54.0
    """
    check_scalar(n_bootstrap, "n_bootstrap", Integral, min_val=0)
    check_scalar(
        confidence_level,
        "confidence_level",
        Real,
        min_val=0,
        max_val=1,
        include_boundaries="neither",
    )
    if n_bootstrap == 0:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    rng = generator(random_state)
    replicates = np.empty((n_bootstrap, *shape))
    for replicate in range(n_bootstrap):
        weight = np.bincount(rng.randint(n, size=n), minlength=n)
        replicates[replicate] = statistic(weight.astype(np.float64))
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return low, high
