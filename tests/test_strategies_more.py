"""Relabelling, changed inputs and regularisers: each strategy does what its formula says."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch.nn.functional import one_hot
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf._net import Criterion
from robustclf.modules import TabularInput, make_network
from robustclf.strategies import (
    L1,
    SELC,
    Adversarial,
    Batch,
    Bootstrap,
    DecoupledMixup,
    FeatureNoise,
    FeatureSwap,
    GroupLasso,
    JoCoR,
    LabelSmoothing,
    MeanEntropy,
    Mixup,
    Refurbish,
    VirtualAdversarial,
)

N, K, M = 12, 3, 2
ALIASES = ["bootstrap", "refurbish", "selc", "adversarial", "decoupled_mixup"]
ALIASES += ["feature_noise", "feature_swap", "entropy", "group_lasso", "jocor", "l1", "vat"]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch():
    """Three numbers and one column of codes."""
    x = torch.cat([torch.randn(N, 3), torch.randint(4, (N, 1)).float()], 1).double()
    weight = torch.rand(M, N, dtype=torch.float64)
    weight[0, 3] = weight[1, 5] = 0.0
    return Batch(x, torch.randint(K, (N,)), weight, torch.arange(N))


@pytest.fixture
def logits():
    return 3 * torch.randn(M, N, K, dtype=torch.float64)


def network(kind="mlp"):
    inputs = TabularInput(M, 3, 3, [4])
    kwargs = {"hidden": (8,), "activation": "tanh", "dropout": 0.5, "seeds": [1, 2]}
    return make_network(kind, inputs, M, K, **kwargs).double()


def stub(loss="ce", **values):
    """Net of M members for the rows of ``batch``."""
    criterion = Criterion(make_loss(loss), K, M)
    given = {"n_codes": 1, "n_classes": K, "n_stacked": M, "epoch": 0, "warming": False}
    return SimpleNamespace(**given | {"module_": network(), "criterion_": criterion} | values)


def begin(strategy, net, batch):
    rows = SimpleNamespace(y=batch.target, weight=batch.weight, unlabelled=None)
    strategy.on_train_begin(net, rows)
    return strategy


def test_bootstrap_by_hand():
    batch = Batch(torch.zeros(1, 4), torch.tensor([0]), torch.ones(1, 1), torch.arange(1))
    logits = torch.tensor([[[0.2, 0.5, 0.3]]]).log()
    for form, expected in {"hard": [0.8, 0.2, 0.0], "soft": [0.96, 0.025, 0.015]}.items():
        target = Bootstrap(form=form).relabel(stub(), batch, logits)
        assert_close(target, torch.tensor([[expected]]))


def test_soft_bootstrapping_scales_the_gradient_of_the_cross_entropy_and_says_so(batch, logits):
    z = logits.requires_grad_()
    with torch.no_grad():
        target = Bootstrap(0.7, "soft").relabel(stub(), batch, z)
    (plain,) = torch.autograd.grad(make_loss("ce")(z, batch.target).sum(), z)
    (moved,) = torch.autograd.grad(make_loss("ce")(z, target).sum(), z)
    assert_close(moved, 0.7 * plain)
    with pytest.warns(UserWarning, match="only scales the gradient of loss='ce'"):
        Bootstrap(form="soft").check(make_loss("ce"), K)


def test_bootstrap_reads_probabilities_as_the_loss_does(batch, logits):
    net = stub("evidential")
    p = net.criterion_.loss.inverse_link(logits)
    assert_close(Bootstrap(0, "soft").relabel(net, batch, logits), p)
    net.warming = True
    assert_close(Bootstrap(0, "soft").relabel(net, batch, logits), logits.softmax(-1))


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_selc_memory_is_the_recursion(train, rows, optimizer):
    x, y, _ = rows
    selc, seen = SELC(momentum=0.7, warm_up=2), []

    class Record(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            with torch.no_grad():
                p = torch.empty(2, len(y), K, dtype=torch.float64)
                p[:, batch.index] = net.module_(batch.x).softmax(-1)
            seen.append((p, selc.memory_.clone()))

    options = {"optimizer": optimizer, "epochs": 5, "callbacks": [Record()]}
    train(x, y, seeds=(1, 2), strategies=[selc], **options)
    t = one_hot(y, K).double().repeat(2, 1, 1)
    for epoch, (p, memory) in enumerate(seen):
        assert_close(memory, t)
        t = 0.7 * t + 0.3 * p if epoch >= 2 else t
    assert (t[0] - t[1]).abs().max() > 1e-3


def test_selc_trains_with_the_updated_memory_and_mixes_it(batch, logits):
    net = stub(epoch=10, module_=lambda x: logits)
    t = 0.9 * one_hot(batch.target, K) + 0.1 * logits.softmax(-1)
    assert_close(begin(SELC(), net, batch).relabel(net, batch, logits), t)
    mixed = Mixup().on_batch(net, batch)
    lam, partner, w = mixed.mixing.lam, mixed.mixing.partner, batch.weight[..., None]
    target = begin(SELC(), net, batch).relabel(net, mixed, logits.flip(1))
    expected = lam * w * t + (1 - lam) * (w * t)[:, partner]
    assert_close(mixed.weight[..., None] * target, expected)


def test_refurbish_replaces_exactly_what_is_constantly_predicted_otherwise(batch):
    label = batch.target
    p = torch.full((M, N, K), 0.3, dtype=torch.float64)
    guess = torch.stack([label, (label + 1) % K])  # member 1 disagrees everywhere
    p.scatter_(-1, guess[..., None], 0.4)
    wavering = p.clone()
    wavering[1, :4] = p[0, :4]  # in one of four epochs it does not, for four rows
    net = stub(epoch=0)
    strategy = begin(Refurbish(threshold=0.8, warm_up=4, decay=0.5), net, batch)
    for net.epoch in range(4):
        predicted = wavering if net.epoch == 2 else p
        assert strategy.relabel(net, batch, predicted.log()) is label
        strategy.on_batch_end(net, batch=batch, training=True)
    agreed = 1 / 2 + 1 / 8 + 1 / 16  # of the weights of the epochs, which sum to 15 / 16
    assert_close(strategy.memory_[1, :4].amax(-1), torch.full((4,), agreed, dtype=torch.float64))
    net.epoch = 4
    target = strategy.relabel(net, batch, torch.zeros_like(p))
    expected = torch.stack([label, torch.cat([label[:4], guess[1, 4:]])])
    assert_close(target, one_hot(expected, K).double())


@pytest.mark.parametrize("p", [1.0, 0.25])
def test_feature_noise_has_the_stated_scale_and_spares_codes(p):
    x = torch.zeros(4000, 4, dtype=torch.float64)
    noisy = FeatureNoise(scale=0.3, p=p).on_batch(stub(), Batch(x, x, x, x)).x
    assert (noisy[:, 3] == 0).all()
    touched = noisy[noisy != 0]
    assert touched.numel() / 12000 == pytest.approx(p, abs=0.02)
    assert touched.std().item() == pytest.approx(0.3, rel=0.05)
    assert (x == 0).all()


@pytest.mark.parametrize("alias", ["nce", "ce"])
def test_feature_swap_exchanges_columns_and_mixes_losses(batch, logits, alias):
    for _ in range(5):
        swapped = FeatureSwap(p=1.0).on_batch(stub(), batch)
        lam, partner = swapped.mixing.lam, swapped.mixing.partner
        own, other = batch.x, batch.x[partner]
        assert ((swapped.x == own) | (swapped.x == other)).all()
        kept = (swapped.x == own).double().mean(1)[(own != other).all(1)]
        assert_close(kept, torch.full_like(kept, lam))
        loss, y, w = make_loss(alias), batch.target, batch.weight
        expected = lam * w * loss(logits, y)
        expected += (1 - lam) * w[:, partner] * loss(logits, y[partner])
        assert_close(swapped.weight * loss(logits, swapped.target), expected)
    assert FeatureSwap(p=0.0).on_batch(stub(), batch) is batch


def test_rows_mixed_twice_know_both_mixtures(batch):
    first = Mixup().on_batch(stub(), batch)
    twice = FeatureSwap(p=1.0).on_batch(stub(), first)
    w = batch.weight[..., None]
    assert_close(twice.weight[..., None] * twice.target, twice.mixing(w * one_hot(batch.target, K)))
    assert twice.mixing.x is batch.x


def ce_gradient(net, x, y):
    net.module_.eval()
    x = x.expand(M, N, 4).clone().requires_grad_()
    loss = -net.module_(x).log_softmax(-1)[:, torch.arange(N), y]
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    net.module_.train()
    return gradient[..., :3], loss.detach()


def test_fast_gradient_sign_by_hand(batch):
    net = stub()
    kept = (batch.weight > 0)[..., None]
    gradient, _ = ce_gradient(net, batch.x, batch.target)
    unit = gradient / gradient.norm(dim=-1, keepdim=True)
    for norm, direction in [("inf", gradient.sign()), ("2", unit)]:
        moved = Adversarial(eps=0.2, norm=norm).on_batch(net, batch)
        assert_close(moved.x[..., :3] - batch.x[:, :3], kept * 0.2 * direction)
        assert torch.equal(moved.x[..., 3], batch.x[:, 3].expand(M, N))
    assert all(p.grad is None and p.requires_grad for p in net.module_.parameters())
    assert net.module_.training


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_projected_gradient_is_worse_and_stays_in_the_ball(batch, norm, random_start):
    net, batch.weight = stub(), torch.ones(M, N, dtype=torch.float64)
    fast = Adversarial(2.0, norm=norm).on_batch(net, batch)
    slow = Adversarial(2.0, 20, norm=norm, random_start=random_start).on_batch(net, batch)
    shift = slow.x - batch.x
    assert (shift.norm(dim=-1, p=float(norm)) <= 2 + 1e-9).all()
    assert (shift[..., 3] == 0).all()
    clean, once, often = (ce_gradient(net, b.x, b.target)[1].mean() for b in (batch, fast, slow))
    assert clean < once < often


def test_decoupled_mixup_by_hand(batch, logits):
    strategy = DecoupledMixup(eta=0.5)
    mixed = strategy.on_batch(stub(), batch)
    penalty = strategy.penalty(stub(), mixed, logits)
    partner, i, y, w = mixed.mixing.partner, torch.arange(N), batch.target, batch.weight
    e, e_a, e_b = logits.exp().sum(-1), logits.exp()[:, i, y], logits.exp()[:, i, y[partner]]
    terms = w * (e_a / (e - e_b)).log() + w[:, partner] * (e_b / (e - e_a)).log()
    used = (y != y[partner]) & (w * w[:, partner] > 0)
    assert_close(penalty, torch.where(used, -0.5 * terms, 0.0))
    assert (penalty > 0).any()
    z = logits.requires_grad_()
    assert torch.autograd.grad(strategy.penalty(stub(), mixed, z).sum(), z)[0].isfinite().all()


def test_mean_entropy_by_hand(batch, logits):
    penalty = MeanEntropy(lam=2.0).penalty(stub(), batch, logits)
    for m in range(M):
        used = batch.weight[m] > 0
        p = np.average(logits[m, used].softmax(-1), axis=0, weights=batch.weight[m, used])
        assert penalty[m].item() == pytest.approx(2 * (np.log(K) + (p * np.log(p)).sum()))
    batch.weight = torch.ones(1, N, dtype=torch.float64)
    uniform = 9 * one_hot(torch.arange(N) % K, K).double().expand(M, N, K)
    assert_close(MeanEntropy().penalty(stub(), batch, uniform), torch.zeros(M, 1).double())
    extreme = torch.zeros(M, N, K).index_fill(-1, torch.tensor(0), 1e4).requires_grad_()
    batch.weight = torch.stack([torch.ones(N), torch.zeros(N)])
    value = MeanEntropy(1.0).penalty(stub(), batch, extreme)
    assert_close(value, torch.tensor([[np.log(K)], [0.0]]), check_dtype=False)
    assert torch.autograd.grad(value.sum(), extreme)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["mlp", torch.nn.Linear])
def test_l1_is_the_sum_and_its_gradient_the_sign_for_each_member(kind):
    module = network(kind)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    net, z = SimpleNamespace(module_=module, n_stacked=M), torch.zeros(M, N, K).double()
    penalty = L1(lam=0.1).penalty(net, None, z)
    assert_close(penalty.sum(), 0.1 * sum(p.abs().sum() for p in module.parameters()))
    (penalty * torch.ones(1, N)).mean(-1).sum().backward()
    assert all(torch.equal(p.grad, 0.1 * p.sign()) for p in module.parameters())
    module.keep_members(1)
    net.n_stacked = 1
    assert_close(L1(lam=0.1).penalty(net, None, z[:1]), penalty[:1])


def test_group_lasso_is_the_norm_of_each_input_for_each_member():
    module = network()
    first = next(p for p in module.body.parameters() if p.ndim == 3)
    net, z = SimpleNamespace(module_=module, n_stacked=M), torch.zeros(M, N, K).double()
    penalty = GroupLasso(lam=0.1).penalty(net, None, z)
    norms = [sum(row.square().sum().sqrt() for row in member) for member in first]
    assert_close(penalty, 0.1 * torch.stack(norms).unsqueeze(1))


def test_group_lasso_leaves_inputs_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 10))
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    params = {"hidden": (16,), "max_epochs": 300, "lr": 0.01, "dropout": 0.0, "random_state": 0}
    clf = RobustClassifier(loss="gce", strategy=GroupLasso(0.03), **params).fit(X, y)
    norms = clf.net_.module_.body.layers[0].weight.detach().norm(dim=2)[0]
    assert norms[2:].max() < 0.1 * norms[:2].min()


def test_group_lasso_needs_a_first_layer_of_this_package(iris):
    clf = RobustClassifier(loss="gce", module=torch.nn.Linear, strategy="group_lasso", max_epochs=1)
    with pytest.raises(ValueError, match="penalises the first layer of a module of this package"):
        clf.fit(*iris)


def test_virtual_adversarial_penalty_is_the_divergence_in_the_worst_direction(batch):
    net, batch.weight = stub(), torch.ones(M, N, dtype=torch.float64)
    vat = VirtualAdversarial(eps=0.01, n_iter=30)
    seen = []
    net.module_.register_forward_hook(lambda *args: seen.append(args[2].softmax(-1)))
    worst = vat.penalty(net, vat.on_batch(net, batch), torch.zeros(M, N, K).double())
    p, q = seen[0], seen[-1]
    (gradient,) = torch.autograd.grad(worst.sum(), net.module_.body.head.bias)
    assert_close(gradient, (q - p).sum(1, keepdim=True))  # nothing flows through p
    net.module_.eval()
    for _ in range(20):
        shift = torch.randn(N, 4, dtype=torch.float64).index_fill(-1, torch.tensor(3), 0)
        moved = batch.x + 0.01 * shift / shift.norm(dim=-1, keepdim=True)
        divergence = (p * (p / net.module_(moved).softmax(-1)).log()).sum(-1)
        assert (worst > 0.97 * divergence).all()
        assert worst.mean() > 1.2 * divergence.mean()
    assert all(p.grad is None for p in net.module_.parameters())


def test_virtual_adversarial_penalty_of_a_constant_network_and_of_no_numbers(batch):
    net, vat = stub(), VirtualAdversarial()
    net.module_.body.head.weight.data.zero_()
    penalty = vat.penalty(net, vat.on_batch(net, batch), torch.zeros(M, N, K).double())
    assert_close(penalty, torch.zeros(M, N).double())
    rows = np.random.default_rng(0).choice(list("abc"), (60, 2)).astype(object)
    clf = RobustClassifier(
        loss="gce", strategy=[vat, Adversarial(norm="2")], hidden=(4,), max_epochs=2
    )
    assert np.isfinite(clf.fit(rows, rows[:, 0]).predict_proba(rows)).all()


def test_jocor_trains_on_its_joint_loss(batch, logits):
    lam, net = 0.6, stub(epoch=5)
    batch.weight = torch.ones(1, N, dtype=torch.float64)
    jocor = JoCoR(lam=lam, tau=0.5, T_k=5)
    batch.logits = logits
    loss = make_loss("ce")(logits, batch.target)
    weight = jocor.weigh(net, batch, loss)
    p, q = logits.softmax(-1)
    symmetric = (p * (p / q).log() + q * (q / p).log()).sum(-1)
    joint = (1 - lam) * loss.sum(0) + lam * symmetric
    chosen = joint.argsort()[: N // 2]
    total = (weight * loss + jocor.penalty(net, batch, logits)).mean(-1).sum()
    assert_close(total, joint[chosen].mean())
    assert set(weight[0].nonzero().flatten().tolist()) == set(chosen.tolist())
    assert set(loss.sum(0).argsort()[: N // 2].tolist()) != set(chosen.tolist())
    assert_close(*(jocor.penalty(net, batch, z) for z in (logits, logits.flip(0))))


@pytest.mark.parametrize("alias", ALIASES)
def test_members_are_independent_and_draws_are_per_batch(train, rows, alias):
    """A network is the same in any stack, and SAM's second evaluation draws nothing."""
    x, y, _ = rows
    states = []

    class Watch(LabelSmoothing):
        def on_batch(self, net, batch):
            states.append(torch.get_rng_state())
            return batch

        def on_batch_end(self, net, **kwargs):
            assert torch.equal(torch.get_rng_state(), states[-1])

    chosen = [make_strategy(alias), Watch(0)]
    options = {"strategies": chosen, "optimizer": "sam", "epochs": 12, "batch_size": 12}
    small, large = (train(x, y, seeds=seeds, **options) for seeds in [(1, 2), (1, 2, 3, 4)])
    assert len(states) == 48
    large.release()
    for p, q in zip(small.module_.parameters(), large.module_.parameters(), strict=True):
        assert_close(p, q[:2])
    assert not [name for name in vars(chosen[0]) if name.endswith("_")]


@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
@pytest.mark.parametrize("alias", ALIASES)
def test_strategies_learn_with_cross_fitting(iris, alias, optimizer):
    strategy = [alias, "mixup"] if optimizer == "sam" else alias
    params = {"hidden": (16,), "max_epochs": 30, "batch_size": 25, "lr": 0.03, "random_state": 0}
    clf = RobustClassifier(loss="ce", strategy=strategy, optimizer=optimizer, cross_fit=2, **params)
    clf.fit(*iris)
    assert clf.score(*iris) > (0.93 if isinstance(strategy, str) else 0.9)
    assert clf.oof_proba_[np.arange(150), iris[1]].mean() > 0.6


REFUSED = {
    "beta must lie in [0, 1], got 1.5": Bootstrap(1.5),
    "did you mean 'soft'": Bootstrap(form="sotf"),
    "warm_up must be a whole number": SELC(warm_up=1.5),
    "threshold must lie in": Refurbish(threshold=-1),
    "decay must lie in [0, 1), got 1": Refurbish(decay=1),
    "alpha must lie in (0, inf), got 0": FeatureSwap(alpha=0),
    "step_size must lie in (0, inf), got 0": Adversarial(step_size=0),
    "unknown norm of strategy 'adversarial' '1'": Adversarial(norm="1"),
    "random_start must be True or False": Adversarial(random_start=1),
    "lam must lie in [0, inf), got -1": MeanEntropy(-1),
    "lam must lie in [0, inf), got 'a'": L1("a"),
    "lam must lie in [0, inf), got -2": GroupLasso(-2),
    "xi must lie in (0, inf)": VirtualAdversarial(xi=0),
    "lam must lie in [0, 1], got 2": JoCoR(lam=2),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_out_of_range_are_refused(iris, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RobustClassifier(loss="gce", strategy=REFUSED[message]).fit(*iris)
