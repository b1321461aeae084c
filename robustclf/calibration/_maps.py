"""Maps from logits to calibrated logits, fitted to labels that a transition made noisy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax
from sklearn.calibration import _TemperatureScaling

from robustclf.calibration.metrics import Bins
from robustclf.noise.scoring import inverted

Floats = NDArray[np.float64]

N_BINS = 15
LOG_TEMPERATURES = np.linspace(-4, 4, 81)
HIDDEN = 5  # of the network that tells temperatures
PENALTY = 3e-3  # of the squared weights of that network
HOTTEST = 10.0  # temperature of a row; the coldest is its inverse


class Calibrating(NamedTuple):
    """What a map is fitted to."""

    logits: Floats  # (row, class)
    codes: NDArray[np.int64]  # (row,), given labels
    transition: Floats  # (true class, given class)
    weight: Floats  # (row,)

    @property
    def right(self) -> Floats:
        """How far each prediction is right, in the mean over the noise of the given label."""
        right: Floats = inverted(self.transition)[self.codes, self.logits.argmax(axis=1)]
        return right

    @property
    def noiseless(self) -> bool:
        """Whether labels are taken as they are."""
        return bool((self.transition.diagonal() == 1).all())


def confidence(logits: Floats, temperature: Floats | float) -> Floats:
    """Return ``max softmax(logits / temperature)``."""
    below = logits - logits.max(axis=1, keepdims=True)
    top: Floats = 1 / np.exp(below / np.reshape(temperature, (-1, 1))).sum(axis=1)
    return top


@dataclass(frozen=True)
class Temperature:
    """One temperature for all rows: ``logits / temperature``."""

    temperature: float

    @classmethod
    def fit(cls, rows: Calibrating) -> Temperature:
        """Minimise the log-loss, or with noise the distance to the corrected accuracies of bins."""
        if rows.noiseless:
            scaling = _TemperatureScaling().fit(rows.logits, rows.codes, rows.weight)
            return cls(1 / float(scaling.beta_))
        bins = Bins.of(confidence(rows.logits, 1.0), rows.weight, N_BINS, "quantile")
        accuracy = bins.mean(rows.right).clip(0, 1)

        def distance(log_temperature: float) -> float:
            confident = bins.mean(confidence(rows.logits, np.exp(log_temperature)))
            return float(abs(accuracy - confident).mean())

        start = LOG_TEMPERATURES[np.argmin([distance(t) for t in LOG_TEMPERATURES])]
        step = LOG_TEMPERATURES[1] - LOG_TEMPERATURES[0]
        found = minimize_scalar(distance, bounds=(start - step, start + step), method="bounded")
        return cls(float(np.exp(found.x)))

    def __call__(self, logits: Floats) -> Floats:
        return logits / self.temperature


@dataclass(frozen=True, eq=False)
class Vector:
    """A factor and an offset for each class: ``factor * logits + offset``."""

    factor: Floats  # (class,)
    offset: Floats  # (class,)

    @classmethod
    def fit(cls, rows: Calibrating) -> Vector:
        """Maximise the likelihood of the given labels, ``p @ T``."""
        z, k = rows.logits, rows.logits.shape[1]
        share = rows.weight / rows.weight.sum()
        of_given = rows.transition.T[rows.codes]  # (row, class): P(given label | class)

        def loss(parameters: Floats) -> tuple[float, Floats]:
            p = softmax(parameters[:k] * z + parameters[k:], axis=1)
            joint = p * of_given
            likelihood = np.maximum(joint.sum(axis=1), np.finfo(float).tiny)
            slope = (p - joint / likelihood[:, None]) * share[:, None]
            gradient = np.concatenate([(slope * z).sum(axis=0), slope.sum(axis=0)])
            return -float(share @ np.log(likelihood)), gradient

        start = np.repeat([1.0, 0.0], k)
        found = minimize(loss, start, jac=True, method="L-BFGS-B").x
        return cls(found[:k], found[k:] - found[k:].mean())

    def __call__(self, logits: Floats) -> Floats:
        return self.factor * logits + self.offset


@dataclass(frozen=True, eq=False)
class RowTemperature:
    """A temperature for each row, told by a small network from how its views are predicted."""

    into: Floats  # (feature + 1, hidden)
    out: Floats  # (hidden + 1,)

    @classmethod
    def fit(cls, rows: Calibrating, features: Floats, rng: np.random.RandomState) -> RowTemperature:
        """Minimise the squared distance of confidence and being right."""
        start = Temperature.fit(rows).temperature
        shape = (features.shape[1] + 1, HIDDEN)
        into = rng.normal(size=shape) / np.sqrt(shape[0])
        bias = np.arctanh(np.clip(np.log(start) / np.log(HOTTEST), -0.99, 0.99))
        parameters = np.concatenate([into.ravel(), np.zeros(HIDDEN), [bias]])
        x = np.column_stack([features, np.ones(len(features))])
        share, right = rows.weight / rows.weight.sum(), rows.right
        below = rows.logits - rows.logits.max(axis=1, keepdims=True)

        def loss(parameters: Floats) -> tuple[float, Floats]:
            into, out = parameters[: -HIDDEN - 1].reshape(shape), parameters[-HIDDEN - 1 :]
            hidden = np.tanh(x @ into)
            told = np.tanh(hidden @ out[:-1] + out[-1])
            inverse = HOTTEST**-told
            p = softmax(below * inverse[:, None], axis=1)
            top = p.max(axis=1)
            # (top - right)^2 but for what does not depend on the temperature: unbiased under noise
            value = share @ (top**2 - 2 * top * right)
            of_inverse = share * 2 * (top - right) * -top * (p * below).sum(axis=1)
            of_told = of_inverse * -np.log(HOTTEST) * inverse * (1 - told**2)
            of_hidden = of_told[:, None] * out[:-1] * (1 - hidden**2)
            slope = [(x.T @ of_hidden).ravel(), hidden.T @ of_told, [of_told.sum()]]
            weights = np.append(parameters[:-1], 0.0)
            return float(value + PENALTY * weights @ weights), (
                np.concatenate(slope) + 2 * PENALTY * weights
            )

        found = minimize(loss, parameters, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
        return cls(found[: -HIDDEN - 1].reshape(shape), found[-HIDDEN - 1 :])

    def temperature(self, features: Floats) -> Floats:
        """Return the temperature of each row, between 0.1 and 10."""
        x = np.column_stack([features, np.ones(len(features))])
        told: Floats = HOTTEST ** np.tanh(np.tanh(x @ self.into) @ self.out[:-1] + self.out[-1])
        return told

    def __call__(self, logits: Floats, features: Floats) -> Floats:
        return logits / self.temperature(features)[:, None]
