"""Strategies that divide the rows into clean and noisy ones and guess the labels of the noisy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch
from robustclf.strategies.adversarial import evaluating
from robustclf.strategies.relabelling import predicted
from robustclf.strategies.selection import LossMixture, posterior_of_low


class Division(LossMixture):
    """Edit targets and weights before the step, from predictions without dropout."""

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Return the batch with the labels of this epoch's division."""
        if batch.mixing is not None:
            raise ValueError(
                f"{self!r} divides rows as they are, got mixed ones: list it before strategies "
                "that mix rows."
            )
        with torch.no_grad(), evaluating(net.module_):
            logits = net.module_(batch.x).to(batch.weight.dtype)
            target = batch.distribution(net.n_classes)
            self.remember(batch.index, net.criterion_(logits, target))
            p = predicted(net, logits)
            target, factor = self.divide(net, batch, target.expand_as(p), p)
        return replace(batch, target=target, weight=batch.weight * factor)

    def divide(self, net: Any, batch: Batch, target: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return targets ``(member, sample, class)`` and factors of weights ``(member, sample)``.

        From targets and predictions, both ``(member, sample, class)``.
        """
        raise NotImplementedError


@STRATEGIES.register("co_divide")
class CoDivide(Division):
    r"""Two networks divide the rows for each other and guess the labels of the noisy ones together.

    From epoch ``warm_up`` on, with :math:`c_i` the probability of the low component of the *peer's*
    losses (see :class:`SmallLoss`), p the network's prediction and :math:`\bar p` that of the pair,

    .. math::
        t_i \leftarrow \mathrm{sharpen}\begin{cases}
        c_i t_i + (1 - c_i)\, p_i & c_i \ge \tau \quad \text{(co-refinement)} \\
        \bar p_i & \text{else} \quad \text{(co-guessing)} \end{cases}
        \qquad \mathrm{sharpen}(t)_k = t_k^{1/T} \Big/ \sum_j t_j^{1/T} ,

    and the noisy rows, those of the second line, weigh :math:`\lambda_u`.

    Parameters
    ----------
    threshold : float, default=0.5
        tau, in [0, 1].
    T : float, default=0.5
        Temperature of the sharpening, positive.
    lam_u : float, default=1.0
        Weight of the noisy rows, non-negative. Published, for a squared error: 25, and 0 for
        asymmetric noise.
    ramp_up : int, default=16
        Epochs in which that weight grows from 0, after the warm-up.
    warm_up : int, default=10
        Epochs that train on the given labels, at least 1.

    Raises
    ------
    ValueError
        If a parameter is out of range, or if the rows were mixed before.

    Notes
    -----
    With mixup after it, this is DivideMix (recipe ``"dividemix"``). The loss of the fit takes the
    place of the squared error on noisy rows, and the row itself that of its two augmentations.
    Rows that are learned late look like noisy ones: where the networks know little after the
    warm-up, as on vowel (about 700 rows of 11 classes), it costs more than the noise does.

    References
    ----------
    Li, Socher, Hoi. DivideMix: Learning with Noisy Labels as Semi-supervised Learning. ICLR 2020.
    arXiv:2002.07394.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="ce", strategy=["co_divide", "mixup"], random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.95
    True
    """

    n_members: ClassVar[int] = 2
    needs = ("network",)

    def __init__(
        self,
        threshold: float = 0.5,
        T: float = 0.5,
        lam_u: float = 1.0,
        ramp_up: int = 16,
        warm_up: int = 10,
    ) -> None:
        self.threshold = threshold
        self.T = T
        self.lam_u = lam_u
        self.ramp_up = ramp_up
        self.warm_up = warm_up

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("threshold", self.threshold, "[0, 1]")
        check_range("T", self.T, "(0, inf)")
        check_range("lam_u", self.lam_u, "[0, inf)")
        check_integer("ramp_up", self.ramp_up, "[0, inf)")
        check_integer("warm_up", self.warm_up, "[1, inf)")

    def divide(self, net: Any, batch: Batch, target: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Refine the labels of the clean rows and guess those of the noisy ones."""
        since = net.epoch - self.warm_up
        if since < 0:
            return target, torch.ones_like(p[..., 0])
        pairs = self.clean_[:, batch.index].unflatten(0, (-1, 2))
        clean = pairs.flip(1).flatten(0, 1)
        guess = p.unflatten(0, (-1, 2)).mean(1, keepdim=True).expand(-1, 2, -1, -1).flatten(0, 1)
        is_clean = clean >= self.threshold
        c = clean.unsqueeze(-1)
        label = torch.where(is_clean.unsqueeze(-1), c * target + (1 - c) * p, guess)
        lam_u = self.lam_u * (min(since / self.ramp_up, 1) if self.ramp_up else 1)
        return sharpened(label, self.T), torch.where(is_clean, 1.0, lam_u)


@STRATEGIES.register("pls")
class PseudoLossSelection(Division):
    r"""Replace the labels of noisy rows by predictions that are trusted by their own loss.

    A row is noisy if the probability of the low component of the losses (see :class:`SmallLoss`)
    is below ``threshold``. It gets the target and the weight

    .. math::
        t_i \leftarrow \tilde p_i, \quad \tilde p_{ik} = p_{ik}^\gamma \Big/ \sum_j p_{ij}^\gamma,
        \qquad w_i \leftarrow w_i\, P(\text{low} \mid h_i), \quad
        h_i = -\sum_k \tilde p_{ik} \log p_{ik}

    from a second mixture, fitted to the pseudo-losses h of the noisy rows.

    Parameters
    ----------
    threshold : float, default=0.05
        In [0, 1].
    gamma : float, default=2.0
        Exponent that sharpens predictions, positive.
    warm_up : int, default=10
        Epochs that train on the given labels, at least 1. Published: 30 (CIFAR-100).

    Raises
    ------
    ValueError
        If a parameter is out of range, or if the rows were mixed before.

    Notes
    -----
    The published method averages the predictions of two augmented views, trains with mixup (recipe
    ``"pls"``) and adds a contrastive term, which needs augmentations and is left out.

    References
    ----------
    Albert et al. Is your noise correction noisy? PLS: Robustness to label noise with two stage
    detection. WACV 2023. arXiv:2210.04578.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="ce", strategy=["pls", "mixup"], random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    needs = ("network",)

    def __init__(self, threshold: float = 0.05, gamma: float = 2.0, warm_up: int = 10) -> None:
        self.threshold = threshold
        self.gamma = gamma
        self.warm_up = warm_up

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("threshold", self.threshold, "[0, 1]")
        check_range("gamma", self.gamma, "(0, inf)")
        check_integer("warm_up", self.warm_up, "[1, inf)")

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Forget the losses: they belong to the rows of one fit."""
        super().on_train_begin(net, X, y, **kwargs)
        self.pseudo_loss_ = self.loss_.clone()

    def on_epoch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Fit both mixtures to the losses of the last epoch."""
        super().on_epoch_begin(net, *args, **kwargs)
        noisy = self.clean_ < self.threshold
        self.trust_ = posterior_of_low(self.pseudo_loss_.masked_fill(~noisy, torch.nan))

    def divide(self, net: Any, batch: Batch, target: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Guess the labels of the noisy rows and weigh them."""
        pseudo = sharpened(p, 1 / self.gamma)
        loss = -(pseudo * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)
        self.pseudo_loss_[:, batch.index] = loss
        noisy = self.clean_[:, batch.index] < self.threshold
        trust = torch.where(noisy, self.trust_[:, batch.index], 1.0)
        return torch.where(noisy.unsqueeze(-1), pseudo, target), trust


def sharpened(p: Tensor, T: float) -> Tensor:
    """Raise distributions, over the last axis, to the power ``1 / T`` and normalise them."""
    peak = p.amax(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    power: Tensor = (p / peak) ** (1 / T)
    return power / power.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
