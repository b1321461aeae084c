"""LabelCleaner around classifiers of scikit-learn and ours, and scores of examples."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits, make_blobs
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf import RobustClassifier
from robustclf.noise import LabelCleaner, example_scores, inject_noise

NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def blobs():
    """Three separable classes, their names, and names of which a fifth is wrong."""
    X, y = make_blobs(300, centers=[[0, 0], [4, 0], [0, 4]], random_state=0)
    noisy = inject_noise(NAMES[y], "symmetric", 0.2, random_state=0)
    return X, NAMES[y], noisy


def cleaner(estimator=None, **params):
    return LabelCleaner(estimator or GaussianNB(), random_state=0, **params)


FOLDS_DIFFER = {
    f"check_sample_weight_equivalence_on_{kind}_data": "folds differ between weights and copies"
    for kind in ("dense", "sparse")
}


@parametrize_with_checks(
    [
        LabelCleaner(LogisticRegression(), action=action, random_state=0)
        for action in ("prune", "reweight", "relabel")
    ],
    expected_failed_checks=lambda _: FOLDS_DIFFER,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_prune_is_a_fit_without_the_issues(blobs):
    X, true, noisy = blobs
    fitted = cleaner().fit(X, noisy)
    kept = np.setdiff1d(np.arange(300), fitted.issues_.rows)
    alone = GaussianNB().fit(X[kept], noisy[kept])
    np.testing.assert_array_equal(fitted.predict_proba(X), alone.predict_proba(X))
    wrong = noisy != true
    assert wrong[fitted.issues_.rows].mean() > 0.9
    assert fitted.noise_rate_.low <= 0.2 <= fitted.noise_rate_.high
    np.testing.assert_array_equal(
        np.flatnonzero(fitted.sample_weight_ == 0), np.sort(fitted.issues_.rows)
    )


def test_relabel_is_a_fit_to_the_suggestions(blobs):
    X, true, noisy = blobs
    fitted = cleaner(action="relabel").fit(X, noisy)
    labels = noisy.copy()
    labels[fitted.issues_.rows] = fitted.issues_.suggested
    alone = GaussianNB().fit(X, labels)
    np.testing.assert_array_equal(fitted.predict_proba(X), alone.predict_proba(X))
    assert (labels == true).mean() > (noisy == true).mean() + 0.1


def test_reweight_is_a_fit_with_weights(blobs):
    X, _, noisy = blobs
    given = np.linspace(0.5, 2, 300)
    fitted = cleaner(action="reweight").fit(X, noisy, sample_weight=given)
    weight = given.copy()
    weight[fitted.issues_.rows] *= 1 - fitted.issues_.probability
    alone = GaussianNB().fit(X, noisy, sample_weight=weight)
    np.testing.assert_array_equal(fitted.predict_proba(X), alone.predict_proba(X))
    np.testing.assert_array_equal(fitted.sample_weight_, weight)


@pytest.mark.parametrize("action", ["prune", "reweight", "relabel"])
def test_clean_labels_are_left_alone(blobs, action):
    X, true, _ = blobs
    fitted = cleaner(action=action).fit(X, true)
    assert len(fitted.issues_) == 0
    np.testing.assert_array_equal(
        fitted.predict_proba(X), GaussianNB().fit(X, true).predict_proba(X)
    )


def test_nothing_given_is_changed(blobs):
    X, _, noisy = blobs
    labels, rows, estimator = noisy.copy(), X.copy(), GaussianNB()
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the caller's)
    cleaner(estimator, action="relabel").fit(rows, labels)
    np.testing.assert_array_equal(labels, noisy)
    np.testing.assert_array_equal(rows, X)
    assert not hasattr(estimator, "classes_")
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_is_an_estimator_like_any_other(blobs):
    X, true, noisy = blobs
    clf = cleaner()
    assert is_classifier(clf)
    assert cross_val_score(clf, X, noisy, cv=3).mean() > 0.7
    search = GridSearchCV(clf, {"action": ["prune", "relabel"], "estimator__var_smoothing": [1e-9]})
    assert search.fit(X, noisy).score(X, true) >= GaussianNB().fit(X, noisy).score(X, true)
    fitted = clone(clf).fit(X, noisy)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    np.testing.assert_array_equal(clone(clf).fit(X, noisy).issues_.rows, fitted.issues_.rows)


def test_index_of_a_series_and_data_frames(blobs):
    X, _, noisy = blobs
    index = [f"row{i}" for i in range(300)]
    fitted = cleaner().fit(pd.DataFrame(X, index, ["a", "b"]), pd.Series(noisy, index))
    np.testing.assert_array_equal(fitted.issues_.index, [index[i] for i in fitted.issues_.rows])
    assert fitted.feature_names_in_.tolist() == ["a", "b"]


def test_texts_and_sparse_rows():
    texts = ["red apple", "green apple", "fast car", "slow car"] * 15
    y = np.array([0, 0, 1, 1] * 15)
    y[:4] = [1, 0, 0, 1]
    clf = cleaner(make_pipeline(CountVectorizer(), MultinomialNB()), n_issues=2).fit(texts, y)
    assert set(clf.issues_.rows) == {0, 2}
    assert clf.predict(["red car and fast car"]) == [1]
    counts = sparse.coo_array(CountVectorizer().fit_transform(texts))
    assert set(cleaner(MultinomialNB(), n_issues=2).fit(counts, y).issues_.rows) == {0, 2}


def test_our_classifier_needs_one_fit_for_the_folds(monkeypatch):
    X, y = load_digits(return_X_y=True)
    X, y = X[:400], y[:400]
    noisy = inject_noise(y, "symmetric", 0.3, random_state=0)
    fits = []
    fit = RobustClassifier.fit
    monkeypatch.setattr(RobustClassifier, "fit", lambda *a, **k: fits.append(1) or fit(*a, **k))
    small = RobustClassifier(loss="gce", hidden=(64,), max_epochs=30, random_state=0)
    clf = cleaner(small, cv=3).fit(X, noisy)
    assert len(fits) == 2  # out of fold, and on the cleaned labels
    assert (noisy != y)[clf.issues_.rows].mean() > 2 * (noisy != y).mean()
    assert clf.estimator_.cross_fit is None


def test_a_class_never_disappears():
    X, y = make_blobs([60, 60, 3], centers=[[0, 0], [9, 0], [0, 0]], random_state=0)
    clf = cleaner(n_issues=20).fit(X, y)
    assert 2 in clf.estimator_.classes_


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"action": "drop"}, "'action' parameter.*'prune'"),
        ({"method": "combine"}, "'method' parameter"),
        ({"n_issues": -1}, "'n_issues' parameter"),
        ({"estimator": LinearSVC()}, "'estimator' parameter.*predict_proba"),
        (
            {"estimator": KNeighborsClassifier(), "action": "reweight"},
            "KNeighborsClassifier takes no sample_weight.*'prune'",
        ),
    ],
)
def test_parameters_out_of_range(blobs, params, error):
    X, _, noisy = blobs
    with pytest.raises(ValueError, match=f"(?s){error}"):
        cleaner(**params).fit(X, noisy)


def test_labels_that_cannot_work(blobs):
    X, _, noisy = blobs
    with pytest.raises(ValueError, match="at least two classes, got 1 class: \\['ant'\\]"):
        cleaner().fit(X, np.full(300, "ant"))
    with pytest.raises(ValueError, match="y is None"):
        cleaner().fit(X, None)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        cleaner().fit(X, noisy[:-1])


# Scores of examples -------------------------------------------------------------------------------


def test_scores_by_hand():
    proba = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.6, 0.4], [0.5, 0.5]]])
    h = np.array([[3.0, 4.0], [0.0, 2.0]])
    scores = example_scores([0, 1], proba, features=h)
    np.testing.assert_allclose(scores.el2n, [np.sqrt(2) * 0.3, np.sqrt(0.5)])
    np.testing.assert_allclose(scores.confidence, [0.7, 0.5])
    np.testing.assert_allclose(scores.grand, scores.el2n * np.sqrt([26, 5]))
    np.testing.assert_allclose(scores.prototypicality, [1, 1])  # each is the mean of its class
    assert scores.agreement[1] == 1 > scores.agreement[0]


def test_members_that_are_sure_of_different_classes_do_not_agree():
    members = np.eye(3)[[[0], [1], [2]]]
    assert example_scores([0], members, classes=[0, 1, 2]).agreement == pytest.approx(0)


def test_what_is_not_told_is_none():
    scores = example_scores([0, 1], np.eye(2))
    assert scores.agreement is scores.grand is scores.prototypicality is None
    assert scores.to_frame().columns.tolist() == ["el2n", "confidence"]


def test_gradient_norm_is_that_of_the_last_layer():
    rng = np.random.default_rng(0)
    h, W, y = rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), np.array([0, 1, 2, 0, 1])
    logits = h @ W
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = p - np.eye(3)[y]
    of_weights = np.einsum("ni,nk->nik", h, error).reshape(5, -1)
    norms = np.sqrt((of_weights**2).sum(1) + (error**2).sum(1))
    np.testing.assert_allclose(example_scores(y, p, features=h).grand, norms)


def test_members_of_a_classifier_average_to_its_prediction():
    X, y = load_digits(return_X_y=True)
    clf = RobustClassifier(loss="gce", n_members=3, hidden=(16,), max_epochs=2, random_state=0).fit(
        X, y
    )
    members = clf.member_proba(X)
    assert members.shape == (3, 1797, 10)
    np.testing.assert_allclose(members.mean(0), clf.predict_proba(X), atol=1e-6)
    scores = example_scores(y, members, features=clf.embed(X))
    assert ((scores.agreement > 0) & (scores.agreement <= 1 + 1e-9)).all()
    assert len(scores.to_frame().columns) == 5


def test_features_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        example_scores([0, 1], np.eye(2), features=np.eye(3))


def test_folds_are_fitted_to_the_labels_that_were_given(blobs):
    """A classifier may know them, such as by their weights."""
    X, _, noisy = blobs
    plain, heavy = LogisticRegression(), LogisticRegression(class_weight={"ant": 50})
    p = cleaner(plain).fit(X, noisy).oof_proba_
    assert cleaner(heavy).fit(X, noisy).oof_proba_[:, 0].mean() > p[:, 0].mean() + 0.2
    numbers = np.searchsorted(NAMES, noisy) + 1
    heavy.set_params(class_weight={1: 50})
    assert cleaner(heavy).fit(X, numbers).oof_proba_[:, 0].mean() > p[:, 0].mean() + 0.2


def test_what_a_method_needs_is_told_before_any_fit(blobs, monkeypatch):
    X, _, noisy = blobs
    monkeypatch.setattr(GaussianNB, "fit", lambda *_, **__: pytest.fail("it was fitted"))
    with pytest.raises(ValueError, match=r"'aum' needs what a fit went through.*not GaussianNB"):
        cleaner(method="aum").fit(X, noisy)
    ours = RobustClassifier(loss="gce")
    with pytest.raises(ValueError, match=r"for cv a number of folds.*cv=KFold"):
        cleaner(ours, method="forgetting", cv=KFold(3)).fit(X, noisy)
    with pytest.raises(
        ValueError, match="'neighbours' compares the rows of a dense table, got csr"
    ):
        cleaner(MultinomialNB(), method="neighbours").fit(sparse.csr_array(abs(X)), noisy)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        cleaner(ours).fit(X, noisy, sample_weight=np.r_[-1, np.ones(299)])
    with pytest.raises(ValueError, match="a class with at least two rows, got one row of each"):
        cleaner().fit(X[:3], NAMES)


def test_the_seed_is_that_of_a_robust_classifier_without_one(blobs):
    X, _, noisy = blobs
    ours = RobustClassifier(loss="gce", max_epochs=2)
    first, again = (cleaner(ours).fit(X, noisy).oof_proba_ for _ in range(2))
    assert np.array_equal(first, again)
    other = LabelCleaner(ours, random_state=1).fit(X, noisy).oof_proba_
    assert not np.array_equal(first, other)
