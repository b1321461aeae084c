"""Theorems that every registered loss satisfies."""

import copy
import math
from inspect import signature

import pytest
import torch
from loss_cases import (
    APART,
    BUILT,
    CASES,
    LOGITS,
    NEEDED,
    PAIR,
    PRIOR,
    SKEWED,
    SOFT,
    TARGET,
    UNIFORM,
    draw,
    each_alias,
    each_built,
    each_loss,
)
from sklearn.base import clone
from torch.testing import assert_close

from robustclf.losses import (
    BackwardCorrected,
    Clipped,
    CrossEntropy,
    Focal,
    ForwardCorrected,
    GeneralizedCrossEntropy,
    LogitAdjusted,
    Loss,
    MeanAbsoluteError,
    Normalized,
    NormalizedNegative,
    PointwiseLoss,
    Sum,
    list_losses,
    make_loss,
)
from robustclf.losses._base import LOSSES, log_softmax

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


@pytest.mark.parametrize("shape", [(3, 200, 5), (700, 2), (3, 200, 16), (2000,), (2, 3, 4)])
def test_log_softmax_is_that_of_torch_for_all_shapes(shape):
    logits = draw(*shape).requires_grad_()
    ours, theirs = log_softmax(logits), logits.log_softmax(-1)
    assert_close(ours, theirs)
    weight = draw(*shape, seed=1)
    assert_close(*(torch.autograd.grad((weight * x).sum(), logits)[0] for x in (ours, theirs)))


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


@pytest.mark.parametrize(
    ("inner", "logits"),
    [
        ("squentropy", [30.0, -30.0, 0.0]),
        ("evidential", [5.0, 5.0, 5.0]),
        ("truncated_gce", [0.0, 0.0, 0.0]),
    ],
)
def test_normalized_negative_is_one_where_all_labels_are_beyond_the_bound(inner, logits):
    loss, x = NormalizedNegative(inner), torch.tensor([logits])
    assert loss.per_label(x).tolist() == [[1.0, 1.0, 1.0]]
    assert loss(x, torch.tensor([1])).tolist() == [1.0]


def test_normalized_negative_of_a_loss_with_learned_links():
    loss = NormalizedNegative("legendretron").build(n_classes=3, n_members=2)
    assert loss.per_label(torch.randn(2, 5, 3)).shape == (2, 5, 3)
