"""Tables: containers, categories and what is refused."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from robustclf.preprocessing import TabularEncoder

TABLE = {
    "size": [1.5, None, 3.0, 8.0, -2.0, 1.5],
    "big": [1, 2, 3, 4, 5, 2**60],
    "flag": [True, False, True, None, True, True],
    "kind": ["a", "b", None, "a", "c", "a"],
    "town": ["u", "v", "w", "x", "y", None],
}


def pandas_nullable(table):
    frame = pd.DataFrame(table)
    return frame.astype(
        {"size": "Float64", "big": "Int64", "flag": "boolean", "kind": "string", "town": "category"}
    )


def polars_categories(table):
    return pl.DataFrame(table).with_columns(
        pl.col("kind").cast(pl.Categorical),
        pl.col("town").cast(pl.Enum(["y", "x", "w", "v", "u"])),
    )


def objects(table):
    return np.array(list(zip(*table.values(), strict=True)), dtype=object)


def objects_with_na(table):
    X = objects(table)
    X[[[v is None for v in row] for row in X]] = pd.NA
    return X


CONTAINERS = [
    pd.DataFrame,
    lambda table: pd.DataFrame(table).astype(object),
    pandas_nullable,
    pl.DataFrame,
    polars_categories,
    objects,
    objects_with_na,
    lambda table: objects(table).tolist(),
]


# ---- categories and containers


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_array(container):
    expected = [
        # size, big, flag, missing size, missing flag, a, b, c, missing, town
        [0, 1, 0, 0, 0, 1, 0, 0, 0, 1],
        [1, 1, 1, 1, 0, 0, 1, 0, 0, 2],
        [1, 0, 0, 0, 0, 0, 0, 0, 1, 3],
        [1, 1, 1, 0, 1, 1, 0, 0, 0, 4],
        [1, 1, 0, 0, 0, 0, 0, 1, 0, 5],
        [0, 1, 0, 0, 0, 1, 0, 0, 0, 6],
    ]
    encoder = TabularEncoder(max_one_hot=4)
    out = encoder.fit_transform(container(TABLE))
    np.testing.assert_array_equal(out[:, 3:], np.array(expected)[:, 3:])
    reference = TabularEncoder(max_one_hot=4).fit_transform(pd.DataFrame(TABLE))
    np.testing.assert_array_equal(out, reference)
    np.testing.assert_array_equal(out, encoder.transform(container(TABLE)))
    assert encoder.cardinalities_ == (7,)
    assert encoder.n_dense_ == 9
    assert encoder.numeric_ == slice(0, 3)


def test_pandas_and_polars_are_interchangeable():
    encoder = TabularEncoder().fit(pd.DataFrame(TABLE))
    expected = encoder.transform(pd.DataFrame(TABLE))
    for container in (pandas_nullable, pl.DataFrame, polars_categories):
        np.testing.assert_array_equal(encoder.transform(container(TABLE)), expected)


def test_numbers_as_text_are_numbers_in_an_array():
    X = np.array([["1", "a"], ["2", "b"], ["4", "a"]])
    np.testing.assert_array_equal(
        TabularEncoder().fit_transform(X)[:, 0],
        TabularEncoder().fit_transform([[1], [2], [4]])[:, 0],
    )


def test_null_column_of_polars_is_a_number():
    out = TabularEncoder().fit_transform(pl.DataFrame({"a": [None, None], "b": [1, 2]}))
    np.testing.assert_array_equal(out[:, [0, 2]], [[0, 1], [0, 1]])


@pytest.mark.parametrize("chosen", [["c"], [2], np.array([2]), [False, False, True]])
def test_chosen_categories(rng, chosen):
    frame = pd.DataFrame(rng.integers(0, 4, size=(40, 3)), columns=list("abc"))
    encoder = TabularEncoder(categorical_features=chosen)
    out = encoder.fit_transform(frame)
    np.testing.assert_array_equal(out[:, 2:], np.eye(4)[frame["c"]])
    np.testing.assert_array_equal(encoder.transform(frame.astype(float)), out)
    if "c" not in list(chosen):
        array = TabularEncoder(categorical_features=chosen).fit_transform(frame.to_numpy(float))
        np.testing.assert_array_equal(array, out)


def test_max_one_hot_divides_indicators_from_codes():
    X = np.array([[f"v{i % 3}", f"w{i % 4}"] for i in range(12)])
    encoder = TabularEncoder(max_one_hot=3).fit(X)
    assert encoder.n_dense_ == 3
    assert encoder.cardinalities_ == (5,)
    assert encoder.get_feature_names_out().tolist() == ["x0_v0", "x0_v1", "x0_v2", "x1"]


def test_names_and_set_output():
    encoder = TabularEncoder(max_one_hot=4).set_output(transform="pandas")
    frame = pd.DataFrame(TABLE, index=list("pqrstu"))
    out = encoder.fit_transform(frame)
    assert out.columns.tolist() == [
        *("size", "big", "flag", "missingindicator_size", "missingindicator_flag"),
        *("kind_a", "kind_b", "kind_c", "missingindicator_kind", "town"),
    ]
    assert out.index.tolist() == list("pqrstu")
    polars = TabularEncoder().set_output(transform="polars").fit_transform(pl.DataFrame(TABLE))
    assert isinstance(polars, pl.DataFrame)


def test_in_a_pipeline_with_weights():
    y = np.array([0, 1, 0, 1, 0, 1])
    model = make_pipeline(TabularEncoder(), LogisticRegression())
    model.fit(pd.DataFrame(TABLE), y, tabularencoder__sample_weight=[1, 2, 1, 1, 1, 1])
    assert model.predict(pd.DataFrame(TABLE)).shape == (6,)


def test_no_names_after_a_fit_without_names(rng):
    frame = pd.DataFrame(rng.normal(size=(5, 2)), columns=["a", "b"])
    encoder = TabularEncoder().fit(frame)
    assert encoder.feature_names_in_.tolist() == ["a", "b"]
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        encoder.transform(frame.to_numpy())
    encoder.fit(frame.to_numpy())
    assert not hasattr(encoder, "feature_names_in_")
    encoder.transform(frame.to_numpy())


# ---- errors


def frame_of(**columns):
    return pd.DataFrame(columns)


FIT_ERRORS = [
    ({"max_one_hot": -1}, np.eye(2), ValueError, "max_one_hot must be an integer >= 0, got -1"),
    ({"max_one_hot": 2.5}, np.eye(2), ValueError, "max_one_hot must be an integer >= 0, got 2.5"),
    ({"max_tail": 0}, np.eye(2), ValueError, "max_tail must be a positive number, got 0."),
    ({"max_tail": "8"}, np.eye(2), ValueError, "max_tail must be a positive number, got '8'."),
    ({"dtype": "float16"}, np.eye(2), ValueError, "'float32' or 'float64', got 'float16'"),
    ({"categorical_features": "dtype"}, np.eye(2), ValueError, "'dtype' is not known: use 'from_d"),
    (
        {"categorical_features": ["colr"]},
        frame_of(color=["r"], size=[1]),
        ValueError,
        "has 'colr', but X has the columns ['color', 'size'], or by position 0 to 1. Did you mean "
        "'color'?",
    ),
    (
        {"categorical_features": ["a"]},
        np.eye(2),
        ValueError,
        "has 'a', but X has the columns 0 to 1",
    ),
    ({"categorical_features": [2]}, np.eye(2), ValueError, "has 2, but X has the columns 0 to 1."),
    ({"categorical_features": [True]}, np.eye(2), ValueError, "a mask of 1 columns, X has 2"),
    (
        {"categorical_features": [0]},
        sp.csr_array(np.eye(2)),
        ValueError,
        "sparse X cannot have cat",
    ),
    (
        {"categorical_features": None},
        frame_of(a=[1, 2], b=["u", "v"]),
        ValueError,
        "Column 'b' must be numeric, as it was in training or as it is not among "
        "categorical_features: could not convert string to float: 'u'",
    ),
    (
        {},
        frame_of(day=pd.to_datetime(["2020-01-01"])),
        ValueError,
        "Column 'day' is of dtype Datetime",
    ),
    (
        {},
        pl.DataFrame({"a": [[1], [2]]}),
        ValueError,
        "Column 'a' is of dtype List(Int64): turn it",
    ),
    ({}, np.array([["2020-01-01"]], "M8[D]"), ValueError, "Column 'x0' is of dtype datetime64[D]"),
    (
        {},
        [[1.0, 2.0], [1.0, np.inf], [1.0, -np.inf]],
        ValueError,
        "Input X contains infinity or a value too large for dtype('float64'): column 'x1', 2 ro",
    ),
    ({}, frame_of(a=[1.0, np.inf]), ValueError, "Input X contains infinity"),
    ({}, sp.csr_array([[np.inf]]), ValueError, "Input X contains infinity"),
    ({}, sp.csr_array([[np.nan]]), ValueError, "Input X contains NaN, which a sparse X cannot"),
    (
        {},
        np.array([["a"], [1]], object),
        TypeError,
        "Column 'x0' is a category, whose argument must",
    ),
    ({}, np.array([["a"], [{}]], object), TypeError, "numbers, got ['dict', 'str']"),
    ({}, np.array([[1.0], [{}]], object), TypeError, "Column 'x0' must be numeric"),
    ({}, frame_of(a=[]), ValueError, "Found array with 0 sample(s) (shape=(0, 1))"),
    ({}, pl.DataFrame(), ValueError, "Found array with 0 "),
    ({}, np.ones(3), ValueError, "Expected 2D array, got 1D array instead"),
    ({}, np.ones((2, 2)) * 1j, ValueError, "Complex data not supported"),
    ({}, frame_of(a=[1j, 2j]), TypeError, "Column 'a' must be numeric, as it was in training or"),
    ({"categorical_features": 0}, np.eye(2), ValueError, "categorical_features=0 is not known"),
]


@pytest.mark.parametrize(("parameters", "X", "error", "message"), FIT_ERRORS)
def test_errors_in_fit(parameters, X, error, message):
    for method in ("fit", "fit_transform"):
        with pytest.raises(error, match=re.escape(message)):
            getattr(TabularEncoder(**parameters), method)(X)


@pytest.mark.parametrize(
    ("weight", "message"),
    [([1, -1], "Negative values"), ([0, 0], "at least one non-zero"), ([1, 1, 1], "shape")],
)
def test_errors_in_weights(weight, message):
    with pytest.raises(ValueError, match=message):
        TabularEncoder().fit(np.eye(2), sample_weight=weight)


NAMED = pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]})


@pytest.mark.parametrize(
    ("train", "X", "error", "message"),
    [
        (
            np.eye(2),
            np.eye(3),
            ValueError,
            "X has 3 features, but TabularEncoder is expecting 2 fe",
        ),
        (NAMED, NAMED[["b", "a"]], ValueError, "must be in the same order as they were in fit"),
        (
            NAMED,
            NAMED.rename(columns={"a": "z"}),
            ValueError,
            "Feature names unseen at fit time:\n- z",
        ),
        (
            NAMED,
            NAMED.assign(a="text"),
            ValueError,
            "Column 'a' must be numeric, as it was in train",
        ),
        (NAMED, NAMED.assign(b=[{}, {}]), TypeError, "Column 'b' is a category"),
        (NAMED, NAMED.assign(b=pd.Timestamp(0)), ValueError, "Column 'b' is of dtype Datetime"),
        (np.eye(2), [[0.0, np.inf]], ValueError, "Input X contains infinity"),
        (NAMED, NAMED.assign(a=-np.inf), ValueError, "column 'a', 2 row(s)"),
        (np.eye(2), sp.csr_array(np.eye(2)), ValueError, "fitted on a dense X: pass X.toarray()"),
        (np.eye(2), np.empty((0, 2)), ValueError, "Found array with 0 sample(s)"),
    ],
)
def test_errors_in_transform(train, X, error, message):
    encoder = TabularEncoder().fit(train)
    with pytest.raises(error, match=re.escape(message)):
        encoder.transform(X)


def test_values_of_another_kind_than_the_category_are_refused():
    text = pd.DataFrame({"zip": ["1", "2", "x"]})
    encoder = TabularEncoder().fit(text)
    message = "Column 'zip' is a category of str values such as '1', got 2 of type int: read it as"
    with pytest.raises(TypeError, match=message):
        encoder.transform(pd.DataFrame({"zip": [2, 2]}))
    for gap in ([np.nan], [None], ["new"]):
        assert not encoder.transform(pd.DataFrame({"zip": gap})).any()
    numbers = TabularEncoder(categorical_features=[0]).fit([[1], [2]])
    with pytest.raises(TypeError, match="of int values such as 1, got '2' of type str"):
        numbers.transform(np.array([["2"]], dtype=object))
    assert not numbers.transform([[3.0]]).any()


def test_masked_values_are_missing():
    X = np.ma.array([[1, 5], [2, 6], [4, 7], [8, 99]], mask=[[0, 0]] * 3 + [[0, 1]])
    encoder = TabularEncoder().fit(X)
    filled = X.astype(float).filled(np.nan)
    np.testing.assert_array_equal(encoder.transform(X), TabularEncoder().fit_transform(filled))
    assert encoder.get_feature_names_out().tolist() == ["x0", "x1", "missingindicator_x1"]
    text = np.ma.array([["a"], ["b"]], mask=[[0], [1]])
    assert TabularEncoder().fit_transform(text).tolist() == [[1, 0], [0, 1]]


def test_not_fitted():
    with pytest.raises(NotFittedError):
        TabularEncoder().transform(np.eye(2))
