"""Prediction sets that hold the true class as often as promised, also where labels are wrong.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""

from robustclf.conformal._levels import conformal_quantile
from robustclf.conformal._scores import APS, LAC, RAPS, SAPS, Margin, Score, TopK
from robustclf.conformal._set_losses import FalseDiscoveryRate, FalseNegativeRate, SetLoss, SetSize
from robustclf.conformal.risk import LearnThenTest, RiskController

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "SAPS",
    "FalseDiscoveryRate",
    "FalseNegativeRate",
    "LearnThenTest",
    "Margin",
    "RiskController",
    "Score",
    "SetLoss",
    "SetSize",
    "TopK",
    "conformal_quantile",
]
