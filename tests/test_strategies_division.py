"""Strategies that divide the rows: each is its formula, per member and pair."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf.strategies import Batch, CoDivide, Mixup, PseudoLossSelection
from robustclf.strategies.division import sharpened
from robustclf.strategies.selection import posterior_of_low

N, K, M = 6, 3, 4


class Linear(torch.nn.Module):
    """Logits that are the first columns of a row, one shift per member."""

    def forward(self, x):
        return x[..., :K] + torch.arange(M, dtype=x.dtype).view(-1, 1, 1) * x[..., :1]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(K, (N,), generator=generator)
    weight = torch.rand(M, N, generator=generator, dtype=torch.float64)
    weight[1, 2] = 0.0
    return Batch(x, y, weight, torch.tensor([7, 1, 0, 3, 4, 9]))


def net(epoch, **values):
    criterion = type("C", (), {"loss": make_loss("ce"), "__call__": lambda s, z, t: s.loss(z, t)})()
    given = {"module_": Linear(), "criterion_": criterion, "epoch": epoch, "n_classes": K}
    return SimpleNamespace(**given | {"n_stacked": M, "warming": False} | values)


def begun(strategy, batch, clean):
    weight = torch.ones(M, 10, dtype=torch.float64)
    weight[:, batch.index] = batch.weight
    rows = SimpleNamespace(weight=weight, y=torch.zeros(10, dtype=torch.int64))
    strategy.on_train_begin(net(0), rows)
    strategy.clean_[:, batch.index] = clean
    return strategy


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_co_divide_refines_and_guesses(batch):
    clean = rand(M, N)
    strategy = begun(CoDivide(threshold=0.4, T=0.5, lam_u=3.0, ramp_up=4), batch, clean)
    edited = strategy.on_batch(net(epoch=13), batch)
    p = Linear()(batch.x).softmax(-1)
    for m in range(M):
        peer = m + 1 if m % 2 == 0 else m - 1
        for i in range(N):
            c = clean[peer, i]
            if c >= 0.4:
                label = (1 - c) * p[m, i]
                label[batch.target[i]] += c
                factor = 1.0
            else:
                label, factor = (p[m, i] + p[peer, i]) / 2, 3.0 * 3 / 4
            assert_close(edited.target[m, i], label**2 / (label**2).sum())
            assert_close(edited.weight[m, i], batch.weight[m, i] * factor)


def test_pls_guesses_and_trusts(batch):
    clean = rand(M, N)
    strategy = begun(PseudoLossSelection(threshold=0.6, gamma=3.0), batch, clean)
    strategy.trust_ = rand(M, 10)
    edited = strategy.on_batch(net(epoch=13), batch)
    p = Linear()(batch.x).softmax(-1)
    pseudo = p**3 / (p**3).sum(-1, keepdim=True)
    noisy = clean < 0.6
    given = torch.nn.functional.one_hot(batch.target, K).double().expand(M, N, K)
    assert_close(edited.target, torch.where(noisy[..., None], pseudo, given))
    trust = torch.where(noisy, strategy.trust_[:, batch.index], 1.0)
    assert_close(edited.weight, batch.weight * trust)
    assert_close(strategy.pseudo_loss_[:, batch.index], -(pseudo * p.log()).sum(-1))
    strategy.on_epoch_begin(net(epoch=14))
    noisy = strategy.clean_ < 0.6
    assert not noisy[:, batch.index][batch.weight == 0].any()
    expected = posterior_of_low(strategy.pseudo_loss_.masked_fill(~noisy, torch.nan))
    assert_close(strategy.trust_, expected)


@pytest.mark.parametrize("alias", ["co_divide", "pls"])
def test_until_the_warm_up_ends_labels_stay_and_losses_are_kept(batch, alias):
    strategy = begun(make_strategy(alias), batch, torch.ones(M, N, dtype=torch.float64))
    strategy.on_epoch_begin(net(epoch=9))
    edited = strategy.on_batch(net(epoch=9), batch)
    assert_close(edited.target, batch.distribution(K).expand(M, N, K))
    assert_close(edited.weight, batch.weight)
    loss = make_loss("ce")(Linear()(batch.x), batch.target)
    kept = strategy.loss_[:, batch.index]
    assert_close(kept, torch.where(batch.weight > 0, loss, torch.nan), equal_nan=True)
    assert strategy.loss_.isnan().sum() == M * (10 - N) + 1


@pytest.mark.parametrize("alias", ["co_divide", "pls"])
def test_mixed_rows_are_refused(batch, alias):
    strategy = begun(make_strategy(alias), batch, torch.ones(M, N, dtype=torch.float64))
    with torch.random.fork_rng([]):
        mixed = Mixup().on_batch(SimpleNamespace(n_codes=0, n_classes=K, rows_=None), batch)
    with pytest.raises(ValueError, match="list it before strategies that mix rows"):
        strategy.on_batch(net(0), mixed)


def test_sharpening_keeps_order_and_normalises_extremes():
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1e-38, 1e-38, 0.0]])
    assert_close(sharpened(p, 1.0)[0], p[0])
    assert sharpened(p, 0.1)[0, 0] > 0.99
    assert_close(sharpened(p, 0.5).sum(-1), torch.ones(3))
    assert_close(sharpened(p, 0.5)[2], torch.tensor([0.5, 0.5, 0.0]))


@pytest.mark.parametrize("alias", ["co_divide", "pls"])
@pytest.mark.parametrize("loss", ["ce", "gce"])
def test_labels_of_rows_without_weight_do_not_matter(iris, alias, loss):
    X, y = iris
    weight = np.ones(len(y))
    strategy = make_strategy(alias, warm_up=2)
    fitted = []
    for label in (0, 2):
        labels = y.copy()
        labels[:30:3], weight[:30:3] = label, 0
        clf = RobustClassifier(
            loss=loss, strategy=strategy, hidden=(8,), max_epochs=4, cross_fit=2, random_state=0
        )
        fitted.append(clf.fit(X, labels, sample_weight=weight).predict_proba(X))
    np.testing.assert_array_equal(*fitted)


@pytest.mark.parametrize("alias", ["co_divide", "pls"])
def test_divisions_find_the_wrong_labels_and_are_freed(noisy_digits, alias):
    X, noisy, flipped = noisy_digits
    found = []

    class Watch(type(make_strategy(alias))):
        def on_train_end(self, net, *args, **kwargs):
            found.append(self.clean_.mean(0).numpy())
            super().on_train_end(net, *args, **kwargs)

    clf = RobustClassifier(
        loss="ce", strategy=Watch(warm_up=4), hidden=(64,), max_epochs=10, random_state=0
    ).fit(X, noisy)
    assert found[0][~flipped].mean() > found[0][flipped].mean() + 0.5
    assert clf.score(X[flipped], noisy[flipped]) < 0.1
    assert not [name for name in vars(clf.net_.strategies[0]) if name.endswith("_")]


@pytest.mark.parametrize(
    ("alias", "params", "message"),
    [
        ("co_divide", {"T": 0}, "T"),
        ("co_divide", {"threshold": 2}, "threshold"),
        ("co_divide", {"lam_u": -1}, "lam_u"),
        ("co_divide", {"ramp_up": 0.5}, "ramp_up"),
        ("pls", {"gamma": 0}, "gamma"),
        ("pls", {"warm_up": 0}, "warm_up"),
    ],
)
def test_parameters_out_of_range(alias, params, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(alias, **params).check(make_loss("ce"), 3)
