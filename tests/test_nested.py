"""Nested dropout: the order of the features, and how many of them are kept."""

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch.testing import assert_close

import robustclf.modules._nested as nested
from robustclf import RobustClassifier
from robustclf.losses import make_loss
from robustclf.losses._base import LOSSES
from robustclf.modules import MLP, NestedMLP, NestedResNet, TabularInput, make_network

MODULES = {"nested_mlp": "mlp", "nested_resnet": "resnet"}
both = pytest.mark.parametrize("module", ["nested_mlp", "nested_resnet"])


def build(module, n_members=2, hidden=(6, 5), dropout=0.0, **params):
    inputs = TabularInput(n_members, 3, 3, ())
    network = make_network(
        module,
        inputs,
        n_members,
        4,
        hidden=hidden,
        activation="relu",
        dropout=dropout,
        seeds=range(n_members),
        **params,
    )
    with torch.no_grad():
        network.body.head.bias.normal_(generator=torch.Generator().manual_seed(9))
    return network


def rows(n=7, k=3, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def small(**params):
    defaults = {"hidden": (16,), "max_epochs": 8, "lr": 0.02, "dropout": 0.0, "random_state": 0}
    return RobustClassifier(**{"module": "nested_mlp", "loss": "ce"} | defaults | params)


def published(width, sigma):
    p = [math.exp(-((i / sigma) ** 2)) for i in range(1, width + 1)]
    return np.array(p) / sum(p)


def drawn(body, n):
    """Number of features that each of ``n`` batches keeps."""
    ones = torch.ones(1, 1, body.head.weight.shape[1])
    torch.manual_seed(0)
    kept = torch.stack([body.drop(ones)[0, 0] for _ in range(n)])
    assert (kept.diff(dim=1) <= 0).all(), "the features kept are the first"
    return kept.sum(1).long().numpy()


@pytest.fixture(autouse=True)
def generator():
    with torch.random.fork_rng([]):
        yield


# Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 3.0, 40.0])
def test_the_number_of_features_is_drawn_from_the_published_distribution(sigma):
    body = NestedMLP(1, 3, 4, hidden=(12,), sigma=sigma)
    p = published(12, sigma)
    survival = [p[i:].sum() for i in range(12)]
    assert_close(body.survival, torch.tensor(survival, dtype=torch.float32), rtol=1e-5, atol=1e-7)
    share = np.bincount(drawn(body, 4000), minlength=13)[1:] / 4000
    assert np.abs(share - p).max() < 4 * np.sqrt(p * (1 - p) / 4000).max() + 1e-9


def test_a_tiny_sigma_keeps_one_feature_and_a_huge_one_draws_uniformly():
    assert set(drawn(NestedMLP(1, 3, 4, hidden=(5,), sigma=1e-9), 50)) == {1}
    body = NestedMLP(1, 3, 4, hidden=(5,), sigma=1e9)
    assert_close(body.survival, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]))


def test_sigma_is_a_fifth_of_the_width_by_default():
    given = NestedMLP(1, 3, 4, hidden=(9, 50), sigma=10)
    assert_close(NestedMLP(1, 3, 4, hidden=(9, 50)).survival, given.survival)


@both
def test_all_rows_and_members_keep_the_same_features(module):
    network, x = build(module, hidden=(40, 40), sigma=20).train(), rows(9)
    torch.manual_seed(1)
    features, logits = network.with_features(x)
    kept = int((features != 0).flatten(0, 1).any(0).nonzero().max()) + 1
    assert 1 < kept < 40
    full = network.eval().embed(x)
    assert_close(features[..., :kept], full[..., :kept])
    head = network.body.head
    assert_close(logits, features @ head.weight + head.bias)


@both
def test_with_all_features_it_is_the_network_it_is_built_on(module, monkeypatch):
    network, plain, x = build(module), build(MODULES[module]), rows()
    assert_close(network.eval()(x), plain(x), rtol=0, atol=0)
    monkeypatch.setattr(torch, "rand", lambda *size: torch.zeros(*size))
    assert_close(network.train()(x), plain(x), rtol=0, atol=0)


def test_dropout_is_left_to_the_layers_in_front(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size: torch.zeros(*size))
    for hidden, same in [((40,), True), ((40, 40), False)]:
        network, x = build("nested_mlp", hidden=hidden, dropout=0.5), rows()
        trained = network.train()(x)
        assert torch.equal(trained, network.eval()(x)) == same


@both
def test_features_behind_get_no_gradient(module, monkeypatch):
    network, x = build(module, hidden=(8, 8), sigma=4).train(), rows()
    monkeypatch.setattr(torch, "rand", lambda *size: network.body.survival[3] - 1e-6)
    network(x).square().sum().backward()
    gradient = network.body.head.weight.grad
    assert (gradient[:, 4:] == 0).all()
    assert gradient[:, :4].abs().amax(-1).max() > 0


@both
def test_a_member_is_what_it_would_be_alone(train, rows, module):
    x, y, w = rows
    options = {"module": module, "weight": w, "batch_size": 8, "epochs": 5, "lr": 0.05}
    stack = list(train(x, y, seeds=(1, 2, 3), **options).module_.parameters())
    for m in range(3):
        alone = train(x, y, seeds=(m + 1,), **options).module_.parameters()
        for many, one in zip(stack, alone, strict=True):
            assert_close(many[m : m + 1], one, rtol=0, atol=1e-6)


def test_what_matters_comes_first():
    """A few features of a nested network tell what a few of a plain one do not."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 600)
    X = rng.normal(size=(4, 8))[y] * 1.5 + rng.normal(size=(600, 8))
    score = {}
    for module in ("mlp", "nested_mlp"):
        params = {"module__sigma": 16} if module == "nested_mlp" else {}
        clf = small(module=module, hidden=(64,), max_epochs=20, batch_size=50, **params)
        body = clf.fit(X[:400], y[:400]).net_.module_.body
        with torch.no_grad():
            body.head.weight[:, 6:] = 0
        score[module] = clf.score(X[400:], y[400:])
    assert score["nested_mlp"] > 0.9
    assert score["nested_mlp"] > score["mlp"] + 0.15


# Evaluation -----------------------------------------------------------------------------------


@both
def test_evaluation_reads_the_first_features_of_each_member(module):
    network, x = build(module, hidden=(8, 8)).eval(), rows()
    full, head = network.embed(x), network.body.head
    network.body.n_kept = torch.tensor([3, 7])
    features, logits = network.with_features(x)
    for m, k in enumerate([3, 7]):
        expected = full[m, :, :k] @ head.weight[m, :k] + head.bias[m]
        assert_close(logits[m], expected)
        assert_close(features[m, :, :k], full[m, :, :k])
        assert (features[m, :, k:] == 0).all()


def best_by_hand(network, x, y, weight):
    """Try every number of features with networks whose head is cut."""
    accuracy = []
    for k in range(1, network.body.head.weight.shape[1] + 1):
        network.body.n_kept.fill_(k)
        right = network(x).argmax(-1) == y
        accuracy.append((right * weight).sum(-1) / weight.sum())
    accuracy = torch.stack(accuracy, 1)
    first = [min((row == row.max()).nonzero().flatten().tolist()) + 1 for row in accuracy]
    return torch.tensor(first), accuracy


@both
@pytest.mark.parametrize("block", [1, 500, 10**6])
def test_the_choice_is_the_best_of_all_numbers(module, block, monkeypatch):
    monkeypatch.setattr(nested, "BLOCK", block)
    network, x = build(module, 3, hidden=(12, 12)).double().eval(), rows(40).double()
    y = torch.randint(4, (40,), generator=torch.Generator().manual_seed(1))
    weight = torch.randint(4, (40,), generator=torch.Generator().manual_seed(2)).double()
    expected, accuracy = best_by_hand(network, x, y, weight)
    assert len(set(expected.tolist())) > 1
    network.body.keep_all()
    network.body.keep_best(network.embed(x).split(17, dim=1), y, weight)
    assert network.body.n_kept.tolist() == expected.tolist()
    unweighted = best_by_hand(network, x, y, torch.ones(40))[1]
    assert (unweighted - accuracy).abs().max() > 0.01


def test_equally_good_numbers_of_features_give_the_smallest():
    network, x = build("nested_mlp"), rows()
    with torch.no_grad():
        network.body.head.weight.zero_()
    network.body.keep_best([network.eval().embed(x)], torch.zeros(7).long(), torch.ones(7))
    assert network.body.n_kept.tolist() == [1, 1]


@pytest.mark.parametrize(
    "alias", [a for a in LOSSES.names() if a not in {"backward_corrected", "forward_corrected"}]
)
def test_the_largest_logit_is_the_most_probable_class(alias):
    """Why the choice needs no probabilities; a learned link may differ."""
    params = {"prior": (0.4, 0.3, 0.2, 0.1)} if alias == "logit_adjusted" else {}
    logits = 3 * torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0))
    loss = make_loss(alias, **params).build(4, 2)
    same = loss.inverse_link(logits).argmax(-1) == logits.argmax(-1)
    assert same.float().mean() == 1 or alias == "legendretron"


# In a fit -------------------------------------------------------------------------------------


class Record(Callback):
    """Keep how many features are kept after each epoch, and on how many rows it trained."""

    def initialize(self):
        self.kept = []
        return self

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.kept.append(net.module_.body.n_kept.tolist())
        self.n_rows = len(dataset_train), dataset_valid and len(dataset_valid)


@both
@pytest.mark.parametrize("n_members", [1, 2])
def test_a_fit_chooses_on_the_rows_given(iris, module, n_members):
    X, y = iris
    given = {"X_val": X[1::3], "y_val": y[1::3]}
    clf = small(module=module, n_members=n_members, callbacks=[Record()]).fit(X, y, **given)
    body, chosen = clf.net_.module_.body, clf.net_.module_.body.n_kept.tolist()
    assert dict(clf.net_.callbacks_)["Record"].n_rows == (150, 50)
    assert clf.history_[-1, "valid_acc"] == pytest.approx(clf.score(X[1::3], y[1::3]))
    x = torch.from_numpy(clf.encoder_.transform(X[1::3])).to(body.head.weight)
    expected, _ = best_by_hand(clf.net_.module_, x, torch.from_numpy(y[1::3]), torch.ones(50))
    assert chosen == expected.tolist()


@pytest.mark.parametrize(("params", "held"), [({}, 15), ({"validation_fraction": 0.2}, 30)])
def test_a_part_is_held_out(iris, params, held):
    clf = small(callbacks=[Record()], **params).fit(*iris)
    record = dict(clf.net_.callbacks_)["Record"]
    assert record.n_rows == (150 - held, held)
    assert "valid_acc" in clf.history_[-1]
    assert record.kept[-1] == clf.net_.module_.body.n_kept.tolist()


def test_other_modules_train_on_all_rows(iris):
    for module in ("mlp", "resnet", torch.nn.Linear):
        assert "valid_acc" not in small(module=module).fit(*iris).history_[-1]


def test_early_stopping_goes_back_to_the_number_of_the_best_epoch(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(early_stopping=True, max_epochs=15, lr=0.1, callbacks=[Record()]).fit(X, y)
    best = int(np.argmax(clf.history_[:, "valid_acc"]))
    kept = dict(clf.net_.callbacks_)["Record"].kept
    assert clf.net_.module_.body.n_kept.tolist() == kept[best]
    assert kept[best] != kept[-1]


def test_out_of_fold_members_choose_too_and_are_dropped(iris):
    X, y = iris
    params = {"hidden": (32,), "n_members": 2, "max_epochs": 20, "batch_size": 20}
    clf = small(cross_fit=3, callbacks=[Record()], **params).fit(X, y)
    assert len(dict(clf.net_.callbacks_)["Record"].kept[-1]) == 2 + 3
    assert clf.net_.module_.body.n_kept.shape == (2,)
    assert (clf.oof_proba_.argmax(1) == y).mean() > 0.85
    plain = small(**params).fit(X, y)
    np.testing.assert_allclose(plain.predict_proba(X), clf.predict_proba(X), atol=1e-5)


def test_partial_fit_keeps_all_until_a_fit_has_chosen(iris):
    clf = small()
    for _ in range(3):
        clf.partial_fit(*iris)
    assert clf.net_.module_.body.n_kept.tolist() == [16]
    assert "valid_acc" not in clf.history_[-1]
    chosen = clf.fit(*iris).net_.module_.body.n_kept.tolist()
    assert clf.partial_fit(*iris).net_.module_.body.n_kept.tolist() == chosen != [16]


def test_the_choice_is_part_of_the_state_and_of_a_pickle(iris):
    clf = small(max_epochs=20).fit(*iris)
    network = clf.net_.module_
    assert network.state_dict()["body.n_kept"].tolist() == network.body.n_kept.tolist() != [16]
    assert "body.survival" not in network.state_dict()
    again = pickle.loads(pickle.dumps(clf))
    assert again.net_.module_.body.n_kept.tolist() == network.body.n_kept.tolist()
    np.testing.assert_array_equal(again.predict_proba(iris[0]), clf.predict_proba(iris[0]))
    k = int(network.body.n_kept)
    features = clf.embed(iris[0])
    assert features.shape == (150, 16)
    assert (features[:, k:] == 0).all()
    repeated = clone(clf).fit(*iris).predict_proba(iris[0])
    np.testing.assert_array_equal(repeated, clf.predict_proba(iris[0]))


def test_keep_members_keeps_their_numbers():
    network = build("nested_resnet", 3)
    network.body.n_kept = torch.tensor([1, 2, 3])
    network.keep_members(2)
    assert network.body.n_kept.tolist() == [1, 2]
    assert network.eval()(rows()).shape == (2, 7, 4)


def test_search_over_sigma(iris):
    search = GridSearchCV(small(), {"module__sigma": [1.0, 8.0]}, cv=2).fit(*iris)
    fitted = search.best_estimator_.net_.module_.body.survival
    width, sigma = len(fitted), search.best_params_["module__sigma"]
    assert fitted[1] == pytest.approx(1 - published(width, sigma)[0], abs=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"module__sigma": 0}, r"sigma must lie in \(0, inf\), got 0"),
        ({"module__sigma": -1.0}, r"sigma must lie in \(0, inf\), got -1.0"),
        ({"module__sigma": "wide"}, r"sigma must lie in \(0, inf\), got 'wide'"),
        ({"module__sgma": 3}, "unknown parameter of module 'nested_mlp' 'sgma'.*'sigma'"),
        ({"hidden": ()}, "nested dropout needs at least one entry in hidden, got none"),
    ],
)
def test_what_cannot_work_is_refused(iris, params, message):
    with pytest.raises(ValueError, match=message):
        small(**params).fit(*iris)


def test_classes():
    assert isinstance(build("nested_mlp").body, MLP)
    assert isinstance(build("nested_resnet").body, NestedResNet)


def test_the_last_features_remember_wrong_labels(noisy_digits):
    """A plain network repeats all of them, few features of a nested one hardly any."""
    X, y, wrong = (part[:500] for part in noisy_digits)
    params = {"hidden": (128,), "max_epochs": 60}

    def remembered(clf):
        return (clf.predict(X) == y)[wrong].mean()

    assert remembered(small(module="mlp", **params).fit(X, y)) > 0.95
    clf = small(**params).fit(X, y)
    chosen, body = remembered(clf), clf.net_.module_.body
    assert int(body.n_kept) < 128
    share = {}
    for k in (16, 128):
        body.n_kept.fill_(k)
        share[k] = remembered(clf)
    assert share[16] < 0.3
    assert share[16] < share[128] - 0.05
    assert chosen < 0.5


def test_co_teaching_selects_rows_read_with_the_same_features(noisy_digits):
    X, y, wrong = noisy_digits
    clf = small(strategy="co_teaching", hidden=(64,), module__sigma=20, max_epochs=12).fit(X, y)
    assert clf.net_.module_.body.n_kept.shape == (2,)
    assert clf.score(X[~wrong], y[~wrong]) > 0.9
