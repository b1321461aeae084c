"""Transition matrices: published values, theorems of each method, guards and intervals."""

from itertools import product

import numpy as np
import pytest

from robustclf.noise.rate import noise_rate
from robustclf.noise.transition import (
    METHODS,
    TransitionEstimate,
    by_label,
    confident_joint,
    em_step,
    estimate_transition,
)

T3 = np.array([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.05, 0.05, 0.9]])


def sample(n, separation, transition=T3, seed=0, prior=None):
    """True classes, their exact posteriors, and given labels drawn from `transition`."""
    rng = np.random.RandomState(seed)
    k = len(transition)
    prior = np.full(k, 1 / k) if prior is None else np.asarray(prior)
    true = rng.choice(k, size=n, p=prior)
    x = separation * np.eye(k)[true] + rng.normal(size=(n, k))
    logits = separation * x + np.log(prior)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return true, p / p.sum(axis=1, keepdims=True), draw(rng, transition[true])


def draw(rng, p):
    return (rng.random_sample(len(p))[:, None] > p.cumsum(axis=1)[:, :-1]).sum(axis=1)


def told(method, true, n_trusted=None):
    rows = np.arange(len(true) if n_trusted is None else n_trusted)
    return {"trusted": rows, "y_trusted": true[rows]} if method == "trusted" else {}


def as_published(*args, **kwargs):
    """Estimate without fitting the matrix to a noise rate, as the methods' papers do."""
    return estimate_transition(*args, rate=None, **kwargs)


def matrix(y, proba, method="confident_joint", **kwargs):
    return as_published(y, proba, method, n_bootstrap=0, **kwargs).transition


# Published values ---------------------------------------------------------------------------------


def cleanlab_data(k):
    rng = np.random.RandomState(0)
    true = rng.randint(k, size=600)
    p = np.exp(3 * (np.eye(k)[true] + rng.normal(size=(600, k)) * 0.45))
    T = 0.7 * np.eye(k) + 0.1 * np.roll(np.eye(k), 1, axis=1) + 0.2 / k
    return draw(rng, T[true]), p / p.sum(axis=1, keepdims=True)


def test_confident_joint_is_that_of_cleanlab_2_9():
    y, p = cleanlab_data(4)
    counts = [[97, 8, 2, 22], [19, 90, 7, 7], [5, 16, 82, 8], [7, 6, 16, 86]]  # given, true
    scaled = np.array(counts).T / np.sum(counts, axis=1) * np.bincount(y)
    np.testing.assert_allclose(confident_joint(y, p), scaled, rtol=1e-12)
    transition = [
        [0.75472103, 0.14821746, 0.0398091, 0.05725241],
        [0.06616249, 0.74626904, 0.13540649, 0.05216199],
        [0.01822376, 0.06394948, 0.76457379, 0.15325297],
        [0.17240454, 0.05499904, 0.06415251, 0.70844391],
    ]
    estimate = as_published(y, p, n_bootstrap=0)
    np.testing.assert_allclose(estimate, transition, atol=1e-8)
    np.testing.assert_allclose(
        estimate.prior, [0.26402281, 0.24839012, 0.22544897, 0.2621381], atol=1e-8
    )


@pytest.mark.parametrize("k", [2, 4])
def test_confident_joint_against_cleanlab(k):
    count = pytest.importorskip("cleanlab.count")
    y, p = cleanlab_data(k)
    joint = confident_joint(y, p)
    assert abs(joint.T - count.compute_confident_joint(y, p)).max() < 1  # it rounds
    raw = count.compute_confident_joint(y, p, calibrate=False)
    scaled = raw / raw.sum(axis=1, keepdims=True) * np.bincount(y)[:, None]
    prior, noise, _ = count.estimate_latent(scaled, y)
    estimate = as_published(y, p, n_bootstrap=0)
    np.testing.assert_allclose(estimate, noise.T, atol=1e-12)
    np.testing.assert_allclose(estimate.prior, prior, atol=1e-12)


def test_a_row_counts_for_the_most_probable_class_that_reaches_its_threshold():
    # the second row is most likely of class 0, but reaches 0.35 >= 0.3 and 0.2 >= 0.15, not 0.675;
    # cleanlab counts it for class 0
    proba = [[0.9, 0.05, 0.05], [0.45, 0.35, 0.2], [0.2, 0.3, 0.5], [0.6, 0.25, 0.15]]
    joint = confident_joint(np.array([0, 0, 1, 2]), np.array(proba))
    np.testing.assert_allclose(joint, [[1, 0, 0], [1, 0.5, 0], [0, 0.5, 1]], rtol=1e-12)


@pytest.mark.parametrize("n", [101, 1000, 1237])
def test_anchor_is_the_row_at_the_97th_percentile(n):
    rng = np.random.RandomState(n)
    p = rng.dirichlet(np.ones(4), size=n)
    y = rng.randint(4, size=n)
    at = np.percentile(p, 97, axis=0, method="higher")
    rows = [int(np.flatnonzero(p[:, k] == at[k])[0]) for k in range(4)]
    np.testing.assert_allclose(matrix(y, p, "anchor"), p[rows], atol=1e-15)


def test_anchors_of_rare_classes_are_rows_of_these_classes():
    # each of 50 classes has 2 % of the rows, so that the 97th percentile belongs to another
    true = np.repeat(np.arange(50), 20)
    p = 0.9 * np.eye(50)[true] + 0.1 / 50
    np.testing.assert_allclose(matrix(true, p, "anchor"), 0.9 * np.eye(50) + 0.1 / 50)


def test_dual_t_by_hand():
    p = np.repeat([[0.8, 0.2], [0.1, 0.9]], 10, axis=0)
    y = np.repeat([0, 1, 0, 1], [7, 3, 1, 9])
    expected = np.array([[0.8, 0.2], [0.1, 0.9]]) @ [[0.7, 0.3], [0.1, 0.9]]
    np.testing.assert_allclose(matrix(y, p, "dual_t"), expected, atol=1e-15)


def test_trusted_is_the_mean_probability_of_each_true_class():
    rng = np.random.RandomState(0)
    p = rng.dirichlet([3, 1], size=40)
    p[:20] = p[:20, ::-1]
    y, rows, true = rng.randint(2, size=40), rng.permutation(40)[:24], np.arange(24) % 2
    T = matrix(y, p, "trusted", trusted=rows, y_trusted=true)
    np.testing.assert_allclose(T, [p[rows[true == k]].mean(axis=0) for k in (0, 1)], rtol=1e-12)
    order = np.argsort(rows)
    mask = np.isin(np.arange(40), rows)
    by_mask = matrix(y, p, "trusted", trusted=mask, y_trusted=true[order])
    np.testing.assert_allclose(T, by_mask, rtol=1e-12)


# Theorems -----------------------------------------------------------------------------------------


def test_em_never_lowers_the_likelihood_and_ends_at_its_maximum():
    _, p, y = sample(1000, 1.5)
    rows = np.arange(len(y))

    def likelihood(T):
        return np.log((p @ T)[rows, y]).sum()

    groups = by_label(y, p, np.ones(len(y)))
    T, path = np.full((3, 3), 1 / 3), []
    T += 0.1 * np.eye(3)
    T /= T.sum(axis=1, keepdims=True)
    for _ in range(500):
        path.append(likelihood(T))
        joint = em_step(T, groups)
        np.testing.assert_allclose(joint.sum(axis=0), np.bincount(y), rtol=1e-9)
        T = joint / joint.sum(axis=1, keepdims=True)
    assert np.diff(path).min() > -1e-9
    assert path[-1] > path[0] + 100
    best = matrix(y, p, "em")
    assert abs(likelihood(best) - path[-1]) < 1e-3
    # the problem is concave: no step towards any other matrix goes up
    others = np.random.RandomState(0).dirichlet(np.ones(3), size=(50, 3))
    for other in [*others, T3, np.eye(3)]:
        assert likelihood(0.999 * best + 0.001 * other) <= likelihood(best) + 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_permuting_classes_permutes_the_estimate(method):
    true, p, y = sample(600, 2.0)
    order = np.array([2, 0, 1])
    place = np.argsort(order)
    one = estimate_transition(y, p, method, n_bootstrap=20, random_state=0, **told(method, true))
    two = estimate_transition(
        place[y], p[:, order], method, n_bootstrap=20, random_state=0, **told(method, place[true])
    )
    for name in ("transition", "low", "high"):
        mine, other = getattr(one, name), getattr(two, name)
        np.testing.assert_allclose(mine[np.ix_(order, order)], other, atol=1e-10)
    np.testing.assert_allclose(one.prior[order], two.prior, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_right_labels_and_sure_predictions_give_the_identity(method):
    true = np.random.RandomState(0).choice(4, size=500, p=[0.7, 0.2, 0.08, 0.02])
    estimate = estimate_transition(true, np.eye(4)[true], method, **told(method, true))
    for T in (estimate.transition, estimate.low, estimate.high):
        np.testing.assert_array_equal(T, np.eye(4))
    np.testing.assert_allclose(estimate.prior, np.bincount(true) / 500, atol=1e-12)
    assert estimate.noise_rate == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["confident_joint", "dual_t", "em"])
def test_sure_predictions_give_the_confusion_matrix(method):
    counts = np.array([[40, 1, 0], [9, 30, 1], [0, 12, 28]])  # single rows that replicates lack
    true, y = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices((3, 3)))
    estimate = as_published(y, np.eye(3)[true], method, random_state=0)
    np.testing.assert_allclose(estimate, counts / counts.sum(axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(estimate.prior, counts.sum(axis=1) / counts.sum(), atol=1e-12)
    assert np.isfinite(estimate.low).all()


def test_rows_at_the_threshold_are_sure_in_spite_of_rounding():
    p = np.repeat([[0.9, 0.1], [0.3, 0.7]], [8, 3], axis=0)
    y = np.repeat([0, 1], [7, 4])
    assert p[:7, 0].mean() > 0.9
    np.testing.assert_allclose(confident_joint(y, p), [[7, 1], [0, 3]])


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(
    ("method", "separation", "tolerance"),
    [
        ("em", 1.5, 0.04),  # overlapping classes: a third of the rows are not told apart
        ("em", 5, 0.02),
        ("confident_joint", 5, 0.02),
        ("anchor", 5, 0.01),
        ("dual_t", 5, 0.02),
        ("trusted", 5, 0.01),
    ],
)
def test_known_noise_is_found(method, separation, tolerance, noisy):
    true, p, y = sample(20_000, separation, prior=[0.5, 0.3, 0.2])
    # what remains of T in p is what the method takes p to be: none of it, all of it, or any part
    expected = T3
    if noisy:
        p = p @ T3
        expected = {"em": np.eye(3), "dual_t": T3 @ T3}.get(method, T3)
        tolerance += 0.02 * (method == "em")
    elif method in ("anchor", "trusted"):
        expected = np.eye(3)
    estimate = as_published(y, p, method, n_bootstrap=0, **told(method, true, 2000))
    assert abs(estimate.transition - expected).max() < tolerance
    if expected is T3:
        np.testing.assert_allclose(estimate.prior, [0.5, 0.3, 0.2], atol=0.03)
        rate = 1 - T3.diagonal() @ [0.5, 0.3, 0.2]
        assert estimate.noise_rate == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_prior_explains_the_given_labels(method):
    true, p, y = sample(800, 3.0)
    p = p if method in ("confident_joint", "em") else 0.5 * p + 0.5 / 3
    estimate = estimate_transition(y, p, method, n_bootstrap=0, **told(method, true))
    assert estimate.prior.min() > 0
    np.testing.assert_allclose(estimate.prior @ estimate, np.bincount(y) / 800, atol=1e-12)
    joint = estimate.prior[:, None] * estimate.transition
    assert estimate.noise_rate == pytest.approx(joint.sum() - np.trace(joint))


# Intervals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "separation"), [("confident_joint", 12), ("em", 3), ("trusted", 12)]
)
def test_intervals_cover(method, separation):
    covered = []
    for seed in range(60):
        true, p, y = sample(300, separation, seed=seed)
        if method == "trusted":  # a classifier that knows no more than the label it was given
            p = np.eye(3)[y]
        estimate = as_published(
            y,
            p,
            method,
            n_bootstrap=100,
            confidence_level=0.9,
            random_state=0,
            **told(method, true),
        )
        inner = T3 >= 0.1
        covered.append(((estimate.low <= T3) & (estimate.high >= T3))[inner])
    # 0.9 within four standard errors of 60 draws, and of all draws, for each entry and on average
    share = np.mean(covered, axis=0)
    assert share.min() > 0.9 - 4 * np.sqrt(0.9 * 0.1 / 60)
    assert 0.85 < share.mean() < 0.95


@pytest.mark.parametrize("method", ["confident_joint", "em", "trusted"])
def test_intervals_shrink_as_the_root_of_the_rows(method):
    widths = []
    for n in (1000, 16_000):
        true, p, y = sample(n, 4.0)
        p = p @ T3 if method == "trusted" else p
        estimate = as_published(y, p, method, n_bootstrap=60, random_state=0, **told(method, true))
        widths.append((estimate.high - estimate.low).mean())
        assert (estimate.low <= estimate.high).all()
    assert 3 < widths[0] / widths[1] < 5.3


def test_intervals_are_those_of_copied_rows():
    _, p, y = sample(150, 1.0)
    for seed, method in product(range(5), ("confident_joint", "anchor", "dual_t", "em")):
        estimate = as_published(y, p, method, n_bootstrap=1, random_state=seed)
        rows = np.random.RandomState(seed).randint(150, size=150)
        copied = matrix(y[rows], p[rows], method, classes=[0, 1, 2])
        np.testing.assert_allclose(estimate.low, copied, atol=5e-3)  # replicates of em stop earlier
        np.testing.assert_array_equal(estimate.low, estimate.high)


def test_more_confidence_is_wider():
    _, p, y = sample(300, 3.0)
    narrow, wide = (
        estimate_transition(y, p, confidence_level=level, random_state=0) for level in (0.5, 0.99)
    )
    assert (wide.low <= narrow.low).all()
    assert (wide.high >= narrow.high).all()
    assert (wide.high - wide.low).sum() > 2 * (narrow.high - narrow.low).sum()


@pytest.mark.parametrize("method", METHODS)
def test_seeds(method):
    true, p, y = sample(200, 2.0)
    extra = {"n_bootstrap": 10, **told(method, true)}
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other, unseeded = (
        estimate_transition(y, p, method, random_state=seed, **extra) for seed in (1, 1, 2, None)
    )
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(one.low, two.low)
    assert (one.low != other.low).any()
    assert (one.low != unseeded.low).any()
    np.testing.assert_array_equal(one, other)


# Guards -------------------------------------------------------------------------------------------


def usable(estimate):
    for T in (estimate.transition, estimate.low, estimate.high):
        assert np.isfinite(T).all()
        assert T.min() >= 0
        assert T.max() <= 1
    np.testing.assert_allclose(estimate.transition.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert np.linalg.cond(estimate.transition) <= 1000
    assert estimate.prior.min() >= 0
    assert estimate.prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_without_rows_is_free_of_noise(method):
    true, p, y = sample(300, 3.0)
    p = np.insert(0.99 * p, 1, 0.01, axis=1)
    names = np.array(["a", "c", "d"])
    with pytest.warns(UserWarning, match="classes") as caught:
        estimate = as_published(
            names[y],
            p,
            method,
            classes=["a", "b", "c", "d"],
            n_bootstrap=20,
            **told(method, names[true]),
        )
    usable(estimate)
    assert estimate.classes.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(estimate.transition[1], [0, 1, 0, 0])
    assert estimate.prior[1] < 0.02
    assert all("['b']" in str(w.message) for w in caught)
    assert any("fewer than 5 rows" in str(w.message) for w in caught)
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.parametrize("method", ["confident_joint", "anchor", "dual_t", "em"])
def test_a_class_that_nobody_predicts(method):
    _, p, y = sample(300, 3.0)
    p[:, 2] = 0
    p /= p.sum(axis=1, keepdims=True)
    with pytest.warns(UserWarning, match=r"classes \[2\] have fewer than 5 rows"):
        estimate = as_published(y, p, method, n_bootstrap=20)
    usable(estimate)
    np.testing.assert_array_equal(estimate.transition[2], [0, 0, 1])


def test_a_class_with_few_rows_moves_by_the_share_that_it_lacks():
    p = np.repeat([[0.9, 0.1], [0.1, 0.9]], [20, 4], axis=0)
    y = np.repeat([0, 1, 0, 1], [18, 2, 1, 3])
    with pytest.warns(UserWarning, match=r"classes \[1\] have fewer than 5 rows"):
        T = matrix(y, p, "dual_t")
    raw = np.array([[0.9, 0.1], [0.1, 0.9]]) @ [[0.9, 0.1], [0.25, 0.75]]
    np.testing.assert_allclose(T, [raw[0], 0.8 * raw[1] + [0, 0.2]], atol=1e-15)


@pytest.mark.parametrize("method", ["confident_joint", "anchor", "dual_t", "em"])
def test_a_class_that_is_often_predicted_but_hardly_given(method):
    p = np.repeat([[0.9, 0.1], [0.1, 0.9]], 20, axis=0)
    with pytest.warns(UserWarning, match=r"classes \[1\] have fewer than 5 rows"):
        T = matrix(np.repeat([0, 1], [38, 2]), p, method)
    assert T[1, 1] >= 0.6


def test_a_condition_number_of_1000_is_the_limit():
    true = np.repeat([0, 1], 50)
    kwargs = {"trusted": np.arange(100), "y_trusted": true}
    well, badly = (np.array([[0.5, 0.5], [0.5 - delta, 0.5 + delta]]) for delta in (0.003, 0.0005))
    np.testing.assert_allclose(matrix(true, well[true], "trusted", **kwargs), well)
    assert 300 < np.linalg.cond(well) < 1000 < np.linalg.cond(badly) < 3000
    with pytest.warns(UserWarning, match=r"classes \[0, 1\] cannot be told apart"):
        moved = matrix(true, badly[true], "trusted", **kwargs)
    np.testing.assert_allclose(moved, 0.9 * badly + 0.1 * np.eye(2))


@pytest.mark.parametrize("method", METHODS)
def test_a_useless_classifier(method):
    y = np.arange(90) % 3
    p = np.full((90, 3), 1 / 3)
    with pytest.warns(UserWarning, match="classes"):
        usable(estimate_transition(y, p, method, n_bootstrap=20, **told(method, y)))


def test_classes_that_labels_do_not_tell_apart_are_named():
    true = np.repeat([0, 1, 2], 100)
    p = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.1, 0.1, 0.8]])[true]
    with pytest.warns(UserWarning, match=r"classes \['a', 'b'\] cannot be told apart"):
        estimate = as_published(
            np.array(["a", "b", "c"])[true],
            p,
            "trusted",
            trusted=np.arange(300),
            y_trusted=np.array(["a", "b", "c"])[true],
            n_bootstrap=20,
        )
    usable(estimate)
    np.testing.assert_allclose(estimate.transition[2], [0.1, 0.1, 0.8], atol=1e-12)
    assert estimate.transition[0, 0] > 0.5


def test_dependent_rows_move_though_one_is_of_the_identity_already():
    T = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0.5, 0.5, 0, 0], [0, 0, 0, 1]])
    true = np.arange(40) % 4
    with pytest.warns(UserWarning, match="cannot be told apart"):
        estimate = as_published(true, T[true], "trusted", n_bootstrap=0, **told("trusted", true))
    assert np.linalg.cond(estimate) <= 1000
    np.testing.assert_allclose(estimate.transition[3], T[3], atol=1e-12)


def test_a_class_without_trusted_row_gets_the_confident_joint():
    true, p, y = sample(400, 3.0)
    rows = np.flatnonzero(true != 1)
    with pytest.warns(UserWarning, match=r"classes \[1\] have no trusted row.*confident_joint"):
        T = matrix(y, p, "trusted", trusted=rows, y_trusted=true[rows])
    np.testing.assert_array_equal(T[1], matrix(y, p)[1])
    np.testing.assert_allclose(T[0], p[true == 0].mean(axis=0))


# Interface ----------------------------------------------------------------------------------------


def test_the_result_is_an_array():
    _, p, y = sample(100, 3.0)
    estimate = estimate_transition(y, p, n_bootstrap=0)
    assert isinstance(estimate, TransitionEstimate)
    assert (estimate.method, estimate.confidence_level) == ("confident_joint", 0.95)
    assert np.isnan(estimate.low).all()
    assert estimate.high.shape == (3, 3)
    assert np.isnan(estimate.high).all()
    assert np.asarray(estimate) is estimate.transition
    assert not np.shares_memory(np.array(estimate, copy=True), estimate.transition)
    assert np.asarray(estimate, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.array(estimate, dtype=np.float32, copy=False)
    with pytest.raises(AttributeError):
        estimate.method = "em"


def test_labels_of_any_type():
    true, p, y = sample(200, 3.0)
    plain = estimate_transition(y, p, random_state=0)
    for labels in (np.array(["a", "b", "c"], dtype=object), np.array([-3, 5, 10])):
        named = estimate_transition(labels[y].tolist(), p.astype(np.float32), random_state=0)
        np.testing.assert_allclose(plain, named, atol=1e-6)
        assert named.classes.tolist() == labels.tolist()
    names = np.array(["a", "b", "c"])
    trusted = matrix(names[y], p, "trusted", trusted=true >= 0, y_trusted=names[true])
    np.testing.assert_allclose(
        trusted, matrix(y, p, **{"method": "trusted", **told("trusted", true)})
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "anchors"}, "unknown method 'anchors'.*did you mean 'anchor'"),
        ({"method": "trusted"}, "needs trusted= .rows. and y_trusted="),
        ({"method": "trusted", "trusted": [0]}, "needs trusted= .rows. and y_trusted="),
        ({"trusted": [0], "y_trusted": [0]}, "for method='trusted', got method='confident_joint'"),
        ({"method": "trusted", "trusted": [0, 1], "y_trusted": [0]}, "got 2 rows and 1 labels"),
        ({"method": "trusted", "trusted": [False] * 4, "y_trusted": []}, "got 0 rows and 0"),
        ({"method": "trusted", "trusted": [1, 1], "y_trusted": [0, 1]}, "names 1 of 2 rows twice"),
        ({"method": "trusted", "trusted": [4], "y_trusted": [0]}, "trusted must be a mask of 4"),
        ({"method": "trusted", "trusted": [1], "y_trusted": [7]}, r"labels \[7\] beyond the cla"),
        ({"method": "trusted", "trusted": [1, 2], "y_trusted": [0, None]}, "y_trusted has no"),
        ({"n_bootstrap": -1}, "n_bootstrap == -1"),
        ({"confidence_level": 95}, "confidence_level == 95"),
        ({"confidence_level": 1.0}, "confidence_level == 1.0"),
        ({"classes": [0, 1, 2]}, "2 columns for 3 classes"),
    ],
)
def test_errors(kwargs, message):
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    with pytest.raises(ValueError, match=message):
        estimate_transition([0, 0, 1, 1], p, **kwargs)


def test_number_of_replicates_is_an_integer():
    with pytest.raises(TypeError, match="n_bootstrap"):
        estimate_transition([0, 1], np.eye(2), n_bootstrap=2.5)


# The noise rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["confident_joint", "dual_t"])
def test_errors_of_the_classifier_are_no_noise(method):
    """Overlapping classes: rate=None takes the confusion of the classifier for noise."""
    true, p, y = sample(4000, 2.0)
    truth = np.bincount(true * 3 + y, minlength=9).reshape(3, 3)
    truth = truth / truth.sum(axis=1, keepdims=True)
    worse = abs(as_published(y, p, method, n_bootstrap=0).transition - truth).max()
    estimate = estimate_transition(y, p, method, n_bootstrap=0)
    assert abs(estimate.transition - truth).max() <= worse
    assert estimate.noise_rate == pytest.approx(noise_rate(y, p).rate, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.9])
def test_the_matrix_has_no_more_noise_than_said(rate):
    _, p, y = sample(2000, 2.0)
    free = as_published(y, p, n_bootstrap=0)
    estimate = estimate_transition(y, p, rate=rate, n_bootstrap=0)
    if rate > free.noise_rate:
        np.testing.assert_array_equal(estimate.transition, free.transition)
    else:
        assert estimate.noise_rate == pytest.approx(rate, abs=0.01)
        off = ~np.eye(3, dtype=bool)
        ratio = estimate.transition[off] / free.transition[off]
        np.testing.assert_allclose(ratio, ratio[0])


def test_rate_out_of_range():
    with pytest.raises(ValueError, match=r"rate must be a share in \[0, 1\).*'estimat'"):
        estimate_transition([0, 0, 1, 1], np.eye(2)[[0, 0, 1, 1]], rate="estimat")
