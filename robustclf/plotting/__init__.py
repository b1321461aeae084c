"""Pictures of the noise, of what a fit makes of it, and of the losses; needs matplotlib."""

from robustclf.plotting._dynamics import TrainingDynamicsDisplay
from robustclf.plotting._losses import LossDisplay
from robustclf.plotting._quality import LabelQualityDisplay
from robustclf.plotting._reliability import ReliabilityDisplay
from robustclf.plotting._robustness import NoiseRobustnessDisplay
from robustclf.plotting._transition import TransitionDisplay

__all__ = [
    "LabelQualityDisplay",
    "LossDisplay",
    "NoiseRobustnessDisplay",
    "ReliabilityDisplay",
    "TrainingDynamicsDisplay",
    "TransitionDisplay",
]
