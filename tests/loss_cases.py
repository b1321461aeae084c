"""Losses that tests are about, and logits and targets for them."""

import math

import pytest
import torch

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
    LabelRobustKL,
    LabelRobustTopK,
    LogitAdjusted,
    LogitClipped,
    Normalized,
    NormalizedNegative,
    Poly1,
    Sum,
    TaylorCrossEntropy,
    Temperature,
    ZLoss,
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
    "ce + bi_tempered": CrossEntropy() + BiTempered(),
    "2 bi_tempered": 2 * BiTempered(),
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
inner_losses = pytest.mark.parametrize("inner", ["ce", "gce", "mae", "nce", "anl_ce"])
BUILT = {alias: loss.build(5) for alias, loss in CASES.items()}
BUILT |= {alias: make_loss(alias).build(5) for alias in APART}
each_built = pytest.mark.parametrize("loss", BUILT.values(), ids=BUILT)


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
