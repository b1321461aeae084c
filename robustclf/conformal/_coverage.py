"""Which rows and classes share a threshold: all, those of a class, of a group or a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.utils import column_or_1d

from robustclf._registry import check_known
from robustclf._rows import exact, group_codes, missing_values
from robustclf.conformal._evidence import Codes, Evidence, Floats, Noise

COVERAGES = ("marginal", "class", "group", "cluster")
EMBEDDED = (0.5, 0.6, 0.7, 0.8, 0.9)  # quantiles of its scores that describe a class
FEWEST = 10  # rows of a class that has them
SHARE = 75  # of the published rule: K / (75 + K) of the rows of a class make the clusters


@dataclass(frozen=True, eq=False)
class Partition:
    """Cells of rows and classes, each with a name for messages.

    Attributes
    ----------
    rows : list of arrays
        Calibration rows of each cell.
    columns : list of arrays
        Classes of each cell.
    names : list of str
    of_class : ndarray of shape (n_classes,)
        Cell of each class; zeros where cells are groups.
    groups : ndarray or None
        Sorted values of the groups.
    """

    rows: list[NDArray[np.intp]]
    columns: list[NDArray[np.intp]]
    names: list[str]
    of_class: NDArray[np.intp]
    groups: NDArray[Any] | None = None

    def evidence(self, scores: Floats, codes: Codes, noise: Noise) -> list[Evidence]:
        """Return the rows of each cell with the scores of its classes."""
        if len(self.rows) == 1:  # of all rows and classes
            return [Evidence(scores, codes, self.columns[0], noise)]
        pairs = zip(self.rows, self.columns, strict=True)
        return [Evidence(scores[np.ix_(r, c)], codes[r], c, noise) for r, c in pairs]

    def cells(self, n: int, groups: ArrayLike | None) -> NDArray[np.intp]:
        """Return the cell of each row and class; one past the last for unknown or missing groups.

        Raises
        ------
        ValueError
            If groups are needed and missing, or given and not needed.
        """
        if self.groups is None:
            refuse_groups(groups)
            return self.of_class[None]
        values = read_groups(groups, n)
        missing = missing_values(values)
        values = np.where(missing, self.groups[:1], values)
        place = np.searchsorted(self.groups, values).clip(max=len(self.groups) - 1)
        known = (self.groups[place] == values) & ~missing
        return np.where(known, place, len(self.groups))[:, None]


def read_groups(groups: ArrayLike | None, n: int) -> NDArray[Any]:
    """Return the group of each row; ``ValueError`` if there are none or too few."""
    if groups is None:
        raise ValueError("coverage='group' needs groups=, the group of each row.")
    values: NDArray[Any] = column_or_1d(exact(groups), input_name="groups")
    if len(values) != n:
        raise ValueError(f"groups has {len(values)} entries, expected {n}: one group per row.")
    return values


def known_groups(groups: ArrayLike | None, n: int) -> NDArray[Any]:
    """Return the group of each row to calibrate on; ``ValueError`` if one is missing, too."""
    values = read_groups(groups, n)
    group_codes(groups, n)
    return values


def refuse_groups(groups: ArrayLike | None) -> None:
    """Raise ``ValueError`` for groups that no coverage is asked for."""
    if groups is not None:
        raise ValueError("groups are for coverage='group'; leave them out or ask for it.")


def partition(
    coverage: str,
    scores: Floats,
    codes: Codes,
    noise: Noise,
    classes: NDArray[Any],
    groups: ArrayLike | None,
    rng: np.random.RandomState,
) -> Partition:
    """Return the cells of calibration rows.

    Raises
    ------
    ValueError
        For an unknown coverage, or groups that do not go with it.
    """
    check_known("coverage", [coverage], COVERAGES)
    n, k = scores.shape
    rows, every = np.arange(n), np.arange(k)
    together = Partition([rows], [every], ["all rows"], np.zeros(k, dtype=np.intp))
    if coverage == "group":
        values, member = np.unique(known_groups(groups, n), return_inverse=True)
        of_group = [np.flatnonzero(member == g) for g in range(len(values))]
        names = [f"group {value!r}" for value in values.tolist()]
        columns = [every] * len(values)
        return Partition(of_group, columns, names, np.zeros(k, dtype=np.intp), values)
    refuse_groups(groups)
    if coverage == "class":
        names = [f"class {name!r}" for name in classes.tolist()]
        return Partition([rows] * k, [np.array([c]) for c in every], names, every)
    if coverage == "cluster":
        return _clustered(together, scores, codes, noise, classes, rng)
    return together


def _clustered(
    together: Partition,
    scores: Floats,
    codes: Codes,
    noise: Noise,
    classes: NDArray[Any],
    rng: np.random.RandomState,
) -> Partition:
    """Join classes whose scores are alike; the others share the threshold of all rows."""
    n, k = scores.shape
    counts = np.bincount(codes, minlength=k)
    many = np.flatnonzero(counts >= FEWEST)
    share = len(many) / (SHARE + len(many))
    n_clusters = int(counts[many].min() * share) // 2 if len(many) else 0  # as published
    if n_clusters < 2 or len(many) < 2 or noise.inverse is None:
        return together
    embeds = rng.random_sample(n) < share
    rest = np.flatnonzero(~embeds)
    cells = [
        Evidence(scores[embeds][:, [c]], codes[embeds], np.array([c]), noise) for c in many.tolist()
    ]
    many = many[[cell.usable for cell in cells]]
    described = np.array([_quantiles(cell) for cell in cells if cell.usable])
    means = KMeans(min(n_clusters, len(many)), n_init=10, random_state=rng.randint(2**31 - 1))
    member = means.fit(described, sample_weight=np.sqrt(counts[many])).labels_
    columns = [many[member == c] for c in np.unique(member)]
    of_class = np.full(k, len(columns))
    for cell, joined in enumerate(columns):
        of_class[joined] = cell
    names = [f"classes {classes[joined].tolist()}" for joined in columns]
    return replace(
        together,
        rows=[rest] * (len(columns) + 1),
        columns=[*columns, np.arange(k)],
        names=[*names, "all rows"],
        of_class=of_class,
    )


def _quantiles(cell: Evidence) -> Floats:
    at, total = cell.distribution
    place = np.searchsorted(np.maximum.accumulate(total), EMBEDDED, side="left")
    described: Floats = at[place.clip(max=len(at) - 1)]
    return described
