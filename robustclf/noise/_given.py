"""The noise that a user means by ``noise=``."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, StrOptions

from robustclf._registry import closest
from robustclf.noise.matrices import CONVENTIONS, Floats, check_transition, uniform_transition
from robustclf.noise.rate import NoiseRate, noise_rate
from robustclf.noise.transition import transition_matrix

NOISE_CONSTRAINTS: dict[str, list[Any]] = {
    "noise": [None, str, Real, "array-like", HasMethods("__array__"), NoiseRate],
    "noise_convention": [StrOptions(set(CONVENTIONS))],
}


def given_transition(
    noise: Any,
    classes: NDArray[Any],
    convention: str = "rest",
    *,
    codes: NDArray[np.int64] | None = None,
    proba: Floats | None = None,
    safe: bool = False,
) -> Floats:
    """Return the matrix (rows are true classes) of a rate, a matrix, "estimate" or None.

    An estimate is made from codes and out-of-fold probabilities; a ``safe`` one has no more noise
    than the lower bound of :func:`noise_rate`.

    Raises
    ------
    ValueError
        For what is none of these, classes in another order, or "estimate" without probabilities.

    Examples
    --------
    >>> given_transition(0.2, np.array(["no", "yes"]))
    array([[0.8, 0.2],
           [0.2, 0.8]])
    >>> given_transition("estimated", np.array(["no", "yes"]))
    Traceback (most recent call last):
    ValueError: unknown noise 'estimated', pass a rate, ... or None; did you mean 'estimate'?
    """
    if noise is None:
        return np.eye(len(classes))
    if isinstance(noise, str):
        if noise != "estimate":
            raise ValueError(
                f"unknown noise {noise!r}, pass a rate, a transition matrix, 'estimate' or None"
                f"{closest(noise, ['estimate'])}"
            )
        if codes is None or proba is None:
            raise ValueError("noise='estimate' is for fits: give a rate or a matrix.")
        limit = noise_rate(codes, proba, classes=np.arange(len(classes))).lower_bound
        return transition_matrix(codes, proba, rate=limit if safe else "estimate")
    if isinstance(noise, NoiseRate):
        return uniform_transition(noise.lower_bound if safe else noise.rate, len(classes))
    if isinstance(noise, Real) or np.ndim(noise) == 0:
        if not isinstance(noise, Real) or isinstance(noise, bool):
            raise ValueError(
                f"noise must be a rate, a transition matrix, 'estimate' or None, got {noise!r}."
            )
        return uniform_transition(float(noise), len(classes), convention)
    own = getattr(noise, "classes", None)
    if own is not None and not np.array_equal(own, classes):
        raise ValueError(
            f"the transition is of the classes {np.asarray(own).tolist()}, not of "
            f"{classes.tolist()}."
        )
    return check_transition(noise, len(classes))


def check_noise(noise: Any, convention: str, labels: NDArray[Any], estimator: Any) -> Floats | None:
    """Raise what :func:`given_transition` would, before any classifier is fitted.

    Return the matrix, if it is known by then.
    """
    classes = np.unique(labels)  # any other than a frozen classifier is fitted to these
    if isinstance(estimator, FrozenEstimator):
        classes = np.asarray(getattr(estimator, "classes_", classes))
    if len(classes) < 2 or (isinstance(noise, str) and noise == "estimate"):
        return None
    return given_transition(noise, classes, convention, safe=True)
