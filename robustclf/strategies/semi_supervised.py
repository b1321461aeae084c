"""Strategies that guess the labels of rows without one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch
from robustclf.strategies._unlabelled import SemiSupervised, with_guesses
from robustclf.strategies.adversarial import evaluating
from robustclf.strategies.relabelling import one_hot, predicted

MOMENTUM = 0.99  # of the share of certain rows, over the steps


@torch.no_grad()
def own_predictions(net: Any, batch: Batch) -> Tensor:
    """Return what each network predicts for the unmixed rows, ``(member, sample, class)``."""
    x = batch.x if batch.mixing is None else batch.mixing.x
    with evaluating(net.module_):
        return predicted(net, net.module_(x).to(batch.weight.dtype))


def shrink(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Remove the classes next to the most probable one until that is certain.

    Parameters
    ----------
    p : Tensor of shape (..., class)
        Probabilities.
    threshold : float
        What the most probable class has to reach among the classes that are left.

    Returns
    -------
    removed : bool Tensor of shape (..., class)
        Those of rank 2 to k, with the smallest k that suffices.
    reached : bool Tensor of shape (...)
        Whether one suffices that leaves another class.

    Examples
    --------
    >>> import torch
    >>> p = torch.tensor([[0.5, 0.01, 0.4, 0.09], [0.25, 0.25, 0.25, 0.25]])
    >>> shrink(p, threshold=0.9)
    (tensor([[False, False,  True,  True],
            [False,  True,  True, False]]), tensor([ True, False]))
    """
    n_classes = p.shape[-1]
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    left = ranked.flip(-1).cumsum(-1).flip(-1)[..., 2:]
    top = ranked[..., :1]
    short = (top < threshold * (top + left)).sum(-1, keepdim=True)
    last = (1 + short).clamp_max(n_classes - 2)
    rank = torch.arange(n_classes, device=p.device)
    removed = torch.zeros_like(p, dtype=torch.bool)
    removed = removed.scatter(-1, order, (rank >= 1) & (rank <= last))
    return removed, short.squeeze(-1) < n_classes - 2


@STRATEGIES.register("pseudo_label")
class PseudoLabel(SemiSupervised):
    r"""Train rows without label on what the network is certain they are.

    .. math::
        t_j = e_c, \quad c = \arg\max_k p_{jk}, \qquad
        w_j = \lambda\, u_j\, \mathbf 1\{p_{jc} \ge \text{threshold}\}

    for a row j without label. p is what the network predicts without dropout for the row as it
    comes to this strategy, and :math:`u_j` scales the mean over these rows to that over the rows
    with a label. Strategies after it in the list (``"feature_noise"``, ``"feature_swap"``,
    ``"mixup"``) change or mix the rows, so that ``["pseudo_label", "feature_noise"]`` is FixMatch:
    the guess is of the given row, the step of the changed one. Each network guesses for itself.

    With ``form="shrink"`` a row below the threshold counts too. Of its classes, those of rank 2
    to k are removed, with the smallest k that lets the most probable of the rest reach the
    threshold, and

    .. math::
        w_j = \lambda\, u_j\, p_{jc}\, r

    with the loss of a network that knows the remaining classes alone; r is the share of the rows
    without label that reach the threshold with all classes.

    Parameters
    ----------
    threshold : float, default=0.95
        Probability from which a guess counts, in [0, 1]. Published: 0.95 (CIFAR), 0.7 (ImageNet).
    lam : float, default=1.0
        Weight of the mean over the rows without label, non-negative.
    form : {"fixed", "shrink"}, default="fixed"
        Whether a row below the threshold is left out, or learns a shrunk class space.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Nothing is guessed in the fit's warm-up. The removed classes get a logit so low that they have
    no probability: with a loss of p_y alone, such as ``"ce"`` and ``"gce"``, that is the loss on
    the remaining classes; a normalised loss still counts them. A mixed row keeps the classes that
    one of its two rows keeps, so with ``"mixup"`` the fixed form is the better one; a class with a
    part of the target stays too. With two classes nothing is left to tell apart, and both forms
    are the same. Published ShrinkMatch gives the shrunk loss a head of its own and averages r over
    a million steps with momentum 0.999, here 0.99.

    A confident mistake confirms itself: with few labels of which many are wrong, and where classes
    touch, this can be worse than leaving the rows out (20 labels of breast cancer, a fifth wrong:
    accuracy .69 before, .67 after; 130 of digits: .77 and .81).

    What a strategy before it in the list guessed is kept, unless the rows are mixed: then both
    guesses count. Strategies that weigh rows by the losses of a batch see a guessed label as any
    other; those that remember the losses of rows, such as ``"small_loss"``, take it for clean.

    References
    ----------
    Lee. Pseudo-Label. ICML 2013 workshop. Sohn et al. FixMatch: Simplifying Semi-Supervised
    Learning with Consistency and Confidence. NeurIPS 2020. arXiv:2001.07685. Yang et al. Shrinking
    Class Space for Enhanced Certainty in Semi-Supervised Learning. ICCV 2023. arXiv:2308.06777.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> some = y.copy()
    >>> some[y.argsort() % 10 != 0] = -1  # a tenth has a label
    >>> clf = RobustClassifier(loss="ce", strategy="pseudo_label", random_state=0).fit(X, some)
    >>> clf.score(X, y) > 0.9
    True
    """

    def __init__(self, threshold: float = 0.95, lam: float = 1.0, form: str = "fixed") -> None:
        self.threshold = threshold
        self.lam = lam
        self.form = form

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("threshold", self.threshold, "[0, 1]")
        check_range("lam", self.lam, "[0, inf)")
        check_known("form of strategy 'pseudo_label'", [self.form], ["fixed", "shrink"])

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with no certain rows."""
        super().on_train_begin(net, X, y, **kwargs)
        self.certain_ = self.seen_ = X.weight.new_zeros(net.n_stacked, 1)

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Give the rows without label targets and weights, ``(member, sample)``."""
        self.removed_ = None
        if self.unlabelled_ is None or net.warming:
            return batch
        p = own_predictions(net, batch)
        weight = self.lam * self.unlabelled_.index_select(1, batch.index).expand(p.shape[:-1])
        if batch.mixing is None:
            weight = weight * (batch.weight == 0)
        confidence, label = p.max(-1)
        certain = confidence >= self.threshold
        factor = certain.to(p)
        if self.form == "shrink":
            removed, reached = shrink(p, self.threshold)
            share = self._share_of(certain, weight)
            factor = torch.where(certain, 1.0, confidence * share * reached)
            self.removed_ = removed & (reached & ~certain & (weight > 0)).unsqueeze(-1)
        return with_guesses(batch, one_hot(label, p), weight * factor)

    def _share_of(self, certain: Tensor, weight: Tensor) -> Tensor:
        """Return the running share of certain rows, ``(member, 1)``."""
        self.certain_ = MOMENTUM * self.certain_ + (weight * certain).sum(-1, keepdim=True)
        self.seen_ = MOMENTUM * self.seen_ + weight.sum(-1, keepdim=True)
        share: Tensor = self.certain_ / self.seen_.clamp_min(torch.finfo(weight.dtype).tiny)
        return share

    def observe(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return logits that leave the removed classes no probability."""
        removed = self.removed_
        if removed is None:
            return logits
        if batch.mixing is not None:
            removed = batch.mixing((~removed).to(logits.dtype)) == 0
        removed = removed & (batch.distribution(logits.shape[-1]) == 0)
        top = logits.detach().masked_fill(removed, -torch.inf).amax(-1, keepdim=True)
        floor = top + 2 * math.log(torch.finfo(logits.dtype).eps)
        return torch.where(removed, floor, logits)
