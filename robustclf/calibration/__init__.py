"""Probabilities that mean what they say, measured and mended with wrong labels.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""

from robustclf.calibration.classifier import RobustCalibrator
from robustclf.calibration.metrics import (
    ReliabilityCurve,
    expected_calibration_error,
    reliability_curve,
    smooth_calibration_error,
)

__all__ = [
    "ReliabilityCurve",
    "RobustCalibrator",
    "expected_calibration_error",
    "reliability_curve",
    "smooth_calibration_error",
]
