"""Each member of a stack takes the steps that torch's optimiser takes for it alone."""

import pytest
import torch
from torch import nn

from robustclf.optimizers import LINEAR, StackedOptimizer

LR = torch.tensor([0.1, 0.01, 0.003], dtype=torch.float64)
DECAY = torch.tensor([0.0, 0.2, 1.5], dtype=torch.float64)
CASES = [(kind, {}) for kind in LINEAR]
CASES += [(kind, {"decoupled_weight_decay": True}) for kind in LINEAR[1:4]]
CASES += [
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.AdamW, {"amsgrad": True}),
]


def parameters(seed=0):
    """Return weights, biases, and weights that get no gradient, of three members."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4, 2), (3, 1, 2), (3, 2)]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def backward(weight, bias, step):
    loss = ((weight - step).sin() + bias).square().sum()
    loss.backward()
    return loss


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_steps_are_those_of_torch(kind, options, maximize):
    options = options | {"maximize": maximize}
    weight, bias, idle = parameters()
    each = [(weight, slice(0, 3), True), (bias, slice(0, 3), False), (idle, slice(0, 3), True)]
    stacked = StackedOptimizer(kind, each, LR, DECAY, **options)
    for step in range(4):
        stacked.zero_grad()
        stacked.step(lambda step=step: backward(weight, bias, step))
    for member in range(3):
        own = [nn.Parameter(p[member].detach().clone()) for p in parameters()]
        groups = [{"params": [own[0], own[2]]}, {"params": own[1:2], "weight_decay": 0.0}]
        lr, decay = float(LR[member]), float(DECAY[member])
        alone = kind(groups, lr=lr, weight_decay=decay, **options)
        for step in range(4):
            alone.zero_grad()
            backward(own[0], own[1], step)
            alone.step()
        for mine, theirs in zip((weight, bias, idle), own, strict=True):
            torch.testing.assert_close(mine[member], theirs, rtol=1e-12, atol=1e-14)
