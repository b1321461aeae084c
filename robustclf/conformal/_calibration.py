"""Sets and p-values from one calibration: of held-out rows, or of the folds of a fit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustclf.conformal._corrections import Chosen, Correction, choose
from robustclf.conformal._coverage import Partition, partition
from robustclf.conformal._evidence import Codes, Evidence, Floats, Noise
from robustclf.conformal._levels import SLACK, Either, FoldLevels, Levels


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibration rows say of the scores of new ones.

    Attributes
    ----------
    partition : Partition
        Which rows and classes share a threshold.
    chosen : Chosen
        The correction and its size for each cell.
    evidence : list of Evidence
        Rows of each cell.
    levels : list of Levels, FoldLevels or Either
        Of each cell.
    crossed : bool
        Whether the scores are of several classifiers.
    """

    partition: Partition
    chosen: Chosen
    evidence: list[Evidence]
    levels: list[Levels | FoldLevels | Either]
    crossed: bool

    @classmethod
    def of(
        cls,
        scores: Floats,
        codes: Codes,
        noise: Noise,
        classes: NDArray[Any],
        *,
        coverage: str,
        groups: ArrayLike | None,
        correction: str | Correction,
        optimistic: bool,
        folds: NDArray[np.intp] | None,
        rng: np.random.RandomState,
    ) -> Calibration:
        """Calibrate on the scores of all classes, ``(row, class)``, and the given labels.

        ``folds`` number the classifiers that the scores of the rows are from, if there are several.
        """
        cells = partition(coverage, scores, codes, noise, classes, groups, rng)
        evidence = cells.evidence(scores, codes, noise)
        chosen = choose(correction, evidence, rng.randint(2**31 - 1))
        levels = [
            _levels(cell, chosen, float(size), optimistic, None if folds is None else folds[rows])
            for cell, size, rows in zip(evidence, chosen.sizes, cells.rows, strict=True)
        ]
        return cls(cells, chosen, evidence, levels, folds is not None)

    def thresholds(self, alpha: Floats) -> Floats:
        """Return the largest score that is kept, ``(cell, alpha)``; of one classifier only."""
        one = [cell for cell in self.levels if not isinstance(cell, FoldLevels)]
        return np.array([cell.threshold(alpha) for cell in one])

    def sets(self, scores: Floats, alpha: Floats, groups: ArrayLike | None) -> NDArray[np.bool_]:
        """Return which classes are kept, ``(row, class, alpha)``.

        ``scores`` are ``(classifier, row, class)``.
        """
        self.warn_of_full_sets(alpha)
        kept: NDArray[np.bool_]
        if self.crossed:
            kept = self.p_values(scores, groups)[..., None] > alpha + SLACK
        else:
            thresholds = np.vstack([self.thresholds(alpha), np.full((1, len(alpha)), np.inf)])
            cells = self._cells(scores, groups)
            limit = thresholds[cells] if cells.any() else thresholds[0]  # one: compares fastest
            kept = scores[0][..., None] <= limit
        return kept

    def p_values(self, scores: Floats, groups: ArrayLike | None) -> Floats:
        """Return the largest alpha at which each class is kept, ``(row, class)``."""
        cells = np.broadcast_to(self._cells(scores, groups), scores.shape[1:])
        p_values = np.ones(scores.shape[1:])
        for cell, levels in enumerate(self.levels):
            here = cells == cell
            p_values[here] = levels.p_values(scores[:, here] if self.crossed else scores[0][here])
        return p_values

    def _cells(self, scores: Floats, groups: ArrayLike | None) -> NDArray[np.intp]:
        cells = self.partition.cells(scores.shape[1], groups)
        unknown = int((cells == len(self.levels)).sum())
        if unknown:
            warnings.warn(
                f"{unknown} rows are of groups that no calibration row is of: their sets hold all "
                "classes.",
                UserWarning,
                stacklevel=5,
            )
        return cells

    def warn_of_full_sets(self, alpha: Floats) -> None:
        """Warn where no threshold certifies the coverage, and say what to do."""
        least = float(alpha.min())
        short = [c for c, cell in enumerate(self.levels) if cell.highest < 1 - least - SLACK]
        if not short or self.evidence[0].noise.inverse is None:
            return
        names = self.partition.names
        scarce = [c for c in short if self.chosen.sizes[c] == 0 or not self.evidence[c].usable]
        if scarce:
            few = ", ".join(f"{names[c]} ({self.evidence[c].n_own})" for c in scarce)
            warnings.warn(
                f"too few calibration rows for alpha={least:g}, which needs "
                f"{int(np.ceil(1 / least - SLACK)) - 1}: {few}. There, sets hold all classes. "
                "Calibrate on more rows, take a larger alpha, or a coverage of fewer cells.",
                UserWarning,
                stacklevel=4,
            )
        wide = [c for c in short if c not in scarce]
        if wide:
            worst = max(wide, key=lambda c: self.chosen.sizes[c])
            size, n = self.chosen.sizes[worst], self.evidence[worst].n
            rows = n * (size / least) ** (1 / self.chosen.correction.order)
            enough = f", about {rows:.0f}" if np.isfinite(size) else ""
            warnings.warn(
                f"correction {self.chosen.alias!r} is {size:.3g} for {names[worst]}, more than "
                f"alpha={least:g} allows: there, sets hold all classes. Calibrate on more rows "
                f"than {n}{enough}, take a larger alpha, or correction='crossing' or 'none'.",
                UserWarning,
                stacklevel=4,
            )


def _levels(
    cell: Evidence,
    chosen: Chosen,
    size: float,
    optimistic: bool,
    folds: NDArray[np.intp] | None,
) -> Levels | FoldLevels | Either:
    standard = _as_right(cell, folds)
    if cell.noise.clean and not chosen.correction.of_clean:
        return standard
    corrected = _corrected(cell, chosen, size, folds)
    return Either(corrected, standard) if optimistic and cell.usable else corrected


def _corrected(
    cell: Evidence, chosen: Chosen, size: float, folds: NDArray[np.intp] | None
) -> Levels | FoldLevels:
    """Return the levels by what labels say of the true ones; none where that is nothing."""
    if not cell.usable or not np.isfinite(size):
        return Levels.textbook([]) if folds is None else FoldLevels([])
    share = cell.n_own / (cell.n_own + 1) if chosen.correction.next_row else 1.0
    if folds is None:
        at, total = cell.distribution
        return Levels.running(at, total * share, size)
    return FoldLevels.of(cell.scores, cell.weight * share, folds, size)


def _as_right(cell: Evidence, folds: NDArray[np.intp] | None) -> Levels | FoldLevels:
    """Return the levels by labels that are taken as right."""
    if folds is None:
        return Levels.textbook(cell.own_scores)
    return FoldLevels.of(cell.scores, cell.own / (cell.n_own + 1), folds)
