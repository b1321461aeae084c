"""Prediction sets that hold the true class as often as promised, also where labels are wrong.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""

from robustclf.conformal._corrections import (
    CRCP,
    DKW,
    Asymptotic,
    Bortolotti,
    Correction,
    Crossing,
    Sesia,
    Uncorrected,
)
from robustclf.conformal._levels import conformal_quantile
from robustclf.conformal._scores import APS, LAC, RAPS, SAPS, Margin, Score, TopK
from robustclf.conformal._set_losses import FalseDiscoveryRate, FalseNegativeRate, SetLoss, SetSize
from robustclf.conformal.classifier import ConformalClassifier
from robustclf.conformal.multilabel import MultilabelConformalClassifier
from robustclf.conformal.online import OnlineConformalClassifier
from robustclf.conformal.regression import ConformalRegressor
from robustclf.conformal.risk import LearnThenTest, RiskController
from robustclf.conformal.selective import SelectiveClassifier

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
    "ConformalRegressor",
    "Correction",
    "Crossing",
    "FalseDiscoveryRate",
    "FalseNegativeRate",
    "LearnThenTest",
    "Margin",
    "MultilabelConformalClassifier",
    "OnlineConformalClassifier",
    "RiskController",
    "Score",
    "SelectiveClassifier",
    "Sesia",
    "SetLoss",
    "SetSize",
    "TopK",
    "Uncorrected",
    "conformal_quantile",
]
