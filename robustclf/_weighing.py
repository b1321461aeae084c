"""What weighs the models of loss="auto": the labels that they did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustclf._build import Prepared
from robustclf._mixture import Floats, confident_transition
from robustclf.noise import NoiseRate, noise_rate

# of models that the labels cannot tell apart: where none is wrong, where many are; others have 1, 1
PRIORS = {"filtered": (1.0, 8.0), "deep_forest": (1.0, 0.0), "linear_kernel": (0.0, 1.0)}
NOISY = 0.15  # share of wrong labels, from which on they are many
CORRECTED = " corrected"  # ends the name of a model with the noise undone


class Candidate(NamedTuple):
    """A model that was tried.

    Attributes
    ----------
    name : str
        ``"dropout"``, ``"forest"``, ...; ``"... corrected"`` for one with the noise undone.
    accuracy : float
        Share of the given labels that it predicts out of fold.
    weight : float
        Its part in the prediction.
    seconds : float
        Time of its training.
    params : dict
        Parameters of :class:`~robustclf.RobustClassifier`, or of the forest or kernel machine, that
        make it.
    """

    name: str
    accuracy: float
    weight: float
    seconds: float
    params: dict[str, Any]


@dataclass(frozen=True, eq=False)
class AutoReport:
    """What ``loss="auto"`` estimated, tried and chose; ``print`` shows it.

    Attributes
    ----------
    noise_rate : NoiseRate
        Estimated share of wrong labels, as of :func:`robustclf.noise.noise_rate`.
    transition : ndarray of shape (n_classes, n_classes)
        Estimated probability of each given label (column) for each true class (row). It takes the
        errors of the models for noise.
    candidates : list of Candidate
        All models, the one of greatest weight first.
    accuracy : float
        Share of the given labels that the weighted mean predicts out of fold.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from robustclf import RobustClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = RobustClassifier(loss="auto", budget="fast", random_state=0).fit(X, y)
    >>> print(clf.auto_report_)
    Estimated share of wrong labels: 0.0... (0.000 to ...)
    Predicts 0.9... of the given labels out of fold, weighing
      model                    predicts  weight  seconds
    ...
    """

    noise_rate: NoiseRate
    transition: Floats
    candidates: list[Candidate]
    accuracy: float

    def __str__(self) -> str:
        rate = self.noise_rate
        lines = [
            f"Estimated share of wrong labels: {rate.rate:.3f} ({rate.low:.3f} to {rate.high:.3f})",
            f"Predicts {self.accuracy:.3f} of the given labels out of fold, weighing",
            f"  {'model':24} {'predicts':>8} {'weight':>7} {'seconds':>8}",
        ]
        for one in self.candidates:
            scores = f"{one.accuracy:8.3f} {one.weight:7.3f} {one.seconds:8.1f}"
            lines.append(f"  {one.name:24} {scores}")
        return "\n".join(lines)


@dataclass(eq=False)
class Tried:
    """A model that was fitted, and what it says of labels that it did not see."""

    name: str
    model: Any
    oof: Floats
    seconds: float
    params: dict[str, Any]
    learned: dict[str, Any] = field(default_factory=dict)

    def prior(self, noisy: float) -> float:
        """Return the weight where labels do not tell models apart; ``noisy`` as in ``weights``."""
        clean, most = PRIORS.get(self.name.removesuffix(CORRECTED), (1.0, 1.0))
        return clean + (most - clean) * noisy


@dataclass(eq=False)
class Labels:
    """The rows that models are judged on."""

    codes: NDArray[np.int64]
    weight: Floats
    folds: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(cls, prepared: Prepared) -> Labels:
        """Return the labels, and the folds that networks are cross-fitted on."""
        codes, weight = prepared.data.y, prepared.data.weight[0]
        assert prepared.folds is not None
        n_classes = len(prepared.classes)
        return cls(codes.numpy(force=True), weight.numpy(force=True), prepared.folds, n_classes)

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Rows that models are judged on: those that have a fold."""
        return np.flatnonzero(self.folds >= 0)

    def right(self, oof: Floats) -> Floats:
        """Return which given labels are predicted, 0 or 1."""
        right: Floats = oof[self.rows].argmax(axis=1) == self.codes[self.rows]
        return right.astype(np.float64)

    def mean(self, values: Floats) -> float:
        """Return the weighted mean over the rows."""
        return float(np.average(values, weights=self.weight[self.rows]))

    def accuracy(self, oof: Floats) -> float:
        """Return the share of the given labels that is predicted."""
        return self.mean(self.right(oof))

    def mixed(self, models: Sequence[Tried]) -> Floats:
        """Return the weighted mean of what models say out of fold."""
        return mixed(self.weights(models), models)

    def rate(self, oof: Floats) -> NoiseRate:
        """Return the estimated share of wrong labels."""
        rows = self.rows
        return noise_rate(self.codes[rows], oof[rows], classes=np.arange(self.n_classes))

    def weights(self, models: Sequence[Tried], noisy: float = 1.0) -> Floats:
        """Return the weights of models: less, the surer it is that they predict fewer labels.

        ``noisy`` is 0 where labels are right and 1 where many are wrong. The best is the best of
        those that then have a prior weight.
        """
        right = [self.right(model.oof) for model in models]
        means = [self.mean(r) for r in right]
        raw = np.array([model.prior(noisy) for model in models])
        best = int(np.argmax(np.where(raw > 0, means, -np.inf)))
        w = self.weight[self.rows]
        effective = w.sum() ** 2 / (w**2).sum()
        for k, one in enumerate(right):
            gap = means[best] - means[k]
            spread = self.mean((right[best] - one - gap) ** 2) ** 0.5
            if gap > 0:
                raw[k] *= np.exp(-gap / (spread / effective**0.5)) if spread > 0 else 0.0
        weights: Floats = raw / raw.sum()
        return weights

    def transition(self, models: Sequence[Tried]) -> Floats:
        """Return how labels were corrupted."""
        return confident_transition(self.codes[self.rows], self.mixed(models)[self.rows])


def mixed(weights: Floats, tried: Sequence[Tried]) -> Floats:
    """Return the weighted mean of what models say out of fold."""
    mean: Floats = np.sum([w * t.oof for w, t in zip(weights, tried, strict=True)], axis=0)
    return mean
