"""How labels were made wrong, as far as it is known."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustclf._registry import check_known
from robustclf.noise._guards import LARGEST_CONDITION
from robustclf.noise.matrices import check_transition, uniform_transition
from robustclf.noise.rate import NoiseRate, noise_rate
from robustclf.noise.transition import transition_matrix

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

UNIFORM = 1e-12  # difference of entries that are taken as equal


@dataclass(frozen=True, eq=False)
class Noise:
    """How labels were made wrong.

    Attributes
    ----------
    transition : ndarray of shape (n_classes, n_classes)
        Probability of each given label (column) for each true class (row).

    Examples
    --------
    >>> noise = Noise(uniform_transition(0.15, 4))
    >>> round(noise.uniform, 12), noise.inverse[0].round(4)
    (0.2, array([ 1.1875, -0.0625, -0.0625, -0.0625]))
    """

    transition: Floats

    @property
    def clean(self) -> bool:
        """Whether no label is wrong."""
        return bool((self.transition == np.eye(len(self.transition))).all())

    @cached_property
    def uniform(self) -> float | None:
        """Share of labels drawn from all classes alike; None where noise is of another kind."""
        k = len(self.transition)
        apart = self.transition[~np.eye(k, dtype=bool)]
        share = float(apart.mean() * k)
        return share if np.ptp(apart) < UNIFORM and share < 1 else None

    @cached_property
    def inverse(self) -> Floats | None:
        """Weight of a row for each true class, by its label; None where T is close to singular."""
        if self.clean:
            return self.transition
        if np.linalg.cond(self.transition) > LARGEST_CONDITION:
            return None
        return np.asarray(np.linalg.inv(self.transition), dtype=np.float64)


def read_noise(noise: Any, convention: str, codes: Codes, proba: Floats) -> Noise:
    """Return the noise that a parameter tells of, or what labels and probabilities show.

    Raises
    ------
    ValueError
        If it is no rate, no transition matrix of the classes and not "estimate".

    Warns
    -----
    UserWarning
        If the matrix is close to singular.

    Examples
    --------
    >>> codes, proba = np.array([0, 1]), np.eye(2)
    >>> read_noise(0.2, "all", codes, proba).transition
    array([[0.9, 0.1],
           [0.1, 0.9]])
    >>> read_noise("estimated", "rest", codes, proba)
    Traceback (most recent call last):
    ValueError: unknown noise 'estimated', allowed are 'estimate'; did you mean 'estimate'?...
    """
    k = proba.shape[1]
    if noise is None:
        return Noise(np.eye(k))
    if isinstance(noise, str):
        _check_alias(noise)
        rate = noise_rate(codes, proba, classes=np.arange(k)).lower_bound
        return Noise(transition_matrix(codes, proba, rate=rate))
    if isinstance(noise, NoiseRate):
        return Noise(uniform_transition(noise.lower_bound, k))
    if isinstance(noise, Real):
        return Noise(uniform_transition(float(noise), k, convention))
    known = Noise(check_transition(noise, k))
    if known.inverse is None:
        condition = np.linalg.cond(known.transition)
        warnings.warn(
            f"the transition matrix is close to singular (condition {condition:.2g}): labels do "
            "not tell some classes apart, and sets hold all classes. Merge these classes, or "
            "pass a smaller rate as noise=, which is safe.",
            UserWarning,
            stacklevel=4,
        )
    return known


def _check_alias(noise: str) -> None:
    try:
        check_known("noise", [noise], ["estimate"])
    except ValueError as error:
        raise ValueError(f"{error}. Or pass a rate, or a transition matrix.") from None
