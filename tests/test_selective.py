"""Predictions that are accepted are wrong as seldom as promised."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf.conformal import ConformalClassifier, SelectiveClassifier
from robustclf.noise import inject_noise, uniform_transition

K = 4
RULES = ("confidence", "sets", "centroid")
SKEWED = np.array(
    [[0.8, 0.2, 0.0, 0.0], [0.0, 0.7, 0.2, 0.1], [0.1, 0.0, 0.9, 0.0], [0.0, 0.1, 0.0, 0.9]]
)


class Given(ClassifierMixin, BaseEstimator):
    """Takes the columns of X for probabilities, as a frozen classifier does."""

    classes_ = np.arange(K)

    def fit(self, X, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, X):
        return X

    def predict(self, X):
        return X.argmax(axis=1)


def labels_by(p, rng):
    return np.minimum((p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1), K - 1)


def drawn(n, rng):
    p = softmax(3 * rng.normal(size=(n, K)), axis=1)
    return p, labels_by(p, rng)


def made(**params):
    return SelectiveClassifier(FrozenEstimator(Given()), **params)


@pytest.mark.filterwarnings("ignore:no row can be accepted")  # as happens by chance
@pytest.mark.parametrize(
    "noise", [None, uniform_transition(0.1, K), SKEWED], ids=["clean", "uniform", "matrix"]
)
def test_risk_of_the_confident_is_certified(noise):
    rng = np.random.default_rng(0)
    p, y = drawn(20000, rng)
    broken, accepted = 0, []
    for _ in range(60):
        rows = rng.choice(20000, 1500)
        given = y[rows] if noise is None else labels_by(noise[y[rows]], rng)
        clf = made(alpha=0.15, delta=0.2, noise=noise).fit(p[rows], given)
        taken = clf.accept(p)
        # of this threshold, known from the probabilities that labels are drawn from
        broken += taken.any() and (1 - p[taken].max(axis=1)).mean() > 0.15
        accepted.append(taken.mean())
    assert broken <= binom.ppf(1 - 1e-4, 60, 0.2)
    assert np.mean(accepted) > (0.4 if noise is None else 0.15)


def test_noise_ignored_defers_what_is_right():
    rng = np.random.default_rng(0)
    p, y = drawn(3000, rng)
    given = labels_by(uniform_transition(0.2, K)[y], rng)
    with pytest.warns(UserWarning, match="no row can be accepted with alpha=0.1"):
        ignored = made(alpha=0.1).fit(p, given)
    assert ignored.accepted_ == 0
    assert np.isnan(ignored.risk_)
    aware = made(alpha=0.1, noise=0.2).fit(p, given)
    assert aware.accepted_ > 0.2
    assert (p.argmax(axis=1) != y)[aware.accept(p)].mean() < 0.1
    assert aware.risk_ == pytest.approx((p.argmax(axis=1) != y)[aware.accept(p)].mean(), abs=0.05)


def test_clean_confidence_is_the_largest_share_that_passes_the_binomial_test():
    p, y = drawn(1000, np.random.default_rng(1))
    clf = made(alpha=0.1).fit(p, y)
    confidence, wrong = p.max(axis=1), p.argmax(axis=1) != y
    order = np.argsort(-confidence)
    passed = [
        m for m in range(50, 1001, 50) if binom.cdf(wrong[order[:m]].sum(), m, 0.1) <= 0.1 / 20
    ]
    assert clf.accepted_ == max(passed) / 1000
    assert clf.risk_ == pytest.approx(wrong[order[: max(passed)]].mean())


def test_the_most_probable_class_is_predicted_as_certified():
    X, y = make_classification(600, random_state=0)
    base = LogisticRegression()
    tuned = FixedThresholdClassifier(base, threshold=0.97, response_method="predict_proba")
    clf = SelectiveClassifier(tuned, alpha=0.2, random_state=0).fit(X, y)
    expected, accepted = base.fit(X, y).predict(X), clf.accept(X)
    assert_array_equal(clf.predict(X), expected)
    assert_array_equal(clf.predict_or_defer(X)[accepted], expected[accepted])


@pytest.mark.parametrize("noise", [None, uniform_transition(0.1, K)], ids=["clean", "uniform"])
def test_single_sets_are_seldom_wrong(noise):
    rng = np.random.default_rng(2)
    wrong = []
    for _ in range(60):
        p, y = drawn(1100, rng)
        given = y if noise is None else labels_by(noise[y], rng)
        clf = made(rule="sets", alpha=0.1, noise=noise).fit(p[:1000], given[:1000])
        wrong.append((clf.accept(p[1000:]) & (p[1000:].argmax(axis=1) != y[1000:])).mean())
    assert 0.03 < np.mean(wrong) <= 0.1


def test_sets_are_those_of_the_conformal_classifier():
    rng = np.random.default_rng(2)
    p, y = drawn(800, rng)
    clf = made(rule="sets", alpha=0.2, noise=0.1, random_state=0).fit(p, y)
    conformal = ConformalClassifier(FrozenEstimator(Given()), noise=0.1, random_state=0).fit(p, y)
    assert_array_equal(clf.accept(p), conformal.predict_set(p, 0.2).sum(axis=1) == 1)


def test_centroids_accept_a_share_of_the_wrong_predictions():
    p, y = drawn(4000, np.random.default_rng(3))
    clf = made(rule="centroid", alpha=0.2).fit(p, y)
    predicted, wrong = p.argmax(axis=1), p.argmax(axis=1) != y
    for k in range(K):
        of_class = wrong & (predicted == k)
        assert clf.accept(p)[of_class].mean() == pytest.approx(0.2, abs=1 / of_class.sum())
    right = ~wrong & (predicted == 1)
    assert_allclose(clf.centroids_[1], p[right].mean(axis=0))
    assert clf.accept(p)[right].mean() > 0.4


def test_one_wrong_label_defers_nothing_more():
    p, y = drawn(4000, np.random.default_rng(3))
    clean = made(rule="centroid", alpha=0.2).fit(p, y)
    easiest = np.argmax(p.max(axis=1))
    spoiled = y.copy()
    spoiled[easiest] = (p[easiest].argmax() + 1) % K
    assert made(rule="centroid", alpha=0.2).fit(p, spoiled).accepted_ > clean.accepted_ - 0.02


def test_centroids_with_noise_are_near_those_without():
    rng = np.random.default_rng(4)
    p, y = drawn(20000, rng)
    given = labels_by(SKEWED[y], rng)
    clean, ignored, aware = (
        made(rule="centroid", alpha=0.2, noise=noise).fit(p, labels)
        for labels, noise in ((y, None), (given, None), (given, SKEWED))
    )
    assert_allclose(aware.centroids_, clean.centroids_, atol=0.01)
    assert abs(aware.accepted_ - clean.accepted_) < abs(ignored.accepted_ - clean.accepted_)


# The estimator ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no row can be accepted")
@parametrize_with_checks(
    [
        SelectiveClassifier(LogisticRegression(), cv=None, random_state=0),
        SelectiveClassifier(GaussianNB(), rule="centroid", random_state=0),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("rule", RULES)
def test_is_an_estimator_like_any_other(rule):
    X, y = make_classification(900, n_informative=6, n_classes=3, class_sep=2, random_state=0)
    y = np.array(["ant", "bee", "cat"])[y]
    noisy = inject_noise(y, "symmetric", 0.1, random_state=0)
    clf = SelectiveClassifier(GaussianNB(), rule=rule, alpha=0.3, noise="estimate", random_state=0)
    pipe = make_pipeline(StandardScaler(), clone(clf)).fit(X, noisy)
    rows = pipe[:-1].transform(X)
    again = pickle.loads(pickle.dumps(pipe[-1]))
    assert_array_equal(again.accept(rows), pipe[-1].accept(rows))
    labels = again.predict_or_defer(rows)
    accepted = again.accept(rows)
    assert_array_equal(labels[accepted], again.predict(rows)[accepted])
    assert all(label is None for label in labels[~accepted])
    assert set(again.predict_or_defer(rows, "?")) <= {"ant", "bee", "cat", "?"}
    search = GridSearchCV(clf, {"alpha": [0.3, 0.4]}, cv=2).fit(X, noisy)
    assert search.score(X, y) > 0.6


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"rule": "confident"}, "'rule' parameter.*'confidence'"),
        ({"alpha": 1.0}, "'alpha' parameter"),
        ({"delta": 0}, "'delta' parameter"),
        ({"noise": np.eye(3)}, "3 x 3 for 4 classes"),
    ],
)
def test_parameters_out_of_range(params, error):
    p, y = drawn(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"(?s){error}"):
        made(**params).fit(p, y)
