"""Kinds of input that all work, and bad input that each says what is wrong."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.preprocessing import FunctionTransformer, StandardScaler, TargetEncoder
from small_classifier import small

from robustclf._device import find_device
from robustclf._random import default_generators


def proba(X, y, X_new=None, **params):
    return small(**params).fit(X, y).predict_proba(X if X_new is None else X_new)


# Containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda X: X.astype(np.float32),
        lambda X: X.astype(object),
        lambda X: X.tolist(),
        pd.DataFrame,
        lambda X: pl.DataFrame(X, schema=list("abcd")),
        lambda X: np.repeat(X, 2, 0)[::2],
        lambda X: X[::-1][::-1],
    ],
    ids=["fortran", "float32", "object", "list", "pandas", "polars", "strided", "reversed"],
)
def test_the_same_numbers_in_any_container(iris, convert):
    X, y = iris
    assert_allclose(proba(convert(X), y), proba(X, y), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.float16])
def test_integers_are_numbers(iris, dtype):
    X, y = (10 * iris[0]).astype(dtype), iris[1]
    assert_allclose(proba(X, y), proba(X.astype(float), y), atol=1e-5)


def test_booleans_are_numbers(iris):
    X, y = iris[0] > np.median(iris[0], 0), iris[1]
    assert X.dtype == bool
    assert_allclose(proba(X, y), proba(X.astype(float), y), atol=1e-6)
    assert small(loss="ce", max_epochs=30).fit(X, y).score(X, y) > 0.7


def test_read_only_and_reversed_rows_without_preprocessing(iris):
    X, y = iris[0].astype(np.float32), iris[1]
    expected = proba(X, y, preprocess=None)
    fixed = X.copy()
    fixed.setflags(write=False)
    assert_array_equal(proba(fixed, y, preprocess=None), expected)
    clf = small(preprocess=None).fit(X, y)
    assert_allclose(clf.predict_proba(X[::-1]), expected[::-1], atol=1e-6)


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("preprocess", ["auto", None])
def test_sparse(form, kind, preprocess):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 30)) * (rng.random((200, 30)) < 0.2)
    y = (X[:, :5].sum(1) > 0).astype(int)
    S = getattr(sparse, f"{form}_{kind}")(X)
    options = {"loss": "ce", "preprocess": preprocess, "max_epochs": 30, "cross_fit": 2}
    clf = small(early_stopping=True, **options).fit(S, y, X_val=S, y_val=y)
    assert clf.score(S, y) > 0.9
    assert clf.oof_proba_.shape == (200, 2)
    assert clf.embed(S).shape == (200, 16)
    assert_allclose(clf.predict_proba(S[:50] if form != "coo" else S.tocsr()[:50]),
                    clf.predict_proba(S)[:50], atol=1e-6)  # fmt: skip
    if preprocess is None:
        dense = small(early_stopping=True, **options).fit(X, y, X_val=X, y_val=y)
        assert_allclose(dense.predict_proba(X), clf.predict_proba(S), atol=1e-5)


def table(n=300, seed=0):
    """Rows of every kind of column, with missing values, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    number, count = rng.normal(size=n), rng.integers(0, 5, n)
    category = rng.choice(["red", "green", "blue"], n)
    text, flag = rng.choice(["x", "y"], n), rng.random(n) < 0.5
    y = np.where((number + 2 * (category == "red") + 1.5 * (text == "y") - flag) > 0.5, "in", "out")
    number[rng.random(n) < 0.1] = np.nan
    category = np.where(rng.random(n) < 0.1, None, category.astype(object))
    frame = {
        "number": number,
        "count": count,
        "category": category,
        "text": text.astype(object),
        "flag": flag,
    }
    return frame, y


def test_mixed_columns_of_pandas_and_polars():
    columns, y = table()
    a = pd.DataFrame(columns).astype({"category": "category", "text": "str"})
    b = pl.DataFrame({k: v.tolist() for k, v in columns.items()}).with_columns(
        pl.col("category").cast(pl.Categorical), pl.col("number").fill_nan(None)
    )
    c = pd.DataFrame(columns).convert_dtypes()
    clf = small(max_epochs=60, loss="ce").fit(a, y)
    assert clf.score(a, y) > 0.85
    assert clf.feature_names_in_.tolist() == list(columns)
    for other in (b, c):
        one = small(max_epochs=60, loss="ce").fit(other, y)
        assert_allclose(one.predict_proba(other), clf.predict_proba(a), atol=1e-5)
        assert one.feature_names_in_.tolist() == list(columns)
    array = pd.DataFrame(columns).to_numpy(dtype=object)
    assert_allclose(proba(array, y, max_epochs=60, loss="ce"), clf.predict_proba(a), atol=1e-5)


def test_unseen_categories_are_like_no_category():
    columns, y = table()
    frame = pd.DataFrame(columns)
    clf = small().fit(frame, y)
    strange = frame.assign(category="violet", text="?")
    out = clf.predict_proba(strange)
    assert np.isfinite(out).all()
    other = frame.assign(category="mauve", text="!")
    assert_array_equal(out, clf.predict_proba(other))
    assert np.abs(out - clf.predict_proba(frame)).max() > 0.01


@pytest.mark.parametrize("strategy", [None, "mixup"])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("module", ["mlp", torch.nn.Linear])
def test_categories_of_many_values(strategy, n_members, module):
    rng = np.random.default_rng(0)
    town = rng.integers(0, 40, 600)
    y = np.where(town % 3 == 0, "a", "b")
    X = pd.DataFrame({"town": [f"t{k}" for k in town], "noise": rng.normal(size=600)})
    clf = small(
        loss="ce",
        strategy=strategy,
        n_members=n_members,
        module=module,
        cross_fit=2,
        max_epochs=40,
        batch_size=50,
    ).fit(X, y)
    assert clf.encoder_.cardinalities_ == (41,)
    assert (clf.classes_[clf.oof_proba_.argmax(1)] == y).mean() > 0.9
    assert clf.score(X, y) > 0.9
    unseen = X.assign(town="elsewhere")
    assert np.isfinite(clf.predict_proba(unseen)).all()


def test_chosen_categories(iris):
    X, y = np.round(iris[0]), iris[1]
    clf = small(categorical_features=[0, 3]).fit(X, y)
    assert clf.encoder_.n_dense_ > 4
    assert small(categorical_features=None).fit(X, y).encoder_.n_dense_ == 4


def test_a_transformer_of_the_user(iris):
    X, y = iris
    scaler = StandardScaler()
    clf = small(preprocess=scaler).fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    assert_allclose(clf.predict_proba(X), proba(scaled, y, preprocess=None), atol=1e-5)
    assert not hasattr(scaler, "scale_")
    assert clf.n_features_in_ == 4


# Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        ["setosa", "versicolor", "virginica"],
        [-2, 0, 7],
        [0.0, 1.0, 2.0],
        ["2", "10", "33"],
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "container", [np.array, list, pd.Series, pl.Series], ids=["numpy", "list", "pandas", "polars"]
)
def test_labels_of_any_kind(iris, labels, container):
    X, codes = iris
    y = [labels[k] for k in codes]
    clf = small(max_epochs=30, batch_size=25).fit(X, container(y))
    assert set(clf.predict(X).tolist()) <= set(labels)
    assert clf.classes_.tolist() == sorted(labels)
    expected = proba(X, codes, max_epochs=30, batch_size=25)[:, np.argsort(np.argsort(labels))]
    assert clf.predict_proba(X).argmax(1).tolist() == [
        clf.classes_.tolist().index(label) for label in clf.predict(X).tolist()
    ]
    assert clf.score(X, container(y)) > 0.85
    if labels == sorted(labels):
        assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


def test_boolean_labels(iris):
    X, y = iris[0], iris[1] == 0
    clf = small(max_epochs=30).fit(X, y)
    assert clf.predict(X).dtype == bool
    assert clf.score(X, y) == 1
    assert clf.decision_function(X).shape == (150,)


def test_pandas_labels_with_dtypes_of_their_own(iris):
    X, y = iris
    names = pd.Series(y).map({0: "a", 1: "b", 2: "c"})
    expected = proba(X, y)
    for labels in (names.astype("category"), names.astype("string"), pd.Series(y, dtype="Int64")):
        assert_allclose(proba(X, labels), expected, atol=1e-6)


def test_a_column_of_labels_warns(iris):
    X, y = iris
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        clf = small().fit(X, y[:, None])
    assert_array_equal(clf.predict_proba(X), proba(X, y))


# Scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["mlp", "resnet"])
def test_scale_and_shift_of_a_column_change_nothing(iris, module):
    X, y = iris
    moved = X.copy()
    moved[:, 1] = 1000 * X[:, 1] + 5
    moved[:, 2] = 1e-6 * X[:, 2] - 3e-6
    assert_allclose(proba(moved, y, module=module), proba(X, y, module=module), atol=1e-3)


@pytest.mark.parametrize("value", [1e6, -1e30])
def test_an_outlier_changes_little(iris, value):
    X, y = iris
    dirty = X.copy()
    dirty[10, 1] = value
    options = {"max_epochs": 40, "batch_size": 25}
    clean_fit, dirty_fit = small(**options).fit(X, y), small(**options).fit(dirty, y)
    assert np.abs(dirty_fit.predict_proba(X) - clean_fit.predict_proba(X)).mean() < 0.02
    assert dirty_fit.score(X, y) > 0.9
    assert np.isfinite(dirty_fit.predict_proba(dirty)).all()


# Bad input ------------------------------------------------------------------------------------


def with_value(a, value, dtype=None):
    a = np.array(a, dtype=dtype or float)
    a[(3,) * a.ndim] = value
    return a


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.zeros(150)), r"at least two classes.*got 1 class: \[0.0\]"),
        (lambda X, y: (X[:100], y), r"inconsistent numbers of samples: \[100, 150\]"),
        (lambda X, y: (X, y[:100]), r"inconsistent numbers of samples: \[150, 100\]"),
        (lambda X, y: (X, np.full(150, np.nan)), "y has no label in any of 150 rows"),
        (lambda X, y: (X, np.full(150, None)), "y has no label in any of 150 rows"),
        (lambda X, y: (X, np.where(y == 1, 1.0, np.nan)), r"at least two classes.*got 1 class"),
        (lambda X, y: (X, with_value(y, np.inf)), "y contains infinity in 1 of 150.*row 3"),
        (lambda X, y: (X, None), "requires y to be passed, but the target y is None"),
        (lambda X, y: (X, y + 0.5), "Unknown label type: continuous"),
        (lambda X, y: (X, np.c_[y, y]), "y should be a 1d array, got .* shape \\(150, 2\\)"),
        (lambda X, y: (with_value(X, np.inf), y), "X contains infinity.*1 row"),
        (lambda X, y: (with_value(X, -np.inf), y), "X contains infinity"),
        (lambda X, y: (X[:, 0], y), "Expected 2D array, got 1D array"),
        (lambda X, y: (X[:, :0], y), r"0 feature\(s\)"),
        (lambda X, y: (X[:0], y[:0]), "at least two classes|0 sample"),
        (lambda X, y: (X[:1], y[:1]), "at least two classes"),
    ],
)
def test_rows_and_labels_that_cannot_work(iris, change, message):
    with pytest.raises(ValueError, match=message):
        small().fit(*change(*iris))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_without_preprocessing_numbers_must_be_finite(iris, value):
    X, y = iris
    with pytest.raises(ValueError, match=r"contains NaN|contains infinity"):
        small(preprocess=None).fit(with_value(X, value), y)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_transformers_must_leave_finite_numbers(iris, value, container):
    X, y = iris
    passed = FunctionTransformer()
    clf = small(preprocess=passed).fit(container(X), y)
    message = r"preprocess=FunctionTransformer\(\) leaves nan, infinity or .* in 1 of \d+ values"
    for method in (clf.predict_proba, lambda X: clone(clf).fit(X, y)):
        with pytest.raises(ValueError, match=message):
            method(container(with_value(X, value)))
    with pytest.raises(ValueError, match="preprocess=None leaves"):
        small(preprocess=None).fit(container(X), y).predict(container(with_value(X, 1e39)))


@pytest.mark.parametrize("dtype", [">f8", np.longdouble, np.float16])
def test_transformers_may_leave_any_kind_of_numbers(iris, dtype):
    X, y = iris[0].astype(dtype), iris[1]
    expected = proba(np.asarray(X, np.float64), y, preprocess=None)
    assert_allclose(proba(X, y, preprocess=FunctionTransformer()), expected, atol=1e-5)


def test_transformers_must_leave_a_table(iris):
    first = FunctionTransformer(lambda X: X[:, 0])
    with pytest.raises(ValueError, match=r"must give a table, got shape \(150,\)"):
        small(preprocess=first).fit(*iris)


@pytest.mark.parametrize("preprocess", [None, StandardScaler()], ids=str)
def test_without_preprocessing_masked_numbers_are_missing(iris, preprocess):
    masked = np.ma.masked_greater(iris[0], 6)
    with pytest.raises(ValueError, match=r"NaN|nan"):
        small(preprocess=preprocess).fit(masked, iris[1])


def test_transformers_that_learn_from_labels_are_refused(iris):
    with pytest.raises(ValueError, match=r"TargetEncoder\(\) learns from labels.*in a Pipeline"):
        small(preprocess=TargetEncoder()).fit(*iris)


def test_parameters_of_no_strategy_are_refused(iris):
    with pytest.raises(ValueError, match="strategy__alpha is given, but strategy is None"):
        small(strategy__alpha=0.4).fit(*iris)
    with pytest.raises(ValueError, match=r"strategy__alpha is given, but strategy is \[\]"):
        small(strategy=[], strategy__alpha=0.4).fit(*iris)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1, 1: 2, 2: 3}])
def test_a_weight_of_zero_is_a_dropped_row_for_class_weights(iris, class_weight):
    X, y = iris[0][::2], iris[1][::2]
    weight = (np.arange(75) % 5 < 2 + y).astype(float)
    clf = small(class_weight=class_weight)
    weighed = clf.fit(X, y, sample_weight=weight).predict_proba(X)
    kept = clone(clf).fit(X[weight > 0], y[weight > 0]).predict_proba(X)
    assert_allclose(weighed, kept, atol=1e-6)
    one = clone(clf).fit(X, y, sample_weight=np.where(y == 2, 0, 1))  # a class of weight 0
    assert one.predict_proba(X)[:, 2].max() < 0.5


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.r_[-2.5, np.ones(149)], r"must not be negative, got -2.5 in row 0 \(1 negative"),
        (np.zeros(150), "sample_weight is zero for every row: nothing is left to learn"),
        (np.ones(149), r"sample_weight.shape == \(149,\), expected \(150,\)"),
        (np.ones((150, 2)), r"sample_weight.shape == \(150, 2\)"),
        (np.r_[np.nan, np.ones(149)], "sample_weight contains NaN"),
        (np.r_[np.inf, np.ones(149)], "sample_weight contains infinity"),
        (np.r_[np.ones(50), np.zeros(100)], r"two classes in rows of positive weight.*\[0\]"),
    ],
    ids=["negative", "zero", "short", "table", "nan", "inf", "one class"],
)
def test_weights_that_cannot_work(iris, weight, message):
    with pytest.raises(ValueError, match=message):
        small().fit(*iris, sample_weight=weight)
    with pytest.raises(ValueError, match=message):
        small(n_members=2, cross_fit=3).fit(*iris, sample_weight=weight)


def test_class_weights_that_cannot_work(iris):
    with pytest.raises(ValueError, match=r"'class_weight' parameter.*Got 'equal'"):
        small(class_weight="equal").fit(*iris)
    with pytest.raises(ValueError, match="two classes in rows of positive weight"):
        small(class_weight={0: 0, 1: 0, 2: 1}).fit(*iris)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        small(class_weight={0: -1, 1: 1, 2: 1}).fit(*iris)


def test_splits_that_cannot_work(iris):
    X, y = iris[0][::15], iris[1][::15]
    assert len(X) == 10
    with pytest.raises(ValueError, match=r"cross_fit=11 needs at least that many rows.*got 10"):
        small(cross_fit=11).fit(X, y)
    with pytest.raises(ValueError, match=r"validation_fraction=0.01 of 10 rows leaves none"):
        small(early_stopping=True, validation_fraction=0.01).fit(X, y)
    assert small(cross_fit=10).fit(X, y).oof_proba_.shape == (10, 3)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (lambda X, y: (X, None), "X_val and y_val go together"),
        (lambda X, y: (None, y), "X_val and y_val go together"),
        (lambda X, y: (X, y + 1), r"y contains labels \[3\] beyond the classes \[0, 1, 2\]"),
        (lambda X, y: (X, y.astype(str)), "beyond the classes"),
        (lambda X, y: (X[:, :3], y), "3 features.*expecting 4 features"),
        (lambda X, y: (X[:9], y), r"inconsistent numbers of samples: \[9, 150\]"),
        (lambda X, y: (X, with_value(y, np.nan)), "y_val has no label in 1 of 150.*row 3"),
        (lambda X, y: (X, with_value(y, -1, int)), "y_val has no label in 1 of 150.*row 3"),
        (lambda X, y: (with_value(X, np.inf), y), "X contains infinity"),
    ],
)
def test_validation_rows_that_cannot_work(iris, validation, message):
    X_val, y_val = validation(*iris)
    with pytest.raises(ValueError, match=message):
        small().fit(*iris, X_val=X_val, y_val=y_val)


METHODS = ["predict", "predict_proba", "decision_function", "embed"]


@pytest.mark.parametrize("preprocess", ["auto", None, StandardScaler()], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_prediction_needs_the_columns_of_training(iris, method, preprocess):
    X, y = iris
    clf = small(preprocess=preprocess).fit(X, y)
    with pytest.raises(ValueError, match=r"3 features, but .* is expecting 4 features"):
        getattr(clf, method)(X[:, :3])
    with pytest.raises(ValueError, match="infinity"):
        getattr(clf, method)(with_value(X, np.inf))
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        getattr(clf, method)(X[0])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        getattr(clf, method)(X[:0])
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = small(preprocess=preprocess).fit(frame, y)
    with pytest.raises(ValueError, match=r"feature names should match"):
        getattr(clf, method)(frame.rename(columns={"b": "beta"}))
    with pytest.raises(ValueError, match="feature names"):
        getattr(clf, method)(frame[list("dcba")])


@pytest.mark.parametrize("method", METHODS)
def test_prediction_needs_a_fit(iris, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(small(), method)(iris[0])


def test_devices_that_are_not_there(iris, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda' was asked for, but torch .* sees none"):
        small(device="cuda").fit(*iris)
    assert find_device("auto") == "cpu"
    assert small(device="cpu").fit(*iris).net_.device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == "cuda"
    assert find_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match=r"device='cuda:2' was asked for, but torch"):
        find_device("cuda:2")
    with pytest.raises(ValueError, match=r"device must be 'auto', 'cpu', 'cuda'.*did you mean"):
        find_device("coda")
    with pytest.raises(ValueError, match=r"device must be 'auto'"):
        find_device(None)


def test_a_fit_draws_from_the_generator_of_the_current_device(monkeypatch):
    generators = [torch.Generator() for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for device, number in [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)]:
        assert default_generators(device)[1] is generators[number]
    assert len(default_generators("cpu")) == 1


def test_a_failed_fit_leaves_the_classifier_unfitted(iris):
    clf = small()
    with pytest.raises(ValueError, match="infinity"):
        clf.fit(with_value(iris[0], np.inf), iris[1])
    with pytest.raises(NotFittedError):
        clf.predict(iris[0])


def test_nullable_integer_labels(iris):
    X, y = iris
    labels = pd.Series(y, dtype="Int64")
    clf = small().fit(X, labels)
    assert clf.classes_.tolist() == [0, 1, 2]
    assert_array_equal(clf.predict(X), small().fit(X, y).predict(X))


def test_labels_of_mixed_types_are_refused(iris):
    X, y = iris
    mixed = np.where(y == 0, "zero", y.astype(object))
    with pytest.raises(ValueError, match=r"labels of one type, got a mix of \['int', 'str'\]"):
        small().fit(X, mixed)


def test_learning_rate_has_one_name(iris):
    with pytest.raises(ValueError, match="parameter lr, not optimizer__lr"):
        small(optimizer__lr=0.5).fit(*iris)
