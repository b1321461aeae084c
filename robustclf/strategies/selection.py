"""Strategies that leave out the rows a network finds hard: by their loss or their error norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies._memory import LossMemory, StepLosses
from robustclf.strategies.relabelling import predicted


class LossMixture(LossMemory):
    """Base of the strategies that fit a mixture of two normals to the last loss of each row."""

    warm_up: int

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with no losses and clean rows."""
        super().on_train_begin(net, X, y, **kwargs)
        self.clean_ = torch.ones_like(self.loss_)

    def on_epoch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Fit the mixture to the losses of the last epoch."""
        if net.epoch >= self.warm_up:
            self.clean_ = self.posterior()

    def posterior(self) -> Tensor:
        """Return the posterior of the low component, ``(member, row)``."""
        return posterior_of_low(self.loss_)


def posterior_of_low(loss: Tensor) -> Tensor:
    """Return the posterior of the low one of two components, of losses scaled to [0, 1].

    Losses, ``(member, row)``, that are nan have no part in the mixture and get 1.
    """
    known = ~loss.isnan()
    low = loss.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
    high = loss.masked_fill(~known, -torch.inf).amax(-1, keepdim=True)
    scaled = (loss - low) / (high - low).clamp_min(torch.finfo(loss.dtype).tiny)
    fitted = TwoNormals.fit(scaled, known.to(loss), floor=5e-4)
    return torch.where(known, fitted.posterior_of_low(scaled), 1.0)


@STRATEGIES.register("small_loss")
class SmallLoss(StepLosses, LossMixture):
    r"""Weigh a row by how likely its last loss belongs to the lower of two normal components.

    From epoch ``warm_up`` on, a two-component mixture is fitted once per epoch to the last losses
    of all rows, scaled to [0, 1]; row i gets

    .. math:: w_i \propto P(\text{low} \mid \ell_i)
        = \frac{\pi_0\, N(\ell_i; \mu_0, \sigma_0^2)}{\sum_c \pi_c\, N(\ell_i; \mu_c, \sigma_c^2)},
        \qquad \mu_0 \le \mu_1

    or, with ``weights="hard"``, weight 1 if that reaches ``threshold`` and else 0.

    Parameters
    ----------
    threshold : float, default=0.5
        Smallest posterior probability of a row that ``weights="hard"`` keeps, in [0, 1]. Published:
        0.5 (DivideMix), 0.05 (PLS).
    warm_up : int, default=10
        Epochs that train on all rows first, at least 1. Published: 10 (CIFAR-10), 30 (CIFAR-100).
    weights : {"posterior", "hard"}, default="posterior"

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    This is the selection step of DivideMix alone, without its semi-supervised part. The losses are
    those of the training steps, where the published code spends another pass over the rows; of
    mixed batches the unmixed rows are passed again. Each member has its own mixture, and the mean
    weight of a batch stays what it was. A row of weight 0, or without label, has no part in the
    mixture.

    References
    ----------
    Li, Socher, Hoi. DivideMix: Learning with Noisy Labels as Semi-supervised Learning. ICLR 2020.
    arXiv:2002.07394. As weights: Albert et al. Is your noise correction noisy? PLS: Robustness to
    label noise with two stage detection. WACV 2023. arXiv:2210.04578.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import SmallLoss
    >>> strategy = SmallLoss()
    >>> strategy.loss_ = torch.tensor([[0.1, 0.2, 0.1, 0.2, 3.0, 2.8]])  # (member, row)
    >>> strategy.posterior().round(decimals=2)
    tensor([[1., 1., 1., 1., 0., 0.]])
    """

    stackable = True

    def __init__(
        self, threshold: float = 0.5, warm_up: int = 10, weights: str = "posterior"
    ) -> None:
        self.threshold = threshold
        self.warm_up = warm_up
        self.weights = weights

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("threshold", self.threshold, "[0, 1]")
        check_integer("warm_up", self.warm_up, "[1, inf)")
        check_known("weights", [self.weights], ["posterior", "hard"])

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return the weights by the mixture of this epoch, ``(member, sample)``."""
        weight, clean = super().weigh(net, batch, loss), self.clean_[:, batch.index]
        if self.weights == "hard":
            clean = (clean >= self.threshold).to(clean)
        if batch.mixing is not None:
            clean = batch.mixing(clean.unsqueeze(-1)).squeeze(-1)
        return with_total_of(weight, weight * clean)


@STRATEGIES.register("error_norm")
class ErrorNormTruncation(Strategy):
    r"""Leave out the rows whose prediction is far from their label.

    .. math:: w_i = \mathbf 1\{\lVert p_i - t_i \rVert_2 \le \theta\}

    with p the predicted and t the given distribution over classes. Unlike the loss, the norm also
    reads how p is spread over the other classes: it is large, at most :math:`\sqrt 2`, where the
    network is sure of another class.

    Parameters
    ----------
    threshold : float, default=1.1
        Largest norm of a row that is kept, in (0, 2); that of the uniform prediction is below 1.
        The published code asks for one.
    fraction : float or None, default=None
        Share of the rows of a batch left out, in [0, 1): those of the largest norm, instead of
        those beyond ``threshold``.
    start_epoch : int, default=5
        First epoch, from 0, that leaves rows out.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    As published, the mean still divides by all rows: leaving many out makes a smaller step. The
    published fraction is of a running window of tokens; here it is of the batch, whose rows of
    weight 0 are not counted.

    References
    ----------
    Li et al. Error Norm Truncation: Robust Training in the Presence of Data Noise for Text
    Generation Models. ICLR 2024. arXiv:2310.00840.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies.selection import error_norm
    >>> p = torch.tensor([[[0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]])
    >>> batch = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=int), torch.ones(1, 3),
    ...               torch.arange(3))
    >>> error_norm(p, batch)
    tensor([[0.1414, 1.2247, 1.4142]])
    """

    stackable = True

    def __init__(
        self, threshold: float = 1.1, fraction: float | None = None, start_epoch: int = 5
    ) -> None:
        self.threshold = threshold
        self.fraction = fraction
        self.start_epoch = start_epoch

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("threshold", self.threshold, "(0, 2)")
        check_integer("start_epoch", self.start_epoch, "[0, inf)")
        if self.fraction is not None:
            check_range("fraction", self.fraction, "[0, 1)")

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return weights that are 0 for the rows left out, ``(member, sample)``."""
        assert batch.logits is not None
        norm = error_norm(predicted(net, batch.logits), batch)
        weight = batch.weight.expand_as(norm)
        if net.epoch < self.start_epoch:
            return weight
        if self.fraction is None:
            return weight * (norm <= self.threshold)
        return smallest(norm, weight, 1 - self.fraction)


def error_norm(proba: Tensor, batch: Batch) -> Tensor:
    """Return the distance of the probabilities to the targets, ``(member, sample)``."""
    norm: Tensor = (proba - batch.distribution(proba.shape[-1])).norm(dim=-1)
    return norm


def smallest(loss: Tensor, weight: Tensor, share: float) -> Tensor:
    """Return the weights, ``(member, sample)``, of the share of rows with the smallest loss.

    The others get 0. Rows of weight 0 are not counted, and a fraction of a row is one more.
    """
    rank = loss.masked_fill(weight == 0, torch.inf).argsort(-1).argsort(-1)
    kept = torch.ceil(share * (weight > 0).sum(-1, keepdim=True) - 1e-3)  # .6 of 25: no 16th row
    return weight * (rank < kept)


def with_total_of(weight: Tensor, selected: Tensor) -> Tensor:
    """Scale the selected weights, ``(member, sample)``, to the total of those before."""
    total = selected.sum(-1, keepdim=True).clamp_min(torch.finfo(selected.dtype).tiny)
    return selected * (weight.sum(-1, keepdim=True) / total)


class TwoNormals(NamedTuple):
    """Mixtures of two normal distributions, one per member; the lower mean comes first."""

    mean: Tensor  # (member, 2), as the others
    variance: Tensor
    share: Tensor

    @classmethod
    def fit(
        cls,
        x: Tensor,
        weight: Tensor,
        floor: float,
        n_iter: int = 10,
        start: TwoNormals | None = None,
    ) -> TwoNormals:
        """Fit by expectation maximisation, from two means; starts and ends the same every time.

        Parameters
        ----------
        x, weight : Tensor of shape (member, sample)
            Values of weight 0 may be anything.
        floor : float
            Added to the variances.
        n_iter : int, default=10
        start : TwoNormals, optional
            Goes on from there instead.
        """
        x = torch.where(weight > 0, x, 0.0)
        weight = with_total_of(torch.ones_like(weight[:, :1]), weight)
        centre = (weight * x).sum(-1, keepdim=True)
        x = x - centre
        powers = _powers(x)
        spread = (weight.unsqueeze(-2) @ powers)[..., 2]
        if start is None:
            cut = torch.zeros_like(centre)
            for _ in range(3):
                fitted = cls._of(weight * (x <= cut), weight, powers, spread, floor)
                cut = fitted.mean.mean(-1, keepdim=True)
        else:
            fitted = start._replace(mean=start.mean - centre)
        for _ in range(n_iter):
            fitted = cls._of(weight * fitted._posterior(powers), weight, powers, spread, floor)
        order = fitted.mean.argsort(dim=-1, stable=True)
        mean, variance, share = (values.gather(-1, order) for values in fitted)
        return cls(mean + centre, variance, share)

    @classmethod
    def _of(cls, low: Tensor, all_: Tensor, powers: Tensor, spread: Tensor, floor: float) -> Any:
        """Return the moments of the values low and high; those of all values for an empty part."""
        share, first, second = (torch.stack([low, all_ - low], -2) @ powers).unbind(-1)
        tiny = 10 * torch.finfo(share.dtype).eps
        mean = first / (share + tiny)
        variance = (second + tiny * spread) / (share + tiny) - mean * mean
        return cls(mean, variance.relu() + floor, share)

    def posterior_of_low(self, x: Tensor) -> Tensor:
        """Return the probability that ``x``, ``(member, sample)``, is of the low component."""
        return self._posterior(_powers(x))

    def _posterior(self, powers: Tensor) -> Tensor:
        share = self.share.clamp_min(torch.finfo(self.share.dtype).tiny)
        slope = self.mean / self.variance
        constant = (share / self.variance.sqrt()).log() - 0.5 * self.mean * slope
        low, high = torch.stack([constant, slope, -0.5 / self.variance], -2).unbind(-1)
        return (powers @ (low - high).unsqueeze(-1)).squeeze(-1).sigmoid()  # of the log odds


def _powers(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, x * x], -1)
