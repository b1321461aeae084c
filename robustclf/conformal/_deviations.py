"""How far estimates of coverage deviate from the truth, in expectation: bounds and limits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc, gammaln

from robustclf.conformal._evidence import Evidence

Floats = NDArray[np.float64]

PARTS = 10  # of the estimated share of scores, in which first crossings are looked at
GRID = 200  # points of the limiting process
MOST_ROWS = 4_000  # of the labels in question, that moments are estimated from
QUANTILES = (0, 0.25, 0.5, 0.75, 1)  # of the diagonal, tried as multiples of the identity
NOTHING = 1e-12  # that is left of a uniform matrix


def largest_excess(n: int) -> float:
    r"""Return :math:`c(n) = E \max_i (i/n - U_{(i)})` of n uniform numbers.

    It is :math:`Q(n) / 2n` with Ramanujan's :math:`Q(n) = \sum_{k=1}^n n! / ((n - k)! \, n^k)`.

    Examples
    --------
    >>> print([round(largest_excess(n), 5) for n in (1, 2, 2000)])
    [0.5, 0.375, 0.01393]
    """
    if n < 1:
        return np.inf
    log_scale = n + gammaln(n + 1) - (n + 1) * np.log(n)
    return float(np.exp(log_scale) * gammaincc(n, n) / 2)


class Deviations(NamedTuple):
    """Expected deviations of the parts of the estimate, per unit of their coefficients."""

    own: float  # of the scores of given labels
    shared: float  # of the scores of one class, over all rows
    rest: Floats  # (label,), of the scores of one class, over the rows of a label
    union: float  # of the scores of a class for each row, whichever class it is


def split_bound(evidence: Evidence) -> float:
    r"""Bound :math:`E \sup_t (\hat F - F)(t)` by splitting the inverse matrix.

    Its columns are ``own`` on the entries of given labels, plus a shared row, plus a rest. Each
    part is a distribution function, or the part of one for which a label is given.
    """
    assert evidence.noise.inverse is not None
    coefficients = evidence.noise.inverse[:, evidence.columns]
    own = np.zeros_like(coefficients)
    own[evidence.columns, np.arange(len(evidence.columns))] = 1
    others = np.where(own == 1, np.nan, coefficients)
    above = coefficients[own == 1] - np.nanmedian(others, axis=0)
    deviations = _marginal(evidence) if evidence.kind == "marginal" else _of_some(evidence)
    bounds = [
        _bound(coefficients - multiple * own, abs(multiple), deviations)
        for multiple in np.quantile(above, QUANTILES)
    ]
    return min(bounds) / evidence.mass


def _bound(left: Floats, own: float, deviations: Deviations) -> float:
    shared = _best_shared_row(left, deviations)
    rest = abs(left - shared).sum(axis=1)
    rest[rest < NOTHING] = 0.0
    size = own * deviations.own + abs(shared).sum() * deviations.shared
    by_label = float(deviations.rest @ rest)
    return float(size + min(by_label, rest.max() * deviations.union if rest.any() else 0.0))


def _best_shared_row(left: Floats, deviations: Deviations) -> Floats:
    """Return the weighted median of each column and 0, which costs least."""
    values = np.vstack([left, np.zeros(left.shape[1])])
    weight = np.append(deviations.rest, deviations.shared)
    order = values.argsort(axis=0)
    below = weight[order].cumsum(axis=0)
    middle = (below >= below[-1] / 2).argmax(axis=0)
    row: Floats = np.take_along_axis(values, order, axis=0)[middle, np.arange(left.shape[1])]
    return row


def _marginal(evidence: Evidence) -> Deviations:
    n, k = evidence.n, evidence.n_classes
    # a label's part moves like a Brownian bridge up to its share, here with one row more
    share = np.minimum(evidence.given + 1 / n, 1)
    rest = np.sqrt(share * (1 - share)) + np.arcsin(np.sqrt(share))
    root = np.sqrt(np.log(k + 2))
    union = 2 * min(np.sqrt(2 * np.log(2 * k * n + 2)), 24 * (root + 1 / root)) / np.sqrt(n)
    excess = largest_excess(n)
    return Deviations(excess, excess, rest / np.sqrt(2 * np.pi * n), float(union))


def _of_some(evidence: Evidence) -> Deviations:
    """For some classes, whose share among the rows is estimated, too."""
    n, given, counts = evidence.n, evidence.given, evidence.counts
    spread = np.sqrt(given * (1 - given) / n)
    excess = np.array([largest_excess(count) if count else 0.0 for count in counts])
    share = float(given[evidence.columns].sum())
    moved = _wrong_share(evidence) * np.sqrt(share * (1 - share) / n)
    own = share * largest_excess(evidence.n_own) + moved
    return Deviations(own, largest_excess(n), given * excess + spread, np.inf)


def _wrong_share(evidence: Evidence) -> float:
    """How far the scores of given labels can be from those of true ones, at most 1."""
    if evidence.kind != "class":
        return 1.0
    k = evidence.columns[0]
    right = evidence.prior[k] * evidence.noise.transition[k, k] / evidence.given[k]
    return float(np.clip(1 - right, 0, 1))


def crossing_bias(evidence: Evidence) -> float:
    r"""Return how far the estimate exceeds the truth where it first reaches a level, on average.

    It is :math:`E[R(t) \, dZ(t)] / (n E[dZ(t)])`, for the tenth of the estimated share where this
    is largest. Z(t) is the weight of a row's scores up to t, R(t) that of those from t on. Sums of
    :math:`w_j R_j` over the scores of a row in a part need no order: they are
    :math:`A B + (A^2 + \sum_j w_j^2) / 2` with A the weight in the part and B the weight above it.
    """
    at, share = evidence.distribution
    reached = np.searchsorted(np.maximum.accumulate(share), np.arange(1, PARTS) / PARTS)
    edges = at[reached.clip(max=len(at) - 1)]
    scores, weight = _some_rows(evidence)
    place = np.searchsorted(edges, scores)
    within = _in_parts(place, weight, PARTS)
    above = weight.sum(axis=1, keepdims=True) - within.cumsum(axis=1)
    squares = np.bincount(place.ravel(), weight.ravel() ** 2, minlength=PARTS)
    remaining = (within * (above + within / 2)).sum(axis=0) + squares / 2
    gained = within.sum(axis=0)
    some = squares > 0
    if (gained[some] <= 0).any():
        return np.inf
    return float((remaining[some] / gained[some]).max() / evidence.n)


def limiting_process(evidence: Evidence) -> Floats:
    r"""Return the covariance of :math:`\sqrt n (\hat F - F)` on a grid of scores.

    Many rows are represented by some of them, evenly spaced.
    """
    grid = np.quantile(evidence.own_scores, np.linspace(0, 1, GRID), method="inverted_cdf")
    scores, weight = _some_rows(evidence)
    place = np.searchsorted(grid, scores)
    moves = _in_parts(place, weight, GRID + 1)[:, :GRID].cumsum(axis=1)
    mean = moves.mean(axis=0)
    moves -= mean if evidence.kind == "marginal" else weight.sum(axis=1)[:, None] * mean
    covariance: Floats = moves.T @ moves / len(scores)
    return covariance


def _some_rows(evidence: Evidence) -> tuple[Floats, Floats]:
    """Return the scores of some rows, about ``MOST_ROWS`` of their own labels, and the weights."""
    n, most = evidence.n, MOST_ROWS * evidence.n // evidence.n_own
    rows = np.linspace(0, n - 1, min(n, most)).astype(int)
    return evidence.scores[rows], evidence.label_weight[evidence.codes[rows]] * evidence.n


def _in_parts(place: NDArray[np.intp], weight: Floats, n_parts: int) -> Floats:
    """Return the weight of each row in each part, ``(row, part)``, from the parts of its scores."""
    n = len(place)
    cell = np.arange(n)[:, None] * n_parts + place
    within = np.bincount(cell.ravel(), weight.ravel(), minlength=n * n_parts)
    return within.astype(np.float64, copy=False).reshape(n, n_parts)


def expected_maximum(covariance: Floats, n_draws: int, rng: np.random.Generator) -> float:
    """Return the mean of the maxima of a Gaussian process that starts at 0.

    The maximum on a grid falls short by the square root of its step; half the error of one with
    every fourth point is what is added.

    Examples
    --------
    >>> t = np.linspace(0, 1, 400)
    >>> bridge = np.minimum.outer(t, t) - np.outer(t, t)
    >>> print(f"{expected_maximum(bridge, 10_000, np.random.default_rng(0)):.2f}")
    0.63
    """
    scale, axes = np.linalg.eigh(covariance)
    draws = rng.standard_normal((n_draws, len(scale))) @ (axes * np.sqrt(scale.clip(min=0))).T
    fine, coarse = (draws[:, ::step].max(axis=1).clip(min=0).mean() for step in (1, 4))
    return float(2 * fine - coarse)
