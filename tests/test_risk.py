"""Losses of sets that stay below what was asked for, on right and on wrong labels."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf.conformal import (
    FalseDiscoveryRate,
    FalseNegativeRate,
    LearnThenTest,
    OnlineConformalClassifier,
    RiskController,
    SelectiveClassifier,
    SetSize,
)
from robustclf.conformal._deviations import largest_excess
from robustclf.conformal._p_values import hoeffding_bentkus
from robustclf.conformal.risk import THRESHOLDS
from robustclf.noise import inject_noise, uniform_transition

SKEWED = np.array(
    [[0.8, 0.2, 0.0, 0.0], [0.0, 0.7, 0.2, 0.1], [0.1, 0.0, 0.9, 0.0], [0.0, 0.1, 0.0, 0.9]]
)


class Given(ClassifierMixin, BaseEstimator):
    """Takes the columns of X for probabilities, as a frozen classifier does."""

    def __init__(self, n_classes=4):
        self.n_classes = n_classes

    def fit(self, X, y):
        return self

    @property
    def classes_(self):
        return np.arange(self.n_classes)

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, X):
        return X

    def predict(self, X):
        return X.argmax(axis=1)


GIVEN = FrozenEstimator(Given())


def drawn(n, rng, k=4, sure=2.0):
    """Probabilities and labels drawn from them."""
    p = softmax(sure * rng.normal(size=(n, k)), axis=1)
    return p, labels_by(p, rng)


def labels_by(p, rng):
    y = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
    return np.minimum(y, p.shape[1] - 1)


def weighted(sets, target):
    """Missing the last class costs four times as much."""
    cost = np.full(sets.shape[1], 0.25)
    cost[-1] = 1.0
    return ((target & ~sets) * cost).sum(axis=1) / target.sum(axis=1)


# Losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [FalseNegativeRate(), FalseDiscoveryRate(), SetSize()], ids=repr)
def test_loss_at_each_label_is_that_of_one_true_class(loss):
    rng = np.random.default_rng(0)
    sets = rng.random((30, 4)) < 0.5
    for k in range(4):
        target = np.zeros((30, 4), dtype=bool)
        target[:, k] = True
        assert_array_equal(loss.per_label(sets)[:, k], loss(sets, target))
        assert (loss(sets, target) <= loss.largest(4)).all()


# Conformal risk control ---------------------------------------------------------------------------


def mean_loss(controller, alpha, loss, noise=None, repeats=40, n=200, seed=0):
    """Losses of next rows over many calibrations: one row each, so that they are independent."""
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(repeats):
        p, y = drawn(n + 50, rng)
        given = y if noise is None else labels_by(noise[y], rng)
        fitted = clone(controller).fit(p[:n], given[:n])
        sets = fitted.predict_set(p[n:], alpha)
        losses.append(loss(sets, np.eye(4, dtype=bool)[y[n:]]).mean())
    return np.array(losses)


@pytest.mark.parametrize(
    ("loss", "alpha"), [("fnr", 0.1), (weighted, 0.05), ("size", 1.5)], ids=["fnr", "user", "size"]
)
def test_expected_loss_is_below_alpha_and_near_it(loss, alpha):
    controller = RiskController(GIVEN, loss=loss)
    made = {"fnr": FalseNegativeRate(), "size": SetSize()}.get(loss, weighted)
    losses = mean_loss(controller, alpha, made)
    error = losses.std() / np.sqrt(len(losses))
    assert losses.mean() <= alpha + 3 * error
    assert losses.mean() >= alpha - 4 / 200 * (4 if loss == "size" else 1) - 3 * error


@pytest.mark.parametrize("noise", [uniform_transition(0.2, 4), SKEWED], ids=["uniform", "matrix"])
def test_noise_is_undone(noise):
    aware = mean_loss(RiskController(GIVEN, noise=noise), 0.2, FalseNegativeRate(), noise, 25, 1000)
    ignored = mean_loss(RiskController(GIVEN), 0.2, FalseNegativeRate(), noise, 25, 1000)
    assert aware.mean() <= 0.2 + 3 * aware.std() / np.sqrt(len(aware))
    assert ignored.mean() < aware.mean() - 0.02  # larger sets than needed


def test_over_estimated_noise_breaks_the_promise_and_under_estimated_keeps_it():
    noise = uniform_transition(0.2, 4)
    low, high = (
        mean_loss(RiskController(GIVEN, noise=rate), 0.25, FalseNegativeRate(), noise, 15, 1500)
        for rate in (0.1, 0.35)
    )
    assert low.mean() < 0.25 < high.mean()


def test_clean_threshold_is_the_published_infimum():
    rng = np.random.default_rng(3)
    p, y = drawn(99, rng)
    control = RiskController(GIVEN).fit(p, y)
    missed = [(~(p >= t))[np.arange(99), y].sum() for t in THRESHOLDS]
    expected = THRESHOLDS[np.flatnonzero((np.array(missed) + 1) / 100 <= 0.2)[0]]
    assert control.threshold(0.2) == expected
    assert_allclose(control.risk_, np.array(missed) / 99)
    assert control.threshold(0.01) == control.thresholds_[missed.index(0)]  # (0 + 1) / 100 is 0.01


def test_uniform_correction_is_the_closed_form():
    rng = np.random.default_rng(3)
    p, y = drawn(500, rng)
    control = RiskController(GIVEN, noise=0.2, noise_convention="all").fit(p, y)
    assert control.correction_ == pytest.approx(largest_excess(500) * 1.2 / 0.8)
    assert RiskController(GIVEN, loss="size", noise=0.2).fit(p, y).correction_ == 0


def test_noisy_threshold_pays_for_the_deviation():
    p, y = drawn(800, np.random.default_rng(3))
    control = RiskController(GIVEN, noise=0.1).fit(p, y)
    weight = np.linalg.inv(uniform_transition(0.1, 4))[y]
    risk = np.array([(weight * (p < t)).sum() / 800 for t in THRESHOLDS])
    assert_allclose(control.risk_, risk, atol=1e-12)
    fits = risk + control.correction_ <= 0.25
    place = np.flatnonzero(control.threshold(0.25) == THRESHOLDS)[0]
    assert fits[place:].all()
    assert not fits[place - 1]
    assert risk[place - 1] <= 0.25  # without the correction, smaller sets


def test_size_takes_the_largest_sets_within_the_budget():
    rng = np.random.default_rng(3)
    p, y = drawn(400, rng)
    control = RiskController(GIVEN, loss="size").fit(p, y)
    place = np.flatnonzero(control.threshold(2.0) == THRESHOLDS)[0]
    assert (400 * control.risk_[place] + 4) / 401 <= 2 < (400 * control.risk_[place + 1] + 4) / 401
    assert control.threshold(4.0) == 0.0  # every threshold fits: the largest


def test_every_threshold_fits_or_none():
    p = np.full((50, 4), 0.25)
    p[:, 0], y = 1.0, np.zeros(50, dtype=int)
    p[:, 1:] = 0
    assert RiskController(GIVEN).fit(p, y).threshold(0.5) == 1.0
    control = RiskController(GIVEN).fit(*drawn(50, np.random.default_rng(0)))
    with pytest.warns(
        UserWarning, match="50 rows cannot promise a risk of 0.01: the sets are full"
    ):
        assert control.threshold(0.01) == 0.0
    size = RiskController(GIVEN, loss="size").fit(*drawn(50, np.random.default_rng(0)))
    with pytest.warns(UserWarning, match="the sets are empty"):
        assert size.threshold(0.05) == 1.0


def test_a_risk_that_no_set_holds():
    control = RiskController(GIVEN, loss=lambda sets, target: 1 - 0.5 * sets.all(axis=1))
    with pytest.raises(ValueError, match=r"below the loss of the safest sets, 0.5"):
        control.fit(*drawn(50, np.random.default_rng(0))).threshold(0.1)


# Learn then test ----------------------------------------------------------------------------------


def test_p_value_by_hand():
    p = hoeffding_bentkus([0.05], 100, 0.1)[0]
    kl = 0.05 * np.log(0.5) + 0.95 * np.log(0.95 / 0.9)
    assert p == pytest.approx(min(np.exp(-100 * kl), np.e * binom.cdf(5, 100, 0.1)))
    assert_array_equal(hoeffding_bentkus([0.1, 0.5], 100, 0.1), 1)
    assert_array_equal(hoeffding_bentkus([0.1], 100, 0.0), 1)
    assert_array_equal(hoeffding_bentkus([0.1], 100, 1.0), 0)


def test_p_value_is_valid():
    rng = np.random.default_rng(0)
    means = rng.binomial(200, 0.1, 20000) / 200
    p = hoeffding_bentkus(means, 200, 0.1)
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).sum() <= binom.ppf(1 - 1e-6, 20000, level)


@pytest.mark.parametrize("testing", ["fixed_sequence", "bonferroni"])
@pytest.mark.parametrize("noise", [None, uniform_transition(0.1, 4)], ids=["clean", "noisy"])
def test_promise_is_seldom_broken(noise, testing):
    rng = np.random.default_rng(1)
    p, y = drawn(8000, rng)
    test = LearnThenTest(GIVEN, prefer="large", noise=noise, testing=testing)
    target, broken = np.eye(4, dtype=bool)[y], 0
    true = np.array([FalseDiscoveryRate()(p >= t, target).mean() for t in THRESHOLDS])
    for _ in range(30):
        rows = rng.choice(8000, 600)
        given = y[rows] if noise is None else labels_by(noise[y[rows]], rng)
        certified = clone(test).fit(p[rows], given).certified(0.3)
        assert certified.any()
        broken += (true[certified] > 0.3).any()
    assert broken <= binom.ppf(1 - 1e-4, 30, 0.1)


def test_preferred_is_the_smallest_or_the_largest():
    rng = np.random.default_rng(1)
    p, y = drawn(2000, rng)
    small, large = (
        LearnThenTest(GIVEN, loss="fnr", prefer=prefer).fit(p, y) for prefer in ("small", "large")
    )
    certified = np.flatnonzero(small.certified(0.2))
    assert small.threshold(0.2) == THRESHOLDS[certified[0]]
    assert large.threshold(0.2) == 0.0
    assert small.risk_[certified[0]] < 0.2


@pytest.mark.parametrize(("loss", "alpha"), [("fdr", 0.3), ("size", 1.5), ("fnr", 0.2)])
def test_empty_sets_are_not_preferred(loss, alpha):
    p, y = drawn(2000, np.random.default_rng(1))
    named = "small" if loss == "fnr" else "large"
    test = LearnThenTest(GIVEN, loss=loss).fit(p, y)
    assert test.predict_set(p, alpha).any(axis=1).mean() > 0.5
    told = LearnThenTest(GIVEN, loss=loss, prefer=named).fit(p, y)
    assert test.threshold(alpha) == told.threshold(alpha)


def test_nothing_certified():
    test = LearnThenTest(GIVEN, loss="fnr").fit(*drawn(10, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"no threshold is certified.*10 rows.*Pass more rows"):
        test.predict_set(np.eye(4), 0.05)


# The estimators -----------------------------------------------------------------------------------


@parametrize_with_checks(
    [
        RiskController(LogisticRegression(), cv=None, random_state=0),
        LearnThenTest(GaussianNB(), random_state=0),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("cls", [RiskController, LearnThenTest])
def test_are_estimators_like_any_other(cls):
    X, y = make_classification(600, n_informative=6, n_classes=3, random_state=0)
    y = np.array(["ant", "bee", "cat"])[y]
    noisy = inject_noise(y, "symmetric", 0.1, random_state=0)
    made = cls(GaussianNB(), loss="fnr", noise="estimate", random_state=0)
    pipe = make_pipeline(StandardScaler(), clone(made)).fit(X, noisy)
    assert pipe.classes_.tolist() == ["ant", "bee", "cat"]
    rows = pipe[:-1].transform(X)
    again = pickle.loads(pickle.dumps(pipe[-1]))
    assert_array_equal(again.predict_set(rows, 0.4), pipe[-1].predict_set(rows, 0.4))
    assert_array_equal(pipe[-1].predict(rows), GaussianNB().fit(rows, noisy).predict(rows))
    search = GridSearchCV(made, {"estimator__var_smoothing": [1e-9, 1e-2]}, cv=2)
    assert search.fit(X, noisy).score(X, y) > 0.5


@pytest.mark.parametrize(
    "estimator",
    [RandomForestClassifier(10, random_state=0), OneVsRestClassifier(LogisticRegression())],
    ids=["list of probabilities", "columns"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_rows_of_several_labels(estimator, frozen):
    X, Y = make_multilabel_classification(1500, n_classes=5, random_state=0)
    base = clone(estimator).fit(X[:500], Y[:500])
    control = RiskController(FrozenEstimator(base) if frozen else estimator, cv=3, random_state=0)
    control.fit(X[500:1000], Y[500:1000])
    sets = control.predict_set(X[1000:], 0.2)
    assert sets.shape == (500, 5)
    assert 0.1 < FalseNegativeRate()(sets, Y[1000:].astype(bool)).mean() < 0.25
    with pytest.raises(ValueError, match="one class for each row: pass noise=None"):
        clone(control).set_params(noise=0.1).fit(X, Y)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"loss": "fdr"}, "neither falls nor grows.*LearnThenTest"),
        ({"loss": "fnrr"}, "'loss' parameter.*'fnr'"),
        ({"loss": lambda sets, target: 2.0 * len(sets) * np.ones(len(sets))}, r"in \[0, 1\]"),
        ({"loss": lambda sets, target: 0.5}, r"one number for each of 60 rows, got shape \(\)"),
        ({"noise": "estimated"}, "unknown noise|'noise' parameter"),
        ({"noise": 1.5}, r"rate must be in \[0, 1\)"),
        ({"noise": np.eye(3)}, "3 x 3 for 4 classes"),
    ],
)
def test_parameters_out_of_range(params, error):
    p, y = drawn(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"(?s){error}"):
        RiskController(GIVEN, **params).fit(p, y)


def test_a_loss_that_is_known_not_to_fall_is_refused_before_the_fit():
    class Fails(Given):
        def fit(self, X, y):
            raise AssertionError

    p, y = drawn(60, np.random.default_rng(0))
    for loss in ("fdr", FalseDiscoveryRate()):
        with pytest.raises(ValueError, match="neither falls nor grows"):
            RiskController(Fails(), loss=loss).fit(p, y)


@pytest.mark.parametrize(
    "cls", [RiskController, LearnThenTest, SelectiveClassifier, OnlineConformalClassifier]
)
def test_a_matrix_that_cannot_be_undone_is_refused_before_the_fit(cls):
    class Fails(Given):
        def fit(self, X, y):
            raise AssertionError

    p, y = drawn(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match="close to singular"):
        cls(Fails(), noise=np.full((4, 4), 0.25)).fit(p, y)
    sizes = RiskController(GIVEN, loss="size", noise=np.full((4, 4), 0.25)).fit(p, y)
    assert sizes.correction_ == 0  # which labels do not change


@pytest.mark.parametrize("alpha", [0, -1, np.nan])
@pytest.mark.parametrize("cls", [RiskController, LearnThenTest])
def test_a_risk_must_be_positive(cls, alpha):
    p, y = drawn(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match="alpha must be positive"):
        cls(GIVEN, loss="fnr").fit(p, y).threshold(alpha)
