"""The transition that a user means by ``noise=``."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustclf._registry import check_known
from robustclf.noise.matrices import Floats, check_transition, uniform_transition
from robustclf.noise.rate import noise_rate
from robustclf.noise.transition import transition_matrix


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
    ValueError: unknown noise 'estimated', allowed are 'estimate'; did you mean 'estimate'?
    """
    if noise is None:
        return np.eye(len(classes))
    if isinstance(noise, str):
        check_known("noise", [noise], ["estimate"])
        if codes is None or proba is None:
            raise ValueError("noise='estimate' is for fits: give a rate or a matrix.")
        limit = noise_rate(codes, proba, classes=np.arange(len(classes))).lower_bound
        return transition_matrix(codes, proba, rate=limit if safe else "estimate")
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
