"""Strategies that mix the rows of a batch in pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


@STRATEGIES.register("decoupled_mixup")
class DecoupledMixup(Mixup):
    r"""Mixup that also asks for each of the two labels as if the other were not there.

    .. math::
        \mathrm{mixup} - \eta \left( w_i \log \frac{e^{z_a}}{\sum_{c \ne b} e^{z_c}}
        + w_{\pi(i)} \log \frac{e^{z_b}}{\sum_{c \ne a} e^{z_c}} \right)

    for a mixed row with logits z and the labels :math:`a = y_i \ne b = y_{\pi(i)}`. Neither term
    depends on how much of a label is in the mixture, so both classes are told from the others with
    confidence. Where :math:`a = b` it is mixup.

    Parameters
    ----------
    alpha : float, default=1.0
        Concentration of the Beta distribution of mixup, in (0, inf).
    eta : float, default=0.1
        Strength of the decoupled terms, non-negative. Published: 0.1 (CIFAR-100: 0.01).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    With two classes nothing is left to decouple, and it is mixup. The decoupled terms are left out
    where a row of weight 0 takes part: a held-out label stays unknown. The published code also
    leaves them out for mixtures of equal parts, which it cannot tell apart. A target that is a
    distribution already counts as its most probable class.

    References
    ----------
    Liu et al. Harnessing Hard Mixed Samples with Decoupled Regularizer. NeurIPS 2023.
    arXiv:2203.10761.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import DecoupledMixup
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=DecoupledMixup(alpha=0.4), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, alpha: float = 1.0, eta: float = 0.1) -> None:
        super().__init__(alpha)
        self.eta = eta

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        super().check(loss, n_classes)
        check_range("eta", self.eta, "[0, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Mix every row with a partner of the same batch."""
        mixed = super().on_batch(net, batch)
        assert mixed.mixing is not None
        label = batch.target.argmax(-1) if batch.target.is_floating_point() else batch.target
        partner = mixed.mixing.partner
        self.pair_ = [(label, batch.weight)]
        self.pair_ += [(label.index_select(-1, partner), batch.weight.index_select(-1, partner))]
        return mixed

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the decoupled terms of each sample, ``(member, sample)``."""
        (a, w_a), (b, w_b) = self.pair_
        decoupled = (a != b) & (w_a > 0) & (w_b > 0)
        terms = w_a * _without(logits, a, b) + w_b * _without(logits, b, a)
        return self.eta * torch.where(decoupled, terms, 0.0)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Free the labels of the last batch."""
        self.__dict__.pop("pair_", None)


@STRATEGIES.register("feature_swap")
class FeatureSwap(Strategy):
    r"""CutMix for tables: give every row some features of a partner, and mix their losses.

    .. math::
        \tilde x_{ij} = m_{ij}\, x_{ij} + (1 - m_{ij})\, x_{\pi(i)j}, \qquad
        \lambda\, w_i \ell(f(\tilde x_i), t_i) + (1 - \lambda)\, w_{\pi(i)} \ell(f(\tilde x_i),
        t_{\pi(i)})

    with one permutation :math:`\pi` per batch. Each row has a random mask m of its own, with the
    same number of zeros: the share of the partner, drawn from Beta(alpha, alpha) and rounded to
    whole columns. :math:`\lambda` is the share of the columns that a row keeps.

    Parameters
    ----------
    alpha : float, default=1.0
        Concentration of the Beta distribution, in (0, inf). Small values exchange few features, or
        nearly all.
    p : float, default=0.5
        Share of the batches in which features are exchanged, in [0, 1]. Published for images: 0.5
        (CIFAR), 1 (ImageNet).

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    Columns are those of the encoded row: a number, a code, or an indicator. A category with few
    values has one indicator per value, and a swapped row may mix the indicators of two values.
    Each value of a swapped row is one that occurs in its column, unlike those of mixup.

    References
    ----------
    Yun et al. CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features. ICCV 2019. arXiv:1905.04899. In tables, without mixed losses: Somepalli et al. SAINT.
    arXiv:2106.01342.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import FeatureSwap
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(strategy=FeatureSwap(alpha=0.5), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, alpha: float = 1.0, p: float = 0.5) -> None:
        self.alpha = alpha
        self.p = p

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("alpha", self.alpha, "(0, inf)")
        check_range("p", self.p, "[0, 1]")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Exchange features between the rows of the batch."""
        if float(torch.rand(())) >= self.p:
            return batch
        n, n_columns = batch.x.shape[-2:]
        device = batch.x.device
        n_taken = round((1 - _symmetric_beta(float(self.alpha))) * n_columns)
        partner = torch.randperm(n, device=device)
        taken = torch.rand(n, n_columns, device=device).argsort(-1) < n_taken
        x = torch.where(taken, batch.x.index_select(-2, partner), batch.x)
        mixing = Mixing(1 - n_taken / max(n_columns, 1), partner, batch.x)
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


def _without(logits: Tensor, label: Tensor, other: Tensor) -> Tensor:
    """Cross entropy of ``label`` among all classes but ``other``, ``(member, sample)``."""
    shape = (*logits.shape[:-1], 1)
    others = logits.scatter(-1, other.unsqueeze(-1).expand(shape), -torch.inf)
    kept = others.gather(-1, label.unsqueeze(-1).expand(shape)).squeeze(-1)
    entropy: Tensor = others.logsumexp(-1) - kept
    return entropy
