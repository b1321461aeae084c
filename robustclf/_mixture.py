"""Models whose weighted mean predicts: stacks of networks, and forests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustclf._net import RobustNet
from robustclf.noise import clean_proba

Floats = NDArray[np.floating[Any]]


@dataclass(eq=False)
class Forest:
    """A forest, and the noise to undo in what it says.

    Parameters
    ----------
    forest : classifier
        Its classes are codes of the classes.
    n_classes : int
    transition : ndarray of shape (n_classes, n_classes) or None
    """

    forest: Any
    n_classes: int
    transition: Floats | None = None

    def proba(self, x: Any) -> Floats:
        """Return the probabilities of encoded rows, ``(sample, class)``."""
        return self.corrected(self.widened(self.forest.predict_proba(x)))

    def out_of_bag(self, n: int, rows: NDArray[np.intp], x: Any) -> Floats:
        """Return the probabilities of each row by trees that did not train on it."""
        seen = self.forest.oob_decision_function_
        never = ~(seen.sum(axis=1) > 0)  # rows that all trees trained on
        seen = np.where(never[:, None], self.forest.predict_proba(x[rows]).mean(axis=0), seen)
        proba = np.empty((n, self.n_classes))
        others = np.setdiff1d(np.arange(n), rows)
        proba[rows] = self.widened(seen)
        if len(others):
            proba[others] = self.widened(self.forest.predict_proba(x[others]))
        return proba

    def widened(self, proba: Floats) -> Floats:
        """Return a column for each class, also for those the forest has not seen."""
        wide = np.zeros((len(proba), self.n_classes))
        wide[:, self.forest.classes_] = proba
        return wide

    def corrected(self, proba: Floats) -> Floats:
        """Return probabilities of the true class."""
        return proba if self.transition is None else clean_proba(proba, self.transition)


@dataclass(eq=False)
class Network:
    """A stack of networks, of which all members predict."""

    net: RobustNet

    def proba(self, x: Any) -> Floats:
        """Return the probabilities of encoded rows, ``(sample, class)``."""
        chunks: list[Tensor] = [self.net.mean_proba(logits) for logits in self.net.logits(x)]
        return torch.cat(chunks).numpy(force=True).astype(np.float64)


@dataclass(eq=False)
class Mixture:
    """The weighted mean of models, which predicts for ``loss="auto"``.

    Parameters
    ----------
    weights : list of float
    models : list of Network or Forest
    """

    weights: list[float]
    models: list[Any]

    def proba(self, x: Any) -> Floats:
        """Return the probabilities of encoded rows, ``(sample, class)``."""
        parts = [w * m.proba(x) for w, m in zip(self.weights, self.models, strict=True)]
        mean: Floats = np.sum(parts, axis=0)
        return mean
