"""Gradients and values of the losses, also at extremes and by hand."""

import math

import numpy as np
import pytest
import torch
from loss_cases import (
    EXTREMES,
    LOGITS,
    NEEDED,
    PAIR,
    SKEWED,
    TARGET,
    draw,
    each_alias,
    each_built,
    each_loss,
    inner_losses,
)
from torch.testing import assert_close

from robustclf.losses import (
    AdaptiveLabelRobustKL,
    BackwardCorrected,
    BiTempered,
    Clipped,
    CrossEntropy,
    Focal,
    ForwardCorrected,
    GeneralizedCrossEntropy,
    JensenShannon,
    LabelRobustKL,
    LabelRobustTopK,
    LogitAdjusted,
    MeanAbsoluteError,
    Normalized,
    NormalizedNegative,
    Poly1,
    ReverseCrossEntropy,
    Temperature,
    TruncatedGeneralizedCrossEntropy,
    make_loss,
)


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


@pytest.mark.parametrize("lam", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_label_robust_loss_keeps_its_digits_whatever_the_margin(lam, n_classes):
    f = draw(50, n_classes, scale=5.0).requires_grad_()
    gap = f.unsqueeze(-2) - f.unsqueeze(-1) + 2.0 * (1 - torch.eye(n_classes).double())
    expected = lam * ((gap / lam).logsumexp(-1) - math.log(n_classes))
    single = f.detach().float().requires_grad_()
    value = LabelRobustKL(lam, 2.0, "none").per_label(single)
    assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(value.sum(), single)
    assert_close(grad.double(), torch.autograd.grad(expected.sum(), f)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalization", ["softplus", "l1", "none"])
def test_adaptive_label_robust_loss_of_sure_predictions_is_finite(normalization):
    logits = torch.tensor([[8.0, -8.0, -8.0], [2.0, 0.0, 0.0]], requires_grad=True)
    value = AdaptiveLabelRobustKL(0.1, 1.1, 2.0, normalization)(logits, torch.tensor([0, 0]))
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("inner", ["nfl", "nfl+rce", "anl_fl", "logit_clipped"])
@pytest.mark.parametrize("gap", [0.0, 20.0, 200.0])
def test_clipped_losses_have_a_gradient_where_nothing_is_clipped(inner, gap):
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(Clipped(inner, 0.3)(logits, torch.tensor([0])).sum(), logits)
    (expected,) = torch.autograd.grad(make_loss(inner)(logits, torch.tensor([0])).sum(), logits)
    if gap:
        assert_close(grad, expected)
    assert grad.isfinite().all()


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
