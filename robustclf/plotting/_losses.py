"""What a label costs, and how hard it pulls, by the probability that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustclf._random import seeded
from robustclf._registry import check_known
from robustclf._training_set import as_tensor
from robustclf.losses import Loss, make_loss
from robustclf.plotting._base import Display, check_matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {
    "loss": r"loss $\ell$",
    "gradient_p": r"slope in the probability, $|\partial \ell / \partial p_y|$",
    "gradient_logit": r"slope in the logit, $|\partial \ell / \partial z_y|$",
}


class LossDisplay(Display):
    r"""Loss of a label, or its gradient, against the probability :math:`p_y` of the label.

    The other classes share the rest equally: :math:`p_k = (1 - p_y) / (K - 1)`. A dotted line marks
    chance, :math:`1 / K`. What a wrong label does to the network is its gradient in the logit,
    :math:`|\partial \ell / \partial z_y|`, on the left: cross entropy pulls hardest there,
    :math:`1 - p_y`, a robust loss lets go.

    Parameters
    ----------
    p : array-like of shape (n_points,)
        Probabilities of the label.
    curves : mapping of str to array-like of shape (n_points,)
        What to draw, by the name of the loss.
    quantity : {"loss", "gradient_p", "gradient_logit"}, default="loss"
        What the curves are. ``"gradient_p"`` is drawn on a logarithmic axis.
    n_classes : int, optional
        K, for the line at chance.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
    ax_, figure_ : matplotlib Axes and Figure

    References
    ----------
    Zhang, Sabuncu. Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels. NeurIPS 2018. arXiv:1805.07836.

    Examples
    --------
    >>> from robustclf.plotting import LossDisplay
    >>> display = LossDisplay.from_losses(["ce", "mae"], p=[0.1, 0.5], quantity="gradient_logit")
    >>> {name: curve.round(2).tolist() for name, curve in display.curves.items()}
    {'ce': [0.9, 0.5], 'mae': [0.09, 0.25]}
    """

    def __init__(
        self,
        p: ArrayLike,
        curves: Mapping[str, ArrayLike],
        *,
        quantity: str = "loss",
        n_classes: int | None = None,
    ) -> None:
        self.p = p
        self.curves = curves
        self.quantity = quantity
        self.n_classes = n_classes

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        self : LossDisplay

        Raises
        ------
        ValueError
            For an unknown quantity, or a curve that has not as many points as ``p``.
        """
        check_known("quantity", [self.quantity], QUANTITIES)
        p = np.asarray(self.p, dtype=np.float64)
        curves = {name: np.asarray(values) for name, values in self.curves.items()}
        for name, values in curves.items():
            if values.shape != p.shape:
                raise ValueError(f"curve {name!r} has shape {values.shape}, p has {p.shape}.")
        ax = self._take_axes(ax)
        self.lines_ = {name: ax.plot(p, values, label=name)[0] for name, values in curves.items()}
        if self.n_classes is not None:
            label = f"chance, 1 / {self.n_classes}"
            ax.axvline(1 / self.n_classes, color="0.6", linestyle=":", zorder=0, label=label)
        ax.set(xlabel="probability $p_y$ of the given label", xlim=(0, 1))
        ax.set_ylabel(QUANTITIES[self.quantity])
        if self.quantity == "gradient_p":
            ax.set_yscale("log")
        ax.legend(frameon=False)
        plain(ax)
        return self

    @classmethod
    def from_losses(
        cls,
        losses: str | Loss | Sequence[str | Loss] = ("ce", "mae", "gce"),
        *,
        quantity: str = "loss",
        n_classes: int = 10,
        p: ArrayLike | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Compute the curves of losses, and draw them.

        Parameters
        ----------
        losses : sequence of str or Loss, default=("ce", "mae", "gce")
            Aliases, or instances such as ``make_loss("gce", q=0.3)``, named by their repr.
        quantity : {"loss", "gradient_p", "gradient_logit"}, default="loss"
            The loss, its derivative along :math:`p_y`, or the one in the logit of the label, which
            is what a step of training is proportional to; both without their sign.
        n_classes : int, default=10
            K, at least 2.
        p : array-like of shape (n_points,), optional
            Probabilities in (0, 1); by default 499 from 0.002 to 0.998.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        display : LossDisplay

        Raises
        ------
        ValueError
            For an unknown loss or quantity, and for a loss that is random or learned with the
            network: these have no curve.
        """
        check_matplotlib(f"{cls.__name__}.from_losses")
        check_known("quantity", [quantity], QUANTITIES)
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        grid = np.linspace(0.002, 0.998, 499) if p is None else np.asarray(p, dtype=np.float64)
        if grid.ndim != 1 or not ((grid > 0) & (grid < 1)).all():
            raise ValueError(f"p must be a list of probabilities in (0, 1), got {grid}.")
        listed: list[Any] = [losses] if isinstance(losses, str | Loss) else list(losses)
        names = [loss if isinstance(loss, str) else repr(loss) for loss in listed]
        drawn = [_curve(loss, grid, n_classes, quantity) for loss in listed]
        curves = dict(zip(names, drawn, strict=True))
        return cls(grid, curves, quantity=quantity, n_classes=n_classes).plot(ax)


def _curve(
    loss: Any, grid: NDArray[np.float64], n_classes: int, quantity: str
) -> NDArray[np.float64]:
    with seeded(0, "cpu"):  # what is learned starts at random
        made = make_loss(loss).build(n_classes)
    if made.stochastic or list(made.parameters()):
        why = "random" if made.stochastic else "learned with the network"
        raise ValueError(f"loss {loss!r} has no curve: it is {why}.")
    p = as_tensor(grid).requires_grad_()
    odds = torch.log(p / ((1 - p) / (n_classes - 1)))
    label = torch.eye(n_classes, dtype=torch.float64)[0]
    logits = odds[:, None] * (label - 1 / n_classes)  # of mean zero: some losses are not invariant
    values = made(logits, torch.tensor([0]))
    return _gradient(values, p, logits, quantity).detach().numpy()


def _gradient(values: Tensor, p: Tensor, logits: Tensor, quantity: str) -> Tensor:
    if quantity == "loss":
        return values
    if quantity == "gradient_p":
        return torch.autograd.grad(values.sum(), p)[0].abs()
    return torch.autograd.grad(values.sum(), logits)[0][:, 0].abs()
