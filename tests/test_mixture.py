"""The models that loss="auto" mixes: forests, kernel least squares, and what they filter."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import train_test_split

from robustclf import _auto, _mixture
from robustclf._mixture import Filtered, KernelLeastSquares, Shallow, confident_transition
from robustclf.noise import estimate_transition, inject_noise


@pytest.mark.parametrize("name", list(_auto.SHALLOW))
def test_a_class_that_was_not_seen_has_probability_zero(name):
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(60, 2)), rng.integers(0, 2, 60) * 2 + 1
    folds = np.append(np.arange(50) % 5, np.full(10, -1))
    model = Shallow(clone(_auto.SHALLOW[name]).set_params(random_state=0), n_classes=4)
    oof, _ = model.fit(x, codes, np.ones(60), folds)
    assert_array_equal(model.proba(x)[:, [0, 2]], 0)
    assert_array_equal(oof[:, [0, 2]], 0)
    assert_allclose(oof.sum(axis=1), 1)


@pytest.mark.parametrize("name", list(_auto.SHALLOW))
def test_models_do_not_predict_the_labels_they_learn_from(name):
    """Rows without any sense, learned by heart, are at chance out of fold; others are predicted."""
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(400, 30)), rng.integers(0, 2, 400)
    model = Shallow(clone(_auto.SHALLOW[name]).set_params(random_state=0), n_classes=2)
    oof, _ = model.fit(x, codes, np.ones(400), np.arange(400) % 5)
    assert abs((oof.argmax(axis=1) == codes).mean() - 0.5) < 4 * 0.5 / np.sqrt(400)
    outside = np.repeat([0, -1], [300, 100])
    outside[:300] = np.arange(300) % 5
    oof, _ = model.fit(x, codes, np.ones(400), outside)
    assert_allclose(oof[300:], model.proba(x[300:]))


def test_kernel_least_squares_estimate_probabilities_of_the_given_labels():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(4_000, 1))
    codes = (rng.uniform(size=4_000) < 0.2 + 0.6 * x[:, 0]).astype(int)
    fitted = KernelLeastSquares(random_state=0).fit(x, codes)
    assert abs(fitted.predict_proba(x)[:, 1] - 0.2 - 0.6 * x[:, 0]).mean() < 0.02


def test_kernel_least_squares_weigh_rows():
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(200, 2)), rng.integers(0, 3, 200)
    weight = rng.integers(0, 2, 200)
    one = KernelLeastSquares(random_state=0).fit(x, codes, np.where(codes == 2, 0.0, 1.0))
    assert_allclose(one.predict_proba(x)[:, 2], 0, atol=0.05)
    again = KernelLeastSquares(random_state=0).fit(x, codes, weight)
    assert abs(again.predict_proba(x) - one.predict_proba(x)).max() > 0.1


def test_kernel_least_squares_with_the_penalty_they_chose():
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(300, 4)), rng.integers(0, 3, 300)
    chosen = KernelLeastSquares(random_state=0).fit(x, codes)
    given = KernelLeastSquares(random_state=0, **chosen.tuned_).fit(x, codes)
    assert_allclose(given.predict_proba(x), chosen.predict_proba(x), rtol=1e-6)
    other = KernelLeastSquares(random_state=0, penalty=chosen.tuned_["penalty"] / 100)
    assert abs(other.fit(x, codes).predict_proba(x) - given.predict_proba(x)).max() > 0.01


@pytest.mark.parametrize(
    ("n", "scale", "points"),
    [(300, 1.0, 300), (1000, 1.0, 1000), (1600, 1.0, 790), (4100, 1.0, 500), (1600, 0.1, 500)],
)
def test_few_rows_all_span_the_functions(n, scale, points):
    x = np.random.default_rng(0).normal(size=(n, 2))
    fitted = KernelLeastSquares(scale, penalty=1.0, random_state=0).fit(x, np.arange(n) % 2)
    assert fitted.features_["nystroem"].n_components == points


def test_features_of_another_fit_are_taken():
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    first = KernelLeastSquares(random_state=0).fit(x, codes)
    again = KernelLeastSquares(random_state=1).fit(x[:40], codes[:40], features=first.features_)
    assert again.features_ is first.features_
    filtered = Filtered(random_state=0).fit(x, codes, features=first.features_)
    assert filtered.kernel_.features_ is first.features_


def test_copies_of_a_fold_share_what_knows_no_label():
    rng = np.random.default_rng(0)
    x, codes, folds = rng.normal(size=(60, 3)), rng.integers(0, 2, 60), np.arange(60) % 3
    _, fits = Shallow(KernelLeastSquares(random_state=0), 2).fit(x, codes, np.ones(60), folds)
    assert len({id(fit.features_) for fit in fits.values()}) == 1
    assert len({id(fit.ridge_) for fit in fits.values()}) == 4


@pytest.mark.parametrize("n_features", [10, 60])
@pytest.mark.parametrize("noise", [0.1, 10.0])
def test_the_penalty_of_the_least_error_is_that_of_ridge_cv(n_features, noise):
    rng = np.random.default_rng(0)
    phi, w = rng.normal(size=(60, n_features)) + 1, rng.integers(0, 3, 60).astype(float)
    target = phi[:, :3] + noise * rng.normal(size=(60, 3))
    ridge = RidgeCV(_mixture.PENALTIES).fit(phi, target, sample_weight=w)
    penalty, error = _mixture.least_error(phi, target, w)
    assert penalty == ridge.alpha_
    assert error == pytest.approx(-ridge.best_score_)
    assert (penalty > 1) == (noise > 1)


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_kernel_least_squares_of_one_class(penalty):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    fitted = KernelLeastSquares(penalty=penalty, random_state=0).fit(x, np.full(20, 3))
    assert_array_equal(fitted.predict_proba(x), np.ones((20, 1)))
    assert_array_equal(fitted.predict(x), np.full(20, 3))


def test_kernel_least_squares_of_many_rows_take_some(monkeypatch):
    monkeypatch.setattr(_mixture, "MOST_ROWS", 100)
    X, y = load_iris(return_X_y=True)
    fitted = KernelLeastSquares(random_state=0).fit(X, y)
    assert fitted.features_["nystroem"].components_.shape == (100, 4)
    assert fitted.score(X, y) > 0.9


@pytest.mark.parametrize("penalty", [None, 0.5])
def test_kernel_least_squares_without_a_row(penalty):
    rng = np.random.default_rng(0)
    x, codes, w = rng.normal(size=(60, 2)), rng.integers(0, 3, 60), rng.uniform(0.5, 2, 60)
    fitted = KernelLeastSquares(penalty=penalty, random_state=0).fit(x, codes, w)
    proba = fitted.left_out_proba(x, codes, w)
    phi, onehot = fitted.features_.transform(x), np.eye(3)[codes]
    for i in range(0, 60, 7):
        others = np.arange(60) != i
        ridge = Ridge(fitted.tuned_["penalty"])
        ridge.fit(phi[others], onehot[others], sample_weight=w[others])
        without = ridge.predict(phi[i : i + 1]).clip(_mixture.LEAST)
        assert_allclose(proba[i], (without / without.sum())[0], atol=1e-8)
    assert abs(proba - fitted.predict_proba(x)).max() > 0.05


def test_kernel_least_squares_know_the_rows_that_they_were_not_fitted_to(monkeypatch):
    monkeypatch.setattr(_mixture, "MOST_ROWS", 100)
    monkeypatch.setattr(_mixture, "CHUNK", 40)
    X, y = load_iris(return_X_y=True)
    fitted = KernelLeastSquares(random_state=0).fit(X, y)
    proba = fitted.left_out_proba(X, y, np.ones(150))
    others = ~fitted.fitted_
    assert others.sum() == 50
    assert_allclose(proba[others], fitted.predict_proba(X)[others])
    assert (abs(proba - fitted.predict_proba(X))[~others].max(axis=1) > 0).all()


def test_filtered_models_learn_from_the_rows_that_others_confirm():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    noisy = inject_noise(y, "symmetric", 0.4, random_state=0)
    fitted = Filtered(random_state=0).fit(X, noisy)
    wrong = noisy != y
    assert fitted.kept_[~wrong].mean() > 0.9
    assert fitted.kept_[wrong].mean() < 0.02
    for model in (fitted.trees_, fitted.kernel_):
        alone = clone(model).fit(X, noisy)
        assert model.score(X_test, y_test) > alone.score(X_test, y_test)
    parts = fitted.trees_.predict_proba(X) + 2 * fitted.kernel_.predict_proba(X)
    assert_allclose(fitted.predict_proba(X), parts / 3)
    again = Filtered(random_state=0).fit(X, noisy, kept=fitted.kept_)
    assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))


def test_filtered_models_take_a_kernel_that_is_there():
    X, y = load_iris(return_X_y=True)
    noisy = inject_noise(y, "symmetric", 0.3, random_state=0)
    kept = []
    for penalty in (1e-9, 1.0):  # the first follows every label
        kernel = KernelLeastSquares(penalty=penalty, random_state=0).fit(X, noisy)
        kept.append(Filtered(random_state=0).fit(X, noisy, kernel=kernel).kept_)
    assert (kept[0] != kept[1]).sum() > 10


def test_a_class_of_which_no_row_is_kept_has_probability_zero():
    X, y = load_iris(return_X_y=True)
    fitted = Filtered(random_state=0).fit(X, y, kept=y < 2)
    assert_array_equal(fitted.predict_proba(X)[:, 2], 0)
    assert fitted.score(X[y < 2], y[y < 2]) == 1


def test_filtered_models_of_one_class():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    fitted = Filtered(random_state=0).fit(x, np.full(20, 3))
    assert fitted.kept_.all()
    assert_array_equal(fitted.predict(x), np.full(20, 3))


def test_a_filter_that_leaves_one_class_is_not_used():
    x, codes = np.zeros((40, 2)), np.repeat([0, 1], [30, 10])
    fitted = Filtered(random_state=0).fit(x, codes)
    assert fitted.kept_.all()
    assert_array_equal(fitted.predict(x), np.zeros(40))


# The noise they undo ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_models_that_err_do_not_turn_labels_round(n_classes):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, n_classes, 2_000)
    opposite = np.eye(n_classes)[(codes + 1) % n_classes] * 0.6 + 0.4 / n_classes
    estimated = estimate_transition(codes, opposite, n_bootstrap=0).transition
    assert (estimated > estimated.diagonal()).any()
    transition = confident_transition(codes, opposite)
    assert (transition <= transition.diagonal() + 1e-12).all()
    assert_allclose(transition.sum(axis=1), 1)
    assert transition.min() >= 0


def test_rows_of_two_classes_that_are_turned_round_change_places():
    codes = np.repeat([0, 0, 1, 1], [30, 70, 60, 40])
    proba = np.eye(2)[np.repeat([0, 1, 0, 1], [30, 70, 60, 40])] * 0.4 + 0.3
    estimated = estimate_transition(codes, proba, n_bootstrap=0).transition
    assert estimated.trace() < 1
    assert_allclose(confident_transition(codes, proba), estimated[::-1])


def test_noise_that_leaves_classes_apart_stays_as_it_is_estimated():
    true = np.arange(6_000) % 3
    codes = inject_noise(true, "pair", 0.4, random_state=0)
    proba = np.eye(3)[true] * 0.7 + 0.1
    wanted = estimate_transition(codes, proba, n_bootstrap=0).transition
    assert_allclose(confident_transition(codes, proba), wanted)
    assert_allclose(wanted.diagonal(), 0.6, atol=0.03)
