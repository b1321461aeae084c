"""RobustClassifier: its parameters, what a fit leaves behind and what it leaves alone."""

import contextlib
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from torch import nn

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf._build import auto_batch_size, auto_epochs
from robustclf._net import SCHEDULES, DivergenceError
from robustclf.losses import GeneralizedCrossEntropy
from robustclf.modules import ACTIVATIONS, MLP, ResNet
from robustclf.optimizers import SAM


def small(**params):
    defaults = {"hidden": (16,), "max_epochs": 8, "lr": 0.02, "dropout": 0.0, "random_state": 0}
    return RobustClassifier(**defaults | params)


# Parameters of the parts ----------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["gce", GeneralizedCrossEntropy(), GeneralizedCrossEntropy(0.1)])
def test_parameter_of_a_loss_by_alias_or_instance(iris, loss):
    clf = small(loss=loss, loss__q=0.5)
    assert clf.get_params()["loss__q"] == 0.5
    assert clf.fit(*iris).net_.criterion_.loss.q == 0.5
    clf.set_params(loss__q=0.9)
    assert clf.get_params()["loss__q"] == 0.9
    assert clf.fit(*iris).net_.criterion_.loss.q == 0.9
    assert clone(clf).fit(*iris).net_.criterion_.loss.q == 0.9


def test_parameter_changes_the_fit(iris):
    one, other = (small(loss__q=q).fit(*iris).predict_proba(iris[0]) for q in (0.1, 0.9))
    assert np.abs(one - other).max() > 1e-3


def test_an_instance_is_not_changed_by_the_fit(iris):
    loss, strategy = GeneralizedCrossEntropy(0.3), make_strategy("mixup", alpha=0.4)
    small(loss=loss, loss__q=0.5, strategy=strategy, strategy__alpha=2.0).fit(*iris)
    assert (loss.q, strategy.alpha) == (0.3, 0.4)


def test_another_loss_forgets_the_parameters_of_the_former(iris):
    clf = small(loss="gce", loss__q=0.5, strategy="mixup", strategy__alpha=0.3)
    clf.set_params(loss="focal")
    assert "loss__q" not in clf.get_params()
    assert clf.get_params()["strategy__alpha"] == 0.3
    clf.fit(*iris)
    clf.set_params(loss="gce", loss__q=0.4).set_params(loss="gce")
    assert clf.get_params()["loss__q"] == 0.4
    clf.set_params(strategy=None)
    assert "strategy__alpha" not in clf.get_params()
    clf.fit(*iris)


def test_parameters_of_strategy_optimizer_and_module(iris):
    clf = small(
        strategy="mixup",
        strategy__alpha=0.3,
        optimizer="sam",
        optimizer__rho=0.2,
        optimizer__base="sgd",
        optimizer__momentum=0.5,
    )
    kept = {}

    class Keep(Callback):
        def on_epoch_end(self, net, **kwargs):
            kept["optimizer"] = net.optimizer_

    clf.set_params(callbacks=[Keep()]).fit(*iris)
    assert clf.net_.strategies[0].alpha == 0.3
    assert type(kept["optimizer"]) is SAM
    assert kept["optimizer"].rho == 0.2
    assert kept["optimizer"].base.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize("base", ["rmsprop", "nadam", "sgd"])
def test_sam_around_any_optimizer(iris, base):
    clf = small(optimizer="sam", optimizer__base=base, batch_size=25).fit(*iris)
    assert np.isfinite(clf.predict_proba(iris[0])).all()


@pytest.mark.parametrize("optimizer", ["nadam", "radam", "rmsprop", "adam", torch.optim.Adamax])
def test_any_optimizer(iris, optimizer):
    clf = small(loss="ce", optimizer=optimizer, batch_size=25, max_epochs=30).fit(*iris)
    assert clf.score(*iris) > 0.8


def test_weight_decay_shrinks_weights_but_not_biases(iris):
    options = {"optimizer": "sgd", "lr": 0.05, "lr_schedule": "constant", "max_epochs": 40}
    free, decayed = (
        small(weight_decay=d, **options).fit(*iris).net_.module_.body.head for d in (0.0, 2.0)
    )
    assert decayed.weight.norm() < 0.2 * free.weight.norm()
    X = iris[0]
    clf = small(weight_decay=0.0, optimizer__weight_decay=2.0, **options).fit(X, iris[1])
    assert_allclose(clf.net_.module_.body.head.weight.detach(), decayed.weight.detach(), atol=1e-8)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"loss": "gec"}, ValueError, "unknown loss 'gec', allowed are .*did you mean 'gce'"),
        ({"loss": 3}, TypeError, "loss must be an alias or an instance of Loss, got 3"),
        ({"loss__p": 1}, ValueError, "unknown parameter of loss 'gce' 'p', allowed are 'q'"),
        ({"loss__q": 3}, ValueError, r"q must lie in \(0, 1\], got 3"),
        ({"strategy": "mixip"}, ValueError, "unknown strategy 'mixip'.*did you mean 'mixup'"),
        ({"strategy": ["mixup", "erl"]}, ValueError, "unknown strategy 'erl'.*mean 'elr'"),
        ({"strategy": 3}, TypeError, "strategy must be an alias or an instance of Strategy"),
        (
            {"strategy": "mixup", "strategy__alfa": 1},
            ValueError,
            "unknown parameter of strategy 'mixup' 'alfa'.*did you mean 'alpha'",
        ),
        (
            {"strategy": ["mixup", "label_smoothing"], "strategy__alpha": 1},
            ValueError,
            "strategy__alpha is ambiguous for a list of strategies: give instances",
        ),
        ({"optimizer": "adamm"}, ValueError, "unknown optimizer 'adamm'.*did you mean 'adam"),
        (
            {"optimizer": "sam", "optimizer__roh": 1},
            ValueError,
            "unknown parameter of optimizer 'sam' 'roh'.*did you mean 'rho'",
        ),
        ({"optimizer": "sam", "optimizer__rho": 0}, ValueError, r"rho must lie in \(0, inf\)"),
        ({"module": "mpl"}, ValueError, "unknown module 'mpl'.*did you mean 'mlp'"),
        ({"module__width": 3}, ValueError, "unknown parameter of module 'mlp' 'width'"),
        ({"activation": "rleu"}, ValueError, "unknown activation 'rleu'.*did you mean 'relu'"),
        (
            {"numeric_embedding": "period"},
            ValueError,
            "unknown numeric_embedding 'period'.*did you mean 'periodic'",
        ),
        (
            {"device": "gpu"},
            ValueError,
            "device must be 'auto', 'cpu', 'cuda' or another device of torch, got 'gpu'",
        ),
        ({"precision": "fp32"}, ValueError, "unknown precision 'fp32', allowed are 'float32'"),
        ({"lr_schedule": "one_cylce"}, ValueError, "'lr_schedule'.*'one_cycle'.*'one_cylce'"),
        ({"lr": 0}, ValueError, "'lr' parameter.*Got 0"),
        ({"dropout": 1.0}, ValueError, "'dropout' parameter.*Got 1.0"),
        ({"n_members": 0}, ValueError, "'n_members' parameter.*Got 0"),
        ({"cross_fit": 1}, ValueError, "'cross_fit' parameter.*Got 1"),
        ({"max_epochs": "many"}, ValueError, "'max_epochs' parameter.*Got 'many'"),
        ({"preprocess": "scale"}, ValueError, "'preprocess' parameter.*Got 'scale'"),
        ({"categorical_features": "all"}, ValueError, "categorical_features='all' is not known"),
        ({"module": "resnet", "hidden": ()}, ValueError, "at least one entry in hidden"),
    ],
)
def test_parameters_that_cannot_work_are_refused(iris, params, error, message):
    clf = small(**params)  # __init__ only assigns
    with pytest.raises(error, match=message):
        clf.fit(*iris)
    assert not hasattr(clf, "net_")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("los", "unexpected argument 'los'; did you mean 'loss'"),
        ("batchsize", "did you mean 'batch_size'"),
        ("los__q", "unexpected argument 'los__q'"),
        ("qqqqqqqq", "unexpected argument 'qqqqqqqq'; allowed are .*'loss__...'"),
        ("lr__q", "unexpected argument 'lr__q'"),
    ],
)
def test_unknown_arguments(name, message):
    with pytest.raises(TypeError, match=message):
        RobustClassifier(**{name: 1})
    with pytest.raises((ValueError, AttributeError)):
        RobustClassifier().set_params(**{name: 1})


def test_a_list_of_strategies_takes_aliases_and_instances(iris):
    clf = small(loss="ce", strategy=["elr", make_strategy("mixup", alpha=0.4)]).fit(*iris)
    assert [type(s).__name__ for s in clf.net_.strategies] == [
        "EarlyLearningRegularization",
        "Mixup",
    ]
    assert clf.net_.strategies[1].alpha == 0.4
    one = small(strategy=["mixup"], strategy__alpha=0.4).fit(*iris)
    assert one.net_.strategies[0].alpha == 0.4
    assert small(strategy=[]).fit(*iris).net_.strategies == ()


# The network ----------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self, n_inputs, n_classes, width=7):
        super().__init__()
        self.first, self.last = nn.Linear(n_inputs, width), nn.Linear(width, n_classes)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("kind", ["class", "instance"])
def test_module_of_the_user(iris, n_members, kind):
    X, y = iris
    module = Two if kind == "class" else Two(4, 3, width=9)
    params = {"module__width": 9} if kind == "class" else {}
    clf = small(
        loss="ce",
        module=module,
        n_members=n_members,
        cross_fit=2,
        max_epochs=30,
        batch_size=25,
        **params,
    )
    clf.fit(X, y)
    assert clf.score(X, y) > 0.9
    assert clf.embed(X).shape == (150, 9 * n_members)
    members = clf.net_.module_.body.members
    assert len(members) == n_members
    x = torch.from_numpy(clf.encoder_.transform(X))
    by_hand = torch.stack([member.float()(x) for member in members])
    assert_allclose(clf.predict_proba(X), by_hand.softmax(-1).mean(0).detach(), atol=1e-5)
    again = pickle.loads(pickle.dumps(clf))
    assert_allclose(again.predict_proba(X), clf.predict_proba(X), atol=1e-6)


def test_module_instance_of_the_user_is_not_trained(iris):
    module = Two(4, 3)
    before = {name: p.clone() for name, p in module.state_dict().items()}
    small(module=module).fit(*iris)
    assert all(torch.equal(p, before[name]) for name, p in module.state_dict().items())


@pytest.mark.parametrize("embedding", [None, "periodic", "piecewise_linear"])
@pytest.mark.parametrize(("module", "kind"), [("mlp", MLP), ("resnet", ResNet)])
def test_networks_and_numeric_embeddings_learn(iris, module, kind, embedding):
    clf = small(
        loss="ce", module=module, numeric_embedding=embedding, n_members=2, cross_fit=2
    ).set_params(max_epochs=30, batch_size=25)
    assert clf.fit(*iris).score(*iris) > 0.9
    assert type(clf.net_.module_.body) is kind
    assert clf.embed(iris[0]).shape == (150, 32)
    assert roc_auc_score(iris[1], clf.oof_proba_, multi_class="ovr") > 0.95


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_fit_and_pickle(iris, activation):
    clf = small(activation=activation).fit(*iris)
    again = pickle.loads(pickle.dumps(clf))
    assert_array_equal(again.predict_proba(iris[0]), clf.predict_proba(iris[0]))


def test_hidden_and_dropout_reach_the_network(iris):
    clf = small(hidden=[5, 3], dropout=0.4).fit(*iris)
    assert [layer.weight.shape[2] for layer in clf.net_.module_.body.layers] == [5, 3]
    assert clf.net_.module_.body.dropout.p == 0.4
    assert_array_equal(clf.predict_proba(iris[0]), clf.predict_proba(iris[0]))


def test_embed_is_what_the_head_reads(iris):
    clf = small(n_members=2).fit(*iris)
    features = clf.embed(iris[0]).reshape(150, 2, 16)
    head = clf.net_.module_.body.head
    logits = np.einsum("nmh,mhk->mnk", features, head.weight.detach()) + head.bias.detach().numpy()
    assert_allclose(logits.mean(0), clf.decision_function(iris[0]), atol=1e-5)


# The loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        (None, [1, 1, 1, 1]),
        (lambda t: 1 - t, [1, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rates(iris, schedule, expected):
    clf = small(lr_schedule=schedule, lr=0.1, max_epochs=4, batch_size=200).fit(*iris)
    assert clf.history_[:, "lr"] == pytest.approx([0.1 * factor for factor in expected])


def test_one_cycle_rises_then_falls():
    rates = np.array([SCHEDULES["one_cycle"](t) for t in np.linspace(0, 1, 201)])
    assert rates.argmax() == 20
    assert rates.max() == pytest.approx(1)
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert 0 < rates[0] < 0.1
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", [*SCHEDULES, None])
def test_every_schedule_pickles(iris, schedule):
    clf = small(lr_schedule=schedule).fit(*iris)
    again = pickle.loads(pickle.dumps(clf))
    assert_array_equal(again.predict_proba(iris[0]), clf.predict_proba(iris[0]))


def test_history(iris):
    clf = small(max_epochs=5).fit(*iris)
    assert len(clf.history_) == 5
    assert {"epoch", "train_loss", "lr", "dur"} <= set(clf.history_[-1])
    assert "valid_acc" not in clf.history_[-1]
    assert clf.history_[:, "epoch"] == [1, 2, 3, 4, 5]
    assert clf.net_.history is clf.history_
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]


def test_auto_budget(iris):
    clf = RobustClassifier(hidden=(4,), random_state=0).fit(*iris)
    assert len(clf.history_) == 150
    assert (auto_epochs(2_000), auto_epochs(10_000)) == (40, 40)
    assert (auto_epochs(1_000), auto_batch_size(1_000)) == (60, 128)
    assert (auto_batch_size(100_000), auto_batch_size(10**6)) == (500, 1024)


@pytest.mark.parametrize("module", ["mlp", Two])
def test_early_stopping_restores_the_best_weights(noisy_digits, module):
    X, y, _ = noisy_digits
    seen = []

    class Record(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            self.data = X

        def on_epoch_end(self, net, dataset_valid=None, **kwargs):
            x, labels = dataset_valid.X, dataset_valid.y
            seen.append((x.clone(), labels.clone()))

    clf = small(
        loss="ce", early_stopping=True, max_epochs=30, lr=0.05, callbacks=[Record()], module=module
    ).fit(X, y)
    x, labels = seen[0]
    predicted = next(iter(clf.net_.logits(x))).mean(0).argmax(-1)
    accuracy = clf.history_[:, "valid_acc"]
    assert len(accuracy) == 30
    assert (predicted == labels).float().mean().item() == pytest.approx(max(accuracy), abs=1e-4)
    assert max(accuracy) > accuracy[-1] + 0.005
    assert len(labels) == 100
    assert np.bincount(labels).tolist() == pytest.approx(np.bincount(y) / 10, abs=1)


def test_early_stopping_with_patience_stops(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(loss="ce", early_stopping=3, max_epochs=60, lr=0.05).fit(X, y)
    accuracy = clf.history_[:, "valid_acc"]
    assert len(accuracy) < 60
    assert np.argmax(accuracy) == len(accuracy) - 4


def test_early_stopping_on_given_rows(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(early_stopping=True, max_epochs=10, lr=0.05)
    clf.fit(X[:700], y[:700], X_val=X[700:], y_val=y[700:])
    assert clf.score(X[700:], y[700:]) == pytest.approx(max(clf.history_[:, "valid_acc"]))


def test_validation_rows_are_watched_and_change_nothing(iris):
    X, y = iris
    labels = np.array(["a", "b", "c"])[y]
    clf = small().fit(X, labels, X_val=X[::2], y_val=labels[::2])
    plain = small().fit(X, labels)
    assert_array_equal(clf.predict_proba(X), plain.predict_proba(X))
    assert clf.history_[-1, "valid_acc"] == pytest.approx(clf.score(X[::2], labels[::2]))


def test_held_out_rows_do_not_train(binary):
    """With most rows held out, the wrong labels of those do not matter."""
    X, y = binary
    seen = []

    class Record(Callback):
        def on_batch_end(self, net, batch=None, training=None, **kwargs):
            if training:
                seen.extend(batch.index.tolist())

    small(early_stopping=True, validation_fraction=0.8, callbacks=[Record()]).fit(X, y)
    assert len(set(seen)) == 20


@pytest.mark.parametrize("loss", ["gce", "nce+rce"])
def test_sample_weight_is_repetition(iris, loss):
    X, y = iris
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = small(loss=loss, batch_size=1000).fit(X, y, sample_weight=weight)
    repeated = small(loss=loss, batch_size=1000).fit(np.repeat(X, weight, 0), np.repeat(y, weight))
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-5)
    scaled = small(loss=loss, batch_size=1000).fit(X, y, sample_weight=7 * weight)
    assert_allclose(weighted.predict_proba(X), scaled.predict_proba(X), atol=1e-5)
    plain = small(loss=loss, batch_size=1000).fit(X, y)
    assert np.abs(weighted.predict_proba(X) - plain.predict_proba(X)).max() > 1e-4


def test_class_weight_is_sample_weight(iris):
    X, y = iris[0][:120], iris[1][:120]  # 50, 50 and 20 rows
    by_class = {0: 1.0, 1: 2.0, 2: 0.5}
    one = small(class_weight=by_class).fit(X, y)
    other = small().fit(X, y, sample_weight=np.array([1.0, 2.0, 0.5])[y])
    assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    both = small(class_weight=by_class).fit(X, y, sample_weight=np.arange(120) + 1)
    other = small().fit(X, y, sample_weight=np.array([1.0, 2.0, 0.5])[y] * (np.arange(120) + 1))
    assert_array_equal(both.predict_proba(X), other.predict_proba(X))
    balanced = small(class_weight="balanced").fit(X, y)
    other = small().fit(X, y, sample_weight=40 / np.array([50, 50, 20])[y])
    assert_array_equal(balanced.predict_proba(X), other.predict_proba(X))
    assert np.abs(balanced.predict_proba(X) - one.predict_proba(X)).max() > 1e-3


# Fitting in parts -----------------------------------------------------------------------------


def test_partial_fit_learns_and_knows_all_classes(iris):
    X, y = iris
    order = np.random.default_rng(0).permutation(150)
    X, y = X[order], y[order]
    clf = small(loss="ce", batch_size=10, lr=0.02)
    for epoch in range(15):
        for part in np.array_split(np.arange(150), 3):
            classes = [0, 1, 2, 7] if epoch == 0 else None
            assert clf.partial_fit(X[part], y[part], classes=classes) is clf
    assert clf.classes_.tolist() == [0, 1, 2, 7]
    assert clf.predict_proba(X).shape == (150, 4)
    assert clf.score(X, y) > 0.9
    assert len(clf.history_) == 45
    assert clf.history_[:, "lr"] == [0.02] * 45


def test_partial_fit_goes_on_after_fit_at_a_constant_rate(iris):
    X, y = iris
    clf = small(lr=0.001, lr_schedule="one_cycle").fit(X, y)
    before = clf.predict_proba(X)
    clf.partial_fit(X[:60], y[:60])
    assert clf.history_[-1, "lr"] == 0.001
    after = clf.predict_proba(X)
    assert 0 < np.abs(after - before).max() < 0.1
    pickle.loads(pickle.dumps(clf)).partial_fit(X, y)


@pytest.mark.parametrize("strategy", ["mixup", "label_smoothing", "co_teaching", "elr"])
def test_partial_fit_with_strategies(iris, strategy):
    X, y = iris
    clf = small(loss="ce", strategy=strategy)
    clf.partial_fit(X[40:110], y[40:110], classes=[0, 1, 2]).partial_fit(X[::3], y[::3])
    assert np.isfinite(clf.predict_proba(X)).all()


def test_partial_fit_refuses(iris):
    X, y = iris
    for params in ({"cross_fit": 3}, {"early_stopping": True}):
        with pytest.raises(ValueError, match="need all rows at once: call fit"):
            small(**params).partial_fit(X, y)
    clf = small().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y contains labels \[3\] beyond the classes \[0, 1, 2\]"):
        clf.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="needs at least two classes"):
        small().partial_fit(X[:50], y[:50])


# Prediction -----------------------------------------------------------------------------------


def test_decision_function_is_the_mean_of_the_logits(iris, binary):
    X, y = iris
    clf = small(n_members=1).fit(X, y)
    scores = clf.decision_function(X)
    assert scores.shape == (150, 3)
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert_allclose(clf.predict_proba(X), soft, atol=1e-6)
    X, y = binary
    clf = small(n_members=1).fit(X, y)
    scores = clf.decision_function(X)
    assert scores.shape == (100,)
    assert_allclose(clf.predict_proba(X)[:, 1], 1 / (1 + np.exp(-scores)), atol=1e-6)


def test_proba_is_the_mean_over_members(iris):
    X, y = iris
    clf = small(n_members=3, loss="ce").fit(X, y)
    logits = torch.cat(list(clf.net_.logits(clf.encoder_.transform(X))), 1)
    assert logits.shape == (3, 150, 3)
    assert_allclose(clf.predict_proba(X), logits.softmax(-1).mean(0), atol=1e-6)
    assert_allclose(clf.decision_function(X), logits.mean(0), atol=1e-6)
    assert_array_equal(clf.predict(X), clf.predict_proba(X).argmax(1))


def test_many_rows_in_chunks(iris, monkeypatch):
    clf = small(n_members=2).fit(*iris)
    X = np.tile(iris[0], (10, 1))
    expected = [f(X) for f in (clf.predict_proba, clf.decision_function, clf.embed, clf.predict)]
    monkeypatch.setattr("robustclf._net.CHUNK", 64)
    monkeypatch.setattr("robustclf._build.CHUNK", 100)
    for f, whole in zip(
        (clf.predict_proba, clf.decision_function, clf.embed, clf.predict), expected, strict=True
    ):
        assert_allclose(f(X), whole, atol=1e-6)
    assert_allclose(clf.predict_proba(X[:1]), expected[0][:1], atol=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "f4"), ("float64", "f8")])
def test_precision_of_the_output(noisy_digits, precision, dtype):
    X, y, _ = noisy_digits
    clf = small(precision=precision).fit(X, y)
    assert clf.predict_proba(X).dtype == clf.embed(X).dtype == clf.decision_function(X).dtype
    assert clf.predict_proba(X).dtype == np.dtype(dtype)
    assert {str(p.dtype) for p in clf.net_.module_.parameters()} == {f"torch.{precision}"}


def test_bf16_where_the_hardware_has_it(noisy_digits, monkeypatch):
    X, y, _ = noisy_digits
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    clf = small(precision="bf16", device="cpu", max_epochs=20, lr=0.01).fit(X, y)
    plain = small(device="cpu", max_epochs=20, lr=0.01).fit(X, y)
    assert clf.score(X, y) == pytest.approx(plain.score(X, y), abs=0.05)
    assert np.abs(clf.predict_proba(X) - plain.predict_proba(X)).max() > 0
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    with pytest.raises(ValueError, match=r"precision='bf16' needs hardware.*'cpu' has"):
        small(precision="bf16", device="cpu").fit(X, y)


# Cross-fitting --------------------------------------------------------------------------------


def test_cross_fit_finds_wrong_labels(noisy_digits):
    X, y, flipped = noisy_digits
    clf = small(cross_fit=4, hidden=(64,), max_epochs=25, lr=0.01).fit(X, y)
    assert clf.oof_proba_.shape == (1000, 10)
    assert_allclose(clf.oof_proba_.sum(1), 1, atol=1e-5)
    assert_array_equal(clf.label_quality_, clf.oof_proba_[np.arange(1000), y])
    assert roc_auc_score(flipped, -clf.label_quality_) > 0.9


@pytest.mark.parametrize("strategy", [None, "co_teaching", "mixup"])
@pytest.mark.parametrize("n_members", [1, 2])
def test_cross_fit_does_not_change_predictions(noisy_digits, strategy, n_members):
    X, y, _ = noisy_digits
    options = {"strategy": strategy, "n_members": n_members, "dropout": 0.0}
    plain, crossed = small(**options).fit(X, y), small(cross_fit=3, **options).fit(X, y)
    assert_allclose(plain.predict_proba(X), crossed.predict_proba(X), atol=1e-4)
    shapes = [[p.shape for p in clf.net_.module_.parameters()] for clf in (plain, crossed)]
    assert shapes[0] == shapes[1]


def test_out_of_fold_members_memorise_nothing(noisy_digits):
    """On labels of pure noise, out-of-fold probabilities know nothing of the given label."""
    X = noisy_digits[0]
    y = np.random.default_rng(0).integers(0, 2, 1000)
    clf = small(loss="ce", cross_fit=5, hidden=(64,), max_epochs=40, lr=0.02).fit(X, y)
    assert clf.score(X, y) > 0.9
    assert (clf.oof_proba_.argmax(1) == y).mean() < 0.6


def test_rows_that_no_member_trained_on_get_the_mean_of_all(noisy_digits):
    X, y, _ = noisy_digits
    weight = np.ones(1000)
    weight[:100] = 0
    clf = small(cross_fit=3).fit(X, y, sample_weight=weight)
    without = small(cross_fit=3).fit(X[100:], y[100:])
    assert_allclose(clf.oof_proba_[100:], without.oof_proba_, atol=1e-4)
    assert_allclose(clf.oof_proba_[:100].sum(1), 1, atol=1e-5)
    stopped = small(cross_fit=3, early_stopping=True).fit(X, y)
    assert_allclose(stopped.oof_proba_.sum(1), 1, atol=1e-5)


def test_a_new_fit_forgets_the_former(iris):
    X, y = iris
    clf = small(cross_fit=3).fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert clf.feature_names_in_.tolist() == list("abcd")
    clf.set_params(cross_fit=None).fit(X[:, :3], y)
    assert clf.n_features_in_ == 3
    for name in ("oof_proba_", "label_quality_", "feature_names_in_"):
        assert not hasattr(clf, name)
    assert_array_equal(
        clf.predict_proba(X[:, :3]), small().fit(X[:, :3], y).predict_proba(X[:, :3])
    )


# Words, callbacks and interruptions -----------------------------------------------------------


@pytest.mark.parametrize("validated", [False, True])
def test_a_progress_bar_shows_epoch_loss_and_accuracy(iris, capsys, validated):
    X, y = iris
    more = {"X_val": X, "y_val": y} if validated else {}
    clf = small(verbose=1, max_epochs=3).fit(X, y, **more)
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.rpartition("\r")[2]
    assert "3/3" in last
    assert "epoch" in last
    assert f"loss={clf.history_[-1, 'train_loss']:.4f}" in last
    key = "valid_acc" if validated else "train_acc"
    assert f"accuracy={clf.history_[-1, key]:.3f}" in last
    assert 0.2 < clf.history_[-1, key] <= 1


@pytest.mark.parametrize("params", [{}, {"early_stopping": 1}, {"cross_fit": 2}])
def test_quiet_unless_asked(iris, capfd, params):
    clf = small(**params).fit(*iris)
    clf.predict(iris[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("strategy", ["mixup", "co_teaching", "label_smoothing"])
def test_the_bar_goes_with_strategies(iris, capsys, strategy):
    small(verbose=1, strategy=strategy, cross_fit=2).fit(*iris)
    assert "accuracy=" in capsys.readouterr().err


class Recorder(Callback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.seen.append("train_begin")

    def on_train_end(self, net, X=None, y=None, **kwargs):
        self.seen.append("train_end")

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.seen.append("epoch_begin")

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.seen.append("epoch_end")

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.seen.append("batch_begin")

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        self.seen.append("batch_end")

    def on_grad_computed(self, net, named_parameters, batch=None, **kwargs):
        assert all(p.grad is not None for _, p in named_parameters)
        self.seen.append("grad")


def test_callbacks_are_notified_in_order(iris):
    recorder = Recorder()
    small(callbacks=[recorder], max_epochs=2, batch_size=75).fit(*iris)
    batch = ["batch_begin", "grad", "batch_end"]
    epoch = ["epoch_begin", *batch, *batch, "epoch_end"]
    assert recorder.seen == ["train_begin", *epoch, *epoch, "train_end"]


def test_scoring_callback_on_validation_rows(iris):
    X, y = iris
    scores = [
        EpochScoring("accuracy", lower_is_better=False, name="cached"),
        EpochScoring("accuracy", lower_is_better=False, name="again", use_caching=False),
        ("named", EpochScoring("neg_log_loss", lower_is_better=False, name="log_loss")),
    ]
    clf = small(callbacks=scores, n_members=2).fit(X, y, X_val=X[::2], y_val=y[::2])
    last = clf.history_[-1]
    assert last["cached"] == last["again"] == pytest.approx(last["valid_acc"])
    given = clf.predict_proba(X[::2])[np.arange(75), y[::2]]
    assert last["log_loss"] == pytest.approx(np.log(given).mean(), abs=1e-4)


def test_scoring_callback_on_training_batches(iris):
    score = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="train")
    clf = small(callbacks=[score], lr=1e-9, batch_size=50).fit(*iris)
    assert clf.history_[-1, "train"] == pytest.approx(clf.score(*iris))


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_gradient_clipping(iris, optimizer):
    options = {
        "optimizer": optimizer,
        "lr": 1.0,
        "lr_schedule": "constant",
        "weight_decay": 0,
        "max_epochs": 1,
        "batch_size": 200,
    }
    if optimizer == "sam":
        options["optimizer__base"] = "sgd"
    moved = []

    class Distance(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            self.start = torch.nn.utils.parameters_to_vector(net.module_.parameters()).detach()

        def on_train_end(self, net, X=None, y=None, **kwargs):
            end = torch.nn.utils.parameters_to_vector(net.module_.parameters()).detach()
            moved.append((end - self.start).norm().item())

    small(callbacks=[GradientNormClipping(1e-3), Distance()], **options).fit(*iris)
    small(callbacks=[Distance()], **options).fit(*iris)
    assert moved[0] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1] > 10 * moved[0]


def test_learning_rate_of_a_callback(iris):
    scheduler = LRScheduler("StepLR", step_size=1, gamma=0.5)
    clf = small(callbacks=[scheduler], lr_schedule=None, lr=0.1, max_epochs=3).fit(*iris)
    assert clf.history_[:, "lr"] == pytest.approx([0.1, 0.05, 0.025])


def test_early_stopping_of_the_user_is_no_interruption(iris):
    stop = EarlyStopping("train_loss", patience=2, threshold=10.0, sink=lambda text: None)
    clf = small(callbacks=[stop], max_epochs=20).fit(*iris)
    assert len(clf.history_) < 20


class Interrupt(Callback):
    def __init__(self, epoch, hook):
        self.epoch, self.hook = epoch, hook

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        if self.hook == "epoch" and len(net.history) == self.epoch:
            raise KeyboardInterrupt

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if self.hook == "batch" and len(net.history) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("hook", ["epoch", "batch"])
@pytest.mark.parametrize("epoch", [1, 5])
@pytest.mark.parametrize(
    "params",
    [{}, {"early_stopping": True}, {"cross_fit": 2}, {"strategy": "elr"}, {"verbose": 1}],
    ids=str,
)
def test_an_interrupted_fit_leaves_a_usable_model(iris, hook, epoch, params):
    X, y = iris
    clf = small(loss="ce", callbacks=[Interrupt(epoch, hook)], batch_size=50, **params)
    with pytest.warns(UserWarning, match=f"interrupted in epoch {epoch} of 8; the model keeps"):
        clf.fit(X, y)
    assert len(clf.history_) == epoch
    assert_allclose(clf.predict_proba(X).sum(1), 1, atol=1e-5)
    assert_array_equal(pickle.loads(pickle.dumps(clf)).predict(X), clf.predict(X))
    assert hasattr(clf, "oof_proba_") is ("cross_fit" in params)


@pytest.mark.parametrize("loss", ["ce", "gce"])
def test_divergence_names_the_epoch_and_what_to_try(noisy_digits, loss):
    X, y, _ = noisy_digits
    clf = small(loss=loss, lr=1e30, lr_schedule="constant", batch_size=100)
    message = r"The training loss became (nan|inf) in epoch \d of 8 \(lr=1e\+30, loss=.*smaller lr"
    with pytest.raises(DivergenceError, match=message):
        clf.fit(X, y)
    assert not hasattr(clf, "net_")


# What a fit leaves alone ----------------------------------------------------------------------

EVERYTHING = {
    "loss": "ce",
    "strategy": ["mixup", "co_teaching", "elr"],
    "dropout": 0.2,
    "cross_fit": 2,
    "early_stopping": True,
    "batch_size": 40,
}


def test_random_state_governs_everything(iris):
    X, y = iris
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the caller's generator)
        clf = small(**EVERYTHING).fit(X, y)
        results.append((clf.predict_proba(X), clf.oof_proba_, clf.history_[:, "train_loss"]))
    for one, other in zip(*results, strict=True):
        assert_array_equal(one, other)
    other = small(**EVERYTHING | {"random_state": 1}).fit(X, y).predict_proba(X)
    assert np.abs(other - results[0][0]).max() > 1e-4
    shared = np.random.RandomState(0)
    first, second = (small(random_state=shared).fit(X, y).predict_proba(X) for _ in range(2))
    assert np.abs(first - second).max() > 1e-4
    assert_array_equal(
        first, small(random_state=np.random.RandomState(0)).fit(X, y).predict_proba(X)
    )


def test_a_fit_without_a_seed_differs_from_the_next(iris):
    one, other = (small(random_state=None).fit(*iris).predict_proba(iris[0]) for _ in range(2))
    assert np.abs(one - other).max() > 1e-4


def test_globals_are_untouched(iris):
    X, y = iris
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    clf = small(**EVERYTHING).fit(X, y)
    clf.predict_proba(X)
    small().partial_fit(X, y)
    assert torch.equal(rng, torch.get_rng_state())
    assert_array_equal(numpy_rng, np.random.get_state()[1])  # noqa: NPY002
    assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.is_grad_enabled()


def test_inputs_are_untouched(iris):
    X, y = iris[0].copy(), iris[1].copy()
    weight = np.arange(150.0)
    small(preprocess=None).fit(X, y, sample_weight=weight).predict(X)
    small(**EVERYTHING).fit(X, y, sample_weight=weight).predict(X)
    assert_array_equal(X, iris[0])
    assert_array_equal(y, iris[1])
    assert_array_equal(weight, np.arange(150.0))


@contextlib.contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("context", [double_by_default, torch.no_grad])
@pytest.mark.parametrize(
    "params",
    [{}, {"optimizer": "sam"}, EVERYTHING, {"numeric_embedding": "periodic", "batch_size": 40}],
    ids=["plain", "sam", "everything", "periodic"],
)
def test_works_in_the_callers_context(iris, context, params):
    X, y = iris
    with context():
        clf = small(max_epochs=30, **params).fit(X, y)
        proba = clf.predict_proba(X)
    assert proba.dtype == np.float32
    assert clf.score(X, y) > 0.6
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]


# Keeping a model ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"early_stopping": True},
        {"cross_fit": 5},
        {"loss": "ce", "strategy": "elr"},
        {"strategy": "co_teaching", "optimizer": "sam"},
        {"module": Two, "module__width": 400, "n_members": 2},
        {"verbose": 1, "preprocess": StandardScaler()},
    ],
    ids=str,
)
def test_a_pickle_is_little_more_than_the_weights(noisy_digits, params, capsys):
    X, y, _ = noisy_digits
    X = np.vstack([X, X])
    clf = small(hidden=(200,), max_epochs=4, **params).fit(X, np.concatenate([y, y]))
    weights = sum(p.numel() * p.element_size() for p in clf.net_.module_.parameters())
    out_of_fold = clf.oof_proba_.nbytes + clf.label_quality_.nbytes if clf.cross_fit else 0
    size, encoder = len(pickle.dumps(clf)), len(pickle.dumps(clf.encoder_))
    assert size < 1.2 * weights + encoder + out_of_fold + 20_000
    assert weights > 40_000
    file = io.BytesIO()
    joblib.dump(clf, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(clf)), joblib.load(file)):
        assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
        assert again.history_ == clf.history_


def test_no_training_row_inside_a_pickle(noisy_digits):
    X, y, _ = noisy_digits
    X = X + 0.123456789
    clf = small(loss="ce", strategy="elr", early_stopping=True, cross_fit=2).fit(X, y)
    data = pickle.dumps(clf)
    encoded = clf.encoder_.transform(X)
    for row in range(0, 1000, 50):
        assert X[row].tobytes() not in data
        assert encoded[row].tobytes() not in data
        assert encoded[row].astype("f8").tobytes() not in data


def test_size_does_not_grow_with_the_rows(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(loss="ce", strategy=["elr", "co_teaching"], early_stopping=True)
    few, many = (len(pickle.dumps(clf.fit(X[:n], y[:n]))) for n in (300, 1000))
    assert many < few + 2000


def test_a_model_of_a_device_that_is_not_here_loads_on_the_cpu(iris, monkeypatch):
    clf = small().fit(*iris)
    clf.net_.device = "cuda:77"  # as if it had been trained there
    again = pickle.loads(pickle.dumps(clf))
    assert again.net_.device == "cpu"
    assert_array_equal(again.predict_proba(iris[0]), small().fit(*iris).predict_proba(iris[0]))


def test_composed_losses(iris):
    loss = 2 * make_loss("nce") + make_loss("mae")
    clf = small(loss=loss, max_epochs=30, batch_size=25).fit(*iris)
    assert clf.score(*iris) > 0.8
    transition = 0.7 * np.eye(3) + 0.1
    clf = small(loss="forward_corrected", loss__transition=transition).fit(*iris)
    assert_array_equal(clf.net_.criterion_.loss.transition, transition)
    with pytest.raises(ValueError, match="transition"):
        small(loss="forward_corrected", loss__transition=np.eye(2)).fit(*iris)


# Warm-up, budget, failed fits -----------------------------------------------------------------


def test_warm_up_minimises_cross_entropy_first(iris):
    X, y = iris
    ce = small(loss="ce").fit(X, y).predict_proba(X)
    assert_array_equal(small(loss="mae", warm_up=1.0).fit(X, y).predict_proba(X), ce)
    none = small(loss="mae", warm_up=0.0).fit(X, y).predict_proba(X)
    half = small(loss="mae", warm_up=0.5).fit(X, y).predict_proba(X)
    assert abs(half - ce).max() > 1e-3
    assert abs(half - none).max() > 1e-3


def test_warm_up_lets_a_bounded_loss_learn_a_rare_class():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [1900, 100])
    X = rng.normal(size=(2000, 2)) + 3 * y[:, None]
    params = {"loss": "mae", "max_epochs": 20, "lr_schedule": "constant"}

    def recall(warm_up):
        clf = small(**params, warm_up=warm_up).fit(X, y)
        return (clf.predict(X[y == 1]) == 1).mean()

    assert recall(warm_up=0.0) < 0.1
    assert recall(warm_up=0.25) > 0.8


def test_dropout_auto_is_off_in_a_full_batch(iris):
    X, y = iris
    assert small(dropout="auto").fit(X[:100], y[:100]).net_.module_.body.dropout.p == 0.0
    assert small(dropout="auto").fit(X, y).net_.module_.body.dropout.p == 0.3
    assert small(dropout=0.1).fit(X[:100], y[:100]).net_.module_.body.dropout.p == 0.1


def test_a_failed_refit_leaves_the_fitted_model(iris):
    X, y = iris
    clf = small(cross_fit=3).fit(X, y)
    before, oof = clf.predict_proba(X), clf.oof_proba_
    with pytest.raises(ValueError, match="infinity"):
        clf.fit(np.where(X > 6, np.inf, X)[:, :3], y)
    with pytest.raises(ArithmeticError):
        clf.set_params(lr=1e30, loss="ce").fit(X[:, :2], y)
    assert_array_equal(clf.predict_proba(X), before)
    assert clf.oof_proba_ is oof
    assert clf.n_features_in_ == 4
