"""Losses and their limits, written out in another way."""

import math

import numpy as np
import pytest
import torch
from loss_cases import EXTREMES, LOGITS, PAIR, SKEWED, TARGET, UNIFORM, draw, inner_losses
from scipy.optimize import linprog
from sklearn.base import clone
from torch.testing import assert_close

from robustclf.losses import (
    AdaptiveLabelRobustKL,
    AsymmetricGeneralizedCrossEntropy,
    BackwardCorrected,
    BiTempered,
    Clipped,
    CompSum,
    CrossEntropy,
    EpsilonSoftmax,
    Focal,
    ForwardCorrected,
    GeneralizedCrossEntropy,
    GeneralizedJensenShannon,
    JensenShannon,
    LabelRobustKL,
    LabelRobustTopK,
    LogitAdjusted,
    LogitClipped,
    Normalized,
    PHuberCrossEntropy,
    PHuberGeneralizedCrossEntropy,
    Poly1,
    Squentropy,
    Sum,
    TaylorCrossEntropy,
    Temperature,
    Unhinged,
    ZLoss,
    make_loss,
)

# --- limits and special cases ---


def _same(loss, other, shift=0.0, **tolerance):
    other = make_loss(other) if isinstance(other, str) else other
    for logits in (LOGITS, draw(3, 2, seed=3)):
        expected = other.per_label(logits) - (shift and shift(logits.shape[-1]))
        assert_close(loss.per_label(logits), expected, **tolerance)


@pytest.mark.parametrize("q", [1e-6, 1e-9])
@pytest.mark.parametrize("loss", [GeneralizedCrossEntropy, lambda q: CompSum(1 + q)])
def test_generalized_cross_entropy_tends_to_cross_entropy(loss, q):
    _same(loss(q).build(5), "ce", rtol=1e-6 + 10 * q, atol=0)


@pytest.mark.parametrize(
    ("loss", "other"),
    [
        (GeneralizedCrossEntropy(1), "mae"),
        (Focal(0), "ce"),
        (CompSum(1.0), "ce"),
        (CompSum(1.3), GeneralizedCrossEntropy(0.3)),
        (CompSum(2.0), "mae"),
        (TaylorCrossEntropy(1), "mae"),
        (Poly1(0.0), "ce"),
        (PHuberCrossEntropy(1.0), "mae"),
        (PHuberCrossEntropy(1e9), "ce"),
        (PHuberGeneralizedCrossEntropy(0.4, 1e9), GeneralizedCrossEntropy(0.4)),
        (PHuberGeneralizedCrossEntropy(0.999, 50.0), GeneralizedCrossEntropy(0.999)),
        (Clipped("ce", 0.1), PHuberCrossEntropy(10.0)),
        (Clipped("ce", 0.5), PHuberCrossEntropy(2.0)),
        (Clipped("gce", 4 ** (1 / -0.3)), PHuberGeneralizedCrossEntropy(0.7, 4.0)),
        (Clipped("mae", 0.3), "mae"),
        (Clipped(Sum(["unhinged"]), 1e-9), "unhinged"),
        (BiTempered(1.0, 1.0), "ce"),
        (GeneralizedJensenShannon(0.4), JensenShannon(0.4)),
        (Temperature("nce", 1.0), "nce"),
        (LogitClipped("ce", 1e9), "ce"),
        (EpsilonSoftmax("nce", 0.0), "nce"),
        (make_loss("tv"), "mae"),
        (make_loss("ngce", q=1.0), Normalized("mae")),
        (make_loss("nce+mae", beta=0.0), "nce"),
    ],
    ids=str,
)
def test_special_cases(loss, other):
    _same(loss, other)


@pytest.mark.parametrize(
    ("loss", "other", "rtol"),
    [
        (JensenShannon(1e-7), "ce", 1e-5),
        (JensenShannon(1 - 1e-12), "mae", 0.1),
        (TaylorCrossEntropy(2000), "ce", 1e-2),
        (AsymmetricGeneralizedCrossEntropy(1e-9, 0.7), "gce", 1e-5),
        (LabelRobustKL(1e6, 0.0, "none"), LabelRobustTopK(5, 0.0, "none"), 1e-4),
        (LabelRobustKL(1e-4, 0.0, "none"), LabelRobustTopK(1, 0.0, "none"), 1e-2),
    ],
    ids=str,
)
def test_limits(loss, other, rtol):
    other = make_loss(other) if isinstance(other, str) else other
    assert_close(loss.per_label(LOGITS), other.per_label(LOGITS), rtol=rtol, atol=1e-3)


def test_logits_adjusted_by_a_uniform_prior_are_not_adjusted():
    assert_close(
        LogitAdjusted("nce", np.ones(5)).per_label(LOGITS), make_loss("nce").per_label(LOGITS)
    )


def test_label_robust_loss_without_price_is_cross_entropy():
    _same(LabelRobustKL(1.0, 0.0, "none"), "ce", shift=math.log)


def test_cross_entropy_is_that_of_torch():
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGET, reduction="none")
    assert_close(CrossEntropy()(LOGITS, TARGET), expected)


# --- definitions, written out ---


DIVERGENCES = {
    "tv": lambda e, p: (e - p).abs() / 2,
    "hellinger": lambda e, p: (e.sqrt() - p.sqrt()) ** 2,
    "pearson": lambda e, p: (e - p) ** 2 / p,
    "le_cam": lambda e, p: (e - p) ** 2 / (e + p) / 2,
    "ce": lambda e, p: torch.special.xlogy(e, e) - torch.special.xlogy(e, p),
}


@pytest.mark.parametrize("alias", DIVERGENCES)
def test_f_divergences(alias):
    p = LOGITS.softmax(-1)
    labels = torch.eye(5).double().expand(7, 5, 5)
    expected = DIVERGENCES[alias](labels, p.unsqueeze(1)).sum(-1)
    assert_close(make_loss(alias).per_label(LOGITS), expected)


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_generalized_jensen_shannon_divergence_of_views(n_views):
    logits = draw(2 * n_views, 7, 5)
    pi1 = 0.3
    p = logits.softmax(-1).unflatten(0, (2, n_views))
    weights = [pi1] + [(1 - pi1) / n_views] * n_views
    for label in range(5):
        e = torch.eye(5).double()[label].expand(2, 1, 7, 5)
        distributions = torch.cat([e, p], 1)
        w = torch.tensor(weights).double().reshape(1, -1, 1, 1)
        entropy = torch.special.entr
        gap = entropy((w * distributions).sum(1)) - (w * entropy(distributions)).sum(1)
        expected = gap.sum(-1) / (-(1 - pi1) * math.log(1 - pi1))
        loss = GeneralizedJensenShannon(pi1, n_views)
        value = loss(logits, torch.tensor(label))
        assert_close(value, expected.repeat_interleave(n_views, 0))


def test_views_that_do_not_divide_the_members():
    with pytest.raises(ValueError, match="n_views=2 must divide the number of members, got 3"):
        GeneralizedJensenShannon()(draw(3, 7, 5), TARGET)


@pytest.mark.parametrize("k", [1, 2, 4, 5])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_top_k_loss_solves_its_linear_program(k, margin):
    values = LabelRobustTopK(k, margin, "none").per_label(LOGITS[:3])
    for i in range(3):
        for y in range(5):
            gap = LOGITS[i] - LOGITS[i, y] + margin * (torch.arange(5) != y)
            worst = linprog(-gap.numpy(), A_eq=np.ones((1, 5)), b_eq=[1], bounds=(0, 1 / k))
            assert values[i, y].item() == pytest.approx(-worst.fun, abs=1e-7)


def test_top_k_of_tied_scores():
    assert_close(LabelRobustTopK(2, 0.5).per_label(torch.zeros(1, 3)), torch.full((1, 3), 0.5))
    assert_close(LabelRobustTopK(3, 0.5).per_label(torch.zeros(1, 3)), torch.full((1, 3), 1 / 3))


def test_label_robust_loss_is_the_worst_case():
    f, y, lam, margin = LOGITS[0], 2, 0.7, 0.4
    gap = f - f[y] + margin * (torch.arange(5) != y)
    value = LabelRobustKL(lam, margin, "none").per_label(f)[y]

    def objective(p):
        return (p * gap).sum(-1) - lam * (p * (p * 5).log()).sum(-1)

    assert_close(value, objective((gap / lam).softmax(-1)))
    assert bool((objective(draw(1000, 5).softmax(-1)) <= value).all())


def test_adaptive_lambda_is_that_of_repeated_visits():
    lam0, alpha, visits = 2.0, 1.5, 6
    f = LOGITS * 5 / LOGITS.abs().sum(-1, keepdim=True)
    lam = torch.full((7, 1), lam0).double()
    for _ in range(visits):
        q = torch.nn.functional.normalize((f / lam).softmax(-1) + 1e-5, p=1, dim=-1)
        lam = lam0 - lam0 / (alpha * math.log(5)) * (q * (5 * q).log()).sum(-1, keepdim=True)
    gap = f.unsqueeze(1) - f.unsqueeze(2) + 0.1 * (1 - torch.eye(5).double())
    worst = lam * (gap / lam.unsqueeze(-1)).exp().mean(-1).log()
    price = alpha * math.log(5) / (2 * lam0) * (lam - lam0) ** 2
    loss = AdaptiveLabelRobustKL(lam0, alpha, n_steps=visits)
    assert_close(loss.per_label(LOGITS), worst - price)


@pytest.mark.parametrize("t2", [1.0, 1.2, 2.0, 4.0])
@pytest.mark.parametrize("n_classes", [2, 100, 10_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_tempered_softmax_sums_to_one(t2, n_classes, scale):
    p = BiTempered(t2=t2).inverse_link(draw(20, n_classes, scale=scale))
    assert_close(p.sum(-1), torch.ones(20).double(), rtol=1e-6, atol=0)


def test_bi_tempered_loss_is_the_bregman_divergence():
    t1, t2 = 0.6, 1.4
    loss = BiTempered(t1, t2)
    p = loss.inverse_link(LOGITS)
    e = torch.eye(5).double()
    log_t = (p ** (1 - t1) - 1) / (1 - t1)
    power = (e.sum() / 5 - (p ** (2 - t1)).sum(-1, keepdim=True)) / (2 - t1)
    assert_close(loss.per_label(LOGITS), -log_t - power)


@pytest.mark.parametrize("inner", ["squentropy", "ldr_kl", "ldr_k", "evidential"])
def test_clipped_losses_of_logits_are_smooth_at_theta(inner):
    loss, label = Clipped(inner, 0.3), torch.tensor(0)
    rest = torch.tensor([0.0, -1.0, 0.5]).double()
    at_theta = math.log(0.3 / 0.7) + rest.logsumexp(-1)

    def value(z_y):
        return loss(torch.cat([z_y, rest]), label)

    below, above = at_theta - 1e-7, at_theta + 1e-7
    assert_close(value(above[None]), make_loss(inner)(torch.cat([above[None], rest]), label))
    assert_close(value(above[None]), value(below[None]), rtol=1e-5, atol=1e-5)
    slope = torch.func.grad(value)
    assert_close(slope(above[None]), slope(below[None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inner", ["gce", "nce+rce", "anl_fl", "anorm"])
def test_clipped_losses_are_linear_below_theta_and_smooth_there(inner):
    theta, label = 0.3, torch.tensor(0)
    others = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()

    def value(p):
        q = torch.cat([p, (1 - p) * others]).log()
        return Clipped(inner, theta)(q, label)

    def slope(p):
        return torch.func.grad(value)(torch.tensor([p]).double())

    q = torch.cat([torch.tensor([0.6]).double(), 0.4 * others])
    assert_close(value(q[:1]), make_loss(inner)(q.log(), label))
    assert_close(slope(0.05), slope(0.25))
    assert_close(slope(theta - 1e-7), slope(theta + 1e-7), rtol=1e-5, atol=1e-5)
    beside = torch.tensor([[theta - 1e-9], [theta + 1e-9]]).double()
    jump = value(beside[1]) - value(beside[0])
    assert abs(jump.item()) < 1e-6


def test_epsilon_softmax_is_nearly_one_hot():
    m = 99.0
    p = (-EpsilonSoftmax("ce", m).per_label(LOGITS)).exp()
    boosted = LOGITS.softmax(-1)
    boosted[range(7), LOGITS.argmax(-1)] += m
    assert_close(p, boosted / (m + 1))


def test_logits_are_clipped_to_the_norm():
    for p in (1.0, 2.0, math.inf):
        norms = LogitClipped("ce", 1.5, p).transform(LOGITS).norm(p, dim=-1)
        assert_close(norms, LOGITS.norm(p, dim=-1).clamp(max=1.5))


def test_powers_of_large_logits_do_not_overflow():
    logits = 1e6 * LOGITS.float()
    for p in (10.0, 50.0):
        norms = LogitClipped("ce", 1.5, p).transform(logits).norm(p, dim=-1)
        assert_close(norms, torch.full((7,), 1.5))


def test_z_loss_ignores_the_scale():
    assert_close(ZLoss().per_label(50 * LOGITS), ZLoss().per_label(LOGITS), rtol=1e-4, atol=1e-4)


def test_unhinged_loss_of_two_classes_is_one_minus_the_margin():
    logits = draw(7, 2)
    margin = logits[:, 1] - logits[:, 0]
    assert_close(Unhinged().per_label(logits), torch.stack([1 + margin, 1 - margin], -1))


def test_squentropy_adds_the_mean_square_of_the_others():
    expected = (
        CrossEntropy()(LOGITS[:1], torch.tensor([2])) + LOGITS[0, [0, 1, 3, 4]].square().mean()
    )
    assert_close(Squentropy()(LOGITS[:1], torch.tensor([2])), expected)


# --- corrections ---

transitions = pytest.mark.parametrize("T", [UNIFORM, PAIR, SKEWED], ids=["sym", "pair", "skewed"])


@inner_losses
@transitions
def test_backward_correction_is_unbiased(inner, T):
    corrected = BackwardCorrected(inner, T).per_label(LOGITS)
    expected_over_noise = corrected @ T.T
    assert_close(expected_over_noise, make_loss(inner).per_label(LOGITS))


@inner_losses
@transitions
def test_forward_correction_is_the_loss_of_noisy_probabilities(inner, T):
    noisy_logits = (LOGITS.softmax(-1) @ T).log()
    expected = make_loss(inner).per_label(noisy_logits)
    assert_close(ForwardCorrected(inner, T).per_label(LOGITS), expected)


@transitions
def test_forward_correction_is_least_at_the_true_posterior(T):
    eta = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04]).double()
    loss, logits = ForwardCorrected("ce", T), eta.log().requires_grad_()
    risk = loss(logits, eta @ T)
    (slope,) = torch.autograd.grad(risk, logits)
    assert slope.abs().max() < 1e-7
    assert bool((loss(draw(500, 5), eta @ T) > risk).all())


@inner_losses
@pytest.mark.parametrize("correct", [ForwardCorrected, BackwardCorrected])
@pytest.mark.parametrize("logits", [LOGITS, EXTREMES.double()], ids=["moderate", "extreme"])
def test_correcting_no_noise_changes_nothing(correct, inner, logits):
    corrected = correct(inner, np.eye(5, dtype=int)).per_label(logits)
    assert_close(corrected, make_loss(inner).per_label(logits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.float, torch.Tensor.tolist])
@pytest.mark.parametrize("correct", [ForwardCorrected, BackwardCorrected])
def test_transition_of_any_kind(correct, kind):
    expected = correct("ce", SKEWED).per_label(LOGITS)
    loss = correct("ce", kind(SKEWED))
    loss.check(5)
    assert_close(loss.per_label(LOGITS), expected, rtol=1e-5, atol=1e-5)
    assert clone(loss).per_label(LOGITS).equal(loss.per_label(LOGITS))


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (None, "transition must be a matrix whose row i .* got None"),
        (np.eye(3), r"transition must have shape \(5, 5\), got \(3, 3\)"),
        (np.ones(5), r"transition must have shape \(5, 5\), got \(5,\)"),
        (np.eye(5) * 0.9, "transition must have rows that sum to one, got a sum of 0.9"),
        (2 * np.eye(5) - 0.2, "transition must be non-negative, got -0.2"),
        (np.eye(5) * np.nan, "transition must be non-negative, got nan"),
    ],
)
@pytest.mark.parametrize("correct", [ForwardCorrected, BackwardCorrected])
def test_transition_is_checked(correct, transition, message):
    with pytest.raises(ValueError, match=message):
        correct("ce", transition).check(5)


@pytest.mark.parametrize("diagonal", [0.2, 0.2 + 1e-8])
def test_backward_correction_refuses_a_nearly_singular_matrix(diagonal):
    transition = np.full((5, 5), (1 - diagonal) / 4)
    np.fill_diagonal(transition, diagonal)
    ForwardCorrected("ce", transition).check(5)
    with pytest.raises(ValueError, match="transition must be invertible, got condition number"):
        BackwardCorrected("ce", transition).check(5)
