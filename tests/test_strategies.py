"""Each strategy is its formula, and every one fits with every loss and optimiser."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch.testing import assert_close

from robustclf import (
    RobustClassifier,
    list_losses,
    list_strategies,
    make_loss,
    make_strategy,
    strategies,
)
from robustclf.losses._base import LOSSES
from robustclf.strategies import (
    Batch,
    CoTeaching,
    EarlyLearningRegularization,
    LabelSmoothing,
    Mixup,
    overrides,
)

N, K = 12, 3
ELR_WARNING = "ignore:strategy 'elr' outweighs the labels:UserWarning"
UNTRAINED = "ignore:strategy 'transition':UserWarning"  # networks of few steps


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(K, (N,), generator=generator)
    weight = torch.rand(2, N, generator=generator, dtype=torch.float64)
    weight[0, 3] = weight[1, 5] = 0.0
    return Batch(x, y, weight, torch.arange(N))


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(2, N, K, generator=generator, dtype=torch.float64)


def stub(**values):
    return SimpleNamespace(**{"n_codes": 0, "n_classes": K, "n_stacked": 2, "epoch": 0} | values)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


# Mixup ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", [a for a in list_losses() if not make_loss(a).stochastic])
def test_mixup_mixes_rows_and_losses(batch, logits, alias):
    mixed = Mixup(alpha=1.0).on_batch(stub(), batch)
    lam, partner = mixed.mixing.lam, mixed.mixing.partner
    assert 0.01 < lam < 0.99
    assert sorted(partner.tolist()) == list(range(N))
    assert_close(mixed.x, lam * batch.x + (1 - lam) * batch.x[partner])
    loss, y, w = make_loss(alias).build(logits.shape[-1]), batch.target, batch.weight
    expected = lam * w * loss(logits, y) + (1 - lam) * w[:, partner] * loss(logits, y[partner])
    assert_close(mixed.weight * loss(logits, mixed.target), expected)


def test_mixup_leaves_the_given_rows_as_they_are(batch):
    x, target, weight = batch.x.clone(), batch.target.clone(), batch.weight.clone()
    mixed = Mixup().on_batch(stub(n_codes=1), batch)
    assert_close((batch.x, batch.target, batch.weight), (x, target, weight), rtol=0, atol=0)
    assert_close(mixed.mixing.x, x, rtol=0, atol=0)


def test_mixup_never_averages_codes():
    n = 4000
    codes = torch.arange(2 * n, dtype=torch.float64).reshape(n, 2)
    x = torch.cat([torch.randn(n, 1, dtype=torch.float64), codes], 1)
    weight = torch.ones(1, n, dtype=torch.float64)
    mixed = Mixup().on_batch(
        stub(n_codes=2), Batch(x, torch.zeros(n, dtype=torch.int64), weight, torch.arange(n))
    )
    own, partners = codes, codes[mixed.mixing.partner]
    mine = mixed.x[:, 1:] == own
    assert (mine | (mixed.x[:, 1:] == partners)).all()
    assert mine.double().mean(0).tolist() == pytest.approx([mixed.mixing.lam] * 2, abs=0.03)
    assert not torch.equal(mine[:, 0], mine[:, 1])


def test_mixup_without_concentration_does_not_mix(batch):
    for _ in range(20):
        mixed = Mixup(alpha=1e-6).on_batch(stub(), batch)
        distance = (mixed.x[:, None] - batch.x).abs().amax(-1)
        assert distance.min(1).values.max() < 1e-3
        assert ((mixed.target > 1e-3).sum(-1) <= 1).all()


def test_mixup_draws_lambda_from_the_beta_distribution(batch):
    lam = torch.tensor([Mixup(0.5).on_batch(stub(), batch).mixing.lam for _ in range(2000)])
    assert lam.mean().item() == pytest.approx(0.5, abs=0.03)
    assert lam.var().item() == pytest.approx(1 / 8, abs=0.015)  # 1 / (4 (2 alpha + 1))


# Label smoothing ------------------------------------------------------------------------------


def test_label_smoothing_of_labels_and_distributions(batch, logits):
    smoothed = LabelSmoothing(0.3).relabel(stub(), batch, logits)
    expected = torch.full((N, K), 0.1, dtype=torch.float64)
    expected[torch.arange(N), batch.target] = 0.8
    assert_close(smoothed, expected)
    batch.target = logits.softmax(-1)
    smoothed = LabelSmoothing(0.3).relabel(stub(), batch, logits)
    assert_close(smoothed, 0.7 * logits.softmax(-1) + 0.1)


def test_label_smoothing_of_nothing_and_of_everything(batch, logits):
    one_hot = torch.nn.functional.one_hot(batch.target, K).double()
    assert_close(LabelSmoothing(0).relabel(stub(), batch, logits), one_hot)
    uniform = LabelSmoothing(1).relabel(stub(), batch, logits)
    assert_close(uniform, torch.full_like(one_hot, 1 / K))


# Co-teaching ----------------------------------------------------------------------------------


def losses(n_members, n):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n_members, n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("n", "tau", "kept"),
    [(40, 0.0, 40), (40, 0.25, 30), (40, 0.5, 20), (40, 0.9, 4), (25, 0.4, 15), (100, 0.4, 60)],
)
def test_co_teaching_keeps_the_smallest_losses_of_the_peer(n, tau, kept):
    loss = losses(4, n)
    weight = torch.ones(1, n, dtype=torch.float64)
    batch = Batch(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), weight, torch.arange(n))
    new = CoTeaching(tau=tau, T_k=1).weigh(stub(epoch=1), batch, loss)
    for member, peer in [(0, 1), (1, 0), (2, 3), (3, 2)]:
        chosen = set(loss[peer].argsort()[:kept].tolist())
        assert set(new[member].nonzero().flatten().tolist()) == chosen
        assert new[member].max().item() == pytest.approx(n / kept)


def test_co_teaching_keeps_the_total_weight_and_never_picks_rows_of_weight_zero():
    loss = losses(2, 40)
    weight = losses(2, 40) + 0.5
    weight[:, :10] = 0
    loss[:, :10] = -1  # would be picked first
    batch = Batch(torch.zeros(40, 1), torch.zeros(40, dtype=torch.int64), weight, torch.arange(40))
    new = CoTeaching(tau=0.5, T_k=1).weigh(stub(epoch=1), batch, loss)
    assert (new[:, :10] == 0).all()
    assert (new > 0).sum(1).tolist() == [15, 15]
    assert_close(new.sum(1), weight.sum(1))
    kept = new > 0
    for member in range(2):
        ratio = new[member][kept[member]] / weight[member][kept[member]]
        assert_close(ratio, ratio[:1].expand(15))


@pytest.mark.parametrize(
    ("c", "kept"), [(1.0, [100, 90, 80, 70, 60, 60, 60]), (0.5, [100, 90, 86, 83, 80, 78, 76])]
)
def test_co_teaching_schedule(c, kept):
    """R(T) = 1 - tau min(T^c / T_k, 1) with tau = 0.4 and T_k = 4."""
    loss = losses(2, 100)
    weight = torch.ones(1, 100, dtype=torch.float64)
    batch = Batch(
        torch.zeros(100, 1), torch.zeros(100, dtype=torch.int64), weight, torch.arange(100)
    )
    strategy = CoTeaching(tau=0.4, T_k=4, c=c)
    counts = [
        (strategy.weigh(stub(epoch=T), batch, loss) > 0).sum(1).float().mean().item()
        for T in range(7)
    ]
    assert counts == pytest.approx(kept, abs=1.01)
    assert counts[0] == 100


def test_co_teaching_sees_epochs_from_zero(train, rows):
    x, y, _ = rows
    shares = []

    class Watch(CoTeaching):
        def weigh(self, net, batch, loss):
            new = super().weigh(net, batch, loss)
            shares.append((new > 0).double().mean().item())
            return new

    train(x, y, seeds=(1, 2), strategies=[Watch(tau=0.5, T_k=2)], epochs=4)
    assert shares == [1.0, 0.75, 0.5, 0.5]


@pytest.mark.parametrize(("asked", "trained"), [(1, 2), (2, 2), (3, 4)])
def test_co_teaching_rounds_members_up_to_pairs(iris, asked, trained):
    clf = RobustClassifier(
        loss="gce", strategy="co_teaching", n_members=asked, cross_fit=2, hidden=(4,), max_epochs=1
    ).fit(*iris)
    assert clf.net_.n_members == clf.embed(iris[0]).shape[1] // 4 == trained
    assert clf.n_members == asked
    assert clf.oof_proba_.shape == (150, 3)


# ELR ------------------------------------------------------------------------------------------


def clipped(logits):
    p = logits.softmax(-1).clip(1e-4, 1 - 1e-4)
    return p / p.sum(-1, keepdim=True)


def test_elr_penalty_by_hand(batch, logits):
    elr = EarlyLearningRegularization(lam=2.0, beta=0.6)
    elr.average_ = torch.zeros(2, N, K, dtype=torch.float64)
    assert_close(elr.penalty(stub(), batch, logits), torch.zeros(2, N, dtype=torch.float64))
    elr.on_batch_end(stub(), batch=batch, training=True, y_pred=logits)
    assert_close(elr.average_, 0.4 * clipped(logits))
    moved = logits.flip(-1)
    agreement = (0.4 * clipped(logits) * clipped(moved)).sum(-1)
    expected = batch.weight * 2.0 * torch.log(1 - agreement)
    assert_close(elr.penalty(stub(), batch, moved), expected)
    elr.on_batch_end(stub(), batch=batch, training=True, y_pred=moved)
    assert_close(elr.average_, 0.6 * 0.4 * clipped(logits) + 0.4 * clipped(moved))


def test_elr_moves_only_the_rows_of_the_batch_and_only_in_training(batch, logits):
    elr = EarlyLearningRegularization()
    elr.average_ = torch.zeros(2, N + 5, K, dtype=torch.float64)
    batch.index = torch.arange(N) + 5
    elr.on_batch_end(stub(), batch=batch, training=False, y_pred=logits)
    assert (elr.average_ == 0).all()
    elr.on_batch_end(stub(), batch=batch, training=True, y_pred=logits)
    assert (elr.average_[:, :5] == 0).all()
    assert (elr.average_[:, 5:] > 0).all()


def test_elr_gradient_by_hand(batch, logits):
    elr = EarlyLearningRegularization(lam=3.0)
    elr.average_ = 0.5 * clipped(logits.roll(1, -1))
    small = (logits / 10).requires_grad_()  # nothing clipped
    elr.penalty(stub(), batch, small).sum().backward()
    t, p = elr.average_, small.detach().softmax(-1)
    agreement = (t * p).sum(-1, keepdim=True)
    expected = -3.0 * batch.weight[..., None] * p * (t - agreement) / (1 - agreement)
    assert_close(small.grad, expected)


def test_elr_after_mixup(batch, logits):
    """Mixed averages in the penalty; the averages move with predictions of unmixed rows."""
    mixed = Mixup().on_batch(stub(), batch)
    lam, partner = mixed.mixing.lam, mixed.mixing.partner
    elr = EarlyLearningRegularization(lam=2.0, beta=0.6)
    average = elr.average_ = 0.5 * clipped(logits.flip(-1))
    t = lam * average + (1 - lam) * average[:, partner]
    expected = mixed.weight * 2.0 * torch.log(1 - (t * clipped(logits)).sum(-1))
    assert_close(elr.penalty(stub(), mixed, logits), expected)

    def module_(x):
        assert_close(x, batch.x)
        return 2 * logits

    before = average.clone()
    elr.on_batch_end(stub(module_=module_), batch=mixed, training=True, y_pred=logits)
    assert_close(elr.average_, 0.6 * before + 0.4 * clipped(2 * logits))


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_elr_averages_move_once_per_step(train, rows, optimizer):
    x, y, _ = rows
    elr = EarlyLearningRegularization(beta=0.6)
    seen = []

    class Record(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(elr.average_.sum(-1))

    train(x, y, strategies=[elr], optimizer=optimizer, epochs=3, callbacks=[Record()])
    for epoch, total in enumerate(seen, 1):
        assert_close(total, torch.full((1, 24), 1 - 0.6**epoch, dtype=torch.float64))


def test_elr_forgets_its_memory_after_the_fit(iris):
    strategy = EarlyLearningRegularization()
    clf = RobustClassifier(loss="ce", strategy=strategy, hidden=(4,), max_epochs=2).fit(*iris)
    held = [vars(s) for s in clf.net_.strategies] + [vars(c) for _, c in clf.net_.callbacks_]
    assert all("average_" not in attributes for attributes in held)
    assert not hasattr(strategy, "average_")


@pytest.mark.parametrize("loss", list_losses())
def test_elr_warns_on_bounded_losses_only(iris, loss, recwarn):
    RobustClassifier(loss=loss, strategy="elr", hidden=(4,), max_epochs=1).fit(*iris)
    warned = [str(w.message) for w in recwarn if "strategy 'elr' outweighs" in str(w.message)]
    assert bool(warned) is make_loss(loss).bounded
    assert all("loss='ce'" in message for message in warned)


def test_rows_that_are_mixed_twice_are_mixed_as_recorded(batch):
    once = Mixup().on_batch(stub(), batch)
    twice = Mixup().on_batch(stub(), once)
    assert_close(twice.mixing(batch.x), twice.x)
    assert twice.mixing.x is batch.x
    mixed = twice.mixing(batch.weight.unsqueeze(-1) * batch.distribution(K))
    assert_close(mixed.sum(-1), twice.weight)
    assert_close(mixed, twice.weight.unsqueeze(-1) * twice.target)


# Combinations ---------------------------------------------------------------------------------

NEEDED = {
    "forward_corrected": {"transition": 0.7 * np.eye(3) + 0.1},
    "backward_corrected": {"transition": 0.7 * np.eye(3) + 0.1},
    "logit_adjusted": {"prior": [0.5, 0.3, 0.2]},
}
# one strategy of each place with every loss, and losses of each kind with every strategy
ONE_OF_EACH_PLACE = ["mixup", "label_smoothing", "co_teaching", "elr"]
ONE_OF_EACH_KIND = ["ce", "gce", "nce+rce", "squentropy", "gjs", "evidential", "legendretron"]
PAIRS = {(loss, strategy) for loss in LOSSES.names() for strategy in ONE_OF_EACH_PLACE}
PAIRS |= {(loss, strategy) for loss in ONE_OF_EACH_KIND for strategy in list_strategies()}


def assert_fits(iris, loss, strategy, optimizer, told):
    X, y = iris[0][::3], iris[1][::3]
    clf = RobustClassifier(
        loss=make_loss(loss, **NEEDED.get(loss, {})),
        strategy=strategy,
        optimizer=optimizer,
        cross_fit=2,
        hidden=(4,),
        max_epochs=3,
        batch_size=20,
        lr=0.01,
        random_state=0,
    ).fit(X, y, **told(strategy, len(y)))
    proba = clf.predict_proba(X)
    assert proba.shape == clf.oof_proba_.shape == (50, 3)
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(clf.oof_proba_.sum(1), 1, atol=1e-5)
    assert proba.std(0).max() > 0


@pytest.mark.filterwarnings(ELR_WARNING, UNTRAINED)
@pytest.mark.parametrize(("loss", "strategy"), sorted(PAIRS))
def test_losses_fit_with_strategies(iris, loss, strategy, told):
    optimizer = ("adamw", "sam", "sgd")[(len(loss) + len(strategy)) % 3]
    assert_fits(iris, loss, strategy, optimizer, told)


@pytest.mark.filterwarnings(ELR_WARNING, UNTRAINED)
@pytest.mark.parametrize("optimizer", ["adamw", "sam", "sgd"])
@pytest.mark.parametrize("loss", ONE_OF_EACH_KIND)
def test_losses_fit_with_all_strategies_at_once(iris, loss, optimizer, all_strategies, told):
    assert_fits(iris, loss, all_strategies, optimizer, told)


@pytest.mark.parametrize("strategy", [None, *list_strategies()])
def test_every_strategy_learns(iris, strategy, told):
    X, y = iris
    clf = RobustClassifier(
        loss="ce",
        strategy=strategy,
        hidden=(16,),
        max_epochs=30,
        batch_size=25,
        lr=0.03,
        random_state=0,
    )
    assert clf.fit(X, y, **told(strategy, len(y))).score(X, y) > 0.93


@pytest.mark.filterwarnings(UNTRAINED)
@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_all_strategies_on_sparse_rows(iris, optimizer, all_strategies, told):
    from scipy.sparse import csr_array

    X, y = csr_array(iris[0]), iris[1]
    clf = RobustClassifier(
        loss="ce", strategy=all_strategies, optimizer=optimizer, hidden=(16,), max_epochs=5
    )
    clf.fit(X, y, **told(all_strategies, len(y)))
    assert np.isfinite(clf.predict_proba(X)).all()


# Names and ranges -----------------------------------------------------------------------------


def test_every_alias_is_an_exported_strategy_with_defaults():
    exported = {getattr(strategies, name) for name in strategies.__all__}
    assert {type(make_strategy(alias)) for alias in list_strategies()} <= exported


@pytest.mark.parametrize(
    ("alias", "params", "message"),
    [
        ("mixup", {"alpha": 0}, r"alpha must lie in \(0, inf\), got 0"),
        ("mixup", {"alpha": "1"}, "alpha must lie in"),
        ("label_smoothing", {"epsilon": 1.1}, r"epsilon must lie in \[0, 1\], got 1.1"),
        ("label_smoothing", {"epsilon": -0.1}, "epsilon must lie in"),
        ("co_teaching", {"tau": 1.0}, r"tau must lie in \[0, 1\), got 1"),
        ("co_teaching", {"T_k": 0}, r"T_k must lie in \[1, inf\), got 0"),
        ("co_teaching", {"c": 0}, r"c must lie in \(0, inf\), got 0"),
        ("elr", {"lam": -1.0}, r"lam must lie in \[0, inf\), got -1"),
        ("elr", {"beta": 1.0}, r"beta must lie in \[0, 1\), got 1"),
    ],
)
def test_parameters_out_of_range_are_refused(iris, alias, params, message):
    named = {f"strategy__{name}": value for name, value in params.items()}
    with pytest.raises(ValueError, match=message):
        RobustClassifier(loss="ce", strategy=alias, **named).fit(*iris)


def test_hooks_that_do_nothing_are_not_called():
    hooks = ("epoch_rows", "on_batch", "relabel", "observe", "weigh", "penalty", "on_batch_end")
    used = {s: [h for h in hooks if overrides(make_strategy(s), h)] for s in list_strategies()}
    assert used == {
        "adversarial": ["on_batch"],
        "bootstrap": ["relabel"],
        "center": ["penalty", "on_batch_end"],
        "co_divide": ["on_batch"],
        "co_teaching": ["weigh"],
        "co_teaching_plus": ["weigh"],
        "decoupled_mixup": ["on_batch", "penalty"],
        "elr": ["penalty", "on_batch_end"],
        "entropy": ["penalty"],
        "error_norm": ["weigh"],
        "feature_noise": ["on_batch"],
        "feature_swap": ["on_batch"],
        "group_balance": ["epoch_rows", "on_batch"],
        "group_dro": ["weigh"],
        "group_lasso": ["penalty"],
        "group_loss_resample": ["epoch_rows", "on_batch"],
        "holistic_robust": ["weigh"],
        "infobatch": ["epoch_rows", "on_batch", "weigh", "on_batch_end"],
        "instance_reweighted": ["weigh"],
        "jocor": ["weigh", "penalty"],
        "l1": ["penalty"],
        "label_smoothing": ["relabel"],
        "meta_rescale": ["weigh"],
        "mixup": ["on_batch"],
        "neighbour_denoise": ["relabel"],
        "neural_collapse": ["penalty", "on_batch_end"],
        "ogc": ["weigh"],
        "pls": ["on_batch"],
        "pseudo_label": ["on_batch", "observe"],
        "rank_mixup": ["on_batch", "penalty"],
        "refurbish": ["on_batch", "relabel", "on_batch_end"],
        "selc": ["relabel", "on_batch_end"],
        "small_loss": ["weigh", "on_batch_end"],
        "smooth_adversarial": ["on_batch", "penalty"],
        "spectral": ["weigh"],
        "transition": ["on_batch", "relabel", "observe"],
        "vat": ["on_batch", "penalty"],
    }
