"""Mean ranks over tables, and which of them differ: Friedman's test, Nemenyi's, a diagram.

Demsar. Statistical Comparisons of Classifiers over Multiple Data Sets. JMLR 7, 2006.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range

ALPHA = 0.05
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

    means = mean_ranks(scores)
    order = np.argsort(means, kind="stable")
    ranks, k = means[order], len(models)
    difference = critical_difference(k, len(scores))
    bars, half = alike(ranks, difference), (k + 1) // 2
    names_from = 0.6 + 0.3 * len(bars)  # below the axis, where y is 0
    figure = Figure(figsize=(7, 0.28 * (half + names_from / 0.6 + 3)), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-1.2, k + 2.2), ylim=(names_from + 0.6 * half, -1.9))
    ax.axis("off")
    line = {"color": "black", "linewidth": 0.8, "clip_on": False}
    ax.plot([1, k], [0, 0], **line)
    for rank in range(1, k + 1):
        ax.plot([rank, rank], [0, -0.15], **line)
        ax.text(rank, -0.3, str(rank), ha="center", va="bottom")
    ax.plot([1, 1 + difference], [-1.4, -1.4], **line | {"linewidth": 2})
    ax.text(1 + difference + 0.1, -1.4, f"critical difference {difference:.2f}", va="center")
    for i, (first, last) in enumerate(bars):
        ends = [ranks[first] - 0.06, ranks[last] + 0.06]
        ax.plot(ends, [0.35 + 0.3 * i] * 2, **line | {"linewidth": 3})
    for i, rank in enumerate(ranks):  # the better half to the left, from the top
        left = i < half
        y = names_from + 0.6 * (i if left else k - 1 - i)
        end, side = (0.8, "right") if left else (k + 0.2, "left")
        ax.plot([rank, rank, end], [0, y, y], **line)
        name = f"{models[order[i]]}  {rank:.2f}" if left else f"{rank:.2f}  {models[order[i]]}"
        ax.text(end + (-0.1 if left else 0.1), y, name, ha=side, va="center")
    # the same picture for the same numbers
    with mpl.rc_context({"svg.hashsalt": "ranks", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
