import pickle
import warnings

import numpy as np
import pytest
import sklearn
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from sklearn.model_selection import GridSearchCV, KFold, cross_validate

from robustclf.noise.inject import inject_noise
from robustclf.noise.matrices import pair_transition, uniform_transition
from robustclf.noise.scoring import (
    make_noise_corrected_scorer,
    noise_corrected_accuracy,
    noise_corrected_confusion_matrix,
)

ASYMMETRIC = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.1, 0.6]])


@pytest.fixture
def labels(rng):
    """True labels, and predictions right in about 70 % of the rows."""
    y = rng.choice(3, size=300, p=[0.5, 0.3, 0.2])
    return y, np.where(rng.random(300) < 0.7, y, rng.integers(3, size=300))


class Column(ClassifierMixin, BaseEstimator):
    """Predicts what stands in a column of X."""

    def __init__(self, column=0):
        self.column = column

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return X[:, self.column].astype(int)


class Estimate:
    """A matrix in the clothes of an estimate."""

    def __init__(self, transition, classes):
        self.transition, self.classes = transition, classes

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.transition, dtype=dtype)


def test_identity_is_plain_accuracy(labels):
    assert noise_corrected_accuracy(*labels, np.eye(3)) == accuracy_score(*labels)


def test_identity_is_plain_accuracy_of_weighted_rows(labels, rng):
    weight = rng.random(300)
    score = noise_corrected_accuracy(*labels, np.eye(3), sample_weight=weight)
    assert score == pytest.approx(accuracy_score(*labels, sample_weight=weight), abs=1e-14)


def test_identity_is_plain_confusion_matrix_and_balanced_accuracy(labels):
    plain = confusion_matrix(*labels, normalize="all")
    np.testing.assert_allclose(
        noise_corrected_confusion_matrix(*labels, np.eye(3)), plain, atol=1e-15
    )
    scorer = make_noise_corrected_scorer(np.eye(3), metric="balanced_accuracy")
    y, predicted = labels
    score = scorer(Column().fit(None, y), predicted[:, None], y)
    assert score == pytest.approx(balanced_accuracy_score(*labels), abs=1e-14)


def test_weights_are_repetitions(labels, rng):
    times = rng.integers(0, 4, size=300)
    weighted = noise_corrected_confusion_matrix(*labels, ASYMMETRIC, sample_weight=times)
    repeated = noise_corrected_confusion_matrix(*(np.repeat(v, times) for v in labels), ASYMMETRIC)
    np.testing.assert_allclose(weighted, repeated, atol=1e-14)


def test_exact_where_noise_is_as_expected():
    """Counts of given labels in the very proportions of T give the true table back."""
    y, predicted = np.repeat([0, 1, 2, 1], 200), np.repeat([0, 1, 1, 2], 200)
    parts = [np.repeat([0, 1, 2], np.rint(200 * ASYMMETRIC[k]).astype(int)) for k in [0, 1, 2, 1]]
    corrected = noise_corrected_confusion_matrix(np.concatenate(parts), predicted, ASYMMETRIC)
    np.testing.assert_allclose(corrected, confusion_matrix(y, predicted) / 800, atol=1e-15)


def test_trace_is_the_accuracy(labels):
    trace = np.trace(noise_corrected_confusion_matrix(*labels, ASYMMETRIC))
    assert noise_corrected_accuracy(*labels, ASYMMETRIC) == pytest.approx(trace, abs=1e-14)


def test_unbiased(labels):
    y, predicted = labels
    draws = [inject_noise(y, "matrix", transition=ASYMMETRIC, random_state=s) for s in range(400)]
    tables = np.array(
        [noise_corrected_confusion_matrix(noisy, predicted, ASYMMETRIC) for noisy in draws]
    )
    error = tables.std(axis=0, ddof=1) / 20
    np.testing.assert_array_less(
        abs(tables.mean(axis=0) - confusion_matrix(y, predicted) / 300), 4 * error
    )
    scores = np.trace(tables, axis1=1, axis2=2)
    assert abs(scores.mean() - np.mean(y == predicted)) < 4 * scores.std(ddof=1) / 20
    plain = np.mean([noisy == predicted for noisy in draws])
    assert abs(plain - np.mean(y == predicted)) > 20 * scores.std(ddof=1) / 20


@pytest.mark.parametrize("weighted", [False, True])
def test_interval_covers_as_often_as_it_says(rng, weighted):
    runs, n, level, right = 600, 400, 0.9, 0.7
    hits = 0
    for _ in range(runs):
        y = rng.integers(3, size=n)
        wrong = (y + rng.integers(1, 3, size=n)) % 3
        predicted = np.where(rng.random(n) < right, y, wrong)
        noisy = (rng.random((n, 1)) >= ASYMMETRIC[y].cumsum(axis=1)[:, :-1]).sum(axis=1)
        _, low, high = noise_corrected_accuracy(
            noisy,
            predicted,
            ASYMMETRIC,
            confidence_level=level,
            sample_weight=rng.random(n) if weighted else None,
        )
        hits += low <= right <= high
    assert binom.ppf(1e-4, runs, level) <= hits <= binom.ppf(1 - 1e-4, runs, level)


def test_interval_by_hand():
    """Two of four rows are right: the standard error of the mean is sqrt(1 / 3) / 2."""
    score, low, high = noise_corrected_accuracy(
        [0, 0, 1, 1], [0, 1, 0, 1], np.eye(2), confidence_level=0.5
    )
    half = 0.6744897501960817 * np.sqrt(1 / 3) / 2
    assert (score, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-14)


def test_score_may_leave_the_unit_interval_and_its_interval_does_not():
    T = uniform_transition(0.2, 2)
    score, low, high = noise_corrected_accuracy([0, 1] * 9, [0, 1] * 9, T, confidence_level=0.9)
    assert score == pytest.approx(0.8 / 0.6)
    assert (low, high) == (1, 1)
    assert noise_corrected_accuracy([0, 1], [1, 0], T) == pytest.approx(-0.2 / 0.6)


def test_permuted_classes(labels):
    y, predicted = labels
    new = np.array([2, 0, 1])
    T = np.empty_like(ASYMMETRIC)
    T[np.ix_(new, new)] = ASYMMETRIC
    table = noise_corrected_confusion_matrix(y, predicted, ASYMMETRIC)
    permuted = noise_corrected_confusion_matrix(new[y], new[predicted], T)
    np.testing.assert_allclose(permuted[np.ix_(new, new)], table, atol=1e-14)
    assert noise_corrected_accuracy(new[y], new[predicted], T) == pytest.approx(
        noise_corrected_accuracy(y, predicted, ASYMMETRIC), abs=1e-14
    )


def test_labels_may_be_strings(labels):
    names = np.array(["a", "b", "c"])
    score = noise_corrected_accuracy(names[labels[0]], names[labels[1]].tolist(), ASYMMETRIC)
    assert score == noise_corrected_accuracy(*labels, ASYMMETRIC)


def test_classes_that_only_predictions_have():
    table = noise_corrected_confusion_matrix([0, 0, 1], [0, 2, 1], np.eye(3))
    np.testing.assert_allclose(table, np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]]) / 3)


def test_classes_of_an_estimate():
    estimate = Estimate(np.eye(3), ["a", "b", "c"])
    assert noise_corrected_accuracy(["a", "b"], ["a", "a"], estimate) == 0.5
    scorer = make_noise_corrected_scorer(Estimate(np.eye(3), [0, 1, 2]))
    assert scorer(Column().fit(None, [0, 1]), np.zeros((2, 1)), [0, 1]) == 0.5


def test_uniform_noise_ranks_alike(labels):
    """The corrected accuracy is an affine function of the plain one, and increases."""
    y, predicted = labels
    T = uniform_transition(0.4, 3)
    for guess in (predicted, np.zeros_like(y), y):
        plain = np.mean(y == guess)
        assert noise_corrected_accuracy(y, guess, T) == pytest.approx((plain - 0.2) / 0.4)


def two_models(rng):
    """Predictions right for 70 %, else of the class before; right for 60 %, else the next."""
    y = rng.integers(3, size=3000)
    first = np.where(rng.random(3000) < 0.7, y, (y - 1) % 3)
    second = np.where(rng.random(3000) < 0.6, y, (y + 1) % 3)
    return y, np.column_stack([first, second])


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_search_picks_the_better_model_where_plain_accuracy_does_not(rng, metric):
    y, X = two_models(rng)
    noisy = inject_noise(y, "pair", 0.4, random_state=0)
    scorer = make_noise_corrected_scorer(pair_transition(0.4, 3), metric=metric)

    def best(scoring):
        search = GridSearchCV(Column(), {"column": [0, 1]}, scoring=scoring, cv=KFold(3))
        return search.fit(X, noisy)

    assert best(metric).best_params_ == {"column": 1}
    found = best(scorer)
    assert found.best_params_ == {"column": 0}
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], [0.7, 0.6], atol=0.06)


def test_scorer_can_be_pickled(labels):
    y, predicted = labels
    scorer = make_noise_corrected_scorer(ASYMMETRIC, classes=[0, 1, 2])
    model = Column().fit(None, y)
    copy = pickle.loads(pickle.dumps(scorer))
    expected = noise_corrected_accuracy(y, predicted, ASYMMETRIC)
    assert copy(model, predicted[:, None], y) == scorer(model, predicted[:, None], y) == expected


def test_scorer_takes_weights(labels, rng):
    y, predicted = labels
    weight = rng.random(300)
    score = make_noise_corrected_scorer(ASYMMETRIC)(
        Column().fit(None, y), predicted[:, None], y, sample_weight=weight
    )
    assert score == noise_corrected_accuracy(y, predicted, ASYMMETRIC, sample_weight=weight)
    assert score != noise_corrected_accuracy(y, predicted, ASYMMETRIC)


def test_scorer_routes_weights(labels, rng):
    y, predicted = labels
    weight = rng.random(300)
    X = predicted[:, None] + rng.normal(size=(300, 2))
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_noise_corrected_scorer(ASYMMETRIC).set_score_request(sample_weight=True)
        model = LogisticRegression().set_fit_request(sample_weight=False)
        results = cross_validate(
            model,
            X,
            y,
            scoring=scorer,
            cv=KFold(2),
            params={"sample_weight": weight},
            return_estimator=True,
            return_indices=True,
        )
    for k, fitted in enumerate(results["estimator"]):
        rows = results["indices"]["test"][k]
        expected = noise_corrected_accuracy(
            y[rows], fitted.predict(X[rows]), ASYMMETRIC, sample_weight=weight[rows]
        )
        assert results["test_score"][k] == expected


def test_recalls_are_clipped_and_lost_classes_left_out():
    """Without class 1 among 18 labels, its corrected share is negative: -0.2 / 0.6."""
    scorer = make_noise_corrected_scorer(
        uniform_transition(0.2, 2), classes=[0, 1], metric="balanced_accuracy"
    )
    y = np.repeat([0, 1], 9)
    assert scorer(Column().fit(None, y), y[:, None], y) == 1  # 4 / 3 before
    with pytest.warns(UserWarning, match=r"\[1.333, -0.333\].*left out"):
        assert scorer(Column().fit(None, y), np.zeros((18, 1)), 0 * y) == 1


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (np.eye(2), "2 x 2 for 3 classes. Pass classes"),
        (np.ones((3, 2)), "must be square"),
        (np.ones((3, 3)), "sum to 1, got .* 3 in row 0"),
        (ASYMMETRIC.T, "Its columns do: pass transition.T"),
        ([[1.1, -0.1, 0], [0, 1, 0], [0, 0, 1]], "probabilities"),
        (np.full((3, 3), np.nan), "probabilities"),
        (uniform_transition(2 / 3, 3), "singular.*Merge"),
    ],
)
def test_transitions_that_cannot_be(labels, transition, message):
    with pytest.raises(ValueError, match=message):
        noise_corrected_accuracy(*labels, transition)
    with pytest.raises(ValueError, match=message):
        make_noise_corrected_scorer(transition, classes=[0, 1, 2])


def test_more_classes_than_seen_need_to_be_named():
    with pytest.raises(ValueError, match="3 x 3 for 2 classes"):
        noise_corrected_accuracy([0, 1], [0, 1], np.eye(3))
    assert noise_corrected_accuracy([0, 1], [0, 1], np.eye(3), classes=[0, 1, 2]) == 1


def test_badly_conditioned_transition_warns(labels):
    with pytest.warns(UserWarning, match=r"condition number .* inflated"):
        noise_corrected_accuracy(*labels, uniform_transition(2 / 3 - 1e-4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise_corrected_accuracy(*labels, uniform_transition(0.6, 3))


@pytest.mark.parametrize("level", [0, 1, 95, np.nan])
def test_confidence_level_out_of_range(level):
    with pytest.raises(ValueError, match=r"confidence_level must be in \(0, 1\), got"):
        noise_corrected_accuracy([0, 1], [0, 1], np.eye(2), confidence_level=level)


def test_interval_needs_two_rows():
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        noise_corrected_accuracy([0], [1], np.eye(2), confidence_level=0.9)


def test_unknown_labels_and_metric():
    with pytest.raises(ValueError, match=r"\['x'\] beyond the classes"):
        noise_corrected_accuracy(["a", "b"], ["a", "x"], np.eye(2), classes=["a", "b"])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        noise_corrected_accuracy([0, 1], [0, 1, 1], np.eye(2))
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        make_noise_corrected_scorer(np.eye(2), metric="acuracy")
    with pytest.raises(ValueError, match="classes must be sorted"):
        make_noise_corrected_scorer(np.eye(2), classes=["b", "a"])
