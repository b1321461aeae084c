"""Optimised gradient clipping: a limit on the slope of the loss that moves with training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustclf.losses import Loss
from robustclf.losses._base import log_softmax
from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.selection import TwoNormals

P_MIN = 1e-7  # probabilities of the label are taken to lie in [P_MIN, 1 - P_MIN]
LOWEST, HIGHEST = -math.log1p(-P_MIN), -math.log(P_MIN)  # -log p_y lies between them
GRID = 1000  # points that represent a distribution of -log p_y
FINE = 8192  # values of -log p_y at which the weights are known
STEP = (HIGHEST - LOWEST) / (FINE - 1)  # between two of them
FIRST, NEXT = 10, 3  # iterations that fit the mixture; it moves little from fit to fit


@STRATEGIES.register("ogc")
class OptimizedGradientClipping(Strategy):
    r"""Clip the slope of the loss in p_y so that wrong labels pull at most so much harder.

    .. math:: w_i = \min\left(1, \frac{\tau}{|\ell'(p_i)|}\right), \qquad
        \frac{E_{\text{noisy}} \min(|\ell'|, \tau)}{E_{\text{noisy}} 1} \le
        \left(1 + \varepsilon \frac{\eta_t}{\eta_0}\right)
        \frac{E_{\text{clean}} \min(|\ell'|, \tau)}{E_{\text{clean}} 1}

    where :math:`\tau` is the largest limit that keeps the bound, :math:`\eta_t / \eta_0` is the
    learning rate relative to its peak, and clean and noisy are the lower and the higher component
    of a mixture of two normals on the recent values of -log p_y, without their shares. For a loss
    of p_y alone the gradient of the weighted loss is that of the loss made linear below the
    probability at which its slope is :math:`\tau`.

    Parameters
    ----------
    eps : float, default=2.0
        Excess of the bound at the peak of the learning rate, non-negative. The published bound is
        1 + 20 times the learning rate, which starts at 0.1.
    queue_size : int, default=4096
        Recent values of -log p_y that the mixture is fitted to, at least 2; at most the rows of
        the fit. Nothing is clipped before there are so many.
    every : int, default=32
        Steps between two fits of the mixture, at least 1.

    Raises
    ------
    ValueError
        If a parameter is out of range, or if the loss is drawn anew in each step (``"ensloss"``).

    Notes
    -----
    p is the softmax of the logits. The slope of a loss that does not depend on p_y alone is taken
    where the other probabilities are equal, their logits 0: one number for each p_y, so that the
    bound and the weights speak of the same slope. A soft target counts as its most probable class.
    Where the slope vanishes at p_y = 1 (``"focal"``), a bound near 1 brings all weights near 0. The
    weights of a loss of p_y alone are those of the nearest of 8192 values of -log p_y, 0.002 apart:
    for cross entropy they are right to 0.1 %.

    The published search over the threshold stops at 1/1024; here the limit is exact. The mixture is
    fitted with the published 10 iterations at first; later fits go on from the last with 3, which
    comes as near to where more would end. While cross entropy warms up another loss, the queue
    fills and nothing is clipped. Weights are not normalised, since that would undo the clipping; a
    row of weight 0 does not enter the queue.

    References
    ----------
    Ye et al. Optimized Gradient Clipping for Noisy Label Learning. AAAI 2025. arXiv:2412.08941.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import OptimizedGradientClipping
    >>> X, y = load_digits(return_X_y=True)
    >>> noisy = y.copy()
    >>> noisy[::3] = (noisy[::3] + 1) % 10  # a third of the labels is wrong
    >>> clf = RobustClassifier(loss="ce", strategy=OptimizedGradientClipping(), hidden=(64,))
    >>> clf.set_params(max_epochs=20, random_state=0).fit(X, noisy).score(X, y) > 0.8
    True
    """

    stackable = True

    def __init__(self, eps: float = 2.0, queue_size: int = 4096, every: int = 32) -> None:
        self.eps = eps
        self.queue_size = queue_size
        self.every = every

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range or a loss without a slope."""
        check_range("eps", self.eps, "[0, inf)")
        check_integer("queue_size", self.queue_size, "[2, inf)")
        check_integer("every", self.every, "[1, inf)")
        if loss.stochastic:
            raise ValueError(
                f"strategy 'ogc' clips the slope of a loss, but {loss!r} has another one in each "
                "step: use it with a loss that does not draw random numbers, such as 'ce'."
            )

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with an empty queue and no limit."""
        self.queue_: list[tuple[Tensor, Tensor]] = []  # log p_y and weights of recent batches
        self.n_queued_ = 0
        self.length_ = min(self.queue_size, len(X.rows))
        self.limit_ = X.weight.new_full((net.n_stacked, 1), torch.inf)
        self.normals_: TwoNormals | None = None
        self.steps_ = 0

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return weights that clip the slope of each row, ``(member, sample)``."""
        label = batch.target.argmax(-1) if batch.target.is_floating_point() else batch.target
        label = label.expand(loss.shape)
        assert batch.logits is not None
        log_p = log_softmax(batch.logits).gather(-1, label.unsqueeze(-1)).squeeze(-1)
        self._enqueue(log_p, batch.weight.expand_as(log_p))
        if net.warming or self.n_queued_ < self.length_:
            return batch.weight
        if self.steps_ % self.every == 0:
            self._set_limit(net)
        self.steps_ += 1
        if net.criterion_.loss.pointwise:
            return batch.weight * nearest(self.factor_, log_p)
        slopes = slope(net.criterion_.loss, log_p, label, net.n_classes)
        factor: Tensor = (self.limit_ / slopes).clamp_max(1)
        return batch.weight * factor

    def _enqueue(self, log_p: Tensor, weight: Tensor) -> None:
        self.queue_.append((log_p, weight))
        self.n_queued_ += log_p.shape[-1]
        while self.n_queued_ - (oldest := self.queue_[0][0].shape[-1]) >= self.length_:
            self.n_queued_ -= oldest
            del self.queue_[0]

    def _set_limit(self, net: Any) -> None:
        log_p, weight = (torch.cat(parts, -1) for parts in zip(*self.queue_, strict=True))
        recent = slice(-self.length_, None)
        h = -log_p[:, recent].clamp(-HIGHEST, -LOWEST)
        n_iter = FIRST if self.normals_ is None else NEXT
        counts = (weight[:, recent] > 0).to(h)
        self.normals_ = fitted = TwoNormals.fit(h, counts, 1e-3, n_iter, start=self.normals_)
        points = grid(h.double()).expand(len(h), -1)  # float32 has no slopes so near to p = 1
        label = torch.arange(GRID, device=h.device).expand_as(points) % net.n_classes
        slopes = slope(net.criterion_.loss, -points, label, net.n_classes)
        clean, noisy = (
            density(points, fitted.mean[:, [c]], fitted.variance[:, [c]]) for c in (0, 1)
        )
        rate = torch.as_tensor(net.optimizer_.param_groups[0]["lr"] / net.lr).to(points)
        limit = clipping_limit(slopes, clean, noisy, 1 + self.eps * rate.reshape(-1, 1))
        self.limit_ = limit.to(h).clamp_min(torch.finfo(h.dtype).tiny)
        if net.criterion_.loss.pointwise:
            points = grid(h.double(), FINE).expand(len(h), -1)
            slopes = slope(net.criterion_.loss, -points, torch.zeros_like(points), net.n_classes)
            self.factor_ = (self.limit_ / slopes).clamp_max(1).to(h)


def grid(like: Tensor, n: int = GRID) -> Tensor:
    """Return n values of -log p_y that stand for all, of the type of ``like``."""
    return torch.linspace(LOWEST, HIGHEST, n, dtype=like.dtype, device=like.device)


def nearest(values: Tensor, log_p: Tensor) -> Tensor:
    """Return the one of the ``values``, ``(member, FINE)``, that is the nearest to each log p_y.

    Examples
    --------
    >>> import torch
    >>> squares = grid(torch.tensor(0.0), FINE)[None] ** 2
    >>> nearest(squares, torch.tensor([[-2.0, -3.0, -99.0]])).round(decimals=1)
    tensor([[  4.0000,   9.0000, 259.8000]])
    """
    index = torch.rsub(log_p, 0.5 - LOWEST / STEP, alpha=1 / STEP).long()
    return values.gather(-1, index.clamp_(0, FINE - 1))


def density(h: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the share of each of the points ``h`` in a truncated normal distribution."""
    return (-0.5 * (h - mean) ** 2 / variance).softmax(-1)


def slope(loss: Loss, log_p: Tensor, label: Tensor, n_classes: int) -> Tensor:
    """Return the size of the slope in p_y at each log p_y, ``(member, sample)``.

    Examples
    --------
    >>> import torch
    >>> from robustclf import make_loss
    >>> log_p, label = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0, 1]])
    >>> slope(make_loss("ce"), log_p, label, n_classes=3)
    tensor([[2., 4.]])
    >>> slope(make_loss("mae"), log_p, label, n_classes=3)
    tensor([[1., 1.]])
    """
    number = torch.finfo(log_p.dtype)
    log_p = log_p.clamp(math.log(number.tiny), -number.eps).unsqueeze(-1)
    scale = log_p.exp()
    if loss.pointwise:
        with torch.enable_grad():
            z = log_p.requires_grad_()
            value = loss.of(z, z)
    else:  # along the logit of the label, on which p_y depends with slope p_y (1 - p_y)
        q, label = -torch.expm1(log_p), label.unsqueeze(-1)
        z, scale = log_p - q.log() + math.log(n_classes - 1), scale * q
        with torch.enable_grad():
            others = z.requires_grad_().new_zeros((*z.shape[:-1], n_classes))
            value = loss.at_label(others.scatter(-1, label, z), label)
    (gradient,) = torch.autograd.grad(value, z, torch.ones_like(value))
    sizes: Tensor = (gradient / scale).squeeze(-1).abs()
    return sizes


def clipping_limit(slopes: Tensor, clean: Tensor, noisy: Tensor, bound: Tensor) -> Tensor:
    """Return the largest limit on the slopes at which the noisy mean is ``bound`` times the clean.

    Parameters
    ----------
    slopes, clean, noisy : Tensor of shape (..., point)
        Size of the slope at each point, and the share of the point in either distribution.
    bound : Tensor of shape (..., 1)
        At least 1.

    Returns
    -------
    Tensor of shape (..., 1)
        Infinite if no limit is needed.

    Examples
    --------
    >>> import torch
    >>> slopes, half = torch.tensor([1.0, 4.0]), torch.tensor([0.5, 0.5])
    >>> clipping_limit(slopes, torch.tensor([1.0, 0.0]), half, torch.tensor([2.0]))
    tensor([3.])
    """
    slopes, order = slopes.sort(-1)
    shares = torch.stack([noisy.expand_as(slopes), clean.expand_as(slopes)])
    shares = shares.gather(-1, order.expand_as(shares))
    from_here = shares.flip(-1).cumsum(-1).flip(-1)
    noisy_mean, clean_mean = (shares * slopes).cumsum(-1) + slopes * (from_here - shares)
    # between two slopes the means are linear in the limit, and so is their excess
    excess = noisy_mean - bound * clean_mean
    j = (excess > 0).int().argmax(-1, keepdim=True)  # the first, or 0 if there is none
    before = (j - 1).clamp_min(0)
    high, low = excess.gather(-1, j), excess.gather(-1, before)
    part = (-low / (high - low)).clamp(0, 1).nan_to_num(0.0)
    limit = torch.lerp(slopes.gather(-1, before), slopes.gather(-1, j), part)
    return torch.where(excess.amax(-1, keepdim=True) > 0, limit, torch.inf)
