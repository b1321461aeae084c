"""Any number of networks teach each other, on all rows or on those about which they disagree."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from robustclf import RobustClassifier, make_strategy
from robustclf.strategies import Batch, CoTeaching, CoTeachingPlus, JoCoR

N, K = 40, 3


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def net(epoch=99):
    return SimpleNamespace(epoch=epoch)


def rows(weight=None, n=N, predicted=None):
    weight = torch.ones(1, n, dtype=torch.float64) if weight is None else weight
    logits = None if predicted is None else torch.nn.functional.one_hot(predicted, K).double()
    x, y = torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64)
    return Batch(x, y, weight, torch.arange(n), logits=logits)


def losses(n_members):
    return torch.rand(n_members, N, dtype=torch.float64)


def chosen(weight):
    return set(weight.nonzero().flatten().tolist())


# More than two --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_peers", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_each_network_learns_from_the_mean_loss_of_the_others_of_its_group(n_peers, groups):
    loss = losses(groups * n_peers)
    new = CoTeaching(tau=0.25, n_peers=n_peers).weigh(net(), rows(), loss)
    for member in range(len(loss)):
        first = member // n_peers * n_peers
        others = [m for m in range(first, first + n_peers) if m != member]
        easiest = loss[others].mean(0).argsort()[:30]
        assert chosen(new[member]) == set(easiest.tolist())
    assert_close(new.sum(-1), torch.full((len(loss),), float(N)).double())


def test_its_own_loss_never_counts_and_the_order_of_the_others_neither():
    strategy, loss = CoTeaching(tau=0.5, n_peers=4), losses(4)
    new = strategy.weigh(net(), rows(), loss)
    other = loss.clone()
    other[1] = losses(1)
    assert_close(strategy.weigh(net(), rows(), other)[1], new[1])
    order = torch.tensor([2, 0, 3, 1])
    assert_close(strategy.weigh(net(), rows(), loss[order]), new[order])


def test_a_member_keeps_its_total_and_ignores_rows_of_weight_zero():
    strategy, loss = CoTeaching(tau=0.5, n_peers=3), losses(3)
    weight = losses(3) + 0.5
    weight[:, :10] = 0
    new = strategy.weigh(net(), rows(weight), loss)
    loss[:, :10] = -9
    assert_close(strategy.weigh(net(), rows(weight), loss), new)
    assert (new > 0).sum(-1).tolist() == [15] * 3
    assert_close(new.sum(-1), weight.sum(-1))


@pytest.mark.parametrize(("n_peers", "asked", "trained"), [(3, 1, 3), (3, 4, 6), (4, 4, 4)])
@pytest.mark.parametrize("alias", ["co_teaching", "co_teaching_plus"])
def test_the_stack_holds_whole_groups(iris, alias, n_peers, asked, trained):
    strategy = make_strategy(alias, n_peers=n_peers)
    assert strategy.n_members == n_peers
    params = {"loss": "gce", "hidden": (4,), "max_epochs": 1, "cross_fit": 2}
    clf = RobustClassifier(strategy=strategy, n_members=asked, **params).fit(*iris)
    assert clf.net_.n_members == trained
    pairs = RobustClassifier(strategy=[strategy, JoCoR()], **params).fit(*iris)
    assert pairs.net_.n_members == np.lcm(n_peers, 2)


# Disagreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_peers", [2, 3])
def test_selection_is_co_teaching_of_the_disputed_rows(n_peers):
    strategy = CoTeachingPlus(tau=0.25, T_k=5, init_epoch=5, n_peers=n_peers)
    predicted, loss = torch.randint(K, (n_peers, N)), losses(n_peers)
    predicted[:, ::2] = predicted[:1, ::2]
    disputed = np.array([len(set(column)) > 1 for column in predicted.T.tolist()])
    weight = losses(n_peers) + 0.5
    new = strategy.weigh(net(5), rows(weight, predicted=predicted), loss)
    assert (new[:, ~disputed] == 0).all()
    alone = CoTeaching(tau=0.25, T_k=5, n_peers=n_peers).weigh(
        net(5), rows(weight[:, disputed], int(disputed.sum())), loss[:, disputed]
    )
    total = weight.sum(-1, keepdim=True) / weight[:, disputed].sum(-1, keepdim=True)
    assert_close(new[:, disputed], alone * total)


def test_groups_dispute_among_themselves_and_held_out_rows_are_never_kept():
    strategy = CoTeachingPlus(tau=0.0, init_epoch=0)
    predicted = torch.zeros(4, N, dtype=torch.int64)
    predicted[1, :8] = predicted[2:, 8:] = 1  # the second pair agrees on everything
    weight = torch.ones(4, N, dtype=torch.float64)
    weight[:2, :3] = 0
    new = strategy.weigh(net(), rows(weight, predicted=predicted), losses(4))
    assert [chosen(w) for w in new] == [set(range(3, 8))] * 2 + [set(range(N))] * 2


@pytest.mark.parametrize("case", ["before", "agreed"])
def test_it_is_co_teaching_before_the_first_epoch_and_where_all_agree(case):
    strategy, loss = CoTeachingPlus(tau=0.4, init_epoch=3), losses(2)
    epoch = 2 if case == "before" else 3
    predicted = torch.randint(K, (1 + (case == "before"), N)).expand(2, N)
    new = strategy.weigh(net(epoch), rows(predicted=predicted), loss)
    assert_close(new, CoTeaching(tau=0.4).weigh(net(epoch), rows(), loss))


# Fits -----------------------------------------------------------------------------------------

FITTED = [
    make_strategy("co_teaching", n_peers=3),
    make_strategy("co_teaching_plus", init_epoch=10),
    make_strategy("co_teaching_plus", init_epoch=0, n_peers=3),
]


@pytest.mark.parametrize("strategy", FITTED, ids=str)
def test_a_group_is_the_same_in_any_stack(train, rows, strategy):
    x, y, _ = rows
    k = strategy.n_peers
    options = {"strategies": [strategy], "optimizer": "sam", "epochs": 6, "batch_size": 12}
    small, large = (train(x, y, seeds=range(n), **options) for n in (k, 2 * k))
    for p, q in zip(small.module_.parameters(), large.module_.parameters(), strict=True):
        assert_close(p, q[:k])


@pytest.mark.parametrize("loss", ["ce", "gce"])
@pytest.mark.parametrize("strategy", FITTED, ids=str)
def test_networks_learn_from_each_other(noisy_digits, strategy, loss):
    X, y, wrong = noisy_digits
    params = {"hidden": (64,), "max_epochs": 25, "batch_size": 64, "lr": 0.005, "random_state": 0}
    clf = RobustClassifier(loss=loss, strategy=strategy, cross_fit=2, **params)
    clf.fit(X[:600], y[:600])
    assert clf.score(X[600:][~wrong[600:]], y[600:][~wrong[600:]]) > 0.8
    assert clf.oof_proba_.argmax(1).shape == (600,)


def test_three_networks_leave_out_wrong_labels(noisy_digits):
    X, y, wrong = noisy_digits
    kept = np.zeros(len(y))

    class Watch(CoTeaching):
        def weigh(self, net, batch, loss):
            new = super().weigh(net, batch, loss)
            if net.epoch == net.max_epochs - 1:
                kept[batch.index.numpy()] = (new > 0).double().mean(0).numpy()
            return new

    params = {"hidden": (64,), "max_epochs": 20, "batch_size": 64, "lr": 0.005, "random_state": 0}
    RobustClassifier(loss="ce", strategy=Watch(n_peers=3), **params).fit(X, y)
    assert kept[wrong].mean() < 0.25
    assert kept[~wrong].mean() > 0.9


REFUSED = {
    "n_peers must lie in [2, inf), got 1": CoTeaching(n_peers=1),
    "n_peers must be a whole number": CoTeachingPlus(n_peers=2.5),
    "init_epoch must lie in [0, inf), got -1": CoTeachingPlus(init_epoch=-1),
    "tau must lie in [0, 1), got 1": CoTeachingPlus(tau=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_out_of_range_are_refused(iris, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RobustClassifier(loss="ce", strategy=REFUSED[message]).fit(*iris)
