"""Losses for noisy labels, per sample: `loss(logits, target)`, `loss.per_label(logits)`."""

from __future__ import annotations

from inspect import signature
from typing import Any

from robustclf.losses import recipes  # noqa: F401  (registers the recipes)
from robustclf.losses._base import LOSSES, Loss, PointwiseLoss, Sum, Wrapper
from robustclf.losses.active_negative import Normalized, NormalizedNegative
from robustclf.losses.asymmetric import (
    AsymmetricExponential,
    AsymmetricGeneralizedCrossEntropy,
    AsymmetricNorm,
    AsymmetricUnhinged,
)
from robustclf.losses.corrections import BackwardCorrected, ForwardCorrected
from robustclf.losses.cross_entropy import (
    CompSum,
    CrossEntropy,
    Focal,
    GeneralizedCrossEntropy,
    Poly1,
    TaylorCrossEntropy,
)
from robustclf.losses.divergences import GeneralizedJensenShannon, JensenShannon, LeCam
from robustclf.losses.ensloss import EnsLoss
from robustclf.losses.evidential import Evidential
from robustclf.losses.huberised import (
    Clipped,
    PHuberCrossEntropy,
    PHuberGeneralizedCrossEntropy,
    TruncatedGeneralizedCrossEntropy,
)
from robustclf.losses.label_robust import AdaptiveLabelRobustKL, LabelRobustKL, LabelRobustTopK
from robustclf.losses.legendretron import LegendreTron
from robustclf.losses.regression import RegressionToClassification
from robustclf.losses.scores import BiTempered, Squentropy, ZLoss
from robustclf.losses.symmetric import MeanAbsoluteError, ReverseCrossEntropy, Unhinged
from robustclf.losses.transforms import EpsilonSoftmax, LogitAdjusted, LogitClipped, Temperature

__all__ = [
    "AdaptiveLabelRobustKL",
    "AsymmetricExponential",
    "AsymmetricGeneralizedCrossEntropy",
    "AsymmetricNorm",
    "AsymmetricUnhinged",
    "BackwardCorrected",
    "BiTempered",
    "Clipped",
    "CompSum",
    "CrossEntropy",
    "EnsLoss",
    "EpsilonSoftmax",
    "Evidential",
    "Focal",
    "ForwardCorrected",
    "GeneralizedCrossEntropy",
    "GeneralizedJensenShannon",
    "JensenShannon",
    "LabelRobustKL",
    "LabelRobustTopK",
    "LeCam",
    "LegendreTron",
    "LogitAdjusted",
    "LogitClipped",
    "Loss",
    "MeanAbsoluteError",
    "Normalized",
    "NormalizedNegative",
    "PHuberCrossEntropy",
    "PHuberGeneralizedCrossEntropy",
    "PointwiseLoss",
    "Poly1",
    "RegressionToClassification",
    "ReverseCrossEntropy",
    "Squentropy",
    "Sum",
    "TaylorCrossEntropy",
    "Temperature",
    "TruncatedGeneralizedCrossEntropy",
    "Unhinged",
    "Wrapper",
    "ZLoss",
    "list_losses",
    "make_loss",
    "search_space",
]


def make_loss(loss: str | Loss, /, **params: Any) -> Loss:
    """Build the loss called `loss`, or copy the instance `loss`, with hyper-parameters set.

    Parameters
    ----------
    loss : str or Loss
        An alias or an instance, which is not changed.
    **params
        Hyper-parameters by name; `a__b` reaches parameter b of the loss that the loss holds as a.

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

    Left out are those that need to be told about the classes:
    `make_loss("forward_corrected", transition=T)`, `make_loss("backward_corrected", transition=T)`
    and `make_loss("logit_adjusted", prior=pi)`.

    Examples
    --------
    >>> from robustclf.losses import list_losses
    >>> "gce" in list_losses(), "forward_corrected" in list_losses()
    (True, False)
    """
    needed = {"transition", "prior"}
    return [
        alias
        for alias in LOSSES.names()
        if not needed & signature(LOSSES.get(alias)).parameters.keys()
    ]


def search_space(loss: str | Loss, prefix: str = "loss__") -> dict[str, Any]:
    """Distributions of the hyper-parameters of a loss that are worth tuning.

    Parameters
    ----------
    loss : str or Loss
        An alias or an instance.
    prefix : str, optional
        Before each name; with the default, `"loss__"`, the result is the `param_distributions` of
        a `RandomizedSearchCV` around a classifier with that loss.

    Examples
    --------
    >>> from sklearn.model_selection import ParameterSampler
    >>> from robustclf.losses import search_space
    >>> sorted(search_space("nce+agce"))
    ['loss__alpha', 'loss__beta']
    >>> [params] = ParameterSampler(search_space("gce"), n_iter=1, random_state=0)
    >>> params
    {'loss__q': ...0.59...}
    """
    what: Any = LOSSES.get(loss) if isinstance(loss, str) else loss
    space = getattr(what, "search_space", {})
    if isinstance(space, property):  # of a wrapper, whose space is that of its default loss too
        space = LOSSES.make(loss).search_space
    return {prefix + name: values for name, values in space.items()}
