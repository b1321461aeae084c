"""Strategies of networks that are trained together."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.selection import smallest, with_total_of


@STRATEGIES.register("co_teaching")
class CoTeaching(Strategy):
    r"""Two networks teach each other: each trains on the rows its peer finds easy.

    In epoch T every network of a group keeps the share

    .. math:: R(T) = 1 - \tau \min(T^c / T_k,\, 1)

    of a batch's rows with the smallest loss *of its peer*; the others get weight 0.

    Parameters
    ----------
    tau : float, default=0.2
        Share of rows left out in the end, in [0, 1): the noise rate, where it is known.
    T_k : int, default=10
        Epochs until that share is reached, at least 1.
    c : float, default=1.0
        Exponent of the time in R(T), positive. The published code raises tau instead.
    n_peers : int, default=2
        Networks that teach each other, at least 2. The paper has two; of more, each keeps the rows
        whose mean loss over all the *other* networks is smallest.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The kept rows are averaged once. The published code divides that average by their number again.
    A row of weight 0 (the held-out fold of a member) is never selected and not counted.

    References
    ----------
    Han et al. Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels.
    NeurIPS 2018. arXiv:1804.06872.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import STRATEGIES, Batch, CoTeaching
    >>> class Net:
    ...     epoch = 10
    >>> loss = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])  # (member, sample)
    >>> batch = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=int), torch.ones(1, 4),
    ...               torch.arange(4))
    >>> CoTeaching(tau=0.5).weigh(Net, batch, loss)
    tensor([[0., 0., 2., 2.],
            [2., 2., 0., 0.]])
    """

    stackable = True

    def __init__(self, tau: float = 0.2, T_k: int = 10, c: float = 1.0, n_peers: int = 2) -> None:
        self.tau = tau
        self.T_k = T_k
        self.c = c
        self.n_peers = n_peers

    @property
    def n_members(self) -> int:  # type: ignore[override]
        """Networks that have to be trained together."""
        return self.n_peers

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("tau", self.tau, "[0, 1)")
        check_range("T_k", self.T_k, "[1, inf)")
        check_range("c", self.c, "(0, inf)")
        check_integer("n_peers", self.n_peers, "[2, inf)")

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Keep the rows with the smallest loss of the others, ``(member, sample)``."""
        peers = loss.unflatten(0, (-1, self.n_peers))
        turns = range(1, self.n_peers)
        of_others = torch.stack([peers.roll(turn, 1) for turn in turns]).mean(0).flatten(0, 1)
        weight = batch.weight.expand_as(loss)
        candidates = self._candidates(net, batch, weight)
        share = 1 - self.tau * min(net.epoch**self.c / self.T_k, 1)
        # the same total weight as before, so that the step is the mean over the kept rows
        return with_total_of(weight, smallest(of_others, candidates, share))

    def _candidates(self, net: Any, batch: Batch, weight: Tensor) -> Tensor:
        """Return the weights, ``(member, sample)``, that are 0 where a row is out of question."""
        return weight


@STRATEGIES.register("co_teaching_plus")
class CoTeachingPlus(CoTeaching):
    r"""Co-teaching on the rows about which the networks disagree, so that they stay different.

    From epoch ``init_epoch`` on, a batch is first reduced to the rows whose predicted classes are
    not all the same; of these, each network keeps the share R(T) with the smallest loss of its
    peer, as in co-teaching. Before, it is co-teaching.

    Parameters
    ----------
    tau : float, default=0.2
        Share of those rows left out in the end, in [0, 1): the noise rate, where it is known.
    T_k : int, default=10
        Epochs until that share is reached, at least 1.
    c : float, default=1.0
        Exponent of the time in R(T), positive.
    n_peers : int, default=2
        Networks that teach each other, at least 2. The paper has two; see :class:`CoTeaching`.
    init_epoch : int, default=20
        First epoch, from 0, that asks for disagreement. Published code: 0 (MNIST, News), 5
        (CIFAR-100), 20 (CIFAR-10), 100 (Tiny-ImageNet).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Where the networks agree on all of a batch, it is used as in co-teaching; the published code
    then trains on all of its rows at first and on none later. That code also divides the average
    over the kept rows by their number again, and applies a second softmax to the probabilities;
    neither is done here. The few rows that are kept count as much as the whole batch. Once the
    networks are good, disputed rows are mostly wrong ones: on ``load_digits`` with 40 % of the
    labels wrong 5 % of the rows were, half of those kept had a wrong label (co-teaching: 3 %), and
    the accuracy was 0.90, between 0.80 of plain training and 0.93 of co-teaching.

    References
    ----------
    Yu, Han, Yao, Niu, Tsang, Sugiyama. How does Disagreement Help Generalization against Label
    Corruption? ICML 2019. arXiv:1901.04215.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch, CoTeachingPlus
    >>> class Net:
    ...     epoch = 20
    >>> batch = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=int), torch.ones(1, 3),
    ...               torch.arange(3))
    >>> batch.logits = torch.tensor(  # (member, sample, class); they agree on row 0 alone
    ...     [[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]
    ... )
    >>> loss = torch.tensor([[0.0, 1.0, 2.0], [0.0, 4.0, 3.0]])
    >>> CoTeachingPlus(tau=0.5).weigh(Net, batch, loss)
    tensor([[0., 0., 3.],
            [0., 3., 0.]])
    """

    stackable = True

    def __init__(
        self,
        tau: float = 0.2,
        T_k: int = 10,
        c: float = 1.0,
        n_peers: int = 2,
        init_epoch: int = 20,
    ) -> None:
        super().__init__(tau, T_k, c, n_peers)
        self.init_epoch = init_epoch

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        super().check(loss, n_classes)
        check_integer("init_epoch", self.init_epoch, "[0, inf)")

    def _candidates(self, net: Any, batch: Batch, weight: Tensor) -> Tensor:
        if net.epoch < self.init_epoch:
            return weight
        assert batch.logits is not None
        peers = batch.logits.argmax(-1).unflatten(0, (-1, self.n_peers))
        disputed = (peers != peers[:, :1]).any(1).repeat_interleave(self.n_peers, 0)
        reduced = weight * disputed
        return torch.where((reduced > 0).any(-1, keepdim=True), reduced, weight)


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
    >>> from robustclf.strategies import JoCoR
    >>> class Net:
    ...     epoch = 10
    >>> batch = Batch(torch.zeros(2, 1), torch.zeros(2, dtype=int), torch.ones(1, 2),
    ...               torch.arange(2))
    >>> batch.logits = torch.tensor(  # the networks disagree on row 0
    ...     [[[2.0, 0.0], [1.0, 0.0]], [[-2.0, 0.0], [1.0, 0.0]]]
    ... )
    >>> JoCoR(lam=0.5, tau=0.5).weigh(Net, batch, torch.zeros(2, 2))
    tensor([[0., 1.],
            [0., 1.]])
    """

    n_members: ClassVar[int] = 2
    stackable = True

    def __init__(self, lam: float = 0.5, tau: float = 0.1, T_k: int = 10) -> None:
        self.lam = lam
        self.tau = tau
        self.T_k = T_k

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lam", self.lam, "[0, 1]")
        check_range("tau", self.tau, "[0, 1)")
        check_range("T_k", self.T_k, "[1, inf)")

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Keep the rows with the smallest joint loss, ``(member, sample)``."""
        both = loss.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
        assert batch.logits is not None
        joint = (1 - self.lam) * both + self.lam * _disagreement(batch.logits)
        # peers that have the same losses teach each other to keep the same rows
        self.kept_ = CoTeaching(self.tau, self.T_k).weigh(net, batch, joint)
        return (1 - self.lam) * self.kept_

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return half of the divergence of each sample's two predictions, ``(member, sample)``."""
        return self.lam / 2 * self.kept_ * _disagreement(logits)


def _disagreement(logits: Tensor) -> Tensor:
    """Symmetric divergence of the predictions of the two networks of a pair, for each of them."""
    log_p, log_q = logits.log_softmax(-1).unflatten(0, (-1, 2)).unbind(1)
    divergence: Tensor = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    return divergence.repeat_interleave(2, 0)
