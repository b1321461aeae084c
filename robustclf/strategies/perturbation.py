"""Strategies that move rows at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy


@STRATEGIES.register("feature_noise")
class FeatureNoise(Strategy):
    r"""Add Gaussian noise to the numbers of every row.

    .. math:: x_{ij} \leftarrow x_{ij} + b_{ij}\, \sigma\, \varepsilon_{ij}, \qquad
              \varepsilon_{ij} \sim N(0, 1), \quad b_{ij} \sim \mathrm{Bernoulli}(p)

    Indicators and codes of categories stay as they are.

    Parameters
    ----------
    scale : float, default=0.1
        Standard deviation sigma, non-negative, in the units of the encoded numbers: the
        interquartile range of a feature is about 1.
    p : float, default=1.0
        Share of the numbers that get noise, in [0, 1].

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    To first order this adds ``scale ** 2 / 2`` times the curvature of the loss in x to the
    objective. A missing number is encoded as 0 and gets noise like any other.

    References
    ----------
    Bishop. Training with Noise is Equivalent to Tikhonov Regularization. Neural Computation 7(1),
    1995.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import FeatureNoise
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", strategy=FeatureNoise(scale=0.3), random_state=0)
    >>> clf = clf.fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, scale: float = 0.1, p: float = 1.0) -> None:
        self.scale = scale
        self.p = p

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("scale", self.scale, "[0, inf)")
        check_range("p", self.p, "[0, 1]")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Return the batch with noise on its numbers."""
        numbers = batch.x[..., : n_numeric(net)]
        noise = self.scale * torch.randn_like(numbers)
        if self.p < 1:
            noise = noise * (torch.rand_like(numbers) < self.p)
        return replace(batch, x=with_numbers(batch.x, numbers + noise))


def n_numeric(net: Any) -> int:
    """Return how many leading columns of an encoded row are numbers."""
    n: int = net.module_.inputs.n_numeric
    return n


def with_numbers(x: Tensor, numbers: Tensor) -> Tensor:
    """Return the encoded rows with other numbers."""
    return torch.cat([numbers, x[..., numbers.shape[-1] :]], dim=-1)
