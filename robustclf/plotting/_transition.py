"""The transition matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustclf.noise.matrices import check_transition
from robustclf.noise.transition import TransitionEstimate, estimate_transition
from robustclf.plotting._base import CrossFitted, check_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Floats = NDArray[np.float64]
Style = dict[str, Any]

MOST_WITH_NUMBERS = 15
MOST_WITH_INTERVALS = 6
SMALLEST_WRITTEN = 0.005
TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
LARGEST_SIZE = 11.0  # of the numbers, in points
GLYPH = 0.62  # width of a digit, as a share of the size of the font


class TransitionDisplay(CrossFitted):
    """Heat map of a transition matrix, ``T[i, j] = P(given j | true i)``.

    The colour grows with the square root of the probability, so that rare errors show beside the
    diagonal. Up to 15 classes have their number in each cell, up to 6 the interval below it.

    Parameters
    ----------
    transition : array-like of shape (n_classes, n_classes), or TransitionEstimate
        Rows are true classes, columns given ones; an estimate brings its intervals and classes.
    low, high : array-like of shape (n_classes, n_classes), optional
        Ends of the interval of each entry.
    classes : array-like of shape (n_classes,), optional
        Names of the classes; by default 0 to K - 1.

    Attributes
    ----------
    im_ : matplotlib AxesImage
    text_ : ndarray of matplotlib Text of shape (n_classes, n_classes), or None
        Numbers in the cells; None beyond 15 classes.
    ax_, figure_ : matplotlib Axes and Figure

    See Also
    --------
    robustclf.noise.estimate_transition : What ``from_predictions`` and ``from_estimator`` draw.

    Examples
    --------
    >>> from robustclf.plotting import TransitionDisplay
    >>> display = TransitionDisplay([[0.9, 0.1], [0.25, 0.75]], classes=["no", "yes"]).plot()
    >>> [text.get_text() for text in display.text_[1]]
    ['0.25', '0.75']
    """

    figsize: ClassVar[tuple[float, float]] = (5.8, 4.8)

    def __init__(
        self,
        transition: ArrayLike | TransitionEstimate,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> None:
        self.transition = transition
        self.low = low
        self.high = high
        self.classes = classes

    def plot(
        self,
        ax: Axes | None = None,
        *,
        cmap: Any = "Blues",
        colorbar: bool = True,
        text_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the matrix.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        cmap : str or matplotlib Colormap, default="Blues"
            Colours.
        colorbar : bool, default=True
            Whether to draw the scale of the colours.
        text_kw : dict, optional
            Parameters of ``ax.text`` for the numbers, such as ``{"fontsize": 8}``.

        Returns
        -------
        self : TransitionDisplay

        Raises
        ------
        ValueError
            If the rows are not probabilities, or the shapes do not go together.
        """
        T = check_transition(np.asarray(self.transition))
        interval, names = self._interval(T), self._names(T)
        ax = self._take_axes(ax)
        from matplotlib.colors import PowerNorm

        self.im_ = ax.imshow(T, cmap=cmap, norm=PowerNorm(0.5, vmin=0, vmax=1))
        if colorbar:
            self.figure_.colorbar(self.im_, ax=ax, label="P(given | true)", ticks=TICKS)
        cell = min(ax.bbox.width, ax.bbox.height) / self.figure_.dpi * 72 / len(T)  # in points
        self.text_ = None
        if len(T) <= MOST_WITH_NUMBERS:
            self.text_ = self._write(T, interval, cell, text_kw or {})
        ax.set(xlabel="given label", ylabel="true class")
        size = min(LARGEST_SIZE, 0.7 * cell)
        wide = max(map(len, names)) * size * GLYPH > cell
        turned: Style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if wide else {}
        ax.set_xticks(np.arange(len(T)), names, fontsize=size, **turned)
        ax.set_yticks(np.arange(len(T)), names, fontsize=size)
        return self

    def _interval(self, T: Floats) -> Sequence[Floats]:
        """Return the lower and the upper ends, or nothing."""
        ends: list[Any] = []
        for name in ("low", "high"):
            given = getattr(self, name)
            ends.append(getattr(self.transition, name, None) if given is None else given)
        known = [end is not None for end in ends]
        if not any(known):
            return ()
        if not all(known) or not all(np.shape(end) == T.shape for end in ends):
            shapes = [None if end is None else np.shape(end) for end in ends]
            raise ValueError(f"low and high must have the shape {T.shape} of T, got {shapes}.")
        interval = [np.asarray(end, dtype=np.float64) for end in ends]
        return () if np.isnan(interval).all() else interval

    def _names(self, T: Floats) -> list[str]:
        classes: Any = self.classes
        if classes is None:
            classes = getattr(self.transition, "classes", np.arange(len(T)))
        names = [str(name) for name in np.asarray(classes).tolist()]
        if len(names) != len(T):
            raise ValueError(f"classes must name each of {len(T)} classes, got {names}.")
        return names

    def _write(
        self, T: Floats, interval: Sequence[Floats], cell: float, text_kw: Style
    ) -> NDArray[np.object_]:
        """Write numbers as large as the cells, ``cell`` points wide, allow."""
        text = np.empty(T.shape, dtype=object)
        size = min(LARGEST_SIZE, cell / (5 * GLYPH))
        ends = interval if len(T) <= MOST_WITH_INTERVALS else ()
        for (i, j), value in np.ndenumerate(T):
            style: Style = {"ha": "center", "color": _ink(self.im_, value)}
            upper: Style = {"va": "bottom" if ends else "center", "fontsize": size} | style
            text[i, j] = self.ax_.text(j, i, _number(value), **(upper | text_kw))
            between = [_number(float(end[i, j])) for end in ends]
            if len(set(between)) == 2:
                lower: Style = {"va": "top", "fontsize": min(0.75 * size, cell / (12 * GLYPH))}
                self.ax_.text(j, i + 0.08, " to ".join(between), **(lower | style))
        return text

    @classmethod
    def from_predictions(
        cls,
        y: ArrayLike,
        proba: ArrayLike,
        *,
        method: str = "confident_joint",
        classes: ArrayLike | None = None,
        ax: Axes | None = None,
        cmap: Any = "Blues",
        colorbar: bool = True,
        text_kw: dict[str, Any] | None = None,
        **params: Any,
    ) -> Self:
        """Estimate the matrix from given labels and out-of-fold probabilities, and draw it.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Given labels.
        proba : array-like of shape (n_samples, n_classes)
            Probabilities by a classifier that did not see the row.
        method : str, default="confident_joint"
            As in :func:`robustclf.noise.estimate_transition`.
        classes : array-like of shape (n_classes,), optional
            The sorted classes, where ``y`` lacks some.
        ax, cmap, colorbar, text_kw
            As in :meth:`plot`.
        **params
            Further parameters of :func:`robustclf.noise.estimate_transition`: ``trusted``,
            ``y_trusted``, ``n_bootstrap``, ``confidence_level``, ``random_state``.

        Returns
        -------
        display : TransitionDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        estimate = estimate_transition(y, proba, method, classes=classes, **params)
        display = cls(estimate.transition, estimate.low, estimate.high, estimate.classes)
        return display.plot(ax, cmap=cmap, colorbar=colorbar, text_kw=text_kw)


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= SMALLEST_WRITTEN else "0"


def _ink(image: AxesImage, value: float) -> str:
    """Return black or white, whichever stands out from the colour of the value."""
    red, green, blue, _ = image.to_rgba(np.array([value]))[0]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
