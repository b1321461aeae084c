"""Scores that are high for wrong labels: what each method of finding them looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from robustclf.noise._neighbours import nearest
from robustclf.noise.dynamics import TrainingDynamics
from robustclf.noise.transition import confident_guess, confident_joint

SURE = 0.4  # of the rows of a predicted class: those that show its transition
SMOOTHING = 0.02  # added to the votes of neighbours
PRUNE = ("by_noise_rate", "by_class", "both", "off_diagonal")

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method may look at."""

    codes: NDArray[np.int64]
    proba: Scores
    X: Any = None
    dynamics: TrainingDynamics | None = None
    prune: str = "by_noise_rate"
    random_state: Any = None

    def at_label(self, values: Scores) -> Scores:
        """Return the value of each row at its given label."""
        at: Scores = values[np.arange(len(self.codes)), self.codes]
        return at

    @property
    def learned(self) -> Scores:
        """Probabilities by networks that saw the label, if known, else those out of fold."""
        return self.proba if self.dynamics is None else _float(self.dynamics.mean_proba)

    @property
    def loss(self) -> Scores:
        """Loss of the given label, a mean over the epochs if these are known."""
        if self.dynamics is not None:
            return _float(self.dynamics.loss.mean(axis=0))
        loss: Scores = -np.log(self.at_label(self.proba).clip(np.finfo(float).tiny))
        return loss

    @cached_property
    def neighbours(self) -> NDArray[np.intp]:
        """Nearest rows of each row."""
        return nearest(self.X, self.random_state)

    def votes(self, labels: Scores) -> Scores:
        """Return the mean of the labels, ``(sample, class)``, of the nearest rows."""
        total = np.zeros_like(labels)
        for column in self.neighbours.T:  # all at once take much memory
            total += labels[column]
        mean = total / max(self.neighbours.shape[1], 1) + SMOOTHING
        votes: Scores = mean / mean.sum(axis=1, keepdims=True)
        return votes

    @cached_property
    def posterior(self) -> Scores:
        """Probability of each class, given the label."""
        return under_transition(consensus(self), self.codes)

    @property
    def one_hot(self) -> Scores:
        """Given labels as indicators."""
        return np.eye(self.proba.shape[1])[self.codes]


# Each method returns a score that is high for a wrong label ------------------------------------


def self_confidence(e: Evidence) -> Scores:
    """One minus the probability of the given label."""
    return 1 - e.at_label(e.proba)


def normalized_margin(e: Evidence) -> Scores:
    """Largest other probability minus that of the given label, scaled to [0, 1]."""
    return (1 - _margin(e.proba, e.codes)) / 2


def confident_learning(e: Evidence) -> Scores:
    """Rows that confident learning prunes, Northcutt et al. (2021), then the others."""
    return (self_confidence(e) + pruned(e.codes, e.proba, e.prune)) / 2


def aum(e: Evidence) -> Scores:
    """Negative area under the margin, Pleiss et al. (2020)."""
    return -_float(_dynamics(e, "aum").aum())


def el2n(e: Evidence) -> Scores:
    """Error norm of the probabilities, Paul et al. (2021)."""
    if e.dynamics is not None:
        return _float(e.dynamics.el2n())
    norm: Scores = np.linalg.norm(e.proba - e.one_hot, axis=1)
    return norm


def forgetting(e: Evidence) -> Scores:
    """Forgetting events, Toneva et al. (2019); ties by the error norm."""
    dynamics = _dynamics(e, "forgetting")
    scores: Scores = dynamics.forgetting() + el2n(e) / 2  # the norm is at most sqrt(2)
    return scores


def loss_mixture(e: Evidence) -> Scores:
    """Posterior of the high one of two normal components of the losses, DivideMix (2020)."""
    loss = e.loss
    scaled = ((loss - loss.min()) / max(np.ptp(loss), np.finfo(float).tiny))[:, None]
    if not np.ptp(loss):
        return np.zeros(len(loss))
    mixture = GaussianMixture(2, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    high = mixture.predict_proba(scaled)[:, mixture.means_.argmax()]
    # far below both means the wider component wins: its tail says nothing
    posterior = np.where(scaled[:, 0] < mixture.means_.min(), 0, high)
    scores: Scores = posterior + 1e-3 * scaled[:, 0]  # the posterior saturates: ties by the loss
    return scores


def neighbours(e: Evidence) -> Scores:
    """One minus the share of the 30 nearest rows that have the given label."""
    if e.X is None:
        raise ValueError("method 'neighbours' needs the features: pass X.")
    return 1 - e.at_label(e.votes(e.one_hot))


def combined(e: Evidence) -> Scores:
    """One minus the posterior of the given label, by networks, neighbours and transition."""
    return 1 - e.at_label(e.posterior)


METHODS: dict[str, Callable[[Evidence], Scores]] = {
    method.__name__: method
    for method in (
        *(combined, self_confidence, normalized_margin, confident_learning),
        *(aum, el2n, forgetting, loss_mixture, neighbours),
    )
}


def consensus(e: Evidence) -> Scores:
    r"""Return class probabilities, the mean of the networks' and the neighbours'.

    The one whose accuracy on the given labels is lower, by :math:`\Delta` standard errors, weighs
    :math:`\exp(-\Delta / 2)` of the other. Both are judged on what does not know the row's label.
    """
    if e.X is None:
        return e.learned
    judged = [e.proba, e.votes(e.one_hot)]
    best = [p == p.max(axis=1, keepdims=True) for p in judged]  # votes have ties
    right = np.array([e.at_label(b / b.sum(axis=1, keepdims=True)) for b in best])
    error = max((right[0] - right[1]).std() / np.sqrt(len(e.codes)), np.finfo(float).tiny)
    weight = np.exp((right.mean(axis=1) - right.mean(axis=1).max()) / (2 * error))
    network, neighbour = weight / weight.sum()
    mean: Scores = network * e.learned + neighbour * e.votes(e.learned)
    return mean


def under_transition(p: Scores, codes: NDArray[np.int64]) -> Scores:
    r"""Return :math:`p_k \sqrt{T_{ky}} / \sum_j p_j \sqrt{T_{jy}}` of each class k given label y.

    This is the geometric mean of p and of the posterior under the transition T: networks that saw
    the label know a part of what T tells.
    """
    joint = p * np.sqrt(transition_of_sure(p, codes))[:, codes].T
    posterior: Scores = joint / joint.sum(axis=1, keepdims=True)
    return posterior


def transition_of_sure(p: Scores, codes: NDArray[np.int64]) -> Scores:
    r"""Return the transition that the surest rows of each predicted class show.

    Elsewhere classes that are hard to tell apart would look like mistaken labels. As in James-Stein
    estimates, it is shrunk towards uniform noise U as far as the counts agree with it: U weighs
    :math:`\min(1, d / \chi^2)` for their distance :math:`\chi^2` from it in d cells.
    """
    n_classes = p.shape[1]
    guess, counts = p.argmax(axis=1), np.zeros((n_classes, n_classes))
    for k in np.unique(guess):
        rows = np.flatnonzero(guess == k)
        sure = rows[p[rows, k] >= np.quantile(p[rows, k], 1 - SURE)]
        counts[k] = np.bincount(codes[sure], minlength=n_classes)
    total = counts.sum(axis=1, keepdims=True)
    stay = (np.trace(counts) + 1) / (total.sum() + 2)
    uniform = np.full((n_classes, n_classes), (1 - stay) / (n_classes - 1))
    np.fill_diagonal(uniform, stay)
    gap = counts - total * uniform
    cells = (total > 0) & ~np.eye(n_classes, dtype=bool)
    distance = (gap[cells] ** 2 / (total * uniform)[cells]).sum()
    weight = cells.sum() / max(distance, cells.sum())
    transition: Scores = uniform + (1 - weight) * gap / total.clip(1)
    return transition


def _float(values: NDArray[np.floating]) -> Scores:
    return values.astype(np.float64)


def _margin(p: Scores, codes: NDArray[np.int64]) -> Scores:
    own = (np.arange(len(codes)), codes)
    others = p.copy()
    others[own] = -np.inf
    margin: Scores = p[own] - others.max(axis=1)
    return margin


def _dynamics(e: Evidence, method: str) -> TrainingDynamics:
    if e.dynamics is None:
        raise ValueError(
            f"method {method!r} needs what a fit went through: pass dynamics=clf.dynamics_ of "
            "RobustClassifier(track_dynamics=True)."
        )
    return e.dynamics


def pruned(codes: NDArray[np.int64], p: Scores, prune: str) -> NDArray[np.bool_]:
    """Return the rows that confident learning takes for mislabelled.

    ``"off_diagonal"`` takes those that the confident joint counts for another class. With its
    calibrated counts, ``"by_class"`` takes as many of each given class as have another true class,
    the lowest :math:`p_y` first, and ``"by_noise_rate"`` as many of each pair of classes, the
    lowest :math:`p_y - p_k` first; ``"both"`` what these agree on. A row whose given label is the
    most probable one is never taken.
    """
    if prune == "off_diagonal":
        guess, sure = confident_guess(codes, p)
        off: NDArray[np.bool_] = sure & (guess != codes)
        return off
    joint = confident_joint(codes, p)  # true class, given label
    by_class, by_rate = np.zeros((2, len(codes)), dtype=bool)
    for k in range(p.shape[1]):
        rows = np.flatnonzero(codes == k)
        margin = p[rows, k][:, None] - p[rows]
        by_class[_lowest(rows, p[rows, k], joint[:, k].sum() - joint[k, k])] = True
        for other in range(p.shape[1]):
            if other != k:
                by_rate[_lowest(rows, margin[:, other], joint[other, k])] = True
    taken = {"by_class": by_class, "by_noise_rate": by_rate, "both": by_class & by_rate}[prune]
    pruned_rows: NDArray[np.bool_] = taken & (p.argmax(axis=1) != codes)
    return pruned_rows


def _lowest(rows: NDArray[np.intp], values: Scores, count: float) -> NDArray[np.intp]:
    return rows[np.argsort(values, kind="stable")[: round(count)]]
