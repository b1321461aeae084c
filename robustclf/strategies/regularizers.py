"""Strategies that add a penalty on predictions or parameters."""

from __future__ import annotations

import math
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

    stackable = True

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


@STRATEGIES.register("entropy")
class MeanEntropy(Strategy):
    r"""Keep the mean prediction of a batch away from a few classes.

    .. math:: R = \lambda \left( \log K + \sum_c \bar p_c \log \bar p_c \right), \qquad
              \bar p = \sum_i w_i p_i \Big/ \sum_i w_i

    R is :math:`\lambda` times the divergence of :math:`\bar p` from the uniform distribution over
    K classes: 0 for a balanced batch prediction and :math:`\lambda \log K` if all rows get the same
    class. It is made for asymmetric noise, which makes some labels too frequent.

    Parameters
    ----------
    lam : float, default=0.1
        Strength, non-negative. Published, beside losses whose weights sum to about 10: 2
        (CIFAR-10), 0.01 (CIFAR-100).

    Raises
    ------
    ValueError
        If ``lam`` is negative.

    Notes
    -----
    The mean is weighted, and rows of weight 0 (the held-out fold of a member) have no part in it.
    Frequent classes are as unwelcome as over-predicted ones: for unbalanced classes choose a
    small ``lam``, or balance them with ``class_weight``. In the tables of the benchmark, whose
    classes are about equally frequent, it changes next to nothing.

    References
    ----------
    Ye et al. Active Negative Loss: A Robust Framework for Learning with Noisy Labels.
    arXiv:2412.02373.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies import MeanEntropy
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(1, 2), torch.arange(2))
    >>> logits = torch.tensor([[[50.0, 0.0], [0.0, 50.0]], [[50.0, 0.0], [50.0, 0.0]]])
    >>> MeanEntropy(lam=1.0).penalty(None, batch, logits)  # (member, 1)
    tensor([[0.0000],
            [0.6931]])
    """

    stackable = True

    def __init__(self, lam: float = 0.1) -> None:
        self.lam = lam

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` unless lam is a non-negative number."""
        check_range("lam", self.lam, "[0, inf)")

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each member, ``(member, 1)``."""
        tiny = torch.finfo(logits.dtype).tiny
        total = batch.weight.sum(-1, keepdim=True)
        weight = (batch.weight / total.clamp_min(tiny)).unsqueeze(-1)
        p = (weight * logits.softmax(-1)).sum(-2)  # (member, class)
        negative_entropy = (p * p.clamp_min(tiny).log()).sum(-1, keepdim=True)
        # a member that trains on no row of this batch has nothing to answer for
        return self.lam * (math.log(logits.shape[-1]) + negative_entropy) * (total > 0)


@STRATEGIES.register("l1")
class L1(Strategy):
    r"""Penalise the absolute size of all parameters of the network.

    .. math:: R = \lambda \sum_j \lvert \theta_j \rvert

    The sum is over weights, biases and embeddings, for each member its own.

    Parameters
    ----------
    lam : float, default=5e-5
        Strength, non-negative. Published with ANL: 1e-6 (MNIST), 5e-5 (CIFAR-10), 5e-7 (CIFAR-100),
        5e-6 (WebVision).

    Raises
    ------
    ValueError
        If ``lam`` is negative.

    Notes
    -----
    It takes the place of the weight decay: fit with ``weight_decay=0``, as the authors of ANL do.
    Parameters that a loss learns are not penalised.

    References
    ----------
    Ye et al. Active Negative Loss Functions for Learning with Noisy Labels. NeurIPS 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import L1
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", strategy=L1(1e-4), weight_decay=0, random_state=0)
    >>> clf = clf.fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    needs = ("network",)

    def __init__(self, lam: float = 5e-5) -> None:
        self.lam = lam

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` unless lam is a non-negative number."""
        check_range("lam", self.lam, "[0, inf)")

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each member, ``(member, 1)``."""
        shared = logits.new_zeros(net.n_stacked)
        own = [shared.new_zeros(()) for _ in shared]
        for name, p in net.module_.named_parameters():
            if name.startswith("body.members."):  # one module per member, not one stack
                member = int(name.split(".")[2])
                own[member] = own[member] + p.abs().sum()
            else:
                shared = shared + p.abs().flatten(1).sum(1)
        return self.lam * (shared + torch.stack(own)).unsqueeze(-1)


@STRATEGIES.register("group_lasso")
class GroupLasso(Strategy):
    r"""Penalise the weights of each input together, so that inputs that do not help are left out.

    .. math:: R = \lambda \sum_j \lVert W_{j \cdot} \rVert_2

    with :math:`W_{j \cdot}` the weights that lead from input j to the first layer, for each member
    its own. On tables of many inputs of which few matter, a network without it memorises wrong
    labels through those that do not.

    Parameters
    ----------
    lam : float, default=0.03
        Strength, non-negative. Meant for standardised inputs.

    Raises
    ------
    ValueError
        If ``lam`` is negative, or at the fit if the module is not one of this package.

    Notes
    -----
    The subgradient brings the norms near zero, not to it, as a proximal step would.

    References
    ----------
    Scardapane, Comminiello, Hussain, Uncini. Group Sparse Regularization for Deep Neural Networks.
    Neurocomputing 2017. arXiv:1607.00485.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", strategy="group_lasso", random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    needs = ("network",)

    def __init__(self, lam: float = 0.03) -> None:
        self.lam = lam

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` unless lam is a non-negative number."""
        check_range("lam", self.lam, "[0, inf)")

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each member, ``(member, 1)``."""
        first = next((p for p in net.module_.body.parameters() if p.ndim == 3), None)
        if first is None or first.shape[0] != net.n_stacked:
            raise ValueError(
                "strategy 'group_lasso' penalises the first layer of a module of this package, "
                f"such as 'mlp'; got {type(net.module_.body).__name__}."
            )
        norms: Tensor = first.norm(dim=2)
        return self.lam * norms.sum(1, keepdim=True)
