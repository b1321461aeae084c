"""Losses for noisy labels, per sample: `loss(logits, target)`, `loss.per_label(logits)`."""

from __future__ import annotations

from inspect import signature
from typing import Any

from robustclf.losses import recipes  # noqa: F401  (registers the recipes)
from robustclf.losses._base import LOSSES, Loss, PointwiseLoss, Sum
from robustclf.losses.active_negative import NormalizedNegativeCrossEntropy
from robustclf.losses.cross_entropy import CrossEntropy, Focal, GeneralizedCrossEntropy
from robustclf.losses.symmetric import MeanAbsoluteError, ReverseCrossEntropy
from robustclf.losses.wrappers import BackwardCorrected, ForwardCorrected, Normalized

__all__ = [
    "BackwardCorrected",
    "CrossEntropy",
    "Focal",
    "ForwardCorrected",
    "GeneralizedCrossEntropy",
    "Loss",
    "MeanAbsoluteError",
    "Normalized",
    "NormalizedNegativeCrossEntropy",
    "PointwiseLoss",
    "ReverseCrossEntropy",
    "Sum",
    "list_losses",
    "make_loss",
]


def make_loss(loss: str | Loss, /, **params: Any) -> Loss:
    """Build the loss called `loss`, or copy the instance `loss`, with hyper-parameters set.

    Parameters
    ----------
    loss : str or Loss
        An alias or an instance, which is not changed.
    **params
        Hyper-parameters by name; `a__b` reaches parameter b of the loss that instance holds as a.

    Raises
    ------
    ValueError
        If the alias or a parameter is unknown. Ranges are checked by `Loss.check`.
    TypeError
        If `loss` is neither a string nor a `Loss`.

    Examples
    --------
    >>> from robustclf.losses import Normalized, make_loss
    >>> make_loss("gce", q=0.5)
    GeneralizedCrossEntropy(q=0.5)
    >>> make_loss(Normalized(make_loss("gce")), loss__q=0.5)
    Normalized(loss=GeneralizedCrossEntropy(q=0.5))
    >>> make_loss("mea")
    Traceback (most recent call last):
    ValueError: unknown loss 'mea', allowed are ...; did you mean 'mae'?
    """
    return LOSSES.make(loss, **params)


def list_losses() -> list[str]:
    """Aliases of the losses that work as they stand.

    Left out are the corrections, which need a transition matrix:
    `make_loss("forward_corrected", transition=T)`, `make_loss("backward_corrected", transition=T)`.

    Examples
    --------
    >>> from robustclf.losses import list_losses
    >>> "gce" in list_losses(), "forward_corrected" in list_losses()
    (True, False)
    """
    return [
        alias
        for alias in LOSSES.names()
        if "transition" not in signature(LOSSES.get(alias)).parameters
    ]
