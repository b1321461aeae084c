"""The training step is the formula, and members know nothing of each other."""

import copy

import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.testing import assert_close

from robustclf.losses import make_loss
from robustclf.optimizers import SAM
from robustclf.strategies import (
    CoTeaching,
    EarlyLearningRegularization,
    LabelSmoothing,
    Mixup,
    Strategy,
)


class Before:
    """Keep a copy of the network as it was before the fit."""

    def __call__(self, net):
        self.network = copy.deepcopy(net.module_)


def state(net):
    return {name: p.detach().clone() for name, p in net.module_.named_parameters()}


def forward(theta, x):
    """Compute logits of the one-layer network by matrix products, members as a batch."""
    first = torch.tanh(x @ theta["body.layers.0.weight"] + theta["body.layers.0.bias"])
    return first @ theta["body.head.weight"] + theta["body.head.bias"]


def one_step_by_hand(network, objective, lr, weight_decay=0.0):
    theta = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    value = objective(theta)
    gradient = torch.autograd.grad(value, list(theta.values()))
    stepped = {}
    for (name, p), g in zip(theta.items(), gradient, strict=True):
        decay = weight_decay if name.endswith("weight") else 0.0
        stepped[name] = (p - lr * (g + decay * p)).detach()
    return stepped


class LogitPenalty(Strategy):
    """R = 0.3 * mean over classes of the squared logits."""

    def penalty(self, net, batch, logits):
        return 0.3 * logits.square().mean(-1)


class Bootstrap(Strategy):
    """Targets are half the label, half the prediction."""

    def relabel(self, net, batch, logits):
        assert not logits.requires_grad
        return 0.5 * batch.distribution(net.n_classes) + 0.5 * logits.softmax(-1)


class WeighByLoss(Strategy):
    """Weights fall with the loss."""

    def weigh(self, net, batch, loss):
        assert not loss.requires_grad
        return batch.weight * torch.exp(-loss)


# The formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_one_step_is_a_gradient_step_on_the_formula(train, rows, seeds, weight_decay):
    x, y, w = rows
    before = Before()
    net = train(
        x,
        y,
        weight=w,
        seeds=seeds,
        strategies=[LogitPenalty()],
        weight_decay=weight_decay,
        before=before,
    )

    def objective(theta):
        logits = forward(theta, x)
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)
        loss = -p[:, torch.arange(len(x)), y].log()
        n = len(x)
        return (w * loss).sum() / n + (0.3 * logits.square().sum(-1) / 3).sum() / n

    expected = one_step_by_hand(before.network, objective, 0.1, weight_decay)
    assert_close(state(net), expected, rtol=0, atol=1e-12)
    value = objective(dict(before.network.named_parameters())).item() / len(seeds)
    assert net.history[-1, "train_loss"] == pytest.approx(value, abs=1e-12)


def test_weights_are_those_of_each_member(train, rows):
    x, y, _ = rows
    w = torch.rand(2, len(x), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    before = Before()
    net = train(x, y, weight=w, seeds=(4, 4), before=before)

    def objective(theta):
        log_p = forward(theta, x).log_softmax(-1)
        return -(w * log_p[:, torch.arange(len(x)), y]).mean(-1).sum()

    assert_close(state(net), one_step_by_hand(before.network, objective, 0.1), rtol=0, atol=1e-12)
    head = net.module_.body.head.weight
    assert (head[0] - head[1]).abs().max() > 1e-4


def test_targets_and_weights_are_constants_of_the_step(train, rows):
    x, y, w = rows
    before = Before()
    net = train(x, y, weight=w, strategies=[Bootstrap(), WeighByLoss()], before=before)
    with torch.no_grad():
        logits = forward(dict(before.network.named_parameters()), x)
        t = 0.5 * nn.functional.one_hot(y, 3) + 0.5 * logits.softmax(-1)
        weight = w * torch.exp((t * logits.log_softmax(-1)).sum(-1))

    def objective(theta):
        return -(weight * (t * forward(theta, x).log_softmax(-1)).sum(-1)).mean()

    expected = one_step_by_hand(before.network, objective, 0.1)
    assert_close(state(net), expected, rtol=0, atol=1e-12)


def test_sam_steps_along_the_gradient_at_the_perturbed_weights(train, rows):
    x, y, w = rows
    before = Before()
    net = train(x, y, weight=w, seeds=(1, 2), optimizer="sam", base="sgd", rho=0.3, before=before)

    def objective(theta):
        log_p = forward(theta, x).log_softmax(-1)
        return -(w * log_p[:, torch.arange(len(x)), y]).mean(-1).sum()

    theta = {n: p.detach().clone().requires_grad_() for n, p in before.network.named_parameters()}
    gradient = torch.autograd.grad(objective(theta), list(theta.values()))
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradient]).sum(0).sqrt()
    climbed = copy.deepcopy(before.network)
    with torch.no_grad():
        for p, g in zip(climbed.parameters(), gradient, strict=True):
            p += 0.3 * g / norm[:, None, None]
    there = {n: p.detach().requires_grad_() for n, p in climbed.named_parameters()}
    gradient = torch.autograd.grad(objective(there), list(there.values()))
    expected = {n: p.detach() - 0.1 * g for (n, p), g in zip(theta.items(), gradient, strict=True)}
    assert_close(state(net), expected, rtol=0, atol=1e-12)


class Count(Strategy):
    """Count the calls of each hook."""

    def __init__(self):
        self.calls = dict.fromkeys(["on_batch", "relabel", "weigh", "penalty", "on_batch_end"], 0)

    def on_batch(self, net, batch):
        self.calls["on_batch"] += 1
        return batch

    def relabel(self, net, batch, logits):
        self.calls["relabel"] += 1
        return batch.target

    def weigh(self, net, batch, loss):
        self.calls["weigh"] += 1
        return batch.weight

    def penalty(self, net, batch, logits):
        self.calls["penalty"] += 1
        return 0.0

    def on_batch_end(self, net, **kwargs):
        self.calls["on_batch_end"] += 1


@pytest.mark.parametrize(("optimizer", "looks"), [("sgd", 1), ("sam", 2)])
def test_targets_and_weights_are_chosen_once_per_step(train, rows, optimizer, looks):
    x, y, _ = rows
    count = Count()
    train(x, y, strategies=[count], optimizer=optimizer, batch_size=8, epochs=2)
    steps = 6
    assert count.calls == dict.fromkeys(count.calls, steps) | {"penalty": looks * steps}


def test_hooks_act_in_the_order_of_the_list(train, rows):
    x, y, _ = rows
    seen = []

    class First(Strategy):
        def relabel(self, net, batch, logits):
            seen.append(batch.target.ndim)
            return batch.distribution(net.n_classes)

    class Second(First):
        pass

    train(x, y, strategies=[First(), Second()])
    assert seen == [1, 2]


def test_batches_are_of_equal_size_and_cover_every_row_once(train, rows):
    x, y, _ = rows
    seen = []

    class Record(Callback):
        def on_batch_end(self, net, batch=None, training=None, **kwargs):
            seen.append(batch.index)

    train(x, y, batch_size=10, epochs=2, callbacks=[Record()])
    assert [len(index) for index in seen] == [12, 12, 12, 12]
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(24))
    assert first.tolist() != second.tolist()


# Members --------------------------------------------------------------------------------------


class Custom(nn.Sequential):
    def __init__(self, in_features, n_classes):
        super().__init__(nn.Linear(in_features, 5), nn.Tanh(), nn.Linear(5, n_classes))


def members(net):
    """Parameters of each member, by name."""
    body = net.module_.body
    shared = list((net.module_.inputs if hasattr(body, "members") else net.module_).parameters())
    own = list(body.members) if hasattr(body, "members") else [nn.Module()] * len(shared[0])
    return [
        [p[m].detach() for p in shared] + [p.detach() for p in own[m].parameters()]
        for m in range(len(own))
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "sam"])
@pytest.mark.parametrize("module", ["mlp", "resnet", Custom])
@pytest.mark.parametrize("cardinalities", [(), (7, 12)])
def test_a_member_is_what_it_would_be_alone(train, rows, optimizer, module, cardinalities):
    x, y, w = rows
    for k in cardinalities:
        x = torch.cat([x, torch.arange(len(x)).remainder(k)[:, None].double()], dim=1)
    options = {
        "weight": w,
        "optimizer": optimizer,
        "module": module,
        "cardinalities": cardinalities,
        "batch_size": 8,
        "epochs": 4,
        "lr": 0.05,
        "weight_decay": 0.1,
        "strategies": [Mixup(), LabelSmoothing(), EarlyLearningRegularization()],
    }
    if optimizer == "sam":
        options["rho"] = 0.5
    stack = members(train(x, y, seeds=(11, 22, 33), **options))
    for seed, member in zip((11, 22, 33), stack, strict=True):
        (alone,) = members(train(x, y, seeds=(seed,), **options))
        assert_close(member, alone, rtol=0, atol=1e-6)
    assert (stack[0][-1] - stack[1][-1]).abs().max() > 1e-3


@pytest.mark.parametrize("module", ["mlp", Custom])
def test_sam_measures_one_norm_for_all_of_a_member(train, rows, module):
    """Also where a member's parameters are partly stacked and partly its own."""
    x, y, _ = rows
    x = torch.cat([x, torch.arange(len(x)).remainder(5)[:, None].double()], dim=1)
    before = Before()
    distance = []

    class Measure(Strategy):
        def penalty(self, net, batch, logits):
            pairs = zip(members(net), members_before, strict=True)
            distance.append(
                [sum((a - b).square().sum() for a, b in zip(*p, strict=True)) for p in pairs]
            )
            return 0.0

    def remember(net):
        before(net)
        nonlocal members_before
        members_before = [[p.clone() for p in member] for member in members(net)]

    members_before = []
    train(
        x,
        y,
        seeds=(1, 2),
        module=module,
        cardinalities=(5,),
        optimizer="sam",
        rho=0.25,
        strategies=[Measure()],
        before=remember,
    )
    assert distance[0] == [0, 0]
    assert [float(d) ** 0.5 for d in distance[1]] == pytest.approx([0.25, 0.25], abs=1e-9)


ALL = [Mixup(), LabelSmoothing(), CoTeaching(tau=0.4, T_k=2), EarlyLearningRegularization()]


@pytest.mark.parametrize("strategies", [[s] for s in ALL] + [ALL], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_labels_of_rows_of_weight_zero_never_reach_a_member(train, rows, strategies, optimizer):
    """Members 0 and 1 train on all rows, 2 and 3 leave out the first eight."""
    x, y, _ = rows
    weight = torch.ones(4, len(x), dtype=torch.float64)
    weight[2:, :8] = 0
    weight /= weight.mean(1, keepdim=True)
    changed = y.clone()
    changed[:8] = (y[:8] + 1) % 3
    options = {
        "seeds": (1, 2, 3, 4),
        "weight": weight,
        "n_members": 2,
        "optimizer": optimizer,
        "strategies": strategies,
        "batch_size": 8,
        "epochs": 5,
        "lr": 0.05,
    }
    one, other = members(train(x, y, **options)), members(train(x, changed, **options))
    assert_close(one[2:], other[2:], rtol=0, atol=1e-12)
    assert (one[0][0] - other[0][0]).abs().max() > 1e-4


def test_members_for_folds_are_dropped_after_the_fit(train, rows):
    x, y, _ = rows
    net = train(x, y, seeds=(1, 2, 3), n_members=1)
    all_logits = torch.cat(list(net.logits(x, oof=True)), 1)
    assert all_logits.shape == (3, 24, 3)
    net.release()
    assert_close(torch.cat(list(net.logits(x)), 1), all_logits[:1], rtol=0, atol=0)
    assert {p.shape[0] for p in net.module_.parameters()} == {1}
    assert all(p.grad is None for p in net.module_.parameters())
    assert net.optimizer_ is None


@pytest.mark.parametrize("n_members", [1, 2])
def test_out_of_fold_members_follow_the_loss_of_their_own(train, rows, n_members):
    """The value recorded is the mean over members of their own objectives."""
    x, y, _ = rows
    before = Before()
    net = train(x, y, seeds=tuple(range(n_members)), before=before)
    logits = before.network(x)
    loss = make_loss("ce")(logits, y).mean().item()
    assert net.history[-1, "train_loss"] == pytest.approx(loss, abs=1e-12)


def test_batch_statistics_see_each_batch_once_with_sam(train, rows):
    x, y, _ = rows

    class Normed(nn.Sequential):
        def __init__(self, in_features, n_classes):
            super().__init__(nn.BatchNorm1d(in_features, momentum=0.5), nn.Linear(in_features, 3))

    net = train(x, y, module=Normed, optimizer=SAM, rho=0.5, epochs=1)
    norm = net.module_.body.members[0][0]
    assert_close(norm.running_mean, 0.5 * x.mean(0))
    assert norm.momentum == 0.5
