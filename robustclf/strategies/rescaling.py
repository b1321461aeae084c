"""A strategy that learns to weigh the rows while the network learns from them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.relabelling import predicted
from robustclf.strategies.selection import with_total_of

N_SIGNALS = 5


@STRATEGIES.register("meta_rescale")
class MetaRescale(Strategy):
    r"""Learn a function of the network's own signals that weighs the rows (after STORM).

    The rescaler :math:`v_\phi` sees, of each row, the standardised loss, the probability of the
    label, the largest probability, whether that is the label's, and the entropy. Its outputs, in
    (0, 1), are the weights of a step, and after each step it descends the loss that the rows of the
    batch would have after a step with these weights, weighed by them too:

    .. math::
        \min_\phi \sum_j \bar v_j\, \ell(\tilde z_j, t_j), \qquad \bar v_j = \frac{w_j v_\phi(s_j)}
        {\sum_k w_k v_\phi(s_k)}, \qquad \tilde z_j = z_j - \alpha \sum_{i \ne j} \bar v_i\,
        \frac{h_i^\top h_j + 1}{\kappa}\, \frac{\partial \ell(z_i, t_i)}{\partial z_i}

    with z the logits, h the features of the last hidden layer and :math:`\kappa` the mean of
    :math:`h_i^\top h_i + 1`: the logits of row j after a gradient step of the last layer on the
    other rows. No clean row is needed.

    Parameters
    ----------
    lr : float, default=0.005
        Learning rate of the rescaler (Adam), non-negative: with 0 all weights stay. Published:
        0.01, which on clean labels leaves out more of the hard rows.
    step : float, default=10.0
        The length :math:`\alpha` of the step ahead, non-negative, in units of logits.
    hidden : int, default=8
        Units of the hidden layer of the rescaler, at least 1.
    warm_up : int, default=10
        Epochs that train on all rows alike first, at least 0. Published: 0; what a network finds
        easy in its first epochs is a few classes.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Of the paper: a rescaler learned in the same loop, on the model's own losses and predictions;
    one step ahead; validation rows that are noisy training rows, rescaled by the rescaler; the
    gradient both through the step and through the weights of the validation rows. Ours is the rest.
    Published, the signals are means and deviations over passes with dropout, next to those of the
    class; the rescaler is one per class, with normalised units; the step is one of the whole
    network; the validation rows are another batch. Here the step is one of the last layer, whose
    result is known in closed form, and each row is validated on the others; the weights of the
    rows take the place of drawing them. The published code for dialogues divides the rescaled
    validation loss by its own sum, so that the weights cancel; here their own sum divides them.

    In our trials the weights of the validation rows decide what is learned: without a step ahead
    the accuracy is the same, and with nothing else the rescaler may side with the wrong labels. On
    clean labels it leaves out hard rows, as every selection by the loss, and a small network, which
    hardly fits wrong labels, may lose by it. Each member has its own rescaler, and a row of weight
    0 has no part in it. While the fit warms up with the cross entropy nothing is rescaled. A step
    of the default network takes about 1.5 times as long; that of one with 64 units, nearly three
    times.

    References
    ----------
    Heck et al. Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss Rescaling. AAAI
    2025. arXiv:2412.12955.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from robustclf import RobustClassifier
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> rng = np.random.default_rng(0)
    >>> noisy = np.where(rng.random(len(y)) < 0.4, (y + rng.integers(1, 4, len(y))) % 4, y)
    >>> for strategy in (None, "meta_rescale"):
    ...     clf = RobustClassifier(loss="ce", strategy=strategy, max_epochs=30, random_state=0)
    ...     print(round(clf.fit(X, noisy).score(X, y), 1))
    0.9
    1.0
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(
        self, lr: float = 0.005, step: float = 10.0, hidden: int = 8, warm_up: int = 10
    ) -> None:
        self.lr = lr
        self.step = step
        self.hidden = hidden
        self.warm_up = warm_up

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lr", self.lr, "[0, inf)")
        check_range("step", self.step, "[0, inf)")
        check_integer("hidden", self.hidden, "[1, inf)")
        check_integer("warm_up", self.warm_up, "[0, inf)")

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with equal weights."""
        self.rescaler_ = Rescaler(N_SIGNALS, self.hidden, net.n_stacked).to(X.weight)
        self.optimizer_ = torch.optim.Adam(self.rescaler_.parameters(), lr=self.lr)

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return the weights of the rescaler, ``(member, sample)``, and let it learn."""
        if net.warming or net.epoch < self.warm_up:
            return batch.weight
        logits = batch.logits
        assert logits is not None
        with torch.enable_grad():
            value = self.rescaler_(signals(predicted(net, logits), batch, loss))
            share = normalised(batch.weight * value)
            later = self.after_a_step(net, batch, logits, share)
            meta = (share * net.criterion_(later, batch.target)).sum()
        parameters = list(self.rescaler_.parameters())
        gradients = torch.autograd.grad(meta, parameters)  # of nothing that the net learns
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer_.step()
        return share.detach() * batch.weight.sum(-1, keepdim=True)

    def after_a_step(self, net: Any, batch: Batch, logits: Tensor, share: Tensor) -> Tensor:
        """Return the logits of each row after a step of the last layer on the others."""
        z = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net.criterion_(z, batch.target).sum(), z)
        assert batch.features is not None
        h = batch.features.detach().to(logits)
        kernel = h @ h.mT + 1
        own = kernel.diagonal(dim1=-2, dim2=-1)
        size = (normalised(batch.weight) * own).sum(-1, keepdim=True).unsqueeze(-1)
        others = kernel - torch.diag_embed(own)
        scale = self.step / size.clamp_min(torch.finfo(size.dtype).tiny)
        later: Tensor = logits - scale * (others @ (share.unsqueeze(-1) * slope))
        return later


def normalised(weight: Tensor) -> Tensor:
    """Scale weights ``(member, sample)`` to the sum one, or leave them at zero."""
    return with_total_of(torch.ones_like(weight[:, :1]), weight)


def signals(p: Tensor, batch: Batch, loss: Tensor) -> Tensor:
    """Return what the rescaler sees of each row, ``(member, sample, signal)``."""
    target = batch.distribution(p.shape[-1]).expand_as(p)
    share = normalised(batch.weight)
    deviation = loss - (share * loss).sum(-1, keepdim=True)
    tiny = torch.finfo(p.dtype).tiny
    spread = (share * deviation.square()).sum(-1, keepdim=True).sqrt().clamp_min(tiny)
    largest, best = p.max(-1)
    agrees = target.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    entropy = -(p * p.clamp_min(tiny).log()).sum(-1) / math.log(p.shape[-1])
    standardised = (deviation / spread).clamp(-3, 3)
    return torch.stack([standardised, (target * p).sum(-1), largest, agrees, entropy], -1)


class Rescaler(nn.Module):
    """A small network per member from signals to weights in (0, 1), all 1/2 at first."""

    def __init__(self, n_signals: int, hidden: int, n_members: int) -> None:
        super().__init__()
        draw = torch.randn(n_signals, hidden) / math.sqrt(n_signals)
        self.first = nn.Parameter(draw.repeat(n_members, 1, 1))  # alike in stacks of any size
        self.first_bias = nn.Parameter(torch.zeros(n_members, 1, hidden))
        self.second = nn.Parameter(torch.zeros(n_members, hidden, 1))
        self.second_bias = nn.Parameter(torch.zeros(n_members, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(member, sample, signal)`` to ``(member, sample)``."""
        x = torch.baddbmm(self.first_bias, x, self.first).tanh()
        return torch.baddbmm(self.second_bias, x, self.second).squeeze(-1).sigmoid()
