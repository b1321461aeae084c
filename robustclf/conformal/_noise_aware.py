"""What learns from rows that a classifier did not see, some of whose labels may be wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array
from sklearn.utils.multiclass import type_of_target

from robustclf._held_out import hold_out, label_proba
from robustclf._wrapped import CALIBRATION_CONSTRAINTS, WrappedClassifier
from robustclf.conformal._evidence import Codes, Floats, Noise
from robustclf.noise._given import NOISE_CONSTRAINTS, check_noise, given_transition
from robustclf.noise._inputs import check_class_proba

CONSTRAINTS = NOISE_CONSTRAINTS | CALIBRATION_CONSTRAINTS


class HeldOutRows(NamedTuple):
    """Rows that a classifier did not see: given labels as codes, probabilities and the noise."""

    codes: Codes  # (row,)
    proba: Floats  # (row, class)
    noise: Noise


class NoiseAwareClassifier(WrappedClassifier):
    """Base class: predicts as its classifier does, and knows how labels were made wrong."""

    noise: Any
    noise_convention: str
    cv: Any
    calibration_size: float
    random_state: Any

    def _hold_out(self, X: Any, y: Any, *, undone: bool = True) -> HeldOutRows:
        """Fit the classifier, and return rows that it did not see as it predicts them.

        Noise that is to be ``undone`` and cannot be is refused before.
        """
        X, labels = self._labelled(X, y)
        known = check_noise(self.noise, self.noise_convention, labels, self.estimator)
        if undone and known is not None:
            usable_inverse(Noise(known))
        held = hold_out(
            self.estimator,
            X,
            labels,
            cv=self.cv,
            calibration_size=self.calibration_size,
            random_state=self.random_state,
        )
        self.classes_ = held.classes
        self._take(held.estimators[0])
        return self._noisy_rows(held.codes, held.proba)

    def _hold_out_labels(self, X: Any, y: Any) -> tuple[NDArray[np.bool_], Floats]:
        """Return targets and probabilities of rows of several labels, ``(row, label)``."""
        held = hold_out(
            self.estimator,
            X,
            np.asarray(y),
            cv=self.cv,
            calibration_size=self.calibration_size,
            answer=label_proba,
            random_state=self.random_state,
        )
        self.classes_ = held.classes
        self._take(held.estimators[0])
        return check_array(y, dtype=bool)[held.rows], held.proba

    def _noisy_rows(self, codes: Codes, proba: Floats) -> HeldOutRows:
        p = check_class_proba(proba, self.classes_)
        self.transition_ = given_transition(
            self.noise, self.classes_, self.noise_convention, codes=codes, proba=p, safe=True
        )
        return HeldOutRows(codes, p, Noise(self.transition_))


def usable_inverse(noise: Noise) -> Floats:
    """Return the inverse of the transition; ``ValueError`` if it is close to singular."""
    if noise.inverse is None:
        raise ValueError(
            "the transition is close to singular: labels do not tell the risk of some classes. "
            "Merge these classes, or pass a smaller rate as noise=, which is safe."
        )
    return noise.inverse


def is_multilabel(y: Any) -> bool:
    """Whether y has a column for each label, and ones where it is true."""
    shape = np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1 and type_of_target(y) == "multilabel-indicator"
