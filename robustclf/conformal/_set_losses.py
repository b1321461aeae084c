"""What a set of classes costs, given the classes that are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from robustclf._registry import Registry

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SLACK = 1e-9  # of the bounds of a loss


class SetLoss(BaseEstimator):
    """Base class of the losses of a set: called with sets and targets, ``(row, class)``.

    Attributes
    ----------
    of_labels : bool
        Whether it depends on what is true at all.
    monotone : bool
        Whether it may fall with all sets as they grow, or grow with them; the rows tell.

    Examples
    --------
    >>> from robustclf.conformal import FalseNegativeRate
    >>> sets = np.array([[True, False, True]])
    >>> FalseNegativeRate()(sets, np.array([[True, True, False]]))
    array([0.5])
    >>> FalseNegativeRate().per_label(sets)
    array([[0., 1., 0.]])
    """

    of_labels: ClassVar[bool] = True
    monotone: ClassVar[bool] = True

    def __call__(self, sets: Mask, target: Mask) -> Floats:
        """Return the loss of each row."""
        raise NotImplementedError

    def per_label(self, sets: Mask) -> Floats:
        """Return the loss of each row if one class alone is true, for each class."""
        losses = np.empty(sets.shape)
        for k in range(sets.shape[1]):
            target = np.zeros(sets.shape, dtype=bool)
            target[:, k] = True
            losses[:, k] = self(sets, target)
        return losses

    def largest(self, n_classes: int) -> float:
        """Return the largest loss there is; the smallest is 0."""
        return 1.0


SET_LOSSES: Registry[SetLoss] = Registry("set loss", SetLoss)


@SET_LOSSES.register("fnr")
class FalseNegativeRate(SetLoss):
    r"""Share of the true classes that the set lacks, :math:`1 - |C \cap Y| / |Y|`.

    With one true class in each row it is the miscoverage.

    Examples
    --------
    >>> FalseNegativeRate()(np.array([[True, False]]), np.array([[True, True]]))
    array([0.5])
    """

    def __call__(self, sets: Mask, target: Mask) -> Floats:
        """Return the loss of each row; 0 where no class is true."""
        count = target.sum(axis=1)
        missed: Floats = (target & ~sets).sum(axis=1) / np.maximum(count, 1)
        return missed

    def per_label(self, sets: Mask) -> Floats:
        """Return 1 for each class that the set lacks."""
        return (~sets).astype(np.float64)


@SET_LOSSES.register("fdr")
class FalseDiscoveryRate(SetLoss):
    r"""Share of the set that is not true, :math:`1 - |C \cap Y| / |C|`; 0 for the empty set.

    Larger sets may have a larger or a smaller one: it is for :class:`LearnThenTest`.

    Examples
    --------
    >>> FalseDiscoveryRate()(np.array([[True, True]]), np.array([[True, False]]))
    array([0.5])
    """

    monotone = False

    def __call__(self, sets: Mask, target: Mask) -> Floats:
        """Return the loss of each row."""
        wrong: Floats = (sets & ~target).sum(axis=1) / np.maximum(sets.sum(axis=1), 1)
        return wrong

    def per_label(self, sets: Mask) -> Floats:
        """Return the loss of each row and class."""
        size = sets.sum(axis=1, keepdims=True)
        losses: Floats = (size - sets) / np.maximum(size, 1)
        return losses


@SET_LOSSES.register("size")
class SetSize(SetLoss):
    r"""Number of classes in the set, :math:`|C|`, whatever is true: a budget of work.

    Examples
    --------
    >>> SetSize()(np.array([[True, True, False]]), np.array([[True, False, False]]))
    array([2.])
    """

    of_labels = False

    def __call__(self, sets: Mask, target: Mask) -> Floats:
        """Return the sizes."""
        size: Floats = sets.sum(axis=1).astype(np.float64)
        return size

    def per_label(self, sets: Mask) -> Floats:
        """Return the sizes, for each class."""
        losses: Floats = np.repeat(self(sets, sets)[:, None], sets.shape[1], axis=1)
        return losses

    def largest(self, n_classes: int) -> float:
        """Return the number of classes."""
        return float(n_classes)


class UserLoss(SetLoss):
    """A function of sets and targets with values in [0, 1].

    Examples
    --------
    >>> loss = UserLoss(lambda sets, target: 1.0 - (sets & target).any(axis=1))
    >>> loss.per_label(np.array([[True, False]]))
    array([[0., 1.]])
    """

    def __init__(self, function: Callable[[Mask, Mask], Any]) -> None:
        self.function = function

    def __call__(self, sets: Mask, target: Mask) -> Floats:
        """Return the values of the function, if they are losses."""
        losses = np.asarray(self.function(sets, target), dtype=np.float64)
        if losses.shape != (len(sets),):
            raise ValueError(
                f"loss must return one number for each of {len(sets)} rows, got shape "
                f"{losses.shape}."
            )
        if not ((losses >= -SLACK) & (losses <= 1 + SLACK)).all():
            raise ValueError(
                "loss must return numbers in [0, 1], got some from "
                f"{losses.min():g} to {losses.max():g}: divide it by its largest value."
            )
        return losses


def make_set_loss(loss: Any) -> SetLoss:
    """Return the loss of an alias, an instance or a function."""
    if callable(loss) and not isinstance(loss, (SetLoss, type)):
        return UserLoss(loss)
    return SET_LOSSES.make(loss)
