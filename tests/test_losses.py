"""Theorems that every registered loss satisfies, and hand values."""

import copy
import math
from inspect import signature

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.base import clone
from sklearn.model_selection import ParameterSampler
from torch.testing import assert_close

from robustclf.losses import (
    AdaptiveLabelRobustKL,
    AsymmetricGeneralizedCrossEntropy,
    AsymmetricUnhinged,
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
    Loss,
    MeanAbsoluteError,
    Normalized,
    NormalizedNegative,
    PHuberCrossEntropy,
    PHuberGeneralizedCrossEntropy,
    PointwiseLoss,
    Poly1,
    ReverseCrossEntropy,
    Squentropy,
    Sum,
    TaylorCrossEntropy,
    Temperature,
    TruncatedGeneralizedCrossEntropy,
    Unhinged,
    ZLoss,
    list_losses,
    make_loss,
    search_space,
)
from robustclf.losses._base import LOSSES

UNIFORM = torch.full((5, 5), 0.06).fill_diagonal_(0.76).double()
PAIR = 0.7 * torch.eye(5).double() + 0.3 * torch.eye(5).double().roll(1, 1)
SKEWED = torch.tensor(
    [
        [0.8, 0.1, 0.0, 0.0, 0.1],
        [0.3, 0.6, 0.1, 0.0, 0.0],
        [0.0, 0.2, 0.8, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 0.0],
        [0.1, 0.1, 0.1, 0.1, 0.6],
    ]
).double()

PRIOR = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).double()
# what the losses that `list_losses` leaves out need to be told
NEEDED = {
    "backward_corrected": {"transition": UNIFORM},
    "forward_corrected": {"transition": UNIFORM},
    "logit_adjusted": {"prior": PRIOR},
}
# with theorems of their own, in test_losses_learned.py
APART = ["ensloss", "legendretron"]

# every registered loss, and losses and wrappers that are not the default
CASES = {a: make_loss(a, **NEEDED.get(a, {})) for a in LOSSES.names() if a not in APART}
CASES |= {
    "focal, gamma=0": Focal(0.0),
    "focal, gamma=2": Focal(2.0),
    "gce, q=.1": GeneralizedCrossEntropy(0.1),
    "gce, q=.005": GeneralizedCrossEntropy(0.005),
    "comp_sum, tau=.5": CompSum(0.5),
    "comp_sum, tau=1": CompSum(1.0),
    "comp_sum, tau=2": CompSum(2.0),
    "taylor_ce, t=1": TaylorCrossEntropy(1),
    "poly1, epsilon=0": Poly1(0.0),
    "agce, q=.5": AsymmetricGeneralizedCrossEntropy(0.6, 0.5),
    "aul, q=.1": AsymmetricUnhinged(1.1, 0.1),
    "bi_tempered, t2=2": BiTempered(0.3, 2.0),
    "bi_tempered, t1=t2=1": BiTempered(1.0, 1.0),
    "nnce, p_min=.01": NormalizedNegative("ce", 0.01),
    "normalized negative nce": NormalizedNegative("nce"),
    "2 gce + nce": 2 * GeneralizedCrossEntropy() + make_loss("nce"),
    "ce + ldr_kl": CrossEntropy() + LabelRobustKL(),
    "z_loss + backward": ZLoss() + BackwardCorrected("mae", UNIFORM),
    "normalized sum": Normalized(Sum(["ce", "gce"], [0.5, 2.0])),
    "normalized ldr_kl": Normalized(LabelRobustKL(1.0, 0.5, "none")),
    "ldr_kl, none": LabelRobustKL(2.0, 0.5, "none"),
    "ldr_kl, l1": LabelRobustKL(0.5, 0.1, "l1"),
    "aldr_kl, softplus": AdaptiveLabelRobustKL(1.0, 3.0, 0.0, "softplus", 100),
    "ldr_k, k=3": LabelRobustTopK(3, 0.1, "softplus"),
    "forward nce, pairs": ForwardCorrected("nce", PAIR),
    "forward rce": ForwardCorrected("rce", UNIFORM),
    "forward squentropy": ForwardCorrected("squentropy", UNIFORM),
    "backward gce, skewed": BackwardCorrected("gce", SKEWED),
    "clipped gce": Clipped("gce", 0.2),
    "clipped nce+rce": Clipped("nce+rce", 0.3),
    "clipped squentropy": Clipped("squentropy", 0.3),
    "logit-adjusted mae": LogitAdjusted("mae", PRIOR),
    "logit-clipped, p=inf": LogitClipped("nce", 2.0, math.inf),
    "temperature of anl_ce": Temperature("anl_ce", 0.5),
    "eps_softmax of nce": EpsilonSoftmax("nce", 2.0),
    "eps_softmax of ldr_kl": EpsilonSoftmax("ldr_kl", 2.0),
}
each_loss = pytest.mark.parametrize("loss", CASES.values(), ids=CASES)
each_alias = pytest.mark.parametrize("alias", LOSSES.names())
BUILT = {alias: loss.build(5) for alias, loss in CASES.items()}
BUILT |= {alias: make_loss(alias).build(5) for alias in APART}
each_built = pytest.mark.parametrize("loss", BUILT.values(), ids=BUILT)

# values for the hyper-parameters of three stacked networks
MEMBER_VALUES = {
    "A": [-1.0, -4.0, -9.0],
    "a": [1.1, 3.0, 6.0],
    "alpha": [1.5, 2.0, 10.0],
    "b": [0.0, 1.0, 2.0],
    "beta": [0.0, 1.0, 2.0],
    "epsilon": [-1.0, 0.0, 2.0],
    "gamma": [0.0, 0.5, 2.0],
    "k": [1, 2, 5],
    "kl_weight": [0.0, 0.5, 1.0],
    "lam": [0.1, 1.0, 10.0],
    "lam0": [0.1, 1.0, 10.0],
    "m": [0.0, 1.0, 1e5],
    "margin": [0.0, 0.1, 2.0],
    "p": [0.5, 1.0, 2.0],
    "p_min": [1e-7, 1e-4, 0.1],
    "pi1": [0.1, 0.5, 0.9],
    "q": [0.1, 0.7, 0.9],
    "t": [1, 2, 6],
    "t1": [0.2, 0.8, 1.0],
    "t2": [1.0, 1.2, 2.0],
    "tau": [1.0, 1.5, 10.0],
    "temperature": [0.5, 1.0, 2.0],
    "theta": [0.1, 0.5, 0.9],
    "truncated_gce k": [0.1, 0.5, 0.9],
}


def draw(*shape, scale=2.0, seed=0):
    return scale * torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


LOGITS = draw(7, 5)
TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 1])
SOFT = draw(7, 5, seed=1).softmax(-1)
EXTREMES = 1e4 * torch.cat(
    [
        torch.zeros(1, 5),
        torch.ones(1, 5),
        2 * torch.eye(5) - 1,
        1 - 2 * torch.eye(5),
        torch.eye(5),
        torch.linspace(-1, 1, 5).expand(1, 5),
        draw(20, 5, seed=2).float().clamp(-1, 1),
    ]
)


# --- what a call means ---


@each_loss
def test_integer_target_picks_the_label(loss):
    assert_close(loss(LOGITS, TARGET), loss.per_label(LOGITS)[range(7), TARGET])


@each_loss
def test_one_hot_target_equals_the_label(loss):
    one_hot = torch.nn.functional.one_hot(TARGET, 5).double()
    assert_close(loss(LOGITS, one_hot), loss(LOGITS, TARGET))


@each_loss
def test_soft_target_is_a_mixture_of_labels(loss):
    mixture = sum(SOFT[:, k] * loss(LOGITS, torch.full((7,), k)) for k in range(5))
    assert_close(loss(LOGITS, SOFT), mixture)


each_single = pytest.mark.parametrize(  # value of one network at a time
    "loss", [loss for loss in CASES.values() if loss.n_members == 1], ids=str
)


@each_single
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_leading_axes_equal_a_loop(loss, target):
    logits = draw(3, 7, 5)
    assert_close(loss(logits, target), torch.stack([loss(z, target) for z in logits]))
    expanded = target.expand(3, *target.shape)
    assert_close(loss(logits, expanded), loss(logits, target))


STRUCTURAL = {"loss", "transition", "prior", "detach_focal", "normalization", "n_steps", "n_views"}
STRUCTURAL |= {"evidence", "form", "annealing_epochs", "blocks", "hidden", "depth", "box_cox"}
HYPERPARAMETERS = {
    alias: signature(LOSSES.get(alias)).parameters.keys() - STRUCTURAL for alias in LOSSES.names()
}
HYPERPARAMETERS["logit_clipped"] -= {"p"}  # the order of a norm


def _sum_with_gce(loss):
    return Sum([loss, "gce"])


@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("wrap", [make_loss, Normalized, _sum_with_gce])
@pytest.mark.parametrize("alias", [alias for alias, names in HYPERPARAMETERS.items() if names])
def test_hyperparameters_of_members_equal_a_loop(alias, wrap, target):
    names = HYPERPARAMETERS[alias]
    assert names <= MEMBER_VALUES.keys(), "give MEMBER_VALUES three values of the new parameter"
    values = {name: MEMBER_VALUES.get(f"{alias} {name}", MEMBER_VALUES[name]) for name in names}
    params = {name: torch.tensor(three).reshape(3, 1, 1) for name, three in values.items()}
    params = {k: v.double() if v.is_floating_point() else v for k, v in params.items()}
    fixed = NEEDED.get(alias, {}) | ({"n_views": 1} if alias == "gjs" else {})
    stacked = wrap(make_loss(alias, **params, **fixed)).build(5)
    logits = draw(3, 7, 5)
    loop = [
        wrap(make_loss(alias, **{k: v[m].item() for k, v in params.items()}, **fixed))
        for m in range(3)
    ]
    each = [loss(z, target) for loss, z in zip(loop, logits, strict=True)]
    assert_close(stacked(logits, target), torch.stack(each))


@pytest.mark.parametrize("correct", [ForwardCorrected, BackwardCorrected])
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_transitions_of_members_equal_a_loop(correct, target):
    transitions = torch.stack([UNIFORM, PAIR, SKEWED])
    logits = draw(3, 7, 5)
    stacked = correct("gce", transitions).build(5)
    loop = [correct("gce", T)(z, target) for T, z in zip(transitions, logits, strict=True)]
    assert_close(stacked(logits, target), torch.stack(loop))


def test_priors_of_members_equal_a_loop():
    priors = torch.stack([PRIOR, PRIOR.flip(0), torch.ones(5)]).unsqueeze(1)
    logits = draw(3, 7, 5)
    stacked = LogitAdjusted("ce", priors).build(5)
    loop = [LogitAdjusted("ce", prior[0])(z, SOFT) for prior, z in zip(priors, logits, strict=True)]
    assert_close(stacked(logits, SOFT), torch.stack(loop))


@each_loss
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_building_and_prepared_values_change_nothing(loss, target):
    built = loss.build(5)
    assert_close(built(LOGITS, target), loss(LOGITS, target))
    x = loss.prepare(LOGITS)
    assert_close(loss.values(x), loss.per_label(LOGITS))
    assert_close(loss.total(x).squeeze(-1), loss.values(x).sum(-1))
    if loss.labelwise:
        assert_close(loss.of(x, x), loss.values(x))
    if loss.takes_log_p:
        assert_close(x, LOGITS.log_softmax(-1))


@each_loss
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_vmap(loss, target):
    def one(logits, target):
        return loss(logits, target)

    assert_close(torch.func.vmap(one)(LOGITS, target), loss(LOGITS, target))
    grad = torch.func.vmap(torch.func.grad(one))(LOGITS, target)
    assert_close(grad, torch.func.grad(lambda z: loss(z, target).sum())(LOGITS))


@pytest.mark.parametrize(
    ("alias", "target"),
    [(alias, TARGET) for alias in LOSSES.names()]  # a second each: soft targets for a few alone
    + [(alias, SOFT) for alias in ("gce", "nfl+mae", "forward_corrected", "eps_softmax")],
)
def test_compile(alias, target):
    loss = BUILT[alias]
    torch._dynamo.reset()

    def value_and_grad(function):
        torch.manual_seed(0)
        logits = LOGITS.clone().requires_grad_()
        value = function(logits, target)
        return value, *torch.autograd.grad(value.sum(), logits)

    compiled = torch.compile(loss.__call__, backend="aot_eager", fullgraph=True)
    assert_close(value_and_grad(compiled), value_and_grad(loss))


@each_built
@pytest.mark.parametrize("target", [TARGET, SOFT.float()], ids=["labels", "soft"])
def test_autocast_changes_nothing(loss, target):
    logits = LOGITS.float()
    torch.manual_seed(0)
    expected = loss(logits, target)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(loss(logits, target), expected)


# --- invariances ---


@each_loss
def test_shift_invariant_iff_shifting_logits_changes_nothing(loss):
    shifted = loss.per_label(LOGITS + 3.7)
    assert loss.shift_invariant == torch.allclose(shifted, loss.per_label(LOGITS), rtol=1e-9)


def _permuted(loss, order):
    """The same loss where class order[k] is called k."""
    loss = clone(loss)
    for name, value in loss.get_params().items():
        if name.endswith("transition") and value is not None:
            loss.set_params(**{name: value[order][:, order]})
        elif name.endswith("prior"):
            loss.set_params(**{name: value[order]})
        elif name == "losses":
            loss.set_params(losses=[_permuted(part, order) for part in loss._losses()])
    return loss


@each_loss
def test_permuting_labels_permutes_losses(loss):
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = _permuted(loss, order)
    assert_close(permuted.per_label(LOGITS[:, order]), loss.per_label(LOGITS)[:, order])


# --- facts that a loss states about itself ---


@each_loss
def test_symmetric_iff_the_sum_over_labels_is_constant(loss):
    sums = loss.per_label(draw(50, 5)).sum(-1)
    assert loss.symmetric == bool(sums.max() - sums.min() < 1e-9 * sums.abs().max())


@each_loss
def test_bounded_iff_the_loss_stops_growing(loss):
    small, large = (loss.per_label(draw(50, 5, scale=s)).abs().max() for s in (1e2, 1e4))
    assert loss.bounded == bool(large < 2 * small)


@pytest.mark.parametrize("loss", [loss for loss in CASES.values() if loss.pointwise], ids=str)
def test_pointwise_losses_ignore_the_other_classes(loss):
    log_p = LOGITS.log_softmax(-1)
    rest = torch.log1p(-log_p[:, :1].exp()) - math.log(4)
    spread = torch.cat([log_p[:, :1], rest.expand(7, 4)], -1)
    label = torch.zeros(7, dtype=torch.int64)
    assert_close(loss(spread, label), loss(log_p, label))
    assert_close(loss.of_log_p(log_p), loss.per_label(LOGITS))


BY_CHANCE = {"backward_corrected"}  # convex because cross entropy is linear but for a constant


@pytest.mark.parametrize("loss", [CASES[k] for k in sorted(CASES.keys() - BY_CHANCE)], ids=str)
def test_convex_iff_below_its_chords(loss):
    pairs = torch.cat([draw(400, 2, 5, scale=s, seed=s) for s in (1, 3, 10)])
    start, end = pairs.unbind(1)
    chord = (loss.per_label(start) + loss.per_label(end)) / 2
    above = loss.per_label((start + end) / 2) - chord
    assert loss.convex == bool((above <= 1e-9 * (1 + chord.abs())).all())


def _logits_of(loss, eta):
    """Logits that `inverse_link` reads as eta, as far as there are any."""
    logits = eta.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], 1, 200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def divergence():
        optimizer.zero_grad()
        value = (eta * (eta.log() - loss.inverse_link(logits).log())).sum()
        value.backward()
        return value

    optimizer.step(divergence)
    return logits.detach()


@each_loss
def test_proper_iff_the_risk_is_least_at_the_truth(loss):
    eta = torch.tensor([0.9, 0.04, 0.03, 0.02, 0.01]).double()
    logits = _logits_of(loss, eta).requires_grad_()
    (slope,) = torch.autograd.grad(loss(logits, eta), logits)
    risk = loss(logits, eta).item()
    reads_truth = torch.allclose(loss.inverse_link(logits), eta, atol=1e-6)
    least = bool((loss(draw(500, 5), eta) >= risk - 1e-9).all())
    assert loss.proper == bool(reads_truth and slope.abs().max() < 1e-5 and least)


@each_loss
def test_probabilities(loss):
    p = loss.inverse_link(draw(3, 7, 5))
    assert_close(p.sum(-1), torch.ones(3, 7).double())
    assert bool((p >= 0).all())
    assert bool((loss.inverse_link(LOGITS).argmax(-1) == LOGITS.argmax(-1)).all())


def test_no_loss_needs_memory():
    assert not any(loss.needs_memory for loss in BUILT.values())


@pytest.mark.parametrize(
    "loss", [loss for loss in CASES.values() if loss.pointwise and not loss.convex], ids=str
)
def test_pointwise_losses_fall_with_p_y(loss):
    log_p = torch.linspace(-30, -1e-9, 2001).double()
    assert bool((loss.of_log_p(log_p).diff() <= 1e-12).all())


@pytest.mark.parametrize("alias", sorted(set(list_losses()) - set(APART)))
def test_a_larger_logit_of_the_label_never_costs_more(alias):
    logits = draw(200, 5).requires_grad_()
    label = torch.arange(200) % 5
    (slope,) = torch.autograd.grad(make_loss(alias)(logits, label).sum(), logits)
    assert bool((slope[range(200), label] <= 1e-9).all())


@pytest.mark.parametrize("inner", ["ce", "focal", "gce", "mae", "rce", "nnce", "sce", "poly1"])
def test_normalized_losses_sum_to_one(inner):
    sums = Normalized(inner).per_label(LOGITS).sum(-1)
    assert_close(sums, torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("inner", ["ce", "focal", "gce", "nce", "squentropy", "le_cam", "js"])
def test_normalized_negative_losses_sum_to_the_number_of_the_other_classes(inner):
    sums = NormalizedNegative(inner).per_label(LOGITS).sum(-1)
    assert_close(sums, torch.full((7,), 4.0, dtype=torch.float64))


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

inner_losses = pytest.mark.parametrize("inner", ["ce", "gce", "mae", "nce", "anl_ce"])
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


# --- numerics ---


@each_loss
def test_gradient(loss):
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss.per_label, logits)
    assert torch.autograd.gradcheck(lambda z: loss(z, TARGET), logits)


# losses that are sums over the classes in part, with derivatives written out
SUMMED = {
    "nfl": make_loss("nfl"),
    "nfl, gamma=2": make_loss("nfl", gamma=2.0),
    "ngce": make_loss("ngce"),
    "nnfl": make_loss("nnfl"),
    "anorm": make_loss("anorm"),
    "bi_tempered": make_loss("bi_tempered"),
}


@pytest.mark.parametrize("loss", SUMMED.values(), ids=SUMMED)
def test_second_derivative(loss):
    logits = LOGITS.clone().requires_grad_()
    if not isinstance(loss, BiTempered):  # whose normaliser has a first derivative only
        assert torch.autograd.gradgradcheck(lambda z: loss(z, TARGET), logits)
    expected = torch.func.grad(lambda z: loss(z, TARGET).sum())(LOGITS)
    (grad,) = torch.autograd.grad(loss(logits, TARGET).sum(), logits, create_graph=True)
    assert_close(grad.detach(), expected)


@pytest.mark.parametrize("loss", SUMMED.values(), ids=SUMMED)
def test_many_rows_are_summed_in_blocks(loss):
    logits = draw(2, 150, 500).requires_grad_()
    target = torch.arange(150) % 500
    value = loss(logits, target)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    few = logits.detach()[1, 140:].requires_grad_()
    assert_close(loss(few, target[140:]), value[1, 140:])
    assert_close(torch.autograd.grad(loss(few, target[140:]).sum(), few)[0], grad[1, 140:])


def test_detached_focal_factors_are_constants_of_the_sum():
    logits = LOGITS.clone().requires_grad_()
    total = Focal(2.0, detach_focal=True).total(logits.log_softmax(-1))
    (grad,) = torch.autograd.grad(total.sum(), logits)
    weight = (1 - LOGITS.softmax(-1)) ** 2
    (expected,) = torch.autograd.grad((weight * CrossEntropy().per_label(logits)).sum(), logits)
    assert_close(grad, expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_detached_focal_factor_weighs_the_gradient_of_cross_entropy(gamma):
    logits = LOGITS.clone().requires_grad_()
    grads = [
        torch.autograd.grad(loss(logits, TARGET).sum(), logits)[0]
        for loss in (Focal(gamma, detach_focal=True), CrossEntropy(), Focal(gamma))
    ]
    p_y = LOGITS.softmax(-1)[range(7), TARGET].unsqueeze(-1)
    assert_close(grads[0], (1 - p_y) ** gamma * grads[1])
    assert not torch.allclose(grads[0], grads[2])


def _assert_finite(loss, dtype):
    for target in [*torch.arange(5), torch.full((5,), 0.2, dtype=dtype)]:
        logits = EXTREMES.to(dtype).requires_grad_()
        value = loss(logits, target)
        assert value.dtype == dtype
        assert value.isfinite().all()
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert grad.isfinite().all()


@each_built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_value_and_gradient_are_finite_at_extremes(loss, dtype):
    _assert_finite(loss, dtype)


@pytest.mark.parametrize(
    "T",
    [torch.eye(5), torch.eye(5).roll(1, 0), PAIR, SKEWED, torch.eye(5)[[0, 0, 0, 0, 0]]],
    ids=["identity", "permutation", "pair", "skewed", "one label"],
)
@inner_losses
def test_forward_correction_is_finite_whatever_the_matrix(inner, T):
    _assert_finite(1e3 * ForwardCorrected(inner, T), torch.float32)


@pytest.mark.parametrize("gap", [10.0, 100.0, 1e4])
def test_confident_mistakes_keep_their_gradient(gap):
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    losses = [CrossEntropy(), Focal(), ForwardCorrected("ce", np.eye(2))]
    for loss in losses:
        (grad,) = torch.autograd.grad(loss(logits, torch.tensor([1])).sum(), logits)
        assert_close(grad, torch.tensor([[1.0, -1.0]]), rtol=0, atol=1e-3)


@each_loss
def test_bfloat16_approximates_float64(loss):
    logits = LOGITS.bfloat16()
    exact = loss.per_label(logits.double())
    assert_close(loss.per_label(logits).double(), exact, rtol=0.05, atol=0.1 + 0.02 * exact.max())


@each_alias
@pytest.mark.parametrize("n_classes", [2, 26, 10_000])
def test_number_of_classes(alias, n_classes):
    needed = {"transition": torch.eye(n_classes), "prior": torch.ones(n_classes)}
    loss = make_loss(alias, **{name: needed[name] for name in NEEDED.get(alias, {})})
    if n_classes == 10_000:  # to check or invert a matrix of that size takes minutes
        loss = loss._replaced(check=lambda n_classes: None)
    if n_classes == 10_000 and alias == "backward_corrected":
        loss = loss._replaced(inverse_=needed["transition"])
    else:
        loss = loss.build(n_classes)
    logits = draw(4, n_classes).float().requires_grad_()
    value = loss(logits, torch.arange(4) % n_classes)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert grad.isfinite().all()
    assert grad.abs().max() > 0 or alias == "truncated_gce"  # all of them improbable


HALF = torch.tensor([[0.5, 0.25, 0.25]]).log()
LOG_2, LOG_3 = math.log(2), math.log(3)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (CrossEntropy(), LOG_2),
        (Focal(gamma=2.0), LOG_2 / 4),
        (GeneralizedCrossEntropy(q=0.5), 2 - math.sqrt(2)),
        (MeanAbsoluteError(), 0.5),
        (ReverseCrossEntropy(), 2 * math.log(10)),
        (ReverseCrossEntropy(A=-4.0), 2.0),
        (make_loss("normalized"), 1 / 5),
        (Normalized("mae"), 1 / 4),
        (make_loss("nnce", p_min=1 / 16), 4 / 7),
        (make_loss("comp_sum", tau=0.0), 1.0),
        (make_loss("taylor_ce", t=3), 0.5 + 0.125 + 0.125 / 3),
        (Poly1(2.0), LOG_2 + 1),
        (make_loss("phuber_ce", tau=1.5), 1 + math.log(1.5) - 0.75),
        (make_loss("phuber_gce", q=0.5, tau=1.0), 0.5),
        (TruncatedGeneralizedCrossEntropy(0.5, 0.8), 2 - 2 * math.sqrt(0.8)),
        (make_loss("unhinged"), 1 - LOG_2),
        (make_loss("agce", a=1.0, q=2.0), 7 / 8),
        (make_loss("aul", a=3.0, q=2.0), 9 / 8),
        (make_loss("ael", a=0.5), math.exp(-1)),
        (make_loss("anorm", a=2.0, p=2.0), (1.5**2 + 2 / 16 - 1) / 2),
        (JensenShannon(0.5), -1.5 * math.log(0.75) / LOG_2),
        (make_loss("le_cam"), 1 / 3),
        (LabelRobustTopK(2, 0.5, "none"), (0 + 0.5 - LOG_2) / 2),
        (make_loss("normalized_negative", p_min=1 / 16), 4 / 7),
        (make_loss("bi_tempered", t1=1.0, t2=1.0), LOG_2),
        (make_loss("z_loss", a=2.0, b=0.0), math.log1p(math.exp(-2 * math.sqrt(2))) / 2),
        (
            make_loss("aldr_kl", margin=0.0, alpha=1e9, lam0=1.0, normalization="none"),
            LOG_2 - LOG_3,
        ),
        (make_loss("nfl", gamma=1.0), 0.5 / (0.5 + 3)),
        (make_loss("ngce", q=1.0), 1 / 4),
        (make_loss("nnfl", gamma=0.0, p_min=1 / 16), 4 / 7),
        (make_loss("nfl+mae", alpha=7.0, beta=4.0, gamma=1.0), 3.0),
        (make_loss("nfl+rce", alpha=7.0, beta=2.0, gamma=1.0, A=-4.0), 5.0),
        (make_loss("nce+agce", alpha=5.0, beta=8.0, a=1.0, q=2.0), 8.0),
        (make_loss("nce+aul", alpha=5.0, beta=8.0, a=3.0, q=2.0), 10.0),
        (make_loss("nce+ael", alpha=5.0, beta=1.0, a=0.5), 1 + math.exp(-1)),
        (make_loss("anl_fl", alpha=7.0, beta=7.0, gamma=0.0, p_min=1 / 16), 7 / 5 + 4),
        (make_loss("ce_eps+mae", alpha=1.0, beta=2.0, m=1.0), 1 - math.log(0.75)),
        (make_loss("eps_softmax", m=1.0), -math.log(0.75)),
        (
            make_loss("temperature", temperature=2.0),
            -math.log(math.sqrt(0.5) / (math.sqrt(0.5) + 1)),
        ),
        (Temperature("mae", temperature=0.5), 1 - 0.25 / (0.25 + 0.125)),
        (LogitAdjusted("ce", [2, 1, 1]), -math.log(2 / 3)),
        (make_loss("clipped", theta=0.8), -math.log(0.8) + (0.8 - 0.5) / 0.8),
        (make_loss("sce", alpha=2.0, beta=0.5, A=-4.0), 2 * LOG_2 + 1),
        (make_loss("nce"), 1 / 5),
        (make_loss("nce+mae", alpha=5.0, beta=4.0), 3.0),
        (make_loss("nce+rce", alpha=5.0, beta=2.0, A=-4.0), 5.0),
        (ForwardCorrected("ce", [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]), 2 * LOG_2),
        (BackwardCorrected("mae", [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]), 0.25),
    ],
)
def test_hand_values_at_a_half(loss, value):
    assert_close(loss(HALF, torch.tensor([0])), torch.tensor([value]))


def test_hand_value_of_anl_ce():
    nnce = NormalizedNegative("ce")(HALF, torch.tensor([0]))
    value = make_loss("anl_ce", alpha=10.0, beta=2.0)(HALF, torch.tensor([0]))
    assert_close(value, 10 / 5 + 2 * nnce)


# --- ranges ---


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (GeneralizedCrossEntropy(1.5), r"^q must lie in \(0, 1\], got 1.5$"),
        (GeneralizedCrossEntropy(0), r"^q must lie in \(0, 1\], got 0$"),
        (GeneralizedCrossEntropy("0.5"), r"^q must lie in \(0, 1\], got '0.5'$"),
        (GeneralizedCrossEntropy(None), r"^q must lie in \(0, 1\], got None$"),
        (GeneralizedCrossEntropy(math.nan), r"^q must lie in \(0, 1\], got nan$"),
        (GeneralizedCrossEntropy(torch.tensor([[[0.5]], [[2.0]]])), r"^q must .* got tensor"),
        (Focal(-1), r"^gamma must lie in \[0, inf\), got -1$"),
        (Focal(detach_focal="no"), "^detach_focal must be True or False, got 'no'$"),
        (Focal(math.inf), r"^gamma must lie in \[0, inf\), got inf$"),
        (ReverseCrossEntropy(4), r"^A must lie in \(-inf, 0\), got 4$"),
        (NormalizedNegative("ce", 0.2), r"^p_min must lie in \(0, 0.2\), got 0.2$"),
        (make_loss("nnfl", p_min=0), r"^p_min must lie in \(0, 0.2\), got 0$"),
        (CompSum(-1), r"^tau must lie in \[0, inf\), got -1$"),
        (TaylorCrossEntropy(0), r"^t must lie in \[1, inf\), got 0$"),
        (TaylorCrossEntropy(1.5), r"^t must be a whole number in \[1, inf\), got 1.5$"),
        (Poly1(-2), r"^epsilon must lie in \[-1, inf\), got -2$"),
        (PHuberCrossEntropy(0.5), r"^tau must lie in \[1, inf\), got 0.5$"),
        (PHuberGeneralizedCrossEntropy(q=1), r"^q must lie in \(0, 1\), got 1$"),
        (TruncatedGeneralizedCrossEntropy(k=1), r"^k must lie in \(0, 1\), got 1$"),
        (BiTempered(t1=1.2), r"^t1 must lie in \[0, 1\], got 1.2$"),
        (BiTempered(t2=0.9), r"^t2 must lie in \[1, 4\], got 0.9$"),
        (ZLoss(a=0), r"^a must lie in \(0, inf\), got 0$"),
        (AsymmetricUnhinged(a=1), r"^a must lie in \(1, inf\), got 1$"),
        (AsymmetricGeneralizedCrossEntropy(q=0), r"^q must lie in \(0, inf\), got 0$"),
        (make_loss("ael", a=0), r"^a must lie in \(0, inf\), got 0$"),
        (make_loss("anorm", p=0), r"^p must lie in \(0, inf\), got 0$"),
        (LabelRobustKL(lam=0), r"^lam must lie in \(0, inf\), got 0$"),
        (LabelRobustKL(margin=-1), r"^margin must lie in \[0, inf\), got -1$"),
        (LabelRobustKL(normalization="softpus"), "^unknown normalization .* mean 'softplus'"),
        (AdaptiveLabelRobustKL(alpha=1), r"^alpha must lie in \(1, inf\), got 1$"),
        (AdaptiveLabelRobustKL(n_steps=0), r"^n_steps must lie in \[1, inf\), got 0$"),
        (LabelRobustTopK(6), r"^k must lie in \[1, 5\], got 6$"),
        (JensenShannon(0), r"^pi1 must lie in \(0, 1\), got 0$"),
        (GeneralizedJensenShannon(n_views=0), r"^n_views must lie in \[1, inf\), got 0$"),
        (Clipped(theta=1), r"^theta must lie in \(0, 1\), got 1$"),
        (Temperature(temperature=0), r"^temperature must lie in \(0, inf\), got 0$"),
        (LogitClipped(tau=0), r"^tau must lie in \(0, inf\), got 0$"),
        (LogitClipped(p=0.5), r"^p must lie in \[1, inf\], got 0.5$"),
        (EpsilonSoftmax(m=-1), r"^m must lie in \[0, inf\), got -1$"),
        (LogitAdjusted(), "^prior must be the frequency of each class, got None$"),
        (LogitAdjusted(prior=[0.5, 0.5]), r"^prior must have shape \(5,\), got \(2,\)$"),
        (LogitAdjusted(prior=[1, 0, 1, 1, 1]), "^prior must be positive, got"),
        (-1 * CrossEntropy(), r"^weights must lie in \[0, inf\), got -1.0$"),
        (Sum(["ce"], [1, 2]), "^weights must hold one number for each of 1 losses .*, got 2$"),
        (Sum([]), "^weights must hold one number for each of 0 losses"),
        (make_loss("sce", alpha=-1), r"^weights must lie in \[0, inf\), got -1$"),
        (Normalized("gec"), "unknown loss 'gec', .* did you mean 'gce'"),
    ],
)
def test_ranges(loss, message):
    with pytest.raises(ValueError, match=message):
        loss.check(5)


@pytest.mark.parametrize(
    "wrap",
    [
        Normalized,
        NormalizedNegative,
        Clipped,
        Temperature,
        LogitClipped,
        EpsilonSoftmax,
        lambda loss: Sum(["ce", loss]),
        lambda loss: ForwardCorrected(loss, UNIFORM),
        lambda loss: BackwardCorrected(loss, UNIFORM),
        lambda loss: LogitAdjusted(loss, PRIOR),
    ],
    ids=lambda wrap: wrap.__name__,
)
def test_wrappers_check_and_build_the_loss_they_hold(wrap):
    built = wrap("gce").build(5)
    assert not isinstance(getattr(built, "loss", built), str)
    with pytest.raises(ValueError, match="q must lie in"):
        wrap(GeneralizedCrossEntropy(7)).build(5)
    learned = wrap("legendretron").build(5)
    assert list(learned.parameters())
    assert learned(LOGITS.float(), TARGET).isfinite().all()
    first = wrap("evidential").at_epoch(0)
    inner = first.losses[1] if isinstance(first, Sum) else first.loss
    assert inner.kl_weight == 0


@each_loss
def test_own_ranges_hold(loss):
    loss.check(5)


@each_alias
def test_search_space_holds_what_check_allows(alias):
    for n_classes in (2, 5, 100):
        needed = {"transition": np.eye(n_classes), "prior": np.ones(n_classes)}
        needed = {name: needed[name] for name in NEEDED.get(alias, {})}
        space = search_space(alias, prefix="")
        loss = make_loss(alias)
        if isinstance(LOSSES.get(alias), type):
            assert space.keys() <= loss.get_params().keys() | {
                f"loss__{name}" for name in loss.get_params()
            }
        for params in ParameterSampler(space, 6, random_state=0) if space else []:
            make_loss(alias, **needed, **params).check(n_classes)


@each_alias
def test_every_name_of_a_search_space_can_be_set(alias):
    space = make_loss(alias).search_space
    for params in ParameterSampler(space, 3, random_state=0) if space else []:
        for what in (alias, make_loss(alias)):
            set_to = make_loss(what, **params).get_params()
            assert {name: set_to[name] for name in params} == params


def test_search_space_of_instances():
    assert search_space(Focal(2.0)).keys() == {"loss__gamma"}
    assert search_space(Normalized(Focal()), prefix="").keys() == {"loss__gamma"}
    assert search_space("clipped").keys() == {"loss__theta"}
    assert search_space(Clipped("gce")).keys() == {"loss__theta", "loss__loss__q"}
    with pytest.raises(ValueError, match="did you mean 'gce'"):
        search_space("gec")


# --- composition ---


def test_operators():
    a, b = CrossEntropy(), MeanAbsoluteError()
    total = 2 * a + b * 3 + 0.5 * (a + b)
    assert total.weights == (2, 3, 0.5, 0.5)
    assert_close(total(LOGITS, TARGET), 2.5 * a(LOGITS, TARGET) + 3.5 * b(LOGITS, TARGET))
    assert (2 * (torch.ones(2, 1, 1) * a)).weights[0].equal(torch.full((2, 1, 1), 2.0))


@pytest.mark.parametrize("other", [1, "ce", None])
def test_only_losses_add(other):
    with pytest.raises(TypeError):
        CrossEntropy() + other


def test_losses_do_not_multiply():
    with pytest.raises(TypeError):
        CrossEntropy() * CrossEntropy()


def test_new_parameters_forget_what_was_built_of_the_old():
    built = [Clipped("ce", 0.5).build(5), BackwardCorrected("ce", UNIFORM).build(5)]
    for loss, params in zip(built, ({"theta": 0.1}, {"transition": SKEWED}), strict=True):
        changed = clone(loss).set_params(**params)
        assert_close(loss.set_params(**params).per_label(LOGITS), changed.per_label(LOGITS))


def test_weights_default_to_one():
    total = Sum([CrossEntropy(), "mae"])
    expected = CrossEntropy()(LOGITS, TARGET) + MeanAbsoluteError()(LOGITS, TARGET)
    assert_close(total(LOGITS, TARGET), expected)


# --- as scikit-learn estimators ---


@each_loss
def test_clone_and_parameters(loss):
    copied = clone(loss)
    assert copied.per_label(LOGITS).equal(loss.per_label(LOGITS))
    rebuilt = type(loss)(**loss.get_params(deep=False))
    assert repr(rebuilt) == repr(copied) == repr(loss)
    assert type(loss).__name__ in repr(loss)


@each_loss
def test_calls_leave_no_state(loss):
    before = copy.deepcopy(vars(loss))
    loss(LOGITS, TARGET)
    loss.check(5)
    assert repr(vars(loss)) == repr(before)


@each_alias
def test_default_constructible(alias):
    assert isinstance(make_loss(alias), Loss)


def test_listed_losses_need_nothing_and_the_others_what_they_say():
    for alias in list_losses():
        make_loss(alias).check(3)
    assert sorted(set(LOSSES.names()) - set(list_losses())) == sorted(NEEDED)
    for alias, (name,) in NEEDED.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            make_loss(alias).check(3)


PROMISED = """
ce focal gce comp_sum taylor_ce poly1 phuber_ce phuber_gce truncated_gce bi_tempered squentropy
z_loss mae rce unhinged nce nfl ngce agce aul ael anorm nnce nnfl normalized_negative anl_ce anl_fl
ldr_kl aldr_kl ldr_k js gjs tv hellinger pearson le_cam sce nce+mae nce+rce nfl+mae nfl+rce nce+agce
nce+aul nce+ael ce_eps+mae ensloss legendretron evidential normalized clipped temperature
logit_adjusted logit_clipped eps_softmax forward_corrected backward_corrected
"""


def test_the_aliases_promised():
    assert sorted(PROMISED.split()) == LOSSES.names()


def test_make_loss():
    assert make_loss("gce", q=0.3).q == 0.3
    loss = Normalized(GeneralizedCrossEntropy())
    assert make_loss(loss, loss__q=0.3).loss.q == 0.3
    assert loss.loss.q == 0.7
    nested = make_loss("clipped", loss="gce", theta=0.2, loss__q=0.3)
    assert nested.theta == 0.2
    assert nested.loss.q == 0.3
    assert make_loss(Normalized("gce"), loss__q=0.3).loss.q == 0.3
    assert make_loss(Normalized(nested), loss__loss__q=0.4).loss.loss.q == 0.4
    with pytest.raises(ValueError, match=r"'gama', allowed are .* did you mean 'gamma'\?$"):
        make_loss("normalized", loss="focal", loss__gama=1)
    with pytest.raises(ValueError, match=r"of loss 'normalized' 'los', .* did you mean 'loss'\?$"):
        make_loss("normalized", los__gamma=1)
    with pytest.raises(ValueError, match=r"of loss 'sce' 'alhpa', .* did you mean 'alpha'\?$"):
        make_loss("sce", alhpa=1)
    with pytest.raises(ValueError, match=r"of Focal 'gama', .* did you mean 'gamma'\?$"):
        make_loss(Focal(), gama=1)
    with pytest.raises(TypeError, match="loss must be an alias or an instance of Loss, got 3"):
        make_loss(3)


@each_alias
def test_docstring_has_reference_and_example(alias):
    doc = LOSSES.get(alias).__doc__
    assert "    References\n    ----------" in doc
    assert "    Examples\n    --------\n    >>> " in doc


@pytest.mark.parametrize("base", [Loss, PointwiseLoss])
def test_base_classes_leave_the_formula_to_subclasses(base):
    with pytest.raises(NotImplementedError):
        base().per_label(LOGITS)
