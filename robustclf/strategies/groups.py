"""Strategies that look after each group of rows: they need ``fit(X, y, groups=...)``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_flag, check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.pruning import scaled
from robustclf.strategies.selection import TwoNormals


class Grouped(Strategy):
    """Base of the strategies that know the group of each row."""

    needs: ClassVar[tuple[str, ...]] = ("groups",)
    by_class: bool

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_flag("by_class", self.by_class)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Take the groups of this fit, numbered from 0."""
        self.rows_ = X
        group = X.groups * net.n_classes + X.y if self.by_class else X.groups
        self.group_ = group.unique(return_inverse=True)[1]
        self.n_groups_ = int(self.group_.max()) + 1
        self.weight_ = torch.zeros_like(X.weight)  # 0 also for rows that are held out
        self.weight_[:, X.rows] = X.weight[:, X.rows]

    def total(self, values: Tensor, group: Tensor) -> Tensor:
        """Sum values ``(..., row)`` of rows of these groups, ``(..., group)``."""
        zeros = values.new_zeros((*values.shape[:-1], self.n_groups_))
        return zeros.index_add(-1, group, values)

    def share(self, batch: Batch) -> Tensor:
        """Return how much of each row is of each group, ``(member or 1, sample, group)``."""
        share = one_hot(self.group_[batch.index], self.n_groups_).to(batch.weight).unsqueeze(0)
        if batch.mixing is None:
            return share
        share = batch.mixing(self.weight_[:, batch.index].unsqueeze(-1) * share)
        return share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)


@STRATEGIES.register("group_dro")
class GroupDRO(Grouped):
    r"""Minimise the loss of the group that fares worst.

    .. math::
        \sum_g q_g L_g, \qquad q_g \leftarrow
        \frac{q_g\, e^{\eta (L_g + C / \sqrt{n_g})}}{\sum_h q_h\, e^{\eta (L_h + C / \sqrt{n_h})}}

    with :math:`L_g` the mean loss of the rows of group g in the batch and :math:`n_g` their number
    in the training set. As weights of rows, these are q of a row's group divided by the share of
    that group in the batch.

    Parameters
    ----------
    eta : float, default=0.01
        Step size of q, non-negative. Published: 0.01. With 0 all groups count alike for good.
    adjustment : float, default=0.0
        The constant C, non-negative: small groups, whose loss generalises less well, count as if
        it were larger. Published: 0 to 5, to be tuned.
    by_class : bool, default=False
        Whether the rows of a group with different labels are different groups. The published
        groups are so.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Every member has its own q, which starts uniform on the groups it trains on and, as published,
    moves before it is used. A group that is not in a batch has no part in the step and its q only
    shrinks with the others' growth; it is not spread over the groups that are there. Sample
    weights count within the group. The published code adds C to the group losses in place, so
    that the losses it minimises and reports contain it, and adds it for groups that are missing;
    here it moves q alone. The published runs also draw the groups alike: put
    ``GroupBalance(method="resample")`` in front for that. As published, a network that fits every
    row gains nothing: it takes few epochs, weight decay or early stopping.

    A group with more wrong labels has a larger loss that nothing can lower, so it takes most of
    the weight: use it where noise does not depend on the group, or with a bounded loss.

    References
    ----------
    Sagawa, Koh, Hashimoto, Liang. Distributionally Robust Neural Networks for Group Shifts: On the
    Importance of Regularization for Worst-Case Generalization. ICLR 2020. arXiv:1911.08731.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from robustclf.strategies import Batch, GroupDRO
    >>> rows = SimpleNamespace(weight=torch.ones(1, 4), groups=torch.tensor([0, 0, 0, 1]),
    ...                        rows=torch.arange(4))
    >>> strategy = GroupDRO(eta=0.5)
    >>> strategy.on_train_begin(SimpleNamespace(n_stacked=1), rows)
    >>> batch = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=int), torch.ones(1, 4),
    ...               torch.arange(4))
    >>> strategy.weigh(None, batch, torch.tensor([[1.0, 1.0, 1.0, 3.0]]))
    tensor([[0.3586, 0.3586, 0.3586, 2.9242]])
    """

    def __init__(self, eta: float = 0.01, adjustment: float = 0.0, by_class: bool = False) -> None:
        self.eta = eta
        self.adjustment = adjustment
        self.by_class = by_class

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        super().check(loss, n_classes)
        check_range("eta", self.eta, "[0, inf)")
        check_range("adjustment", self.adjustment, "[0, inf)")

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with the same q for all groups."""
        super().on_train_begin(net, X, y, **kwargs)
        count = self.total((self.weight_ > 0).to(X.weight), self.group_)
        log_q = torch.zeros_like(count).masked_fill(count == 0, -torch.inf)
        self.log_q_ = log_q.log_softmax(-1).expand(net.n_stacked, -1)
        self.excess_ = self.adjustment * count.clamp_min(1).rsqrt()

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return weights whose mean with the losses is the weighted mean of the groups."""
        part = batch.weight.unsqueeze(-1) * self.share(batch)
        total = part.sum(-2, keepdim=True)
        part = part / total.clamp_min(torch.finfo(part.dtype).tiny)
        group_loss = (part * loss.unsqueeze(-1)).sum(-2)
        gain = torch.where(total.squeeze(-2) > 0, group_loss + self.excess_, 0.0)
        self.log_q_ = (self.log_q_ + self.eta * gain).log_softmax(-1)
        weight: Tensor = loss.shape[-1] * (part * self.log_q_.exp().unsqueeze(-2)).sum(-1)
        return weight


class Balancing(Grouped):
    """Base of the strategies for which all groups count alike, with some of their rows."""

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Weigh the rows, before they may be mixed."""
        return scaled(batch, self.factor_)

    def balance(self, select: Tensor, count: Tensor | float) -> None:
        """Set the factors that make all groups count alike, for each member.

        Parameters
        ----------
        select : Tensor of shape (member or 1, row)
            How much of a row counts.
        count : Tensor of shape (row,) or float
            How often it is expected in an epoch.
        """
        total = self.total(self.weight_ * select, self.group_)
        share = self.weight_.sum(-1, keepdim=True) / (total > 0).sum(-1, keepdim=True).clamp_min(1)
        per_group = torch.where(total > 0, share / total, 0.0)
        self.factor_ = select * per_group[:, self.group_] / count

    def draw(self, select: Tensor, rows: Tensor) -> Tensor:
        """Draw as many rows as there are: each group alike, and within it by the mean member.

        Rows without label, which no member trains on, stay.
        """
        trains = (self.weight_ > 0).to(select)
        chance = (trains * select).sum(0) / trains.sum(0).clamp_min(1)
        known = trains.any(0)[rows]
        rest, rows = rows[~known], rows[known]
        total = self.total(chance[rows], self.group_[rows])
        tiny = torch.finfo(chance.dtype).tiny
        count = chance / total[self.group_].clamp_min(tiny) * (len(rows) / (total > 0).sum())
        self.balance(select, count.clamp_min(tiny))
        self.factor_ = torch.where(trains.any(0), self.factor_, 1.0)  # others may get a label
        return torch.cat([rows[stratified_draw(count[rows])], rest])


@STRATEGIES.register("group_balance")
class GroupBalance(Balancing):
    r"""Let every group count alike, however many rows it has.

    .. math:: w_i \leftarrow w_i\, \frac{\sum_j w_j}{G \sum_{j: g_j = g_i} w_j}

    for G groups, or draw the rows of an epoch so that every group has the same number of them.

    Parameters
    ----------
    method : {"weight", "resample"}, default="weight"
        Whether rows are weighed or drawn, as often as there are rows. A rare group has few large
        steps or many that are the same.
    by_class : bool, default=False
        Whether the rows of a group with different labels are different groups, so that every class
        of every group counts alike. The published groups are so.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Groups count alike for every member; where the fold it leaves out or sample weights make its
    groups unequal after drawing, weights make up for it. Rows are drawn with less variance than
    independently: as often as expected, up to the rounding. The published third way, to subsample
    all groups to the size of the smallest, throws most rows of a table away and is left out. In a
    list this strategy comes before mixup, which mixes the weights too, and before ``"infobatch"``.
    With labels that are wrong more often in a rare group, balancing gives them more weight.

    References
    ----------
    Idrissi, Arjovsky, Pezeshki, Lopez-Paz. Simple data balancing achieves competitive
    worst-group-accuracy. CLeaR 2022. arXiv:2110.14503.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from robustclf.strategies import Batch, GroupBalance
    >>> rows = SimpleNamespace(weight=torch.ones(1, 4), groups=torch.tensor([0, 0, 0, 1]),
    ...                        rows=torch.arange(4))
    >>> strategy = GroupBalance()
    >>> strategy.on_train_begin(None, rows)
    >>> batch = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=int), torch.ones(1, 4),
    ...               torch.arange(4))
    >>> strategy.on_batch(None, batch).weight
    tensor([[0.6667, 0.6667, 0.6667, 2.0000]])
    """

    def __init__(self, method: str = "weight", by_class: bool = False) -> None:
        self.method = method
        self.by_class = by_class

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        super().check(loss, n_classes)
        check_known("method", [self.method], ["weight", "resample"])

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Weigh the groups."""
        super().on_train_begin(net, X, y, **kwargs)
        self.balance(torch.ones_like(self.weight_), 1.0)

    def epoch_rows(self, net: Any, rows: Tensor) -> Tensor:
        """Draw the rows, where they are drawn."""
        if self.method == "weight":
            return rows
        return self.draw(torch.ones_like(self.weight_), rows)


@STRATEGIES.register("group_loss_resample")
class GroupLossResample(Balancing):
    r"""Draw the rows of each group by how likely their loss is a small one for that group.

    .. math::
        P(\text{draw } i) = \frac{1}{G} \cdot
        \frac{P_{g_i}(\text{low} \mid \ell_i)}{\sum_{j: g_j = g_i} P_{g_i}(\text{low} \mid \ell_j)}

    where :math:`P_g(\text{low} \mid \cdot)` is the posterior of the lower component of a mixture of
    two normals, fitted in each epoch from ``warm_up`` on to the losses of the rows of group g
    alone, which are running means over the epochs. A group that is harder as a whole keeps its
    rows, which a mixture of all rows would take for wrongly labelled ones.

    Parameters
    ----------
    warm_up : int, default=10
        Epochs that draw all rows of a group alike, at least 1.
    decay : float, default=0.9
        Weight of the past in the running means, in [0, 1). They remember how the rows were before
        the network had seen some of them more often than others.
    by_class : bool, default=False
        Whether the rows of a group with different labels are different groups.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The formulation is ours. It puts the selection step of DivideMix into the groups that Idrissi
    et al. balance; that small losses are misleading across unequal groups is said by Chen et al.,
    who select by features instead. Losses, scaled to [0, 1] within the group, are those of another
    pass over the rows at the start of an epoch, as in DivideMix, so that rows that are not drawn
    can come back. That code averages them too, over five epochs, where most labels are wrong.

    Members share their batches: a row is drawn by the mean posterior of the members that train on
    it, and weights turn that into the posterior of each member, so that its expected objective is
    that of a fit alone. Rows are drawn with less variance than independently.

    It guards a rare group against selection, and does not always beat balance alone: with 30 %
    wrong labels and 15 % of the rows in a harder group, that group has accuracy 0.65 with
    ``"small_loss"``, 0.80 with this and 0.84 with ``"group_balance"``; the other has 1.00, 0.99
    and 0.95. With ``by_class`` the rows of a rare group and class may be mostly wrong ones of a
    frequent class, which the draw then multiplies.

    References
    ----------
    Mixture: Li, Socher, Hoi. DivideMix: Learning with Noisy Labels as Semi-supervised Learning.
    ICLR 2020. arXiv:2002.07394. Balance: Idrissi et al. Simple data balancing achieves competitive
    worst-group-accuracy. CLeaR 2022. arXiv:2110.14503. The problem: Chen et al. Learning with Noisy
    Labels over Imbalanced Subpopulations. 2022. arXiv:2211.08722.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from robustclf.strategies import GroupLossResample
    >>> rows = SimpleNamespace(weight=torch.ones(1, 7), groups=torch.tensor([0, 0, 0, 0, 1, 1, 1]),
    ...                        rows=torch.arange(7))
    >>> strategy = GroupLossResample()
    >>> strategy.on_train_begin(None, rows)
    >>> loss = torch.tensor([[0.1, 0.2, 0.1, 2.0, 2.0, 2.1, 9.0]])  # (member, row)
    >>> strategy.posterior(loss).round(decimals=2)
    tensor([[1., 1., 1., 0., 1., 1., 0.]])
    """

    def __init__(self, warm_up: int = 10, decay: float = 0.9, by_class: bool = False) -> None:
        self.warm_up = warm_up
        self.decay = decay
        self.by_class = by_class

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        super().check(loss, n_classes)
        check_integer("warm_up", self.warm_up, "[1, inf)")
        check_range("decay", self.decay, "[0, 1)")

    def epoch_rows(self, net: Any, rows: Tensor) -> Tensor:
        """Draw the rows of this epoch."""
        if net.epoch < self.warm_up:
            return self.draw(torch.ones_like(self.weight_), rows)
        loss = self.losses(net)
        self.loss_ = torch.lerp(loss, getattr(self, "loss_", loss), self.decay)
        return self.draw(self.posterior(self.loss_), rows)

    @torch.no_grad()
    def losses(self, net: Any) -> Tensor:
        """Return the present losses, ``(member, row)``."""
        parts: list[Tensor] = []
        start = 0
        for logits in net.logits(self.rows_.x, oof=True):
            stop = start + logits.shape[1]
            parts.append(net.criterion_(logits.clone(), self.rows_.y[start:stop]))
            start = stop
        return torch.cat(parts, -1)

    def posterior(self, loss: Tensor) -> Tensor:
        """Return the posterior of the low component of each row's group, ``(member, row)``."""
        posterior = torch.zeros_like(loss)
        order = self.group_.argsort()
        for index in order.split(self.group_.bincount(minlength=self.n_groups_).tolist()):
            known = (self.weight_[:, index] > 0).expand(len(loss), -1)
            x = loss[:, index]
            low = x.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
            high = x.masked_fill(~known, -torch.inf).amax(-1, keepdim=True)
            x = (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)
            fitted = TwoNormals.fit(x, known.to(x), floor=5e-4)
            posterior[:, index] = torch.where(known, fitted.posterior_of_low(x), 0.0)
        return posterior


def stratified_draw(count: Tensor) -> Tensor:
    """Draw numbers of rows, each ``count`` times in expectation, as many as there are counts.

    The n-th draw is from the n-th of equal parts of the distribution.
    """
    n = len(count)
    distribution = count.double().cumsum(0)
    at = (torch.arange(n) + torch.rand(n, dtype=torch.float64)) / n
    at = at.to(distribution.device) * distribution[-1]
    return torch.searchsorted(distribution, at, right=True).clamp_max(n - 1)
