"""Theorems that every registered loss satisfies, and hand values."""

import copy
import math
from inspect import signature

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.testing import assert_close

from robustclf.losses import (
    BackwardCorrected,
    CrossEntropy,
    Focal,
    ForwardCorrected,
    GeneralizedCrossEntropy,
    Loss,
    MeanAbsoluteError,
    Normalized,
    NormalizedNegativeCrossEntropy,
    PointwiseLoss,
    ReverseCrossEntropy,
    Sum,
    list_losses,
    make_loss,
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

# every registered loss, and wrappers around losses that are not their default
CORRECTIONS = sorted(set(LOSSES.names()) - set(list_losses()))
CASES = {alias: make_loss(alias) for alias in list_losses()} | {
    alias: make_loss(alias, transition=UNIFORM) for alias in CORRECTIONS
}
CASES |= {
    "focal, gamma=0": Focal(0.0),
    "focal, gamma=2": Focal(2.0),
    "gce, q=.1": GeneralizedCrossEntropy(0.1),
    "nnce, p_min=.01": NormalizedNegativeCrossEntropy(0.01),
    "2 gce + nce": 2 * GeneralizedCrossEntropy() + make_loss("nce"),
    "normalized gce": Normalized("gce"),
    "normalized focal": Normalized("focal"),
    "normalized sum": Normalized(Sum(["ce", "gce"], [0.5, 2.0])),
    "forward nce, pairs": ForwardCorrected("nce", PAIR),
    "forward rce": ForwardCorrected("rce", UNIFORM),
    "backward gce, skewed": BackwardCorrected("gce", SKEWED),
}
each_loss = pytest.mark.parametrize("loss", CASES.values(), ids=CASES)
each_alias = pytest.mark.parametrize("alias", LOSSES.names())

# values for the hyper-parameters of three stacked networks
MEMBER_VALUES = {
    "q": [0.1, 0.7, 1.0],
    "gamma": [0.0, 0.5, 2.0],
    "A": [-1.0, -4.0, -9.0],
    "p_min": [1e-7, 1e-4, 0.1],
    "alpha": [0.1, 1.0, 10.0],
    "beta": [0.0, 1.0, 2.0],
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


@each_loss
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_leading_axes_equal_a_loop(loss, target):
    logits = draw(3, 7, 5)
    assert_close(loss(logits, target), torch.stack([loss(z, target) for z in logits]))
    expanded = target.expand(3, *target.shape)
    assert_close(loss(logits, expanded), loss(logits, target))


STRUCTURAL = {"loss", "transition", "detach_focal"}
HYPERPARAMETERS = {
    alias: signature(LOSSES.get(alias)).parameters.keys() - STRUCTURAL for alias in LOSSES.names()
}


def _sum_with_gce(loss):
    return Sum([loss, "gce"])


@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("wrap", [make_loss, Normalized, _sum_with_gce])
@pytest.mark.parametrize("alias", [alias for alias, names in HYPERPARAMETERS.items() if names])
def test_hyperparameters_of_members_equal_a_loop(alias, wrap, target):
    names = HYPERPARAMETERS[alias]
    assert names <= MEMBER_VALUES.keys(), "give MEMBER_VALUES three values of the new parameter"
    params = {name: torch.tensor(MEMBER_VALUES[name]).double().reshape(3, 1, 1) for name in names}
    stacked = wrap(make_loss(alias, **params))
    stacked.check(5)
    logits = draw(3, 7, 5)
    loop = [
        wrap(make_loss(alias, **{k: v[m].item() for k, v in params.items()}))(logits[m], target)
        for m in range(3)
    ]
    assert_close(stacked(logits, target), torch.stack(loop))


@pytest.mark.parametrize("correct", [ForwardCorrected, BackwardCorrected])
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_transitions_of_members_equal_a_loop(correct, target):
    transitions = torch.stack([UNIFORM, PAIR, SKEWED])
    logits = draw(3, 7, 5)
    stacked = correct("gce", transitions)
    stacked.check(5)
    loop = [correct("gce", T)(z, target) for T, z in zip(transitions, logits, strict=True)]
    assert_close(stacked(logits, target), torch.stack(loop))


@each_loss
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_vmap(loss, target):
    def one(logits, target):
        return loss(logits, target)

    assert_close(torch.func.vmap(one)(LOGITS, target), loss(LOGITS, target))
    grad = torch.func.vmap(torch.func.grad(one))(LOGITS, target)
    assert_close(grad, torch.func.grad(lambda z: loss(z, target).sum())(LOGITS))


# --- invariances ---


@each_loss
def test_shifting_logits_changes_nothing(loss):
    assert_close(loss.per_label(LOGITS + 3.7), loss.per_label(LOGITS))


def _permuted(loss, order):
    """The same loss where class order[k] is called k."""
    loss = clone(loss)
    if getattr(loss, "transition", None) is not None:
        loss.set_params(transition=loss.transition[order][:, order])
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


@pytest.mark.parametrize("inner", ["ce", "focal", "gce", "mae", "rce", "nnce", "sce"])
def test_normalized_losses_sum_to_one(inner):
    sums = Normalized(inner).per_label(LOGITS).sum(-1)
    assert_close(sums, torch.ones(7, dtype=torch.float64))


def test_the_sum_of_normalized_negative_cross_entropy():
    sums = NormalizedNegativeCrossEntropy().per_label(LOGITS).sum(-1)
    assert_close(sums, torch.full((7,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("q", [1e-6, 1e-9])
def test_generalized_cross_entropy_tends_to_cross_entropy(q):
    GeneralizedCrossEntropy(q).check(5)
    gce, ce = (loss.per_label(LOGITS) for loss in (GeneralizedCrossEntropy(q), CrossEntropy()))
    assert_close(gce, ce, rtol=10 * q, atol=0)


def test_special_cases():
    assert_close(
        GeneralizedCrossEntropy(1).per_label(LOGITS), MeanAbsoluteError().per_label(LOGITS)
    )
    assert_close(Focal(0).per_label(LOGITS), CrossEntropy().per_label(LOGITS))
    assert_close(
        CrossEntropy()(LOGITS, TARGET),
        torch.nn.functional.cross_entropy(LOGITS, TARGET, reduction="none"),
    )


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


@each_loss
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
    assert_close(loss.per_label(logits).double(), exact, rtol=0.05, atol=0.1)


@each_alias
@pytest.mark.parametrize("n_classes", [2, 26])
def test_number_of_classes(alias, n_classes):
    eye = {"transition": np.eye(n_classes)} if alias in CORRECTIONS else {}
    loss = make_loss(alias, **eye)
    loss.check(n_classes)
    assert loss.per_label(draw(4, n_classes)).isfinite().all()


HALF = torch.tensor([[0.5, 0.25, 0.25]]).log()
LOG_2 = math.log(2)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (CrossEntropy(), LOG_2),
        (Focal(gamma=2.0), LOG_2 / 4),
        (GeneralizedCrossEntropy(q=0.5), 2 - math.sqrt(2)),
        (MeanAbsoluteError(), 0.5),
        (ReverseCrossEntropy(), 2 * math.log(10)),
        (ReverseCrossEntropy(A=-4.0), 2.0),
        (Normalized("ce"), 1 / 5),
        (Normalized("mae"), 1 / 4),
        (NormalizedNegativeCrossEntropy(p_min=1 / 16), 4 / 7),
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
    nnce = NormalizedNegativeCrossEntropy()(HALF, torch.tensor([0]))
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
        (Focal(math.inf), r"^gamma must lie in \[0, inf\), got inf$"),
        (ReverseCrossEntropy(4), r"^A must lie in \(-inf, 0\), got 4$"),
        (NormalizedNegativeCrossEntropy(0.2), r"^p_min must lie in \(0, 0.2\), got 0.2$"),
        (NormalizedNegativeCrossEntropy(0), r"^p_min must lie in \(0, 0.2\), got 0$"),
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
        lambda loss: Sum(["ce", loss]),
        lambda loss: ForwardCorrected(loss, UNIFORM),
        lambda loss: BackwardCorrected(loss, UNIFORM),
    ],
    ids=["normalized", "sum", "forward", "backward"],
)
def test_wrappers_check_the_loss_they_hold(wrap):
    wrap("gce").check(5)
    with pytest.raises(ValueError, match="q must lie in"):
        wrap(GeneralizedCrossEntropy(7)).check(5)


@each_loss
def test_own_ranges_hold(loss):
    loss.check(5)


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


def test_listed_losses_need_nothing_and_the_others_a_transition():
    for alias in list_losses():
        make_loss(alias).check(3)
    assert CORRECTIONS == ["backward_corrected", "forward_corrected"]
    for alias in CORRECTIONS:
        with pytest.raises(ValueError, match="transition must be a matrix"):
            make_loss(alias).check(3)


def test_the_aliases_promised():
    promised = "ce focal gce mae rce sce nce nce+rce nce+mae anl_ce"
    assert set(promised.split()) <= set(list_losses())


def test_make_loss():
    assert make_loss("gce", q=0.3).q == 0.3
    loss = Normalized(GeneralizedCrossEntropy())
    assert make_loss(loss, loss__q=0.3).loss.q == 0.3
    assert loss.loss.q == 0.7
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
