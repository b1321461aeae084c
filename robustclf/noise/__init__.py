"""See the noise: make it, measure it, find the rows, score in spite of it.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""

from robustclf.noise.cleaner import LabelCleaner
from robustclf.noise.dynamics import TrainingDynamics
from robustclf.noise.examples import ExampleScores, example_scores
from robustclf.noise.inject import NOISE_KINDS, inject_noise
from robustclf.noise.issues import LabelIssues, find_label_issues
from robustclf.noise.matrices import convert_rate, pair_transition, uniform_transition
from robustclf.noise.posterior import clean_proba
from robustclf.noise.rate import NoiseRate, is_noisy, noise_rate
from robustclf.noise.scoring import (
    make_noise_corrected_scorer,
    noise_corrected_accuracy,
    noise_corrected_confusion_matrix,
)
from robustclf.noise.transition import TransitionEstimate, estimate_transition

__all__ = [
    "NOISE_KINDS",
    "ExampleScores",
    "LabelCleaner",
    "LabelIssues",
    "NoiseRate",
    "TrainingDynamics",
    "TransitionEstimate",
    "clean_proba",
    "convert_rate",
    "estimate_transition",
    "example_scores",
    "find_label_issues",
    "inject_noise",
    "is_noisy",
    "make_noise_corrected_scorer",
    "noise_corrected_accuracy",
    "noise_corrected_confusion_matrix",
    "noise_rate",
    "pair_transition",
    "uniform_transition",
]
