"""Strategies that edit the inputs and targets of a batch before the forward pass."""

from __future__ import annotations

from typing import Any

import torch

from robustclf.losses._hyperparameters import check_range
from robustclf.strategies._base import STRATEGIES, Batch, Mixing, Strategy


@STRATEGIES.register("mixup")
class Mixup(Strategy):
    r"""Train on convex combinations of pairs of rows and of their losses.

    .. math::
        \tilde x_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \qquad
        \lambda\, w_i \ell(f(\tilde x_i), t_i) + (1 - \lambda)\, w_{\pi(i)} \ell(f(\tilde x_i),
        t_{\pi(i)})

    with one :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` and one permutation :math:`\pi` per
    batch. Losses are mixed, as in the published code: a loss of this package is linear in its
    target distribution, so the mixed target gives exactly that. Columns of category codes cannot
    be averaged; each takes row i's value with probability :math:`\lambda`, else its partner's,
    which mixes their one-hot vectors in expectation.

    Parameters
    ----------
    alpha : float, default=1.0
        Concentration of the Beta distribution, in (0, inf). Small values mix little.

    Raises
    ------
    ValueError
        If ``alpha`` is not positive.

    References
    ----------
    Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018.
    arXiv:1710.09412.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy="mixup", strategy__alpha=0.4, random_state=0).fit(X, y)
    >>> clf.predict_proba(X).shape
    (178, 3)
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` unless alpha is positive."""
        check_range("alpha", self.alpha, "(0, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Mix every row with a partner of the same batch."""
        lam = _symmetric_beta(float(self.alpha))
        n = batch.index.shape[0]
        mixing = Mixing(lam, torch.randperm(n, device=batch.index.device), batch.x)
        x = mixing(batch.x)
        if net.n_codes:
            codes = batch.x[..., -net.n_codes :]
            mine = torch.rand(codes.shape, device=codes.device) < lam
            x[..., -net.n_codes :] = torch.where(
                mine, codes, codes.index_select(-2, mixing.partner)
            )
        return mixing.batch(batch, x, net.n_classes)


def _symmetric_beta(alpha: float) -> float:
    """Draw from Beta(alpha, alpha) through logarithms of gamma variates.

    ``torch.distributions.Beta`` gives 1/2 where both gamma variates underflow, which is the rule
    for a small alpha and the opposite of what it should give.
    """
    ones = torch.ones(2, dtype=torch.float64)
    larger = torch.distributions.Gamma(alpha + ones, ones).sample()
    log_gamma = larger.log() + torch.rand_like(ones).log() / alpha
    return float(torch.sigmoid(log_gamma[0] - log_gamma[1]))
