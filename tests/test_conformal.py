"""ConformalClassifier and its multi-label sister among scikit-learn's tools."""

import itertools
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.datasets import make_blobs, make_multilabel_classification
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf import RobustClassifier
from robustclf.conformal import (
    APS,
    DKW,
    RAPS,
    Asymptotic,
    ConformalClassifier,
    MultilabelConformalClassifier,
    conformal_quantile,
)
from robustclf.noise import estimate_transition, inject_noise, noise_rate, uniform_transition

NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def blobs():
    """Three classes that overlap, their names, and names of which a fifth is wrong."""
    X, y = make_blobs(3000, centers=[[0, 0], [3, 0], [0, 3]], random_state=0)
    noisy = inject_noise(NAMES[y], "symmetric", 0.2, random_state=0)
    return X, NAMES[y], noisy


def conformal(estimator=None, cv=None, **params):
    """Hold rows out, which is fast."""
    return ConformalClassifier(estimator or GaussianNB(), cv=cv, random_state=0, **params)


def covered(clf, X, y, **params):
    sets = clf.predict_set(X, **params)
    return sets[np.arange(len(X)), np.searchsorted(clf.classes_, y)].mean()


@parametrize_with_checks(
    [
        ConformalClassifier(LogisticRegression(), cv=2, random_state=0),
        ConformalClassifier(
            LogisticRegression(), score="aps", coverage="class", noise=0.1, cv=None, random_state=0
        ),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# Fitting ------------------------------------------------------------------------------------------


def test_sets_of_held_out_rows_are_the_textbooks(blobs):
    X, y, _ = blobs
    frozen = FrozenEstimator(GaussianNB().fit(X[:1000], y[:1000]))
    clf = conformal(frozen).fit(X[1000:2000], y[1000:2000])
    scores = 1 - frozen.predict_proba(X)
    own = scores[np.arange(3000), np.searchsorted(NAMES, y)]
    threshold = conformal_quantile(own[1000:2000], 0.1)
    assert_array_equal(clf.predict_set(X[2000:]), scores[2000:] <= threshold)
    assert clf.n_calibration_ == 1000
    assert clf.estimator_ is frozen
    assert abs(covered(clf, X[2000:], y[2000:]) - 0.9) < 0.04


@pytest.mark.parametrize("params", [{}, {"cv": 5}, {"cv": KFold(3)}, {"calibration_size": 0.5}])
@pytest.mark.parametrize("score", ["lac", RAPS(penalty=0.05)], ids=str)
def test_noisy_labels_are_corrected_for(blobs, params, score):
    X, y, noisy = blobs
    ignoring = conformal(score=score, **params).fit(X[:2000], noisy[:2000])
    knowing = clone(ignoring).set_params(noise=0.2).fit(X[:2000], noisy[:2000])
    assert covered(ignoring, X[2000:], y[2000:]) > 0.97
    # 500 rows calibrate: coverage has a standard deviation of about .02 around .9
    assert 0.84 < covered(knowing, X[2000:], y[2000:]) < 0.97
    size = [clf.predict_set(X[2000:]).sum() for clf in (ignoring, knowing)]
    assert size[1] < 0.8 * size[0]
    assert knowing.correction_ == "crossing"
    assert_allclose(knowing.transition_, uniform_transition(0.2, 3))


@pytest.mark.parametrize("params", [{}, {"cv": 3}, {"coverage": "class"}])
def test_the_most_probable_class_is_kept_where_sets_may_not_be_empty(blobs, params):
    X, y, _ = blobs
    alpha = [0.1, 0.4]
    clf = conformal(**params).fit(X[:1000], y[:1000])
    sets = clf.predict_set(X[1000:], alpha)
    assert (~sets.any(axis=1)).any()
    kept = clf.set_params(allow_empty=False).predict_set(X[1000:], alpha)
    top = clf.predict_proba(X[1000:]).argmax(axis=1)
    assert kept[np.arange(len(top)), top].all()
    others = np.arange(3) != top[:, None]
    assert_array_equal(kept[others], sets[others])


def test_folds_are_those_of_cross_conformal_prediction(blobs):
    X, y, _ = blobs
    X, y, new = X[:90], y[:90], X[90:120]
    clf = conformal(cv=KFold(3)).fit(X, y)
    above = np.zeros((30, 3))
    for fitted, (_, held) in zip(clf.estimators_, KFold(3).split(X), strict=True):
        own = 1 - fitted.predict_proba(X[held])
        own = own[np.arange(30), np.searchsorted(NAMES, y[held])]
        above += (own >= (1 - fitted.predict_proba(new))[..., None]).sum(axis=-1)
    assert_allclose(clf.p_values(new), (1 + above) / 91)
    assert_array_equal(clf.predict_set(new, 0.3), (1 + above) / 91 > 0.3)
    mean = np.mean([fitted.predict_proba(new) for fitted in clf.estimators_], axis=0)
    assert_allclose(clf.predict_proba(new), mean)
    assert_array_equal(clf.predict(new), NAMES[mean.argmax(axis=1)])
    assert not hasattr(clf, "decision_function")
    assert not hasattr(clf, "estimator_")


def test_a_cross_fitted_network_calibrates_on_all_rows_in_one_fit(blobs):
    X, y, noisy = blobs
    network = RobustClassifier(loss="gce", hidden=(16,), max_epochs=30, cross_fit=3, random_state=0)
    clf = conformal(network, noise=0.2).fit(X[:1500], noisy[:1500])
    assert clf.n_calibration_ == 1500
    assert not hasattr(clf, "estimators_")
    oof = clf.estimator_.oof_proba_.astype(float)
    assert_allclose(clf.calibration_.evidence[0].scores, 1 - oof, atol=1e-6)
    assert_array_equal(clf.predict_proba(X), clf.estimator_.predict_proba(X).astype(float))
    assert abs(covered(clf, X[2000:], y[2000:]) - 0.9) < 0.05


def test_recalibration_replaces_the_calibration_alone(blobs):
    X, y, noisy = blobs
    for params in ({}, {"cv": 3}):
        clf = conformal(score="aps", **params).fit(X[:500], noisy[:500])
        proba = clf.predict_proba(X[2000:])
        assert clf.calibrate(X[500:2000], y[500:2000]) is clf
        assert_array_equal(clf.predict_proba(X[2000:]), proba)
        assert clf.n_calibration_ == 1500
        assert abs(covered(clf, X[2000:], y[2000:]) - 0.9) < 0.04
    with pytest.raises(ValueError, match=r"beyond the classes \['ant', 'bee', 'cat'\]"):
        clf.calibrate(X[:2], ["ant", "dog"])


def test_classes_that_a_fold_lacks(blobs):
    X, y, _ = blobs
    labels = np.where(np.arange(100) == 0, "cat", np.where(y[:100] == "cat", "ant", y[:100]))
    clf = conformal(cv=KFold(2)).fit(X[:100], labels)
    assert clf.p_values(X).shape == (3000, 3)
    rare = np.where(np.arange(100) == 0, "ant", np.where(y[:100] == "ant", "bee", y[:100]))
    clf = conformal(cv=KFold(2)).fit(X[:100], rare)
    without = clf.estimators_[0]  # trained on the second half
    assert without.classes_.tolist() == ["bee", "cat"]
    scores = clf.calibration_.evidence[0].scores[:50]
    assert_array_equal(scores[:, 0], 1)
    assert_allclose(scores[:, 1:], 1 - without.predict_proba(X[:50]))


# Noise --------------------------------------------------------------------------------------------


def test_ways_to_tell_of_noise(blobs):
    X, _, noisy = blobs
    T = uniform_transition(0.2, 3)
    proba = conformal(cv=3).fit(X, noisy).predict_proba(X)
    rate = noise_rate(noisy, proba)
    estimate = estimate_transition(noisy, proba, n_bootstrap=0)
    for noise, expected in [
        (None, np.eye(3)),
        (0.2, T),
        (T, T),
        (T.tolist(), T),
        (rate, uniform_transition(rate.lower_bound, 3)),
        (estimate, estimate.transition),
    ]:
        assert_allclose(conformal(noise=noise).fit(X, noisy).transition_, expected, atol=1e-12)
    drawn = conformal(noise=0.3, noise_convention="all").fit(X, noisy)
    assert_allclose(drawn.transition_, T)


def test_noise_is_of_the_labels_whatever_the_classifier_was_fitted_to_before(blobs):
    X, _, noisy = blobs
    proba = GaussianNB().fit(X, noisy).predict_proba(X)
    estimate = estimate_transition(noisy, proba, n_bootstrap=0)
    for other in (np.searchsorted(NAMES, noisy), np.arange(3000) % 5):
        clf = conformal(GaussianNB().fit(X, other), noise=estimate).fit(X, noisy)
        assert_allclose(clf.transition_, estimate.transition)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_estimated_noise_is_not_over_estimated(blobs, rate):
    X, y, _ = blobs
    noisy = inject_noise(y, "symmetric", rate, random_state=1) if rate else y
    clf = conformal(noise="estimate", cv=5).fit(X[:2000], noisy[:2000])
    assert 1 - clf.transition_.diagonal().mean() < rate + 0.02
    assert covered(clf, X[2000:], y[2000:]) > 0.88
    ignoring = conformal(cv=5).fit(X[:2000], noisy[:2000])
    assert clf.predict_set(X).sum() <= ignoring.predict_set(X).sum() * 1.05


def test_what_cannot_be_corrected_gives_full_sets_and_says_so(blobs):
    X, _, noisy = blobs
    with pytest.warns(UserWarning, match="close to singular.*Merge these classes"):
        clf = conformal(noise=np.full((3, 3), 1 / 3)).fit(X, noisy)
    assert clf.predict_set(X).all()
    assert (clf.p_values(X) == 1).all()
    clf = conformal(noise=0.4).fit(X[:200], noisy[:200])
    with pytest.warns(UserWarning, match="'.*' is 0.* more than alpha=0.05.*about [0-9]+, take"):
        assert clf.predict_set(X, 0.05).all()
    clf = conformal(coverage="class").fit(X[:40], noisy[:40])
    with pytest.warns(UserWarning, match="alpha=0.01, which needs 99: class 'ant'.*more rows"):
        assert clf.predict_set(X, [0.5, 0.01])[..., 1].all()


def test_a_class_without_calibration_rows_is_always_kept(blobs):
    X, y, _ = blobs
    frozen = FrozenEstimator(GaussianNB().fit(X, y))
    clf = conformal(frozen, coverage="class").fit(X[y != "cat"], y[y != "cat"])
    with pytest.warns(UserWarning, match=r"class 'cat' \(0\)"):
        sets = clf.predict_set(X)
    assert sets[:, 2].all()
    assert not sets[:, :2].all()


# Coverage -----------------------------------------------------------------------------------------


def test_groups_have_thresholds_of_their_own(blobs):
    X, y, _ = blobs
    rng = np.random.default_rng(0)
    group = np.where(rng.random(3000) < 0.5, "hard", "easy")
    X = np.where((group == "hard")[:, None], X + rng.normal(scale=2, size=X.shape), X)
    frozen = FrozenEstimator(GaussianNB().fit(X[:1000], y[:1000]))
    clf = conformal(frozen, coverage="group").fit(X[1000:2000], y[1000:2000], group[1000:2000])
    hits = clf.predict_set(X[2000:], groups=group[2000:])
    hits = hits[np.arange(1000), np.searchsorted(NAMES, y[2000:])]
    for name in ("hard", "easy"):
        assert abs(hits[group[2000:] == name].mean() - 0.9) < 0.05
    split = conformal(coverage="group", calibration_size=0.5).fit(X[:2000], y[:2000], group[:2000])
    easy, hard = split.calibration_.thresholds(np.array([0.1]))
    assert easy < hard - 0.1
    plain = conformal(frozen).fit(X[1000:2000], y[1000:2000])
    hits = plain.predict_set(X[2000:])[np.arange(1000), np.searchsorted(NAMES, y[2000:])]
    assert hits[group[2000:] == "hard"].mean() < 0.87
    with pytest.warns(UserWarning, match="1 rows are of groups that no calibration row is of"):
        assert clf.predict_set(X[:2], groups=["easy", "new"])[1].all()
    with pytest.warns(UserWarning, match="1 rows are of groups that no calibration row is of"):
        assert clf.predict_set(X[:2], groups=["easy", None])[1].all()
    with pytest.raises(ValueError, match="needs groups="):
        clf.predict_set(X)
    with pytest.raises(ValueError, match="2 entries, expected 3000"):
        clf.predict_set(X, groups=["easy", "easy"])


# Prediction ---------------------------------------------------------------------------------------


def test_several_alphas_labels_and_single_rows(blobs):
    X, y, noisy = blobs
    clf = conformal(score="aps", noise=0.2).fit(X, noisy)
    both = clf.predict_set(X[:50], [0.1, 0.3])
    assert both.shape == (50, 3, 2)
    assert_array_equal(both[..., 0], clf.predict_set(X[:50], 0.1))
    assert (both[..., 0] >= both[..., 1]).all()
    assert_array_equal(np.vstack([clf.predict_set(X[i : i + 1]) for i in range(50)]), both[..., 0])
    labels = clf.predict_set_labels(X[:50])
    proba = clf.predict_proba(X[:50])
    for row, names in enumerate(labels):
        assert set(names) == set(NAMES[both[row, :, 0]])
        assert (np.diff(proba[row][np.searchsorted(NAMES, names)]) <= 0).all()
    assert_array_equal(clf.predict(X), clf.estimator_.predict(X))
    assert clf.score(X, y) > 0.8
    with pytest.raises(ValueError, match="predict_set takes several"):
        clf.predict_set_labels(X, [0.1, 0.2])


def test_randomness_has_one_seed_and_touches_no_other(blobs):
    X, _, noisy = blobs
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the caller's)
    first, again = (conformal(score="aps", noise=0.2).fit(X, noisy) for _ in range(2))
    assert_array_equal(first.p_values(X), again.p_values(X))
    other = conformal(score="aps", noise=0.2).set_params(random_state=1).fit(X, noisy)
    assert abs(first.p_values(X) - other.p_values(X)).max() > 0.01
    ConformalClassifier(GaussianNB(), score="aps").fit(X, noisy).predict_set(X)
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_is_an_estimator_like_any_other(blobs):
    X, y, noisy = blobs
    clf = conformal(score=RAPS(penalty=0.2), correction=DKW(delta=0.05))
    assert is_classifier(clf)
    assert clone(clf).get_params()["score__penalty"] == 0.2
    assert repr(ConformalClassifier(GaussianNB(), score="aps")) == (
        "ConformalClassifier(estimator=GaussianNB(), score='aps')"
    )
    assert clf.set_params(score__penalty=0.3, correction__delta=0.2).get_params()[
        "score"
    ].penalty == pytest.approx(0.3)
    assert cross_val_score(conformal(), X, y, cv=3).mean() > 0.85
    grid = {"conformalclassifier__score": ["lac", APS()], "conformalclassifier__noise": [None, 0.2]}
    pipe = make_pipeline(StandardScaler(), conformal())
    search = GridSearchCV(pipe, grid, scoring=minus_size, cv=2).fit(X[:600], noisy[:600])
    assert search.best_params_["conformalclassifier__noise"] == 0.2
    fitted = conformal(score="aps", noise=0.2, cv=3).fit(X, noisy)
    again = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(again.predict_set(X), fitted.predict_set(X))
    assert not hasattr(ConformalClassifier(LogisticRegression()), "decision_function")
    inside = conformal(make_pipeline(StandardScaler(), LogisticRegression())).fit(X, noisy)
    assert inside.decision_function(X).shape == (3000, 3)


def minus_size(estimator, X, y):
    return -estimator[-1].predict_set(estimator[:-1].transform(X), 0.2).sum()


def test_frames_keep_their_names(blobs):
    X, y, _ = blobs
    frame = pd.DataFrame(X, columns=["a", "b"])
    clf = conformal().fit(frame, pd.Series(y))
    assert clf.feature_names_in_.tolist() == ["a", "b"]
    assert_array_equal(clf.predict_set(frame), conformal().fit(X, y).predict_set(X))
    assert conformal(cv=3).fit(frame, y).feature_names_in_.tolist() == ["a", "b"]


def test_fit_parameters_are_split_like_the_rows(blobs):
    X, _, noisy = blobs
    weight = np.linspace(0.5, 2, 3000)
    weighted = conformal(LogisticRegression()).fit(X, noisy, sample_weight=weight)
    plain = conformal(LogisticRegression()).fit(X, noisy)
    assert abs(weighted.predict_proba(X) - plain.predict_proba(X)).max() > 1e-4


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"score": "laac"}, "unknown conformal score 'laac'.*did you mean 'lac'"),
        ({"coverage": "margnal"}, "unknown coverage 'margnal'.*did you mean 'marginal'"),
        ({"correction": "dwk"}, "unknown correction 'dwk'.*did you mean 'dkw'"),
        ({"correction": "crcp", "coverage": "class", "noise": 0.1}, "knows no coverage by class"),
        ({"noise": "estimated"}, "pass a rate, a transition.*did you mean 'estimate'"),
        ({"noise": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"noise": np.eye(2)}, "2 x 2 for 3 classes"),
        ({"noise": np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0], [0, 0, 0.9]])}, "pass transition.T"),
        ({"noise_convention": "every"}, "'noise_convention' parameter"),
        ({"correction": DKW(delta=2), "noise": 0.1}, r"delta must be in \(0, 1\), got 2"),
        ({"cv": 1}, "'cv' parameter"),
        ({"cv": 301}, "cv=301 must be at least 2 folds, and at most one for each of 300 rows"),
        ({"cv": ShuffleSplit(3)}, "hold out each row once"),
        ({"calibration_size": 0.001}, "leaves none to calibrate on"),
        ({"estimator": LinearSVC()}, "'estimator' parameter"),
    ],
)
def test_bad_parameters(blobs, params, message):
    X, _, noisy = blobs
    with pytest.raises(ValueError, match=message):
        conformal().set_params(**params).fit(X[:300], noisy[:300])


class NeverFitted(GaussianNB):
    def fit(self, X, y, sample_weight=None):
        raise AssertionError


@pytest.mark.parametrize(
    ("params", "groups", "message"),
    [
        ({"correction": "crcp", "coverage": "class"}, None, "'crcp' knows no coverage by class"),
        ({"correction": DKW(delta=2)}, None, r"delta must be in \(0, 1\), got 2"),
        ({"correction": Asymptotic(n_draws=0)}, None, "n_draws must be an integer >= 1, got 0"),
        ({"coverage": "group"}, np.array([None] + ["a"] * 299), "groups is missing for 1 of 300"),
        ({"coverage": "group"}, np.append(np.nan, np.ones(299)), "groups is missing for 1 of 300"),
    ],
)
def test_what_needs_no_fit_is_refused_before_it(blobs, params, groups, message):
    X, _, noisy = blobs
    with pytest.raises(ValueError, match=message):
        conformal(NeverFitted(), **params).fit(X[:300], noisy[:300], groups=groups)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 10, [], [0.1, 2], [[0.1]], np.nan])
def test_bad_alphas(blobs, alpha):
    X, y, _ = blobs
    clf = conformal().fit(X, y)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        clf.predict_set(X, alpha)


def test_bad_labels_and_groups(blobs):
    X, y, _ = blobs
    with pytest.raises(ValueError, match="at least two classes"):
        conformal().fit(X, np.full(3000, "ant"))
    with pytest.raises(ValueError, match="groups are for coverage='group'"):
        conformal().fit(X, y, groups=np.arange(3000))
    with pytest.raises(ValueError, match="needs groups="):
        conformal(coverage="group").fit(X, y)
    frozen = FrozenEstimator(GaussianNB().fit(X, y))
    with pytest.raises(ValueError, match="beyond the classes"):
        conformal(frozen).fit(X, np.where(y == "ant", "dog", y))


# Multi-label --------------------------------------------------------------------------------------


class Tags(ClassifierMixin, BaseEstimator):
    """Takes the columns of X for the probabilities of labels."""

    def fit(self, X, Y):
        self.classes_ = np.arange(Y.shape[1])
        return self

    def predict_proba(self, X):
        return X

    def predict(self, X):
        return (X > 0.5).astype(int)


@pytest.fixture(scope="module")
def tags():
    """Rows with some of six labels, and a classifier for each label."""
    X, Y = make_multilabel_classification(1500, n_classes=6, random_state=0)
    return X, Y, OneVsRestClassifier(LogisticRegression())


@pytest.mark.parametrize(("power", "alpha"), [(1, 0.2), (2, 0.2), (2, 0.9)])
def test_label_sets_are_those_of_a_full_list(tags, power, alpha):
    X, Y, each = tags
    clf = MultilabelConformalClassifier(each, cv=None, power=power, random_state=0).fit(
        X[:500], Y[:500]
    )
    every = np.array(list(itertools.product([0, 1], repeat=6)))
    proba = clf.predict_proba(X[500:540])
    scores = (abs(every - proba[:, None]) ** power).sum(axis=-1)
    listed = scores <= clf.levels_.threshold(alpha)
    values = clf.predict_set(X[500:540], alpha)
    assert alpha < 0.5 or not listed.any(axis=1).all()  # some rows keep none
    for row, sets in enumerate(clf.predict_label_sets(X[500:540], alpha)):
        assert set(map(tuple, sets)) == set(map(tuple, every[listed[row]]))
        order = (abs(sets - proba[row]) ** power).sum(axis=1)
        assert (np.diff(order) >= -1e-12).all()
        for label, value in itertools.product(range(6), (0, 1)):
            assert values[row, label, value] == (every[listed[row]][:, label] == value).any()
        few = clf.predict_label_sets(X[500 + row : 501 + row], alpha, max_sets=3)[0]
        assert_array_equal(few, sets[:3])


def test_tied_label_sets_are_kept_alike(tags):
    Y = tags[1]
    proba = np.random.RandomState(0).choice([0.1, 0.2, 0.3, 0.7, 0.9], size=(1500, 6))
    given = FrozenEstimator(Tags().fit(proba, Y))
    clf = MultilabelConformalClassifier(given, power=1).fit(proba[:500], Y[:500])
    rows, answers = proba[500:700], Y[500:700]
    for alpha in (0.3, 0.6, 0.9):
        kept = clf.contains(rows, answers, alpha)
        sets = clf.predict_label_sets(rows, alpha)
        assert kept.tolist() == [
            y.tolist() in listed.tolist() for y, listed in zip(answers, sets, strict=True)
        ]
        for values, listed in zip(clf.predict_set(rows, alpha), sets, strict=True):
            assert_array_equal(values[:, 1], listed.any(axis=0))
            assert_array_equal(values[:, 0], (1 - listed).any(axis=0))


def test_label_sets_cover(tags):
    X, Y, each = tags
    for alpha in (0.1, 0.4):
        shares = []
        for seed in range(8):
            order = np.random.RandomState(seed).permutation(1500)
            clf = MultilabelConformalClassifier(
                each, cv=None, calibration_size=0.5, random_state=seed
            )
            clf.fit(X[order[:700]], Y[order[:700]])
            shares.append(clf.contains(X[order[700:]], Y[order[700:]], alpha).mean())
        assert abs(np.mean(shares) - 1 + alpha) < 4 * np.std(shares) / np.sqrt(7)


def test_many_labels_are_never_listed():
    rng = np.random.RandomState(0)
    Y = (rng.random_sample((400, 60)) < 0.3).astype(int)
    X = Y + rng.normal(scale=0.8, size=Y.shape)
    each = OneVsRestClassifier(LogisticRegression())
    clf = MultilabelConformalClassifier(each, cv=None, random_state=0).fit(X[:300], Y[:300])
    assert clf.predict_set(X[300:]).shape == (100, 60, 2)
    assert [len(sets) for sets in clf.predict_label_sets(X[300:305], max_sets=7)] == [7] * 5


def test_multilabel_around_forests_and_frozen_ones(tags):
    X, Y, _ = tags
    forest = RandomForestClassifier(10, random_state=0).fit(X[:500], Y[:500])
    clf = MultilabelConformalClassifier(FrozenEstimator(forest)).fit(X[500:1000], Y[500:1000])
    present = np.stack([p[:, 1] for p in forest.predict_proba(X)], axis=1)
    assert_array_equal(clf.predict_proba(X), present)
    assert_array_equal(clf.predict(X), forest.predict(X))
    assert abs(clf.contains(X[1000:], Y[1000:]).mean() - 0.9) < 0.06
    assert clone(clf).get_params()["power"] == 2
    recalibrated = clf.calibrate(X[1000:], Y[1000:])
    assert len(recalibrated.levels_.scores) == 500


def test_bad_label_sets(tags):
    X, Y, each = tags
    clf = MultilabelConformalClassifier(each, cv=None, random_state=0)
    with pytest.raises(ValueError, match=r"matrix of 0 and 1.*MultiLabelBinarizer"):
        clf.fit(X, Y[:, 0])
    with pytest.raises(ValueError, match="matrix of 0 and 1"):
        clf.fit(X, Y * 2)
    with pytest.raises(ValueError, match="leaves none to calibrate on"):
        clf.fit(X[:3], Y[:3])
    clf.fit(X, Y)
    with pytest.raises(ValueError, match="5 labels, expected the 6"):
        clf.contains(X, Y[:, :5])
    for method in (clf.contains, clf.calibrate):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            method(X, Y[:1])
    with pytest.raises(ValueError, match="alpha must be one number"):
        clf.predict_set(X, [0.1, 0.2])
    with pytest.warns(UserWarning, match="375 calibration rows are too few.*needs 999"):
        assert clf.predict_set(X, 0.001).all()
    one = MultilabelConformalClassifier(
        DummyClassifier(strategy="uniform"), cv=None, random_state=0
    )
    one.fit(X, Y[:, :1].repeat(2, axis=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.predict_proba(X).shape == (1500, 2)
