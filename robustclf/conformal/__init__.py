"""Prediction sets that hold the true class as often as promised, also where labels are wrong.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""

from robustclf.conformal._levels import conformal_quantile
from robustclf.conformal._scores import APS, LAC, RAPS, SAPS, Margin, Score, TopK

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "SAPS",
    "Margin",
    "Score",
    "TopK",
    "conformal_quantile",
]
