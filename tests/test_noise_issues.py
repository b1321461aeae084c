"""Finding wrong labels: what each method scores, and what a list of issues keeps to."""

import re

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import cross_val_predict

from robustclf.noise import LabelIssues, TrainingDynamics, find_label_issues, noise_rate
from robustclf.noise import _neighbours as neighbours_module
from robustclf.noise._detectors import (
    METHODS,
    PRUNE,
    Evidence,
    consensus,
    pruned,
    transition_of_sure,
    under_transition,
)
from robustclf.noise._neighbours import nearest


def labelled(seed=1, n=120, n_classes=3):
    """Labels of which a quarter is wrong, and probabilities of a good classifier."""
    rng = np.random.default_rng(seed)
    true = rng.integers(n_classes, size=n)
    logits = 2.5 * np.eye(n_classes)[true] + rng.normal(size=(n, n_classes))
    p = np.exp(logits)
    y = np.where(rng.random(n) < 0.25, (true + rng.integers(1, n_classes, n)) % n_classes, true)
    return y, p / p.sum(axis=1, keepdims=True)


def dynamics_of(proba, y, n_epochs=4, seed=0):
    """Dynamics that get from even probabilities to those given."""
    steps = np.linspace(0.2, 1, n_epochs)[:, None, None]
    p = steps * proba + (1 - steps) / proba.shape[1]
    at = np.take_along_axis(p, y[None, :, None], axis=2)[..., 0]
    others = np.where(np.eye(proba.shape[1], dtype=bool)[y], -np.inf, p).max(axis=2)
    norm = np.linalg.norm(p - np.eye(proba.shape[1])[y], axis=2)
    parts = (-np.log(at), np.log(at) - np.log(others), norm, p.mean(axis=0))
    return TrainingDynamics(*(part.astype(np.float32) for part in parts))


def ranks(issues):
    """Score of each row, high for the first."""
    score = np.empty(len(issues))
    score[issues.rows] = -np.arange(len(issues))
    return score


@pytest.fixture(scope="module")
def everything():
    y, p = labelled()
    X = p + 0.1 * np.random.default_rng(0).normal(size=p.shape)
    return {"y": y, "proba": p, "X": X, "dynamics": dynamics_of(p, y)}


@pytest.fixture(scope="module")
def paired_digits():
    """Digits of which 40 % are mistaken for the next, and probabilities out of fold."""
    X, true = load_digits(return_X_y=True)
    X, true = X[:900] / 16, true[:900]
    y = np.where(np.random.default_rng(0).random(900) < 0.4, (true + 1) % 10, true)
    clf = LogisticRegression(C=0.1, max_iter=300)
    return X, y, cross_val_predict(clf, X, y, method="predict_proba", cv=5), y != true


# What each method scores ----------------------------------------------------------------------

P = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.0, 0.9, 0.1]])
Y = np.array([0, 1, 2])


def test_scores_of_the_probabilities():
    e = Evidence(Y, P)
    assert_allclose(METHODS["self_confidence"](e), [0.3, 0.7, 0.9])
    assert_allclose(METHODS["normalized_margin"](e), [0.25, 0.55, 0.9])
    norms = np.sqrt([0.09 + 0.04 + 0.01, 0.09 + 0.49 + 0.16, 0 + 0.81 + 0.81])
    assert_allclose(METHODS["el2n"](e), norms)
    assert_allclose(e.loss, -np.log([0.7, 0.3, 0.1]))
    assert np.isfinite(Evidence(np.array([0, 0, 0]), P).loss).all()


def test_scores_of_the_dynamics():
    margin = np.array([[1, -2, -1, 1], [3, -1, 2, -1], [2, -3, -4, 2], [2, -2, 1, -1]], float)
    norm = np.array([[0.1, 1.2, 1.0, 0.2]] * 4)
    e = Evidence(
        np.zeros(4, int), np.full((4, 2), 0.5), dynamics=TrainingDynamics(norm, margin, norm, norm)
    )
    assert_allclose(METHODS["aum"](e), [-2, 2, 0.5, -0.25])
    assert_allclose(METHODS["el2n"](e), norm[0])
    assert_allclose(METHODS["forgetting"](e), [0.05, 4 + 0.6, 1 + 0.5, 2 + 0.1])


@pytest.mark.parametrize("tracked", [False, True])
def test_the_mixture_finds_the_rows_of_high_loss_and_ranks_by_loss(tracked):
    rng = np.random.default_rng(0)
    high = np.arange(200) < 60
    own = np.exp(-np.where(high, rng.normal(4, 0.4, 200), rng.normal(1, 0.3, 200).clip(0.05)))
    y, p = np.zeros(200, int), np.column_stack([own, 1 - own])
    e = Evidence(y, p, dynamics=dynamics_of(p, y) if tracked else None)
    score = METHODS["loss_mixture"](e)
    assert_array_equal(score > 0.5, high)
    assert_array_equal(np.argsort(score[high]), np.argsort(e.loss[high]))
    assert score.min() >= 0


def test_the_mixture_does_not_take_the_lowest_losses_for_high_ones():
    """Far below both means the density of the wider component is the larger one."""
    rng = np.random.default_rng(0)
    loss = np.r_[rng.normal(1, 0.02, 150), rng.normal(3, 0.8, 60).clip(1.5), 0.01]
    p = np.exp(-np.column_stack([loss, -np.log(-np.expm1(-loss))]))
    score = METHODS["loss_mixture"](Evidence(np.zeros(211, int), p))
    assert score[-1] == 0
    assert score[150:-1].min() > 0.5


def test_the_mixture_of_equal_losses_is_empty():
    assert_array_equal(METHODS["loss_mixture"](Evidence(Y, np.full((3, 3), 1 / 3))), np.zeros(3))


def test_neighbours_vote_by_hand():
    """Of 41 rows on a line the 30 nearest are votes; with four rows, the other three."""
    x = np.array([[0.0], [1.0], [3.0], [7.0]])
    y = np.array([0, 0, 1, 1])
    votes = np.array([1 / 3, 1 / 3, 1 / 3, 1 / 3]) + 0.02
    expected = 1 - votes / 1.04
    assert_allclose(METHODS["neighbours"](Evidence(y, np.eye(2)[y], x)), expected)
    line = np.arange(41.0)[:, None] ** 1.01
    y = np.where(np.arange(41) < 31, 0, 1)
    scores = METHODS["neighbours"](Evidence(y, np.eye(2)[y], line))
    assert scores[0] == pytest.approx(1 - 1.02 / 1.04)  # rows 1 to 30, all of class 0
    assert scores[40] == pytest.approx(1 - (9 / 30 + 0.02) / 1.04)  # rows 10 to 39, 9 of class 1


def test_consensus_weighs_by_accuracy_out_of_fold():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(101, 2))
    y = (X[:, 0] > 0).astype(int)
    p = np.eye(2)[np.where(rng.random(101) < 0.95, y, 1 - y)] * 0.8 + 0.1
    e = Evidence(y, p, X)
    votes = e.votes(np.eye(2)[y])
    ties = np.isclose(votes[:, 0], 0.5)
    assert ties.any(), "a row with a tie is half right"
    by_votes = np.where(ties, 0.5, votes.argmax(axis=1) == y)
    right = np.array([p.argmax(axis=1) == y, by_votes], float)
    deviations = (right[0] - right[1]).mean() / ((right[0] - right[1]).std() / np.sqrt(101))
    w = 1 / (1 + np.exp(-deviations / 2))
    assert 0.1 < w < 0.45
    assert_allclose(consensus(e), w * p + (1 - w) * e.votes(p))


def test_consensus_drops_what_is_always_wrong():
    y = np.arange(80) % 2
    worst = np.eye(2)[1 - y] * 0.8 + 0.1
    e = Evidence(y, worst, y[:, None] * 1.0)
    assert_allclose(consensus(e), e.votes(worst), atol=1e-6)


def test_consensus_judges_by_what_does_not_know_the_label():
    """Networks that learned all given labels are no better than those of the folds left out."""
    y = np.arange(80) % 2
    learned = dynamics_of(np.eye(2)[y] * 0.98 + 0.01, y)
    e = Evidence(y, np.eye(2)[1 - y] * 0.8 + 0.1, y[:, None] * 1.0, learned)
    assert_allclose(consensus(e), e.votes(e.learned), atol=1e-6)


def test_consensus_without_features_is_what_the_networks_learned(everything):
    y, p, dynamics = everything["y"], everything["proba"], everything["dynamics"]
    assert consensus(Evidence(y, p)) is p
    assert_allclose(consensus(Evidence(y, p, dynamics=dynamics)), dynamics.mean_proba)


def sure_of(counts, sure=0.8):
    """Probabilities and labels whose counts, of predicted class and label, are those given."""
    guess, y = np.repeat(np.argwhere(counts + 1), np.ravel(counts), axis=0).T
    rest = (1 - sure) / (len(counts) - 1)
    return np.eye(len(counts))[guess] * (sure - rest) + rest, y


@pytest.mark.parametrize(
    "counts",
    [
        np.array([[7, 3, 0], [0, 8, 2], [4, 0, 6]]),
        np.array([[50, 50, 0], [0, 99, 1], [0, 0, 0]]),  # no row is predicted as the last class
    ],
)
def test_posterior_under_the_transition_by_hand(counts):
    p, y = sure_of(counts)
    stay = (np.trace(counts) + 1) / (counts.sum() + 2)
    uniform = np.where(np.eye(3), stay, (1 - stay) / 2)
    classes = np.flatnonzero(counts.any(axis=1))
    distance, d, transition = 0, 0, uniform.copy()
    for k in classes:
        expected = counts[k].sum() * uniform[k]
        distance += ((counts[k] - expected) ** 2 / expected)[np.arange(3) != k].sum()
        d += 2
    assert distance > d, "uniform noise is not all"
    for k in classes:
        shown = counts[k] / counts[k].sum()
        transition[k] = (1 - d / distance) * shown + d / distance * uniform[k]
    assert_allclose(transition_of_sure(p, y), transition)
    expected = p * np.sqrt(transition[:, y].T)
    assert_allclose(under_transition(p, y), expected / expected.sum(axis=1, keepdims=True))


def test_counts_near_uniform_noise_give_uniform_noise():
    counts = np.array([[70, 12, 8], [11, 70, 9], [8, 12, 70]])
    transition = transition_of_sure(*sure_of(counts))
    assert_allclose(transition, np.where(np.eye(3), 211 / 272, 61 / 272 / 2))
    counts[0] = [70, 20, 0]
    assert np.ptp(transition_of_sure(*sure_of(counts))[0, 1:]) > 0.01


def test_only_the_surest_rows_of_each_class_show_the_transition():
    counts = np.array([[27, 3, 0], [0, 27, 3], [3, 0, 27]])
    sure, y = sure_of(counts)
    unsure, mistaken = sure_of(np.roll(counts, 2, axis=1), sure=0.6)
    both = np.concatenate([unsure, sure]), np.concatenate([mistaken, y])
    assert_allclose(transition_of_sure(*both), transition_of_sure(sure, y))


def test_classes_hard_to_tell_apart_are_not_taken_for_mistaken_labels():
    rng = np.random.default_rng(0)
    true = rng.integers(6, size=2000)
    near, same = np.arange(6) // 2 == true[:, None] // 2, np.arange(6) == true[:, None]
    p = np.exp(2 * near + same + 0.8 * rng.normal(size=(2000, 6)))
    p /= p.sum(axis=1, keepdims=True)
    assert np.mean(p.argmax(axis=1) != true) > 0.15
    y = np.where(rng.random(2000) < 0.1, (true + rng.integers(1, 6, 2000)) % 6, true)
    precision = {
        method: average_precision_score(y != true, METHODS[method](Evidence(y, p)))
        for method in ("combined", "self_confidence")
    }
    assert precision["combined"] > precision["self_confidence"] - 0.02, "the noise is uniform"


@pytest.mark.parametrize("given", [("X",), ("dynamics",), ("X", "dynamics"), ()], ids=str)
def test_combined_is_equivariant_over_rows_and_classes(everything, given):
    y, p = everything["y"], everything["proba"]
    more = {name: everything[name] for name in given}
    score = METHODS["combined"](Evidence(y, p, **more))
    order = np.random.default_rng(1).permutation(len(y))
    shuffled = {k: v.take(order) if k == "dynamics" else v[order] for k, v in more.items()}
    again = METHODS["combined"](Evidence(y[order], p[order], **shuffled))
    assert_allclose(again, score[order], atol=1e-9)
    classes = np.array([2, 0, 1])  # column k holds what was class classes[k]
    renamed = dict(more)
    if "dynamics" in given:
        d = more["dynamics"]
        parts = (d.loss, d.margin, d.error_norm, d.mean_proba[:, classes])
        renamed["dynamics"] = TrainingDynamics(*parts)
    again = METHODS["combined"](Evidence(np.argsort(classes)[y], p[:, classes], **renamed))
    assert_allclose(again, score, atol=1e-9)


# Against cleanlab -------------------------------------------------------------------------------

PRUNED = {  # by cleanlab 2.9.0
    "by_noise_rate": [4, 13, 15, 18, 24, 25, 27, 33, 34, 52, 62, 71, 72, 76, 77, 84, 97, 108, 113],
    "off_diagonal": [4, 13, 15, 18, 24, 25, 27, 34, 52, 62, 71, 72, 76, 77, 84, 97],
}
THEIRS = {
    "by_noise_rate": "prune_by_noise_rate",
    "by_class": "prune_by_class",
    "both": "both",
    "off_diagonal": "confident_learning",
}
PRUNED["both"] = PRUNED["by_noise_rate"]
PRUNED["by_class"] = sorted([*PRUNED["by_noise_rate"], 47, 58])


@pytest.mark.parametrize("prune", PRUNE)
def test_confident_learning_prunes_what_cleanlab_prunes(prune):
    y, p = labelled()
    assert np.flatnonzero(pruned(y, p, prune)).tolist() == PRUNED[prune]
    issues = find_label_issues(y, p, "confident_learning", prune=prune)
    assert sorted(issues.rows) == PRUNED[prune]
    assert_array_equal(np.argsort(p[issues.rows, y[issues.rows]]), np.arange(len(issues)))


@pytest.mark.parametrize("n_classes", [3, 8])
@pytest.mark.parametrize("prune", PRUNE)
def test_cleanlab_agrees_but_for_rounding(prune, n_classes):
    """Cleanlab rounds the joint so that its sums stay, here each count is rounded by itself.

    So a count of the joint differs by at most one. Of several confident classes cleanlab takes the
    most probable of all classes, confident or not, here the most probable confident one.
    """
    cleanlab = pytest.importorskip("cleanlab.filter")
    counts = {"by_noise_rate": n_classes * (n_classes - 1), "by_class": n_classes}
    counts["both"] = counts["by_noise_rate"] + counts["by_class"]
    counts["off_diagonal"] = {3: 0, 8: 3}[n_classes]
    for seed in range(5):
        y, p = labelled(seed, 40 * n_classes, n_classes)
        found = cleanlab.find_label_issues(y, p, filter_by=THEIRS[prune], n_jobs=1)
        differ = int((found != pruned(y, p, prune)).sum())
        assert differ <= counts[prune]
        assert differ < 0.25 * found.sum()


def test_scores_are_those_of_cleanlab():
    y, p = labelled()
    e = Evidence(y, p)
    own = [0.862841, 0.716164, 0.932237, 0.965487, 0.038274]  # by cleanlab 2.9.0
    margin = [0.887351, 0.749477, 0.943463, 0.967726, 0.129621]
    assert_allclose(1 - METHODS["self_confidence"](e)[:5], own, atol=1e-6)
    assert_allclose(1 - METHODS["normalized_margin"](e)[:5], margin, atol=1e-6)


# What a list of issues keeps to -----------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_all_rows_by_falling_probability_whose_mean_is_the_noise_rate(everything, method):
    issues = find_label_issues(**everything, method=method, n_issues="all")
    y, p = everything["y"], everything["proba"]
    assert_array_equal(np.sort(issues.rows), np.arange(len(y)))
    assert_array_equal(issues.index, issues.rows)
    assert (np.diff(issues.probability) <= 0).all()
    assert issues.probability.mean() == pytest.approx(noise_rate(y, p).rate, abs=1e-5)
    assert issues.probability.min() >= 0
    assert issues.probability.max() <= 1
    assert_array_equal(issues.given, y[issues.rows])
    assert (issues.suggested != issues.given).all()


@pytest.mark.parametrize("method", METHODS)
def test_wrong_labels_come_first(everything, method):
    true = everything["proba"].argmax(axis=1)
    score = ranks(find_label_issues(**everything, method=method, n_issues="all"))
    assert roc_auc_score(everything["y"] != true, score) > 0.9


def test_combined_sees_pairs_that_the_confidence_does_not(paired_digits):
    X, y, p, wrong = paired_digits
    auroc = {
        method: roc_auc_score(wrong, ranks(find_label_issues(y, p, method, X=X, n_issues="all")))
        for method in ("combined", "self_confidence")
    }
    assert auroc["combined"] > auroc["self_confidence"] + 0.05
    alone = ranks(find_label_issues(y, p, n_issues="all"))
    assert roc_auc_score(wrong, alone) > auroc["self_confidence"] + 0.03


def test_suggested_labels_are_better(paired_digits):
    X, y, p, wrong = paired_digits
    issues = find_label_issues(y, p, X=X, n_issues=150)
    true = np.where(wrong, (y - 1) % 10, y)[issues.rows]
    assert np.mean(issues.suggested == true) > 0.75
    assert np.mean(issues.given == true) < 0.2


def test_ties_are_broken_by_the_probability_of_the_label():
    y, p = labelled()
    even = TrainingDynamics(*np.ones((3, 2, len(y))), mean_proba=p)
    issues = find_label_issues(y, p, "aum", dynamics=even, n_issues="all")
    assert_array_equal(issues.rows, np.argsort(p[np.arange(len(y)), y], kind="stable"))
    assert np.ptp(issues.probability) < 1e-12


@pytest.mark.parametrize(
    ("n_issues", "n"),
    [(0, 0), (7, 7), (np.int64(7), 7), (500, 120), (0.25, 30), (1.0, 120), (1, 1), (0.0, 0)],
)
def test_number_of_issues(everything, n_issues, n):
    issues = find_label_issues(**everything, n_issues=n_issues)
    everyone = find_label_issues(**everything, n_issues="all")
    assert len(issues) == n
    assert_array_equal(issues.rows, everyone.rows[:n])
    assert_array_equal(issues.probability, everyone.probability[:n])


def test_auto_is_the_estimated_number_of_wrong_labels(everything):
    y, p = everything["y"], everything["proba"]
    n = round(noise_rate(y, p).rate * len(y))
    assert n > 10
    assert len(find_label_issues(y, p)) == n


@pytest.mark.parametrize("method", ["combined", "confident_learning"])
def test_clean_labels_have_no_issues(method):
    _, p = labelled(n=600)
    rng = np.random.default_rng(0)
    y = (p.cumsum(axis=1) < rng.random((600, 1))).sum(axis=1)
    assert pruned(y, p, "by_noise_rate").any()
    issues = find_label_issues(y, p, method)
    assert len(issues) == 0
    assert issues.to_frame().shape == (0, 3)
    assert len(find_label_issues(y, p, method, n_issues=5)) == 5


def test_strings_and_the_index_of_a_series_are_kept(everything):
    y, p = everything["y"], everything["proba"]
    names = np.array(["ape", "bee", "cat"])
    series = pd.Series(names[y], index=[f"row{i}" for i in range(len(y))])
    issues = find_label_issues(series, p, n_issues=9)
    plain = find_label_issues(y, p, n_issues=9)
    assert_array_equal(issues.rows, plain.rows)
    assert issues.index.tolist() == [f"row{i}" for i in plain.rows]
    assert_array_equal(issues.given, names[plain.given])
    assert_array_equal(issues.suggested, names[plain.suggested])
    frame = issues.to_frame()
    assert frame.columns.tolist() == ["given", "suggested", "probability"]
    assert_array_equal(series.loc[frame.index], frame["given"])
    for other in (names[y].tolist(), pd.Series(names[y], dtype="category")):
        assert_array_equal(find_label_issues(other, p, n_issues=9).given, issues.given)


def test_a_class_without_rows_may_be_suggested(everything):
    y, p = everything["y"].copy(), everything["proba"]
    y[y == 2] = 1
    issues = find_label_issues(y, p, classes=[0, 1, 2], n_issues="all")
    assert 2 in issues.suggested
    assert 2 not in issues.given


def test_probabilities_of_0_and_1_are_taken():
    y = np.arange(100) % 2
    p = np.eye(2)[np.where(np.arange(100) < 10, 1 - y, y)]
    for method in ("combined", "self_confidence", "confident_learning", "loss_mixture", "el2n"):
        issues = find_label_issues(y, p, method, n_issues=10)
        assert_array_equal(np.sort(issues.rows), np.arange(10))
        assert np.isfinite(issues.probability).all()


def test_nothing_given_is_changed_and_nothing_global_is_drawn(everything, monkeypatch):
    monkeypatch.setattr(neighbours_module, "MAX_REFERENCE", 60)
    arrays = [everything[k] for k in ("y", "proba", "X")] + [
        getattr(everything["dynamics"], k) for k in ("loss", "margin", "error_norm", "mean_proba")
    ]
    before = [a.copy() for a in arrays]
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the caller's generator)
    results = []
    for method in [*METHODS, *METHODS]:
        issues = find_label_issues(**everything, method=method, n_issues="all", random_state=0)
        results.append((issues.rows, issues.probability, issues.suggested))
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    for array, copy in zip(arrays, before, strict=True):
        assert_array_equal(array, copy)
    for one, other in zip(results[: len(METHODS)], results[len(METHODS) :], strict=True):
        for a, b in zip(one, other, strict=True):
            assert_array_equal(a, b)


# Neighbours -------------------------------------------------------------------------------------


def test_nearest_rows_on_a_line(monkeypatch):
    monkeypatch.setattr(neighbours_module, "N_NEIGHBOURS", 2)
    x = np.array([0.0, 1.0, 3.0, 3.5, 9.0])[:, None]
    sets = [set(row) for row in nearest(x)]
    assert sets == [{1, 2}, {0, 2}, {3, 1}, {2, 1}, {3, 2}]


def test_numbers_are_scaled(monkeypatch):
    monkeypatch.setattr(neighbours_module, "N_NEIGHBOURS", 1)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    assert_array_equal(nearest(X * [1, 1000, 0.001] + [5, 0, -3]), nearest(X))


@pytest.mark.parametrize("limit", [20_000, 25])
def test_no_row_is_its_own_neighbour(monkeypatch, limit):
    """Also among duplicates, where the row itself need not come first, nor be found at all."""
    monkeypatch.setattr(neighbours_module, "MAX_REFERENCE", limit)
    X = np.repeat(np.arange(3.0), 60)[:, None]
    found = nearest(X, random_state=0)
    n = len(X)
    assert found.shape == (n, min(30, limit - 1))
    assert not (found == np.arange(n)[:, None]).any()
    assert all(len(set(row)) == len(row) for row in found)
    assert len(np.unique(found)) <= limit
    if limit > n:
        assert_array_equal(X[found][..., 0], np.broadcast_to(X, found.shape))


@pytest.mark.parametrize("method", ["combined", "neighbours"])
def test_a_row_alone_has_no_neighbours(method):
    one = {"classes": [0, 1], "X": [[3.0]], "n_issues": "all"}
    issues = find_label_issues([0], [[0.9, 0.1]], method, **one)
    assert issues.rows.tolist() == [0]
    assert issues.suggested.tolist() == [1]


def test_neighbours_are_drawn_by_the_random_state(everything, monkeypatch):
    monkeypatch.setattr(neighbours_module, "MAX_REFERENCE", 50)
    X = everything["X"]
    assert_array_equal(nearest(X, 1), nearest(X, 1))
    assert not np.array_equal(nearest(X, 1), nearest(X, 2))


@pytest.mark.parametrize("n_categories", [2, 5, 40])
def test_categories_are_1_apart(n_categories):
    names = np.array([f"c{i}" for i in range(n_categories)])
    frame = pd.DataFrame({"c": pd.Categorical(np.tile(names, 2))})
    encoded = neighbours_module._as_numbers(frame)
    apart = np.linalg.norm(encoded[0] - encoded[:n_categories], axis=1)
    assert_allclose(apart, np.arange(n_categories) > 0, atol=1e-6)


def test_a_table_of_categories_and_gaps(everything):
    y, p = everything["y"], everything["proba"]
    rng = np.random.default_rng(0)
    number = np.where(rng.random(len(y)) < 0.2, np.nan, p[:, 0])
    kind = pd.Series(np.array(["a", "b", "c"])[p.argmax(axis=1)], dtype="category")
    kind[rng.random(len(y)) < 0.1] = None
    frame = pd.DataFrame({"number": number, "kind": kind})
    copy = frame.copy()
    issues = find_label_issues(y, p, "neighbours", X=frame, n_issues="all")
    assert roc_auc_score(y != p.argmax(axis=1), ranks(issues)) > 0.85
    pd.testing.assert_frame_equal(frame, copy)
    assert len(find_label_issues(y, p, X=frame, dynamics=everything["dynamics"], n_issues=4)) == 4


# What is refused --------------------------------------------------------------------------------


def test_an_unknown_method_has_a_closest_match():
    with pytest.raises(ValueError, match=r"unknown method 'combind'.*did you mean 'combined'"):
        find_label_issues(Y, P, "combind")
    with pytest.raises(ValueError, match=r"unknown prune 'by_clas'.*did you mean 'by_class'"):
        find_label_issues(Y, P, prune="by_clas")
    with pytest.raises(ValueError, match=r"unknown n_issues 'al', .*did you mean 'all'"):
        find_label_issues(Y, P, n_issues="al")


@pytest.mark.parametrize("n_issues", [-1, 1.5, -0.1, None, np.nan])
def test_a_number_of_issues_that_is_none(n_issues):
    message = (
        "n_issues must be a number of rows, a share between 0.0 and 1.0, 'auto' or 'all', got "
    )
    with pytest.raises(ValueError, match=re.escape(f"{message}{n_issues!r}.")):
        find_label_issues(Y, P, n_issues=n_issues)


@pytest.mark.parametrize("method", ["aum", "forgetting"])
def test_methods_that_need_the_dynamics(method):
    message = rf"method '{method}' needs what a fit went through: pass dynamics=clf.dynamics_ of "
    with pytest.raises(ValueError, match=message):
        find_label_issues(Y, P, method)


def test_neighbours_need_the_features():
    with pytest.raises(ValueError, match=r"method 'neighbours' needs the features: pass X\."):
        find_label_issues(Y, P, "neighbours")


def test_everything_must_be_of_the_same_rows(everything):
    y, p, dynamics = everything["y"], everything["proba"], everything["dynamics"]
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        find_label_issues(y, p, X=everything["X"][:-1])
    with pytest.raises(
        ValueError, match=r"dynamics are of \(119, 3\) rows and classes, proba of \(120, 3\)"
    ):
        find_label_issues(y, p, dynamics=dynamics.take(np.arange(119)))


def test_predictions_are_no_probabilities(everything):
    y, p = everything["y"], everything["proba"]
    with pytest.raises(ValueError, match=r"a column for each class.*pass predict_proba, not label"):
        find_label_issues(y, p.argmax(axis=1))
    with pytest.raises(ValueError, match=r"proba must hold probabilities that sum to 1.*in row 0"):
        find_label_issues(y, np.log(p))


def test_issues_are_frozen_and_of_some_length():
    one = np.array([3])
    issues = LabelIssues(one, np.array(["cat"]), np.array(["dog"]), np.array([0.9]), one)
    assert len(issues) == 1
    with pytest.raises(AttributeError, match="rows"):
        issues.rows = one
