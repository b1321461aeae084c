"""Prediction sets that hold the true class as often as promised, also where labels are wrong.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""

from robustclf.conformal._corrections import (
    CRCP,
    DKW,
    Asymptotic,
    Bortolotti,
    Correction,
    Sesia,
    Uncorrected,
)
from robustclf.conformal._levels import conformal_quantile
from robustclf.conformal._scores import APS, LAC, RAPS, SAPS, Margin, Score, TopK
from robustclf.conformal.classifier import ConformalClassifier
from robustclf.conformal.multilabel import MultilabelConformalClassifier

__all__ = [
    "APS",
    "CRCP",
    "DKW",
    "LAC",
    "RAPS",
    "SAPS",
    "Asymptotic",
    "Bortolotti",
    "ConformalClassifier",
    "Correction",
    "Margin",
    "MultilabelConformalClassifier",
    "Score",
    "Sesia",
    "TopK",
    "Uncorrected",
    "conformal_quantile",
]
