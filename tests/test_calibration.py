"""Confidence and accuracy on true labels, measured and mended with noisy ones."""

import pickle
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, TimeSeriesSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf import RobustClassifier
from robustclf.calibration import (
    RobustCalibrator,
    expected_calibration_error,
    reliability_curve,
    smooth_calibration_error,
)
from robustclf.calibration._maps import Calibrating, RowTemperature
from robustclf.calibration._views import Views
from robustclf.noise import estimate_transition, inject_noise, uniform_transition

METHODS = ("temperature", "vector", "correctness")
T = np.array([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])


class Logits(ClassifierMixin, BaseEstimator):
    """Takes the columns of X for logits, as a frozen classifier does."""

    def __init__(self, classes=(0, 1, 2)):
        self.classes = classes

    def fit(self, X, y):
        return self

    @property
    def classes_(self):
        return np.array(self.classes)

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, X):
        return softmax(X, axis=1)

    def predict(self, X):
        return self.classes_[X.argmax(axis=1)]


def overconfident(n, temperature, seed=0):
    """Logits that are ``temperature`` times too large, and true labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)) * 1.5
    y = (softmax(z, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return z * temperature, y


def corrupted(y, transition, seed=1):
    u = np.random.default_rng(seed).random((len(y), 1))
    return (transition[y].cumsum(axis=1) < u).sum(axis=1)


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(
        1200, n_features=12, n_informative=6, n_classes=3, flip_y=0, random_state=0
    )
    return X, np.array(["ant", "bee", "cat"])[y]


# Measures -----------------------------------------------------------------------------------------


def test_error_by_hand():
    p = np.array([0.6, 0.7, 0.9, 0.9])
    proba, y = np.column_stack([p, 1 - p]), [0, 1, 0, 0]
    curve = reliability_curve(y, proba, n_bins=2)
    assert_allclose(curve.confidence, [0.65, 0.9])
    assert_allclose(curve.accuracy, [0.5, 1.0])
    assert curve.error == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)
    wide = reliability_curve(y, proba, n_bins=10, strategy="uniform")
    assert_allclose(wide.weight, [0.25, 0.25, 0.5])  # (.5, .6], (.6, .7], (.8, .9]
    assert_allclose(wide.accuracy, [1, 0, 1])
    assert expected_calibration_error(y, proba, n_bins=2) == curve.error


def test_upper_edges_belong_to_bins_of_one_width():
    p = np.array([0.5, 0.55, 0.75, 0.8, 1.0])
    curve = reliability_curve(
        [0] * 5, np.column_stack([p, 1 - p]), n_bins=4, strategy="uniform", classes=[0, 1]
    )
    assert_allclose(curve.weight, [0.2, 0.4, 0.4])  # (.25, .5], (.5, .75], (.75, 1]


def test_rows_that_are_equally_confident_share_a_bin_in_any_order():
    y, alike = np.repeat([0, 1], [90, 10]), np.repeat([[0.9, 0.1]], 100, axis=0)
    assert expected_calibration_error(y, alike) == pytest.approx(0)
    p = np.repeat([0.6, 0.8, 0.9], [50, 30, 20])
    order = np.random.default_rng(0).permutation(100)
    curve = reliability_curve(y[order], np.column_stack([p, 1 - p])[order])
    assert_allclose(curve.confidence, [0.6, 0.8, 0.9])
    assert_allclose(curve.accuracy, [1, 1, 0.5])


@pytest.mark.parametrize("convention", ["rest", "all"])
def test_corrected_accuracy_is_the_published_closed_form(convention):
    z, y = overconfident(2000, 1.0)
    given, rate = corrupted(y, uniform_transition(0.3, 3, convention)), 0.3
    proba = softmax(z, axis=1)
    plain = reliability_curve(given, proba)
    curve = reliability_curve(given, proba, noise=rate, noise_convention=convention)
    wrong = rate if convention == "rest" else rate * 2 / 3
    expected = (plain.accuracy - wrong / 2) / (1 - wrong - wrong / 2)
    assert_allclose(curve.accuracy, expected.clip(0, 1), rtol=1e-10)
    assert_array_equal(curve.confidence, plain.confidence)


def test_corrected_accuracy_is_unbiased():
    z, y = overconfident(1500, 1.5)
    proba = softmax(z, axis=1)
    true = reliability_curve(y, proba, n_bins=5).accuracy
    draws = [
        reliability_curve(corrupted(y, T, seed), proba, noise=T, n_bins=5).accuracy
        for seed in range(200)
    ]
    error = np.std(draws, axis=0) / np.sqrt(200)
    assert (abs(np.mean(draws, axis=0) - true) < 4.5 * error).all()
    assert (abs(np.mean(draws, axis=0) - true) < 0.01).all()


def test_error_needs_correction():
    z, y = overconfident(20000, 1.0)
    proba, given = softmax(z, axis=1), corrupted(y, uniform_transition(0.2, 3))
    assert expected_calibration_error(y, proba) < 0.015
    assert expected_calibration_error(given, proba) > 0.1
    assert expected_calibration_error(given, proba, noise=0.2) < 0.025


def test_smooth_error():
    pytest.importorskip("relplot")
    z, y = overconfident(5000, 1.0)
    proba, given = softmax(z, axis=1), corrupted(y, uniform_transition(0.2, 3))
    assert smooth_calibration_error(y, proba) < 0.02
    assert smooth_calibration_error(given, proba) > 0.1
    assert smooth_calibration_error(given, proba, noise=0.2) < 0.03


def test_smooth_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "relplot", None)
    with pytest.raises(ImportError, match=r"pip install robustclf\[calibration\]"):
        smooth_calibration_error([0, 1], np.eye(2))


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"strategy": "quantiles"}, "unknown strategy 'quantiles'.*did you mean 'quantile'"),
        ({"n_bins": 0}, "n_bins must be an integer >= 1, got 0"),
        ({"n_bins": 2.5}, "n_bins must be an integer >= 1, got 2.5"),
        ({"noise": "estimated"}, "unknown noise 'estimated'.*did you mean 'estimate'"),
        ({"noise": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"noise": True}, "noise must be a rate, a transition matrix.*got True"),
        ({"noise": 0.5}, "transition is singular"),
        ({"noise": np.eye(3)}, "transition is 3 x 3 for 2 classes"),
        ({"noise": [[0.9, 0.3], [0.1, 0.7]]}, "pass transition.T"),
        ({"noise": 0.1, "noise_convention": "rst"}, "unknown convention 'rst'.*'rest'"),
    ],
)
def test_what_measures_refuse(params, error):
    with pytest.raises(ValueError, match=f"(?s){error}"):
        expected_calibration_error([0, 1], np.eye(2), **params)


def test_an_estimate_of_other_classes_is_refused():
    proba = np.repeat(np.eye(2), 50, axis=0)
    estimate = estimate_transition(np.repeat(["a", "b"], 50), proba, n_bootstrap=0)
    with pytest.raises(ValueError, match=r"of the classes \['a', 'b'\], not of \['a', 'c'\]"):
        expected_calibration_error(np.repeat(["a", "c"], 50), proba, noise=estimate)


# Maps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [None, 0.2, T], ids=["clean", "uniform", "matrix"])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_is_found(noise, temperature):
    z, y = overconfident(20000, temperature)
    if noise is not None:
        y = corrupted(y, uniform_transition(0.2, 3) if np.ndim(noise) == 0 else T)
    clf = RobustCalibrator(FrozenEstimator(Logits()), noise=noise).fit(z, y)
    assert clf.temperature_ == pytest.approx(temperature, rel=0.06)
    assert_allclose(clf.predict_proba(z), softmax(z / clf.temperature_, axis=1), atol=1e-3)


@pytest.mark.parametrize("noise", [0.2, "estimate"])
def test_a_weight_of_zero_leaves_a_row_out(noise):
    z, y = overconfident(3000, 2.0)
    weight = (np.arange(3000) < 2000).astype(float)
    z[2000:] *= 9  # a bin of their own
    y[2000:] = (z[2000:].argmax(axis=1) + 1) % 3  # and all wrong
    clf = RobustCalibrator(FrozenEstimator(Logits()), noise=noise)
    without = clone(clf).fit(z[:2000], y[:2000]).temperature_
    assert clf.fit(z, y, weight).temperature_ == pytest.approx(without, rel=1e-6)


def test_without_noise_it_is_scikit_learns_temperature():
    z, y = overconfident(600, 2.0)
    clf = RobustCalibrator(FrozenEstimator(Logits())).fit(z, y)
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits()), method="temperature").fit(z, y)
    assert_allclose(clf.predict_proba(z), theirs.predict_proba(z), atol=1e-6)


def test_ignored_noise_is_worse_than_no_calibration():
    z, y = overconfident(20000, 1.2)
    given = corrupted(y, uniform_transition(0.2, 3))
    error = {"none": expected_calibration_error(y, softmax(z, axis=1))}
    for noise in (None, 0.2):
        clf = RobustCalibrator(FrozenEstimator(Logits()), noise=noise).fit(z, given)
        error[noise] = expected_calibration_error(y, clf.predict_proba(z))
    assert error[0.2] < error["none"] < error[None] / 2
    assert error[0.2] < 0.02


@pytest.mark.parametrize("noise", [None, T], ids=["clean", "noisy"])
def test_vector_scaling_undoes_factors_and_offsets(noise):
    z, y = overconfident(30000, 1.0)
    factor, offset = np.array([0.5, 1.0, 2.0]), np.array([0.6, -0.2, -0.4])
    z = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    wrong = (z - offset) / factor  # of which only a shift of all is not told
    given = y if noise is None else corrupted(y, T)
    clf = RobustCalibrator(FrozenEstimator(Logits()), method="vector", noise=noise)
    proba = clf.fit(wrong, given).predict_proba(wrong)
    assert abs(proba - softmax(z, axis=1)).mean() < 0.05
    assert expected_calibration_error(y, proba) < 0.02
    assert clf.offset_.sum() == pytest.approx(0, abs=1e-9)


def test_vector_scaling_of_clean_labels_is_a_logistic_regression():
    z, y = overconfident(500, 2.0)
    z = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    clf = RobustCalibrator(FrozenEstimator(Logits()), method="vector").fit(z, y)
    p, onehot = clf.predict_proba(z), np.eye(3)[y]
    assert_allclose((p - onehot).mean(axis=0), 0, atol=1e-4)  # stationary in the offsets
    assert_allclose(((p - onehot) * z).mean(axis=0), 0, atol=1e-4)  # and in the factors


def test_row_temperatures_follow_what_tells_them():
    z, y = overconfident(8000, 1.0)
    hot = np.arange(8000) % 2 == 0
    scaled = np.where(hot[:, None], 4 * z, z)
    given = corrupted(y, uniform_transition(0.2, 3))
    rows = Calibrating(scaled, given, uniform_transition(0.2, 3), np.ones(8000))
    features = hot[:, None].astype(float)
    fitted = RowTemperature.fit(rows, features, np.random.RandomState(0))
    told = fitted.temperature(features)
    assert told[hot].mean() == pytest.approx(4, rel=0.2)
    assert told[~hot].mean() == pytest.approx(1, rel=0.2)
    assert ((told >= 0.1) & (told <= 10)).all()


def test_row_temperature_of_a_table_calibrates():
    X, y = make_classification(4000, n_informative=6, n_redundant=10, random_state=0)
    noisy = inject_noise(y, "symmetric", 0.2, random_state=0)
    error = {}
    for noise in (None, 0.2):
        clf = RobustCalibrator(GaussianNB(), method="correctness", noise=noise, random_state=0)
        p = clf.fit(X[:2000], noisy[:2000]).predict_proba(X[2000:])
        error[noise] = expected_calibration_error(y[2000:], p)
    assert error[0.2] < error[None] / 1.5


def test_views_keep_types_and_touch_their_columns_only():
    frame = pd.DataFrame(
        {"size": [1.0, 2.0, 3.0], "kind": pd.Categorical(["a", "b", "a"]), "n": [1, 2, 3]}
    )
    views = Views.draw(frame, 6, 0.4, np.random.RandomState(0))
    own, *others = views(frame)
    assert own is frame
    assert_array_equal(views.swapped.sum(axis=1), 1)
    for v, view in enumerate(others):
        assert_array_equal(view.dtypes, frame.dtypes)
        kept = ~views.swapped[v]
        pd.testing.assert_frame_equal(view.loc[:, kept], frame.loc[:, kept])
        assert view.loc[:, ~kept].nunique().eq(1).all()
    arrays = Views.draw(frame[["size", "n"]].to_numpy(), 6, 0.4, np.random.RandomState(0))
    assert len(arrays(frame[["size", "n"]].to_numpy())) == 7


def test_views_of_polars_are_those_of_pandas():
    table = {"size": [1.0, 2.0, 3.0], "kind": ["a", "b", "a"], "n": [1, 2, 3]}
    frame = pl.DataFrame(table).with_columns(pl.col("kind").cast(pl.Categorical))
    views = Views.draw(frame, 6, 0.4, np.random.RandomState(0))
    expected = Views.draw(pd.DataFrame(table), 6, 0.4, np.random.RandomState(0))
    for view, same in zip(views(frame), expected(pd.DataFrame(table)), strict=True):
        assert view.schema == frame.schema
        assert view.rows() == list(same.itertuples(index=False, name=None))


def test_correctness_of_a_polars_frame(table):
    X, y = table
    clf = RobustCalibrator(GaussianNB(), method="correctness", random_state=0)
    frame = pl.DataFrame(X, schema=[f"x{j}" for j in range(12)])
    given = pickle.loads(pickle.dumps(clone(clf).fit(frame, y))).predict_proba(frame)
    assert_allclose(given, clf.fit(X, y).predict_proba(X), atol=0.01)  # sums in another order


# The estimator ------------------------------------------------------------------------------------

ROWS_DIFFER = {
    "check_sample_weight_equivalence_on_dense_data": "other rows are drawn for the views"
}


@parametrize_with_checks(
    [RobustCalibrator(LogisticRegression(), method=m, cv=2, random_state=0) for m in METHODS[::2]],
    expected_failed_checks=lambda clf: ROWS_DIFFER if clf.method == METHODS[2] else {},
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("method", METHODS)
def test_is_an_estimator_like_any_other(table, method):
    X, y = table
    noisy = inject_noise(y, "symmetric", 0.2, random_state=0)
    clf = RobustCalibrator(GaussianNB(), method=method, noise="estimate", random_state=0)
    assert is_classifier(clf)
    fitted = make_pipeline(StandardScaler(), clone(clf)).fit(X, noisy)
    assert fitted.classes_.tolist() == ["ant", "bee", "cat"]
    assert_allclose(fitted.predict_proba(X).sum(axis=1), 1)
    again = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert_array_equal(
        make_pipeline(StandardScaler(), clone(clf)).fit(X, noisy).predict_proba(X),
        fitted.predict_proba(X),
    )
    search = GridSearchCV(clf, {"noise": [None, 0.2]}, cv=2, scoring="neg_log_loss")
    assert search.fit(X[:300], noisy[:300]).best_params_["noise"] is None  # scored on noisy labels


def test_folds_calibrate_by_rows_that_were_not_seen(table):
    X, y = table
    clf = RobustCalibrator(GaussianNB(), cv=KFold(3)).fit(X, y)
    proba = np.concatenate(
        [
            GaussianNB().fit(X[train], y[train]).predict_proba(X[test])
            for train, test in KFold(3).split(X)
        ]
    )
    codes = np.searchsorted(clf.classes_, y)
    alone = RobustCalibrator(FrozenEstimator(Logits())).fit(np.log(proba), codes)
    assert clf.temperature_ == pytest.approx(alone.temperature_)
    assert_array_equal(clf.estimator_.predict(X), GaussianNB().fit(X, y).predict(X))


def test_our_classifier_is_fitted_once(table, monkeypatch):
    X, y = table
    fits = []
    fit = RobustClassifier.fit
    monkeypatch.setattr(RobustClassifier, "fit", lambda *a, **k: fits.append(1) or fit(*a, **k))
    small = RobustClassifier(loss="gce", hidden=(16,), max_epochs=2, random_state=0)
    clf = RobustCalibrator(small, cv=3, noise=0.1).fit(X, y)
    assert len(fits) == 1
    assert clf.predict_proba(X).shape == (1200, 3)


def test_a_class_that_a_fold_lacks():
    X = np.arange(14.0)[:, None]
    y = np.array([0] * 8 + [1] * 5 + [2])
    clf = RobustCalibrator(GaussianNB(), cv=4, random_state=0).fit(X, y)
    assert clf.predict_proba(X).shape == (14, 3)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"method": "temprature"}, "'method' parameter.*'temperature'"),
        ({"noise": 1.5}, r"rate must be in \[0, 1\), got 1.5"),
        ({"noise": 2 / 3}, "transition is singular"),
        ({"noise": [[1, 0], [0, 1]]}, "2 x 2 for 3 classes"),
        ({"cv": TimeSeriesSplit(3)}, "hold out each row once, got 300 rows in no fold"),
        ({"swap": 1.5}, "'swap' parameter"),
    ],
)
def test_parameters_out_of_range(table, params, error):
    X, y = table
    with pytest.raises(ValueError, match=f"(?s){error}"):
        RobustCalibrator(GaussianNB(), **params).fit(X, y)


@pytest.mark.parametrize("method", ["temperature", "correctness"])
def test_noise_that_cannot_be_undone_is_refused_before_the_fit(table, method, monkeypatch):
    def fit(*_, **__):
        raise AssertionError

    X, y = table
    monkeypatch.setattr(GaussianNB, "fit", fit)
    with pytest.raises(ValueError, match="transition is singular"):
        RobustCalibrator(GaussianNB(), method=method, noise=2 / 3).fit(X, y)


def test_labels_that_cannot_work(table):
    X, y = table
    with pytest.raises(ValueError, match="y is None"):
        RobustCalibrator(GaussianNB()).fit(X, None)
    with pytest.raises(ValueError, match="at least two classes"):
        RobustCalibrator(GaussianNB()).fit(X, np.full(1200, "ant"))
    frozen = FrozenEstimator(GaussianNB().fit(X, y))
    with pytest.raises(ValueError, match=r"labels \['dog'\] beyond the classes"):
        RobustCalibrator(frozen).fit(X, np.full(1200, "dog"))
