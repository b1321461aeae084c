"""Mean ranks over tables, and which of them differ: Friedman's test, Nemenyi's, a diagram.

Demsar. Statistical Comparisons of Classifiers over Multiple Data Sets. JMLR 7, 2006.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range

ALPHA = 0.05
LINE = {"color": "black", "linewidth": 0.8, "clip_on": False}
Floats = NDArray[np.float64]


def mean_ranks(scores: Floats) -> Floats:
    """Return the mean rank of each model (column), 1 for the best of each table (row)."""
    return rankdata(-scores, axis=1).mean(axis=0)


def friedman(scores: Floats) -> float:
    """Return the chance of ranks so different from models that are all alike."""
    return float(friedmanchisquare(*scores.T).pvalue)


def critical_difference(n_models: int, n_tables: int) -> float:
    """Return the difference of mean ranks from which on two models differ (Nemenyi)."""
    quantile = studentized_range.ppf(1 - ALPHA, n_models, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(n_models * (n_models + 1) / (6 * n_tables)))


def alike(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return first and last of each longest run of sorted ranks that do not differ."""
    runs: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - rank < difference)
        if last > first and not (runs and runs[-1][1] >= last):
            runs.append((first, last))
    return runs


def draw(models: Sequence[str], scores: Floats, path: Path) -> None:
    """Write the critical-difference diagram: a bar joins models that do not differ."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    means, k = mean_ranks(scores), len(models)
    order = np.argsort(means, kind="stable")
    difference = critical_difference(k, len(scores))
    bars = alike(means[order], difference)
    top = 0.6 + 0.3 * len(bars)  # of the names: y grows downwards, the axis is at 0
    bottom = top + 0.6 * ((k + 1) // 2)
    figure = Figure(figsize=(7, 0.45 * (bottom + 2)), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-1.2, k + 2.2), ylim=(bottom, -1.9))
    ax.axis("off")
    _draw_axis(ax, k, difference)
    for i, (first, last) in enumerate(bars):
        ends = means[order[[first, last]]] + [-0.06, 0.06]
        ax.plot(ends, [0.35 + 0.3 * i] * 2, **LINE | {"linewidth": 3})
    _draw_names(ax, [models[i] for i in order], means[order], top)
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_axis(ax: Any, k: int, difference: float) -> None:
    ax.plot([1, k], [0, 0], **LINE)
    for rank in range(1, k + 1):
        ax.plot([rank, rank], [0, -0.15], **LINE)
        ax.text(rank, -0.3, str(rank), ha="center", va="bottom")
    ax.plot([1, 1 + difference], [-1.4, -1.4], **LINE | {"linewidth": 2})
    ax.text(1.1 + difference, -1.4, f"critical difference {difference:.2f}", va="center")


def _draw_names(ax: Any, models: Sequence[str], ranks: Floats, top: float) -> None:
    """Name the better half on the left and the others on the right, so that no lines cross."""
    k = len(models)
    for i, (model, rank) in enumerate(zip(models, ranks, strict=True)):
        if i < (k + 1) // 2:
            y, end, side, name = top + 0.6 * i, 0.8, "right", f"{model}  {rank:.2f} "
        else:
            y, end, side, name = top + 0.6 * (k - 1 - i), k + 0.2, "left", f" {rank:.2f}  {model}"
        ax.plot([rank, rank, end], [0, y, y], **LINE)
        ax.text(end, y, name, ha=side, va="center")
