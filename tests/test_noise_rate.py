"""The share of wrong labels: hand values, coverage and alarms in simulated tables."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.stats import binom, binomtest

from robustclf.noise import NoiseRate, is_noisy, noise_rate
from robustclf.noise.rate import rate_estimator

N_TABLES = 200


def confident(wrong):
    """Labels and probabilities of rows, the most confident first, that are wrong where told."""
    p = np.linspace(0.99, 0.6, len(wrong))
    y = np.where(wrong, 1, 0)
    return y, np.column_stack([p, 1 - p])


def table(seed, rate=0.0, n=1000, n_classes=3, sharpness=4.0):
    """Labels drawn from calibrated probabilities, a share of them replaced by another class."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(n, n_classes))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    true = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=n_classes - 1)
    flipped = rng.random(n) < rate
    return np.where(flipped, (true + rng.integers(1, n_classes, n)) % n_classes, true), p


def at_most(share, level=0.05, n=N_TABLES):
    """Whether a share of the tables does not refute, at 1e-3, that it is at most the level."""
    return binom.sf(round(share * n) - 1, n, level) > 1e-3


# Hand values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong_rows", "n", "expected", "counted"),
    [
        ([0, 1, 2], 10, 3 / 10, 10),  # fewer than 100 rows: all count
        ([0, 1, 120, 199], 200, 2 / 100, 100),  # 20 to 60 rows are too few, so 100
        ([], 200, 0.0, 100),
        ([199, 300, 399, 400], 800, 0.0, 160),  # shares of 100, 160, 240 and 400 rows
        ([*range(10), 90], 400, 11 / 200, 200),
        ([0, 60], 400, 2 / 200, 200),
        ([99, 199], 200, 1 / 100, 100),
    ],
)
def test_least_share_of_labels_that_confident_predictions_contradict(
    wrong_rows, n, expected, counted
):
    y, p = confident(np.isin(np.arange(n), wrong_rows))
    rate = noise_rate(y, p, classes=[0, 1])
    assert (rate.rate, rate.n_rows) == (expected, counted)
    assert float(rate) == expected
    order = np.random.default_rng(0).permutation(n)
    assert noise_rate(y[order], p[order], classes=[0, 1]) == rate


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n_wrong", [0, 1, 20, 49, 50])
def test_interval_is_that_of_clopper_and_pearson(n_wrong, level):
    y, p = confident(np.arange(50) < n_wrong)
    rate = noise_rate(y, p, classes=[0, 1], confidence_level=level)
    exact = binomtest(n_wrong, 50).proportion_ci(level, method="exact")
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    one_sided = binomtest(n_wrong, 50, alternative="greater").proportion_ci(level, method="exact")
    assert rate.lower_bound == pytest.approx(one_sided.low, abs=1e-12)
    assert rate.confidence_level == level


def test_bound_is_the_least_of_four_each_at_a_quarter_of_the_level():
    wrong = np.zeros(1000, bool)
    wrong[[5, 17, 150, 160, 170, 250, 290, 350, 480]] = True
    rate = noise_rate(*confident(wrong), confidence_level=0.9)
    lows = [
        binomtest(int(wrong[:m].sum()), m, alternative="greater").proportion_ci(0.975).low
        for m in (100, 200, 300, 500)
    ]
    assert rate.lower_bound == pytest.approx(min(lows), abs=1e-12)
    assert (rate.rate, rate.n_rows) == (9 / 500, 500)


def test_labels_may_be_strings_and_lack_a_class():
    y, p = confident(np.arange(60) < 6)
    p = np.column_stack([p, np.zeros(60)])
    names = np.array(["cat", "dog", "elk"])
    assert noise_rate(names[y], p, classes=names) == noise_rate(y, p, classes=[0, 1, 2])


# Theorems, by simulation ----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_bound_stays_below_the_rate(rate):
    tables = (table(seed, rate, sharpness=6.0) for seed in range(N_TABLES))
    above = np.mean([noise_rate(y, p, confidence_level=0.8).lower_bound > rate for y, p in tables])
    assert at_most(above, 0.2)


def test_bound_stays_below_the_rate_where_the_less_confident_rows_err():
    above = 0
    for seed in range(N_TABLES):
        rng = np.random.default_rng(seed)
        confidence = np.linspace(1, 0.5, 1000)
        errs = (confidence < 0.7) & (rng.random(1000) < 0.5)
        wrong = errs ^ (rng.random(1000) < 0.1)
        y = np.where(wrong, 1, 0)
        rate = noise_rate(y, np.column_stack([confidence, 1 - confidence]), confidence_level=0.8)
        above += rate.lower_bound > 0.1
        assert rate.rate < 0.2
    assert at_most(above / N_TABLES, 0.2)


def test_estimate_is_near_the_rate():
    rates = [noise_rate(*table(seed, 0.2, n=4000, sharpness=8.0)).rate for seed in range(20)]
    assert np.mean(rates) == pytest.approx(0.2, abs=0.02)


def test_no_more_false_alarms_than_the_level():
    """Clean labels, some of them hard, and labels that are wrong up to the tolerance."""
    clean, tolerable = (
        np.mean([is_noisy(*table(seed, rate), level=0.2) for seed in range(N_TABLES)])
        for rate in (0.0, 0.015)
    )
    assert at_most(clean, 0.2)
    assert at_most(tolerable, 0.2)


def test_noise_of_ten_percent_is_seen():
    seen = {n: np.mean([is_noisy(*table(i, 0.1, n=n)) for i in range(100)]) for n in (1000, 3000)}
    assert seen[1000] > 0.7
    assert seen[3000] > 0.98


def test_tolerance_and_level_move_the_alarm():
    y, p = table(0, 0.1)
    bound = noise_rate(y, p, confidence_level=0.975).lower_bound  # one of two tests at level .05
    assert is_noisy(y, p, tolerance=bound - 1e-9)
    assert not is_noisy(y, p, tolerance=bound + 1e-9)
    stricter = noise_rate(y, p, confidence_level=0.999).lower_bound
    assert stricter < bound
    assert is_noisy(y, p, tolerance=bound - 1e-9, level=0.001) is False


def test_noise_of_some_classes_is_seen_though_the_surest_rows_are_of_others():
    """Given labels of class 1 are a third wrong, and its predictions less sure for it."""
    rng = np.random.default_rng(0)
    true = np.arange(3000) % 3
    given = np.where((true == 1) & (rng.random(3000) < 1 / 3), 2, true)
    sure = np.where(true == 1, 2 / 3, 0.99) + 0.005 * rng.random(3000)
    p = np.eye(3)[true] * sure[:, None] + (1 - np.eye(3)[true]) * (1 - sure[:, None]) / 2
    rate = noise_rate(given, p)
    assert rate.by_class
    assert rate.rate == pytest.approx(1 / 9, abs=0.03)
    assert rate.low <= 1 / 9 <= rate.high
    assert rate.lower_bound == 0  # safe for what must not over-estimate
    assert is_noisy(given, p)
    assert not is_noisy(true, p)
    assert rate_estimator(given, p)(np.ones(3000)) == pytest.approx(rate.rate)


# Weights --------------------------------------------------------------------------------------


def test_rate_of_equal_weights_is_the_rate():
    y, p = table(0, 0.2)
    assert rate_estimator(y, p)(np.ones(1000)) == pytest.approx(noise_rate(y, p).rate, abs=1e-12)
    assert rate_estimator(y[:30], p[:30])(np.ones(30)) == noise_rate(y[:30], p[:30]).rate


@pytest.mark.parametrize("n", [40, 90, 700])
def test_integer_weights_are_repetitions(n):
    y, p = table(1, 0.3, n=n)
    rng = np.random.default_rng(0)
    for weight in (rng.integers(0, 5, n), rng.multinomial(n, np.full(n, 1 / n)), np.full(n, 2)):
        repeated = noise_rate(np.repeat(y, weight), np.repeat(p, weight, axis=0)).rate
        assert rate_estimator(y, p)(weight.astype(float)) == pytest.approx(repeated, abs=1e-12)


def test_a_row_of_large_weight_counts_in_part():
    y, p = confident(np.arange(10) == 0)
    weight = np.ones(10)
    weight[0] = 191
    assert rate_estimator(y, p)(weight) == 1.0  # the 100 of the most confident row alone
    assert rate_estimator(1 - y, p)(weight) == 0.0


# What it leaves alone, and what it refuses ------------------------------------------------------


def test_input_is_not_changed():
    y, p = table(0, 0.2)
    before = y.copy(), p.copy()
    noise_rate(y, p)
    is_noisy(y, p)
    assert_array_equal(y, before[0])
    assert_array_equal(p, before[1])


@pytest.mark.parametrize("level", [0, 1, -0.1, 95, np.nan])
def test_a_level_is_between_0_and_1(level):
    y, p = table(0)
    with pytest.raises(ValueError, match=rf"confidence_level must be between 0 and 1, got {level}"):
        noise_rate(y, p, confidence_level=level)
    for name in ("tolerance", "level"):
        with pytest.raises(ValueError, match=rf"^{name} must be between 0 and 1, got {level}"):
            is_noisy(y, p, **{name: level})


def test_predictions_are_no_probabilities():
    y, p = table(0)
    with pytest.raises(ValueError, match=r"proba must have a column for each class.*not labels"):
        noise_rate(y, p.argmax(axis=1))
    with pytest.raises(ValueError, match="proba must have a column for each class"):
        is_noisy(y, p.argmax(axis=1))


def test_a_rate_is_frozen():
    rate = NoiseRate(0.1, 0.0, 0.2, 0.0, False, 0.95, 50)
    with pytest.raises(AttributeError, match="rate"):
        rate.rate = 0.2


@pytest.mark.parametrize("n_values", [2, 5, 40])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), "drawn"])
def test_of_rows_as_confident_as_others_none_comes_first(n_values, order):
    """Trees and neighbours give few values; the second half of this file is noisy."""
    y, p = table(0, n=2000, n_classes=2)
    p = np.round(p * n_values) / n_values
    y[1000:] = np.where(np.random.default_rng(1).random(1000) < 0.3, 1 - y[1000:], y[1000:])
    if isinstance(order, str):
        order = np.random.default_rng(2).permutation(2000)
    expected, found = noise_rate(y, p), noise_rate(y[order], p[order])
    assert found.rate == pytest.approx(expected.rate, abs=1e-12)
    assert found.lower_bound == pytest.approx(expected.lower_bound, abs=1e-9)
    assert is_noisy(y[order], p[order])
