import pickle
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf.preprocessing import TabularEncoder


@parametrize_with_checks([TabularEncoder()])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def numbers(rng, n=60):
    """Return columns of many kinds: normal, heavy-tailed, few values, sparse, with missing."""
    X = np.column_stack(
        [
            rng.normal(size=n),
            rng.standard_cauchy(n),
            rng.integers(0, 3, n),
            rng.random(n) < 0.1,
            rng.normal(size=n),
        ]
    ).astype(float)
    X[rng.random(n) < 0.3, 4] = np.nan
    return X


# ---- numbers: the formula


def test_formula(rng):
    X = rng.normal(size=(41, 3)) * [1, 10, 100] + 5
    low, median, high = np.quantile(X, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
    z = (X - median) / (high - low)
    expected = z / np.sqrt(1 + (z / 3) ** 2)
    out = TabularEncoder(dtype="float64").fit_transform(X)
    np.testing.assert_allclose(out, expected, rtol=1e-14, atol=1e-15)
    assert TabularEncoder().fit_transform(X).dtype == np.float32


def test_hand_values():
    X = np.array([[0.0, 0], [1, 0], [2, 0], [3, 8], [4, 0]])
    out = TabularEncoder(dtype="float64").fit_transform(X)
    # first column: median 2, quartiles 1 and 3; second: no quartile range, half the range is 4
    clip = 1 / np.sqrt(1 + 1 / 36)
    np.testing.assert_allclose(
        out[:, 0], [-1 / 1.0540925533894598, -clip / 2, 0, clip / 2, 0.9486832980505138]
    )
    np.testing.assert_allclose(out[:, 1], [0, 0, 0, 2 / np.sqrt(1 + 4 / 9), 0])


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0), (7.3, -4.0), (1e6, 1e5), (2.0**-900, 0)])
def test_scale_and_shift_of_a_column_change_nothing(rng, scale, shift):
    X, new = numbers(rng), numbers(rng)
    encoder = TabularEncoder(dtype="float64").fit(X)
    moved = TabularEncoder(dtype="float64").fit(scale * X + shift)
    np.testing.assert_allclose(
        moved.transform(scale * new + shift), encoder.transform(new), atol=1e-6
    )


def test_one_outlier_changes_little(rng):
    X = numbers(rng, 1000)
    wild = X.copy()
    wild[7] = 1e12
    clean, hurt = TabularEncoder().fit_transform(X), TabularEncoder().fit_transform(wild)
    gaussian = [0, 4]
    assert np.abs(np.delete(clean - hurt, 7, axis=0)[:, gaussian]).max() < 0.02
    np.testing.assert_allclose(hurt[7, [0, 2]], 3)
    assert 2.8 < hurt[7, 1] < 3  # its logarithm, since the tails are heavy


def test_increasing_odd_and_bounded(rng):
    encoder = TabularEncoder(dtype="float64").fit(rng.normal(size=(50, 1)))
    x = np.sort(np.concatenate([rng.normal(size=200), 10.0 ** np.arange(0, 5)]))[:, None]
    out = encoder.transform(x)
    assert (np.diff(out[:, 0]) > 0).all()
    mirrored = encoder.transform(2 * encoder.center_ - x)
    np.testing.assert_allclose(mirrored, -out, rtol=1e-12, atol=1e-12)
    assert np.abs(out).max() < 3


# ---- numbers with heavy tails


def logarithm(x, origin, unit):
    d = x - origin
    return np.sign(d) * np.log(1 + np.abs(d) / unit)


def clip(z):
    return z / np.sqrt(1 + (z / 3) ** 2)


def of_shares(x, shares):
    return np.quantile(x, shares, method="inverted_cdf")


@pytest.mark.parametrize("sign", [1, -1])
def test_formula_of_a_heavy_tail(rng, sign):
    x = sign * np.exp(2 * rng.normal(size=501)) + 7
    origin = of_shares(x, [63 / 64, 1 / 2, 1 / 64][sign + 1])
    below, above = origin - x[x < origin], x[x > origin] - origin
    unit = (of_shares(below, 1 / 8) + of_shares(above, 1 / 8)) / 2
    z = logarithm(x, origin, unit)
    lower, median, upper = of_shares(z, [0.25, 0.5, 0.75])
    encoder = TabularEncoder(dtype="float64")
    out = encoder.fit_transform(x[:, None])[:, 0]
    assert encoder.origin_ == origin
    np.testing.assert_allclose(encoder.unit_, unit, rtol=1e-12)
    np.testing.assert_allclose(out, clip((z - median) / (upper - lower)), rtol=1e-10, atol=1e-12)
    assert (np.argsort(out) == np.argsort(x)).all()


def test_two_heavy_tails_have_their_origin_in_the_middle(rng):
    x = rng.standard_cauchy(501)
    encoder = TabularEncoder(dtype="float64").fit(x[:, None])
    assert encoder.origin_ == np.median(x)
    near = [of_shares(np.abs(side), 1 / 8) for side in (x[x < np.median(x)], x[x > np.median(x)])]
    assert encoder.unit_ == pytest.approx(np.mean(near), abs=np.median(np.abs(x)) / 10)
    mirrored = encoder.transform(2 * np.median(x) - x[:, None])
    assert (np.diff(encoder.transform(np.sort(x)[:, None]), axis=0) > 0).all()
    assert np.abs(mirrored + encoder.transform(x[:, None])).max() < 0.5  # the ranges differ a bit


@pytest.mark.parametrize(
    ("draw", "heavy"),
    [
        (lambda rng, n: rng.normal(size=n), False),
        (lambda rng, n: rng.exponential(size=n), False),
        (lambda rng, n: rng.standard_t(3, n), False),
        (lambda rng, n: np.exp(0.6 * rng.normal(size=n)), False),
        (lambda rng, n: np.exp(rng.normal(size=n)), True),
        (lambda rng, n: rng.standard_cauchy(n), True),
        (lambda rng, n: rng.random(n) < 0.05, False),
        (lambda rng, n: np.where(rng.random(n) < 0.8, 0, np.exp(2 * rng.normal(size=n))), True),
        (lambda rng, n: np.where(rng.random(n) < 0.01, 1e9, rng.normal(size=n)), False),
        (lambda rng, n: np.zeros(n), False),
    ],
)
def test_which_tails_are_heavy(rng, draw, heavy):
    X = np.asarray(draw(rng, 4000), dtype=float)[:, None]
    assert np.isfinite(TabularEncoder().fit(X).unit_) == heavy
    plain = TabularEncoder(max_tail=np.inf).fit(X)
    assert np.isinf(plain.unit_)
    same = np.array_equal(plain.transform(X), TabularEncoder().fit_transform(X))
    assert same is not heavy


def test_orders_of_magnitude_stay_apart(rng):
    x = np.exp(3 * rng.normal(size=1000))
    gauss = TabularEncoder().fit_transform(np.log(x)[:, None])
    assert np.corrcoef(TabularEncoder().fit_transform(x[:, None]), gauss, rowvar=False)[0, 1] > 0.98
    clipped = TabularEncoder(max_tail=np.inf).fit_transform(x[:, None])
    assert np.corrcoef(clipped, gauss, rowvar=False)[0, 1] < 0.9


def test_heavy_tails_beside_others_with_gaps_and_infinities(rng):
    X = numbers(rng, 300)
    X[:, 2] = np.exp(3 * X[:, 0])
    X[rng.random(300) < 0.2, 2] = np.nan
    encoder = TabularEncoder(dtype="float64")
    out = encoder.fit_transform(X)
    assert np.isfinite(encoder.unit_).tolist() == [False, True, True, False, False]
    alone = TabularEncoder(dtype="float64").fit_transform(X[:, 2:3])
    np.testing.assert_array_equal(out[:, [2, 5]], alone)
    assert (alone[np.isnan(X[:, 2]), 0] == 0).all()
    np.testing.assert_allclose(TabularEncoder().fit_transform(X), out, atol=1e-6)
    huge = encoder.transform([[0, 1e308, 1e308, 0, 0], [0, -1e308, -1e308, 0, 0]])
    assert (np.abs(huge) <= 3).all()
    with pytest.raises(ValueError, match=r"infinity or a value .* column 'x2', 1 row"):
        encoder.transform([[0, 0, np.inf, 0, 0]])
    with pytest.raises(ValueError, match="Input X contains infinity"):
        encoder.fit(np.where(np.nanmax(X[:, 2]) == X, np.inf, X))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_values_saturate(dtype):
    top = np.finfo(np.float64).max
    X = np.array([[0.0, -top, 1e-300], [1, 0, 0], [2, top, 0], [3, top, 0], [4, -top, 0]])
    encoder = TabularEncoder(dtype=dtype).fit(X)
    assert np.isfinite(encoder.transform(X)).all()
    out = encoder.transform(np.array([[1e300, 0, 1.0], [-top, 0, top], [1e18, 0, -top]]))
    np.testing.assert_allclose(out[:, 0], [3, -3, 3])
    np.testing.assert_allclose(out[:, 2], [3, 3, -3])
    constant = TabularEncoder(dtype=dtype).fit([[-top], [-top]])
    assert constant.transform(np.array([[top]])) == 0


def test_large_integers():
    X = np.array([[2**63 - 1], [-(2**63)], [0], [1], [2]])
    out = TabularEncoder().fit_transform(X)
    np.testing.assert_allclose(out[:3, 0], [3, -3, -0.5 / np.sqrt(1 + 1 / 36)], rtol=1e-6)
    unsigned = TabularEncoder().fit_transform(X.astype(np.uint64))
    assert np.isfinite(unsigned).all()


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_every_dtype_of_number_is_the_same_number(rng, kind):
    X = rng.integers(0, 2, size=(30, 4))
    expected = TabularEncoder().fit_transform(X.astype(float))
    np.testing.assert_array_equal(TabularEncoder().fit_transform(X.astype(kind)), expected)
    np.testing.assert_array_equal(TabularEncoder().fit(X).transform(X.astype(kind)), expected)


def test_memory_order_changes_nothing(rng):
    X = rng.normal(size=(3000, 30))
    expected = TabularEncoder().fit_transform(X)
    np.testing.assert_array_equal(TabularEncoder().fit_transform(np.asfortranarray(X)), expected)
    np.testing.assert_array_equal(TabularEncoder().fit_transform(X[::-1])[::-1], expected)
    assert expected.flags.c_contiguous


def test_constant_column_is_zero_everywhere():
    encoder = TabularEncoder().fit(np.full((5, 1), 7.0))
    np.testing.assert_array_equal(encoder.transform([[7.0], [8.0], [1e30]]), np.zeros((3, 1)))


def test_input_is_not_changed(rng):
    X = numbers(rng)
    for data in (X, np.asfortranarray(X), pd.DataFrame(X), sp.csc_array(np.nan_to_num(X))):
        before = data.copy()
        TabularEncoder().fit_transform(data, sample_weight=rng.random(len(X)))
        assert (data != before).sum().sum() == (data != data).sum().sum()


# ---- weights


def encodings(encoder, X):
    out = encoder.transform(X)
    return out.toarray() if sp.issparse(out) else out


@pytest.mark.parametrize("kind", ["dense", "sparse", "pandas", "polars", "object"])
def test_weight_is_repetition_and_zero_is_absence(rng, kind):
    X = numbers(rng, 80)
    weight = rng.integers(0, 4, len(X))
    text = rng.choice(list("abcdefghijklmnop"), len(X)).astype(object)
    text[:3], weight[:3] = "only here", 0
    weight[np.isnan(X[:, 4])] = 0  # the missing values are of rows of weight 0 too
    table = {f"c{j}": X[:, j] for j in range(5)} | {"text": text}
    rows = np.repeat(np.arange(len(X)), weight)
    data = {
        "dense": lambda: X,
        "sparse": lambda: sp.csr_array(np.nan_to_num(X) * (rng.random(X.shape) < 0.4)),
        "pandas": lambda: pd.DataFrame(table),
        "polars": lambda: pl.DataFrame(table),
        "object": lambda: np.array(list(zip(*table.values(), strict=True)), dtype=object),
    }[kind]()
    repeated = data.iloc[rows] if kind == "pandas" else data[rows]
    weighted = TabularEncoder(dtype="float64").fit(data, sample_weight=weight)
    other = TabularEncoder(dtype="float64").fit(repeated)
    np.testing.assert_array_equal(weighted.center_, other.center_)
    np.testing.assert_array_equal(weighted.scale_, other.scale_)
    assert weighted.cardinalities_ == other.cardinalities_
    np.testing.assert_array_equal(encodings(weighted, data), encodings(other, data))
    names = weighted.get_feature_names_out().tolist()
    assert names == other.get_feature_names_out().tolist()
    assert not any("missing" in name or "only here" in name for name in names)


def test_rows_of_weight_zero_do_not_widen_the_range():
    X = np.array([[-90.0], [5], [5], [5], [5], [9], [70]])
    encoder = TabularEncoder().fit(X, sample_weight=[0, 1, 1, 1, 1, 1, 0])
    assert encoder.scale_ == 2
    sparse = sp.csr_array([[3.0, 0.0], [0.0, 4.0], [1.0, 5.0]])
    np.testing.assert_array_equal(
        TabularEncoder().fit(sparse, sample_weight=[1, 0, 0]).scale_, [3, np.inf]
    )


def test_scale_of_the_weights_changes_nothing(rng):
    X, weight = numbers(rng), rng.random(60)
    one = TabularEncoder().fit_transform(X, sample_weight=weight)
    np.testing.assert_array_equal(TabularEncoder().fit_transform(X, sample_weight=weight / 8), one)
    equal = TabularEncoder().fit_transform(X, sample_weight=np.full(60, 0.25))
    np.testing.assert_array_equal(equal, TabularEncoder().fit_transform(X))


def test_column_known_only_in_rows_of_weight_zero():
    X = np.array([[1.0, np.inf], [np.nan, 1], [np.nan, 2]])
    encoder = TabularEncoder().fit(X, sample_weight=[0, 1, 1])
    np.testing.assert_array_equal(
        encoder.transform([[5.0, 1], [np.nan, 1]])[:, [0, 2]], [[0, 0], [0, 1]]
    )
    assert encoder.center_[1] == 1


# ---- missing values


def test_missing_in_training_gets_an_indicator(rng):
    X = numbers(rng)
    encoder = TabularEncoder()
    out = encoder.fit_transform(X)
    missing = np.isnan(X[:, 4])
    assert out.shape == (60, 6)
    assert encoder.n_dense_ == 6
    assert encoder.numeric_ == slice(0, 5)
    np.testing.assert_array_equal(out[:, 5], missing)
    assert (out[missing, 4] == 0).all()
    known = TabularEncoder().fit_transform(X[~missing])
    np.testing.assert_array_equal(out[~missing, 4], known[:, 4])


def test_missing_only_in_prediction_is_zero(rng):
    encoder = TabularEncoder().fit(rng.normal(size=(20, 2)))
    out = encoder.transform(np.array([[np.nan, 1e300], [0.5, np.nan]]))
    assert out.shape == (2, 2)
    assert out[0, 0] == out[1, 1] == 0
    assert out[0, 1] == 3


def test_column_without_any_value():
    X = np.array([[np.nan, 1.0], [np.nan, 2.0]])
    encoder = TabularEncoder()
    np.testing.assert_array_equal(encoder.fit_transform(X)[:, [0, 2]], [[0, 1], [0, 1]])
    np.testing.assert_array_equal(encoder.transform([[4.0, 1.0]])[:, [0, 2]], [[0, 0]])


def test_missing_category_is_a_value_of_its_own_if_trained():
    seen = TabularEncoder().fit([["a"], [None], ["b"]])
    np.testing.assert_array_equal(
        seen.transform([[np.nan], ["b"], ["z"]]), [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    )
    unseen = TabularEncoder().fit([["a"], ["b"]])
    for missing in (None, np.nan, pd.NA, pd.NaT):
        np.testing.assert_array_equal(unseen.transform(np.array([[missing]], object)), [[0, 0]])
    from_list = TabularEncoder().fit([[1.0, "a"], [2.0, np.nan]])
    assert from_list.get_feature_names_out().tolist() == ["x0", "x1_a", "missingindicator_x1"]
    codes = TabularEncoder(max_one_hot=0).fit([["a"], [None], ["b"]])
    np.testing.assert_array_equal(codes.transform([["a"], ["b"], [None], ["z"]]).T, [[1, 2, 3, 0]])
    assert codes.cardinalities_ == (4,)


# ---- sparse


@pytest.mark.parametrize("make", [sp.csr_array, sp.csc_array, sp.coo_array, sp.csr_matrix])
def test_sparse_formula(rng, make):
    X = rng.normal(size=(90, 6)) * (rng.random((90, 6)) < 0.3)
    X[:, 5] = 0
    encoder = TabularEncoder(dtype="float64")
    out = encoder.fit_transform(make(X))
    assert sp.issparse(out)
    assert out.format == "csr"
    scale = [np.quantile(np.abs(c[c != 0]), 0.5, method="inverted_cdf") for c in X[:, :5].T]
    np.testing.assert_array_equal(encoder.scale_[:5], scale)
    z = X[:, :5] / scale
    np.testing.assert_allclose(out.toarray()[:, :5], z / np.sqrt(1 + (z / 3) ** 2), rtol=1e-14)
    assert out.nnz == np.count_nonzero(X)
    np.testing.assert_array_equal(encoder.transform(X), out.toarray())
    assert TabularEncoder().fit_transform(make(X)).dtype == np.float32
    later = X.copy()
    later[0, 5] = 4.0
    np.testing.assert_array_equal(encoder.transform(make(later)).toarray()[:, 5], 0)


def test_sparse_duplicates_and_stored_zeros_are_their_sum():
    rows, columns = [0, 0, 1, 2, 3], [0, 0, 0, 0, 0]
    twice = sp.coo_array(([1.0, 2.0, 5.0, 0.0, 7.0], (rows, columns)), shape=(4, 1))
    unsummed = sp.csr_array(([1.0, 2.0, 5.0, 0.0, 7.0], [0] * 5, [0, 2, 3, 4, 5]), shape=(4, 1))
    expected = TabularEncoder().fit_transform(sp.csr_array([[3.0], [5.0], [0.0], [7.0]])).toarray()
    for X in (twice, unsummed):
        np.testing.assert_array_equal(TabularEncoder().fit_transform(X).toarray(), expected)
    assert unsummed.nnz == 5


def test_sparse_output_shares_nothing_with_the_input():
    X = sp.csr_array(np.eye(3))
    out = TabularEncoder().fit_transform(X)
    assert not np.shares_memory(out.indices, X.indices)
    assert not np.shares_memory(out.indptr, X.indptr)


def test_sparse_huge_values_and_integers():
    X = sp.csr_array(np.array([[1e300, 0], [1, 3], [1, 4]]))
    np.testing.assert_allclose(TabularEncoder().fit_transform(X).toarray()[0], [3, 0])
    lowest = sp.csr_array(np.array([[-(2**63)], [1], [1]]))
    np.testing.assert_allclose(TabularEncoder().fit_transform(lowest).toarray()[0], [-3])
    assert TabularEncoder().fit(lowest[:1]).scale_ == 2.0**63


# ---- cost


def test_one_row_is_encoded_as_in_the_table(rng):
    X = numbers(rng)
    encoder = TabularEncoder()
    out = encoder.fit_transform(X)
    for i in range(len(X)):
        np.testing.assert_array_equal(encoder.transform(X[i : i + 1]), out[i : i + 1])
        np.testing.assert_array_equal(encoder.transform(X[i : i + 1].tolist()), out[i : i + 1])


def test_one_row_skips_the_validation(rng, monkeypatch):
    encoder = TabularEncoder().fit(rng.normal(size=(9, 3)))
    monkeypatch.setattr(TabularEncoder, "_validate", None)
    assert encoder.transform(np.zeros((1, 3))).shape == (1, 3)
    with pytest.raises(ValueError, match="Input X contains infinity"):
        encoder.transform(np.array([[0, np.inf, 0]]))
    with pytest.raises(TypeError):
        encoder.transform(np.zeros((1, 4)))


def peak(function):
    tracemalloc.start()
    try:
        result = function()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("dtype", "missing"), [("f8", False), ("f8", True), ("f4", False)])
def test_memory_of_dense_input(rng, order, dtype, missing):
    X = np.asarray(rng.normal(size=(100_000, 20)), dtype=dtype, order=order)
    if missing:
        X[rng.random(X.shape) < 0.1] = np.nan
    used, out = peak(lambda: TabularEncoder().fit_transform(X))
    assert used < out.nbytes + 0.1 * X.nbytes
    used, encoder = peak(lambda: TabularEncoder().fit(X))
    assert used < 0.1 * X.nbytes
    used, out = peak(lambda: encoder.transform(X))
    assert used < out.nbytes + 0.1 * X.nbytes


def test_memory_of_weighted_fit(rng):
    X, weight = rng.normal(size=(50_000, 40)), rng.random(50_000)
    used, _ = peak(lambda: TabularEncoder().fit(X, sample_weight=weight))
    assert used < 0.15 * X.nbytes


def test_pickle_is_small_and_equal(rng):
    X = pd.DataFrame(rng.normal(size=(20_000, 3)), columns=list("abc"))
    X["kind"] = rng.choice(list("uvw"), 20_000)
    encoder = TabularEncoder().fit(X)
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 3000
    np.testing.assert_array_equal(pickle.loads(pickled).transform(X), encoder.transform(X))
