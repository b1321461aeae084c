"""Strategies that weigh the rows of a batch as a risk other than the mean does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.selection import with_total_of


@STRATEGIES.register("spectral")
class SpectralRisk(Strategy):
    r"""Weigh the sorted losses of a batch by a spectrum, on the side of the small or large ones.

    With :math:`\ell_{(1)} \le \dots \le \ell_{(n)}` and a cumulative spectrum F from F(0) = 0 to
    F(1) = 1,

    .. math:: w_{(i)} = n \left[F(i / n) - F((i - 1) / n)\right], \qquad F(u) =
        \begin{cases} (u - 1 + s)_+ / s & \text{cvar} \\ u^r & \text{extremile} \\
        (e^{\rho u} - 1) / (e^\rho - 1) & \text{esrm} \end{cases}

    for ``direction="up"``, and with 1 - F(1 - u) in place of F for ``"trim"``.

    Parameters
    ----------
    measure : {"cvar", "extremile", "esrm"}, default="extremile"
        ``"cvar"`` has a share of the rows only: trimmed from the start, it may lose a class.
    parameter : float or None, default=None
        The share s of rows that count, in (0, 1]; the exponent r, at least 1; or the rate
        :math:`\rho`, positive. None is the published 0.5, 2 and 1.
    direction : {"trim", "up"}, default="trim"
        Whether small or large losses get the weight. ``"up"`` is the published risk.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The published risks guard against rare hard rows; a wrong label looks just like one, so under
    noise the mirrored spectrum is the useful one, and ``"cvar"`` then is the trimmed mean. Their
    penalty on the distance to uniform weights (shift cost) is left out. Rows that come with
    weights count as so many rows: i / n is the share of the weight up to row i.

    References
    ----------
    Mehta et al. Distributionally Robust Optimization with Bias and Variance Reduction. ICLR 2024.
    arXiv:2310.13863.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies import SpectralRisk
    >>> loss = torch.tensor([[3.0, 1.0, 4.0, 2.0]])  # (member, sample)
    >>> batch = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=int), torch.ones(1, 4),
    ...               torch.arange(4))
    >>> SpectralRisk("cvar", 0.5).weigh(None, batch, loss)
    tensor([[0., 2., 0., 2.]])
    >>> SpectralRisk("extremile", direction="up").weigh(None, batch, loss)
    tensor([[1.2500, 0.2500, 1.7500, 0.7500]])
    """

    published: ClassVar[dict[str, float]] = {"cvar": 0.5, "extremile": 2.0, "esrm": 1.0}

    stackable = True

    def __init__(
        self, measure: str = "extremile", parameter: float | None = None, direction: str = "trim"
    ) -> None:
        self.measure = measure
        self.parameter = parameter
        self.direction = direction

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_known("measure", [self.measure], self.published)
        check_known("direction", [self.direction], ["trim", "up"])
        if self.parameter is not None:
            ranges = {"cvar": "(0, 1]", "extremile": "[1, inf)", "esrm": "(0, inf)"}
            check_range(f"parameter of {self.measure}", self.parameter, ranges[self.measure])

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return the weights by the ranks of the losses, ``(member, sample)``."""
        weight = batch.weight.expand_as(loss)
        order = loss.argsort(-1)
        ascending = weight.gather(-1, order).double()
        share = with_total_of(torch.ones_like(ascending[..., :1]), ascending).cumsum(-1)
        share = share.clamp_max(1)  # where rounding has gone beyond
        spectrum = self.cumulative(torch.nn.functional.pad(share, (1, 0))).diff(dim=-1)
        new = torch.zeros_like(weight).scatter(-1, order, spectrum.to(weight))
        return with_total_of(weight, new * (weight > 0))

    def cumulative(self, u: Tensor) -> Tensor:
        """Return the weight of the share ``u`` of the rows with the smallest losses."""
        return 1 - self._upward(1 - u) if self.direction == "trim" else self._upward(u)

    def _upward(self, u: Tensor) -> Tensor:
        value = self.published[self.measure] if self.parameter is None else self.parameter
        if self.measure == "cvar":
            return (u - 1 + value).relu() / value
        if self.measure == "extremile":
            return u**value
        return torch.exp(value * (u - 1)) * torch.expm1(-value * u) / math.expm1(-value)


@STRATEGIES.register("instance_reweighted")
class InstanceReweighted(Strategy):
    r"""Weigh the rows of a batch exponentially in their loss.

    .. math:: w_i = n\, \frac{e^{\mp \ell_i / \lambda}}{\sum_j e^{\mp \ell_j / \lambda}}

    With + (``"up"``) these are the worst weights that a Kullback-Leibler penalty of strength
    :math:`\lambda` on their distance to uniform ones allows; with - (``"trim"``) the best ones.

    Parameters
    ----------
    lam : float, default=1.0
        Positive, in units of the loss: large for nearly uniform weights.
    direction : {"trim", "up"}, default="trim"
        Whether small or large losses get the weight. ``"up"`` is the published side.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The published method weighs losses on adversarial rows; this is its weighting alone, which goes
    with any strategy that moves the rows. Like every risk that seeks large losses, its ``"up"``
    side also seeks wrong labels; ``"trim"`` gives up on hard rows as on wrong ones, which helps
    only where the clean rows are learned fast. A row of weight 0 keeps it.

    References
    ----------
    Sow et al. Doubly Robust Instance-Reweighted Adversarial Training. ICLR 2024.
    arXiv:2308.00311.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies import InstanceReweighted
    >>> loss = torch.tensor([[0.0, 0.0, 2.0]])  # (member, sample)
    >>> batch = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=int), torch.ones(1, 3),
    ...               torch.arange(3))
    >>> InstanceReweighted(lam=1.0).weigh(None, batch, loss)
    tensor([[1.4049, 1.4049, 0.1901]])
    """

    stackable = True

    def __init__(self, lam: float = 1.0, direction: str = "trim") -> None:
        self.lam = lam
        self.direction = direction

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("lam", self.lam, "(0, inf)")
        check_known("direction", [self.direction], ["trim", "up"])

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return the weights by the losses, ``(member, sample)``."""
        sign = -1 if self.direction == "trim" else 1
        score = (sign * loss / self.lam).masked_fill(batch.weight == 0, -torch.inf)
        best = score.amax(-1, keepdim=True).clamp_min(torch.finfo(score.dtype).min)
        return with_total_of(batch.weight, batch.weight * (score - best).exp())


@STRATEGIES.register("holistic_robust")
class HolisticRobust(Strategy):
    r"""Weigh the rows of a batch by the worst distribution within a holistic uncertainty set.

    The set allows for a share :math:`\alpha` of corrupted rows and for the statistical error r of
    a sample. With q the uniform distribution, of which the mass :math:`\alpha` is moved from the
    smallest losses to the largest one, the HD risk and its weights are

    .. math::
        \min_{b \ge \max \ell} b - e^{-r} \prod_i (b - \ell_i)^{q_i}, \qquad
        w_i = n\, e^{-r} \frac{q_i}{b - \ell_i} \prod_j (b - \ell_j)^{q_j}.

    The HR risk moves the mass last: it takes q uniform, each :math:`\ell_i` at least some c, and
    moves the mass of the rows below c, which is :math:`\alpha`, from them to the largest loss.

    Parameters
    ----------
    alpha : float, default=0.05
        Share of rows that may be corrupted, in [0, 1).
    r : float, default=0.1
        Kullback-Leibler radius, non-negative. Both defaults are published.
    form : {"hd", "hr"}, default="hd"
        What disturbs the rows first: corruption (hd) or sampling (hr).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    The risk is pessimistic: it gives **more** weight to large losses, so also to wrong labels, and
    most tables of the benchmark lose accuracy by it. Use it against shifts between training and
    use, not against label noise. The published code solves
    a conic program per batch; here it is a search for one number, with the same solution. The
    third disturbance, of the rows themselves, is that of an adversarial strategy.

    References
    ----------
    Bennouna, Lucas, Van Parys. Certified Robust Neural Networks: Generalization and Corruption
    Resistance. ICML 2023. arXiv:2303.02251.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import Batch
    >>> from robustclf.strategies import HolisticRobust
    >>> loss = torch.tensor([[0.0, 1.0, 2.0, 3.0]])  # (member, sample)
    >>> batch = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=int), torch.ones(1, 4),
    ...               torch.arange(4))
    >>> HolisticRobust(alpha=0.1, r=0.05).weigh(None, batch, loss)
    tensor([[0.3557, 0.7332, 0.9607, 1.9504]])
    """

    stackable = True

    def __init__(self, alpha: float = 0.05, r: float = 0.1, form: str = "hd") -> None:
        self.alpha = alpha
        self.r = r
        self.form = form

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("alpha", self.alpha, "[0, 1)")
        check_range("r", self.r, "[0, inf)")
        check_known("form", [self.form], ["hd", "hr"])

    def weigh(self, net: Any, batch: Batch, loss: Tensor) -> Tensor:
        """Return the weights of the worst distribution, ``(member, sample)``."""
        weight = batch.weight.expand_as(loss)
        least = loss.masked_fill(weight == 0, torch.inf).amin(-1, keepdim=True)
        ascending, order = loss.masked_fill(weight == 0, -torch.inf).sort(-1)
        x = ascending.maximum(least).double()
        x = x - x[..., -1:]
        x = x / (-x[..., :1]).clamp_min(torch.finfo(x.dtype).tiny)  # from -1 to 0
        q = with_total_of(torch.ones_like(x[..., :1]), weight.gather(-1, order).double())
        p = self._sampled_then_corrupted(x, q) if self.form == "hr" else self._corrupted(x, q)
        new = torch.zeros_like(weight).scatter(-1, order, p.to(weight))
        return with_total_of(weight, torch.where(weight > 0, new, 0.0))

    def _corrupted(self, x: Tensor, q: Tensor) -> Tensor:
        """Return the worst distribution where the corruption comes first, of ascending losses."""
        q = _moved(q, self.alpha)
        return _sampled(x, q, self._bound(lambda b: b - x, q)) if self.r else q

    def _sampled_then_corrupted(self, x: Tensor, q: Tensor) -> Tensor:
        """Return the worst distribution where the sampling comes first, of ascending losses."""
        if not self.r or not self.alpha:
            return self._corrupted(x, q)
        odds, mass = self.alpha / (1 - self.alpha), q.cumsum(-1)

        def floored(b: Tensor) -> Tensor:
            # the mass of the rows below the floor c, each tilted like c, is alpha
            part = q / (b - x)
            beyond = part.flip(-1).cumsum(-1).flip(-1)
            last = ((mass - q) / (b - x) < odds * beyond).sum(-1, keepdim=True).clamp_min(1) - 1
            rest = (beyond - part).gather(-1, last).clamp_min(torch.finfo(x.dtype).tiny)
            c = b - mass.gather(-1, last) / (odds * rest)
            return x.maximum(c.maximum(x.gather(-1, last)))

        b = self._bound(lambda b: b - floored(b), q)
        return _moved(_sampled(floored(b), q, b), self.alpha)

    def _bound(self, distance: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
        """Return the b at which the tilted distribution is at the divergence r from q."""
        high = q.new_full((*q.shape[:-1], 1), -0.5 * math.log(8 * self.r))  # of log b, by Hoeffding
        low = high.clamp_max(0) - 40
        for _ in range(36):
            middle = (low + high) / 2
            y = distance(middle.exp())
            divergence = (q * y.log()).sum(-1, keepdim=True) + (q / y).sum(-1, keepdim=True).log()
            low = torch.where(divergence > self.r, middle, low)
            high = torch.where(divergence > self.r, high, middle)
        return high.exp()


def _moved(q: Tensor, alpha: float) -> Tensor:
    """Move the mass alpha from the first entries to the last one."""
    left = (q.cumsum(-1) - alpha).relu()
    left = torch.nn.functional.pad(left, (1, 0)).diff(dim=-1)
    left[..., -1:] += 1 - left.sum(-1, keepdim=True)
    return left


def _sampled(x: Tensor, q: Tensor, b: Tensor) -> Tensor:
    """Tilt q towards the losses x that are near b."""
    p = q / (b - x)
    return p / p.sum(-1, keepdim=True)
