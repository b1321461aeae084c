"""Losses corrected by the matrix of the noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from robustclf.losses._base import LOSSES, Loss, Wrapper, log_softmax


@LOSSES.register("forward_corrected")
class ForwardCorrected(Wrapper):
    r"""Forward correction: the loss of the probabilities that the noise makes of p.

    .. math:: \ell(T^\top p)

    For cross entropy, as for any proper loss, the best p on noisy labels is the best on clean ones.

    Parameters
    ----------
    loss : str or Loss, default="ce"
        The loss to correct.
    transition : array-like of shape (n_classes, n_classes), default=None
        T: row i is the distribution of the label given that the true class is i. A tensor may
        have a leading member axis, one matrix per stacked network. `check` refuses None.

    Notes
    -----
    Where `(p @ T)_y` falls below 1e-31 (in float32) its part `p_y T_yy`, which is computed in log
    space, stands for it, so that the loss of a confident mistake is finite and has a gradient.

    References
    ----------
    G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu, "Making deep neural networks robust to
    label noise: a loss correction approach", CVPR 2017, arXiv:1609.03683.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import ForwardCorrected
    >>> loss = ForwardCorrected("ce", transition=[[0.8, 0.2], [0.4, 0.6]])
    >>> loss.per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[0.2846, 1.3956]])
    """

    def __init__(
        self, loss: str | Loss = "ce", transition: ArrayLike | Tensor | None = None
    ) -> None:
        self.loss = loss
        self.transition = transition

    @property
    def bounded(self) -> bool:
        """Whether the inner loss is, or every label has a positive probability in each row of T."""
        positive = self.transition is not None and bool((_matrix(self.transition) > 0).all())
        return positive or bool(self.inner.bounded)

    symmetric = property(lambda self: self.inner.symmetric)
    shift_invariant = True
    takes_log_p = False

    def prepare(self, logits: Tensor) -> Tensor:
        """Return what the loss inside makes of the noisy probabilities."""
        log_q = self._noisy_log_p(log_softmax(logits))
        return log_q if self.inner.takes_log_p else self.inner.prepare(log_q)

    def check(self, n_classes: int) -> None:
        """Check the matrix and the loss inside."""
        _check_transition(self.transition, n_classes)
        super().check(n_classes)

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the checked loss, with the matrix as a tensor."""
        return super().build(n_classes, n_members)._replaced(transition=_matrix(self.transition))

    def _noisy_log_p(self, log_p: Tensor) -> Tensor:
        """Logarithm of p @ T."""
        T = _matrix(self.transition).to(log_p)
        q = _matmul(log_p.exp(), T)
        # where q underflows, its part p_y T_yy stands for it: a clamp would have no gradient
        smallest = torch.finfo(q.dtype).tiny / torch.finfo(q.dtype).eps
        stay = T.diagonal(dim1=-2, dim2=-1).clamp(min=smallest).log()
        stay = stay if T.ndim == 2 else stay.unsqueeze(-2)
        normal = q > smallest
        return torch.where(normal, torch.where(normal, q, 1.0).log(), log_p + stay)


@LOSSES.register("backward_corrected")
class BackwardCorrected(Wrapper):
    r"""Backward correction: its mean over noisy labels is the loss of the clean label.

    .. math:: \sum_j (T^{-1})_{yj} \, \ell_j

    Unbiased, but some coefficients are negative: the correction of an unbounded loss is unbounded
    below, and a flexible network will find that out.

    Parameters
    ----------
    loss : str or Loss, default="ce"
        The loss to correct.
    transition : array-like of shape (n_classes, n_classes), default=None
        T: row i is the distribution of the label given that the true class is i; invertible. A
        tensor may have a leading member axis, one matrix per stacked network. `check` refuses
        None.

    References
    ----------
    G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu, "Making deep neural networks robust to
    label noise: a loss correction approach", CVPR 2017, arXiv:1609.03683.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import BackwardCorrected
    >>> loss = BackwardCorrected("ce", transition=[[0.8, 0.2], [0.4, 0.6]])
    >>> loss.per_label(torch.tensor([[2.0, 0.0]]))
    tensor([[-0.8731,  4.1269]])
    """

    def __init__(
        self, loss: str | Loss = "ce", transition: ArrayLike | Tensor | None = None
    ) -> None:
        self.loss = loss
        self.transition = transition

    bounded = property(lambda self: self.inner.bounded)
    labelwise = False

    def check(self, n_classes: int) -> None:
        """Check the matrix, also that it is invertible, and the loss inside."""
        condition = torch.linalg.cond(_check_transition(self.transition, n_classes))
        if not (condition < 1e6).all():
            raise ValueError(
                f"transition must be invertible, got condition number {condition.max():.3g}"
            )
        super().check(n_classes)

    def build(self, n_classes: int, n_members: int = 1) -> Loss:
        """Return the checked loss, with the matrix inverted once."""
        inverse = torch.linalg.inv(_matrix(self.transition))
        return super().build(n_classes, n_members)._replaced(inverse_=inverse)

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`."""
        return self.values(x).gather(-1, index)

    def total(self, x: Tensor) -> Tensor:
        """Sum of the losses at all labels, `(..., 1)`."""
        return self.values(x).sum(-1, keepdim=True)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label."""
        losses = self.inner.values(x)
        built = hasattr(self, "inverse_")
        inverse: Tensor = self.inverse_ if built else torch.linalg.inv(_matrix(self.transition))
        return _matmul(losses, inverse.mT.to(losses))


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in the precision of its factors: losses keep theirs under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _matrix(transition: ArrayLike | Tensor | None) -> Tensor:
    """Transition matrix in at least float32, which inversion needs."""
    if isinstance(transition, Tensor):
        return transition.to(torch.promote_types(transition.dtype, torch.float32))
    return torch.from_numpy(np.array(transition, dtype=np.float64))


def _check_transition(transition: ArrayLike | Tensor | None, n_classes: int) -> Tensor:
    if transition is None:
        raise ValueError(
            "transition must be a matrix whose row i is the distribution of the label given true "
            "class i, got None"
        )
    T = _matrix(transition).double()
    if T.ndim < 2 or T.shape[-2:] != (n_classes, n_classes):
        raise ValueError(
            f"transition must have shape ({n_classes}, {n_classes}), got {tuple(T.shape)}"
        )
    if not (T >= 0).all():
        raise ValueError(f"transition must be non-negative, got {T.min():.6g}")
    sums = T.sum(-1).flatten()
    worst = sums[(sums - 1).abs().argmax()]
    if not abs(worst - 1) < 1e-4:
        raise ValueError(f"transition must have rows that sum to one, got a sum of {worst:.6g}")
    return T
