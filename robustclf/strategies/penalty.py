"""Strategies that add a penalty to the loss."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy


@STRATEGIES.register("elr")
class EarlyLearningRegularization(Strategy):
    r"""Hold each prediction to the running average of its own early predictions.

    .. math::
        R_i = \lambda \log(1 - \langle t_i, p_i \rangle), \qquad
        t_i \leftarrow \beta t_i + (1 - \beta)\, p_i

    :math:`t_i` starts at zero and is updated after each step; no gradient flows through it.
    Probabilities are kept in [1e-4, 1 - 1e-4] and renormalised, as published.

    Parameters
    ----------
    lam : float, default=3.0
        Strength of the penalty, non-negative. Published: 3 (CIFAR-10), 7 (CIFAR-100).
    beta : float, default=0.7
        Momentum of the running average, in [0, 1). Published: 0.7 (CIFAR-10), 0.9 (CIFAR-100).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Warns
    -----
    UserWarning
        With a bounded loss, on which the penalty can outweigh the labels; ELR is made for
        ``loss="ce"``.

    Notes
    -----
    The objective falls below zero (down to ``lam * log(1e-4)``), so its value says nothing about
    the fit. After mixup the penalty uses the mixed averages, and the averages themselves are
    updated from the unmixed rows, as in ELR+.

    References
    ----------
    Liu et al. Early-Learning Regularization Prevents Memorization of Noisy Labels. NeurIPS 2020.
    arXiv:2007.00151.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="ce", strategy="elr", random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, lam: float = 3.0, beta: float = 0.7) -> None:
        self.lam = lam
        self.beta = beta

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lam", self.lam, "[0, inf)")
        check_range("beta", self.beta, "[0, 1)")
        if loss.bounded:
            warnings.warn(
                f"strategy 'elr' outweighs the labels on a bounded loss such as {loss!r}; "
                "it is made for loss='ce'. A smaller strategy__lam helps.",
                UserWarning,
                stacklevel=2,
            )

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Forget the averages: they belong to the rows of one fit."""
        self.average_ = X.weight.new_zeros((net.n_stacked, len(X.y), net.n_classes))

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Free the averages: a fitted model holds nothing per training row."""
        del self.average_

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each sample, ``(member, sample)``."""
        average = self.average_[:, batch.index]
        if batch.mixing is not None:
            average = batch.mixing(average)
        agreement = (average * _clipped_softmax(logits)).sum(-1)
        return batch.weight * self.lam * torch.log1p(-agreement)

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **kw: Any) -> None:
        """Update the averages with the predictions of this step."""
        if not training:
            return
        logits = kw["y_pred"]
        if batch.mixing is not None:
            with torch.no_grad():
                logits = net.module_(batch.mixing.x)
        p = _clipped_softmax(logits.detach())
        self.average_[:, batch.index] = torch.lerp(p, self.average_[:, batch.index], self.beta)


def _clipped_softmax(logits: Tensor) -> Tensor:
    p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
    return p / p.sum(-1, keepdim=True)
