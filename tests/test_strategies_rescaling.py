"""Meta rescaling: its step ahead, its gradient, and what it does to wrong labels."""

import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf._net import Criterion
from robustclf.strategies import Batch, LabelSmoothing, MetaRescale
from robustclf.strategies.rescaling import N_SIGNALS, normalised, signals

N, K, M, H = 14, 3, 2, 5


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch():
    weight = torch.rand(M, N, dtype=torch.float64)
    weight[0, 3] = weight[1, 5] = 0.0
    x, y = torch.zeros(N, 1), torch.randint(K, (N,))
    features = torch.randn(M, N, H, dtype=torch.float64).relu()
    return Batch(x, y, weight, torch.arange(N), features=features)


@pytest.fixture
def logits():
    return torch.randn(M, N, K, dtype=torch.float64)


def stub(loss="ce", **values):
    criterion = Criterion(make_loss(loss), K, M).double()
    return SimpleNamespace(
        **{"n_stacked": M, "criterion_": criterion, "warming": False, "epoch": 10} | values
    )


def begin(net, weight, **params):
    strategy = MetaRescale(**params)
    strategy.on_train_begin(net, SimpleNamespace(weight=weight))
    for p in strategy.rescaler_.parameters():
        p.data += 0.3  # no longer where all weights are equal
    return strategy


def weigh(strategy, net, batch, logits):
    batch.logits = logits
    with torch.no_grad():
        return strategy.weigh(net, batch, net.criterion_(logits, batch.target))


def alone(batch, m, rows):
    part = (batch.x[rows], batch.target[rows], batch.weight[m : m + 1, rows], batch.index[rows])
    return Batch(*part, features=batch.features[m : m + 1, rows])


@pytest.mark.parametrize("loss", ["ce", "gce", "squentropy"])
def test_the_step_ahead_is_one_of_the_last_layer_on_the_other_rows(batch, loss):
    net, strategy = stub(loss), MetaRescale(step=3.0)
    head, bias = torch.randn(M, H, K).double(), torch.randn(M, 1, K).double()
    share = normalised(batch.weight * torch.rand(M, N))
    later = strategy.after_a_step(net, batch, batch.features @ head + bias, share)
    own = batch.features.square().sum(-1) + 1
    size = (normalised(batch.weight) * own).sum(-1)
    for j in range(N):
        others = share * (torch.arange(N) != j)
        layer = [head.clone().requires_grad_(), bias.clone().requires_grad_()]
        value = (others * net.criterion_(batch.features @ layer[0] + layer[1], batch.target)).sum()
        slopes = torch.autograd.grad(value, layer)
        w, b = (p - 3.0 * g / size[:, None, None] for p, g in zip(layer, slopes, strict=True))
        assert_close(later[:, j], (batch.features @ w + b)[:, j])


def test_the_rescaler_learns_by_the_gradient_of_the_loss_ahead(batch, logits):
    net = stub()
    strategy = begin(net, batch.weight, step=4.0)
    seen = signals(logits.softmax(-1), batch, net.criterion_(logits, batch.target))
    rescaler = strategy.rescaler_

    def objective():
        share = normalised(batch.weight * rescaler(seen))
        later = strategy.after_a_step(net, batch, logits, share)
        return (share * net.criterion_(later, batch.target)).sum().item()

    expected = []
    for p in rescaler.parameters():
        flat = p.data.view(-1)
        for i in (0, len(flat) - 1):
            flat[i] += 1e-5
            up = objective()
            flat[i] -= 2e-5
            expected.append((up - objective()) / 2e-5)
            flat[i] += 1e-5
    weigh(strategy, net, batch, logits)
    got = [p.grad.view(-1)[i].item() for p in rescaler.parameters() for i in (0, -1)]
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert max(map(abs, got)) > 1e-3


def test_weights_start_equal_keep_their_total_and_then_move(batch, logits):
    net = stub()
    strategy = MetaRescale(lr=0.1)
    strategy.on_train_begin(net, SimpleNamespace(weight=batch.weight))
    assert_close(weigh(strategy, net, batch, logits), batch.weight)
    for _ in range(5):
        new = weigh(strategy, net, batch, logits)
    assert_close(new.sum(-1), batch.weight.sum(-1))
    assert not new.requires_grad
    ratio = (new / batch.weight)[0]
    assert ratio[batch.weight[0] > 0].std() > 0.05
    frozen = MetaRescale(lr=0.0)
    frozen.on_train_begin(net, SimpleNamespace(weight=batch.weight))
    for _ in range(3):
        assert_close(weigh(frozen, net, batch, logits), batch.weight)


@pytest.mark.parametrize("values", [{"warming": True}, {"epoch": 9}])
def test_nothing_moves_in_the_warm_up(batch, logits, values):
    net = stub(**values)
    strategy = begin(net, batch.weight, lr=0.1)
    before = [p.clone() for p in strategy.rescaler_.parameters()]
    assert weigh(strategy, net, batch, logits) is batch.weight
    assert_close(list(strategy.rescaler_.parameters()), before)


@pytest.mark.parametrize("loss", ["ce", "gce"])
def test_each_member_alone_and_rows_of_weight_zero_do_not_matter(batch, logits, loss):
    net = stub(loss)
    torch.manual_seed(1)
    together = begin(net, batch.weight, lr=0.1)
    batch.features[0, 3], batch.features[1, 5] = 100.0, 50.0
    logits[0, 3], logits[1, 5] = torch.tensor([9.0, -9.0, 0.0]), 7.0
    for _ in range(4):
        new = weigh(together, net, batch, logits)
    for m in range(M):
        kept = (batch.weight[m] > 0).nonzero().flatten()
        part, one = alone(batch, m, kept), stub(loss, n_stacked=1)
        torch.manual_seed(1)
        single = begin(one, part.weight, lr=0.1)
        for _ in range(4):
            own = weigh(single, one, part, logits[m : m + 1, kept])
        assert_close(new[m, kept], own[0])
    assert (new[batch.weight == 0] == 0).all()


def test_what_a_loss_learns_gets_no_gradient_of_the_rescaler(batch, logits):
    net = stub("legendretron")
    weigh(begin(net, batch.weight), net, batch, logits)
    learned = list(net.criterion_.parameters())
    assert learned
    assert all(p.grad is None for p in learned)


def test_signals_by_hand(batch, logits):
    p, loss = logits.softmax(-1), make_loss("ce")(logits, batch.target)
    seen = signals(p, batch, loss)
    assert seen.shape == (M, N, N_SIGNALS)
    w = batch.weight / batch.weight.sum(-1, keepdim=True)
    standardised = seen[..., 0]
    assert_close((w * standardised).sum(-1), torch.zeros(M).double(), atol=0.2, rtol=0)
    mean = (w * loss).sum(-1, keepdim=True)
    scale = ((w * (loss - mean) ** 2).sum(-1, keepdim=True)) ** 0.5
    assert_close(standardised, ((loss - mean) / scale).clamp(-3, 3))
    assert_close(seen[..., 1], (-loss).exp())
    assert_close(seen[..., 2], p.amax(-1))
    assert_close(seen[..., 3], (p.argmax(-1) == batch.target).double())
    assert_close(seen[..., 4], -(p * p.log()).sum(-1) / np.log(K))
    doubled = signals(p, batch, 2 * loss + 5)
    assert_close(doubled, seen)  # of losses of any scale


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_members_are_independent_and_draws_are_per_batch(train, rows, optimizer):
    x, y, _ = rows
    states = []

    class Watch(LabelSmoothing):
        def on_batch(self, net, batch):
            states.append(torch.get_rng_state())
            return batch

        def on_batch_end(self, net, **kwargs):
            assert torch.equal(torch.get_rng_state(), states[-1])

    options = {"optimizer": optimizer, "epochs": 12, "batch_size": 12}
    chosen = [make_strategy("meta_rescale", lr=0.05, warm_up=2), Watch(0)]
    small, large = (train(x, y, seeds=s, strategies=chosen, **options) for s in [(1, 2), (1, 2, 3)])
    plain = train(x, y, seeds=(1, 2), **options)
    large.release()
    parts = [net.module_.parameters() for net in (small, large, plain)]
    for p, q, r in zip(*parts, strict=True):
        assert_close(p, q[:2])
        assert not torch.allclose(p, r)


def test_wrong_labels_lose_their_weight_and_the_accuracy_gains(noisy_digits):
    X, y, flipped = noisy_digits
    rng = np.random.default_rng(1)
    more = flipped | (rng.random(len(y)) < 0.25)
    clean = y.copy()
    y = np.where(more & ~flipped, (y + rng.integers(1, 10, len(y))) % 10, y)
    kept = np.zeros(2)

    class Watch(MetaRescale):
        def weigh(self, net, batch, loss):
            new = super().weigh(net, batch, loss)
            if net.epoch == net.max_epochs - 1:
                wrong = torch.from_numpy(more)[batch.index]
                kept[:] += [new[0, ~wrong].sum().item(), new[0, wrong].sum().item()]
            return new

    fits = [
        RobustClassifier(loss="ce", strategy=s, max_epochs=40, random_state=0)
        for s in (None, Watch())
    ]
    right = [(clf.fit(X, y).predict(X) == clean)[~flipped].mean() for clf in fits]
    assert right[1] > right[0] + 0.05
    share = kept / kept.sum()
    assert share[1] < 0.5 * more.mean()


@pytest.mark.parametrize("loss", ["ce", "gce"])
def test_fits_and_is_free_of_rows_after(iris, loss):
    X, y = iris
    clf = RobustClassifier(
        loss=loss,
        strategy=[make_strategy("meta_rescale", warm_up=5), "mixup"],
        optimizer="sam",
        cross_fit=2,
        hidden=(16,),
        max_epochs=20,
        batch_size=25,
        lr=0.03,
        random_state=0,
    ).fit(X, y)
    assert clf.score(X, y) > 0.85
    assert clf.oof_proba_[np.arange(150), y].mean() > 0.6
    held = [name for s in clf.net_.strategies for name in vars(s) if name.endswith("_")]
    assert held == []
    proba = pickle.loads(pickle.dumps(clf)).predict_proba(X)
    np.testing.assert_allclose(proba, clf.predict_proba(X), atol=1e-6)


REFUSED = {
    "lr must lie in [0, inf), got -1": MetaRescale(lr=-1),
    "step must lie in [0, inf), got -1": MetaRescale(step=-1),
    "warm_up must lie in [0, inf), got -1": MetaRescale(warm_up=-1),
    "hidden must be a whole number": MetaRescale(hidden=1.5),
    "hidden must lie in [1, inf), got 0": MetaRescale(hidden=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_out_of_range_are_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        REFUSED[message].check(make_loss("ce"), K)
