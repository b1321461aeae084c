"""Transition matrices of known noise: rows are true classes, columns given ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustclf._registry import check_known
from robustclf.noise._inputs import SUM_TOLERANCE

Floats = NDArray[np.float64]

CONVENTIONS = ("rest", "all")


def uniform_transition(rate: float, n_classes: int, convention: str = "rest") -> Floats:
    """Return T with ``1 - wrong`` on the diagonal, ``wrong / (K - 1)`` elsewhere.

    Parameters
    ----------
    rate : float
        In [0, 1); wrong is ``rate`` under "rest", ``rate * (K - 1) / K`` under "all".
    n_classes : int
        K, at least 2.
    convention : {"rest", "all"}
        What ``rate`` counts: wrong labels, or labels drawn from all classes.

    Returns
    -------
    ndarray of shape (n_classes, n_classes)
        Rows are true classes, columns given ones.

    Raises
    ------
    ValueError
        For a rate outside [0, 1), fewer than two classes or an unknown convention.

    Examples
    --------
    >>> uniform_transition(0.3, 3)
    array([[0.7 , 0.15, 0.15],
           [0.15, 0.7 , 0.15],
           [0.15, 0.15, 0.7 ]])
    >>> uniform_transition(0.3, 3, convention="all").diagonal()
    array([0.8, 0.8, 0.8])
    """
    check_known("convention", [convention], CONVENTIONS)
    check_n_classes(n_classes)
    wrong = float(check_rate(rate))
    if convention == "all":
        wrong = convert_rate(wrong, n_classes, to="rest")
    transition = np.full((n_classes, n_classes), wrong / (n_classes - 1))
    np.fill_diagonal(transition, 1 - wrong)
    return transition


def pair_transition(rate: float, n_classes: int) -> Floats:
    """Return T with ``1 - rate`` on the diagonal and ``rate`` at ``T[k, k + 1 mod K]``.

    Parameters
    ----------
    rate : float
        In [0, 1).
    n_classes : int
        K, at least 2.

    Returns
    -------
    ndarray of shape (n_classes, n_classes)
        Rows are true classes, columns given ones.

    Raises
    ------
    ValueError
        For a rate outside [0, 1) or fewer than two classes.

    Examples
    --------
    >>> pair_transition(0.2, 3)
    array([[0.8, 0.2, 0. ],
           [0. , 0.8, 0.2],
           [0.2, 0. , 0.8]])
    """
    check_n_classes(n_classes)
    stay = np.eye(n_classes)
    transition: Floats = stay + float(check_rate(rate)) * (np.roll(stay, 1, axis=1) - stay)
    return transition


def convert_rate(rate: float, n_classes: int, to: str = "all") -> float:
    """Return the rate of the same uniform noise under the other convention.

    ``rest = all * (K - 1) / K``: of the labels drawn from all K classes, 1 / K are right.

    Parameters
    ----------
    rate : float
        In [0, 1], under the convention that ``to`` is not.
    n_classes : int
        K, at least 2.
    to : {"all", "rest"}
        The convention to convert to.

    Raises
    ------
    ValueError
        If ``to="all"`` and more than ``(K - 1) / K`` of the labels are wrong: worse than chance,
        which drawing from all classes never is.

    Examples
    --------
    >>> convert_rate(0.4, 5, to="all"), convert_rate(0.5, 5, to="rest")
    (0.5, 0.4)
    >>> convert_rate(0.6, 2, to="all")
    Traceback (most recent call last):
    ValueError: rate=0.6 under "rest" is above (K - 1) / K = 0.5, which "all" cannot express...
    """
    check_known("convention", [to], CONVENTIONS)
    check_n_classes(n_classes)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}.")
    chance = (n_classes - 1) / n_classes
    if to == "rest":
        return rate * chance
    if rate > chance:
        raise ValueError(
            f'rate={rate:g} under "rest" is above (K - 1) / K = {chance:g}, which "all" cannot '
            "express: labels drawn from all classes are right by chance."
        )
    return rate / chance


def check_transition(transition: ArrayLike, n_classes: int | None = None) -> Floats:
    """Return a transition matrix whose rows sum to 1.

    Raises
    ------
    ValueError
        If it is not square, of another number of classes, or its rows are not probabilities.

    Examples
    --------
    >>> check_transition([[0.9, 0.3], [0.1, 0.7]])
    Traceback (most recent call last):
    ValueError: each row of transition must ... 1.2 in row 0. Its columns do: pass transition.T.
    """
    T = np.asarray(transition, dtype=np.float64)
    if T.ndim != 2 or T.shape[0] != T.shape[1]:
        raise ValueError(
            f"transition must be square, a row for each true class, got shape {T.shape}."
        )
    if n_classes is not None and len(T) != n_classes:
        raise ValueError(
            f"transition is {len(T)} x {len(T)} for {n_classes} classes. Pass classes if some "
            "have no row."
        )
    # negated, so that nan fails too
    bad = ~((T >= 0).all(axis=1) & (abs(T.sum(axis=1) - 1) <= SUM_TOLERANCE))
    if bad.any():
        row = int(bad.argmax())
        turned = (T >= 0).all() and (abs(T.sum(axis=0) - 1) <= SUM_TOLERANCE).all()
        raise ValueError(
            "each row of transition must hold probabilities that sum to 1, got "
            f"{T[row].tolist()} with sum {T[row].sum():g} in row {row}."
            + (" Its columns do: pass transition.T." if turned else "")
        )
    stochastic: Floats = T / T.sum(axis=1, keepdims=True)
    return stochastic


def check_n_classes(n_classes: int) -> None:
    """Raise ``ValueError`` for fewer than two classes."""
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes}.")


def check_rate(rate: Any) -> Floats:
    """Return rates in [0, 1) as an array."""
    rates = np.asarray(rate, dtype=np.float64)
    if not ((rates >= 0) & (rates < 1)).all():
        raise ValueError(f"rate must be in [0, 1), got {rate}.")
    return rates
