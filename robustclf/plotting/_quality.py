"""How probable the given labels are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array

from robustclf._rows import row_mask
from robustclf.noise._inputs import SUM_TOLERANCE, check_count, check_proba
from robustclf.noise.issues import find_label_issues
from robustclf.plotting._base import (
    COLORS,
    CrossFitted,
    check_matplotlib,
    legend_above,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


XLABEL = "label quality: out-of-fold probability of the given label"


class LabelQualityDisplay(CrossFitted):
    """Histogram of label quality, the out-of-fold probability of the given label.

    Good labels pile up on the right, wrong ones on the left; what lies between is hard to tell. The
    bars are stacked: the suspicious rows, then the others.

    Parameters
    ----------
    quality : array-like of shape (n_samples,)
        Between 0 and 1, ``clf.label_quality_``; rows with nan have no label and are left out.
    suspicious : array-like, optional
        Mask of, or numbers of, the rows that are suspected, or known, to be wrong.

    Attributes
    ----------
    bars_ : dict of str to matplotlib BarContainer
        Bars of the ``"suspicious"`` and the ``"other"`` rows, or of ``"all"``.
    ax_, figure_ : matplotlib Axes and Figure

    Examples
    --------
    >>> from robustclf.plotting import LabelQualityDisplay
    >>> display = LabelQualityDisplay([0.9, 0.95, 0.6, 0.1], suspicious=[3]).plot(bins=4)
    >>> {name: [int(b.get_height()) for b in bars] for name, bars in display.bars_.items()}
    {'suspicious': [1, 0, 0, 0], 'other': [0, 0, 1, 2]}
    """

    def __init__(self, quality: ArrayLike, suspicious: ArrayLike | None = None) -> None:
        self.quality = quality
        self.suspicious = suspicious

    def plot(self, ax: Axes | None = None, *, bins: int = 25, log: bool = False) -> Self:
        """Draw the histogram.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        bins : int, default=25
            Number of bars between 0 and 1.
        log : bool, default=False
            Whether the axis is logarithmic, on which a few suspicious rows show beside many others;
            the upper end of a bar is the number of all its rows.

        Returns
        -------
        self : LabelQualityDisplay

        Raises
        ------
        ValueError
            For a quality outside [0, 1], suspicious rows that are none of these, or no bars.
        """
        check_count("bins", bins)
        quality = _check_quality(self.quality)
        mask = row_mask(self.suspicious, len(quality), "suspicious")
        groups = {"all": quality}
        if mask is not None:
            groups = {"suspicious": quality[mask], "other": quality[~mask]}
        groups = {name: values[~np.isnan(values)] for name, values in groups.items()}
        ax = self._take_axes(ax)
        edges, bottom = np.linspace(0, 1, bins + 1), np.zeros(bins)
        self.bars_ = {}
        for name, values in groups.items():
            count = np.histogram(values, edges)[0]
            bars = ax.bar(edges[:-1], count, 1 / bins, bottom, align="edge", color=COLORS[name])
            bars.set_label(f"{name} rows ({len(values)})")
            self.bars_[name] = bars
            bottom += count
        ax.set(xlabel=XLABEL, ylabel="rows", xlim=(0, 1), yscale="symlog" if log else "linear")
        if mask is not None:
            legend_above(ax)
        plain(ax)
        return self

    @classmethod
    def from_predictions(
        cls,
        y: ArrayLike,
        proba: ArrayLike,
        *,
        classes: ArrayLike | None = None,
        suspicious: ArrayLike | None = None,
        ax: Axes | None = None,
        bins: int = 25,
        log: bool = False,
    ) -> Self:
        """Draw the quality of given labels by out-of-fold probabilities.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Given labels.
        proba : array-like of shape (n_samples, n_classes)
            Probabilities by a classifier that did not see the row.
        classes : array-like of shape (n_classes,), optional
            The sorted classes, where ``y`` lacks some.
        suspicious : array-like, optional
            Mask of, or numbers of, suspicious rows; by default those, which may be
            none, that :func:`robustclf.noise.find_label_issues` finds in these probabilities.
        ax, bins, log
            As in :meth:`plot`.

        Returns
        -------
        display : LabelQualityDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        codes, p, _ = check_proba(y, proba, classes)
        quality = p[np.arange(len(codes)), codes]
        if suspicious is None:
            suspicious = find_label_issues(y, proba, classes=classes).rows
        return cls(quality, suspicious).plot(ax, bins=bins, log=log)


def _check_quality(given: ArrayLike) -> NDArray[np.float64]:
    quality: NDArray[np.float64] = check_array(
        given,
        ensure_2d=False,
        dtype=np.float64,
        ensure_all_finite="allow-nan",
        input_name="quality",
    )
    if quality.ndim != 1 or (quality < 0).any() or (quality > 1 + SUM_TOLERANCE).any():
        raise ValueError(
            "quality must hold the probability of the given label, in [0, 1], of each row, got "
            f"shape {quality.shape} and values from {np.nanmin(quality):g} to "
            f"{np.nanmax(quality):g}."
        )
    return quality.clip(max=1)
