"""Rows that a classifier did not see: one way to find them, the same for whatever needs them."""

import inspect

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from robustclf import calibration, conformal
from robustclf._held_out import class_proba, hold_out, label_proba
from robustclf._wrapped import Wrapper
from robustclf.noise import inject_noise, noise_rate, uniform_transition

CALIBRATED = {
    name: getattr(module, name)
    for module in (conformal, calibration)
    for name in module.__all__
    if inspect.isclass(getattr(module, name)) and issubclass(getattr(module, name), Wrapper)
}
NOISY = {name: cls for name, cls in CALIBRATED.items() if "noise" in cls(None).get_params()}


class Crossing(GaussianNB):
    """Gives the number of its folds for out-of-fold probabilities."""

    def __init__(self, cross_fit=None):
        super().__init__()
        self.cross_fit = cross_fit

    def fit(self, X, y):
        super().fit(X, y)
        if self.cross_fit:
            self.oof_proba_ = np.full((len(X), len(self.classes_)), self.cross_fit)
        return self


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(300, centers=[[0, 0], [3, 0], [0, 3]], random_state=0)
    return X, np.array(["ant", "bee", "cat"])[y]


def given_to(cls, X, y):
    """Labels, a column of them for each class, or numbers, as the estimator needs."""
    if cls is conformal.MultilabelConformalClassifier:
        return (y[:, None] == np.unique(y)).astype(int)
    return X.sum(axis=1) if cls is conformal.ConformalRegressor else y


# How ----------------------------------------------------------------------------------------------


def test_folds_answer_what_they_did_not_see(blobs):
    X, y = blobs
    held = hold_out(GaussianNB(), X, y, cv=KFold(3))
    for train, test in KFold(3).split(X):
        assert_array_equal(
            held.proba[test], GaussianNB().fit(X[train], y[train]).predict_proba(X[test])
        )
    assert_array_equal(held.estimators[0].theta_, GaussianNB().fit(X, y).theta_)
    assert held.folds is None
    assert_array_equal(held.classes[held.codes], y)
    apart = hold_out(GaussianNB(), X, y, cv=KFold(3), refit=False)
    assert_array_equal(apart.proba, held.proba)
    assert_array_equal(apart.folds, np.repeat(range(3), 100))
    assert_array_equal(apart.estimators[2].theta_, GaussianNB().fit(X[:200], y[:200]).theta_)


def test_a_number_of_folds_is_shuffled_and_stratified(blobs):
    X, y = blobs
    folds = hold_out(GaussianNB(), X, y, cv=4, refit=False, random_state=0).folds
    assert_array_equal(np.bincount(folds), 75)
    assert_array_equal([np.bincount(folds[y == name]) for name in np.unique(y)], 25)
    assert_array_equal(folds, hold_out(GaussianNB(), X, y, cv=4, refit=False, random_state=0).folds)
    assert (folds != hold_out(GaussianNB(), X, y, cv=4, refit=False, random_state=1).folds).any()


def test_a_part_is_held_out_and_not_learned_from(blobs):
    X, y = blobs
    held = hold_out(GaussianNB(), X, y, cv=None, calibration_size=0.2, random_state=0)
    assert_array_equal(np.bincount(held.codes), 20)
    assert_array_equal(held.classes[held.codes], y[held.rows])
    rest = np.setdiff1d(np.arange(300), held.rows)
    assert_array_equal(held.estimators[0].theta_, GaussianNB().fit(X[rest], y[rest]).theta_)
    assert_array_equal(held.proba, held.estimators[0].predict_proba(X[held.rows]))


def test_weights_go_with_their_rows(blobs):
    X, y = blobs
    weight = np.linspace(0.1, 3, 300)
    held = hold_out(GaussianNB(), X, y, cv=KFold(2), params={"sample_weight": weight}, refit=False)
    half = GaussianNB().fit(X[150:], y[150:], weight[150:])
    assert_array_equal(held.estimators[0].theta_, half.theta_)


def test_a_frozen_classifier_answers_all_rows(blobs):
    X, y = blobs
    frozen = FrozenEstimator(GaussianNB().fit(X[:100], y[:100]))
    for cv in (None, 5, KFold(2)):
        held = hold_out(frozen, X, y, cv=cv)
        assert held.estimators == [frozen]
        assert_array_equal(held.proba, frozen.predict_proba(X))
        assert_array_equal(held.rows, np.arange(300))


@pytest.mark.parametrize("refit", [False, True])
def test_a_classifier_that_cross_fits_does_it_in_one_fit(blobs, refit):
    X, y = blobs
    for own, cv, folds in [(None, 4, 4), (3, 4, 3), (3, None, 3)]:
        held = hold_out(Crossing(own), X, y, cv=cv, refit=refit)
        assert_array_equal(held.proba, folds)
        assert len(held.estimators) == 1
    assert len(hold_out(Crossing(), X, y, cv=None).rows) == 75
    others = hold_out(Crossing(3), X, y, cv=KFold(2), refit=refit)
    assert others.proba.max() <= 1  # by the folds that were asked for


def test_classes_that_a_classifier_has_not_seen(blobs):
    X, y = blobs
    two = GaussianNB().fit(X[y != "bee"], y[y != "bee"])
    proba = class_proba(two, X, np.unique(y))
    assert_array_equal(proba[:, 1], 0)
    assert_array_equal(proba[:, [0, 2]], two.predict_proba(X))
    Y = np.column_stack([y == "ant", np.ones(300), np.zeros(300)]).astype(int)
    neighbours = KNeighborsClassifier().fit(X, Y)  # a list, with one column where all agree
    proba = label_proba(neighbours, X)
    assert_array_equal(proba[:, 1:], [[1, 0]] * 300)
    assert_array_equal(proba[:, 0], neighbours.predict_proba(X)[0][:, 1])


# The same everywhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CALIBRATED.values(), ids=CALIBRATED)
def test_parameters_mean_the_same_everywhere(cls):
    defaults = cls(None).get_params()
    assert defaults["cv"] == 5
    assert defaults["calibration_size"] == 0.25
    assert defaults["random_state"] is None
    assert defaults.get("noise") is None
    assert defaults.get("noise_convention", "rest") == "rest"
    documented = conformal.RiskController if cls is conformal.LearnThenTest else cls
    doc = " ".join(inspect.getdoc(documented).split())
    for sentence in (
        ":class:`~sklearn.frozen.FrozenEstimator` is taken as fitted",
        "cv : int, splitter or None, default=5 Folds that calibrate, each by a classifier that did",
        "None holds rows out instead.",
        "Share of the rows that is held out",
        "Governs which rows are held out",
    ):
        assert sentence in doc
    if "noise" in defaults:
        assert "How labels were made wrong: uniformly at a rate, by a transition matrix" in doc
        assert "Estimate only with a classifier that is right where it is surest" in doc
        assert "What a rate counts: wrong labels, or labels drawn from all classes." in doc


@pytest.mark.filterwarnings("ignore:no row can be accepted")
@pytest.mark.parametrize("cls", CALIBRATED.values(), ids=CALIBRATED)
def test_no_folds_hold_the_same_rows_out_everywhere(cls, blobs):
    X, y = blobs
    seen = []  # numbers of rows

    class Watched(KNeighborsClassifier):
        def fit(self, X, y):
            seen.append(len(X))
            return super().fit(X, y)

    kept = {"bins": 4} if cls is conformal.ConformalRegressor else {}
    params = {"loss": "fnr"} if cls is conformal.LearnThenTest else {}
    made = cls(Watched(), cv=None, random_state=0, **kept, **params)
    made.fit(X, given_to(cls, X, y))
    assert seen == [225]
    seen.clear()
    clone(made).set_params(cv=3).fit(X, given_to(cls, X, y))
    all_rows = [] if cls is conformal.ConformalClassifier else [300]  # CV+ keeps its folds
    assert seen[:3] == [200] * 3 or cls is conformal.ConformalRegressor  # folds of 7 bins
    assert seen[3:] == all_rows


@pytest.mark.filterwarnings("ignore:no row can be accepted")
@pytest.mark.parametrize("cls", NOISY.values(), ids=NOISY)
def test_noise_can_be_told_in_the_same_ways_everywhere(cls, blobs):
    X, y = blobs
    noisy = inject_noise(y, "symmetric", 0.2, random_state=0)
    frozen = FrozenEstimator(GaussianNB().fit(X, y))
    rate = noise_rate(noisy, frozen.predict_proba(X))
    bound = rate.rate if cls is calibration.RobustCalibrator else rate.lower_bound
    for noise, expected in [(0.1, 0.1), (uniform_transition(0.1, 3), 0.1), (rate, bound)]:
        made = cls(frozen, noise=noise).fit(X, noisy)
        assert_allclose(made.transition_, uniform_transition(expected, 3))
    with pytest.raises(ValueError, match=r"pass a rate, a transition.*did you mean 'estimate'"):
        cls(frozen, noise="estimated").fit(X, y)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.5"):
        cls(frozen, noise=1.5).fit(X, y)


class Counting(GaussianNB):
    """Counts its fits."""

    fits = 0

    def fit(self, X, y):
        type(self).fits += 1
        return super().fit(X, y)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("noise", [1.2, "estimat", np.eye(3)], ids=["rate", "name", "matrix"])
def test_noise_that_cannot_be_is_refused_before_any_fit(blobs, name, noise):
    Counting.fits = 0
    with pytest.raises(ValueError, match=r"rate must be|did you mean 'estimate'|3 x 3 for 2"):
        NOISY[name](Counting(), noise=noise).fit(blobs[0], blobs[1] == "ant")
    assert Counting.fits == 0


def test_folds_that_leave_classes_out_are_told(blobs):
    X, y = blobs
    order = np.argsort(y, kind="stable")
    with pytest.warns(
        UserWarning, match=rf"{len(y)} of {len(y)} rows answered by .* a number of folds"
    ):
        hold_out(GaussianNB(), X[order], y[order], cv=KFold(len(np.unique(y))))
    hold_out(GaussianNB(), X, y, cv=KFold(3, shuffle=True, random_state=0))
