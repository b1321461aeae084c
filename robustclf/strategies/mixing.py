"""Strategies that mix the rows of a batch in pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Mixing, Strategy
from robustclf.strategies._unlabelled import SemiSupervised, with_guesses
from robustclf.strategies.relabelling import predicted
from robustclf.strategies.semi_supervised import own_predictions

RAMP_UP = 0.25  # share of the epochs in which rows without label get their weight


@STRATEGIES.register("mixup")
class Mixup(SemiSupervised):
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

    Rows without label take part with what the network predicts for them (interpolation consistency
    training): :math:`t_j = p(x_j)`, without dropout, and :math:`w_j = \lambda_u\, r\, u_j`, where
    :math:`u_j` scales the mean over these rows to that over the others and r rises as
    :math:`e^{-5 (1 - \tau)^2}`, :math:`\tau` from 0 to 1, in the first quarter of the epochs.

    Parameters
    ----------
    alpha : float, default=1.0
        Concentration of the Beta distribution, in (0, inf). Small values mix little.
    lam_u : float, default=1.0
        Weight of the mean over the rows without label, non-negative.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    As in MixMatch a partner has a label or not, and each network is its own teacher. The published
    consistency training mixes rows without label among themselves, towards the predictions of an
    average of the network over the steps, with squared errors. A guess that a strategy before it
    in the list made, such as ``"pseudo_label"``, is kept.

    References
    ----------
    Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018.
    arXiv:1710.09412. Without labels: Verma et al. Interpolation Consistency Training for
    Semi-Supervised Learning. IJCAI 2019. arXiv:1903.03825. Berthelot et al. MixMatch. NeurIPS 2019.
    arXiv:1905.02249.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", strategy="mixup", strategy__alpha=0.4)
    >>> clf = clf.set_params(random_state=0).fit(X, y)
    >>> clf.predict_proba(X).shape
    (178, 3)
    """

    stackable = True

    def __init__(self, alpha: float = 1.0, lam_u: float = 1.0) -> None:
        self.alpha = alpha
        self.lam_u = lam_u

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("alpha", self.alpha, "(0, inf)")
        check_range("lam_u", self.lam_u, "[0, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Mix every row with a partner of the same batch."""
        batch = self._guessed(net, batch)
        mixing, x = mixed_rows(net, batch, self.alpha)
        return mixing.batch(batch, x, net.n_classes)

    def _guessed(self, net: Any, batch: Batch) -> Batch:
        """Give the rows without label that have no weight yet a target and one."""
        if self.unlabelled_ is None or batch.mixing is not None:
            return batch
        tau = min(net.epoch / (RAMP_UP * net.max_epochs), 1)
        strength = self.lam_u * math.exp(-5 * (1 - tau) ** 2)
        weight = strength * self.unlabelled_.index_select(1, batch.index) * (batch.weight == 0)
        return with_guesses(batch, own_predictions(net, batch), weight)


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
    lam_u : float, default=1.0
        Weight of the mean over the rows without label in mixup, non-negative.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    With two classes nothing is left to decouple, and it is mixup. The decoupled terms are left out
    where a row of weight 0 takes part: a held-out label stays unknown, and one that mixup guesses
    does not count. The published code also leaves them out for mixtures of equal parts, which it
    cannot tell apart. A target that is a distribution already counts as its most probable class.

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
    >>> clf = RobustClassifier(loss="gce", strategy=DecoupledMixup(alpha=0.4), random_state=0)
    >>> clf = clf.fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    stackable = True

    def __init__(self, alpha: float = 1.0, eta: float = 0.1, lam_u: float = 1.0) -> None:
        super().__init__(alpha, lam_u)
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
    >>> clf = RobustClassifier(loss="gce", strategy=FeatureSwap(alpha=0.5), random_state=0)
    >>> clf = clf.fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    stackable = True

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


@STRATEGIES.register("rank_mixup")
class RankMixup(Strategy):
    r"""Be less sure of mixed rows than of the rows they are made of.

    The loss is that of the given rows; mixtures :math:`\tilde x` of them, with coefficients
    :math:`\mu \sim \mathrm{Beta}(\alpha, \alpha)`, serve the penalty alone:

    .. math::
        R_i = \lambda \max(0, s(\tilde x_i) - s(x_i) + m) \quad \text{("mrl")}, \qquad
        R_i = \lambda \left( 1 - \min(r, 1 / r) \right), \quad
        r = \frac{\sum_k s_k / \log_2(k + 1)}{\sum_k \mu_k / \log_2(k + 1)}
        \quad \text{("mndcg")}

    with s the confidence: the largest logit, or the largest probability. r compares the row
    (:math:`\mu_1 = 1`) and several mixtures of it, in the order of the largest share
    :math:`\mu_k` of a class in the mixture: confidences should be like these shares. It is the
    discounted cumulative gain of the confidences over that of the shares.

    Parameters
    ----------
    form : {"mrl", "mndcg"}, default="mrl"
        Margin ranking loss, or normalised discounted cumulative gain.
    lam : float, default=0.1
        Strength, non-negative. Published: 0.1.
    margin : float, default=2.0
        m, by which the confidences should differ. Published: 2 (CIFAR), 1 (Tiny-ImageNet), in
        logits. Of no effect with "mndcg".
    confidence : {"logit", "proba"}, default="logit"
        What "mrl" compares; "mndcg" always compares probabilities. The published code has both.
    alpha : float, default=2.0
        Concentration of the Beta distribution, in (0, inf). Published: 2 (CIFAR), 1
        (Tiny-ImageNet).
    n_mixed : int or None, default=None
        Mixtures of each row, at least 1; of "mrl" their mean counts. None is 1 for "mrl" and 3 for
        "mndcg", as published.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    It is made for the calibration of probabilities, not against wrong labels. On a table with an
    accuracy of 0.68 "mrl" lowered the calibration error of an over-confident network from 0.096 to
    0.087 (``lam=0.5``: 0.06; mixup: 0.06), and "mndcg", which asks for confidence 1 of given rows,
    raised it to 0.099. The mixtures take a second forward pass with the dropout of training, as
    published; with batch normalisation they count in its statistics. As published, "mrl" leaves out
    mixtures within a class, and "mndcg" gives them the share 1. A mixture with a row of weight 0 is
    left out: a held-out label stays unknown.

    References
    ----------
    Noh, Park, Lee, Ham. RankMixup: Ranking-Based Mixup Training for Network Calibration. ICCV 2023.
    arXiv:2308.11990.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies.mixing import ndcg
    >>> ndcg(torch.tensor([1.0, 0.6, 0.8]), torch.tensor([1.0, 0.6, 0.8]))  # as they should be
    tensor(1.)
    >>> ndcg(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 0.6, 0.8]))  # too sure of mixtures
    tensor(0.8469)
    """

    needs = ("network",)

    def __init__(
        self,
        form: str = "mrl",
        lam: float = 0.1,
        margin: float = 2.0,
        confidence: str = "logit",
        alpha: float = 2.0,
        n_mixed: int | None = None,
    ) -> None:
        self.form = form
        self.lam = lam
        self.margin = margin
        self.confidence = confidence
        self.alpha = alpha
        self.n_mixed = n_mixed

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_known("form of strategy 'rank_mixup'", [self.form], ["mrl", "mndcg"])
        check_range("lam", self.lam, "[0, inf)")
        check_range("margin", self.margin, "[0, inf)")
        check_known("confidence", [self.confidence], ["logit", "proba"])
        check_range("alpha", self.alpha, "(0, inf)")
        if self.n_mixed is not None:
            check_integer("n_mixed", self.n_mixed, "[1, inf)")

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Draw the mixtures; the batch stays."""
        n_mixed = self.n_mixed or {"mrl": 1, "mndcg": 3}[self.form]
        self.mixed_ = [mixed_rows(net, batch, self.alpha) for _ in range(n_mixed)]
        return batch

    def penalty(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the penalty of each sample, ``(member, sample)``."""
        z = net.module_(torch.cat([x for _, x in self.mixed_], dim=-2)).to(logits.dtype)
        rows = [logits, *z.chunk(len(self.mixed_), dim=-2)]
        if self.form == "mndcg" or self.confidence == "proba":
            rows = [predicted(net, z) for z in rows]
        confidence = torch.stack([z.amax(-1) for z in rows], dim=-1)
        share = self._shares(batch, logits.shape[-1])
        if self.form == "mndcg":
            ranked = 1 - ndcg(confidence * (share > 0), share)
        else:
            too_sure = (confidence[..., 1:] - confidence[..., :1] + self.margin).relu()
            between = (share > 0) & (share < 1 - 1e-6)  # two classes, both labels known
            ranked = (too_sure * between[..., 1:]).mean(-1)
        return self.lam * batch.weight * ranked

    def _shares(self, batch: Batch, n_classes: int) -> Tensor:
        """Return the largest share of a class in each row and its mixtures, 0 where unknown."""
        target = batch.distribution(n_classes)
        shares = [torch.ones_like(batch.weight)]
        for mixing, _ in self.mixed_:
            known = batch.weight.index_select(-1, mixing.partner) > 0
            shares.append(mixing(target).amax(-1) * known)
        return torch.stack(shares, dim=-1)


def ndcg(confidence: Tensor, share: Tensor) -> Tensor:
    """Return the gain of the confidences over that of the shares, or its inverse if above 1."""
    confidence, share = torch.broadcast_tensors(confidence, share)
    share, order = share.sort(dim=-1, descending=True, stable=True)
    confidence = confidence.gather(-1, order)
    discount = torch.arange(2, 2 + share.shape[-1], device=share.device).log2()
    gain, ideal = (confidence / discount).sum(-1), (share / discount).sum(-1)
    return torch.minimum(gain / ideal, ideal / gain)


def mixed_rows(net: Any, batch: Batch, alpha: float) -> tuple[Mixing, Tensor]:
    """Draw partners in the batch and return the mixed rows; codes are taken, not averaged."""
    lam = _symmetric_beta(float(alpha))
    n = batch.index.shape[0]
    mixing = Mixing(lam, torch.randperm(n, device=batch.index.device), batch.x)
    x = mixing(batch.x)
    if net.n_codes:
        codes = batch.x[..., -net.n_codes :]
        mine = torch.rand(codes.shape, device=codes.device) < lam
        x[..., -net.n_codes :] = torch.where(mine, codes, codes.index_select(-2, mixing.partner))
    return mixing, x


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
