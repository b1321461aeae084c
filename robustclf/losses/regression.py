"""The loss of regression by classification: labels are bins of a number."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from robustclf.losses._base import Loss
from robustclf.losses._hyperparameters import Scalar, check_range


class RegressionToClassification(Loss):
    r"""Loss for bins of a number: far bins cost more than near ones, and spread is rewarded.

    .. math:: w \sum_k p_k \, |v_y - v_k|^q + \lambda \sum_k p_k \log p_k

    with :math:`v_k` the middle of bin k. Without the second term, the negative entropy, all mass
    would go to one bin. It is for :class:`~robustclf.conformal.ConformalRegressor`, has no alias
    and is not robust to noise.

    Parameters
    ----------
    middles : array-like of shape (n_classes,), optional
        Middles of the bins, in standard deviations of the number. Default: from -3 to 3. A
        :class:`~robustclf.conformal.ConformalRegressor` sets them.
    q : float, default=0.5
        Exponent of the distance, in (0, inf).
    weight : float, default=5.0
        Weight w of the distance, in [0, inf).
    entropy : float, default=1.0
        Weight :math:`\lambda` of the entropy, in [0, inf). The defaults are the paper's.

    Notes
    -----
    One published library subtracts the second term, which punishes spread.

    References
    ----------
    E. Guha, S. Natarajan, T. Möllenhoff, M. E. Khan, E. Ndiaye, "Conformal prediction via
    regression-as-classification", ICLR 2024, arXiv:2404.08168.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import RegressionToClassification
    >>> loss = RegressionToClassification(middles=[0.0, 1.0, 4.0])
    >>> loss.per_label(torch.zeros(1, 3))
    tensor([[3.9014, 3.4548, 5.1215]])
    """

    labelwise = False

    def __init__(
        self,
        middles: ArrayLike | None = None,
        q: Scalar = 0.5,
        weight: Scalar = 5.0,
        entropy: Scalar = 1.0,
    ) -> None:
        self.middles = middles
        self.q = q
        self.weight = weight
        self.entropy = entropy

    def check(self, n_classes: int) -> None:
        """Raise a ValueError for what is out of range, or other bins than classes."""
        check_range("q", self.q, "(0, inf)")
        check_range("weight", self.weight, "[0, inf)")
        check_range("entropy", self.entropy, "[0, inf)")
        if self.middles is not None and len(torch.as_tensor(self.middles)) != n_classes:
            raise ValueError(
                f"middles has {len(torch.as_tensor(self.middles))} bins for {n_classes} classes."
            )

    def _middles(self, x: Tensor) -> Tensor:
        if self.middles is None:
            return torch.linspace(-3, 3, x.shape[-1], dtype=x.dtype, device=x.device)
        return torch.as_tensor(self.middles, dtype=x.dtype, device=x.device)

    def of_bins(self, x: Tensor, middles: Tensor) -> Tensor:
        """Loss of labels in bins of these middles, `(..., label)`, given log probabilities."""
        p = x.exp()
        distance = (middles.unsqueeze(-1) - self._middles(x)).abs()  # (..., label, class)
        power = distance ** (self.q.unsqueeze(-1) if isinstance(self.q, Tensor) else self.q)
        cost = (power * p.unsqueeze(-2)).sum(-1)
        return self.weight * cost + self.entropy * (p * x).sum(-1, keepdim=True)

    def values(self, x: Tensor) -> Tensor:
        """Loss of each sample at each label, given the log probabilities."""
        return self.of_bins(x, self._middles(x))

    def value_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Loss at the labels `index`, `(..., 1)`, given the log probabilities."""
        return self.of_bins(x, self._middles(x)[index])
