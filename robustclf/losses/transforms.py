"""Losses of transformed logits: what the network says is edited before any loss sees it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import loguniform, uniform
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, Wrapper, log_softmax
from robustclf.losses._hyperparameters import Scalar, check_range, like


class Transformed(Wrapper):
    """Base class of the losses of transformed logits; a subclass implements `transform`."""

    def transform(self, logits: Tensor) -> Tensor:
        """Return what the loss inside takes for logits."""
        raise NotImplementedError

    takes_log_p = False
    symmetric = property(lambda self: self.inner.symmetric)
    bounded = property(lambda self: self.inner.bounded)

    def prepare(self, logits: Tensor) -> Tensor:
        """Return what the loss inside makes of the transformed logits."""
        return self.inner.prepare(self.transform(logits))


@LOSSES.register("temperature")
class Temperature(Transformed):
    r"""Loss of logits divided by a temperature: above 1 it asks for larger margins.

    .. math:: \ell(z / T)

    `predict_proba` divides by the temperature too.

    Parameters
    ----------
    loss : str or Loss, default="ce"
    temperature : float, default=1.0
        T in (0, inf).

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML
    2017, arXiv:1706.04599.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import Temperature
    >>> Temperature("ce", temperature=2.0).per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.3133, 1.3133]])
    """

    own_search_space = {"temperature": loguniform(0.2, 5)}

    def __init__(self, loss: str | Loss = "ce", temperature: Scalar = 1.0) -> None:
        self.loss = loss
        self.temperature = temperature

    convex = property(lambda self: self.inner.convex)
    proper = property(lambda self: self.inner.proper)

    def check(self, n_classes: int) -> None:
        """Check the temperature and the loss inside."""
        check_range("temperature", self.temperature, "(0, inf)")
        super().check(n_classes)

    def transform(self, logits: Tensor) -> Tensor:
        """Return `z / T`."""
        return logits / self.temperature

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities, as the loss inside reads `z / T`."""
        return self.inner.inverse_link(self.transform(logits))


@LOSSES.register("logit_adjusted")
class LogitAdjusted(Transformed):
    r"""Logit-adjusted loss: trains for balanced accuracy where classes differ in frequency.

    .. math:: \ell(z + \tau \log \pi)

    The network learns what speaks for a class beyond its frequency pi; `predict_proba` leaves the
    frequencies out.

    Parameters
    ----------
    loss : str or Loss, default="ce"
    prior : array-like of shape (n_classes,), default=None
        pi: the frequency of each class, positive; rescaled to sum to one. A tensor may have
        leading axes `(member, 1)`. `check` refuses None.
    tau : float, default=1.0
        Strength in [0, inf).

    References
    ----------
    A. K. Menon, S. Jayasumana, A. S. Rawat, H. Jain, A. Veit, S. Kumar, "Long-tail learning via
    logit adjustment", ICLR 2021, arXiv:2007.07314.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import LogitAdjusted
    >>> LogitAdjusted("ce", prior=[0.9, 0.1]).per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.0149, 4.2122]])
    """

    own_search_space = {"tau": uniform(0, 2)}

    def __init__(
        self,
        loss: str | Loss = "ce",
        prior: ArrayLike | Tensor | None = None,
        tau: Scalar = 1.0,
    ) -> None:
        self.loss = loss
        self.prior = prior
        self.tau = tau

    convex = property(lambda self: self.inner.convex)

    def check(self, n_classes: int) -> None:
        """Check the prior, tau and the loss inside."""
        if self.prior is None:
            raise ValueError("prior must be the frequency of each class, got None")
        prior = _vector(self.prior)
        if prior.shape[-1:] != (n_classes,):
            raise ValueError(f"prior must have shape ({n_classes},), got {tuple(prior.shape)}")
        if not ((prior > 0) & prior.isfinite()).all():
            raise ValueError(f"prior must be positive, got {self.prior!r}")
        check_range("tau", self.tau, "[0, inf)")
        super().check(n_classes)

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the checked loss, with the prior as a tensor."""
        return super().build(n_classes, n_members)._replaced(prior=_vector(self.prior))

    def transform(self, logits: Tensor) -> Tensor:
        """Return `z + tau log prior`."""
        prior = _vector(self.prior)
        log_prior = (prior / prior.sum(-1, keepdim=True)).log().to(logits)
        return logits + self.tau * log_prior


@LOSSES.register("logit_clipped")
class LogitClipped(Transformed):
    r"""Loss of logits of bounded norm (LogitClip): any loss made bounded.

    .. math:: \ell\left(z \cdot \min\left\{1, \frac{\tau}{\lVert z \rVert_p}\right\}\right)

    `predict_proba` reads the clipped logits. The published code scales them to another norm than
    its parameter says; here it is the paper's.

    Parameters
    ----------
    loss : str or Loss, default="ce"
    tau : float, default=1.5
        Largest norm of the logits, in (0, inf). Published: 1 to 2.5 (CIFAR).
    p : float, default=2.0
        Order of the norm, in [1, inf].

    References
    ----------
    H. Wei, H. Zhuang, R. Xie, L. Feng, G. Niu, B. An, Y. Li, "Mitigating memorization of noisy
    labels by clipping the model prediction", ICML 2023, arXiv:2212.04055.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import LogitClipped
    >>> LogitClipped("ce").per_label(torch.tensor([[2.0, 0.0], [200.0, 0.0]]))
    tensor([[0.2014, 1.7014],
            [0.2014, 1.7014]])
    """

    bounded = True
    shift_invariant = False
    own_search_space = {"tau": loguniform(0.5, 10)}

    def __init__(self, loss: str | Loss = "ce", tau: Scalar = 1.5, p: float = 2.0) -> None:
        self.loss = loss
        self.tau = tau
        self.p = p

    def check(self, n_classes: int) -> None:
        """Check tau, p and the loss inside."""
        check_range("tau", self.tau, "(0, inf)")
        check_range("p", self.p, "[1, inf]")
        super().check(n_classes)

    def transform(self, logits: Tensor) -> Tensor:
        """Return the clipped logits."""
        high = logits.detach().abs().amax(-1, keepdim=True).clamp_min(1)  # to its p-th power: inf
        norm = high * torch.linalg.vector_norm(logits / high, self.p, dim=-1, keepdim=True)
        clipped: Tensor = logits * (self.tau / norm.maximum(like(self.tau, norm)))
        return clipped

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities, as the loss inside reads the clipped logits."""
        return self.inner.inverse_link(self.transform(logits))


@LOSSES.register("eps_softmax")
class EpsilonSoftmax(Wrapper):
    r"""Loss of the epsilon-softmax: the most probable class gets m more, then all are rescaled.

    .. math:: \ell\left(\log \frac{p + m \, \mathbb{1}_{\arg\max p}}{m + 1}\right)

    Whatever the logits, the probabilities are within epsilon = 1 / (m + 1) of a one-hot vector, and
    a loss of one-hot vectors is symmetric. `predict_proba` is the softmax.

    Parameters
    ----------
    loss : str or Loss, default="ce"
    m : float, default=1e5
        In [0, inf); 0 is the softmax. Published: 1e2 to 1e5 (CIFAR).

    References
    ----------
    J. Wang, X. Zhou, D. Zhai, J. Jiang, X. Ji, X. Liu, "epsilon-softmax: approximating one-hot
    vectors for mitigating label noise", NeurIPS 2024.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import EpsilonSoftmax
    >>> EpsilonSoftmax("ce", m=100.0).per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[1.1806e-03, 6.7420e+00]])
    """

    own_search_space = {"m": loguniform(1, 1e5)}
    shift_invariant = True
    takes_log_p = True
    labelwise = False

    def __init__(self, loss: str | Loss = "ce", m: Scalar = 1e5) -> None:
        self.loss = loss
        self.m = m

    bounded = property(lambda self: self.inner.bounded)
    symmetric = property(lambda self: self.inner.symmetric)

    def check(self, n_classes: int) -> None:
        """Check m and the loss inside."""
        check_range("m", self.m, "[0, inf)")
        super().check(n_classes)

    def prepare(self, logits: Tensor) -> Tensor:
        """Return log probabilities, if the loss inside takes them."""
        return log_softmax(logits)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        return self.inner.values(self._prepared(x))

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        if not self.inner.pointwise:
            return self.inner.value_at(self._prepared(x), index)
        log_p_y = self._sharpened(x.gather(-1, index), index == _best(x))
        return self.inner.of(log_p_y, log_p_y)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return self.inner.total(self._prepared(x))

    def _prepared(self, log_p: Tensor) -> Tensor:
        labels = torch.arange(log_p.shape[-1], device=log_p.device)
        sharpened = self._sharpened(log_p, labels == _best(log_p))
        return sharpened if self.inner.takes_log_p else self.inner.prepare(sharpened)

    def _sharpened(self, log_p: Tensor, is_best: Tensor) -> Tensor:
        m = like(self.m, log_p)
        gain = torch.log1p(m * torch.exp(-torch.where(is_best, log_p, 0.0)))
        return log_p - torch.log1p(m) + is_best * gain


def _best(x: Tensor) -> Tensor:
    best: Tensor = x.detach().max(-1, keepdim=True).indices
    return best


def _vector(prior: ArrayLike | Tensor | None) -> Tensor:
    return prior if isinstance(prior, Tensor) else torch.from_numpy(np.array(prior, dtype=float))
