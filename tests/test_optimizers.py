"""SAM is two gradient steps by hand, for each member as if it were alone."""

import pytest
import torch
from torch.testing import assert_close

from robustclf.optimizers import (
    OPTIMIZERS,
    SAM,
    check_optimizer,
    fused,
    get_optimizer,
)


def quadratic(w, optimizer, curvature):
    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (curvature * w.square()).sum()
        loss.backward()
        return loss

    return closure


CURVATURE = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
START = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_two_steps_by_hand_on_a_quadratic(rho):
    w = torch.nn.Parameter(START.clone())
    sam = SAM([w], base="sgd", lr=0.1, rho=rho)
    by_hand = START.clone()
    for _ in range(2):
        value = sam.step(quadratic(w, sam, CURVATURE))
        assert value.item() == pytest.approx(0.5 * (CURVATURE * by_hand**2).sum().item())
        gradient = CURVATURE * by_hand
        worse = by_hand + rho * gradient / gradient.norm()
        by_hand = by_hand - 0.1 * CURVATURE * worse
        assert_close(w.data, by_hand, rtol=0, atol=1e-12)


def test_momentum_and_weight_decay_belong_to_the_base():
    w, same = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
    params = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    sam, sgd = SAM([w], base="sgd", rho=0.5, **params), torch.optim.SGD([same], **params)
    for _ in range(3):
        sam.step(quadratic(w, sam, CURVATURE))
        gradient = CURVATURE * same.data
        same.grad = CURVATURE * (same.data + 0.5 * gradient / gradient.norm())
        sgd.step()
        assert_close(w.data, same.data, rtol=0, atol=1e-12)


@pytest.mark.parametrize("base", ["adamw", torch.optim.AdamW])
def test_base_is_an_alias_or_a_class(base):
    w = torch.nn.Parameter(START.clone())
    sam = SAM([w], base=base, lr=0.1)
    sam.step(quadratic(w, sam, CURVATURE))
    assert type(sam.base) is torch.optim.AdamW
    assert (w.data - START).abs().max() == pytest.approx(0.1, rel=0.1)


def test_the_norm_runs_over_all_groups():
    a, b = torch.nn.Parameter(torch.tensor([3.0])), torch.nn.Parameter(torch.tensor([4.0]))
    sam = SAM([{"params": [a]}, {"params": [b]}], base="sgd", lr=1.0, rho=1.0)

    def closure():
        sam.zero_grad()
        loss = 0.5 * (a.square() + b.square()).sum()
        loss.backward()
        return loss

    sam.step(closure)
    # the gradient (3, 4) has norm 5, and that at (3.6, 4.8) is (3.6, 4.8)
    assert_close(torch.cat([a.data, b.data]), torch.tensor([-0.6, -0.8]))


def test_a_stacked_group_has_a_norm_per_member():
    start = torch.stack([START, 10 * START, -START])
    stack = torch.nn.Parameter(start.clone())
    sam = SAM([{"params": [stack], "stacked": True}], base="sgd", lr=0.1, rho=0.5)
    sam.step(quadratic(stack, sam, CURVATURE))
    for member, alone in zip(stack.data, start, strict=True):
        w = torch.nn.Parameter(alone.clone())
        one = SAM([w], base="sgd", lr=0.1, rho=0.5)
        one.step(quadratic(w, one, CURVATURE))
        assert_close(member, w.data, rtol=0, atol=1e-12)


def test_learning_rates_set_on_the_groups_reach_the_base():
    w = torch.nn.Parameter(START.clone())
    sam = SAM([w], base="sgd", lr=0.1)
    sam.param_groups[0]["lr"] = 0.0
    sam.step(quadratic(w, sam, CURVATURE))
    assert_close(w.data, START, rtol=0, atol=0)


def test_parameters_without_a_gradient_stay():
    w, unused = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
    sam = SAM([w, unused], base="sgd", lr=0.1)
    sam.step(quadratic(w, sam, CURVATURE))
    assert_close(unused.data, START, rtol=0, atol=0)
    assert not torch.equal(w.data, START)


def test_a_step_without_a_closure_is_refused():
    with pytest.raises(TypeError, match=r"call step\(closure\)"):
        SAM([torch.nn.Parameter(START.clone())]).step()


def test_weights_are_restored_if_the_closure_raises():
    w = torch.nn.Parameter(START.clone())
    sam = SAM([w], base="sgd", lr=0.1, rho=0.5)
    inner, calls = quadratic(w, sam, CURVATURE), []

    def closure():
        calls.append(w.data.clone())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner()

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert (calls[1] - START).norm() == pytest.approx(0.5)
    assert_close(w.data, START, rtol=0, atol=0)


def test_the_closure_has_gradients_inside_no_grad():
    w = torch.nn.Parameter(START.clone())
    sam = SAM([w], base="sgd", lr=0.1)
    with torch.no_grad():
        sam.step(quadratic(w, sam, CURVATURE))
    assert not torch.equal(w.data, START)


@pytest.mark.parametrize("rho", [0, -0.1, float("nan")])
def test_rho_must_be_positive(rho):
    with pytest.raises(ValueError, match="rho must be positive, got"):
        SAM([torch.nn.Parameter(START.clone())], rho=rho)


@pytest.mark.parametrize("alias", OPTIMIZERS.names())
def test_every_alias_builds_an_optimizer_that_descends(alias):
    w = torch.nn.Parameter(START.clone())
    optimizer = get_optimizer(alias)([w], lr=0.01)
    closure = quadratic(w, optimizer, CURVATURE)
    first = closure().item()
    for _ in range(5):
        optimizer.step(closure)
    assert closure().item() < first


def test_aliases_are_those_of_the_docstring():
    names = ["adam", "adamw", "nadam", "radam", "rmsprop", "sam", "sgd"]
    assert OPTIMIZERS.names() == names
    assert all(f'"{name}"' in get_optimizer.__doc__ for name in names)


@pytest.mark.parametrize(
    ("optimizer", "params", "message"),
    [
        ("adamww", {}, "unknown optimizer 'adamww', allowed are .*; did you mean 'adamw'"),
        ("sgd", {"momentun": 0.9}, "parameter of optimizer 'sgd' 'momentun'.*mean 'momentum'"),
        ("sgd", {"rho": 0.1}, "unknown parameter of optimizer 'sgd' 'rho'"),
        ("sam", {"roh": 0.1}, "unknown parameter of optimizer 'sam' 'roh'.*did you mean 'rho'"),
        ("sam", {"momentum": 0.9}, "unknown parameter of optimizer 'sam' 'momentum'"),
        ("sam", {"base": "sdg"}, "unknown optimizer 'sdg'.*did you mean 'sgd'"),
        (torch.optim.SGD, {"beta": 0.9}, "unknown parameter of optimizer 'SGD' 'beta'"),
    ],
)
def test_what_is_unknown_is_refused(optimizer, params, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(optimizer, params)


def test_parameters_of_the_base_go_through_sam():
    check_optimizer("sam", {"rho": 0.1, "base": "sgd", "momentum": 0.9})


@pytest.mark.parametrize(
    ("optimizer", "params", "device", "expected"),
    [
        ("adamw", {}, "cpu", True),
        ("sgd", {}, "cuda:0", True),
        ("sam", {}, "cpu", True),
        ("sam", {"base": "rmsprop"}, "cpu", False),
        ("radam", {}, "cpu", False),
        ("adamw", {}, "mps", False),
    ],
)
def test_fused_where_torch_has_a_kernel(optimizer, params, device, expected):
    assert bool(fused(optimizer, device, params)) is expected
