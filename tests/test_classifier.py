"""RobustClassifier: its parameters, networks and predictions."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from skorch.callbacks import (
    Callback,
)
from small_classifier import Two, small
from torch import nn

from robustclf import RobustClassifier, make_strategy
from robustclf.losses import GeneralizedCrossEntropy
from robustclf.modules import ACTIVATIONS, MLP, ResNet
from robustclf.optimizers import SAM

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
        ({"activation": None}, ValueError, "'activation' parameter.*Got None"),
        ({"module": None}, ValueError, "'module' parameter.*Got None"),
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


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Linear(4, 5),
            r"to \(sample, 3\), a column for each class; of 2 rows it makes \(2, 5\)",
        ),
        (lambda n_inputs, n_classes: nn.Linear(n_inputs, 1), r"of 2 rows it makes \(2, 1\)"),
        (nn.Linear(5, 3), "module cannot take rows of 4 encoded columns: mat1 and mat2"),
    ],
)
def test_modules_that_do_not_fit(iris, module, message):
    with pytest.raises(ValueError, match=message):
        small(module=module).fit(*iris)


def test_parameters_of_a_module_that_is_built(iris):
    with pytest.raises(ValueError, match="module__bias has no effect on a module that is built"):
        small(module=nn.Linear(4, 3), module__bias=False).fit(*iris)


@pytest.mark.parametrize("width", [0, -3, 8.0])
def test_widths_are_positive_integers(iris, width):
    with pytest.raises(ValueError, match=rf"hidden must .* \[1, inf\), got {width}"):
        small(hidden=(8, width)).fit(*iris)


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


@pytest.mark.parametrize("kind", [np.asarray, csr_array])
@pytest.mark.parametrize("embedding", ["periodic", "piecewise_linear"])
def test_numbers_of_two_values_are_not_embedded(iris, embedding, kind):
    X, y = iris
    X = X - [0, 0, 0, 1]
    weight = np.r_[0, np.ones(149)]
    flags = np.c_[X[:, 0], X[:, 1] > 3, np.full(150, 7), X[:, 2] > 4, X[:, 3], np.sign(X[:, 3])]
    flags[0, 1] = 5  # of weight 0
    flags = kind(flags)
    clf = small(numeric_embedding=embedding).fit(flags, y, sample_weight=weight)
    assert clf.net_.module_.inputs.embedded == [0, 4, 5]
    again = pickle.loads(pickle.dumps(clf))
    assert_array_equal(again.predict_proba(flags), clf.predict_proba(flags))
    plain = small(numeric_embedding=embedding).fit(flags[1:, 1:4], y[1:]).net_.module_
    assert plain.inputs.embedding is None


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
