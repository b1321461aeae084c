"""Deployed models predict what the classifier does, and say what they cannot take along."""

import copy
import doctest
import functools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler
from skorch.history import History
from torch import nn
from torch.nn import functional as F

import robustclf
from robustclf import RobustClassifier, make_loss
from robustclf.losses import Loss
from robustclf.losses._base import LOSSES, Sum, Wrapper
from robustclf.losses.cross_entropy import CrossEntropy
from robustclf.stopping import NoiseCorrectedStopping

N = 120
T = 0.7 * np.eye(3) + 0.1


def small(**params):
    defaults = {"loss": "gce", "hidden": (8,), "max_epochs": 2, "batch_size": 50, "random_state": 0}
    return RobustClassifier(**defaults | params)


@pytest.fixture(scope="module")
def labels():
    return np.array(["aye", "nay", "ünsure"])[np.arange(N) % 3]


@pytest.fixture(scope="module")
def numbers(labels):
    """Rows of numbers whose sizes differ, some far from 0."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4)) + (labels == "nay")[:, None]
    return X * [1, 1e-6, 1e3, 1] + [0, 0, 0, 1.7e9]


@pytest.fixture(scope="module")
def frame(numbers):
    """Numbers and categories of every kind, with missing values."""
    rng = np.random.default_rng(1)
    some = rng.random(N) < 0.2
    data = pd.DataFrame(numbers, columns=["a", "b", "c", "since 1970"])
    data["constant"] = 5.0
    data["amount"] = np.where(some, np.nan, np.exp(3 * numbers[:, 0]))
    data["debt"] = -np.exp(2 * numbers[:, 0]) - 1e3
    data.loc[some, "a"] = np.nan
    data["count"] = rng.integers(0, 9, N)
    data["kind"] = np.where(some, None, rng.choice(["null", "None", "ß", "x y"], N))
    data["town"] = pd.Categorical([f"town {k}" for k in rng.integers(0, 30, N)])
    data["code"] = pd.Categorical(np.where(some, np.nan, rng.integers(0, 4, N)))
    data["grade"] = pd.Categorical(rng.integers(0, 40, N) / 4)
    data["flag"] = np.where(some, None, rng.random(N) < 0.5)
    return data


@pytest.fixture(scope="module")
def unseen(frame):
    """Rows with values that training did not have."""
    data = frame.astype(dict.fromkeys(("town", "code", "grade"), object))
    data.loc[0, ["kind", "town"]] = "elsewhere"
    data.loc[1, ["code", "grade"]] = 99, -0.125
    data.loc[2, ["b", "since 1970", "count", "constant"]] = np.nan
    data.loc[3, ["town", "grade"]] = None
    data.loc[4, ["a", "b", "c", "constant"]] = 1e300, -1e300, 1e17, -7.0
    data.loc[5, ["amount", "debt"]] = 1e308, 1e308
    data.loc[6, ["amount", "debt"]] = -1e308, np.nan
    return data


@pytest.fixture(scope="module", autouse=True)
def _registry_made_once():
    """Make torch's table of ONNX functions, half of the time of an export, for all tests."""
    try:  # private: without it the tests take longer
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        once = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


@pytest.fixture(scope="module")
def _onnx():
    """Skip a test that exports where what it takes is not installed."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)


@pytest.fixture
def session(tmp_path, _onnx):
    """Return a function that exports a classifier and opens the model."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"

    def open_session(clf, **options):
        clf.export_onnx(path, **options)
        return onnxruntime.InferenceSession(path)

    open_session.path = path
    return open_session


def feeds(session, X, missing=""):
    """Give each input its column as docs/deployment.rst says."""
    if isinstance(X, np.ndarray) and X.dtype != object:
        return {"X": X.astype(np.float64)}
    X = pd.DataFrame(X)
    X.columns = [name if isinstance(name, str) else f"x{name}" for name in X]
    given = {}
    for column in session.get_inputs():
        values = X[[column.name]]
        if column.type == "tensor(string)":
            values = values.astype(object)
            given[column.name] = values.where(values.notna(), missing).to_numpy()
        else:
            given[column.name] = values.astype(float).to_numpy()
    return given


def assert_same(clf, session, X, atol=1e-6, **options):
    """Compare a model with its classifier on rows, on the first alone, and on 1,000."""
    given = feeds(session, X, **options)
    label, proba = session.run(["label", "probabilities"], given)
    expected = clf.predict_proba(X)
    assert proba.dtype == expected.dtype
    assert_allclose(proba, expected, rtol=0, atol=atol)
    assert_array_equal(label, clf.predict(X))
    one = session.run(["probabilities"], {name: x[:1] for name, x in given.items()})[0]
    assert_allclose(one, expected[:1], rtol=0, atol=atol)
    rows = np.arange(1000) % len(X)
    many = session.run(["probabilities"], {name: x[rows] for name, x in given.items()})[0]
    assert_allclose(many, expected[rows], rtol=0, atol=atol)


# ONNX -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"module": "resnet", "numeric_embedding": "periodic", "n_members": 3},
        {"module": "nested_mlp", "numeric_embedding": "piecewise_linear", "batch_size": 1000},
        {"module": "nested_resnet", "strategy": "co_teaching", "precision": "float64"},
    ],
    ids=str,
)
def test_a_table_enters_as_it_is(session, frame, unseen, labels, params):
    clf = small(**params).fit(frame, labels)
    assert np.isfinite(clf.encoder_.unit_).sum() == 2  # numbers with heavy tails
    model = session(clf)
    assert {i.name: i.type for i in model.get_inputs()} == {
        name: "tensor(string)" if name in ("kind", "town") else "tensor(double)" for name in frame
    }
    for X in (frame, unseen):
        assert_same(clf, model, X)


LINKS = [
    alias
    for alias in LOSSES.names()
    if type(LOSSES.make(alias)).inverse_link
    not in (Loss.inverse_link, Wrapper.inverse_link, Sum.inverse_link)
]


def test_there_are_losses_with_links_of_their_own():
    assert {"bi_tempered", "evidential", "legendretron", "logit_clipped", "temperature"} <= {*LINKS}


@pytest.mark.parametrize("alias", LINKS)
def test_probabilities_are_those_of_the_loss(session, numbers, labels, alias):
    single = LINKS.index(alias) % 2 == 0
    params = {"blocks": 1, "depth": 2} if alias == "legendretron" else {}  # to save time
    loss = make_loss(alias, **params)
    clf = small(loss=loss, n_members=2, batch_size=50 if single else 500).fit(numbers, labels)
    model = session(clf)
    assert_same(clf, model, numbers)
    assert_same(clf, model, 100 * numbers)


def in_turn(x):
    """Apply what onnxruntime has in float32 alone."""
    return F.mish(F.selu(F.elu(F.leaky_relu(F.gelu(F.softplus(x) - 1)))))


def test_deployment_page_runs_as_printed(tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxscript", "skops"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "deployment.rst"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 20
    assert not failed


def test_activations_that_runtimes_lack_in_float64(session, numbers, labels):
    clf = small(activation=in_turn, batch_size=1000).fit(numbers, labels)
    assert clf.net_.dtype == torch.float64
    assert_same(clf, session(clf), numbers)


def with_labels(values):
    return np.asarray(values)[np.arange(N) % len(values)]


def kind_of_label(session):
    label, probabilities = session.get_outputs()
    assert (label.name, probabilities.name) == ("label", "probabilities")
    return label.type


def test_tables_without_names(session, frame):
    X = frame[["a", "kind", "grade"]].astype(object).to_numpy()
    clf = small(categorical_features=[1, 2]).fit(X, with_labels(["no", "yes"]).astype(object))
    model = session(clf)
    assert [i.name for i in model.get_inputs()] == ["x0", "x1", "x2"]
    assert kind_of_label(model) == "tensor(string)"
    assert_same(clf, model, X)


def test_categories_alone_and_what_the_file_tells(session, frame, labels):
    X = frame[["kind", "town"]]
    clf = small().fit(X, labels)
    model = session(clf)
    assert_same(clf, model, X)
    told = model.get_modelmeta()
    assert told.producer_name == "robustclf"
    assert told.custom_metadata_map["robustclf_version"] == robustclf.__version__
    assert json.loads(told.custom_metadata_map["classes"]) == ["aye", "nay", "ünsure"]
    assert json.loads(told.custom_metadata_map["feature_names"]) == ["kind", "town"]
    assert b".py" not in session.path.read_bytes()


def test_polars(session, frame, labels):
    given = frame[["a", "kind", "count"]]
    X = pl.DataFrame({name: [None if pd.isna(v) else v for v in given[name]] for name in given})
    clf = small().fit(X, labels)
    label, proba = (model := session(clf)).run(None, feeds(model, given))
    assert_allclose(proba, clf.predict_proba(X), atol=1e-6)
    assert_array_equal(label, clf.predict(X))


def test_a_missing_string_by_another_name(session, frame, labels):
    X = frame[["kind"]].replace("ß", "")
    clf = small().fit(X, labels)
    with pytest.raises(ValueError, match=r"column 'kind' has the value '', which is to stand"):
        session(clf)
    assert_same(clf, session(clf, missing="<NA>"), X, missing="<NA>")


def test_numbers_as_they_are(session, numbers):
    X = numbers * [1, 1e6, 1e-3, 1e-9]
    clf = small(preprocess=None).fit(X, with_labels([False, True]))
    model = session(clf)
    assert kind_of_label(model) == "tensor(bool)"
    assert_same(clf, model, X)


def test_numbers_of_a_frame_as_they_are(session, numbers):
    X = pd.DataFrame(numbers * [1, 1e6, 1e-3, 1e-9], columns=list("abcd"))
    clf = small(preprocess=None).fit(X, with_labels(np.uint8([1, 2, 200])))
    model = session(clf)
    assert kind_of_label(model) == "tensor(int64)"
    assert_same(clf, model, X)


def test_fitted_to_sparse_rows(session, numbers, labels):
    X = np.where(numbers > 0.5, numbers, 0)
    clf = small().fit(csr_array(X), labels)
    assert_same(clf, session(clf), X)
    rows = torch.from_numpy(clf.encoder_.transform(csr_array(X)).toarray())
    assert_allclose(clf.export_torch().module()(rows).detach(), clf.predict_proba(X), atol=1e-6)


def test_fitted_in_parts(session, numbers):
    y = with_labels([-3, 7])
    clf = small(strategy="transition").partial_fit(numbers, y).partial_fit(numbers, y)
    model = session(clf)
    assert kind_of_label(model) == "tensor(int64)"
    assert_same(clf, model, numbers)


def test_a_module_of_torch(session, numbers):
    clf = small(module=nn.Linear, n_members=2).fit(numbers, with_labels([0.0, 1.0, 2.0]))
    model = session(clf)
    assert kind_of_label(model) == "tensor(double)"
    assert_same(clf, model, numbers)


# torch.export -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"batch_size": 1000, "n_members": 2},
        {"precision": "float64", "loss": "evidential", "module": "resnet"},
        {"preprocess": StandardScaler(), "module": nn.Linear},
    ],
    ids=str,
)
def test_a_program_of_torch(tmp_path, frame, numbers, labels, params):
    X = numbers if "preprocess" in params else frame
    clf = small(**params).fit(X, labels)
    program = clf.export_torch(tmp_path / "model.pt2")
    rows = torch.from_numpy(clf.encoder_.transform(X))
    expected = clf.predict_proba(X)
    for module in (program.module(), torch.export.load(tmp_path / "model.pt2").module()):
        proba = module(rows).detach().numpy()
        assert proba.dtype == expected.dtype
        assert_allclose(proba, expected, rtol=0, atol=1e-6)
        assert_allclose(module(rows[:1]).detach(), expected[:1], rtol=0, atol=1e-6)


# What cannot be exported ------------------------------------------------------------------------


class Picky(nn.Module):
    """Looks at the values before it decides what to do, which no graph can."""

    def __init__(self, n_inputs, n_classes):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_classes)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


@pytest.mark.usefixtures("_onnx")
def test_a_module_that_torch_cannot_export(tmp_path, numbers, labels):
    clf = small(module=Picky).fit(numbers, labels)
    path = tmp_path / "model"
    path.write_text("before")
    for export in (clf.export_onnx, clf.export_torch):
        with pytest.raises(RuntimeError, match=r"module Picky with loss=.* exported: \w+") as error:
            export(path)
        assert error.value.__cause__ is not None
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model", "before")]


@pytest.mark.usefixtures("_onnx")
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("label", [0.0, 1.0], "a column is called 'label'"),
        ("probabilities", [0.0, 1.0], "a column is called 'probabilities'"),
        ("", [0.0, 1.0], "a column is called ''"),
        ("pair", [(0, 1), (1, 0)], "column 'pair' is a category of tuple values"),
        ("id", [2**60, 2**60 + 1], "column 'id' is a category of int values"),
    ],
)
def test_columns_that_onnx_cannot_take(tmp_path, name, values, message):
    column = pd.Series(values, dtype=object).repeat(20).reset_index(drop=True)
    X = pd.DataFrame({"a": np.arange(40.0), name: column})
    categories = [name] if name in ("pair", "id") else None
    clf = small(categorical_features=categories).fit(X, np.arange(40) % 2)
    with pytest.raises(ValueError, match=message):
        clf.export_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_onnx")
def test_labels_beyond_int64_are_refused(tmp_path, numbers):
    y = np.uint64(2**63) + np.arange(len(numbers), dtype=np.uint64) % 2
    with pytest.raises(ValueError, match="classes of dtype uint64 have no ONNX form"):
        small().fit(numbers, y).export_onnx(tmp_path / "model.onnx")


@pytest.mark.usefixtures("_onnx")
def test_a_transformer_of_ones_own(tmp_path, numbers, labels):
    clf = small(preprocess=StandardScaler()).fit(numbers, labels)
    with pytest.raises(ValueError, match=r"StandardScaler\(\) has no ONNX form: .* export_torch"):
        clf.export_onnx(tmp_path / "model.onnx")


@pytest.mark.usefixtures("_onnx")
def test_not_fitted(tmp_path):
    for export in (small().export_onnx, small().export_torch):
        with pytest.raises(NotFittedError):
            export(tmp_path / "model")


@pytest.mark.usefixtures("_onnx")
@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_what_to_install(tmp_path, monkeypatch, numbers, labels, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}: run `pip install robustclf\[onnx\]`"):
        small().fit(numbers, labels).export_onnx(tmp_path / "model.onnx")


# skops ------------------------------------------------------------------------------------------


def stored(clf):
    """Return a classifier as skops stores it, and the types that the file needs trust in."""
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(clf)
    types = skops.get_untrusted_types(data=data)
    return skops.loads(data, trusted=types), types


PERSISTED = [
    {},
    {"strategy": "co_teaching", "n_members": 4, "loss": "legendretron"},
    {"module": "nested_mlp", "numeric_embedding": "piecewise_linear", "activation": "selu"},
    {"module": "nested_resnet", "numeric_embedding": "periodic", "precision": "float64"},
    {"loss": "forward_corrected", "loss__transition": T, "optimizer": "sam"},
    {"loss": make_loss("temperature", temperature=2.0) + make_loss("mae"), "optimizer": "sgd"},
    {"strategy": ["elr", "mixup"], "early_stopping": 2, "module": "resnet"},
    {"strategy": "transition", "early_stopping": NoiseCorrectedStopping(T)},
    {"track_dynamics": True, "cross_fit": 2, "batch_size": 1000, "dropout": 0.1},
    {"loss": "evidential", "loss__annealing_epochs": 5, "hidden": ()},
    {"random_state": np.random.RandomState(0), "class_weight": "balanced", "lr_schedule": None},
]


@pytest.mark.filterwarnings("ignore:strategy 'elr'", "ignore:strategy 'transition'")
@pytest.mark.parametrize("params", PERSISTED, ids=lambda params: "-".join(params) or "default")
def test_what_is_stored_is_plain(frame, unseen, labels, params):
    clf = small(**params).fit(frame, labels)
    again, types = stored(clf)
    assert [name for name in types if not name.startswith("robustclf.")] == []
    for other in (again, pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        assert_array_equal(other.predict_proba(unseen), clf.predict_proba(unseen))
        assert_array_equal(other.embed(unseen), clf.embed(unseen))
        assert_array_equal(other.classes_, clf.classes_)
        assert repr(other.net_.criterion_.loss) == repr(clf.net_.criterion_.loss)
        assert other.get_params().keys() == clf.get_params().keys()
        assert isinstance(other.history_, History)
        assert other.history_ == clf.history_
        assert other.history_[:, "train_loss"] == clf.history_[:, "train_loss"]
        for name, value in vars(clf).items():
            if isinstance(value, np.ndarray):
                assert_array_equal(getattr(other, name), value)


def test_not_yet_fitted():
    params = {"loss": make_loss("gce", q=0.5), "strategy": "mixup", "strategy__alpha": 0.3}
    again, types = stored(small(**params))
    assert types == [
        "robustclf.classifier.RobustClassifier",
        "robustclf.losses.cross_entropy.GeneralizedCrossEntropy",
    ]
    assert repr(again) == repr(small(**params))


def test_a_portfolio(frame, labels):
    clf = small(loss="auto", budget="fast").fit(frame, labels)
    again, _ = stored(clf)
    assert_array_equal(again.predict_proba(frame), clf.predict_proba(frame))
    assert str(again.auto_report_) == str(clf.auto_report_)


@pytest.mark.parametrize("strategy", [None, "co_teaching", ["elr", "mixup"]])
@pytest.mark.filterwarnings("ignore:strategy 'elr'")
def test_training_goes_on_alike(frame, labels, strategy):
    clf = small(strategy=strategy, optimizer="momo", loss="legendretron").fit(frame, labels)
    others = [stored(clf)[0], pickle.loads(pickle.dumps(clf)), clf]
    for other in others:
        known = [callback for _, callback in other.net_.callbacks_]
        assert all(any(s is c for c in known) for s in other.net_.strategies)
        other.partial_fit(frame, labels)
    for other in others[:2]:
        assert_array_equal(other.predict_proba(frame), clf.predict_proba(frame))
        assert len(other.history_) == 3


class Own(CrossEntropy):
    """A loss that is not of the package."""


def test_what_is_not_ours_needs_trust_of_its_own(numbers, labels):
    clf = small(loss=Own(), optimizer=torch.optim.Adagrad, callbacks=[]).fit(numbers, labels)
    again, types = stored(clf)
    assert {name for name in types if not name.startswith("robustclf.")} == {
        f"{Own.__module__}.Own",
        "torch.optim.adagrad.Adagrad",
    }
    assert_array_equal(again.predict_proba(numbers), clf.predict_proba(numbers))


@pytest.mark.parametrize(
    "params",
    [{"module": nn.Linear}, {"module": nn.Linear(4, 3)}, {"activation": nn.Hardswish()}],
    ids=["class", "instance", "activation"],
)
def test_modules_of_torch_are_for_pickle(numbers, labels, params):
    clf = small(**params, n_members=2).fit(numbers, labels)
    with pytest.raises(TypeError, match=r"skops cannot store .*(Linear|swish).*: the code of"):
        stored(clf)
    for other in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        assert_array_equal(other.predict_proba(numbers), clf.predict_proba(numbers))
        other.partial_fit(numbers, labels)
