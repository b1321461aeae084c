"""What the displays share: axes, and out-of-fold probabilities of an estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier
from sklearn.model_selection import check_cv

from robustclf._held_out import hold_out
from robustclf._rows import as_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLORS = {"suspicious": "C1", "other": "C0", "all": "C0"}  # of rows, in every display


class Display:
    """Base class of the displays: what was computed goes in, ``plot`` draws it."""

    figsize: ClassVar[tuple[float, float]] = (6.4, 4.8)
    ax_: Axes
    figure_: Figure | SubFigure

    def _take_axes(self, ax: Axes | None) -> Axes:
        check_matplotlib(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.subplots(figsize=self.figsize, layout="constrained")[1]
        self.ax_, self.figure_ = ax, ax.figure
        return ax


class CrossFitted(Display):
    """Base class of the displays of given labels beside out-of-fold probabilities."""

    from_predictions: ClassVar[Callable[..., Self]]

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: ArrayLike, *, cv: Any = 5, **params: Any
    ) -> Self:
        """Draw the given labels beside the predictions of a classifier that is cross-fitted.

        Parameters
        ----------
        estimator : classifier with ``predict_proba``
            If it has ``oof_proba_`` of these rows, it is read (``RobustClassifier(cross_fit=5)``);
            else copies are fitted. They are taken for those of other rows where they do not give
            its ``label_quality_`` with these labels.
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,)
            Given labels.
        cv : int, splitter or iterable, default=5
            Folds for the copies.
        **params
            As in :meth:`from_predictions`.

        Returns
        -------
        display : the display, drawn

        Raises
        ------
        ValueError
            If the estimator is not a classifier.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        proba, classes = out_of_fold(estimator, X, y, cv)
        return cls.from_predictions(y, proba, **({"classes": classes} | params))


def check_matplotlib(caller: str) -> None:
    """Raise an ImportError that says what to install, before anything is computed."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib: run `pip install robustclf[plot]`."
        ) from error


def plain(ax: Axes) -> None:
    """Take away the frame, but for the axes."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)


def legend_above(ax: Axes, title: str | None = None) -> None:
    """Put the legend where no bar or band can be."""
    ax.legend(
        frameon=False,
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        title=title,
        alignment="left",
    )


def out_of_fold(
    estimator: Any, X: Any, y: ArrayLike, cv: Any
) -> tuple[NDArray[np.floating], NDArray[Any]]:
    """Return probabilities of rows by an estimator that did not see them, and the classes."""
    if not is_classifier(estimator):
        raise ValueError(f"estimator must be a classifier, got {estimator!r}.")
    labels = as_labels(y)
    proba = getattr(estimator, "oof_proba_", None)
    if proba is not None and len(proba) == len(labels) and _gave_quality(estimator, labels):
        return proba, estimator.classes_
    held = hold_out(estimator, X, labels, cv=check_cv(cv, labels, classifier=True), refit=False)
    return held.proba, held.classes


def _gave_quality(estimator: Any, labels: NDArray[Any]) -> bool:
    """Whether ``oof_proba_`` of these labels is ``label_quality_``, if there is any."""
    quality = getattr(estimator, "label_quality_", None)
    if quality is None:
        return True
    given = labels[:, None] == estimator.classes_
    of_given = np.where(given, estimator.oof_proba_, 0.0).sum(axis=1)
    return bool((np.isclose(of_given, quality) | np.isnan(quality)).all())
