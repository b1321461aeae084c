"""How the rows are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from robustclf._registry import check_known
from robustclf._rows import row_mask
from robustclf.noise.dynamics import TrainingDynamics
from robustclf.plotting._base import COLORS, Display, check_matplotlib, legend_above, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {
    "loss": r"loss of the given label, $-\log\, p_y$ (nats)",
    "margin": r"margin of the given label, $z_y - \max_{k \neq y}\, z_k$",
    "error_norm": r"error norm, $\Vert p - e_y \Vert_2$",
}
BAND = (10, 90)  # percentiles


class TrainingDynamicsDisplay(Display):
    """Loss of suspicious and of other rows over the epochs: median, and 10 % to 90 % of the rows.

    A network learns right labels first. Where it later learns wrong ones by heart, the loss of the
    suspicious rows falls late; a robust loss keeps it up.

    Parameters
    ----------
    dynamics : TrainingDynamics
        ``RobustClassifier(track_dynamics=True).fit(X, y).dynamics_``; rows with nan have no label
        and are left out.
    suspicious : array-like, optional
        Mask of, or numbers of, the rows that are suspected, or known, to be wrong. By default those
        whose area under the margin is negative: averaged over the epochs, the network held another
        class for more probable than the given one. They are chosen by the very curves that are
        drawn, so that their curve starts apart by construction.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        Medians of the ``"suspicious"`` and the ``"other"`` rows; those that there are.
    bands_ : dict of str to matplotlib PolyCollection
        From the 10th to the 90th percentile.
    ax_, figure_ : matplotlib Axes and Figure

    References
    ----------
    Arpit et al. A Closer Look at Memorization in Deep Networks. ICML 2017. arXiv:1706.05394.
    Pleiss, Zhang, Elenberg, Weinberger. Identifying Mislabeled Data using the Area Under the
    Margin Ranking. NeurIPS 2020. arXiv:2001.10528.

    Examples
    --------
    >>> import numpy as np
    >>> from robustclf.noise.dynamics import TrainingDynamics
    >>> from robustclf.plotting import TrainingDynamicsDisplay
    >>> margin = np.array([[1.0, 1.0, -2.0], [3.0, 2.0, -1.0], [4.0, 2.0, 1.0]])
    >>> dynamics = TrainingDynamics(loss=np.log1p(np.exp(-margin)), margin=margin,
    ...                             error_norm=np.exp(-margin), mean_proba=np.full((3, 2), 0.5))
    >>> display = TrainingDynamicsDisplay(dynamics).plot(quantity="margin")
    >>> {name: line.get_ydata().tolist() for name, line in display.lines_.items()}
    {'suspicious': [-2.0, -1.0, 1.0], 'other': [1.0, 2.5, 3.0]}
    """

    def __init__(self, dynamics: TrainingDynamics, suspicious: ArrayLike | None = None) -> None:
        self.dynamics = dynamics
        self.suspicious = suspicious

    def plot(self, ax: Axes | None = None, *, quantity: str = "loss") -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        quantity : {"loss", "margin", "error_norm"}, default="loss"
            Which of the dynamics.

        Returns
        -------
        self : TrainingDynamicsDisplay

        Raises
        ------
        ValueError
            For an unknown quantity, or suspicious rows that are none of those recorded.
        """
        check_known("quantity", [quantity], QUANTITIES)
        values = getattr(self.dynamics, quantity)
        n_epochs, n_samples = values.shape
        mask = row_mask(self.suspicious, n_samples, "suspicious")
        if mask is None:
            mask = self.dynamics.aum() < 0
        labelled = ~np.isnan(values).any(axis=0)
        ax = self._take_axes(ax)
        epochs = np.arange(1, n_epochs + 1)
        self.lines_, self.bands_ = {}, {}
        for name, rows in {"suspicious": mask & labelled, "other": ~mask & labelled}.items():
            if rows.any():
                low, median, high = np.percentile(values[:, rows], [BAND[0], 50, BAND[1]], axis=1)
                [line] = ax.plot(epochs, median, color=COLORS[name])
                line.set_label(f"{name} rows ({rows.sum()})")
                self.lines_[name] = line
                self.bands_[name] = ax.fill_between(
                    epochs, low, high, color=COLORS[name], alpha=0.2, linewidth=0
                )
        ax.set(xlabel="epoch", ylabel=QUANTITIES[quantity], xlim=(1, max(n_epochs, 2)))
        legend_above(ax, f"median and {BAND[0]}-{BAND[1]} % band")
        plain(ax)
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        suspicious: ArrayLike | None = None,
        quantity: str = "loss",
        ax: Axes | None = None,
    ) -> Self:
        """Draw what a fit with ``track_dynamics=True`` recorded.

        Parameters
        ----------
        estimator : RobustClassifier
            Fitted.
        suspicious : array-like, optional
            Mask of, or numbers of, suspicious rows; by default those with a negative area under the
            margin.
        quantity : {"loss", "margin", "error_norm"}, default="loss"
            Which of the dynamics.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        display : TrainingDynamicsDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If it recorded nothing.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(estimator)
        if not hasattr(estimator, "dynamics_"):
            raise ValueError(
                f"{estimator!r} has no dynamics_: fit RobustClassifier(track_dynamics=True)."
            )
        return cls(estimator.dynamics_, suspicious).plot(ax, quantity=quantity)
