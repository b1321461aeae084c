"""Ranges of the hyper-parameters of the losses, and those worth searching."""

import math

import numpy as np
import pytest
import torch
from loss_cases import LOGITS, NEEDED, PRIOR, TARGET, UNIFORM, each_alias, each_loss
from sklearn.model_selection import ParameterSampler

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
    Normalized,
    NormalizedNegative,
    PHuberCrossEntropy,
    PHuberGeneralizedCrossEntropy,
    Poly1,
    ReverseCrossEntropy,
    Sum,
    TaylorCrossEntropy,
    Temperature,
    TruncatedGeneralizedCrossEntropy,
    ZLoss,
    make_loss,
    search_space,
)
from robustclf.losses._base import LOSSES


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
        (TaylorCrossEntropy(2.0), r"^t must be a whole number in \[1, inf\), got 2.0 \(a float\)$"),
        (
            TaylorCrossEntropy(True),
            r"^t must be a whole number in \[1, inf\), got True \(a bool\)$",
        ),
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


def test_parameters_of_a_loss_inside_that_is_an_alias():
    wrapped = Normalized("gce").set_params(loss__q=0.3)
    assert torch.equal(
        wrapped.per_label(LOGITS), Normalized(GeneralizedCrossEntropy(0.3)).per_label(LOGITS)
    )
    other = Normalized("gce").set_params(loss="focal", loss__gamma=1.5)
    assert torch.equal(other.per_label(LOGITS), Normalized(Focal(1.5)).per_label(LOGITS))


def test_flags_of_numpy_are_flags():
    make_loss("focal", detach_focal=np.True_).check(3)
