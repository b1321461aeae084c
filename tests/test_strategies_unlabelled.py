"""What the strategies learn from rows without label."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import one_hot
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf._net import Criterion
from robustclf._training_set import TrainingSet
from robustclf.modules import TabularInput, make_network
from robustclf.strategies import (
    SELC,
    Batch,
    DecoupledMixup,
    FeatureSwap,
    LabelSmoothing,
    Mixup,
    PseudoLabel,
    Refurbish,
    Strategy,
    VirtualAdversarial,
)
from robustclf.strategies.semi_supervised import shrink

N, K, M = 12, 4, 2
USERS = ["decoupled_mixup", "mixup", "pseudo_label", "refurbish", "vat"]
SMALL = {"loss": "gce", "hidden": (8,), "max_epochs": 6, "batch_size": 25, "random_state": 0}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


class UsesNone(Strategy):
    """Let rows without label take part, and give them no weight."""

    uses_unlabelled = True


# What each strategy does ------------------------------------------------------------------------


def network(seeds=(1, 2)):
    inputs = TabularInput(len(seeds), 3, 3, [])
    kwargs = {"hidden": (8,), "activation": "tanh", "dropout": 0.5, "seeds": list(seeds)}
    return make_network("mlp", inputs, len(seeds), K, **kwargs).double()


def stub(loss="ce", **values):
    """Net of M members; its networks are sure of some rows and not of others."""
    module = network()
    with torch.no_grad():
        module.body.head.weight.mul_(8)
    criterion = Criterion(make_loss(loss), K, M)
    given = {"n_codes": 0, "n_classes": K, "n_stacked": M, "epoch": 50, "max_epochs": 100}
    given |= {"warming": False, "module_": module, "criterion_": criterion}
    return SimpleNamespace(**given | values)


def predictions(net, x):
    net.module_.eval()
    with torch.no_grad():
        p = net.module_(x).softmax(-1)
    net.module_.train()
    return p


@pytest.fixture
def rows():
    """Twice as many rows as a batch has, the second half without label."""
    x = torch.randn(2 * N, 3, dtype=torch.float64)
    y = torch.randint(K, (2 * N,)) * (torch.arange(2 * N) < N)
    weight = torch.rand(M, 2 * N, dtype=torch.float64) + 0.5
    weight[:, N:] = 0.0
    weight[0, 1] = 0.0  # a fold
    unlabelled = torch.rand(1, 2 * N, dtype=torch.float64) + 0.5
    unlabelled[:, :N] = 0.0
    return TrainingSet(x, y, weight, torch.arange(2 * N), unlabelled=unlabelled)


@pytest.fixture
def batch(rows):
    return rows.batch(torch.arange(0, 2 * N, 2))


HALF = N // 2  # the rows of a batch that have a label


def begin(strategy, net, rows):
    strategy.on_train_begin(net, rows)
    return strategy


def mass(batch):
    return batch.weight.unsqueeze(-1) * batch.distribution(K)


def test_pseudo_labels_by_hand(rows, batch):
    net = stub()
    p = predictions(net, batch.x)
    confidence, label = p.max(-1)
    threshold = float(confidence[:, HALF:].median())
    new = begin(PseudoLabel(threshold, lam=0.7), net, rows).on_batch(net, batch)
    sure = confidence >= threshold
    u = rows.unlabelled[:, batch.index]
    expected = mass(batch) + (0.7 * u * sure)[..., None] * one_hot(label, K)
    assert_close(mass(new), expected)
    assert 0 < sure[:, HALF:].sum() < M * HALF
    assert not torch.equal(sure[0], sure[1])
    assert_close(new.weight[:, :HALF], batch.weight[:, :HALF], rtol=0, atol=0)
    assert torch.equal(new.x, batch.x)
    assert net.module_.training
    assert not new.target.requires_grad
    net.warming = True
    assert PseudoLabel(threshold).on_batch(net, batch) is batch


def test_pseudo_labels_read_probabilities_as_the_loss_does(rows, batch):
    net = stub("evidential")
    with torch.no_grad():
        net.module_.eval()
        p = net.criterion_.loss.inverse_link(net.module_(batch.x))
    threshold = float(p.max(-1)[0].median())
    new = begin(PseudoLabel(threshold), net, rows).on_batch(net, batch)
    assert torch.equal(new.weight[:, HALF:] > 0, p.max(-1)[0][:, HALF:] >= threshold)


@pytest.mark.parametrize("mix", [Mixup(lam_u=0.0), FeatureSwap(p=1.0)])
def test_pseudo_labels_of_mixed_rows_are_those_of_the_rows(rows, batch, mix):
    net = stub()
    first = begin(PseudoLabel(0.6), net, rows).on_batch(net, batch)
    mixed = mix.on_batch(net, batch)
    late = begin(PseudoLabel(0.6), net, rows).on_batch(net, mixed)
    assert_close(mass(late), mixed.mixing(mass(first)))
    early = mix.on_batch(net, first)
    assert_close(mass(early), early.mixing(mass(first)))
    assert late.mixing is mixed.mixing


def test_each_class_space_is_the_largest_that_is_sure():
    p = torch.rand(200, 6, dtype=torch.float64).pow(1.5)
    p = p / p.sum(-1, keepdim=True)
    removed, reached = shrink(p, 0.8)
    for i, row in enumerate(p):
        order = row.argsort(descending=True)
        for k in range(2, 6):  # the classes of rank 2 to k are removed
            left = torch.cat([order[:1], order[k:]])
            if row[order[0]] / row[left].sum() >= 0.8:
                break
        assert set(removed[i].nonzero().flatten().tolist()) == set(order[1:k].tolist())
        assert reached[i] == (row[order[0]] / row[left].sum() >= 0.8)
    assert 10 < reached.sum() < 200


def test_two_classes_leave_nothing_to_shrink(rows):
    p = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    removed, reached = shrink(p, 0.8)
    assert not removed.any()
    assert not reached.any()


def shrunk(rows, batch, net, lam=0.7, threshold=0.9):
    strategy = begin(PseudoLabel(threshold, lam, "shrink"), net, rows)
    return strategy, strategy.on_batch(net, batch)


def test_weights_of_shrunk_rows_by_hand(rows, batch):
    net = stub()
    strategy, new = shrunk(rows, batch, net)
    p = predictions(net, batch.x)
    confidence, label = p.max(-1)
    sure, reached = confidence >= 0.9, shrink(p, 0.9)[1]
    u = rows.unlabelled[:, batch.index].expand(M, N)
    share = (u * sure).sum(-1, keepdim=True) / u.sum(-1, keepdim=True)
    weight = 0.7 * u * torch.where(sure, 1.0, confidence * share * reached)
    assert_close(new.weight[:, HALF:], weight[:, HALF:])
    assert (reached & ~sure)[:, HALF:].any()
    assert torch.equal(
        new.target[new.weight > 0][:, :].argmax(-1),
        torch.where(u > 0, label, batch.target)[new.weight > 0],
    )
    again = strategy.on_batch(net, batch)
    assert_close(again.weight, new.weight)  # the same share twice


@pytest.mark.parametrize("loss", ["ce", "gce", "mae", "focal"])
def test_loss_and_gradient_on_the_shrunk_class_space(rows, batch, loss):
    net = stub(loss)
    strategy, new = shrunk(rows, batch, net)
    z = (3 * torch.randn(M, N, K, dtype=torch.float64)).requires_grad_()
    value = new.weight * net.criterion_(strategy.observe(net, new, z), new.target)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    removed, _ = shrink(predictions(net, batch.x), 0.9)
    u = rows.unlabelled[0, batch.index]
    n_shrunk = 0
    for m in range(M):
        for i in range(N):
            use = ~removed[m, i] if u[i] > 0 and new.weight[m, i] > 0 else torch.ones(K) > 0
            if u[i] > 0 and predictions(net, batch.x)[m, i].max() >= 0.9:
                use = torch.ones(K) > 0
            n_shrunk += int((~use).any())
            left = z[m, i, use].detach().requires_grad_()
            alone = new.weight[m, i] * make_loss(loss).build(int(use.sum()))(
                left, new.target[m, i, use]
            )
            assert_close(value[m, i], alone)
            expected = torch.zeros(K, dtype=torch.float64)
            expected[use] = torch.autograd.grad(alone, left)[0]
            assert_close(gradient[m, i], expected)
    assert n_shrunk > 0


def test_no_class_is_removed_that_a_mixed_row_or_a_target_has(rows, batch):
    net = stub()
    strategy, new = shrunk(rows, batch, net)
    mixed = Mixup().on_batch(net, new)
    z = 3 * torch.randn(M, N, K, dtype=torch.float64)
    kept = strategy.observe(net, new, z) == z
    observed = strategy.observe(net, mixed, z) == z
    expected = kept | kept[:, mixed.mixing.partner] | (mixed.target > 0)
    assert torch.equal(observed, expected)
    assert not observed.all()
    smooth = LabelSmoothing(0.1).relabel(net, new, z)
    new.target = smooth
    assert torch.equal(strategy.observe(net, new, z), z)


@pytest.mark.parametrize("alias", ["squentropy", "nce+rce", "evidential", "gjs", "ldr_kl"])
def test_shrunk_logits_suit_every_loss(rows, batch, alias):
    net = stub(alias)
    strategy, new = shrunk(rows, batch, net, threshold=0.8)
    for size in (1.0, 1e4):
        z = (size * torch.randn(M, N, K, dtype=torch.float64)).requires_grad_()
        loss = net.criterion_(strategy.observe(net, new, z), new.target)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_interpolation_consistency_by_hand(rows, batch):
    net = stub(epoch=10, max_epochs=100)
    mixup = begin(Mixup(lam_u=0.6), net, rows)
    u = rows.unlabelled[:, batch.index]
    strength = 0.6 * np.exp(-5 * (1 - 10 / 25) ** 2)
    whole = mass(batch) + strength * u[..., None] * predictions(net, batch.x)
    mixed = mixup.on_batch(net, batch)
    assert_close(mass(mixed), mixed.mixing(whole))
    net.epoch = 25
    mixed = mixup.on_batch(net, batch)
    expected = mass(batch) + 0.6 * u[..., None] * predictions(net, batch.x)
    assert_close(mass(mixed), mixed.mixing(expected))


def test_mixup_keeps_the_labels_that_were_guessed(rows, batch):
    net = stub()
    guessed = begin(PseudoLabel(0.6), net, rows).on_batch(net, batch)
    mixed = begin(Mixup(), net, rows).on_batch(net, guessed)
    free = (guessed.weight == 0) * rows.unlabelled[:, batch.index]
    whole = mass(guessed) + free[..., None] * predictions(net, batch.x)
    assert_close(mass(mixed), mixed.mixing(whole))
    assert (free > 0).any()


def test_decoupled_mixup_leaves_guesses_out_of_its_terms(rows, batch):
    net, z = stub(), torch.randn(M, N, K, dtype=torch.float64)
    strategy = begin(DecoupledMixup(), net, rows)
    mixed = strategy.on_batch(net, batch)
    penalty = strategy.penalty(net, mixed, z)
    free = (batch.weight == 0) | (batch.weight == 0)[:, mixed.mixing.partner]
    assert (penalty[free] == 0).all()
    assert (penalty != 0).any()
    assert (mixed.weight > 0)[:, HALF:].all()


def test_virtual_adversarial_penalty_is_the_sum_of_both_means(rows, batch):
    net, z = stub(), torch.zeros(M, N, K, dtype=torch.float64)

    def penalty(strategy, batch):
        strategy.start_ = torch.ones(N, 3, dtype=torch.float64)
        return strategy.penalty(net, batch, z)

    vat = begin(VirtualAdversarial(), net, rows)
    ones = Batch(batch.x, batch.target, torch.ones_like(batch.weight), batch.index)
    divergence = penalty(VirtualAdversarial(), ones)
    u = rows.unlabelled[:, batch.index]
    assert_close(penalty(vat, batch), (batch.weight + u) * divergence)
    guessed = begin(PseudoLabel(0.6), net, rows).on_batch(net, batch)
    assert_close(penalty(vat, guessed), (batch.weight + u) * divergence)
    mixed = begin(Mixup(), net, rows).on_batch(net, batch)  # at full strength the same means
    assert_close(vat._weight_of(mixed), mixed.mixing((batch.weight + u)[..., None])[..., 0])


def remembering(strategy, net, rows):
    """Predictions of four epochs, of which those of the odd rows are sure."""
    begin(strategy, net, rows)
    best = torch.randint(K, (M, 2 * N))
    p = torch.full((M, 2 * N, K), 0.1, dtype=torch.float64)
    p.scatter_(-1, best[..., None], 0.7)
    p[:, ::4] = one_hot(best, K).double()[:, ::4]
    strategy.memory_ = p if isinstance(strategy, SELC) else 0.5 * p
    return best, torch.arange(2 * N) % 4 == 0


def test_refurbish_labels_rows_that_it_is_sure_of(rows, batch):
    net, z = stub(), torch.zeros(M, N, K, dtype=torch.float64)
    strategy = Refurbish()
    best, sure = remembering(strategy, net, rows)
    new = strategy.on_batch(net, batch)
    new.target = strategy.relabel(net, new, z)
    best, sure = best[:, batch.index], sure[batch.index]
    u = rows.unlabelled[:, batch.index]
    label = torch.where(sure, best, batch.target)
    expected = (batch.weight + u * sure)[..., None] * one_hot(label, K)
    assert_close(mass(new), expected)
    assert (new.weight[:, HALF:] > 0).any()
    mixed = Mixup().on_batch(net, strategy.on_batch(net, batch))
    mixed.target = strategy.relabel(net, mixed, z)
    assert_close(mass(mixed), mixed.mixing(expected))
    mixed = strategy.on_batch(net, Mixup().on_batch(net, batch))
    mixed.target = strategy.relabel(net, mixed, z)
    assert_close(mass(mixed), mixed.mixing(expected))
    net.epoch = 9
    assert strategy.on_batch(net, batch) is batch


@pytest.mark.parametrize("make", [SELC, Refurbish])
def test_remembering_strategies_spare_the_guesses_of_others(rows, batch, make):
    net, z = stub(), torch.randn(M, N, K, dtype=torch.float64)
    guessed = begin(PseudoLabel(0.3), net, rows).on_batch(net, batch)
    strategy = make()
    remembering(strategy, net, rows)
    new = strategy.on_batch(net, guessed)
    assert_close(strategy.relabel(net, new, z)[:, HALF:], guessed.target[:, HALF:])
    mixed = begin(Mixup(), net, rows).on_batch(net, guessed)
    before = mass(mixed)
    labels = rows.weight[:, batch.index][..., None] * one_hot(batch.target, K)
    net.module_ = lambda x: z
    target = strategy.relabel(net, mixed, z)
    own = rows.weight[:, batch.index][..., None] * strategy.relabel(net, guessed, z)
    expected = before - mixed.mixing(labels) + mixed.mixing(own)
    assert_close(mixed.weight[..., None] * target, expected)


@pytest.mark.parametrize("alias", USERS)
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_members_guess_for_themselves_and_draw_nothing(train, alias, optimizer):
    """A network is the same in any stack, and labels of rows without one are never read."""
    x = torch.randn(48, 4, dtype=torch.float64)
    y = (x[:, :3].argmax(-1)).long()
    free = torch.arange(48) >= 24
    weight = (2.0 * ~free).double()[None]

    def fit(y, seeds):
        class With(type(make_strategy(alias))):
            def on_train_begin(self, net, X=None, **kwargs):
                X.unlabelled = (2.0 * free).double()[None]
                super().on_train_begin(net, X, **kwargs)

        params = {"threshold": 0.5} if alias in ("pseudo_label", "refurbish") else {}
        params |= {"form": "shrink"} if alias == "pseudo_label" else {}
        params |= {"warm_up": 2} if alias == "refurbish" else {}
        strategy = With(**params)
        options = {"optimizer": optimizer, "epochs": 10, "batch_size": 16, "lr": 1.0}
        return train(x, y, weight=weight, seeds=seeds, strategies=[strategy], **options)

    small, large = fit(y, (1, 2)), fit(torch.where(free, 0, y), (1, 2, 3, 4))
    large.release()
    large.module_.keep_members(2)
    for p, q in zip(small.module_.parameters(), large.module_.parameters(), strict=True):
        assert_close(p, q[:2])


# In fits ----------------------------------------------------------------------------------------

OTHERS = ["mixup", "feature_noise", "feature_swap", "elr", "co_teaching", "small_loss", "ogc"]
OTHERS += ["adversarial", "bootstrap", "label_smoothing", "selc", "refurbish", "vat", "jocor"]


@pytest.mark.parametrize("other", OTHERS)
def test_guesses_go_with_other_strategies(partly_labelled, other):
    X, y, known = partly_labelled
    odd = OTHERS.index(other) % 2
    guess = PseudoLabel(0.6, form=("fixed", "shrink")[odd])
    order = [other, guess] if other in ("selc", "vat", "elr", "ogc") else [guess, other]
    params = SMALL | {"max_epochs": 15, "lr": 0.05, "hidden": (16,), "loss": "ce"}
    params |= {"optimizer": ("adamw", "sam")[odd], "cross_fit": 2}
    clf = RobustClassifier(strategy=order, **params).fit(X, y)
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert clf.score(X[known], y[known]) > 0.75
    np.testing.assert_allclose(clf.oof_proba_.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("strategy", USERS)
def test_fits_search_pickle_and_hold_no_rows(partly_labelled, strategy):
    X, y, _ = partly_labelled
    clf = RobustClassifier(strategy=strategy, cross_fit=2, **SMALL | {"max_epochs": 2}).fit(X, y)
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict(X), clf.predict(X))
    for s in clf.net_.strategies:
        assert not [name for name in vars(s) if name.endswith("_")]
    larger = clone(clf).fit(np.tile(X, (8, 1)), np.tile(y, 8))
    assert len(pickle.dumps(larger.net_)) < len(pickle.dumps(clf.net_)) + 1000


@pytest.mark.parametrize("strategy", USERS)
@pytest.mark.parametrize("loss", ["ce", "gce"])
def test_where_all_rows_have_labels_nothing_changes(iris, strategy, loss):
    """Rows without label and without weight are no rows, and no draws are spent on them."""
    X, y = iris
    params = SMALL | {"loss": loss, "preprocess": None, "batch_size": 50}
    plain = RobustClassifier(strategy=strategy, **params).fit(X, y)
    weight = np.append(np.ones(150), np.zeros(30))
    more = np.append(y, np.full(30, -1))
    clf = RobustClassifier(strategy=strategy, **params)
    clf.fit(np.append(X, X[:30], 0), more, sample_weight=weight)
    assert_close(clf.predict_proba(X), plain.predict_proba(X), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def digits():
    """Return how well a classifier of digits does that learns from one label in ten."""
    X, y = load_digits(return_X_y=True)
    X, test, y, truth = train_test_split(X, y, train_size=600, stratify=y, random_state=0)
    known = np.zeros(600, bool)
    for label in range(10):
        known[np.flatnonzero(y == label)[:6]] = True
    params = {"loss": "gce", "hidden": (64,), "batch_size": 100, "lr": 0.01, "random_state": 0}

    def score(**given):
        clf = RobustClassifier(**params | given).fit(X, np.where(known, y, -1))
        return clf.score(test, truth)

    plain = score(loss="ce", strategy=UsesNone(), max_epochs=50)
    return score, plain, score(loss="ce", strategy=[UsesNone(), Mixup(lam_u=0)], max_epochs=50)


@pytest.mark.parametrize("strategy", USERS)
def test_rows_without_label_help(digits, strategy):
    score, plain, mixed = digits
    without = mixed if "mixup" in strategy else plain
    assert score(loss="ce", strategy=strategy, max_epochs=50) > without
    assert score(loss="gce", strategy=strategy, max_epochs=15) > 0.6


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"threshold": 1.1}, r"threshold must lie in \[0, 1\], got 1.1"),
        ({"lam": -1}, r"lam must lie in \[0, inf\), got -1"),
        ({"form": "shrunk"}, "did you mean 'shrink'"),
    ],
)
def test_parameters_out_of_range_are_refused(iris, params, message):
    with pytest.raises(ValueError, match=message):
        RobustClassifier(loss="gce", strategy=PseudoLabel(**params)).fit(*iris)
    with pytest.raises(ValueError, match=r"lam_u must lie in \[0, inf\), got -1"):
        RobustClassifier(loss="gce", strategy="mixup", strategy__lam_u=-1).fit(*iris)
