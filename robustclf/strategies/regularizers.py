"""Strategies that add a penalty on predictions, parameters or the agreement of two networks."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.inputs import evaluating, n_numeric, unit, with_numbers
from robustclf.strategies.weight import CoTeaching


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
    small ``lam``, or balance them with ``class_weight``.

    References
    ----------
    Ye et al. Active Negative Loss: A Robust Framework for Learning with Noisy Labels.
    arXiv:2412.02373.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies.regularizers import MeanEntropy
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(1, 2), torch.arange(2))
    >>> logits = torch.tensor([[[50.0, 0.0], [0.0, 50.0]], [[50.0, 0.0], [50.0, 0.0]]])
    >>> MeanEntropy(lam=1.0).penalty(None, batch, logits)  # (member, 1)
    tensor([[0.0000],
            [0.6931]])
    """

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
    >>> from robustclf.strategies.regularizers import L1
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=L1(1e-4), weight_decay=0, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

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


@STRATEGIES.register("vat")
class VirtualAdversarial(Strategy):
    r"""Keep the prediction the same in the direction in which it changes fastest.

    .. math::
        R_i = \lambda\, w_i\, \mathrm{KL}\left( p(x_i) \,\Vert\, p(x_i + \epsilon d_i) \right),
        \qquad
        d_i \leftarrow \frac{g}{\lVert g \rVert_2}, \quad
        g = \nabla_r \mathrm{KL}\left( p(x_i) \,\Vert\, p(x_i + r) \right) \big|_{r = \xi d_i}

    with p the softmax of the logits. d starts as a random direction and ``n_iter`` steps of the
    power method turn it to the largest curvature. No label is used. No gradient flows through
    p(x) or d. Only numbers move: indicators and codes of categories stay as they are.

    Parameters
    ----------
    lam : float, default=1.0
        Strength, non-negative.
    eps : float, default=0.3
        Euclidean length of the perturbation of a row, non-negative, in the units of the encoded
        numbers: the interquartile range of a feature is about 1. The authors tune this alone; a
        length at which classes meet merges them.
    xi : float, default=1e-3
        Length at which the gradient is taken, positive. Published: 1e-6, at which few digits of
        the gradient are left in single precision.
    n_iter : int, default=1
        Steps of the power method, at least 1; each costs a forward and a backward pass.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Both predictions are those of the network without dropout, and with running batch statistics:
    with them the divergence would measure two draws of the dropout, not the perturbation.

    References
    ----------
    Miyato, Maeda, Koyama, Ishii. Virtual Adversarial Training. IEEE TPAMI 41(8), 2018.
    arXiv:1704.03976.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies.regularizers import VirtualAdversarial
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=VirtualAdversarial(eps=0.2), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(
        self, lam: float = 1.0, eps: float = 0.3, xi: float = 1e-3, n_iter: int = 1
    ) -> None:
        self.lam = lam
        self.eps = eps
        self.xi = xi
        self.n_iter = n_iter

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lam", self.lam, "[0, inf)")
        check_range("eps", self.eps, "[0, inf)")
        check_range("xi", self.xi, "(0, inf)")
        check_integer("n_iter", self.n_iter, "[1, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Draw the directions to start from, the same for all members."""
        self.start_ = unit(torch.randn_like(batch.x[..., : n_numeric(net)]))
        return batch

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each sample, ``(member, sample)``."""
        x = batch.x.expand(net.n_stacked, *batch.x.shape[-2:])
        numbers = x[..., : n_numeric(net)]
        direction = self.start_.expand_as(numbers)

        def divergence(shift: Tensor) -> Tensor:
            moved: Tensor = net.module_(with_numbers(x, numbers + shift)).to(logits.dtype)
            return (log_p.exp() * (log_p - moved.log_softmax(-1))).sum(-1)

        with evaluating(net.module_):
            with torch.no_grad():
                log_p: Tensor = net.module_(x).to(logits.dtype).log_softmax(-1)
            for _ in range(self.n_iter):
                shift = (self.xi * direction).requires_grad_()
                (gradient,) = torch.autograd.grad(divergence(shift).sum(), shift)
                direction = unit(gradient)
            return self.lam * batch.weight * divergence(self.eps * direction)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Free the directions of the last batch."""
        self.__dict__.pop("start_", None)


@STRATEGIES.register("jocor")
class JoCoR(Strategy):
    r"""Two networks that have to agree train on the rows both find easy.

    .. math::
        (1 - \lambda)\, (\ell_1 + \ell_2) + \lambda \left(
        \mathrm{KL}(p_1 \Vert p_2) + \mathrm{KL}(p_2 \Vert p_1) \right)

    is the joint loss of a row, with p the softmax of the logits. In epoch T the share

    .. math:: R(T) = 1 - \tau \min(T / T_k,\, 1)

    of a batch's rows with the smallest joint loss is kept; the others get weight 0.

    Parameters
    ----------
    lam : float, default=0.5
        Weight of the agreement, in [0, 1]. Published: 0.5 to 0.9, CIFAR-10 0.9, for hundreds of
        epochs.
    tau : float, default=0.1
        Share of rows left out in the end, in [0, 1): the noise rate, where it is known. Both
        networks leave out the same rows, so too large a share costs more than with co-teaching.
    T_k : int, default=10
        Epochs until that share is reached, at least 1.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The weights of the labels become ``1 - lam`` times those of the kept rows, and each network of a
    pair carries half of the divergence, so that together they minimise the published objective.
    Rows of weight 0 (the held-out fold of a member) are never selected and not counted.

    References
    ----------
    Wei, Feng, Chen, An. Combating Noisy Labels by Agreement: A Joint Training Method with
    Co-Regularization. CVPR 2020. arXiv:2003.02752.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies.regularizers import JoCoR
    >>> class Net:
    ...     epoch = 10
    >>> batch = Batch(torch.zeros(2, 1), torch.zeros(2, dtype=int), torch.ones(1, 2),
    ...               torch.arange(2))
    >>> logits = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[-2.0, 0.0], [1.0, 0.0]]])
    >>> jocor = JoCoR(lam=0.5, tau=0.5)
    >>> target = jocor.relabel(Net, batch, logits)  # sees that the networks disagree on row 0
    >>> jocor.weigh(Net, batch, torch.zeros(2, 2))
    tensor([[0., 1.],
            [0., 1.]])
    """

    n_members: ClassVar[int] = 2

    def __init__(self, lam: float = 0.5, tau: float = 0.1, T_k: int = 10) -> None:
        self.lam = lam
        self.tau = tau
        self.T_k = T_k

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lam", self.lam, "[0, 1]")
        check_range("tau", self.tau, "[0, 1)")
        check_range("T_k", self.T_k, "[1, inf)")

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Keep the targets; see how far the networks disagree, which ``weigh`` needs to know."""
        self.disagreement_ = _disagreement(logits)
        return batch.target

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Keep the rows with the smallest joint loss, ``(member, sample)``."""
        both = loss.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
        joint = (1 - self.lam) * both + self.lam * self.disagreement_
        # peers that have the same losses teach each other to keep the same rows
        self.kept_ = CoTeaching(self.tau, self.T_k).weigh(net, batch, joint)
        return (1 - self.lam) * self.kept_

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return half of the divergence of each sample's two predictions, ``(member, sample)``."""
        return self.lam / 2 * self.kept_ * _disagreement(logits)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Free what belongs to the last batch."""
        for name in ("disagreement_", "kept_"):
            self.__dict__.pop(name, None)


def _disagreement(logits: Tensor) -> Tensor:
    """Symmetric divergence of the predictions of the two networks of a pair, for each of them."""
    log_p, log_q = logits.log_softmax(-1).unflatten(0, (-1, 2)).unbind(1)
    divergence: Tensor = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    return divergence.repeat_interleave(2, 0)
