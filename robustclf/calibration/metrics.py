"""How far confidence is from accuracy, also where the labels that say so are noisy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustclf._registry import check_known
from robustclf.noise._given import given_transition
from robustclf.noise._inputs import check_count, check_proba
from robustclf.noise.scoring import inverted

Floats = NDArray[np.float64]

BINNINGS = ("quantile", "uniform")


class ReliabilityCurve(NamedTuple):
    """Accuracy beside confidence, in bins of rows that are about equally confident."""

    confidence: Floats  # (bin,)
    accuracy: Floats  # (bin,), corrected for noise if there is any
    weight: Floats  # (bin,), share of the rows

    @property
    def error(self) -> float:
        """Mean of the distances, ``sum_b weight_b |accuracy_b - confidence_b|``."""
        return float(self.weight @ abs(self.accuracy - self.confidence))


def reliability_curve(
    y: ArrayLike,
    proba: ArrayLike,
    *,
    noise: Any = None,
    noise_convention: str = "rest",
    n_bins: int = 15,
    strategy: str = "quantile",
    classes: ArrayLike | None = None,
) -> ReliabilityCurve:
    r"""Return accuracy and mean confidence in bins by confidence :math:`c_i = \max_k p_{ik}`.

    A given label :math:`\tilde y_i` says of the prediction :math:`\hat y_i` how far it is right, in
    the mean over the noise: :math:`T^{-1}[\tilde y_i, \hat y_i]`. So the accuracy of the bin B on
    true labels is estimated by

    .. math:: \hat A_B = \frac{1}{|B|} \sum_{i \in B} T^{-1}[\tilde y_i, \hat y_i],

    clipped to [0, 1].

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Given labels of rows that the classifier did not learn from.
    proba : array-like of shape (n_samples, n_classes)
        Probabilities in the order of the classes.
    noise : float, array-like of shape (n_classes, n_classes), "estimate" or None, default=None
        How labels were made wrong: uniformly at a rate, by a transition matrix (rows are true
        classes), not at all (None), or as these rows show, for a classifier that is right where it
        is surest: any other has its own errors counted as noise.
    noise_convention : {"rest", "all"}, default="rest"
        What a rate counts: wrong labels, or labels drawn from all classes.
    n_bins : int, default=15
        Number of bins; empty ones are left out.
    strategy : {"quantile", "uniform"}, default="quantile"
        Bins of as many rows each, or of the same width. Rows that are equally confident share one.
    classes : array-like of shape (n_classes,), optional
        The sorted classes, where ``y`` lacks some.

    Returns
    -------
    ReliabilityCurve
        ``confidence``, ``accuracy`` and ``weight`` of the bins, and ``error``.

    Raises
    ------
    ValueError
        If labels and probabilities do not fit together, the matrix has no inverse, or n_bins is no
        integer of at least 1.

    References
    ----------
    Penso, Frenkel, Goldberger. Confidence calibration of a medical imaging classification system
    that is robust to label noise. IEEE TMI 2024.

    Examples
    --------
    >>> proba = [[0.9, 0.1]] * 10
    >>> given = ["no"] * 8 + ["yes"] * 2
    >>> reliability_curve(given, proba, noise=0.1, n_bins=1).accuracy.round(3)
    array([0.875])
    """
    check_known("strategy", [strategy], BINNINGS)
    check_count("n_bins", n_bins)
    confidence, right = confidence_and_right(y, proba, noise, noise_convention, classes)
    bins = Bins.of(confidence, np.ones(len(right)), n_bins, strategy)
    return ReliabilityCurve(bins.mean(confidence), bins.mean(right).clip(0, 1), bins.share)


def expected_calibration_error(
    y: ArrayLike,
    proba: ArrayLike,
    *,
    noise: Any = None,
    noise_convention: str = "rest",
    n_bins: int = 15,
    strategy: str = "quantile",
    classes: ArrayLike | None = None,
) -> float:
    r"""Return the expected calibration error, :math:`\sum_B \frac{|B|}{n} |\hat A_B - \bar c_B|`.

    With ``noise`` it is that on the true labels, estimated from the given ones. It is never zero:
    the accuracy of a bin has an error of its own, and a larger one where it is corrected.

    Parameters
    ----------
    y, proba, noise, noise_convention, n_bins, strategy, classes
        As for :func:`reliability_curve`. Bins of as many rows each make it the adaptive error.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        As :func:`reliability_curve`.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017.
    arXiv:1706.04599.

    Examples
    --------
    >>> proba, given = [[0.9, 0.1]] * 10, ["no"] * 8 + ["yes"] * 2
    >>> print(f"{expected_calibration_error(given, proba, n_bins=1):.3f}")
    0.100
    >>> print(f"{expected_calibration_error(given, proba, n_bins=1, noise=0.1):.3f}")
    0.025
    """
    return reliability_curve(
        y,
        proba,
        noise=noise,
        noise_convention=noise_convention,
        n_bins=n_bins,
        strategy=strategy,
        classes=classes,
    ).error


def smooth_calibration_error(
    y: ArrayLike,
    proba: ArrayLike,
    *,
    noise: Any = None,
    noise_convention: str = "rest",
    classes: ArrayLike | None = None,
) -> float:
    r"""Return the smooth calibration error of the confidences, which has no bins to choose.

    It is that of relplot, given :math:`T^{-1}[\tilde y_i, \hat y_i]` for whether row i is right.

    Parameters
    ----------
    y, proba, noise, noise_convention, classes
        As for :func:`reliability_curve`.

    Returns
    -------
    float

    Raises
    ------
    ImportError
        Without relplot: ``pip install robustclf[calibration]``.
    ValueError
        As :func:`reliability_curve`.

    References
    ----------
    Błasiok, Nakkiran. Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing. ICLR 2024.
    arXiv:2309.12236.

    Examples
    --------
    >>> proba, given = [[0.9, 0.1]] * 10, ["no"] * 8 + ["yes"] * 2
    >>> error = smooth_calibration_error(given, proba)  # doctest: +SKIP
    """
    try:
        from relplot import smECE
    except ImportError as error:
        raise ImportError(
            "smooth_calibration_error needs relplot: run `pip install robustclf[calibration]`."
        ) from error
    confidence, right = confidence_and_right(y, proba, noise, noise_convention, classes)
    return float(smECE(confidence, right))


def confidence_and_right(
    y: ArrayLike, proba: ArrayLike, noise: Any, convention: str, classes: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Return the confidence of each row, and how far the prediction is right by the given label."""
    codes, p, known = check_proba(y, proba, classes)
    transition = given_transition(noise, known, convention, codes=codes, proba=p)
    return p.max(axis=1), inverted(transition)[codes, p.argmax(axis=1)]


class Bins(NamedTuple):
    """Rows dealt to bins by their confidence; bins without a row are left out."""

    place: NDArray[np.int64]  # (row,)
    weight: Floats  # (row,)

    @classmethod
    def of(cls, confidence: Floats, weight: Floats, n_bins: int, strategy: str) -> Bins:
        """Deal the rows to bins of equal weight or width; equally confident ones stay together."""
        if strategy == "uniform":
            place = np.ceil(confidence * n_bins).astype(np.int64) - 1
        else:
            tied = np.unique(confidence, return_inverse=True)[1]
            mass = np.bincount(tied, weight)
            middle = np.cumsum(mass) - mass / 2
            place = (middle / weight.sum() * n_bins).astype(np.int64)[tied]
        return cls(np.unique(place, return_inverse=True)[1], weight)

    @property
    def share(self) -> Floats:
        """Share of each bin in the weight."""
        share: Floats = np.bincount(self.place, self.weight) / self.weight.sum()
        return share

    def mean(self, value: Floats) -> Floats:
        """Weighted mean of a value of the rows in each bin."""
        total = np.bincount(self.place, self.weight * value)
        means: Floats = total / np.bincount(self.place, self.weight)
        return means
