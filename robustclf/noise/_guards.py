"""What makes the estimate of a transition usable, whatever it rests on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from robustclf.noise.rate import rate_estimator

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Estimator = Callable[..., tuple[Floats, Floats]]

FEW_ROWS = 5
LARGEST_CONDITION = 1e3
TINY = 1e-12  # noise that is none

NO_TRUSTED = "have no trusted row: their rows of the matrix are those of 'confident_joint'"
TOO_FEW = (
    f"have fewer than {FEW_ROWS} rows to estimate their noise from: their rows of the matrix are "
    "moved towards the identity"
)
DEPENDENT = (
    "cannot be told apart by their labels: their rows of the matrix are moved towards the identity "
    f"until its condition number is at most {LARGEST_CONDITION:g}"
)


def warn_of(classes: NDArray[Any], what: str, stacklevel: int = 3) -> None:
    """Warn of classes, if there are any, in the name of who called the caller."""
    if len(classes):
        warnings.warn(f"classes {classes.tolist()} {what}.", UserWarning, stacklevel=stacklevel)


def supported(transition: Floats, support: Floats) -> Floats:
    """Move the rows of scarce classes towards the identity."""
    share = np.minimum(support / FEW_ROWS, 1.0)[:, None]
    return share * transition + (1 - share) * np.eye(len(transition))


def well_conditioned(transition: Floats) -> Floats:
    """Move rows that depend on each other towards the identity, a tenth at a time."""
    while True:
        U, scale, _ = np.linalg.svd(transition)
        weak = scale < scale[0] / LARGEST_CONDITION
        if not weak.any():
            return transition
        # the part of each class in the combinations that vanish; a row of the identity cannot move
        part = (U[:, weak] ** 2).sum(axis=1) * (1 - transition.diagonal())
        step = np.where(part > part.max() / 2, 0.1, 0.0)[:, None]
        transition = (1 - step) * transition + step * np.eye(len(transition))


class Guarded(NamedTuple):
    """A usable matrix, and the classes whose rows of it had to be mended."""

    transition: Floats
    few: NDArray[np.bool_]
    dependent: NDArray[np.bool_]

    def warned(self, classes: NDArray[Any]) -> Floats:
        """Return the matrix; warn of what was mended."""
        warn_of(classes[self.few], TOO_FEW, stacklevel=4)
        warn_of(classes[self.dependent], DEPENDENT, stacklevel=4)
        return self.transition


def guarded(
    estimate: Estimator, limited: Callable[[Floats, Floats], Floats]
) -> Callable[..., Guarded]:
    """Return the estimator with its matrix mended and limited."""

    def usable_matrix(weight: Floats, **options: Any) -> Guarded:
        matrix, support = estimate(weight, **options)
        full = supported(matrix, support)
        usable = well_conditioned(full)
        changed = (usable != full).any(axis=1)
        return Guarded(limited(usable, weight), support < FEW_ROWS, changed)

    return usable_matrix


def limiter(
    rate: float | str | None, codes: Codes, proba: Floats
) -> Callable[[Floats, Floats], Floats]:
    """Return what scales noise down until no more labels are wrong than ``rate``."""
    check_rate_limit(rate)
    if rate is None:
        return lambda transition, weight: transition
    estimated = rate_estimator(codes, proba)

    def limited(transition: Floats, weight: Floats) -> Floats:
        given = label_counts(codes, proba, weight) / weight.sum()
        wrong = float(1 - class_prior(transition, given) @ transition.diagonal())
        most = float(rate) if isinstance(rate, Real) else estimated(weight)
        share = min(1.0, most / max(wrong, TINY))
        return share * transition + (1 - share) * np.eye(len(transition))

    return limited


def check_rate_limit(rate: Any) -> None:
    """Raise ``ValueError`` for what is no limit of the noise rate."""
    if rate is None or rate == "estimate":
        return
    if not isinstance(rate, Real) or not 0 <= float(rate) < 1:
        raise ValueError(f"rate must be a share in [0, 1), 'estimate' or None, got {rate!r}.")


def class_prior(transition: Floats, given: Floats) -> Floats:
    """Return the class shares that T turns into the shares of the given labels."""
    shares = nnls(transition.T, given)[0]
    prior: Floats = shares / shares.sum()
    return prior


def label_counts(codes: NDArray[np.integer[Any]], proba: Floats, weight: Floats) -> Floats:
    """Return the weight of the rows of each class."""
    return np.bincount(codes, weight, minlength=proba.shape[1]).astype(np.float64)
