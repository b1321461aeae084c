"""Rows without label: which they are, who leaves them out, and how they take part."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from robustclf import RobustClassifier
from robustclf._rows import split_labels
from robustclf.model_selection import RobustSearchCV
from robustclf.strategies import Strategy

SMALL = {"loss": "gce", "hidden": (8,), "max_epochs": 6, "batch_size": 25, "random_state": 0}

# Which rows have no label -----------------------------------------------------------------------


def same_as_dropped(X, y, known, **fit):
    """Fit with rows without label, check that it is the fit without them, return it."""
    params = SMALL | {"preprocess": None}
    with pytest.warns(UserWarning, match=f"{(~known).sum()} of 150 rows have no label"):
        clf = RobustClassifier(**params).fit(X, y, **fit)
    kept = {name: np.asarray(value)[known] for name, value in fit.items()}
    other = RobustClassifier(**params).fit(X[known], np.asarray(y)[known], **kept)
    assert np.array_equal(clf.classes_, other.classes_)
    assert np.array_equal(clf.predict_proba(X), other.predict_proba(X))
    return clf


NAMES = np.array(["a", "b", "c"])
MISSING = {
    "minus one": lambda y, known: np.where(known, y, -1),
    "nan": lambda y, known: np.where(known, y, np.nan),
    "None": lambda y, known: np.where(known, y.astype(object), None),
    "names and None": lambda y, known: np.where(known, NAMES[y].astype(object), None),
    "names and nan": lambda y, known: np.where(known, NAMES[y].astype(object), np.nan),
    "Int64": lambda y, known: pd.Series(np.where(known, y, 0), dtype="Int64").mask(~known),
    "boolean": lambda y, known: pd.Series(np.where(known, y > 0, False), dtype="boolean").mask(
        ~known
    ),
    "string": lambda y, known: pd.Series(NAMES[y], dtype="string").mask(~known),
    "category": lambda y, known: pd.Series(pd.Categorical(NAMES[y])).mask(~known),
}


@pytest.mark.parametrize("kind", MISSING)
def test_rows_without_label_are_left_out_with_a_warning(iris, partly_labelled, kind):
    X, known = iris[0], partly_labelled[2]
    clf = same_as_dropped(X, MISSING[kind](iris[1], known), known)
    assert len(clf.classes_) == (2 if kind == "boolean" else 3)


@pytest.mark.parametrize(
    "column",
    [
        lambda labels: pd.array(labels, dtype="Int64"),
        lambda labels: pd.Series(labels, dtype="Int64"),
        pl.Series,
        pa.array,
        lambda labels: pa.chunked_array([labels]),
    ],
    ids=["pandas array", "pandas", "polars", "arrow", "arrow chunks"],
)
def test_integers_beside_gaps_stay_integers(column):
    known, missing = split_labels(column([-1, 0, None, 1]))
    assert (known.dtype.kind, known.tolist()) == ("i", [0, 1])
    assert missing.tolist() == [True, False, True, False]
    large = [2**60, None, 2**60 + 1]
    assert split_labels(column(large))[0].tolist() == large[::2]


@pytest.mark.parametrize("gap", [np.nan, None, pd.NA])
def test_a_gap_in_a_list_of_text_is_no_class(iris, gap):
    labels = NAMES[iris[1]].tolist()
    labels[3] = gap
    with pytest.warns(UserWarning, match="1 of 150 rows have no label"):
        clf = RobustClassifier(**SMALL).fit(iris[0], labels)
    assert clf.classes_.tolist() == sorted(NAMES)
    assert split_labels(["a", "b"])[0].dtype.kind == "U"
    with pytest.raises(ValueError, match=r"labels of one type, got a mix of \['int', 'str'\]"):
        split_labels(["a", 1, "b"])
    with pytest.raises(ValueError, match="groups is missing for 1 of 150"):
        RobustClassifier(strategy="group_dro", **SMALL).fit(*iris, groups=labels)
    mixed = [1, *labels[1:3], *labels[4:], "a"]
    with pytest.raises(ValueError, match=r"groups must be of one type, .* \['int', 'str'\]"):
        RobustClassifier(strategy="group_dro", **SMALL).fit(*iris, groups=mixed)


def test_masked_labels_are_missing():
    known, missing = split_labels(np.ma.array([0, 1, 9, 1], mask=[0, 0, 1, 0]))
    assert (known.dtype.kind, known.tolist()) == ("i", [0, 1, 1])
    assert missing.tolist() == [False, False, True, False]


def test_text_of_variable_width():
    labels = np.array(["b", "a", "b"], dtype=np.dtypes.StringDType())
    assert split_labels(labels)[0].tolist() == ["b", "a", "b"]


@pytest.mark.parametrize(
    "classes",
    [
        ["b", "a", np.nan, "c"],
        np.array(["c", None, "a", "b"], dtype=object),
        pd.Series(["a", pd.NA, "b", "c"]),
    ],
    ids=["list", "array", "pandas"],
)
def test_a_missing_label_is_none_of_the_classes_to_come(iris, classes):
    labels = np.array(["a", "b", "c"])[iris[1]]
    clf = RobustClassifier(**SMALL).partial_fit(*(iris[0], labels), classes=classes)
    assert clf.classes_.tolist() == ["a", "b", "c"]
    numbers = RobustClassifier(**SMALL).partial_fit(*iris, classes=[0, 1, np.nan, 2])
    assert numbers.classes_.tolist() == [0, 1, 2]


def test_minus_one_of_two_values_is_a_class(iris):
    X, y = iris[0][:100], iris[1][:100]
    for values in ([-1, 1], [-1, 0], [1, -1]):
        clf = RobustClassifier(**SMALL | {"lr": 0.03}).fit(X, np.array(values)[y])
        assert clf.classes_.tolist() == sorted(values)
        assert clf.score(X, np.array(values)[y]) > 0.9
    known, missing = split_labels([-1, 5, 5, -1], classes=[5, 7])
    assert known.tolist() == [5, 5]
    assert missing.tolist() == [True, False, False, True]
    assert not split_labels([-1, 0, 1], classes=[-1, 0, 1])[1].any()


@pytest.mark.parametrize("strategy", [None, "pseudo_label"])
def test_partial_fit_with_rows_without_label(partly_labelled, strategy):
    X, y, known = partly_labelled
    clf = RobustClassifier(strategy=strategy, **SMALL)
    other = RobustClassifier(strategy=strategy, **SMALL)
    if strategy:
        for _ in range(40):
            clf.partial_fit(X, y, classes=[0, 1, 2])
        assert clf.score(X[known], y[known]) > 0.8
        return
    for start in (0, 75):
        part = slice(start, start + 75)
        with pytest.warns(UserWarning, match="50 of 75 rows have no label"):
            clf.set_params(preprocess=None).partial_fit(X[part], y[part], classes=[0, 1, 2])
        kept = known[part]
        other.set_params(preprocess=None)
        other.partial_fit(X[part][kept], y[part][kept], classes=[0, 1, 2])
    assert np.array_equal(clf.predict_proba(X), other.predict_proba(X))


def test_weights_of_ignored_rows_do_not_matter(iris, partly_labelled):
    X, y, known = partly_labelled
    weight = np.where(known, 1 + np.arange(150) % 4, 99.0)
    same_as_dropped(X, y, known, sample_weight=weight)


@pytest.mark.parametrize("y", [[None] * 6, [np.nan] * 6, [pd.NA] * 6])
def test_all_rows_without_label(y):
    with pytest.raises(ValueError, match="no label in any of 6 rows"):
        RobustClassifier().fit(np.eye(6), y)


def test_one_class_with_labels():
    with pytest.raises(ValueError, match="at least two classes"):
        RobustClassifier().fit(np.eye(6), ["a", "a", None, "a", None, "a"])


def test_labels_to_watch_must_be_there(partly_labelled):
    X, y, _ = partly_labelled
    with pytest.raises(ValueError, match="y_val has no label in 100 of 150 rows"):
        RobustClassifier(strategy="pseudo_label", **SMALL).fit(X, y, X_val=X, y_val=y)


# How they take part ---------------------------------------------------------------------------


class Watch(Strategy):
    """Let rows without label take part, and keep the training set."""

    uses_unlabelled = True

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        SEEN[:] = [X, net]


SEEN: list = []


def test_means_over_rows_with_and_without_label(partly_labelled):
    X, y, known = partly_labelled
    weight = 1.0 + np.arange(150) % 5
    weight[:2] = weight[3] = 0  # a row with a label, and two without
    params = SMALL | {"strategy": Watch(), "class_weight": "balanced"}
    RobustClassifier(**params).fit(X, y, sample_weight=weight)
    data = SEEN[0]
    used = np.flatnonzero(weight)
    assert data.rows.tolist() == used.tolist()
    w, u = data.weight[0].double().numpy(), data.unlabelled[0].double().numpy()
    assert w[used].mean() == pytest.approx(1)
    assert u[used].mean() == pytest.approx(1)
    assert (w[~known] == 0).all()
    assert (u[known] == 0).all()
    labelled = known & (weight > 0)
    expected = weight / np.bincount(y[known], weights=weight[known])[y]
    np.testing.assert_allclose(
        w[labelled] / w[labelled].sum(), expected[labelled] / expected[labelled].sum(), rtol=1e-6
    )
    np.testing.assert_allclose(
        u[~known] / u.sum(), weight[~known] / weight[~known].sum(), rtol=1e-6
    )
    batch = data.batch(data.rows)
    assert not batch.target[batch.weight[0] == 0].any()


def test_labels_of_all_rows_leave_no_mean_over_others(iris):
    RobustClassifier(strategy=Watch(), **SMALL).fit(*iris)
    assert SEEN[0].unlabelled is None


def test_cross_fitting_and_early_stopping_deal_rows_with_label_only(partly_labelled):
    X, y, known = partly_labelled
    clf = RobustClassifier(strategy=[Watch(), "pseudo_label"], cross_fit=3, **SMALL).fit(X, y)
    weight = SEEN[0].weight
    assert ((weight == 0).sum(0)[~known] == 4).all()
    assert ((weight == 0).sum(0)[known] == 1).all()
    np.testing.assert_allclose(clf.oof_proba_.sum(1), 1, atol=1e-5)
    assert np.isnan(clf.label_quality_[~known]).all()
    expected = clf.oof_proba_[known, y[known]]
    assert np.array_equal(clf.label_quality_[known], expected)
    params = SMALL | {"early_stopping": True, "validation_fraction": 0.2}
    clf = RobustClassifier(strategy=[Watch(), "pseudo_label"], **params).fit(X, y)
    assert len(SEEN[0].y_valid) == 10
    assert len(SEEN[0].rows) == 140
    assert len(clf.history_[:, "valid_acc"]) == 6
    assert sorted(np.bincount(SEEN[0].y_valid)) == [3, 3, 4]


def test_grid_search_over_folds_of_rows_without_label(partly_labelled):
    X, y, _ = partly_labelled

    def score(clf, X, y):
        return clf.score(X[y >= 0], y[y >= 0])

    grid = {"strategy__threshold": [0.8, 0.95]}
    clf = RobustClassifier(strategy="pseudo_label", **SMALL | {"max_epochs": 20, "lr": 0.05})
    search = GridSearchCV(clf, grid, cv=StratifiedKFold(2), scoring=score).fit(X, y)
    assert search.best_score_ > 0.7
    assert search.best_estimator_.classes_.tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:.*have no label", "ignore:.*one by one")
@pytest.mark.parametrize(
    ("loss", "kind"),
    [("gce", "minus one"), ("gce", "nan"), ("gce", "names and None"), ("auto", "None")],
)
def test_a_search_scores_the_rows_that_have_a_label(partly_labelled, iris, loss, kind):
    X, _, known = partly_labelled
    y = MISSING[kind](iris[1], known)
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    clf = RobustClassifier(**SMALL | {"loss": loss, "budget": "fast", "lr": 0.03})
    search = RobustSearchCV(clf, {"max_epochs": [3]}, cv=cv, refit=False, return_train_score=True)
    found = search.fit(X, y).cv_results_
    codes = np.where(known, iris[1], -1)
    for k, (train, test) in enumerate(cv.split(X, codes)):
        alone = clone(clf).set_params(max_epochs=3).fit(X[train], np.asarray(y)[train])
        for part, rows in (("train", train[known[train]]), ("test", test[known[test]])):
            labels, missing = split_labels(np.asarray(y)[rows])
            assert not missing.any()
            assert found[f"split{k}_{part}_score"] == [alone.score(X[rows], labels)]


def test_a_search_with_several_scores_and_an_estimate_of_the_noise(partly_labelled):
    X, y, known = partly_labelled
    clf = RobustClassifier(**SMALL | {"lr": 0.03, "max_epochs": 20})
    scoring = ["accuracy", "neg_log_loss"]
    several = RobustSearchCV(clf, {"lr": [0.03]}, cv=3, scoring=scoring, refit="accuracy")
    with pytest.warns(UserWarning, match="have no label"):
        found = several.fit(X, y).cv_results_
    assert found["mean_test_accuracy"] > 0.6
    assert found["mean_test_neg_log_loss"] < 0
    with pytest.warns(UserWarning, match="have no label"):
        search = RobustSearchCV(clf, {"lr": [0.03]}, cv=3, transition="estimate").fit(X, y)
    labelled = RobustSearchCV(clf, {"lr": [0.03]}, cv=3, transition="estimate").fit(
        X[known], y[known]
    )
    np.testing.assert_array_equal(search.transition_, labelled.transition_)


def test_of_few_rows_with_label_the_default_makes_fewer_folds(iris):
    X, y = iris
    rows = [0, 60, 120, 1]
    weight, labels = np.zeros(150), np.full(150, -1)
    weight[rows], labels[rows] = 1, y[rows]
    clf = RobustClassifier(budget="fast", max_epochs=20, random_state=0)
    assert clf.fit(X, y, sample_weight=weight).score(X, y) > 0.5
    with pytest.warns(UserWarning, match="146 of 150 rows have no label"):
        assert clf.fit(X, labels).score(X, y) > 0.5
    held = clf.set_params(early_stopping=True, validation_fraction=0.3)
    assert held.fit(X[45:55], y[45:55]).oof_proba_.shape == (10, 2)
    assert held.fit(X[48:53], y[48:53]).oof_proba_.shape == (5, 2)
