"""What strategies are told and what they may change: groups, trusted rows, features, epochs."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from robustclf import RobustClassifier
from robustclf.strategies import Strategy


class Recorder(Strategy):
    """Keep what a fit tells."""

    def __init__(self, needs=(), seen=None):
        self.needs = needs
        self.seen = {} if seen is None else seen

    def __sklearn_clone__(self):
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.seen["data"] = X

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        self.seen.setdefault("batches", []).append(batch)


def small(**params):
    given = {"hidden": (5,), "max_epochs": 2, "batch_size": 40, "random_state": 0, "dropout": 0.0}
    return RobustClassifier(**given | {"loss": "gce"} | params)


def test_groups_are_numbered_in_their_order(iris):
    X, y = iris
    groups = np.array(["b", "a", "c"] * 50)
    recorder = Recorder(needs=("groups",))
    small(strategy=recorder).fit(X, y, groups=groups)
    assert recorder.seen["data"].groups.tolist() == [1, 0, 2] * 50


@pytest.mark.parametrize("given", [np.arange(9), np.arange(150) < 9, list(range(9))], ids=type)
def test_trusted_rows_are_a_mask_or_numbers(iris, given):
    recorder = Recorder(needs=("trusted",))
    small(strategy=recorder).fit(*iris, trusted=given)
    assert recorder.seen["data"].trusted.tolist() == [True] * 9 + [False] * 141


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": np.zeros(9)}, "groups has 9 entries, expected 150"),
        ({"groups": np.array([None] + [1] * 149)}, "groups is missing for 1 of 150 rows"),
        ({"groups": np.zeros((150, 2))}, "1d array"),
        ({"trusted": [150]}, "trusted must be a mask of 150 rows or row numbers from 0 to 149"),
        ({"trusted": [-1]}, "trusted must be a mask"),
        ({"trusted": [0.5]}, "trusted must be a mask.*float64"),
        ({"trusted": np.ones(9, dtype=bool)}, r"trusted must be a mask.*bool of shape \(9,\)"),
    ],
)
def test_groups_and_trusted_rows_that_cannot_be(iris, given, message):
    with pytest.raises(ValueError, match=message):
        small(strategy=Recorder(needs=tuple(given))).fit(*iris, **given)


@pytest.mark.parametrize("name", ["groups", "trusted"])
def test_what_a_strategy_needs_and_what_none_reads(iris, name):
    with pytest.raises(ValueError, match=rf"needs {name}: fit\(X, y, {name}=\.\.\.\)"):
        small(strategy=Recorder(needs=(name,))).fit(*iris)
    with pytest.raises(ValueError, match=f"needs {name}"):
        small(strategy=Recorder(needs=(name,))).partial_fit(*iris)
    with pytest.warns(UserWarning, match=f"{name} has no effect: no strategy .* learns from that"):
        small(strategy="mixup").fit(*iris, **{name: np.arange(150) < 75})


def test_groups_are_routed_through_pipelines_and_searches(iris):
    X, y = iris
    groups = np.arange(150) % 5
    recorder = Recorder(needs=("groups",))
    with sklearn.config_context(enable_metadata_routing=True):
        clf = small(strategy=recorder).set_fit_request(groups=True)
        pipe = make_pipeline(StandardScaler(), clf)
        search = GridSearchCV(pipe, {"robustclassifier__lr": [0.01]}, cv=GroupKFold(5), refit=False)
        search.fit(X, y, groups=groups)
    assert recorder.seen["data"].groups.unique().tolist() == [0, 1, 2, 3]


def test_features_are_those_of_the_pass(iris):
    recorder = Recorder(needs=("features",))
    clf = small(strategy=recorder, n_members=2).fit(*iris)
    batch = recorder.seen["batches"][-1]
    assert batch.features.shape == (2, len(batch.index), 5)
    assert batch.features.requires_grad
    recorder = Recorder()
    plain = small(strategy=recorder, n_members=2).fit(*iris)
    assert recorder.seen["batches"][-1].features is None
    np.testing.assert_array_equal(clf.predict_proba(iris[0]), plain.predict_proba(iris[0]))


@pytest.mark.parametrize("module", ["mlp", "resnet", torch.nn.Linear])
def test_features_and_logits_of_one_pass_are_those_of_two(iris, module):
    X, y = iris
    clf = small(module=module, n_members=2).fit(X, y)
    network = clf.net_.module_.eval()
    x = torch.from_numpy(clf.encoder_.transform(X))
    with torch.no_grad():
        features, logits = network.with_features(x)
        assert_close(features, network.embed(x), rtol=0, atol=0)
        assert_close(logits, network(x), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_a_batch_has_the_logits_of_the_first_evaluation(rows, train, optimizer):
    x, y, _ = rows
    recorder = Recorder()
    start = train(x, y, seeds=(1, 2), lr=0.0).module_
    train(x, y, seeds=(1, 2), strategies=[recorder], optimizer=optimizer)
    (batch,) = recorder.seen["batches"]
    assert_close(batch.logits, start(x)[:, batch.index].detach())
    assert not batch.logits.requires_grad


class Remembers(Strategy):
    keeps = ("found_",)

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.weight_ = self.found_ = X.weight


def test_what_belongs_to_a_fit_ends_with_it(iris):
    strategy = small(strategy=Remembers()).fit(*iris).net_.strategies[0]
    assert list(vars(strategy)) == ["found_"]


class OddRows(Strategy):
    def epoch_rows(self, net, rows):
        return rows[rows % 2 == 1].repeat(2)


def test_a_strategy_chooses_the_rows_of_an_epoch(iris):
    recorder = Recorder()
    small(strategy=[OddRows(), recorder]).fit(*iris)
    seen = torch.cat([batch.index for batch in recorder.seen["batches"]])
    assert sorted(seen.tolist()) == sorted([i for i in range(150) if i % 2] * 4)


class Shifted(Strategy):
    """Labels are given as if the logit of the first class were smaller by 2."""

    def observe(self, net, batch, logits):
        shift = logits.new_zeros(logits.shape[-1])
        shift[0] = -2.0
        return logits + shift


def test_the_loss_reads_observed_logits_and_predictions_do_not(rows, train):
    x, y, _ = rows
    start = train(x, y, lr=0.0).module_
    net = train(x, y, strategies=[Shifted()], lr=0.1, epochs=1)
    logits = start(x)
    shifted = logits + torch.tensor([-2.0, 0.0, 0.0], dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(shifted.squeeze(0), y)
    gradients = torch.autograd.grad(loss, list(start.parameters()))
    for p, q, g in zip(net.module_.parameters(), start.parameters(), gradients, strict=True):
        assert_close(p, q - 0.1 * g)


def test_an_optimiser_is_given_the_value_of_each_member(rows, train):
    values = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            values.append(super().step(closure))
            return values[-1]

    train(*rows[:2], seeds=(1, 2), optimizer=Watching, epochs=1)
    alone = [value.item() for value in values[0]]
    assert values[0].shape == (2,)
    assert not values[0].requires_grad
    for seed, value in zip((1, 2), alone, strict=True):
        values.clear()
        train(*rows[:2], seeds=(seed,), optimizer=Watching, epochs=1)
        assert values[0].item() == pytest.approx(value, rel=1e-12)
