"""Corrections by the matrix of the noise, and labels that are propagated between near rows."""

import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.datasets import load_digits, make_blobs
from torch.nn.functional import one_hot
from torch.testing import assert_close

from robustclf import RobustClassifier, list_losses, make_loss, make_strategy
from robustclf._net import Criterion
from robustclf.losses import BackwardCorrected, ForwardCorrected
from robustclf.strategies import Batch, Mixup, NeighbourDenoise, Transition
from robustclf.strategies.neighbours import neighbour_graph, propagate
from robustclf.strategies.transition import out_of_fold

N, K, M = 12, 3, 2
T3 = np.array([[0.7, 0.2, 0.1], [0.0, 0.6, 0.4], [0.1, 0.0, 0.9]])
FAST = {"hidden": (16,), "max_epochs": 20, "batch_size": 25, "lr": 0.03, "random_state": 0}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch():
    weight = torch.rand(M, N, dtype=torch.float64)
    weight[0, 3] = weight[1, 5] = 0.0
    x = torch.randn(N, 4, dtype=torch.float64)
    return Batch(x, torch.randint(K, (N,)), weight, torch.arange(N))


@pytest.fixture
def logits():
    return (3 * torch.randn(M, N, K, dtype=torch.float64)).requires_grad_()


def stub(predict=None, **values):
    """Net whose logits for the encoded rows are those that ``predict`` gives."""
    given = {"n_codes": 0, "n_classes": K, "n_stacked": M, "epoch": 0, "max_epochs": 10}
    given |= {"warming": False, "criterion_": Criterion(make_loss("ce"), K, M)}
    given["logits"] = lambda x, oof: iter([predict(x[:5]), predict(x[5:])])
    return SimpleNamespace(**given | values)


def rows_of(batch, **values):
    n = len(batch.target)
    given = {"x": batch.x, "y": batch.target, "weight": batch.weight, "rows": torch.arange(n)}
    return SimpleNamespace(**given | {"trusted": None} | values)


def begin(strategy, net, X):
    strategy.on_train_begin(net, X)
    return strategy


def built(loss):
    torch.manual_seed(0)  # of learned parts
    return loss.build(K, M)


def value_and_gradient(loss, logits):
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


# Transition: the corrections --------------------------------------------------------------------

LOSSES = [a for a in list_losses() if not make_loss(a).stochastic and "corrected" not in a]


@pytest.mark.parametrize("alias", LOSSES)
def test_transition_is_the_corrected_loss(batch, logits, alias):
    inner, y, net = make_loss(alias), batch.target, stub()
    forward = begin(Transition(T3), net, rows_of(batch))
    ours = built(inner)(forward.observe(net, batch, logits), y)
    theirs = built(ForwardCorrected(inner, T3))(logits, y)
    assert forward.relabel(net, batch, logits) is y
    backward = begin(Transition(T3, "backward"), net, rows_of(batch))
    assert backward.observe(net, batch, logits) is logits
    again = built(inner)(logits, backward.relabel(net, batch, logits))
    unbiased = built(BackwardCorrected(inner, T3))(logits, y)
    for a, b in [(ours, theirs), (again, unbiased)]:
        assert_close(value_and_gradient(a, logits), value_and_gradient(b, logits))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_mean_of_backward_targets_over_noisy_labels_is_the_clean_target(batch, mixed):
    strategy = begin(Transition(T3, "backward"), stub(), rows_of(batch))
    batch.weight, mean = torch.ones_like(batch.weight), 0
    for noisy in range(K):
        b = Batch(batch.x, torch.full((N,), noisy), batch.weight, batch.index)
        b = Mixup().on_batch(stub(), b) if mixed else b
        mean = mean + T3[1, noisy] * strategy.relabel(stub(), b, batch.x[:, :K])
    assert_close(mean, torch.eye(K)[1].double().expand_as(mean))


def test_forward_correction_is_finite_at_extremes_and_with_zeros(batch):
    z = torch.randn(M, N, K).mul(1e4).requires_grad_()
    strategy = begin(Transition(np.eye(K)[[1, 2, 0]]), stub(), rows_of(batch))
    value, gradient = value_and_gradient(strategy.observe(stub(), batch, z), z)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_a_fit_with_a_given_matrix_is_a_fit_with_the_corrected_loss(iris):
    params = FAST | {"warm_up": 0.0, "max_epochs": 4, "precision": "float64"}
    a = RobustClassifier(loss="gce", strategy=Transition(T3), **params).fit(*iris)
    b = RobustClassifier(loss=ForwardCorrected("gce", T3), **params).fit(*iris)
    np.testing.assert_allclose(a.predict_proba(iris[0]), b.predict_proba(iris[0]))
    assert a.net_.n_stacked == 1
    np.testing.assert_array_equal(a.net_.strategies[0].transition_, T3)


# Transition: the estimates ----------------------------------------------------------------------


def test_out_of_fold_predictions_are_of_members_that_did_not_train_on_the_row(batch):
    seen = 5 * torch.randn(M, N, K, dtype=torch.float64)
    weight = torch.ones(M, N, dtype=torch.float64)
    weight[0, :4] = weight[1, 4:8] = 0
    net = stub(predict=lambda x: seen[:, :5] if len(x) == 5 else seen[:, 5:])
    p, q = out_of_fold(net, rows_of(batch, weight=weight)), seen.softmax(-1)
    assert_close(p, torch.cat([q[0, :4], q[1, 4:8], q.mean(0)[8:]]))


def test_estimate_is_that_of_the_mean_prediction_before_start(batch, logits):
    n = 60
    true = torch.arange(n) % K
    given = torch.where(torch.arange(n) < 30, true, (true + 1) % K)
    X = rows_of(SimpleNamespace(x=one_hot(true, K).double(), target=given, weight=None))
    X.weight = torch.ones(M, n, dtype=torch.float64)
    net = stub()
    net.logits = lambda x, oof: iter([scale[net.epoch] * x.expand(M, -1, K)])
    scale = [-9.0, 9.0, -1.0, -1.0, -1.0]  # the first does not count, the second outweighs others
    strategy = begin(Transition(start=0.4), net, X)
    for net.epoch in range(4):
        strategy.on_epoch_begin(net)
        assert strategy.observe(net, batch, logits) is logits
    net.epoch = 4
    strategy.on_epoch_begin(net)
    expected = 0.5 * np.eye(K) + 0.5 * np.eye(K)[[1, 2, 0]]
    np.testing.assert_allclose(strategy.transition_, expected)
    observed = strategy.observe(net, batch, logits)
    assert_close(observed.exp(), logits.softmax(-1) @ torch.tensor(expected))
    X.weight[:, 30:] = 0  # no labels there
    scale[4] = 1.0
    strategy = begin(Transition(), net, X)
    strategy.on_epoch_begin(net)
    np.testing.assert_array_equal(strategy.transition_, np.eye(K))


def test_no_estimate_makes_another_label_the_most_frequent_or_cannot_be_inverted(batch):
    true = torch.arange(300) % K
    X = SimpleNamespace(
        x=one_hot(true, K).double(),
        y=torch.where((true == 0) & (torch.arange(300) % 15 > 0), 1, true),  # 80 % of class 0
        weight=torch.ones(1, 300, dtype=torch.float64),
        rows=torch.arange(300),
        trusted=None,
    )
    net = stub(predict=lambda x: 9 * x.expand(M, -1, K), epoch=9)
    for correction in ("forward", "backward"):
        strategy = begin(Transition(correction=correction), net, X)
        with pytest.warns(UserWarning, match=r"labels of classes \[0\] seem to be mostly wrong"):
            strategy.on_epoch_begin(net)
        half = [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
        np.testing.assert_allclose(strategy.transition_, half, atol=1e-12)


def test_transition_estimates_during_a_fit(iris):
    X, y = make_blobs(900, centers=9 * np.eye(3), random_state=0)
    noisy = np.array([np.random.default_rng(i).choice(3, p=T3[c]) for i, c in enumerate(y)])
    params = FAST | {"lr": 0.01, "max_epochs": 12}
    for loss in ("ce", "gce"):
        clf = RobustClassifier(loss=loss, strategy="transition", **params).fit(X, noisy)
        strategy = clf.net_.strategies[0]
        assert np.abs(strategy.transition_ - T3).max() < 0.08
        assert clf.score(X, y) > 0.97
        assert clf.oof_proba_.shape == (900, 3)
        assert [name for name in vars(strategy) if name.endswith("_")] == ["transition_"]


def test_the_matrix_of_the_prediction_is_that_of_the_clean_class(iris):
    """On rows that say nothing but the class, the prediction is sure where labels are not."""
    X = np.eye(3)[np.arange(600) % 3]
    noisy = np.array([np.random.default_rng(i).choice(3, p=T3[i % 3]) for i in range(600)])
    fast = FAST | {"batch_size": 100}
    plain = RobustClassifier(loss="ce", **fast).fit(X, noisy).predict_proba(np.eye(3))
    forward = RobustClassifier(loss="ce", strategy=Transition(T3), **fast).fit(X, noisy)
    np.testing.assert_allclose(plain, T3, atol=0.07)
    np.testing.assert_allclose(forward.predict_proba(np.eye(3)), np.eye(3), atol=0.05)


# Transition: trusted rows -----------------------------------------------------------------------


def test_trusted_rows_wait_and_then_train_with_the_plain_loss(batch, logits):
    trusted = torch.arange(N) % 3 == 0
    batch.target = torch.arange(N) % K
    batch.target[trusted] = torch.tensor([0, 1, 1, 0])
    X = rows_of(batch, trusted=trusted)
    X.weight[:] = 1
    net = stub(predict=lambda x: logits.detach()[:, trusted], epoch=0)
    net.logits = lambda x, oof: iter([logits.detach()[:, trusted]])
    strategy = begin(Transition("trusted"), net, X)
    assert_close(strategy.on_batch(net, batch).weight, X.weight * ~trusted)
    net.epoch = 3
    with pytest.warns(UserWarning, match=r"classes \[2\] are without trusted row"):
        strategy.on_epoch_begin(net)
    p = logits.detach().softmax(-1).mean(0)
    C = torch.stack([p[[0, 9]].mean(0), p[[3, 6]].mean(0), torch.tensor([0.0, 0, 1])])
    assert_close(torch.tensor(strategy.transition_), C)
    assert strategy.on_batch(net, batch) is batch
    log_q = strategy.observe(net, batch, logits)
    q = logits.softmax(-1)
    assert_close(log_q.exp(), torch.where(trusted[:, None], q, q @ C))
    assert torch.autograd.grad(log_q.sum(), logits)[0].isfinite().all()
    mixed = Mixup().on_batch(net, batch)
    share = mixed.mixing(trusted.double()[:, None])
    observed = strategy.observe(net, mixed, logits)
    assert_close(observed.exp(), share * q + (1 - share) * (q @ C))


def test_trusted_rows_and_backward_correction(batch, logits):
    trusted = torch.arange(N) < 6
    net = stub()
    net.logits = lambda x, oof: iter([torch.tensor(T3).log()[batch.target[:6]].expand(M, 6, K)])
    batch.target[:3] = torch.arange(3)
    batch.weight[:] = 1
    strategy = begin(Transition("trusted", "backward"), net, rows_of(batch, trusted=trusted))
    net.epoch = 5
    strategy.on_epoch_begin(net)
    target = strategy.relabel(net, batch, logits)
    given = one_hot(batch.target, K).double()
    assert_close(target[:6], given[:6])
    assert_close(target[6:], given[6:] @ torch.tensor(T3).inverse())


@pytest.mark.filterwarnings("ignore:strategy 'transition'")
@pytest.mark.parametrize("correction", ["forward", "backward"])
def test_transition_learns_from_trusted_rows(correction):
    """More than half of the labels of each class are wrong, and the same."""
    X, y = make_blobs(600, centers=6 * np.eye(3), random_state=0)
    wrong = np.random.default_rng(0).random(600) < 0.65
    wrong[::20] = False
    strategy = Transition("trusted", correction)
    noisy = np.where(wrong, (y + 1) % 3, y)
    clf = RobustClassifier(loss="gce", strategy=strategy, **FAST | {"max_epochs": 10})
    assert clf.fit(X, noisy, trusted=np.arange(0, 600, 20)).score(X, y) > 0.95
    assert (noisy == y).mean() < 0.45


@pytest.mark.filterwarnings("ignore:strategy 'transition'")
def test_transition_without_folds_and_with_everything_trusted(iris):
    clf = RobustClassifier(loss="ce", strategy="transition", hidden=(4,))
    for _ in range(3):
        clf.partial_fit(*iris)
    everything = RobustClassifier(loss="ce", strategy=Transition("trusted"), **FAST)
    assert everything.fit(*iris, trusted=np.arange(150)).score(*iris) > 0.9
    with pytest.raises(ValueError, match="needs trusted: fit"):
        everything.fit(*iris)
    with pytest.raises(ValueError, match="needs trusted rows: none is trained on"):
        everything.fit(*iris, trusted=np.zeros(150, dtype=bool))
    with pytest.raises(ValueError, match=r"trusted names 149 of 150 rows twice: .* as booleans"):
        everything.fit(*iris, trusted=np.ones(150, dtype=int))


@pytest.mark.parametrize("start", [0.3, 0.99])
def test_transition_is_estimated_however_late_it_starts(iris, start):
    strategy = Transition(start=start)
    clf = RobustClassifier(loss="ce", strategy=strategy, **FAST | {"max_epochs": 2}).fit(*iris)
    assert not np.array_equal(clf.net_.strategies[0].transition_, np.eye(3))


# Neighbours -------------------------------------------------------------------------------------


def clusters(n=300, wrong=0.4):
    X, y = make_blobs(n, centers=20 * np.eye(3), random_state=0)
    flipped = np.random.default_rng(0).random(n) < wrong
    return X, y, np.where(flipped, (y + 1) % 3, y)


def training_set(X, y, weight=None):
    x, y = torch.tensor(X), torch.tensor(y)
    weight = torch.ones(1, len(y), dtype=torch.float64) if weight is None else weight
    return SimpleNamespace(x=x, y=y, weight=weight, rows=torch.arange(len(y)))


def targets(strategy, X, y, weight=None, **net):
    net = stub(**net)
    data = training_set(X, y, weight)
    begin(strategy, net, data)
    index = torch.arange(len(y))
    return strategy.relabel(net, Batch(data.x, data.y, data.weight, index), None)


def test_propagation_recovers_the_labels_of_separate_clusters():
    X, y, noisy = clusters()
    assert (noisy != y).mean() > 0.3
    t = targets(NeighbourDenoise(alpha=0.99, n_steps=300), X, noisy)
    assert torch.equal(t, one_hot(torch.tensor(y), 3).double()[None])
    graph = neighbour_graph(X, 10)
    assert graph[y[:, None] != y].sum() == 0
    assert abs(graph - graph.T).max() < 1e-12


def test_many_steps_are_the_closed_form():
    X, _, noisy = clusters(60)
    S, Y = neighbour_graph(X, 5), np.eye(3)[noisy]
    expected = 0.2 * np.linalg.solve(np.eye(60) - 0.8 * S.toarray(), Y)
    np.testing.assert_allclose(propagate(S, Y, 0.8, 300), expected, atol=1e-12)
    one = 0.8 * S.toarray() @ Y + 0.2 * Y
    np.testing.assert_allclose(propagate(S, Y, 0.8, 1), one)
    soft = targets(NeighbourDenoise(alpha=0.8, n_neighbors=5, n_steps=300, form="soft"), X, noisy)
    assert_close(soft[0], torch.tensor(expected / expected.sum(1, keepdims=True)))


def test_without_propagation_the_labels_stay():
    X, _, noisy = clusters(60)
    t = targets(NeighbourDenoise(alpha=0.0, beta=1.0, form="soft"), X, noisy)
    assert_close(t, one_hot(torch.tensor(noisy), 3).double()[None])


def test_labels_of_rows_without_weight_do_not_leak_and_members_are_alone():
    X, _, noisy = clusters(60)
    weight = torch.rand(3, 60, dtype=torch.float64) + 0.5
    weight[0, :20] = weight[1, 20:40] = 0
    t = targets(NeighbourDenoise(form="soft"), X, noisy, weight)
    other = noisy.copy()
    other[:20] = (other[:20] + 1) % 3
    moved = targets(NeighbourDenoise(form="soft"), X, other, weight)
    assert_close(moved[0, 20:], t[0, 20:], rtol=0, atol=0)
    assert not torch.equal(moved[1, 20:], t[1, 20:])
    for m in range(3):
        alone = targets(NeighbourDenoise(form="soft"), X, noisy, weight[m : m + 1])
        assert_close(alone[0], t[m])
    scaled = targets(NeighbourDenoise(form="soft"), X, noisy, 3 * weight)
    assert_close(scaled, t)


def test_categories_are_equal_or_not():
    """Only that a code differs counts, not by how much."""
    x = np.column_stack([np.zeros(40), np.arange(40) % 4 * 1.0, np.arange(40) % 2 * 7.0])
    graph = neighbour_graph(x, 9, n_codes=2).toarray()
    same = (np.arange(40) % 4)[:, None] == np.arange(40) % 4
    np.testing.assert_array_equal(graph > 0, same & ~np.eye(40, dtype=bool))
    renamed = np.column_stack([x[:, 0], np.array([3, 0, 2, 1.0])[np.arange(40) % 4], x[:, 2]])
    assert abs(neighbour_graph(renamed, 9, n_codes=2) - graph).max() < 1e-12


def test_predictions_are_propagated_and_mixed_with_the_labels():
    X, _, noisy = clusters(60)
    logits = torch.randn(M, 60, 3, dtype=torch.float64)
    net = stub(epoch=4)
    net.logits = lambda x, oof: iter([logits[:, :40], logits[:, 40:]])
    data = training_set(X, noisy)
    strategy = begin(NeighbourDenoise(beta=0.7, every=4, form="soft"), net, data)
    batch = Batch(data.x, data.y, data.weight, torch.arange(60))
    before = strategy.relabel(net, batch, None)
    strategy.on_epoch_begin(net)
    graph = neighbour_graph(X, 5)
    for m in range(M):
        spread = propagate(graph, logits[m].softmax(-1).numpy(), 0.9, 5)
        spread = torch.tensor(spread / spread.sum(1, keepdims=True))
        expected = 0.7 * before[0] + 0.3 * spread
        assert_close(strategy.relabel(net, batch, None)[m], expected)
    strategy.on_epoch_begin(stub(epoch=5))  # not yet again: this net has no logits


def test_propagated_targets_are_mixed_with_the_weights_of_their_rows():
    X, _, noisy = clusters(60)
    weight = torch.rand(M, 60, dtype=torch.float64)
    weight[0, :9] = 0
    data, net = training_set(X, noisy, weight), stub()
    strategy = begin(NeighbourDenoise(form="soft"), net, data)
    batch = Batch(data.x, data.y, weight, torch.arange(60))
    t = strategy.relabel(net, batch, None)
    mixed = Mixup().on_batch(net, batch)
    target = strategy.relabel(net, mixed, None)
    expected = mixed.mixing(weight[..., None] * t)
    assert_close(mixed.weight[..., None] * target, expected)


@pytest.fixture(scope="module")
def noisy_rows():
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(1797)[:900]
    X, y = X[order], y[order]
    flipped = rng.random(600) < 0.4
    noisy = np.where(flipped, (y[:600] + rng.integers(1, 10, 600)) % 10, y[:600])
    return X[:600], noisy, X[600:], y[600:]


def test_neighbours_help_by_a_wide_margin(noisy_rows):
    X, noisy, X_test, y_test = noisy_rows
    params = {"hidden": (64,), "max_epochs": 20, "random_state": 0}
    for loss, margin in [("ce", 0.05), ("gce", 0.02)]:
        plain = RobustClassifier(loss=loss, **params).fit(X, noisy).score(X_test, y_test)
        clf = RobustClassifier(loss=loss, strategy="neighbour_denoise", **params).fit(X, noisy)
        assert clf.score(X_test, y_test) > plain + margin
    assert not [name for name in vars(clf.net_.strategies[0]) if name.endswith("_")]
    plain = RobustClassifier(loss=loss, **params).fit(X, noisy)
    assert len(pickle.dumps(clf)) < len(pickle.dumps(plain)) + 5e3


@pytest.mark.parametrize("alias", ["transition", "neighbour_denoise"])
@pytest.mark.parametrize("sparse", [False, True])
def test_structure_fits_with_everything_else(alias, sparse):
    X, y = make_blobs(150, centers=9 * np.eye(3), random_state=0)
    X = csr_array(X) if sparse else X
    params = FAST | {"optimizer": "sam", "cross_fit": 3, "max_epochs": 10, "lr": 0.01}
    clf = RobustClassifier(loss="ce", strategy=[alias, "mixup"], **params).fit(X, y)
    assert clf.score(X, y) > 0.95
    assert clf.oof_proba_[np.arange(150), y].mean() > 0.6


REFUSED = {
    "did you mean 'estimate'": Transition("estimat"),
    "transition must have rows that sum to one": Transition(np.ones((3, 3))),
    "transition must have shape (3, 3)": Transition(np.eye(2)),
    "transition must be a matrix": Transition(None),
    "transition must be invertible": Transition(np.full((3, 3), 1 / 3), "backward"),
    "unknown correction of strategy 'transition' 'up'": Transition(correction="up"),
    "unknown method of strategy 'transition' 'x'": Transition(method="x"),
    "start must lie in (0, 1), got 0": Transition(start=0),
    "rate must be a share in [0, 1), 'estimate' or None, got 1": Transition(rate=1),
    "alpha must lie in [0, 1), got 1": NeighbourDenoise(alpha=1),
    "beta must lie in [0, 1], got 2": NeighbourDenoise(beta=2),
    "n_neighbors must be a whole number": NeighbourDenoise(n_neighbors=1.5),
    "n_steps must lie in [1, inf), got 0": NeighbourDenoise(n_steps=0),
    "every must lie in [1, inf), got 0": NeighbourDenoise(every=0),
    "did you mean 'soft'": NeighbourDenoise(form="sotf"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parameters_out_of_range_are_refused(iris, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RobustClassifier(loss="gce", strategy=REFUSED[message]).fit(*iris)


def test_needs():
    assert make_strategy("transition").needs == ("folds",)
    assert Transition("trusted").needs == ("trusted",)
    assert Transition(T3).needs == ()
