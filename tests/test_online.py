"""Sets that follow drift, with right labels and with wrong ones."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf.conformal import APS, OnlineConformalClassifier, conformal_quantile
from robustclf.noise import inject_noise, uniform_transition

K = 4
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


def drifting(n, rng):
    """Probabilities that are right at first and ever more too sure."""
    z = 2 * rng.normal(size=(n, K))
    return softmax(z, axis=1), labels_by(softmax(z / np.linspace(1, 8, n)[:, None], axis=1), rng)


def followed(online, p, y, given, batch=1):
    """Which true labels the sets missed, before the labels of their batch came in."""
    missed = []
    for start in range(0, len(p), batch):
        rows = slice(start, start + batch)
        sets = online.predict_set(p[rows])
        missed.append(~sets[np.arange(len(sets)), y[rows]])
        online.update(p[rows], given[rows])
    return np.concatenate(missed)


def made(**params):
    return OnlineConformalClassifier(FrozenEstimator(Given()), **params)


@pytest.mark.parametrize("order", ["drift", "worst first", "best first"])
@pytest.mark.parametrize("step", [0.01, 0.2])
def test_the_published_bound_holds_for_any_sequence(order, step):
    p, y = drifting(400, np.random.default_rng(0))
    online = made(step=step).fit(p[:100], y[:100])
    p, y = p[100:], y[100:]
    if order != "drift":
        worst = np.argsort(p[np.arange(len(p)), y])
        p, y = (a[worst if order == "worst first" else worst[::-1]] for a in (p, y))
    missed = followed(online, p, y, y)
    for t in (50, 150, 300):
        assert abs(missed[:t].mean() - 0.1) <= (1 + step) / (step * t)
    assert online.miscoverage_ == pytest.approx(missed.mean())
    assert online.n_updates_ == 300


@pytest.mark.parametrize("track", ["threshold", "level"])
def test_drift_is_followed_and_without_updates_is_not(track):
    p, y = drifting(3000, np.random.default_rng(0))
    online = made(track=track, step=0.02, window=400).fit(p[:500], y[:500])
    fixed = ~online.predict_set(p[500:])[np.arange(2500), y[500:]]
    missed = followed(online, p[500:], y[500:], y[500:], batch=20)
    assert fixed[-1000:].mean() > 0.2
    assert missed.mean() == pytest.approx(0.1, abs=0.02)
    assert missed[-1000:].mean() == pytest.approx(0.1, abs=0.035)


@pytest.mark.parametrize("noise", [uniform_transition(0.2, K), SKEWED], ids=["uniform", "matrix"])
@pytest.mark.parametrize("track", ["threshold", "level"])
def test_true_labels_are_missed_as_often_as_asked_for(noise, track):
    rng = np.random.default_rng(1)
    p = softmax(4 * rng.normal(size=(3000, K)), axis=1)
    y = labels_by(p, rng)
    given = labels_by(noise[y], rng)
    share = {}
    for known in (None, noise):
        online = made(noise=known, step=0.02, track=track, window=400).fit(p[:500], given[:500])
        share[known is None] = followed(online, p[500:], y[500:], given[500:], 20).mean()
    # within 1 / (step n) by the bound of the first paper, and three standard errors
    assert share[False] == pytest.approx(0.1, abs=0.04)
    assert share[True] < share[False] - 0.04


def test_update_is_the_gradient_of_the_robust_pinball_loss():
    p, y = drifting(200, np.random.default_rng(2))
    share, alpha = 0.3, 0.1
    online = made(noise=share, noise_convention="all", step=0.07).fit(p[:150], y[:150])
    tau, row, label = online.threshold_, p[[170]], y[[170]]

    def pinball(t, score):
        return max((1 - alpha) * (score - t), alpha * (t - score))

    def robust(t):
        scores = 1 - row[0]
        noisy, every = pinball(t, scores[label[0]]), np.mean([pinball(t, s) for s in scores])
        return (noisy - share * every) / (1 - share)

    slope = (robust(tau + 1e-7) - robust(tau - 1e-7)) / 2e-7
    assert online.update(row, label).threshold_ == pytest.approx(tau - 0.07 * slope, abs=1e-6)


def test_level_is_that_of_adaptive_conformal_inference():
    p, y = drifting(260, np.random.default_rng(3))
    online = made(track="level", step=0.05, window=200, alpha=0.2).fit(p[:200], y[:200])
    scores = list((1 - p)[np.arange(260), y])
    level = 0.2
    for i in range(200, 260):
        quantile = float(conformal_quantile(scores[i - 200 : i], level))
        assert online.threshold_ == pytest.approx(quantile)
        level += 0.05 * (0.2 - (scores[i] > quantile))
        online.update(p[[i]], y[[i]])
        assert online.level_ == pytest.approx(level)


def test_levels_beyond_all_give_full_or_empty_sets():
    p, y = drifting(300, np.random.default_rng(4))
    online = made(track="level", step=5.0).fit(p[:100], y[:100])
    sizes = set()
    for i in range(100, 300):
        sizes.add(online.update(p[[i]], y[[i]]).predict_set(p[[i]]).sum())
    assert {0, K} <= sizes


def test_decay_settles():
    p, y = drifting(1000, np.random.default_rng(5))
    online = made(step=0.5, decay=0.6).fit(p[:100], y[:100])
    moves = []
    for i in range(100, 1000):
        before = online.threshold_
        moves.append(abs(online.update(p[[i]], y[[i]]).threshold_ - before))
    assert max(moves[-100:]) < 0.1 * max(moves[:10])


def test_first_threshold_misses_the_share_of_the_rows():
    rng = np.random.default_rng(6)
    p, y = drifting(3000, rng)
    p, y = p[:800], y[:800]
    clean = made().fit(p, y)
    scores = (1 - p)[np.arange(800), y]
    assert clean.threshold_ == np.sort(scores)[int(np.ceil(0.9 * 800)) - 1]
    noisy = made(noise=0.2).fit(p, labels_by(uniform_transition(0.2, K)[y], rng))
    assert (scores > noisy.threshold_).mean() == pytest.approx(0.1, abs=0.04)


def test_rows_at_once_are_rows_one_by_one():
    p, y = drifting(400, np.random.default_rng(7))
    at_once = made(score="aps", random_state=0).fit(p[:200], y[:200])
    one_by_one = clone(at_once).fit(p[:200], y[:200])
    followed(one_by_one, p[200:], y[200:], y[200:])
    assert at_once.update(p[200:], y[200:]).threshold_ == one_by_one.threshold_


@parametrize_with_checks([OnlineConformalClassifier(LogisticRegression(), cv=None, random_state=0)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_is_an_estimator_like_any_other():
    X, y = make_classification(600, n_informative=6, n_classes=3, random_state=0)
    y = np.array(["ant", "bee", "cat"])[y]
    noisy = inject_noise(y, "symmetric", 0.1, random_state=0)
    online = OnlineConformalClassifier(
        GaussianNB(), score=APS(), noise="estimate", alpha=0.2, random_state=0
    )
    pipe = make_pipeline(StandardScaler(), online).fit(X[:400], noisy[:400])
    rows = pipe[:-1].transform(X[400:])
    fitted = pipe[-1].update(rows, noisy[400:])
    again = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(
        again.update(rows, noisy[400:]).predict_set(rows),
        fitted.update(rows, noisy[400:]).predict_set(rows),
    )
    assert fitted.score(rows, y[400:]) > 0.5
    assert clone(online).get_params()["score"].randomized


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"score": "apss"}, "'score' parameter.*'aps'"),
        ({"alpha": 0}, "'alpha' parameter"),
        ({"track": "tau"}, "'track' parameter"),
        ({"step": 0}, "'step' parameter"),
        ({"decay": 1.0}, "'decay' parameter"),
        ({"noise": 2.0}, "rate must be in"),
    ],
)
def test_parameters_out_of_range(params, error):
    p, y = drifting(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"(?s){error}"):
        made(**params).fit(p, y)


def test_labels_that_cannot_work():
    p, y = drifting(60, np.random.default_rng(0))
    online = made().fit(p, y)
    with pytest.raises(ValueError, match=r"labels \[9\] beyond the classes"):
        online.update(p[:1], [9])
    with pytest.raises(ValueError, match="X has 2 rows for 1 labels"):
        online.update(p[:2], [1])
    assert online.n_updates_ == 0
