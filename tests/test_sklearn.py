"""RobustClassifier among scikit-learn's tools."""

import os

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from small_classifier import small

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf.strategies import Mixup


@parametrize_with_checks(
    [
        RobustClassifier(loss="gce", hidden=(32,), max_epochs=60, lr=0.02),
        RobustClassifier(
            hidden=(32,), max_epochs=60, lr=0.02, preprocess=None, loss="ce", optimizer="sam"
        ),
    ]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


# Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"loss": "gce", "loss__q": 0.4},
        {"loss": make_loss("gce", q=0.2), "loss__q": 0.4},
        {"strategy": ["elr", Mixup(0.3)], "loss": "ce"},
        {"optimizer": "sam", "optimizer__rho": 0.1},
        {"module": torch.nn.Linear, "module__bias": False},
    ],
    ids=str,
)
def test_clone_keeps_every_parameter(iris, params):
    clf = small(**params)
    copy = clone(clf)
    names = [name for name in params if "__" in name]
    assert {n: copy.get_params()[n] for n in names} == {n: params[n] for n in names}
    assert str(copy) == str(clf)
    X, y = iris
    assert_array_equal(copy.fit(X, y).predict_proba(X), clf.fit(X, y).predict_proba(X))
    assert not hasattr(clone(clf), "net_")


def test_every_parameter_is_named_and_documented():
    params = RobustClassifier().get_params()
    assert "params" not in params
    assert "kwargs" not in params
    documented = RobustClassifier.__doc__.partition("Parameters")[2].partition("Attributes")[0]
    assert all(f"\n    {name} :" in documented for name in params)
    assert repr(RobustClassifier()) == "RobustClassifier()"
    assert repr(RobustClassifier(loss="auto")) == "RobustClassifier()"
    both = "RobustClassifier(loss='gce', loss__q=0.5)"
    assert repr(RobustClassifier(loss="gce", loss__q=0.5)) == both


def test_parameters_are_keyword_only():
    with pytest.raises(TypeError, match="positional argument"):
        RobustClassifier("gce")


def test_html_shows_parameters(iris):
    clf = small(loss="focal", loss__gamma=1.5)
    before = clf._repr_html_()
    assert "RobustClassifier" in before
    assert "focal" in before
    assert "loss__gamma" in before
    assert "Not fitted" in before
    after = make_pipeline(StandardScaler(), clf.fit(*iris))._repr_html_()
    assert "RobustClassifier" in after
    assert "loss__gamma" in after


# Composition ----------------------------------------------------------------------------------


def mixed():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=200),
            "weight": 1000 * rng.normal(size=200),
            "color": rng.choice(["red", "green", "blue"], 200),
        }
    )
    y = np.where(frame["size"] + 2 * (frame["color"] == "red") > 0.7, "in", "out")
    return frame, y


def test_pipeline_and_column_transformer():
    X, y = mixed()
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), ["size", "weight"]), ("names", OneHotEncoder(), ["color"])]
    )
    pipe = make_pipeline(columns, small(max_epochs=40, batch_size=32)).fit(X, y)
    assert pipe.score(X, y) > 0.85
    pipe.set_params(robustclassifier__loss="ce", robustclassifier__loss__unknown=1)
    with pytest.raises(ValueError, match="unknown parameter of loss 'ce' 'unknown'"):
        pipe.fit(X, y)
    pipe.set_params(robustclassifier__loss="focal", robustclassifier__loss__gamma=3.0).fit(X, y)
    assert pipe[-1].net_.criterion_.loss.gamma == 3.0


@pytest.mark.parametrize("output", ["pandas", "polars", "default"])
@pytest.mark.parametrize("preprocess", ["auto", None, StandardScaler()], ids=str)
def test_set_output_of_neighbours(iris, output, preprocess):
    X, y = pd.DataFrame(iris[0], columns=["a", "b", "c", "d"]), iris[1]
    with sklearn.config_context(transform_output=output):
        pipe = make_pipeline(StandardScaler(), small(preprocess=preprocess)).fit(X, y)
        inside = pipe.predict_proba(X)
        pipe[-1].partial_fit(pipe[:-1].transform(X), y)
    plain = make_pipeline(StandardScaler(), small(preprocess=preprocess)).fit(X, y)
    assert type(inside) is np.ndarray
    assert_allclose(inside, plain.predict_proba(X), atol=1e-5)
    named = hasattr(pipe[-1], "feature_names_in_")
    assert named is (output != "default")


def test_cross_val_score_and_predict(iris):
    X, y = iris
    clf = small(loss="ce", max_epochs=30, batch_size=25)
    assert cross_val_score(clf, X, y, cv=3).mean() > 0.9
    proba = cross_val_predict(clf, X, y, cv=3, method="predict_proba")
    assert_allclose(proba.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
def test_calibration(iris, method):
    X, y = iris
    order = np.random.default_rng(0).permutation(150)
    calibrated = CalibratedClassifierCV(
        small(loss="ce", max_epochs=30, batch_size=25), method=method, cv=3
    )
    calibrated.fit(X[order], y[order])
    assert calibrated.score(X, y) > 0.9


def test_other_meta_estimators(iris):
    X, y = iris
    clf = small(loss="ce", max_epochs=30, batch_size=25)
    assert OneVsRestClassifier(clf).fit(X, y).score(X, y) > 0.8
    assert BaggingClassifier(clf, n_estimators=2, random_state=0).fit(X, y).score(X, y) > 0.8


# Search ---------------------------------------------------------------------------------------


def test_grid_search_over_every_part_in_two_workers(iris, monkeypatch):
    """Two workers share the cores, also where the environment says nothing about threads."""
    for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
        monkeypatch.delenv(name)
    X, y = iris
    grid = [
        {"loss": ["ce"], "lr": [1e-6, 0.05]},
        {"loss": ["gce"], "loss__q": [0.3, 0.6], "strategy": [None, "mixup"], "lr": [0.05]},
        {"strategy": [["mixup", make_strategy("label_smoothing", epsilon=0.2)]], "lr": [0.05]},
    ]

    def threads(clf, X, y):
        return torch.get_num_threads()

    options = {"scoring": {"right": "accuracy", "threads": threads}, "refit": "right", "cv": 2}
    clf = small(max_epochs=20, batch_size=25)
    search = GridSearchCV(clf, grid, n_jobs=2, **options).fit(X, y)
    assert search.best_score_ > 0.9
    assert search.best_params_["lr"] == 0.05
    results = search.cv_results_
    assert max(results["mean_test_threads"]) <= max(1, joblib.cpu_count() // 2)
    assert len(results["mean_test_right"]) == 7
    alone = GridSearchCV(clf, grid, **options).fit(X, y)
    assert_allclose(alone.cv_results_["mean_test_right"], results["mean_test_right"], atol=1e-6)


def test_search_passes_the_parameters_on(iris):
    search = GridSearchCV(small(loss__q=0.2), {"loss__q": [0.4]}, cv=2).fit(*iris)
    assert search.best_estimator_.net_.criterion_.loss.q == 0.4
    search = GridSearchCV(small(loss__q=0.2), {"loss": ["ce", "focal"]}, cv=2).fit(*iris)
    assert "loss__q" not in search.best_estimator_.get_params()


# Metadata routing -----------------------------------------------------------------------------


def test_routing_of_sample_weight(iris):
    X, y = iris
    weight = np.where(y == 2, 0.0, 1.0)
    seen = []

    class Spy(RobustClassifier):
        def __init__(self, *, hidden=(16,), max_epochs=2, **params):
            super().__init__(hidden=hidden, max_epochs=max_epochs, **params)

        def fit(self, X, y, sample_weight=None):
            seen.append(sample_weight)
            return super().fit(X, y, sample_weight=sample_weight)

    with sklearn.config_context(enable_metadata_routing=True):
        folds = StratifiedKFold(2)
        asked = Spy().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        cross_val_score(asked, X, y, cv=folds, params={"sample_weight": weight})
        refused = Spy().set_fit_request(sample_weight=False).set_score_request(sample_weight=True)
        cross_val_score(refused, X, y, cv=folds, params={"sample_weight": weight})
    expected = [weight[train] for train, _ in folds.split(X, y)]
    for got, given in zip(seen[:2], expected, strict=True):
        assert_array_equal(got, given)
    assert seen[2:] == [None, None]


def test_routing_through_a_pipeline(iris):
    X, y = iris
    weight = np.arange(150.0)
    with sklearn.config_context(enable_metadata_routing=True):
        clf = small().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scaler, clf).fit(X, y, sample_weight=weight)
    direct = small().fit(StandardScaler().fit_transform(X), y, sample_weight=weight)
    assert_allclose(pipe.predict_proba(X), direct.predict_proba(StandardScaler().fit_transform(X)))
    assert np.abs(pipe.predict_proba(X) - small().fit(X, y).predict_proba(X)).max() > 1e-3


def test_calibration_hands_weights_on(iris):
    X, y = iris
    weight = np.where(np.arange(150) % 2, 1.0, 3.0)
    plain = CalibratedClassifierCV(small(), cv=2).fit(X, y)
    weighted = CalibratedClassifierCV(small(), cv=2).fit(X, y, sample_weight=weight)
    assert np.abs(plain.predict_proba(X) - weighted.predict_proba(X)).max() > 1e-4


def test_tags():
    tags = RobustClassifier().__sklearn_tags__()
    assert tags.estimator_type == "classifier"
    assert tags.input_tags.sparse
    assert tags.input_tags.allow_nan
    assert tags.input_tags.categorical
    assert not RobustClassifier(loss="gce", preprocess=None).__sklearn_tags__().input_tags.allow_nan
