"""Strategies that edit the weights of the samples."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy


@STRATEGIES.register("co_teaching")
class CoTeaching(Strategy):
    r"""Two networks teach each other: each trains on the rows its peer finds easy.

    In epoch T every network of a pair keeps the share

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

    n_members: ClassVar[int] = 2

    def __init__(self, tau: float = 0.2, T_k: int = 10, c: float = 1.0) -> None:
        self.tau = tau
        self.T_k = T_k
        self.c = c

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("tau", self.tau, "[0, 1)")
        check_range("T_k", self.T_k, "[1, inf)")
        check_range("c", self.c, "(0, inf)")

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Keep the rows with the smallest loss of the peer, ``(member, sample)``."""
        share = 1 - self.tau * min(net.epoch**self.c / self.T_k, 1)
        weight = batch.weight.expand_as(loss)
        of_peer = loss.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        rank = of_peer.masked_fill(weight == 0, torch.inf).argsort(-1).argsort(-1)
        n_kept = torch.ceil(share * (weight > 0).sum(-1, keepdim=True))
        kept = weight * (rank < n_kept)
        # the same total weight as before, so that the step is the mean over the kept rows
        total = kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
        normalised: Tensor = kept * (weight.sum(-1, keepdim=True) / total)
        return normalised
