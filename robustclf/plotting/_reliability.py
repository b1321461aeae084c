"""Accuracy beside confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from robustclf.calibration.metrics import reliability_curve
from robustclf.plotting._base import CrossFitted, check_matplotlib, legend_above, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


class ReliabilityDisplay(CrossFitted):
    """Accuracy of the predictions beside their confidence, and the diagonal where both agree.

    Below the diagonal the classifier is surer than it is right. Wrong labels pull the curve down,
    so it may be corrected for them; what the labels say as they are is then drawn beside it.

    Parameters
    ----------
    confidence : array-like of shape (n_bins,)
        Mean of the largest probability in each bin.
    accuracy : array-like of shape (n_bins,)
        Share of right predictions in each bin.
    labelled : array-like of shape (n_bins,), optional
        Share of predictions that agree with the given labels, where ``accuracy`` is corrected.
    error : float, optional
        Calibration error, for the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
    labelled_ : matplotlib Line2D or None
    ax_, figure_ : matplotlib Axes and Figure

    See Also
    --------
    robustclf.calibration.reliability_curve : What ``from_predictions`` draws.

    Examples
    --------
    >>> from robustclf.plotting import ReliabilityDisplay
    >>> proba = [[0.6, 0.4]] * 10 + [[0.9, 0.1]] * 10
    >>> given = [0] * 5 + [1] * 5 + [0] * 8 + [1] * 2
    >>> display = ReliabilityDisplay.from_predictions(given, proba, noise=0.1, n_bins=2)
    >>> print(display.line_.get_ydata())
    [0.5   0.875]
    """

    figsize: ClassVar[tuple[float, float]] = (5.0, 4.8)

    def __init__(
        self,
        confidence: ArrayLike,
        accuracy: ArrayLike,
        labelled: ArrayLike | None = None,
        error: float | None = None,
    ) -> None:
        self.confidence = confidence
        self.accuracy = accuracy
        self.labelled = labelled
        self.error = error

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        self : ReliabilityDisplay

        Raises
        ------
        ValueError
            If there are not as many accuracies as confidences.
        """
        given = [self.accuracy] if self.labelled is None else [self.accuracy, self.labelled]
        for values in given:
            if np.shape(values) != np.shape(self.confidence):
                raise ValueError(
                    "confidence and accuracy must be of the same bins, got shapes "
                    f"{np.shape(self.confidence)} and {np.shape(values)}."
                )
        ax = self._take_axes(ax)
        ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
        name = "accuracy" if self.labelled is None else "noise-corrected"
        known = "" if self.error is None else f" (error {self.error:.3f})"
        (self.line_,) = ax.plot(
            self.confidence, self.accuracy, "o-", color="C0", label=name + known
        )
        self.labelled_: Line2D | None = None
        if self.labelled is not None:
            (self.labelled_,) = ax.plot(
                self.confidence, self.labelled, "o:", color="C1", label="by the given labels"
            )
        lowest = max(0.0, float(np.min([self.confidence, *given])) - 0.05)
        ax.set(xlabel="confidence", ylabel="accuracy", xlim=(lowest, 1.02), ylim=(lowest, 1.02))
        ax.set_aspect("equal")
        legend_above(ax)
        plain(ax)
        return self

    @classmethod
    def from_predictions(
        cls,
        y: ArrayLike,
        proba: ArrayLike,
        *,
        noise: Any = None,
        noise_convention: str = "rest",
        n_bins: int = 15,
        strategy: str = "quantile",
        classes: ArrayLike | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw the reliability of probabilities by given labels.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Given labels.
        proba : array-like of shape (n_samples, n_classes)
            Probabilities by a classifier that did not see the row.
        noise, noise_convention, n_bins, strategy, classes
            As in :func:`robustclf.calibration.reliability_curve`.
        ax
            As in :meth:`plot`.

        Returns
        -------
        display : ReliabilityDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        binned: dict[str, Any] = {"n_bins": n_bins, "strategy": strategy, "classes": classes}
        curve = reliability_curve(
            y, proba, noise=noise, noise_convention=noise_convention, **binned
        )
        labelled = None if noise is None else reliability_curve(y, proba, **binned).accuracy
        return cls(curve.confidence, curve.accuracy, labelled, curve.error).plot(ax)
