"""Class centres, neural collapse, stable margins and ranked mixtures are their formulas."""

import math
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from skorch.callbacks import Callback
from torch.nn.functional import one_hot
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf._net import Criterion
from robustclf._training_set import TrainingSet
from robustclf.modules import TabularInput, make_network
from robustclf.strategies import (
    Adversarial,
    Batch,
    CenterLoss,
    LabelSmoothing,
    Mixup,
    NeuralCollapse,
    RankMixup,
    SmoothAdversarial,
)
from robustclf.strategies.adversarial import margin_change
from robustclf.strategies.mixing import ndcg
from robustclf.strategies.representation import nearest_angle

N, K, M, D = 12, 3, 2, 5
ALIASES = ["center", "neural_collapse", "smooth_adversarial", "rank_mixup"]
FORMS = [make_strategy(alias) for alias in ALIASES] + [RankMixup("mndcg")]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch():
    """Three numbers and one column of codes; one row that each member does not train on."""
    x = torch.cat([torch.randn(N, 3), torch.randint(4, (N, 1)).float()], 1).double()
    weight = torch.rand(M, N, dtype=torch.float64) + 0.5
    weight[0, 3] = weight[1, 5] = 0.0
    features = torch.randn(M, N, D, dtype=torch.float64)
    return Batch(x, torch.arange(N) % K, weight, torch.arange(N), features=features)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.fixture
def logits():
    return 3 * torch.randn(M, N, K, dtype=torch.float64)


def stub(loss="ce", n_stacked=M, **values):
    """Net of members for the rows of ``batch``."""
    inputs = TabularInput(n_stacked, 3, 3, [4])
    kwargs = {"hidden": (8,), "activation": "tanh", "dropout": 0.0, "seeds": [1, 2][:n_stacked]}
    net = {
        "n_codes": 1,
        "n_classes": K,
        "n_stacked": n_stacked,
        "module_": make_network("mlp", inputs, n_stacked, K, **kwargs).double(),
        "criterion_": Criterion(make_loss(loss), K, n_stacked),
        "warming": False,
    }
    return SimpleNamespace(**net | values)


def weighted_means(batch, m, target=None):
    """Return the sum of weights and the mean of the features of each class, by loops."""
    target = one_hot(batch.target, K).double() if target is None else target
    count, mean = torch.zeros(K).double(), torch.zeros(K, D).double()
    for k in range(K):
        for i in range(N):
            count[k] += batch.weight[m, i] * target[i, k]
            mean[k] += batch.weight[m, i] * target[i, k] * batch.features[m, i]
    return count, mean / count[:, None]


# Class centres --------------------------------------------------------------------------------


def test_center_loss_and_its_centres_are_the_published_recursion(batch, logits):
    net, strategy = stub(), CenterLoss(lam=0.6, alpha=0.3)
    assert (strategy.penalty(net, batch, logits) == 0).all()  # before there are centres
    strategy.on_batch_end(net, batch=batch, training=True)
    centres = torch.stack([weighted_means(batch, m)[1] for m in range(M)])
    for _ in range(3):
        batch.features = torch.randn(M, N, D, dtype=torch.float64)
        square = (batch.features - centres[:, batch.target]).pow(2).sum(-1)
        expected = 0.6 / (2 * D) * batch.weight * square
        assert_close(strategy.penalty(net, batch, logits), expected)
        strategy.on_batch_end(net, batch=batch, training=True)
        for m in range(M):
            for k in range(K):
                rows = batch.target == k
                w = batch.weight[m, rows, None]
                delta = (w * (centres[m, k] - batch.features[m, rows])).sum(0) / (1 + w.sum())
                centres[m, k] -= 0.3 * delta
        assert_close(strategy.centres_, centres)


def test_center_loss_of_a_distribution_pulls_like_each_label_with_its_share(batch, logits):
    net, strategy, t = stub(), CenterLoss(), torch.rand(N, K, dtype=torch.float64).softmax(-1)
    strategy.on_batch_end(net, batch=batch, training=True)
    batch.features.requires_grad_()
    gradients = []
    for y in (t, *(torch.full((N,), k) for k in range(K))):
        batch.target = y
        value = strategy.penalty(net, batch, logits).sum()
        gradients.append(torch.autograd.grad(value, batch.features)[0])
    labels = torch.stack(gradients[1:], -1)
    assert_close(gradients[0], (labels * t[:, None, :]).sum(-1))
    batch.features, batch.target = batch.features.detach(), t
    before = strategy.centres_
    strategy.on_batch_end(net, batch=batch, training=True)
    for m in range(M):
        count, mean = weighted_means(batch, m, t)
        moved = before[m] - 0.5 * (count / (1 + count))[:, None] * (before[m] - mean)
        assert_close(strategy.centres_[m], moved)


@pytest.mark.parametrize("strategy", [CenterLoss(), NeuralCollapse()])
def test_centres_of_a_member_ignore_held_out_rows_other_members_and_absent_classes(
    strategy, batch, logits
):
    def run(batch, m=slice(None)):
        strategy.on_train_begin(stub())
        values = []
        for step in range(3):
            rows = slice(0, N) if step else slice(0, 2)  # class 2 comes later
            part = Batch(
                batch.x[rows],
                batch.target[rows],
                batch.weight[m, rows],
                batch.index[rows],
                features=batch.features[m, rows] * (1 + step),
            )
            values.append(strategy.penalty(stub(), part, logits[m, rows]))
            strategy.on_batch_end(stub(), batch=part, training=True)
        strategy.on_batch_end(stub(), batch=part, training=False)
        return [*values, strategy.centres_]

    result = run(batch)
    assert (result[1][:, 2::3] == 0).all()
    for m in range(M):
        alone = run(batch, slice(m, m + 1))
        assert all(torch.allclose(a[m : m + 1], b) for a, b in zip(result, alone, strict=True))
    batch.features[0, 3] = batch.features[1, 5] = 1e3
    for a, b in zip(result, run(batch), strict=True):
        assert_close(a, b)
    strategy.on_train_end(stub())
    assert not [name for name in vars(strategy) if name.endswith("_")]


# Neural collapse ------------------------------------------------------------------------------


def test_neural_collapse_gathers_every_class_alike(batch, logits):
    net, strategy = stub(), NeuralCollapse(lam1=0.7, lam2=0.0)
    batch.target[:7] = 0  # a class of many rows counts as much as one of few
    strategy.on_batch_end(net, batch=batch, training=True)
    centres = strategy.centres_
    batch.features = torch.randn(M, N, D, dtype=torch.float64)
    total = strategy.penalty(net, batch, logits).mean(-1)
    for m in range(M):
        expected = 0.0
        for k in range(K):
            rows = batch.target == k
            square = (batch.features[m, rows] - centres[m, k]).pow(2).sum(-1)
            expected += np.average(square, weights=batch.weight[m, rows]) / (K * D)
        assert total[m].item() == pytest.approx(0.7 * expected)
    strategy.on_batch_end(net, batch=batch, training=True)
    means = torch.stack([weighted_means(batch, m)[1] for m in range(M)])
    assert_close(strategy.centres_, centres - 0.5 * 2 / K * (centres - means))


def test_centres_move_down_the_gradient_of_the_whole_objective(batch, logits):
    net, strategy = stub(), NeuralCollapse(lam1=0.7, lam2=0.4, alpha=0.2)
    strategy.on_batch_end(net, batch=batch, training=True)
    before = strategy.centres_
    batch.features = torch.randn(M, N, D, dtype=torch.float64)

    def objective(c):
        strategy.centres_ = c
        gathered = strategy.penalty(net, batch, logits).mean(-1).sum()
        centred = c - c.mean(1, keepdim=True)
        length = centred.norm(dim=-1)
        cosine = centred @ centred.mT / (length[..., None] * length[:, None])
        nearest = (cosine - 3 * torch.eye(K)).amax(-1).acos()
        return gathered - 0.4 * nearest.mean(-1).sum()

    c = before.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(c), c)
    strategy.centres_ = before
    strategy.on_batch_end(net, batch=batch, training=True)
    assert_close(strategy.centres_, before - 0.2 * D / 0.7 * gradient)


@pytest.mark.parametrize("k", [3, 4])
def test_the_angles_are_largest_at_a_simplex_and_centres_get_there(k):
    simplex = torch.eye(k, dtype=torch.float64) + 0.3
    seen = torch.ones(k, 1, dtype=torch.bool)
    assert_close(nearest_angle(simplex, seen), torch.full((k,), math.acos(-1 / (k - 1))).double())
    # nothing gathers: no class is in the batch
    strategy = NeuralCollapse(lam1=1.0, lam2=1.0, alpha=0.02)
    strategy.centres_ = torch.randn(1, k, D, dtype=torch.float64)
    strategy.seen_ = torch.ones(1, k, 1, dtype=torch.bool)
    none = torch.zeros(1, k, 1, dtype=torch.float64)
    for _ in range(600):
        strategy.centres_ = strategy._moved(none, strategy.centres_)
    angles = torch.rad2deg(nearest_angle(strategy.centres_[0], seen))
    assert angles.min().item() == pytest.approx(math.degrees(math.acos(-1 / (k - 1))), abs=2.5)


def test_angles_of_classes_never_seen_do_not_count():
    centres = torch.randn(4, D, dtype=torch.float64)
    seen = torch.tensor([[True], [True], [True], [False]])
    among_seen = nearest_angle(centres[:3], seen[:3])
    assert_close(nearest_angle(centres, seen)[:3], among_seen)
    same = torch.ones(1, 3, D).requires_grad_()
    gradient = torch.autograd.grad(nearest_angle(same, seen[:3]).sum(), same)[0]
    assert gradient.isfinite().all()


def test_neural_collapse_shapes_the_features(digits):
    """Of the trained network, with rare classes: gathered, and further apart."""
    X, y = digits
    keep = np.concatenate([np.flatnonzero(y == k)[: round(90 * 0.7**k)] for k in range(10)])
    X, y, seen = X[keep], y[keep], torch.ones(10, 1, dtype=torch.bool)
    within, angle = {}, {}
    for name, strategy in {"plain": None, "nc": NeuralCollapse()}.items():
        params = {"hidden": (32,), "max_epochs": 30, "batch_size": 32, "lr": 0.005}
        clf = RobustClassifier(loss="ce", strategy=strategy, random_state=0, **params)
        h = torch.as_tensor(clf.fit(X, y).embed(X)).double()
        means = torch.stack([h[torch.from_numpy(y) == k].mean(0) for k in range(10)])
        spread = (h - means[y]).square().sum(-1).mean()
        within[name] = (spread / (means - means.mean(0)).square().sum(-1).mean()).item()
        angle[name] = torch.rad2deg(nearest_angle(means, seen)).mean().item()
    assert within["nc"] < 0.85 * within["plain"]
    assert angle["nc"] > angle["plain"] + 2


# Smooth adversarial ---------------------------------------------------------------------------


def margins(z, y):
    return torch.stack(
        [torch.stack([r[k] - r[j] for j in range(K) if j != k]) for r, k in zip(z, y, strict=True)]
    )


def test_change_of_the_margins_by_their_vectors(logits):
    clean, moved, y = logits[0], logits[1], torch.arange(N) % K
    expected = (margins(moved, y) - margins(clean, y)).norm(dim=-1)
    assert_close(margin_change(moved - clean, one_hot(y, K).double()), expected)
    assert_close(margin_change(moved - clean + 7, one_hot(y, K).double()), expected)
    t = torch.rand(N, K, dtype=torch.float64).softmax(-1)
    each = [
        margin_change(moved - clean, one_hot(torch.full((N,), k), K).double()) for k in range(K)
    ]
    assert_close(margin_change(moved - clean, t), (t * torch.stack(each, -1)).sum(-1))
    none = torch.zeros(N, K, dtype=torch.float64, requires_grad=True)
    value = margin_change(none, t).sum()
    assert value == 0
    assert torch.autograd.grad(value, none)[0].isfinite().all()


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_smooth_adversarial_penalty_is_the_largest_change_in_the_ball(batch, norm):
    net, y = stub(), batch.target
    strategy = SmoothAdversarial(nu=0.7, gamma=0.05, steps=20, norm=norm)
    assert strategy.on_batch(net, batch) is batch
    assert (strategy.shift_.norm(dim=-1, p=float(norm)) <= 0.05 + 1e-9).all()
    worst = strategy.penalty(net, batch, torch.zeros(M, N, K).double())
    kept = batch.weight > 0
    assert ((worst > 0) == kept).all()
    clean = net.module_(batch.x.expand(M, N, 4))
    ratios = []
    for _ in range(40):
        shift = torch.randn(M, N, 3, dtype=torch.float64)
        shift = shift.sign() if norm == "inf" else shift / shift.norm(dim=-1, keepdim=True)
        x = torch.cat([batch.x[:, :3] + 0.05 * shift, batch.x[:, 3:].expand(M, N, 1)], -1)
        change = margin_change(net.module_(x) - clean, one_hot(y, K).double())
        ratios.append((0.7 * batch.weight * change / worst)[kept])
    ratios = torch.stack(ratios)
    assert ratios.mean() < 0.8
    assert ratios.amax(0).median() < 1.01  # a few rows may end in a lower maximum


def test_smooth_adversarial_gradient_flows_through_both_sides_and_none_into_the_shift(batch):
    net, strategy = stub(), SmoothAdversarial(steps=3)
    strategy.on_batch(net, batch)
    assert net.module_.training
    assert all(p.grad is None for p in net.module_.parameters())
    assert not strategy.shift_.requires_grad
    parameters = list(net.module_.parameters())
    value = strategy.penalty(net, batch, torch.zeros(M, N, K).double()).sum()
    gradient = torch.autograd.grad(value, parameters)
    x = batch.x.expand(M, N, 4)
    moved = torch.cat([x[..., :3] + strategy.shift_, x[..., 3:]], -1)
    both = [net.module_(rows) for rows in (moved, x)]
    d = [margins(both[0][m], batch.target) - margins(both[1][m], batch.target) for m in range(M)]
    by_hand = 0.1 * (batch.weight * torch.stack(d).norm(dim=-1)).sum()
    assert_close(gradient, torch.autograd.grad(by_hand, parameters))
    # the bias of the head moves no margin
    assert_close(gradient[-1], torch.zeros_like(gradient[-1]))


def test_smooth_adversarial_does_not_move_rows_by_labels_that_are_not_known(batch):
    strategy = SmoothAdversarial(gamma=0.5)
    strategy.on_batch(stub(), batch)
    moved = (strategy.shift_ != 0).any(-1)
    assert (moved == (batch.weight > 0)).all()


def test_no_radius_or_no_strength_is_no_penalty(batch):
    for strategy in (SmoothAdversarial(gamma=0.0), SmoothAdversarial(nu=0.0)):
        net = stub()
        strategy.on_batch(net, batch)
        value = strategy.penalty(net, batch, torch.zeros(M, N, K).double())
        assert (value == 0).all()
        gradients = torch.autograd.grad(value.sum(), list(net.module_.parameters()))
        assert all((g == 0).all() for g in gradients)


def test_smooth_adversarial_training_makes_the_network_stable(digits):
    X, y = digits
    train, test = slice(0, 600), slice(600, 1000)
    stable, right = {}, {}
    for name, strategy in {"plain": None, "smooth": SmoothAdversarial()}.items():
        params = {"hidden": (64,), "max_epochs": 20, "batch_size": 64, "lr": 0.005}
        clf = RobustClassifier(loss="ce", strategy=strategy, random_state=0, **params)
        net, right[name] = clf.fit(X[train], y[train]).net_, clf.score(X[test], y[test])
        x = torch.from_numpy(clf.encoder_.transform(X[test])).to(net.dtype)
        rows = Batch(x, torch.from_numpy(y[test]), torch.ones(1, len(x)), torch.arange(len(x)))
        attacked = Adversarial(eps=0.1).on_batch(net, rows).x
        with torch.no_grad():
            guess = net.module_(attacked)[0].argmax(-1)
        stable[name] = (guess == rows.target).double().mean().item()
    assert stable["smooth"] > stable["plain"] + 0.03
    assert right["smooth"] > right["plain"] - 0.02


# Ranked mixtures ------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", ["logit", "proba"])
def test_margin_ranking_by_hand(batch, logits, confidence):
    net = stub()
    strategy = RankMixup(lam=0.3, margin=0.5, confidence=confidence)
    assert strategy.on_batch(net, batch) is batch
    ((mixing, x),) = strategy.mixed_
    partner = mixing.partner
    assert_close(x[:, :3], (mixing.lam * batch.x + (1 - mixing.lam) * batch.x[partner])[:, :3])
    assert ((x[:, 3] == batch.x[:, 3]) | (x[:, 3] == batch.x[partner, 3])).all()
    mixed = net.module_(x)
    read = (lambda z: z) if confidence == "logit" else (lambda z: z.softmax(-1))
    too_sure = (read(mixed).amax(-1) - read(logits).amax(-1) + 0.5).clamp_min(0)
    used = (batch.target != batch.target[partner]) & (batch.weight[:, partner] > 0)
    penalty = strategy.penalty(net, batch, logits)
    assert_close(penalty, 0.3 * batch.weight * used * too_sure)
    assert (penalty > 0).any()


def test_gain_of_the_ranking_by_hand(batch, logits):
    batch.weight = torch.ones(M, N, dtype=torch.float64)
    net, strategy = stub(), RankMixup("mndcg", lam=0.3)
    strategy.on_batch(net, batch)
    assert len(strategy.mixed_) == 3
    expected = torch.zeros(M, N, dtype=torch.float64)
    confidence = [net.module_(x).softmax(-1).amax(-1) for _, x in strategy.mixed_]
    for m in range(M):
        for i in range(N):
            ranked = []
            for (mixing, _), c in zip(strategy.mixed_, confidence, strict=True):
                same = batch.target[i] == batch.target[mixing.partner[i]]
                share = 1.0 if same else max(mixing.lam, 1 - mixing.lam)
                ranked.append((share, c[m, i].item()))
            ranked.sort(key=lambda pair: -pair[0])
            ranked.insert(0, (1.0, logits[m, i].softmax(-1).max().item()))
            dcg = sum(c / math.log2(k + 2) for k, (_, c) in enumerate(ranked))
            ideal = sum(s / math.log2(k + 2) for k, (s, _) in enumerate(ranked))
            expected[m, i] = 0.3 * (1 - min(dcg / ideal, ideal / dcg))
    assert_close(strategy.penalty(net, batch, logits), expected)


def test_the_ranking_is_best_where_confidences_are_the_shares():
    share = torch.tensor([1.0, 0.6, 0.9, 0.0])
    assert ndcg(share, share) == 1
    for confidence in ([1.0, 0.9, 0.6, 0], [1.0, 1.0, 1.0, 0], [0.5, 0.5, 0.5, 0]):
        assert ndcg(torch.tensor(confidence), share) < 1
    assert_close(ndcg(share, share), ndcg(share[:3], share[:3]))


@pytest.mark.parametrize("form", ["mrl", "mndcg"])
def test_a_held_out_label_stays_unknown(batch, logits, form):
    net, strategy = stub(), RankMixup(form)
    strategy.on_batch(net, batch)
    before = strategy.penalty(net, batch, logits)
    for row, member in [(3, 0), (5, 1)]:
        batch.target = batch.target.index_fill(0, torch.tensor(row), (batch.target[row] + 1) % K)
        after = strategy.penalty(net, batch, logits)
        assert_close(after[member], before[member], rtol=0, atol=0)
        assert (before[member, row] == 0).all()
        before = after


@pytest.mark.parametrize("params", [{"form": "mndcg"}, {"confidence": "proba"}], ids=str)
def test_each_member_reads_its_confidence_by_a_link_of_its_own(batch, logits, params):
    net, strategy = stub("legendretron"), RankMixup(**params)
    links = list(net.criterion_.double().loss.parameters())
    for link in links:
        link.data *= torch.tensor([1.0, 3.0]).double().view(-1, *[1] * (link.ndim - 1))
    strategy.on_batch(net, batch)
    value = strategy.penalty(net, batch, logits)
    for link in links:
        link.data = link.data[[0, 0]]
    first = strategy.penalty(net, batch, logits)
    assert_close(value[0], first[0])
    assert not torch.allclose(value[1], first[1])


def test_rank_mixup_has_gradients_into_raw_and_mixed_confidences(batch, logits):
    net, z = stub(), logits.requires_grad_()
    for strategy in (RankMixup(margin=9.0), RankMixup("mndcg")):
        strategy.on_batch(net, batch)
        inputs = [z, *net.module_.parameters()]
        gradients = torch.autograd.grad(strategy.penalty(net, batch, z).sum(), inputs)
        assert all((g != 0).any() and g.isfinite().all() for g in gradients)


# What holds for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", FORMS, ids=str)
def test_penalties_use_no_row_of_weight_zero(strategy, batch, logits):
    net = stub()
    for _ in range(2):
        strategy.on_batch(net, batch)
        value = strategy.penalty(net, batch, logits)
        strategy.on_batch_end(net, batch=batch, training=True)
    assert value.shape == (M, N)
    assert (value[batch.weight == 0] == 0).all()
    assert (value > 0).any()
    strategy.on_train_end(net)


@pytest.mark.parametrize("strategy", FORMS, ids=str)
def test_members_are_independent_and_draws_are_per_batch(train, rows, strategy):
    """A network is the same in any stack, and SAM's second evaluation draws nothing."""
    x, y, _ = rows
    states = []

    class Watch(LabelSmoothing):
        def on_batch(self, net, batch):
            states.append(torch.get_rng_state())
            return batch

        def on_batch_end(self, net, **kwargs):
            assert torch.equal(torch.get_rng_state(), states[-1])

    options = {"strategies": [strategy, Watch(0)], "optimizer": "sam", "epochs": 6}
    options["batch_size"] = 12
    small, large = (train(x, y, seeds=seeds, **options) for seeds in [(1,), (1, 2)])
    plain = train(x, y, seeds=(1,), **options | {"strategies": [Watch(0)]})
    assert len(states) == 36
    large.release()
    changed = []
    parts = (net.module_.parameters() for net in (small, large, plain))
    for p, q, r in zip(*parts, strict=True):
        assert_close(p, q[:1])
        changed.append((p - r).abs().max().item())
    assert max(changed) > 1e-4
    assert not [name for name in vars(strategy) if name.endswith("_")]


@pytest.mark.parametrize("loss", ["ce", "gce"])
@pytest.mark.parametrize("strategy", FORMS, ids=str)
def test_strategies_learn_and_leave_nothing_behind(iris, strategy, loss):
    params = {"hidden": (16,), "max_epochs": 30, "batch_size": 25, "lr": 0.03, "random_state": 0}
    clf = RobustClassifier(loss=loss, strategy=strategy, cross_fit=2, **params).fit(*iris)
    assert clf.score(*iris) > 0.93
    assert clf.oof_proba_[np.arange(150), iris[1]].mean() > 0.6
    small = len(pickle.dumps(RobustClassifier(loss=loss, **params).fit(*iris)))
    assert len(pickle.dumps(clf)) < small + 40_000


@pytest.mark.parametrize("strategy", FORMS, ids=str)
def test_strategies_fit_mixed_batches_in_half_precision_and_again(iris, strategy, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    params = {"hidden": (8,), "max_epochs": 2, "batch_size": 25, "precision": "bf16"}
    clf = RobustClassifier(loss="ce", strategy=[Mixup(), strategy], **params)
    assert np.isfinite(clf.fit(*iris).fit(*iris).predict_proba(iris[0])).all()


def test_centres_start_again_with_every_fit(train, rows):
    x, y, _ = rows
    strategy, starts = CenterLoss(), []

    class Record(Callback):
        def on_batch_begin(self, net, **kwargs):
            starts.append("centres_" in vars(strategy))

    net = train(x, y, strategies=[strategy], epochs=2, callbacks=[Record()])
    weight = torch.ones(1, len(x), dtype=torch.float64)
    net.partial_fit(TrainingSet(x, y, weight, torch.arange(len(x))), None, epochs=2)
    assert starts == [False, True, False, True]


REFUSED = {
    "lam must lie in [0, inf), got -1": CenterLoss(lam=-1),
    "alpha must lie in [0, 1], got 2": CenterLoss(alpha=2),
    "lam1 must lie in (0, inf), got 0": NeuralCollapse(lam1=0),
    "lam2 must lie in [0, inf), got -1": NeuralCollapse(lam2=-1),
    "alpha must lie in [0, inf), got -1": NeuralCollapse(alpha=-1),
    "nu must lie in [0, inf), got -1": SmoothAdversarial(nu=-1),
    "gamma must lie in [0, inf), got -1": SmoothAdversarial(gamma=-1),
    "steps must be a whole number": SmoothAdversarial(steps=1.5),
    "step_size must lie in (0, inf), got 0": SmoothAdversarial(step_size=0),
    "unknown norm of strategy 'smooth_adversarial' '1'": SmoothAdversarial(norm="1"),
    "did you mean 'mndcg'": RankMixup("ndcg"),
    "margin must lie in [0, inf), got -1": RankMixup(margin=-1),
    "did you mean 'logit'": RankMixup(confidence="logits"),
    "alpha must lie in (0, inf), got 0": RankMixup(alpha=0),
    "n_mixed must lie in [1, inf), got 0": RankMixup(n_mixed=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_out_of_range_are_refused(iris, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RobustClassifier(loss="gce", strategy=REFUSED[message]).fit(*iris)
