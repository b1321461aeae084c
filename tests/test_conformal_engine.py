"""Scores, levels, the clean distribution, corrections and coverage, on drawn probabilities."""

import itertools
import json
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom

from robustclf.conformal import APS, DKW, LAC, RAPS, Score, TopK, conformal_quantile
from robustclf.conformal._calibration import Calibration
from robustclf.conformal._corrections import CORRECTIONS, alias_of, choose
from robustclf.conformal._deviations import expected_maximum, largest_excess, limiting_process
from robustclf.conformal._evidence import Evidence, Noise
from robustclf.conformal._levels import FoldLevels, Levels, steps
from robustclf.conformal._scores import SCORES, row_uniforms
from robustclf.noise import pair_transition, uniform_transition

REFERENCE = Path(__file__).parent / "reference"
SIZES = json.loads((REFERENCE / "conformal_corrections.json").read_text())
K = 4
MATRIX = np.array([[0.8, 0.2, 0, 0], [0.1, 0.7, 0.1, 0.1], [0, 0.1, 0.9, 0], [0.1, 0, 0.2, 0.7]])
NOISES = {
    "clean": np.eye(K),
    "uniform": uniform_transition(0.15, K),
    "pair": pair_transition(0.2, K),
    "matrix": MATRIX,
}


def draw(rng, n, k=K, separation=1.2):
    """True classes and their exact posteriors."""
    true = rng.randint(k, size=n)
    logits = separation * (separation * np.eye(k)[true] + rng.normal(size=(n, k)))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return true, p / p.sum(axis=1, keepdims=True)


def corrupt(rng, true, transition):
    return (rng.random_sample(len(true))[:, None] > transition[true].cumsum(axis=1)[:, :-1]).sum(1)


def calibrate(scores, codes, transition, *, rng=None, **params):
    settings = {"coverage": "marginal", "groups": None, "correction": "auto", "optimistic": False}
    rng = np.random.RandomState(0) if rng is None else rng
    classes = np.arange(scores.shape[1])
    settings |= {"folds": None} | params
    return Calibration.of(scores, codes, Noise(transition), classes, rng=rng, **settings)


def kept(calibration, scores, alpha=0.1, groups=None):
    return calibration.sets(scores[None], np.atleast_1d(alpha), groups)


# Scores -------------------------------------------------------------------------------------------


def by_hand(alias, p, u, y):
    """Write the score of class y for one row as its paper does, with ranks by sorting."""
    rank = 1 + sum(other > p[y] for other in p)
    down = sum(other for other in p if other >= p[y])
    return {
        "lac": 1 - p[y],
        "margin": max(p[j] for j in range(len(p)) if j != y) - p[y],
        "topk": rank - u,
        "aps": down - u * p[y],
        "raps": down - u * p[y] + 0.1 * max(0, rank - 1),
        "saps": u * p[y] if rank == 1 else max(p) + 0.2 * (rank - 2 + 1 - u),
    }[alias]


@pytest.mark.parametrize("alias", SCORES.names())
def test_scores_are_those_of_the_papers(alias):
    rng = np.random.RandomState(0)
    _, p = draw(rng, 50)
    u = rng.random_sample(50)
    expected = [[by_hand(alias, row, v, y) for y in range(K)] for row, v in zip(p, u, strict=True)]
    assert_allclose(SCORES.make(alias)(p, u), expected, atol=1e-12)


@pytest.mark.parametrize("alias", SCORES.names())
def test_scores_order_classes_by_probability_and_leave_the_input_alone(alias):
    p = draw(np.random.RandomState(0), 50)[1]
    before = p.copy()
    scores = SCORES.make(alias)(p, np.full(50, 0.5))
    assert_array_equal(p, before)
    order = np.argsort(-p, axis=1)
    assert (np.diff(np.take_along_axis(scores, order, axis=1), axis=1) >= -1e-12).all()


def test_scores_without_randomness():
    p = np.array([[0.2, 0.7, 0.1]])
    assert_array_equal(TopK(randomized=False)(p), [[2, 1, 3]])
    assert_allclose(APS(randomized=False)(p), [[0.9, 0.7, 1.0]])
    assert_allclose(RAPS(penalty=0.2, k_reg=2, randomized=False)(p), [[0.9, 0.7, 1.2]])


def test_randomised_scores_need_a_number():
    with pytest.raises(ValueError, match="pass one uniform number for each row"):
        APS()([[0.5, 0.5]])
    with pytest.raises(NotImplementedError):
        Score()([[0.5, 0.5]])


def test_a_row_has_one_number_whatever_comes_with_it():
    p = draw(np.random.RandomState(0), 20_000)[1]
    u = row_uniforms(p, 3)
    assert_array_equal(row_uniforms(p[7:8], 3), u[7:8])
    assert_array_equal(row_uniforms(p * (1 + 4e-16), 3), u)
    assert_array_equal(row_uniforms(-0.0 * p, 3), row_uniforms(0.0 * p, 3))
    assert len(np.unique(u)) == len(u)
    assert abs(np.histogram(u, 20, (0, 1))[0] / 1000 - 1).max() < 0.15
    assert abs(np.corrcoef(u, p[:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(u, row_uniforms(p, 4))[0, 1]) < 0.03


# Levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8, 9, 19, 99, 100, 1000])
@pytest.mark.parametrize("percent", [1, 5, 10, 30, 50, 70, 90])
def test_quantile_of_the_textbook_bit_for_bit(n, percent):
    scores = np.random.RandomState(n).normal(size=n)
    rank = -((n + 1) * (100 - percent) // -100)  # exact in whole numbers
    expected = np.sort(scores)[rank - 1] if rank <= n else np.inf
    assert conformal_quantile(scores, percent / 100) == expected
    assert Fraction(rank) >= (n + 1) * Fraction(100 - percent, 100) > rank - 1


def test_clean_labels_give_the_textbooks_thresholds():
    rng = np.random.RandomState(0)
    y, p = draw(rng, 300)
    scores = LAC()(p)
    alpha = np.array([0.05, 0.1, 0.3])
    own = scores[np.arange(300), y]
    for correction in ("auto", "none", "sesia", "bortolotti", "crcp", "crossing", "asymptotic"):
        made = calibrate(scores, y, np.eye(K), correction=correction)
        assert made.chosen.alias == "none"
        assert_array_equal(made.thresholds(alpha)[0], conformal_quantile(own, alpha))
    by_class = calibrate(scores, y, np.eye(K), coverage="class").thresholds(alpha)
    assert_array_equal(by_class, [conformal_quantile(own[y == k], alpha) for k in range(K)])


def test_sets_are_what_p_values_say():
    rng = np.random.RandomState(1)
    y, p = draw(rng, 200)
    scores = np.round(LAC()(p), 2)  # with ties
    alpha = np.array([0.07, 0.1, 0.25, 0.5])
    for noise in NOISES.values():
        for correction in ("none", "bortolotti"):
            for optimistic in (False, True):
                made = calibrate(scores, y, noise, correction=correction, optimistic=optimistic)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    sets = kept(made, scores, alpha)
                p_values = made.p_values(scores[None], None)
                assert_array_equal(sets, p_values[..., None] > alpha + 1e-12)


def test_p_values_of_clean_labels_count_rows():
    y, p = draw(np.random.RandomState(0), 50)
    scores = LAC()(p)
    own = scores[np.arange(50), y]
    p_values = calibrate(scores, y, np.eye(K)).p_values(scores[None], None)
    expected = (1 + (own >= scores[..., None]).sum(axis=-1)) / 51
    assert_allclose(p_values, expected, atol=1e-12)


def test_folds_count_rows_for_their_own_classifier():
    rng = np.random.RandomState(0)
    scores, folds = rng.random_sample(60), np.arange(60) % 3
    new = rng.random_sample((3, 10))
    levels = FoldLevels.of(scores, np.full(60, 1 / 61), folds)
    above = sum((scores[folds == f] >= new[f][:, None]).sum(axis=1) for f in range(3))
    assert_allclose(levels.p_values(new), (1 + above) / 61)
    same = np.repeat(new[:1], 3, axis=0)
    assert_allclose(levels.p_values(same), Levels.textbook(scores).p_values(new[0]))


# The distribution of clean scores -----------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 500])
def test_uniform_noise_and_matrices_give_one_distribution(n):
    """As in the papers: by the uniform formula, the trace, and the sum over labels and classes."""
    rng = np.random.RandomState(n)
    epsilon, T = 0.2, uniform_transition(0.2, K, convention="all")
    scores, codes = rng.random_sample((n, K)), rng.randint(K, size=n)
    evidence = Evidence(scores, codes, np.arange(K), Noise(T))
    at, total = steps(evidence.scores, evidence.weight)
    for q in (0.2, 0.5, 0.9, 2.0):
        ours = np.append(0, total)[np.searchsorted(at, q, side="right")]
        below = scores <= q
        noisy, size = below[np.arange(n), codes].mean(), below.mean()
        assert_allclose(ours, (noisy - epsilon * size) / (1 - epsilon), atol=1e-10)
        counts = np.array([[below[codes == i, k].sum() / n for i in range(K)] for k in range(K)])
        assert_allclose(ours, np.trace(counts @ np.linalg.inv(T)), atol=1e-10)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [2], [0, 3]], ids=str)
def test_the_clean_distribution_is_unbiased(name, columns):
    rng = np.random.RandomState(0)
    y, p = draw(rng, 100_000)
    columns, scores = np.array(columns), LAC()(p)
    noisy = corrupt(rng, y, NOISES[name])
    cell = Evidence(scores[:, columns], noisy, columns, Noise(NOISES[name]))
    at, total = steps(cell.scores, cell.weight)
    own = np.sort(scores[np.arange(len(y)), y][np.isin(y, columns)])
    truth = np.searchsorted(own, at, side="right") / len(own)
    assert abs(total - truth).max() < 0.01
    assert_allclose(cell.mass, len(own) / len(y), atol=0.005)
    wrong = np.searchsorted(np.sort(cell.own_scores), at, side="right") / cell.n_own
    assert name == "clean" or abs(wrong - truth).max() > 0.05


# Corrections --------------------------------------------------------------------------------------


def balanced(n, k, epsilon, columns=None):
    columns = np.arange(k) if columns is None else np.array(columns)
    noise = Noise(uniform_transition(epsilon, k, convention="all"))
    scores = np.random.RandomState(0).random_sample((n, len(columns)))
    return Evidence(scores, np.arange(n) % k, columns, noise)


@pytest.mark.parametrize("row", SIZES["rows"], ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_sizes_are_those_of_the_table(row):
    n, k, epsilon, *expected = row
    together, one = balanced(n, k, epsilon), balanced(n, k, epsilon, [0])
    sizes = [
        CORRECTIONS.make("sesia").size(together),
        CORRECTIONS.make("sesia").size(one),
        CORRECTIONS.make("crcp").size(together),
        DKW(delta=0.1).size(together),
        DKW(delta=0.001).size(together),
        CORRECTIONS.make("bortolotti").size(together),
    ]
    # closed forms to the last digit; the others' c(n) was drawn 1,000 times, which 3 % allow for
    assert_allclose(sizes[2:5], expected[2:5], atol=6e-5)
    assert_allclose(sizes, expected, rtol=0.03)
    assert_allclose(sizes[5], largest_excess(n) * (1 + epsilon) / (1 - epsilon), rtol=1e-12)


@pytest.mark.parametrize(
    ("alias", "published"), [("dkw", "nacp"), ("crcp", "crcp"), ("sesia", "acnl")]
)
def test_sizes_are_those_of_the_paper(alias, published):
    correction = DKW(delta=0.001) if alias == "dkw" else CORRECTIONS.make(alias)
    for n, k, epsilon, expected in SIZES["published"][published]:
        if k < 1000:
            assert_allclose(correction.size(balanced(n, k, epsilon)), expected, atol=1.1e-3)


def test_sesias_form_for_unequal_classes():
    """Label shares that noise moved count, and the scarcest label."""
    counts = np.array([300, 100, 60, 40])
    codes = np.repeat(np.arange(K), counts)
    T, k2 = uniform_transition(0.15, K), K**2
    prior = counts / 500 @ np.linalg.inv(T)
    V = np.linalg.inv((prior[:, None] * T).T / (counts / 500)[:, None])
    others = abs(V).sum(axis=1) - V.diagonal()
    total = 2 * others.max() + abs(prior - counts / 500).sum()
    step = 1 / np.sqrt(40) + np.sqrt((np.log(2 * k2) + np.log(40)) / 2)
    expected = largest_excess(500) + total * step / np.sqrt(40)
    evidence = Evidence(np.zeros((500, K)), codes, np.arange(K), Noise(T))
    assert_allclose(CORRECTIONS.make("sesia").size(evidence), expected)


def test_sesia_knows_no_correction_for_a_class_without_a_share():
    """As many labels of a class as noise alone makes leave it none; "auto" takes another."""
    codes = np.repeat(np.arange(3), [20, 19, 1])
    evidence = Evidence(np.zeros((40, 3)), codes, np.arange(3), Noise(uniform_transition(0.2, 3)))
    assert evidence.prior[2] < 0
    assert CORRECTIONS.make("sesia").size(evidence) == np.inf
    chosen = choose("auto", [evidence])
    assert chosen.alias != "sesia"
    assert np.isfinite(chosen.sizes).all()


def test_matrix_form_of_dkw():
    evidence = Evidence(np.zeros((500, K)), np.arange(500) % K, np.arange(K), Noise(MATRIX))
    norm = abs(np.linalg.inv(MATRIX)).sum(axis=1).max()
    expected = norm * K * np.sqrt(np.log(2 * K**2 / 0.05) / 1000)
    assert_allclose(DKW(delta=0.05).size(evidence), expected)


def test_largest_excess_of_the_empirical_distribution():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        u = np.sort(rng.random((200_000, n)), axis=1)
        simulated = (np.arange(1, n + 1) / n - u).max(axis=1).mean()
        assert_allclose(largest_excess(n), simulated, atol=2e-3)
    assert_allclose(largest_excess(10**6) * 1000, np.sqrt(np.pi / 8), rtol=1e-3)


def test_maximum_of_a_brownian_motion_and_bridge():
    t = np.linspace(0, 1, 200)
    rng = np.random.default_rng(0)
    motion = expected_maximum(np.minimum.outer(t, t), 20_000, rng)
    assert_allclose(motion, np.sqrt(2 / np.pi), rtol=0.02)
    bridge = expected_maximum(np.minimum.outer(t, t) - np.outer(t, t), 20_000, rng)
    assert_allclose(bridge, np.sqrt(np.pi / 8), rtol=0.02)


@pytest.mark.parametrize("name", ["uniform", "pair", "matrix"])
@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [1], [0, 2]], ids=str)
def test_corrections_bound_the_expected_largest_error(name, columns):
    """The theorem behind each: delta is at least E sup (estimate - truth); the limit is near it."""
    rng = np.random.RandomState(0)
    T, columns, n = NOISES[name], np.array(columns), 500
    y, p = draw(rng, 100_000)
    own = np.sort(LAC()(p)[np.arange(len(y)), y][np.isin(y, columns)])
    errors, cells = [], []
    for _ in range(150):
        y, p = draw(rng, n)
        cell = Evidence(LAC()(p)[:, columns], corrupt(rng, y, T), columns, Noise(T))
        at, total = steps(cell.scores, cell.weight)
        errors.append(max(0, (total - np.searchsorted(own, at, side="right") / len(own)).max()))
        cells.append(cell)
    error, spread = np.mean(errors), np.std(errors) / np.sqrt(150)
    for alias in CORRECTIONS.names():
        correction = CORRECTIONS.make(alias)
        if correction.auto_from == 0 and cells[0].kind in correction.kinds:
            assert np.mean([correction.size(c) for c in cells[:20]]) > error - 2 * spread, alias
    limit = np.mean([CORRECTIONS.make("asymptotic", n_draws=2000).size(c, 0) for c in cells[:3]])
    assert_allclose(limit, error, rtol=0.15)


def test_crossing_of_right_labels_is_one_row():
    rng = np.random.RandomState(0)
    scores, y = rng.random_sample((200, K)), rng.randint(K, size=200)
    crossing = CORRECTIONS.make("crossing")
    assert_allclose(crossing.size(Evidence(scores, y, np.arange(K), Noise(np.eye(K)))), 1 / 200)
    one = Evidence(scores[:, [2]], y, np.array([2]), Noise(np.eye(K)))
    assert_allclose(crossing.size(one), 1 / (y == 2).sum())


@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [1], [0, 2]], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_two_sorts_give_the_estimate_of_uniform_noise(columns, ties):
    rng = np.random.RandomState(0)
    y, p = draw(rng, 300)
    columns, noise = np.array(columns), Noise(NOISES["uniform"])
    scores = LAC()(np.round(p, 2) if ties else p)[:, columns]
    cell = Evidence(scores, corrupt(rng, y, noise.transition), columns, noise)
    (at, share), (every, total) = cell.distribution, steps(scores, cell.weight)
    assert_allclose(share, total[np.searchsorted(every, at)], atol=1e-12)
    alpha, grid = np.linspace(0.01, 0.99, 99), np.linspace(0, 1, 301)
    fast, slow = Levels.running(at, share, 0.01), Levels.running(every, total, 0.01)
    assert_array_equal(fast.threshold(alpha), slow.threshold(alpha))
    assert_allclose(fast.p_values(grid), slow.p_values(grid), atol=1e-12)


@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [1], [0, 2]], ids=str)
def test_crossing_adds_what_arrives_to_what_remains(columns):
    """Score by score, in order; ties aside, which share what remains."""
    rng = np.random.RandomState(0)
    y, p = draw(rng, 300)
    columns = np.array(columns)
    cell = Evidence(LAC()(p)[:, columns], corrupt(rng, y, MATRIX), columns, Noise(MATRIX))
    share = np.maximum.accumulate(cell.distribution[1])
    edges = [cell.distribution[0][share >= level][0] for level in np.arange(1, 10) / 10]
    weight, arrived, remaining = cell.weight * cell.n, np.zeros(10), np.zeros(10)
    for row, of_row in zip(cell.scores, weight, strict=True):
        for score, w in zip(row, of_row, strict=True):
            part = sum(edge < score for edge in edges)
            arrived[part] += w
            remaining[part] += w * of_row[row >= score].sum()
    expected = (remaining / arrived).max() / cell.n
    assert (arrived > 0).all()
    assert_allclose(CORRECTIONS.make("crossing").size(cell), expected)


@pytest.mark.parametrize("name", ["uniform", "pair", "matrix"])
@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [1], [0, 2]], ids=str)
def test_crossing_bounds_the_error_where_the_level_is_reached(name, columns):
    """Coverage by sets of level .8 and .9 is never short of it, and little above."""
    rng = np.random.RandomState(0)
    T, columns = NOISES[name], np.array(columns)
    population, p = draw(rng, 100_000)
    own = np.sort(LAC()(p)[np.arange(len(p)), population][np.isin(population, columns)])
    level, covered, sizes = np.array([0.8, 0.9]), [], []
    for _ in range(400):
        y, p = draw(rng, 400)
        cell = Evidence(LAC()(p)[:, columns], corrupt(rng, y, T), columns, Noise(T))
        sizes.append(CORRECTIONS.make("crossing").size(cell))
        levels = Levels.running(*cell.distribution, sizes[-1])
        covered.append(np.searchsorted(own, levels.threshold(1 - level), side="right") / len(own))
    mean, error = np.mean(covered, axis=0), np.std(covered, axis=0) / 20
    assert (mean > level - 2 * error).all()
    assert (mean < level + np.mean(sizes) + 2 * error).all()


@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [1]], ids=str)
def test_some_rows_tell_the_covariance(columns, monkeypatch):
    rng = np.random.RandomState(0)
    y, p = draw(rng, 6_000)
    p, y = p[np.argsort(y)], np.sort(y)
    T, columns = NOISES["matrix"], np.array(columns)
    cell = Evidence(LAC()(p)[:, columns], corrupt(rng, y, T), columns, Noise(T))
    monkeypatch.setattr("robustclf.conformal._deviations.MOST_ROWS", 6_000)
    every = limiting_process(cell)
    monkeypatch.setattr("robustclf.conformal._deviations.MOST_ROWS", 1_500)
    some = limiting_process(cell)
    assert (some != every).any()
    assert_allclose(some, every, atol=0.1 * every.max())


@pytest.mark.parametrize(
    ("n", "n_classes", "alias"), [(40, 2, "crcp"), (40, 10, "bortolotti"), (500, 10, "crossing")]
)
def test_auto_is_the_smallest_that_holds(n, n_classes, alias):
    evidence = balanced(n, n_classes, 0.2)
    chosen = choose("auto", [evidence], 0)
    assert chosen.alias == alias
    names = ["sesia", "crcp", "bortolotti", "crossing", "asymptotic"][: 3 if n < 50 else 5]
    sizes = {name: CORRECTIONS.make(name).size(evidence, 0) for name in names}
    assert chosen.sizes[0] == min(sizes.values()) == sizes[alias]


def test_auto_trusts_the_limit_where_no_cell_is_small():
    rng = np.random.RandomState(0)
    y, p = draw(rng, 2_000)
    noise = Noise(NOISES["uniform"])
    large, small = (
        Evidence(LAC()(p[:n])[:, [k]], corrupt(rng, y[:n], noise.transition), np.array([k]), noise)
        for n, k in ((2_000, 0), (100, 1))
    )
    assert large.n_own > 100 > 50 > small.n_own > 0
    assert choose("auto", [large], 0).alias == "crossing"
    assert choose("auto", [large, small], 0).alias not in ("crossing", "asymptotic")


@pytest.mark.parametrize("name", CORRECTIONS.names())
def test_aliases_of_corrections(name):
    assert alias_of(CORRECTIONS.make(name)) == name
    finite = CORRECTIONS.make(name).size(balanced(500, 4, 0.2), 0)
    assert (finite == 0) == (name == "none")


ALIASES = {"asymptotic", "bortolotti", "crcp", "crossing", "dkw", "none", "sesia"}


def test_every_correction_is_listed():
    assert set(CORRECTIONS.names()) == ALIASES


# Coverage -----------------------------------------------------------------------------------------


def coverage_runs(
    score, coverage, noise, *, correction="none", assumed=None, n=400, reps=40, seed=0
):
    """Return the share of covered rows, of each class and group, and their numbers."""
    rng = np.random.RandomState(0)
    made = SCORES.make(score)
    hits, true, groups = [], [], []
    for _ in range(reps):
        y, p = draw(rng, n)
        new, q = draw(rng, 100)
        of_rows, of_new = rng.randint(2, size=n), rng.randint(2, size=100)
        grouped = coverage == "group"
        calibration = calibrate(
            made(p, rng.random_sample(n)),
            corrupt(rng, y, noise),
            noise if assumed is None else assumed,
            rng=rng,
            coverage=coverage,
            correction=correction,
            groups=of_rows if grouped else None,
        )
        sets = kept(calibration, made(q, rng.random_sample(100)), 0.2, of_new if grouped else None)
        hits.append(sets[np.arange(100), new, 0])
        true.append(new)
        groups.append(of_new)
    return np.array(hits), np.array(true), np.array(groups)


@pytest.mark.parametrize(
    ("score", "coverage"),
    [
        *itertools.product(SCORES.names(), ["marginal", "class", "group"]),
        *itertools.product(["lac", "aps"], ["cluster"]),  # slow, and read scores like the others
    ],
)
@pytest.mark.parametrize("noise", NOISES)
def test_coverage_holds(score, coverage, noise):
    """Over all runs, and in each class or group that coverage is promised for."""
    reps = 20 if coverage == "cluster" else 30
    hits, true, groups = coverage_runs(score, coverage, NOISES[noise], reps=reps)
    parts = [np.ones_like(true, dtype=bool)]
    parts += [true == k for k in range(K)] if coverage == "class" else []
    parts += [groups == g for g in range(2)] if coverage == "group" else []
    for part in parts:
        by_run = np.ma.masked_array(hits, ~part).mean(axis=1)
        deviation = by_run.std() / np.sqrt(len(hits) - 1)
        assert abs(by_run.mean() - 0.8) < 4 * deviation + 0.01  # of a class: one of 100 rows


@pytest.mark.parametrize("score", SCORES.names())
def test_coverage_of_clean_labels_is_exact(score):
    """One new row a run: their number is binomial, with k / (n + 1)."""
    rng = np.random.RandomState(0)
    made, n_runs, covered = SCORES.make(score), 1000, 0
    for _ in range(n_runs):
        y, p = draw(rng, 50)
        scores = made(p, rng.random_sample(50))
        threshold = conformal_quantile(scores[np.arange(49), y[:49]], 0.2)
        covered += scores[49, y[49]] <= threshold
    low, high = binom.ppf([1e-4, 1 - 1e-4], n_runs, 0.8)
    assert low <= covered <= high


@pytest.mark.parametrize("coverage", ["marginal", "class", "group"])
@pytest.mark.parametrize("noise", ["uniform", "pair", "matrix"])
def test_corrected_sets_cover_at_least_as_often(coverage, noise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some corrections exceed alpha
        plain = coverage_runs("lac", coverage, NOISES[noise], reps=25)[0].mean()
        auto = coverage_runs("lac", coverage, NOISES[noise], correction="auto", reps=25)[0].mean()
    assert auto > plain + 0.005
    assert auto > 0.8


def test_too_high_a_rate_breaks_coverage_and_too_low_a_one_is_safe():
    true = uniform_transition(0.2, K)
    rates = (0.0, 0.1, 0.2, 0.3, 0.4)
    covered = [
        coverage_runs("lac", "marginal", true, assumed=uniform_transition(r, K))[0].mean()
        for r in rates
    ]
    assert (np.diff(covered) < 0).all()
    assert covered[0] > 0.85
    assert abs(covered[2] - 0.8) < 0.02
    assert covered[4] < 0.75


def test_ignoring_noise_moves_coverage_as_the_identity_says():
    """F_clean = 1 - alpha + eps / (1 - eps) (1 - alpha - E|C| / K) at the noisy threshold."""
    rng = np.random.RandomState(0)
    epsilon, alpha, n = 0.2, 0.1, 100_000
    y, p = draw(rng, n)
    noisy = corrupt(rng, y, uniform_transition(epsilon, K, convention="all"))
    scores = LAC()(p)
    sets = kept(calibrate(scores, noisy, np.eye(K)), scores, alpha)[..., 0]
    expected = 1 - alpha + epsilon / (1 - epsilon) * (1 - alpha - sets.sum(axis=1).mean() / K)
    assert_allclose(sets[np.arange(n), y].mean(), expected, atol=0.004)


def test_optimistic_thresholds_are_never_above_those_of_either():
    rng = np.random.RandomState(0)
    y, p = draw(rng, 400)
    noisy, scores = corrupt(rng, y, NOISES["uniform"]), LAC()(p)
    alpha = np.array([0.1, 0.2])
    both = calibrate(scores, noisy, NOISES["uniform"], optimistic=True).thresholds(alpha)
    corrected = calibrate(scores, noisy, NOISES["uniform"]).thresholds(alpha)
    plain = calibrate(scores, noisy, np.eye(K)).thresholds(alpha)
    assert_array_equal(both, np.minimum(corrected, plain))


@pytest.mark.parametrize("folds", [None, np.arange(300) % 3])
def test_optimistic_thresholds_need_no_correction(folds):
    """Of a label that no row has, "sesia" knows no correction."""
    rng = np.random.RandomState(0)
    y, p = draw(rng, 300)
    y, scores = np.minimum(y, K - 2), LAC()(p)
    new = scores[None] if folds is None else np.stack([scores] * 3)
    params = {"correction": "sesia", "folds": folds}
    made = calibrate(scores, y, NOISES["uniform"], optimistic=True, **params)
    assert np.isinf(made.chosen.sizes).all()
    plain = calibrate(scores, y, np.eye(K), folds=folds)
    assert_array_equal(made.p_values(new, None), plain.p_values(new, None))


def test_clusters_join_classes_with_like_scores():
    """Two kinds of classes, easy and hard ones: two thresholds, and one for the scarce class."""
    rng = np.random.RandomState(0)
    k = 60
    y = np.append(np.arange(59 * 15) % (k - 1), np.full(5, k - 1))
    hard = y % 2 == 1
    own = np.where(hard, rng.uniform(0.5, 1, len(y)), rng.uniform(0, 0.5, len(y)))
    scores = np.ones((len(y), k))
    scores[np.arange(len(y)), y] = own
    made = calibrate(scores, y, np.eye(k), coverage="cluster")
    cells = made.partition.of_class
    thresholds = made.thresholds(np.array([0.1]))[cells, 0]
    assert set(cells[: k - 1 : 2]).isdisjoint(cells[1 : k - 1 : 2])
    assert_allclose(thresholds[: k - 1 : 2], 0.45, atol=0.03)
    assert_allclose(thresholds[1 : k - 1 : 2], 0.95, atol=0.03)
    assert len(made.evidence[0].codes) == len(made.evidence[1].codes) < len(y)
    assert cells[-1] == len(made.levels) - 1  # the one of all rows


def published(name, width):
    """Return the known values of an example, scores and labels of its rows, and its matrix."""
    known = json.loads((REFERENCE / name).read_text())
    scores, labels = {}, {}
    for part, label in (("calibration", "given"), ("test", "true")):
        text = "".join(known[part]["votes"])
        votes = [text[i : i + width] for i in range(0, len(text), width)]
        count = (lambda vote: ord(vote) - ord("a")) if width == 1 else int
        p = np.array([count(vote) for vote in votes]).reshape(-1, K) / known["n_trees"]
        p = np.clip(p, known["clip"] / K, 1)
        uniform = np.random.default_rng(known["seed"]).uniform(size=len(p))
        scores[part] = APS()(p / p.sum(axis=1, keepdims=True), uniform)
        labels[part] = np.array(list(known[part][label]), dtype=int)
    # there the noise is told by P(true | given), here by P(given | true)
    given = np.bincount(labels["calibration"]) / len(labels["calibration"])
    joint = given[:, None] * uniform_transition(known["epsilon"], K, convention="all")
    return known["published"], scores, labels, (joint / joint.sum(axis=0)).T


def test_published_example():
    """Coverage and sizes of the authors' notebook, from the same votes of the same forest."""
    examples, scores, labels, T = published("conformal_adaptive.json", width=3)
    true = labels["test"]
    for name, expected in examples.items():
        made = calibrate(
            scores["calibration"],
            labels["calibration"],
            T,
            coverage="class",
            correction="sesia",
            optimistic=name == "optimistic",
        )
        sets = kept(made, scores["test"])[..., 0]
        hits = sets[np.arange(len(true)), true]
        # the optimistic ones of the notebook lack the (n + 1) / n of the standard threshold
        rows = 1 if name == "plain" else 3
        assert_allclose(hits.mean(), expected["coverage"], atol=(rows - 0.9) / 2000)
        by_class = [hits[true == k].mean() for k in range(K)]
        assert_allclose(by_class, expected["by_class"], atol=1e-6 if rows == 1 else 0.0025)
        assert_allclose(sets.sum(axis=1).mean(), expected["size"], atol=0.006 * rows / 3)


def test_published_example_of_sets_that_are_never_empty():
    """The notebook's last version, by another forest of its kind: what differs are some votes."""
    expected, scores, labels, T = published("conformal_nonempty.json", width=1)
    made = calibrate(
        scores["calibration"], labels["calibration"], T, coverage="class", correction="sesia"
    )
    true = labels["test"]
    sets = kept(made, scores["test"])[..., 0]
    assert sets[np.arange(2000), true].mean() < 0.95  # with empty sets it is near the level
    sets[np.arange(2000), scores["test"].argmin(axis=1)] = True
    hits = sets[np.arange(2000), true]
    standard_error = np.sqrt(0.969 * 0.031 / 2000)
    assert_allclose(hits.mean(), expected["coverage"], atol=standard_error)
    by_class = [hits[true == k].mean() for k in range(K)]
    assert_allclose(by_class, expected["by_class"], atol=2 * standard_error)
    assert_allclose(sets.sum(axis=1).mean(), expected["size"], atol=0.03)
