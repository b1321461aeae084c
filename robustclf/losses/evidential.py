"""The loss of evidence: logits are the parameters of a Dirichlet distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import loguniform
from torch import Tensor
from torch.nn import functional as F

from robustclf._registry import check_known
from robustclf.losses._base import LOSSES, Loss
from robustclf.losses._hyperparameters import Scalar, check_integer, check_range, every


@LOSSES.register("evidential")
class Evidential(Loss):
    r"""Evidential loss: the logits say how sure the network is of the probabilities, too.

    .. math:: \sum_k (\mathbb{1}[k = y] - p_k)^2 + \frac{p_k (1 - p_k)}{S + 1}
        + \lambda \, \mathrm{KL}(\mathrm{Dir}(\tilde\alpha) \,\|\, \mathrm{Dir}(1)), \qquad
        p = \frac{\alpha}{S}, \quad \alpha = 1 + \mathrm{softplus}(z), \quad S = \sum_k \alpha_k

    with :math:`\tilde\alpha_y = 1` and :math:`\tilde\alpha_k = \alpha_k` elsewhere. The first two
    terms, `form="squared"`, are the expected squared error of probabilities drawn from
    :math:`\mathrm{Dir}(\alpha)`; the divergence, whose weight grows to lambda over the first
    epochs, takes evidence for wrong labels away. `predict_proba` is p, `vacuity` is K / S.

    Parameters
    ----------
    form : {"squared", "digamma", "log"}, default="squared"
        What takes the place of the first two terms: "digamma" the expected cross entropy
        :math:`\psi(S) - \psi(\alpha_y)`, "log" the cross entropy of the expected probabilities
        :math:`\log S - \log \alpha_y` (type II maximum likelihood). The default is the choice of
        the paper's experiments.
    evidence : {"softplus", "relu", "exp"}, default="softplus"
        Function of the logits that gives the evidence :math:`\alpha - 1`. The paper takes "relu",
        which learns nothing from a sample whose logits are all negative. "exp" clamps the logits
        to [-10, 10] like published code, and learns nothing beyond.
    kl_weight : float, default=1.0
        Final weight lambda in [0, inf) of the divergence. The default is the paper's.
    annealing_epochs : int, default=10
        Epochs over which the weight grows linearly from 0, in [0, inf); 0 keeps it constant. The
        default is the paper's. It shows in what `at_epoch` returns only: a loss called directly
        has its final weight.

    Notes
    -----
    Published code builds :math:`\tilde\alpha` for the one label of each sample. Here the sums over
    the classes are taken once and serve every label, and parameters of 30 or more take Stirling's
    series, where the closed form of the divergence loses every digit in float32. bfloat16 is
    computed in float32.

    References
    ----------
    M. Sensoy, L. Kaplan, M. Kandemir, "Evidential deep learning to quantify classification
    uncertainty", NeurIPS 2018, arXiv:1806.01768.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Evidential
    >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
    >>> Evidential().per_label(logits)
    tensor([[0.6846, 1.4940, 1.4940]])
    >>> Evidential(form="log", kl_weight=0.0).per_label(logits)
    tensor([[0.7338, 1.3472, 1.3472]])
    >>> Evidential().vacuity(logits), Evidential().vacuity(10 * logits)
    (tensor([0.4606]), tensor([0.1230]))
    """

    shift_invariant = False
    takes_log_p = False
    search_space = {
        "form": ["squared", "digamma", "log"],
        "kl_weight": loguniform(1e-3, 1),
    }

    def __init__(
        self,
        form: str = "squared",
        evidence: str = "softplus",
        kl_weight: Scalar = 1.0,
        annealing_epochs: int | Tensor = 10,
    ) -> None:
        self.form = form
        self.evidence = evidence
        self.kl_weight = kl_weight
        self.annealing_epochs = annealing_epochs

    bounded = property(
        lambda self: self.evidence == "exp" or (self.form == "squared" and self._without_kl())
    )
    proper = property(lambda self: self.form == "log" and self._without_kl())

    def check(self, n_classes: int) -> None:
        """Check all hyper-parameters."""
        check_known("form", [self.form], _FIT)
        check_known("evidence", [self.evidence], _EVIDENCE)
        check_range("kl_weight", self.kl_weight, "[0, inf)")
        check_integer("annealing_epochs", self.annealing_epochs, "[0, inf)")

    def at_epoch(self, epoch: int) -> Evidential:
        """Return the loss of this epoch, from 0: with the weight of the divergence it has then."""
        n = self.annealing_epochs
        grown: Scalar
        if isinstance(n, Tensor):
            grown = torch.where(n > 0, epoch / n, 1.0).clamp(max=1.0)
        else:
            grown = min(1.0, epoch / n) if n else 1.0
        return self._replaced(kl_weight=grown * self.kl_weight, annealing_epochs=0)

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the logits."""
        return logits

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose logits are `x_y`."""
        alpha_y, alpha = self._alpha(x_y), self._alpha(x)
        # the sums over alpha~, whose entry y is 1 and has no part
        S = alpha.sum(-1, keepdim=True) - alpha_y + 1
        parts = _part(alpha).sum(-1, keepdim=True) - _part(alpha_y)
        kl = _divergence(S, parts, x.shape[-1])
        return (_FIT[self.form](alpha_y, alpha) + self.kl_weight * kl).to(x.dtype)

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities: the mean of the Dirichlet distribution."""
        alpha = self._alpha(logits)
        return (alpha / alpha.sum(-1, keepdim=True)).to(logits.dtype)

    def vacuity(self, logits: Tensor) -> Tensor:
        """Uncertainty for want of evidence, in (0, 1], `(...)`: the number of classes over S."""
        return (logits.shape[-1] / self._alpha(logits).sum(-1)).to(logits.dtype)

    def _alpha(self, x: Tensor) -> Tensor:
        # bfloat16 has too few digits for the special functions
        return 1 + _EVIDENCE[self.evidence](x.to(torch.promote_types(x.dtype, torch.float32)))

    def _without_kl(self) -> bool:
        return every(self.kl_weight, lambda weight: weight == 0)


def _divergence(S: Tensor, parts: Tensor, n_classes: int) -> Tensor:
    """KL(Dir(alpha) || Dir(1)) of the sum of alpha and that of its `_part`."""
    K = S.new_full((), n_classes)
    return parts - _part(S) + _part(K) + (K - 1) * (S.digamma() - K.digamma())


def _part(a: Tensor) -> Tensor:
    """Return `(a - 1) (psi(a) - 1) - log Gamma(a)`, which is zero at 1."""
    exact = (a - 1) * (a.digamma() - 1) - a.lgamma()
    # in Stirling's series the terms of size a log(a) have cancelled
    r = 1 / a
    tail = r * (1 / 3 + r * (1 / 12 + r * (1 / 90 - r * (1 / 120 + r * (1 / 210 - r / 252)))))
    return torch.where(a < 30, exact, (1 - torch.log(2 * math.pi * a)) / 2 + tail)


def _squared(alpha_y: Tensor, alpha: Tensor) -> Tensor:
    S = alpha.sum(-1, keepdim=True)
    p, p_y = alpha / S, alpha_y / S
    variance = (p * (1 - p)).sum(-1, keepdim=True) / (S + 1)
    return 1 - 2 * p_y + (p * p).sum(-1, keepdim=True) + variance


def _digamma(alpha_y: Tensor, alpha: Tensor) -> Tensor:
    return alpha.sum(-1, keepdim=True).digamma() - alpha_y.digamma()


def _log(alpha_y: Tensor, alpha: Tensor) -> Tensor:
    return alpha.sum(-1, keepdim=True).log() - alpha_y.log()


_FIT = {"squared": _squared, "digamma": _digamma, "log": _log}
_EVIDENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "relu": F.relu,
    "exp": lambda logits: logits.clamp(-10, 10).exp(),
}
