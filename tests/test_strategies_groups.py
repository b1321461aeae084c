"""Strategies that know groups, and the one that passes over rows: each is its formula."""

import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from small_classifier import small
from torch.nn.functional import one_hot
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf.strategies import (
    Batch,
    GroupBalance,
    GroupDRO,
    GroupLossResample,
    InfoBatch,
    Mixup,
    SmallLoss,
)
from robustclf.strategies.groups import stratified_draw

N, K, M, G = 24, 3, 2, 3
ALIASES = ["group_dro", "group_balance", "group_loss_resample", "infobatch"]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def data():
    """Members with rows they leave out: member 1 has no row of group 2."""
    group = torch.tensor([0] * 12 + [1] * 8 + [2] * 4)
    weight = torch.rand(M, N, dtype=torch.float64) + 0.5
    weight[0, 3] = weight[1, 15] = 0.0
    weight[1, group == 2] = 0.0
    y = torch.randint(K, (N,))
    return SimpleNamespace(
        x=torch.randn(N, 2), y=y, weight=weight, rows=torch.arange(N), groups=group
    )


def stub(**values):
    given = {"n_stacked": M, "n_classes": K, "n_codes": 0, "epoch": 99, "max_epochs": 100}
    return SimpleNamespace(**given | values)


def begin(strategy, data, **values):
    strategy.on_train_begin(stub(**values), data)
    return strategy


def batch_of(data, index):
    index = torch.as_tensor(index)
    return Batch(data.x[index], data.y[index], data.weight[:, index], index)


# Group DRO --------------------------------------------------------------------------------------


def test_group_dro_by_hand(data):
    eta, c = 0.3, 0.7
    strategy = begin(GroupDRO(eta, c), data)
    w, g = data.weight.numpy(), data.groups.numpy()
    n_g = np.array([[((w[m] > 0) & (g == k)).sum() for k in range(G)] for m in range(M)])
    q = (n_g > 0) / (n_g > 0).sum(1, keepdims=True)
    for index in (range(N), range(0, 16), [0, 1, 13, 2], range(4, N)):
        index = np.array(index)
        loss = torch.rand(M, len(index), dtype=torch.float64) * 3
        new = strategy.weigh(stub(), batch_of(data, index), loss)
        for m in range(M):
            means = {}
            for k in range(G):
                rows = (g[index] == k) & (w[m, index] > 0)
                if rows.any():
                    means[k] = np.average(loss[m].numpy()[rows], weights=w[m, index][rows])
                    q[m, k] *= np.exp(eta * (means[k] + c / np.sqrt(n_g[m, k])))
            q[m] /= q[m].sum()
            expected = sum(q[m, k] * mean for k, mean in means.items())
            assert (new[m] * loss[m]).mean().item() == pytest.approx(expected)
    assert_close(strategy.log_q_.exp(), torch.from_numpy(q))
    assert strategy.log_q_[1, 2] == -torch.inf


def test_group_dro_of_one_member_and_without_its_rows_of_weight_zero(data):
    loss = torch.rand(M, N, dtype=torch.float64)
    loss[data.weight == 0] = 1e6
    strategy = begin(GroupDRO(0.5, 1.0), data)
    for _ in range(3):
        new = strategy.weigh(stub(), batch_of(data, range(N)), loss)
    assert (new[data.weight == 0] == 0).all()
    for m in range(M):
        kept = (data.weight[m] > 0).nonzero().flatten()
        part = SimpleNamespace(y=data.y[kept], weight=7 * data.weight[m : m + 1, kept])
        part.groups, part.rows, part.x = data.groups[kept], torch.arange(len(kept)), data.x[kept]
        part.weight[:, part.groups == 1] *= 3  # only ratios within a group count
        alone = begin(GroupDRO(0.5, 1.0), part, n_stacked=1)
        for _ in range(3):
            own = alone.weigh(stub(), batch_of(part, range(len(kept))), loss[m : m + 1, kept])
        assert_close(own[0] / len(kept), new[m, kept] / N)


def test_group_dro_of_mixed_rows(data):
    loss = torch.rand(M, N, dtype=torch.float64)
    mixed = Mixup().on_batch(stub(), batch_of(data, range(N)))
    new = begin(GroupDRO(0.0), data).weigh(stub(), mixed, loss)
    part = mixed.mixing(data.weight[..., None] * one_hot(data.groups))
    total = part.sum(1).clamp_min(1e-30)
    group_loss = (part * loss[..., None]).sum(1) / total
    assert_close(
        (new * loss).mean(1), torch.stack([group_loss[0].mean(), group_loss[1, :2].mean()])
    )


def test_group_dro_without_steps_is_balance_in_a_batch_of_all_rows(data):
    data.weight = data.weight / data.weight.mean(-1, keepdim=True)
    new = begin(GroupDRO(eta=0.0), data).weigh(stub(), batch_of(data, range(N)), torch.ones(M, N))
    balanced = begin(GroupBalance(), data).on_batch(stub(), batch_of(data, range(N)))
    assert_close(new, balanced.weight)


# Balance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_class", [False, True])
def test_weighed_groups_count_alike_and_as_much_as_before(data, by_class):
    data.rows = torch.arange(N)[torch.arange(N) != 5]  # row 5 is held out
    strategy = begin(GroupBalance(by_class=by_class), data)
    new = strategy.on_batch(stub(), batch_of(data, data.rows)).weight
    before, group = data.weight[:, data.rows], data.groups[data.rows]
    if by_class:
        group = group * K + data.y[data.rows]
    assert_close(new.sum(1), before.sum(1))
    for m in range(M):
        totals = [new[m, group == k].sum() for k in group.unique()]
        totals = torch.stack([t for t in totals if t > 0])
        assert_close(totals, totals.mean().expand_as(totals))
        ratio = (new / before)[m]
        for k in group.unique():
            own = ratio[(group == k) & (before[m] > 0)]
            assert_close(own, own[:1].expand_as(own))


def test_balance_before_mixup_mixes_the_weighed_labels(data):
    balanced = begin(GroupBalance(), data).on_batch(stub(), batch_of(data, range(N)))
    mixed = Mixup().on_batch(stub(), balanced)
    expected = mixed.mixing(balanced.weight[..., None] * one_hot(data.y, K).double())
    assert_close(mixed.weight[..., None] * mixed.target, expected)


def test_drawn_groups_have_as_many_rows_and_weights_make_up_for_the_members(data):
    strategy = begin(GroupBalance("resample"), data)
    total = torch.zeros(M, N, dtype=torch.float64)
    for _ in range(400):
        rows = strategy.epoch_rows(stub(), data.rows)
        assert (torch.bincount(data.groups[rows]) - N / G).abs().max() <= 1
        new = strategy.on_batch(stub(), batch_of(data, rows)).weight
        total.index_add_(1, rows, new / 400)
    of_group = torch.zeros(M, G, dtype=torch.float64).index_add(1, data.groups, total)
    share = data.weight.sum(1)
    expected = torch.stack([share[0] / 3 * torch.ones(3), share[1] / 2 * torch.tensor([1, 1, 0])])
    assert_close(of_group, expected, rtol=0.05, atol=1e-9)
    weighed = begin(GroupBalance(), data).on_batch(stub(), batch_of(data, range(N))).weight
    assert_close(total, weighed, rtol=0.35, atol=1e-9)


def test_rows_without_label_stay_when_groups_are_drawn(data):
    data.weight[:, [2, 14]] = 0.0
    rows = begin(GroupBalance("resample"), data).epoch_rows(stub(), data.rows)
    counts = torch.bincount(rows, minlength=N)
    assert counts[[2, 14]].tolist() == [1, 1]
    assert len(rows) == N


def test_stratified_draws_have_the_expected_counts():
    count = torch.tensor([0.0, 0.5, 2.5, 1.0, 0.0, 0.3, 1.7, 2.0])
    drawn = torch.stack([stratified_draw(count).bincount(minlength=8) for _ in range(4000)])
    assert_close(drawn.double().mean(0), count.double(), atol=0.04, rtol=0)
    assert (drawn.sum(1) == 8).all()
    assert (drawn[:, [0, 4]] == 0).all()
    assert drawn.double().var(0).max() < 0.5  # independent draws: 1.7


# Small losses within groups ---------------------------------------------------------------------


def test_posterior_is_that_of_small_loss_in_each_group_alone(data):
    loss = torch.rand(M, N, dtype=torch.float64) + 3 * data.groups
    strategy = begin(GroupLossResample(), data)
    posterior = strategy.posterior(loss)
    for m in range(M):
        for k in range(G):
            rows = (data.groups == k) & (data.weight[m] > 0)
            if rows.any():
                alone = SmallLoss()
                alone.loss_ = loss[m : m + 1, rows]
                assert_close(posterior[m, rows], alone.posterior()[0])
    assert (posterior[data.weight == 0] == 0).all()
    hard = 0.0 * loss + 9.0 * (data.groups == 2)
    assert (strategy.posterior(hard)[0, data.groups == 2] > 0.9).all()  # not taken for noise


def test_drawn_rows_weigh_as_the_posterior_of_each_member(data):
    select = torch.rand(M, N, dtype=torch.float64) * (data.weight > 0)
    strategy = begin(GroupLossResample(), data)
    total = torch.zeros(M, N, dtype=torch.float64)
    for _ in range(1000):
        rows = strategy.draw(select, data.rows)
        total.index_add_(1, rows, strategy.on_batch(stub(), batch_of(data, rows)).weight / 1000)
    for m in range(M):
        groups = [k for k in range(G) if data.weight[m, data.groups == k].any()]
        for k in groups:
            part = torch.where(data.groups == k, data.weight[m] * select[m], 0.0)
            expected = data.weight[m].sum() / len(groups) * part / part.sum()
            assert_close(
                total[m, data.groups == k], expected[data.groups == k], rtol=0.2, atol=0.05
            )


def test_losses_are_the_present_ones_of_all_rows(data):
    z = torch.randn(M, N, K, dtype=torch.float64)
    net = stub(logits=lambda x, oof: iter((z[:, :10], z[:, 10:])), criterion_=make_loss("ce"))
    strategy = begin(GroupLossResample(warm_up=3), data)
    assert_close(strategy.losses(net), make_loss("ce")(z, data.y))


def test_running_losses_choose_the_rows_after_the_warm_up(data):
    z = torch.randn(M, N, K, dtype=torch.float64)
    net = stub(criterion_=make_loss("ce"))
    strategy, balance = (
        begin(GroupLossResample(2, 0.7), data),
        begin(GroupBalance("resample"), data),
    )
    for net.epoch in range(4):
        now = (1 + net.epoch) * z
        net.logits = lambda x, oof, now=now: iter((now,))
        strategy.epoch_rows(net, data.rows)
        balance.epoch_rows(net, data.rows)
        assert torch.equal(strategy.factor_, balance.factor_) is (net.epoch < 2)
    loss = [make_loss("ce")(k * z, data.y) for k in (3, 4)]
    assert_close(strategy.loss_, 0.7 * loss[0] + 0.3 * loss[1])
    selected = strategy.posterior(strategy.loss_) > 0
    assert torch.equal(strategy.factor_ > 0, selected)


# InfoBatch --------------------------------------------------------------------------------------


def remembered(strategy, data, loss, **values):
    begin(strategy, data, **values)
    batch = batch_of(data, range(N))
    assert strategy.weigh(stub(), batch, loss) is batch.weight
    return strategy


def test_infobatch_leaves_out_rows_below_the_mean_and_is_unbiased(data):
    data.weight[:, 7] = 0.0  # without label: no loss, always there
    loss = torch.rand(M, N, dtype=torch.float64) ** 2
    strategy = remembered(InfoBatch(r=0.6), data, loss)
    known = np.where(data.weight.numpy() > 0, loss.numpy(), np.nan)
    score = np.array([np.nan if np.isnan(v).all() else np.nanmean(v) for v in known.T])
    learned = torch.from_numpy(score < np.nanmean(score))
    total, epochs = torch.zeros(M, dtype=torch.float64), 2000
    seen = torch.zeros(N)
    for _ in range(epochs):
        rows = strategy.epoch_rows(stub(epoch=1), data.rows)
        batch = strategy.on_batch(stub(), batch_of(data, rows))
        factor = torch.where(learned[rows], 2.5, 1.0)
        assert_close(batch.weight, data.weight[:, rows] * factor)
        total += (batch.weight * loss[:, rows]).sum(-1) / epochs
        seen += rows.bincount(minlength=N) / epochs
    assert_close(total, (data.weight * loss).sum(-1), rtol=0.02, atol=0)
    assert_close(seen, torch.where(learned, 0.4, 1.0), atol=0.04, rtol=0)


@pytest.mark.parametrize("max_epochs", [8, 100])
def test_infobatch_sees_all_rows_first_and_last(data, max_epochs):
    loss = torch.rand(M, N, dtype=torch.float64)
    strategy = begin(InfoBatch(), data)
    assert strategy.epoch_rows(stub(epoch=0), data.rows) is not None
    assert len(strategy.epoch_rows(stub(epoch=0), data.rows)) == N
    strategy = remembered(strategy, data, loss)
    sizes = [
        len(strategy.epoch_rows(stub(epoch=e, max_epochs=max_epochs), data.rows))
        for e in range(max_epochs)
    ]
    stop = int(np.ceil(0.875 * max_epochs))
    assert max(sizes[:stop]) < N
    assert set(sizes[stop:]) == {N}
    assert (strategy.factor_ == 1).all()
    same = remembered(InfoBatch(), data, torch.full((M, N), 0.1, dtype=torch.float64))
    assert len(same.epoch_rows(stub(epoch=1), data.rows)) == N


def test_infobatch_remembers_unmixed_rows_and_mixes_its_factors(data):
    strategy = begin(InfoBatch(), data)
    strategy.factor_ = torch.rand(1, N, dtype=torch.float64)
    batch = batch_of(data, range(N))
    mixed = Mixup().on_batch(stub(), batch)
    factor = mixed.mixing(strategy.factor_[..., None])[..., 0]
    assert_close(strategy.on_batch(stub(), mixed).weight, mixed.weight * factor)
    strategy.weigh(stub(), mixed, torch.ones(M, N))
    assert strategy.loss_.isnan().all()
    z = torch.randn(M, N, K, dtype=torch.float64)
    net = stub(module_=lambda x: z, criterion_=make_loss("ce"))
    strategy.on_batch_end(net, batch=mixed, training=True)
    expected = make_loss("ce")(z, data.y).masked_fill(data.weight == 0, torch.nan)
    assert_close(strategy.loss_, expected, equal_nan=True)


def test_infobatch_passes_over_rows_and_keeps_the_schedule(noisy_digits):
    X, y, _ = noisy_digits
    sizes = []

    class Watch(InfoBatch):
        def epoch_rows(self, net, rows):
            kept = super().epoch_rows(net, rows)
            sizes.append(len(kept) / len(rows))
            return kept

    fits = [
        RobustClassifier(loss="ce", strategy=s, hidden=(32,), max_epochs=16, random_state=0)
        for s in (None, Watch())
    ]
    plain, pruned = (clf.fit(X, y) for clf in fits)
    assert sizes[0] == 1
    assert sizes[14:] == [1, 1]
    assert np.mean(sizes) < 0.85
    first, last = ([clf.history_[i, "lr"] for clf in (plain, pruned)] for i in (0, -1))
    assert first[0] == pytest.approx(first[1], rel=0.2)
    assert last[0] == pytest.approx(last[1], abs=1e-9)
    assert pruned.score(X, y) > plain.score(X, y) - 0.05


# Fits -------------------------------------------------------------------------------------------


def spurious(n, rng, agree):
    """Classes by two noisy numbers; two others tell an attribute that mostly agrees."""
    y = rng.integers(0, 2, n)
    a = np.where(rng.random(n) < agree, y, 1 - y)
    core = 0.8 * (2 * y - 1)[:, None] + rng.normal(size=(n, 2))
    easy = 1.5 * (2 * a - 1)[:, None] + 0.6 * rng.normal(size=(n, 2))
    return np.c_[core, easy], y, a


@pytest.fixture(scope="module")
def worst():
    """Return a function that fits and returns the accuracy of the worst group."""
    rng = np.random.default_rng(0)
    X, y, a = spurious(1500, rng, 0.95)
    X_test, y_test, a_test = spurious(3000, rng, 0.5)

    def fit(strategy, **params):
        groups = None if strategy is None else a
        clf = RobustClassifier(loss="ce", strategy=strategy, hidden=(32,), max_epochs=20, **params)
        right = clf.set_params(random_state=0).fit(X, y, groups=groups).predict(X_test) == y_test
        return min(right[(y_test == c) & (a_test == b)].mean() for c in (0, 1) for b in (0, 1))

    return fit


def test_the_worst_group_gains(worst):
    plain = worst(None)
    for strategy in (
        GroupDRO(0.05, by_class=True),
        GroupBalance(by_class=True),
        GroupBalance("resample", by_class=True),
        GroupLossResample(by_class=True),
    ):
        assert worst(strategy) > plain + 0.15


def test_group_dro_moves_once_per_step_of_sam(iris):
    calls = []

    class Watch(GroupDRO):
        def weigh(self, net, batch, loss):
            calls.append(net.epoch)
            return super().weigh(net, batch, loss)

    clf = RobustClassifier(loss="gce", strategy=Watch(), optimizer="sam", hidden=(4,), max_epochs=2)
    clf.set_params(batch_size=50).fit(*iris, groups=iris[0][:, 0] > 5.8)
    assert calls == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("loss", ["ce", "gce"])
@pytest.mark.parametrize("alias", ALIASES)
def test_fits_and_is_free_of_rows_after(iris, alias, loss):
    X, y = iris
    params = {"by_class": True} if alias == "group_loss_resample" else {}
    groups = None if alias == "infobatch" else np.where(X[:, 1] > 3, "wide", "narrow")
    clf = RobustClassifier(
        loss=loss,
        strategy=[make_strategy(alias, **params), "mixup"],
        optimizer="sam",
        cross_fit=2,
        hidden=(16,),
        max_epochs=40,
        batch_size=25,
        lr=0.03,
        random_state=0,
    ).fit(X, y, groups=groups)
    assert clf.score(X, y) > 0.9
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert clf.oof_proba_[np.arange(150), y].mean() > 0.6
    held = [name for s in clf.net_.strategies for name in vars(s) if name.endswith("_")]
    assert held == []
    proba = pickle.loads(pickle.dumps(clf)).predict_proba(X)
    np.testing.assert_allclose(proba, clf.predict_proba(X), atol=1e-6)


REFUSED = {
    "eta must lie in [0, inf), got -1": GroupDRO(eta=-1),
    "adjustment must lie in [0, inf)": GroupDRO(adjustment=-0.1),
    "by_class must be True or False": GroupDRO(by_class=2),
    "unknown method 'weights', allowed are 'weight', 'resample'; did you mean": GroupBalance(
        "weights"
    ),
    "warm_up must lie in [1, inf)": GroupLossResample(warm_up=0),
    "decay must lie in [0, 1), got 1": GroupLossResample(decay=1),
    "r must lie in [0, 1), got 1": InfoBatch(r=1),
    "delta must lie in [0, 1], got 1.5": InfoBatch(delta=1.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_out_of_range_are_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        REFUSED[message].check(make_loss("ce"), K)


@pytest.mark.parametrize("alias", ALIASES[:3])
def test_groups_are_asked_for(iris, alias):
    with pytest.raises(ValueError, match="groups"):
        RobustClassifier(loss="gce", strategy=alias).fit(*iris)


@pytest.mark.parametrize("first", ["mixup", "pseudo_label", "refurbish"])
def test_rows_that_get_a_label_later_are_not_resampled(first):
    X, y = load_iris(return_X_y=True)
    few = np.where(np.arange(150) % 3 == 0, y, -1)
    strategy = [make_strategy(first), GroupBalance("resample")]
    clf = small(loss="ce", strategy=strategy, max_epochs=20).fit(X, few, groups=X[:, 1] > 3)
    assert np.isfinite(clf.predict_proba(X)).all()
