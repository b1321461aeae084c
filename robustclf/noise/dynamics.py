"""What the rows of a fit went through: their losses and margins, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class TrainingDynamics:
    r"""Losses and margins of every row at every epoch, by networks that train on the row.

    ``RobustClassifier(track_dynamics=True).fit(X, y).dynamics_`` holds one. Wrong labels are
    learned late: averaged over the epochs, the loss of their rows is high and the margin low.

    Attributes
    ----------
    loss : ndarray of shape (n_epochs, n_samples)
        :math:`-\log p_y` of the given label y, in nats.
    margin : ndarray of shape (n_epochs, n_samples)
        Logit of the given label minus the largest other one, :math:`z_y - \max_{k \ne y} z_k`.
    error_norm : ndarray of shape (n_epochs, n_samples)
        :math:`\lVert p - e_y \rVert_2`, between 0 and :math:`\sqrt 2`.
    mean_proba : ndarray of shape (n_samples, n_classes)
        Probabilities, averaged over the networks and the epochs. With cross-fitting an epoch counts
        by its accuracy on the given labels out of fold, :math:`\exp(-4 \Delta)` where that is
        :math:`\Delta` standard errors (at most :math:`1 / 2 \sqrt n`) below the best: what came
        after wrong labels were learned is left out.

    References
    ----------
    Pleiss, Zhang, Elenberg, Weinberger. Identifying Mislabeled Data using the Area Under the
    Margin Ranking. NeurIPS 2020. arXiv:2001.10528. Toneva et al. An Empirical Study of Example
    Forgetting during Deep Neural Network Learning. ICLR 2019. arXiv:1812.05159. Paul, Ganguli,
    Dziugaite. Deep Learning on a Data Diet. NeurIPS 2021. arXiv:2107.07075.

    Examples
    --------
    >>> import numpy as np
    >>> margin = np.array([[1.0, -2.0], [3.0, -1.0], [-1.0, 2.0]])
    >>> dynamics = TrainingDynamics(loss=np.exp(-margin), margin=margin,
    ...                             error_norm=np.exp(-margin), mean_proba=np.full((2, 2), 0.5))
    >>> dynamics.aum(), dynamics.forgetting()
    (array([ 1.        , -0.33333333]), array([1, 0]))
    """

    loss: NDArray[np.floating]
    margin: NDArray[np.floating]
    error_norm: NDArray[np.floating]
    mean_proba: NDArray[np.floating]

    @property
    def n_epochs(self) -> int:
        """Number of epochs."""
        return len(self.loss)

    def take(self, rows: ArrayLike) -> TrainingDynamics:
        """Return the dynamics of some rows, by numbers or a mask."""
        some = np.asarray(rows)
        parts = (self.loss[:, some], self.margin[:, some], self.error_norm[:, some])
        return TrainingDynamics(*parts, mean_proba=self.mean_proba[some])

    def without(self, rows: NDArray[np.bool_]) -> TrainingDynamics:
        """Return the dynamics with nan for the masked rows: those without a label."""
        parts = (self.loss, self.margin, self.error_norm, self.mean_proba.T)
        loss, margin, error_norm, proba = (np.where(rows, np.float32(np.nan), a) for a in parts)
        return TrainingDynamics(loss, margin, error_norm, proba.T)

    def aum(self) -> NDArray[np.floating]:
        """Return the area under the margin of each row: the mean over the epochs."""
        area: NDArray[np.floating] = self.margin.mean(axis=0)
        return area

    def el2n(self, n_epochs: int | None = None) -> NDArray[np.floating]:
        """Return the mean error norm of each row over the first epochs, by default all."""
        norm: NDArray[np.floating] = self.error_norm[:n_epochs].mean(axis=0)
        return norm

    def forgetting(self) -> NDArray[np.intp]:
        """Return how often each row was right in one epoch and wrong in the next.

        A row that never was right counts as forgotten in every epoch.
        """
        right = self.margin > 0
        events = (right[:-1] & ~right[1:]).sum(axis=0)
        return np.where(right.any(axis=0), events, self.n_epochs)
