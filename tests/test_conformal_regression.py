"""Sets of numbers by a classifier of bins, and the loss that knows bins are ordered."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import DataConversionWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf import RobustClassifier
from robustclf.conformal import ConformalRegressor
from robustclf.conformal.regression import _above, _at
from robustclf.losses import RegressionToClassification

EDGES = np.linspace(-4, 4, 9)


class Bins(ClassifierMixin, BaseEstimator):
    """Probabilities of eight bins that depend on the sign of X, as a frozen classifier has."""

    classes_ = np.arange(8)
    shapes = np.array([[4, 3, 2, 1, 0, 0, 0, 0], [1, 4, 1, 0, 0, 1, 4, 1]], dtype=float)

    def fit(self, X, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, X):
        proba = self.shapes[(X[:, 0] > 0).astype(int)]
        return proba / proba.sum(axis=1, keepdims=True)

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


def drawn(n, rng):
    """Numbers drawn from the bins that the classifier tells, uniformly in each."""
    X = rng.normal(size=(n, 1))
    u = rng.random((n, 1))
    code = (Bins().predict_proba(X).cumsum(axis=1) < u).sum(axis=1).clip(max=7)
    return X, EDGES[code] + rng.random(n)


def sine(n, rng):
    X = rng.uniform(-1, 1, (n, 1))
    return X, np.sin(3 * X[:, 0]) + 0.2 * (1 + X[:, 0]) * rng.normal(size=n)


@pytest.mark.parametrize("n", [19, 100, 500])
def test_coverage_over_calibrations(n):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        X, y = drawn(n + 1, rng)
        sets = ConformalRegressor(FrozenEstimator(Bins()), bins=EDGES).fit(X[:n], y[:n])
        covered += sets.covers(X[n:], y[n:], 0.1)[0]
    low, high = binom.ppf([1e-4, 1 - 1e-4], 300, [0.9, 0.9 + 1 / (n + 1)])
    assert low <= covered <= high


def test_cutoff_counts_the_row_to_come():
    X, y = drawn(200, np.random.default_rng(1))
    sets = ConformalRegressor(FrozenEstimator(Bins()), bins=EDGES).fit(X, y)
    density = np.sort(-sets.scores_)
    assert sets._cutoff(0.1) == density[int(np.floor(201 * 0.1)) - 1]
    few = ConformalRegressor(FrozenEstimator(Bins()), bins=EDGES).fit(X[:8], y[:8])
    assert_array_equal(few.predict_set(X[:1], 0.1)[0], [[-np.inf, np.inf]])


def test_sets_are_where_the_density_is_above_the_cutoff():
    rng = np.random.default_rng(2)
    X, y = drawn(400, rng)
    sets = ConformalRegressor(FrozenEstimator(Bins()), bins=EDGES).fit(X, y)
    grid = np.linspace(-4.5, 4.5, 901) + 1e-4
    for row, of_row in zip(X[:20], sets.predict_set(X[:20], 0.3), strict=True):
        inside = ((grid[:, None] >= of_row[:, 0]) & (grid[:, None] <= of_row[:, 1])).any(axis=1)
        assert_array_equal(inside, sets.covers(np.repeat(row[None], 901, 0), grid, 0.3))
    two = sets.predict_set(np.array([[1.0]]), 0.3)[0]
    assert two.shape == (2, 2)  # of a density with two modes
    hull = sets.predict_interval(np.array([[1.0]]), 0.3)[0]
    assert_array_equal(hull, [two[0, 0], two[1, 1]])


def test_interpolation_and_level_sets_by_hand():
    points, density = np.array([0.0, 1.0, 2.0, 4.0]), np.array([[0.0, 2.0, 1.0, 1.0]])
    assert_allclose(_at(np.array([0.25]), points, density), 0.5)
    assert_allclose(_at(np.array([4.5]), points, density), 0.0)
    assert_allclose(_above(points, density, 1.0)[0], [[0.5, 4.0]])
    assert_allclose(_above(points, density, 1.5)[0], [[0.75, 1.5]])
    assert _above(points, density, 3.0)[0].shape == (0, 2)


def test_density_is_per_unit_of_the_number():
    edges = np.array([-4.0, -2, -1, 0, 1, 1.5, 2, 3, 4])
    X, y = np.ones((8, 1)), (edges[1:] + edges[:-1]) / 2
    made = ConformalRegressor(FrozenEstimator(Bins()), bins=edges).fit(X, y)
    assert_allclose(-made.scores_, Bins.shapes[1] / 12 / np.diff(edges))


def test_an_empty_set_has_no_interval():
    X, y = drawn(400, np.random.default_rng(2))
    sets = ConformalRegressor(FrozenEstimator(Bins()), bins=EDGES).fit(X, y)
    assert np.isnan(sets.predict_interval(np.array([[1.0]]), 0.99)).all()


def test_one_number_for_each_row():
    X, y = drawn(100, np.random.default_rng(2))
    sets = ConformalRegressor(FrozenEstimator(Bins()), bins=EDGES).fit(X, y)
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert_array_equal(sets.covers(X, y[:, None]), sets.covers(X, y))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[100, 1\]"):
        sets.covers(X, y[:1])
    with pytest.raises(ValueError, match="y should be a 1d array"):
        sets.covers(X, np.column_stack([y, y]))
    for bad, name in [(np.nan, "NaN"), (np.inf, "infinity")]:
        with pytest.raises(ValueError, match=f"Input y contains {name}"):
            sets.covers(X, np.append(y[1:], bad))
        with pytest.raises(ValueError, match=f"Input y contains {name}"):
            clone(sets).fit(X, np.append(y[1:], bad))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_sets_are_wide_where_the_noise_is(strategy):
    rng = np.random.default_rng(3)
    X, y = sine(1200, rng)
    forest = RandomForestClassifier(30, min_samples_leaf=8, random_state=0)
    made = ConformalRegressor(forest, bins=20, strategy=strategy, random_state=0).fit(X, y)
    X, y = sine(600, rng)
    assert made.covers(X, y).mean() == pytest.approx(0.9, abs=0.05)
    width = np.array([np.diff(s, axis=1).sum() for s in made.predict_set(X)])
    assert width[X[:, 0] > 0.5].mean() > 1.5 * width[X[:, 0] < -0.5].mean()
    assert made.score(X, y) > 0.6


@pytest.mark.parametrize("of_normal", [np.positive, np.exp])
def test_coverage_of_rows_held_out(of_normal):
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        X = rng.normal(size=(700, 1))
        y = of_normal(X[:, 0] + 0.3 * rng.normal(size=700))
        made = ConformalRegressor(GaussianNB(), cv=None, random_state=seed).fit(X[:200], y[:200])
        assert len(made.scores_) == 50
        covered.append(made.covers(X[200:], y[200:]).mean())
    assert np.mean(covered) > 46 / 51 - 3 * np.std(covered) / np.sqrt(200)  # more by ties at 0


def test_numbers_of_rows_held_out_do_not_choose_them_or_the_bins():
    X = np.arange(40.0)[:, None]
    y = np.arange(40.0) % 10
    made = ConformalRegressor(GaussianNB(), bins=5, cv=None, random_state=0)
    held = np.random.RandomState(0).permutation(40)[:10]
    plain = clone(made).fit(X, y)
    far = y.copy()
    far[held] = np.where(np.arange(10) < 3, 100.0, 4.5)
    moved = clone(made).fit(X, far)
    assert_array_equal(moved.edges_, plain.edges_)
    assert_array_equal(moved.predict(X), plain.predict(X))
    assert_array_equal(np.sort(moved.scores_)[-3:], 0)
    assert not moved.covers(X[held], far[held], 0.5)[:3].any()
    assert_array_equal(moved.covers(X[held], far[held], 0.5), -moved.scores_ >= moved._cutoff(0.5))


def test_bins_that_no_row_to_learn_from_falls_into():
    X = np.arange(40.0)[:, None]
    y = np.arange(40.0) % 2 * 9
    held = np.random.RandomState(0).permutation(40)[:10]
    y[held[:2]] = 4.5
    made = ConformalRegressor(GaussianNB(), bins=9, cv=None, random_state=0).fit(X, y)
    assert_array_equal(made.estimator_.classes_, [0, 8])
    assert_array_equal(made.scores_[:2], 0)  # as certain to be missed as anything
    assert (made.scores_[2:] < 0).all()
    assert not made.covers(X, np.full(40, 4.5), 0.5).any()
    assert_array_equal(made.predict_set(X, 0.1), [[[-np.inf, np.inf]]] * 40)


def test_bins_that_nobody_falls_into():
    X = np.linspace(0, 1, 80)[:, None]
    y = np.where(X[:, 0] > 0.5, 10.0, 0.0) + X[:, 0]
    made = ConformalRegressor(GaussianNB(), bins=12, cv=4, random_state=0).fit(X, y)
    assert len(made.estimator_.classes_) < 12
    assert made.covers(X, y).mean() > 0.8


# The loss -----------------------------------------------------------------------------------------


def test_loss_by_hand():
    logits = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    p = logits.softmax(-1)[0].numpy()
    v = np.array([0.0, 1.0, 3.0])
    for q, weight, entropy in [(0.5, 5.0, 1.0), (2.0, 1.0, 0.0), (1.0, 0.0, 2.0)]:
        loss = RegressionToClassification(v, q=q, weight=weight, entropy=entropy)
        distance = abs(v[:, None] - v) ** q
        expected = weight * distance @ p + entropy * (p * np.log(p)).sum()
        assert_allclose(loss.per_label(logits)[0], expected)
        for y in range(3):
            assert_allclose(loss(logits, torch.tensor([y])), expected[y])


def test_entropy_is_rewarded():
    flat, sharp = torch.zeros(1, 3), torch.tensor([[9.0, 0.0, 0.0]])
    loss = RegressionToClassification(weight=0.0)
    assert (loss.per_label(flat) < loss.per_label(sharp)).all()


def test_near_bins_cost_less_than_far_ones():
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    loss = RegressionToClassification().per_label(logits)[0]
    assert (loss.diff() > 0).all()


def test_loss_stacks_and_has_gradients():
    logits = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.5, 2.0], dtype=torch.float64).reshape(2, 1, 1)
    loss = RegressionToClassification(q=q)
    target = torch.randint(5, (7,))
    both = loss(logits, target)
    for member in range(2):
        alone = RegressionToClassification(q=float(q[member]))(logits[member], target)
        assert_allclose(both[member].detach(), alone.detach())
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)
    far = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    RegressionToClassification()(far, torch.tensor([1])).backward()
    assert torch.isfinite(far.grad).all()


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_bins_are_told_to_the_loss(in_pipeline):
    rng = np.random.default_rng(4)
    X, y = sine(400, rng)
    net = RobustClassifier(
        loss=RegressionToClassification(), hidden=(32,), max_epochs=30, lr=0.02, random_state=0
    )
    estimator = make_pipeline(StandardScaler(), net) if in_pipeline else net
    made = ConformalRegressor(estimator, bins=12, cv=3, random_state=0).fit(X, y)
    inner = made.estimator_[-1] if in_pipeline else made.estimator_
    middles = inner.get_params()["loss__middles"]
    assert len(middles) == len(made.estimator_.classes_)
    assert_allclose(np.diff(middles)[0] * y.std(), np.diff(made.edges_)[0])
    assert net.loss.middles is None
    X, y = sine(400, rng)
    assert made.covers(X, y).mean() == pytest.approx(0.9, abs=0.06)
    assert made.score(X, y) > 0.5


def test_folds_are_told_the_bins_that_they_have():
    X = np.linspace(-1, 1, 60)[:, None]
    z = np.tile([0.0, 1.0, 4.0], 20)
    z[:2] = 3.0, 9.0  # the only ones of their bins
    told = []

    class Net(RobustClassifier):
        def fit(self, X, y):
            told.append((self.loss.middles, np.unique(y)))
            return super().fit(X, y)

    net = Net(loss=RegressionToClassification(), max_epochs=1, random_state=0)
    made = ConformalRegressor(net, bins=9, cv=KFold(3)).fit(X, z)
    middles = (made.edges_[1:] + made.edges_[:-1]) / 2
    for given, codes in told:
        assert_allclose(np.multiply(given, z.std()), middles[codes])
    assert [len(codes) for _, codes in told] == [3, 5, 5, 5]
    assert np.isfinite(made.scores_).all()
    assert net.loss.middles is None


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"q": 0.0}, r"q must lie in \(0, inf\), got 0.0"),
        ({"weight": -1.0}, "weight must lie in"),
        ({"entropy": -1.0}, "entropy must lie in"),
        ({"middles": [0.0, 1.0]}, "middles has 2 bins for 5 classes"),
    ],
)
def test_loss_out_of_range(params, error):
    with pytest.raises(ValueError, match=error):
        RegressionToClassification(**params).build(5)


# The estimator ------------------------------------------------------------------------------------


@parametrize_with_checks([ConformalRegressor(GaussianNB(), bins=4, random_state=0)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_is_an_estimator_like_any_other():
    X, y = sine(300, np.random.default_rng(5))
    made = ConformalRegressor(GaussianNB(), bins=8, random_state=0)
    pipe = make_pipeline(StandardScaler(), clone(made)).fit(X, y)
    rows = pipe[:-1].transform(X)
    again = pickle.loads(pickle.dumps(pipe[-1]))
    assert_array_equal(again.predict_interval(rows), pipe[-1].predict_interval(rows))
    search = GridSearchCV(made, {"bins": [2, 12]}, cv=2).fit(X, y)
    assert search.best_params_ == {"bins": 12}


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"bins": 1}, "'bins' parameter"),
        ({"bins": [0, 1]}, "three or more increasing edges"),
        ({"bins": [0, 2, 1]}, "three or more increasing edges"),
        ({"strategy": "kmeans"}, "'strategy' parameter.*'quantile'"),
        ({"estimator": FrozenEstimator(Bins())}, "pass their edges as bins="),
        ({"estimator": FrozenEstimator(Bins()), "bins": [-4, 0, 4]}, "numbers of 2 bins"),
    ],
)
def test_parameters_out_of_range(params, error):
    X, y = drawn(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"(?s){error}"):
        ConformalRegressor(**{"estimator": GaussianNB()} | params).fit(X, y)


def test_numbers_that_cannot_work():
    X, y = drawn(60, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"y is 1 in all rows \(n_samples=60\)"):
        ConformalRegressor(GaussianNB()).fit(X, np.ones(60))
    with pytest.raises(ValueError, match=r"the quantiles of y make 1 bin"):
        ConformalRegressor(GaussianNB(), strategy="quantile", bins=2).fit(X, np.arange(60.0) > 0)
    with pytest.raises(ValueError, match=r"calibration_size=0.25 of 3 rows leaves none"):
        ConformalRegressor(GaussianNB(), cv=None).fit(X[:3], y[:3])
    with pytest.raises(ValueError, match="the 45 rows to learn from fall into one bin"):
        ConformalRegressor(GaussianNB(), cv=None, bins=[10, 20, 30]).fit(X, y)
    with pytest.raises(ValueError, match="the 60 rows to learn from fall into one bin"):
        ConformalRegressor(GaussianNB(), bins=[10, 20, 30]).fit(X, y)
    with pytest.raises(ValueError, match="y is None"):
        ConformalRegressor(GaussianNB()).fit(X, None)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got 1.5"):
        ConformalRegressor(GaussianNB(), bins=4).fit(X, y).predict_set(X, 1.5)
