"""Steps by hand, what they become in the limit, and each member as if it were alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustclf import RobustClassifier
from robustclf.optimizers import (
    ASAM,
    AWP,
    OPTIMIZERS,
    SAM,
    FAdam,
    MoMo,
    MoMoAdam,
    Perturbed,
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


@pytest.mark.parametrize("alias", ["asam", "awp", "momo", "momo_adam", "sam"])
def test_a_step_without_a_closure_is_refused(alias):
    with pytest.raises(TypeError, match=r"call step\(closure\)"):
        get_optimizer(alias)([torch.nn.Parameter(START.clone())]).step()


@pytest.mark.parametrize("wrapper", [SAM, ASAM, AWP])
def test_weights_are_restored_if_the_closure_raises(wrapper):
    w = torch.nn.Parameter(START[None].clone())
    optimizer = wrapper([w], base="sgd", lr=0.1)
    inner, calls = quadratic(w, optimizer, CURVATURE), []

    def closure():
        calls.append(w.data.clone())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert (calls[1] - START).norm() > 0.01
    assert_close(w.data[0], START, rtol=0, atol=0)


def test_the_closure_has_gradients_inside_no_grad():
    w = torch.nn.Parameter(START.clone())
    sam = SAM([w], base="sgd", lr=0.1)
    with torch.no_grad():
        sam.step(quadratic(w, sam, CURVATURE))
    assert not torch.equal(w.data, START)


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
    names = ["adam", "adamw", "asam", "awp", "fadam", "momo", "momo_adam"]
    names += ["nadam", "radam", "rmsprop", "sam", "sgd"]
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
        ("sam", {"eta": 0.1}, "unknown parameter of optimizer 'sam' 'eta'"),
        ("sam", {"base": "sdg"}, "unknown optimizer 'sdg'.*did you mean 'sgd'"),
        ("awp", {"base": "sam"}, "base must step along one gradient, as 'adamw' does, got 'sam'"),
        ("momo", {"momentum": 0.9}, "unknown parameter of optimizer 'momo' 'momentum'"),
        ("fadam", {"lr": 0.1}, "the learning rate is the parameter lr, not optimizer__lr"),
        (torch.optim.SGD, {"beta": 0.9}, "unknown parameter of optimizer 'SGD' 'beta'"),
    ],
)
def test_what_is_unknown_is_refused(optimizer, params, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(optimizer, params)


@pytest.mark.parametrize(
    ("alias", "params"),
    [("sam", {"rho": 0.1}), ("asam", {"rho": 0.1, "eta": 0.1}), ("awp", {"gamma": 0.1})],
)
def test_parameters_of_the_base_go_through_what_is_around_it(alias, params):
    check_optimizer(alias, params | {"base": "sgd", "momentum": 0.9})


@pytest.mark.parametrize(
    ("optimizer", "params", "device", "expected"),
    [
        ("adamw", {}, "cpu", True),
        ("sgd", {}, "cuda:0", True),
        ("sam", {}, "cpu", True),
        ("awp", {}, "cpu", True),
        ("asam", {"base": torch.optim.Adam}, "cuda", True),
        ("sam", {"base": "rmsprop"}, "cpu", False),
        ("adamw", {"foreach": True}, "cpu", False),
        ("sam", {"foreach": True}, "cuda", False),
        ("momo", {}, "cpu", False),
        ("radam", {}, "cpu", False),
        ("adamw", {}, "mps", False),
    ],
)
def test_fused_where_torch_has_a_kernel(optimizer, params, device, expected):
    assert bool(fused(optimizer, device, params)) is expected


@pytest.mark.parametrize(
    ("alias", "params", "message"),
    [
        ("sam", {"rho": 0}, r"rho must lie in \(0, inf\), got 0"),
        ("sam", {"rho": float("nan")}, "rho must lie in .*, got nan"),
        ("asam", {"rho": -0.1}, "rho must lie in .*, got -0.1"),
        ("asam", {"eta": -0.1}, r"eta must lie in \[0, inf\), got -0.1"),
        ("awp", {"gamma": 0.0}, r"gamma must lie in \(0, inf\), got 0.0"),
        ("awp", {"base": AWP}, "base must step along one gradient"),
        ("momo", {"lr": -1.0}, r"lr must lie in \[0, inf\), got -1.0"),
        ("momo", {"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
        ("momo", {"weight_decay": -1}, r"weight_decay must lie in \[0, inf\), got -1"),
        ("momo", {"lb": float("inf")}, r"lb must lie in \(-inf, inf\), got inf"),
        ("momo", {"use_fstar": 1}, "use_fstar must be True or False, got 1"),
        ("momo_adam", {"betas": (0.9, 1.5)}, r"betas\[1\] must lie in \[0, 1\), got 1.5"),
        ("momo_adam", {"eps": 0}, r"eps must lie in \(0, inf\), got 0"),
        ("fadam", {"betas": (-1, 0.9)}, r"betas\[0\] must lie in \[0, 1\), got -1"),
        ("fadam", {"betas": (0.9,)}, r"betas must be two numbers in \[0, 1\), got \(0.9,\)"),
        ("momo_adam", {"betas": 0.9}, r"betas must be two numbers in \[0, 1\), got 0.9"),
        ("fadam", {"clip": 0.0}, r"clip must lie in \(0, inf\), got 0.0"),
        ("fadam", {"p": "half"}, r"p must lie in \(0, inf\), got 'half'"),
    ],
)
def test_what_is_out_of_range_is_refused(alias, params, message):
    with pytest.raises(ValueError, match=message):
        get_optimizer(alias)([torch.nn.Parameter(START.clone())], **params)


# Steps by hand -----------------------------------------------------------------------------------

MATRIX = np.array([[2.0, -1.0, 0.5], [0.3, -4.0, 1.0]])
VECTOR = np.array([1.0, -2.0])
CURVATURES = np.array([[1.0, 4.0, 9.0], [2.0, 0.5, 3.0]]), np.array([5.0, 0.1])


def run(kind, steps, add=0.0, start=(MATRIX, VECTOR), groups=({}, {}), **params):
    """Minimise ``add + sum(c * w ** 2) / 2``; return the weights after each step."""
    weights = [nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    curvatures = [torch.from_numpy(c) for c in CURVATURES]
    optimizer = kind(
        [{"params": [w]} | group for w, group in zip(weights, groups, strict=True)], **params
    )

    def closure():
        optimizer.zero_grad()
        squares = [(c * w.square()).sum() for c, w in zip(curvatures, weights, strict=True)]
        loss = add + sum(squares) / 2
        loss.backward()
        return loss

    path = []
    for _ in range(steps):
        optimizer.step(closure)
        path.append([w.detach().numpy().copy() for w in weights])
    return path


def assert_same(path, expected, atol=1e-12):
    for at, there in zip(path, expected, strict=True):
        for w, v in zip(at, there, strict=True):
            np.testing.assert_allclose(w, v, rtol=0, atol=atol)


def test_asam_by_hand():
    (a, b), (c, d), expected = (MATRIX, VECTOR), CURVATURES, []
    for _ in range(2):
        g, h = c * a, d * b
        t = np.abs(a) + 0.2
        norm = np.sqrt(((t * g) ** 2).sum() + (h**2).sum())
        a = a - 0.1 * c * (a + 0.7 * t**2 * g / norm)
        b = b - 0.1 * d * (b + 0.7 * h / norm)
        expected.append((a, b))
    assert_same(run(ASAM, 2, base="sgd", lr=0.1, rho=0.7, eta=0.2), expected)


def test_awp_by_hand():
    (a, b), (c, d), expected = (MATRIX, VECTOR), CURVATURES, []
    for _ in range(2):
        g = c * a
        a = a - 0.1 * c * (a + 0.3 * np.linalg.norm(a) / np.linalg.norm(g) * g)
        b = b - 0.1 * d * b
        expected.append((a, b))
    assert_same(run(AWP, 2, base="sgd", lr=0.1, gamma=0.3), expected)


def momo_by_hand(steps, lr, add, adam, beta=0.9, decay=0.0, lb=0.0, estimate=False, correct=False):
    """The algorithm of the paper on one vector; also the step sizes and the lower bounds."""
    c, x = np.concatenate([v.ravel() for v in CURVATURES]), np.r_[MATRIX.ravel(), VECTOR]
    d, v, mean, gamma, floor = np.zeros(len(x)), np.zeros(len(x)), 0.0, 0.0, lb
    path, taus, bounds = [], [], []
    for k in range(1, steps + 1):
        f, g = add + (c * x**2).sum() / 2, c * x
        if k == 1 and not correct:
            d, mean, gamma = g, f, g @ x
        else:
            d, mean = beta * d + (1 - beta) * g, beta * mean + (1 - beta) * f
            gamma = beta * gamma + (1 - beta) * (g @ x)
        rho = 1 - beta**k if correct else 1.0
        v = 0.99 * v + 0.01 * g**2
        scale = np.sqrt(v / (1 - 0.99**k)) + 1e-3 if adam else np.ones(len(x))
        square, grow = (d**2 / scale).sum(), 1 + lr * decay
        if estimate and grow * (mean - gamma) + d @ x < grow * rho * lb:
            lb = max((grow * (mean - gamma) + d @ x) / (2 * grow * rho), floor)
        tau = max(grow * (mean - rho * lb - gamma) + d @ x, 0.0) / square
        taus.append(tau * rho / lr)
        tau = min(lr / rho, tau)
        if estimate:
            lb = max((mean + d @ x - gamma - tau * square / 2) / rho, floor)
        bounds.append(lb)
        x = (x - tau * d / scale) / grow
        path.append((x[:6].reshape(2, 3), x[6:]))
    return path, np.array(taus), np.array(bounds)


@pytest.mark.parametrize(
    ("add", "decay", "options"),
    [
        (0.0, 0.0, {}),
        (0.0, 0.3, {"correct": True}),
        (2.0, 0.1, {"lb": 1.5, "beta": 0.5}),
        (3.0, 0.1, {"estimate": True, "correct": True}),
        (3.0, 0.0, {"estimate": True, "lb": -1.0}),
    ],
)
def test_momo_by_hand(add, decay, options):
    lr = 0.2 if add else 0.1
    expected, shares, bounds = momo_by_hand(12, lr, add, adam=False, decay=decay, **options)
    names = {"correct": "bias_correction", "estimate": "use_fstar"}
    params = {names.get(name, name): value for name, value in options.items()}
    assert_same(run(MoMo, 12, add, lr=lr, weight_decay=decay, **params), expected, 1e-11)
    assert (shares > 1).any()
    assert (shares < 1).any()
    assert ("estimate" in options) == (len(set(bounds)) > 1)


@pytest.mark.parametrize(("decay", "estimate"), [(0.0, False), (0.2, False), (0.2, True)])
def test_momo_adam_by_hand(decay, estimate):
    options = {"adam": True, "decay": decay, "estimate": estimate, "correct": True}
    expected, shares, bounds = momo_by_hand(12, 1.0, 1.0, **options)
    params = {"betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": decay, "use_fstar": estimate}
    assert_same(run(MoMoAdam, 12, 1.0, lr=1.0, **params), expected, 1e-11)
    assert (shares < 1).any()
    assert estimate == (len(set(bounds)) > 1)


def test_momo_minimises_its_truncated_model_over_all_groups():
    """Also where groups differ in learning rate and weight decay."""
    lr, decay = (0.3, 0.1), (0.5, 2.0)
    groups = [{"lr": a, "weight_decay": b} for a, b in zip(lr, decay, strict=True)]
    ((a, b),) = run(MoMo, 1, groups=groups, lb=1.0)
    x, c = (MATRIX, VECTOR), CURVATURES
    value = sum((c[i] * x[i] ** 2).sum() for i in (0, 1)) / 2

    def model(y):
        plane = value + sum((c[i] * x[i] * (y[i] - x[i])).sum() for i in (0, 1))
        far = sum(((y[i] - x[i]) ** 2).sum() / lr[i] for i in (0, 1))
        return max(plane, 1.0) + far / 2 + sum(decay[i] * (y[i] ** 2).sum() for i in (0, 1)) / 2

    rng = np.random.default_rng(0)
    for size in 10.0 ** rng.uniform(-4, 0, 500):
        other = a + size * rng.standard_normal(a.shape), b + size * rng.standard_normal(b.shape)
        assert model(other) > model((a, b))


def test_fadam_by_hand():
    (c, d), expected = CURVATURES, []
    weights, fisher, momentum = [MATRIX, VECTOR], [0.0, 0.0], [0.0, 0.0]

    def clip(x):
        return x / max(1.0, np.sqrt((x**2).mean()) / 0.8)

    for t in (1, 2, 3):
        beta = 0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9**t)
        for i, curvature in enumerate((c, d)):
            w, g = weights[i], curvature * weights[i]
            fisher[i] = beta * fisher[i] + (1 - beta) * g**2
            eps = min(0.1, 0.05 * np.sqrt((g**2).mean())) ** 0.8
            momentum[i] = 0.7 * momentum[i] + 0.3 * clip(g / (fisher[i] ** 0.4 + eps))
            weights[i] = w - 0.2 * (momentum[i] + 0.5 * clip(w / (fisher[i] ** 0.4 + eps)))
        expected.append(list(weights))
    params = {"betas": (0.7, 0.9), "eps": 0.1, "eps2": 0.05, "clip": 0.8, "p": 0.4}
    assert_same(run(FAdam, 3, lr=0.2, weight_decay=0.5, **params), expected)


# Limits ------------------------------------------------------------------------------------------

SGD, Adam = torch.optim.SGD, torch.optim.Adam
SIGNS = np.sign(MATRIX), np.sign(VECTOR)
SAME = {
    "ASAM where all weights are 1 is SAM": (
        (ASAM, {"start": SIGNS, "base": "sgd", "lr": 0.1, "rho": 0.5, "eta": 0.0, "steps": 1}),
        (SAM, {"start": SIGNS, "base": "sgd", "lr": 0.1, "rho": 0.5, "steps": 1}),
    ),
    "AWP without a perturbation is the base": (
        (AWP, {"base": "adam", "lr": 0.1, "gamma": 1e-14}),
        (Adam, {"lr": 0.1}),
    ),
    "MoMo far above its bound is SGD": (
        (MoMo, {"add": 1e6, "lr": 0.1}),
        (SGD, {"add": 1e6, "lr": 0.1, "momentum": 0.9, "dampening": 0.9}),
    ),
    "MoMoAdam far above its bound is Adam": (
        (MoMoAdam, {"add": 1e6, "lr": 0.1}),
        (Adam, {"add": 1e6, "lr": 0.1}),
    ),
    "FAdam without a clip and a momentum is Adam": (
        (FAdam, {"lr": 0.1, "betas": (0.0, 0.9), "eps": 1e-30, "clip": 1e9, "weight_decay": 0.0}),
        (Adam, {"lr": 0.1, "betas": (0.0, 0.9), "eps": 1e-30}),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_limits(name):
    (kind, params), (other, same) = SAME[name]
    assert_same(run(kind, **{"steps": 5} | params), run(other, **{"steps": 5} | same), 1e-9)


def test_momo_takes_polyaks_step():
    """Which halves the weight on a parabola, whatever its curvature."""
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = MoMo([w], lr=1e6, beta=0.0)
    for factor in (0.5, 0.25, 0.125):
        optimizer.step(quadratic(w, optimizer, 7.0))
        assert_close(w.data, factor * torch.tensor([3.0, 4.0]))


def test_momo_inside_sam_takes_the_loss_where_the_gradient_is():
    w = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    sam = SAM([w], base="momo", lr=1e6, beta=0.0, rho=0.5)
    assert sam.step(quadratic(w, sam, 2.0)).item() == pytest.approx(9.0)
    assert w.item() == pytest.approx(3.0 - 3.5 / 2)  # f / g of the parabola at 3.5


@pytest.mark.parametrize("alias", ["asam", "awp"])
def test_factors_that_cancel_between_layers_change_nothing(alias, rows):
    """Of networks without biases that compute the same, the perturbed losses are the same."""
    x, y, _ = rows
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in [(4, 6), (6, 3)]]
    params = {"rho": 0.5, "eta": 0.0} if alias == "asam" else {"gamma": 0.5}
    seen = {}
    for factor in (1.0, 10.0):
        first, second = (nn.Parameter(w.clone()) for w in start)
        first.data *= factor
        second.data /= factor
        optimizer = get_optimizer(alias)([first, second], base="sgd", lr=0.1, **params)
        losses = seen[factor] = []

        def closure(first=first, second=second, optimizer=optimizer, losses=losses):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy((x @ first).relu() @ second, y)
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
    assert seen[1.0] == pytest.approx(seen[10.0], abs=1e-9)
    assert seen[1.0][1] > seen[1.0][0] + 0.05


# Members -----------------------------------------------------------------------------------------

CASES = [(alias, {}) for alias in OPTIMIZERS.names()]
CASES += [(alias, {"base": "momo"}) for alias in ("asam", "awp", "sam")]
CASES += [("momo", {"use_fstar": True}), ("momo_adam", {"use_fstar": True, "lb": -1.0})]
IDS = ["-".join([alias, *map(str, params.values())]) for alias, params in CASES]


def descend(alias, params, start, stacked, steps=6):
    """Minimise a sum of waves on parabolas from ``start``, a list of tensors ``(member, ...)``."""
    weights = [nn.Parameter(w.clone()) for w in start]
    groups = [{"params": weights[:1], "stacked": stacked, "weight_decay": 0.1}]
    groups.append({"params": weights[1:], "stacked": stacked})
    optimizer = get_optimizer(alias)(groups, lr=0.05, **params)

    def closure():
        optimizer.zero_grad()
        terms = [0.5 * w**2 + (2 * w + 1).sin() + 1 for w in weights]
        n = len(start[0]) if stacked else 1
        loss = sum(term.reshape(n, -1).sum(1) for term in terms)
        loss.sum().backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return [w.data for w in weights]


@pytest.mark.parametrize(("alias", "params"), CASES, ids=IDS)
def test_a_stack_takes_the_steps_of_its_members(alias, params):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    start = [
        torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        * scale.view(-1, *[1] * len(shape))
        for shape in [(2, 4), (4,), ()]
    ]
    stack = descend(alias, params, start, stacked=True)
    for member in range(3):
        alone = descend(alias, params, [w[member] for w in start], stacked=False)
        assert_close([w[member] for w in stack], alone, rtol=0, atol=1e-12)
        assert all(torch.isfinite(w).all() for w in alone)


class Custom(nn.Sequential):
    def __init__(self, in_features, n_classes):
        super().__init__(nn.Linear(in_features, 5), nn.Tanh(), nn.Linear(5, n_classes))


def members(net):
    """Parameters of each member: what is stacked, and what is its own."""
    body = net.module_.body
    stacked = list((net.module_.inputs if hasattr(body, "members") else net.module_).parameters())
    own = list(body.members) if hasattr(body, "members") else [nn.Module()] * len(stacked[0])
    return [
        [p[m].detach() for p in stacked] + [p.detach() for p in own[m].parameters()]
        for m in range(len(own))
    ]


@pytest.mark.parametrize("module", ["mlp", Custom])
@pytest.mark.parametrize(("alias", "params"), CASES, ids=IDS)
def test_a_network_of_a_stack_is_what_it_would_be_alone(train, rows, alias, params, module):
    x, y, _ = rows
    x = torch.cat([x, torch.arange(len(x)).remainder(5)[:, None].double()], dim=1)
    weight = torch.rand(3, len(x), generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    weight *= torch.tensor([[1.0], [4.0], [0.2]])
    options = {"optimizer": alias, "module": module, "lr": 0.05, "weight_decay": 0.1} | params
    options |= {"cardinalities": (5,), "batch_size": 8, "epochs": 2}
    seeds = (11, 22, 33)
    stack = members(train(x, y, seeds=seeds, weight=weight, **options))
    for m, seed in enumerate(seeds):
        (alone,) = members(train(x, y, seeds=(seed,), weight=weight[m : m + 1], **options))
        assert_close(stack[m], alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alias", OPTIMIZERS.names())
def test_a_gradient_of_zero_keeps_a_member_finite_and_the_others_going(alias):
    w = nn.Parameter(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    optimizer = get_optimizer(alias)([{"params": [w], "stacked": True}], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum(1)
        loss.sum().backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert w[0].tolist() == [0.0, 0.0]
    assert (w[1].abs() < torch.tensor([1.0, 2.0])).all()


@pytest.mark.parametrize("alias", ["momo", "momo_adam"])
@pytest.mark.parametrize("returned", [lambda loss: loss.sum(), lambda loss: None])
def test_momo_asks_for_the_loss_of_each_member(alias, returned):
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = get_optimizer(alias)([{"params": [w], "stacked": True}])

    def closure():
        loss = w.square().sum(1)
        loss.sum().backward()
        return returned(loss)

    with pytest.raises(ValueError, match=r"loss of each of the 3 members.* shape \(3,\), got"):
        optimizer.step(closure)


# State and fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("alias", OPTIMIZERS.names())
def test_a_copy_goes_on_where_the_optimizer_stopped(alias, again):
    w = nn.Parameter(START[None].clone())
    optimizer = get_optimizer(alias)([w], lr=0.05)
    for _ in range(3):
        optimizer.step(quadratic(w, optimizer, CURVATURE))
    if again == "deepcopy":
        v, other = copy.deepcopy((w, optimizer))
    elif again == "pickle":
        v, other = pickle.loads(pickle.dumps((w, optimizer)))
    else:
        v = nn.Parameter(w.data.clone())
        other = get_optimizer(alias)([v], lr=1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (*optimizer.param_groups, *other.param_groups):
        group["lr"] *= 0.5
    for _ in range(3):
        optimizer.step(quadratic(w, optimizer, CURVATURE))
        other.step(quadratic(v, other, CURVATURE))
    assert_close(w.data, v.data, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alias", ["momo", "momo_adam"])
def test_a_state_that_was_loaded_is_shared_by_no_other(alias):
    w, v = nn.Parameter(START[None].clone()), nn.Parameter(START[None].clone())
    first, second = get_optimizer(alias)([w]), get_optimizer(alias)([v])
    first.step(quadratic(w, first, CURVATURE))
    second.load_state_dict(first.state_dict())
    second.step(quadratic(v, second, CURVATURE))
    assert [o.state["members"]["step"] for o in (first, second)] == [1, 2]


LR = {"momo": 1.0, "radam": 0.05, "sgd": 1.0}


@pytest.mark.parametrize("alias", OPTIMIZERS.names())
def test_every_optimizer_learns_iris(alias, iris):
    X, y = iris
    clf = RobustClassifier(
        loss="gce",
        optimizer=alias,
        lr=LR.get(alias, 0.01),
        lr_schedule="cosine",
        n_members=2,
        hidden=(32,),
        dropout=0.0,
        max_epochs=40,
        batch_size=25,
        random_state=0,
    ).fit(X, y)
    assert clf.score(X, y) > 0.94
    again = pickle.loads(pickle.dumps(clf))
    assert_close(again.predict_proba(X), clf.predict_proba(X), rtol=0, atol=0)


def test_wrappers_share_groups_and_state_with_their_base():
    kinds = [get_optimizer(alias) for alias in OPTIMIZERS.names()]
    assert [kind for kind in kinds if issubclass(kind, Perturbed)] == [ASAM, AWP, SAM]
    for kind in (ASAM, AWP, SAM):
        wrapper = kind([nn.Parameter(START.clone())])
        assert wrapper.param_groups is wrapper.base.param_groups
        assert wrapper.state is wrapper.base.state
