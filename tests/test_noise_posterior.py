"""The noise undone in probabilities: the inverse where there is one, the nearest where not."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from robustclf.noise import clean_proba, pair_transition, uniform_transition

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "transition",
    [uniform_transition(0.2, 4), pair_transition(0.3, 4), uniform_transition(0.7, 4)],
)
def test_inverts_what_the_noise_did(transition):
    clean = RNG.dirichlet(np.ones(4), 50)
    assert_allclose(clean_proba(clean @ transition, transition), clean, atol=1e-9)


def test_without_noise_nothing_changes():
    proba = RNG.dirichlet(np.ones(3), 20)
    assert_allclose(clean_proba(proba, np.eye(3)), proba, atol=1e-9)


def test_is_the_nearest_distribution_where_the_inverse_has_none():
    transition = uniform_transition(0.6, 3)
    proba = np.array([0.7, 0.2, 0.1])  # the noise leaves no class above .4
    assert (proba @ np.linalg.inv(transition)).min() < 0

    def divergence(logits):
        q = np.exp(logits) / np.exp(logits).sum()
        return -proba @ np.log(q @ transition)

    best = np.exp(minimize(divergence, np.zeros(3), options={"gtol": 1e-10}).x)
    found = clean_proba(proba[None], transition)[0]
    assert_allclose(found, best / best.sum(), atol=1e-4)


def test_predicts_the_class_that_pair_noise_hides():
    """45 % of class 0 are given as 1: a row given as 1 more often than as 0 may still be of 0."""
    transition = np.array([[0.55, 0.45, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    proba = np.array([[0.48, 0.52, 0.0]])
    assert proba.argmax() == 1
    assert clean_proba(proba, transition).argmax() == 0


def test_a_matrix_without_inverse_leaves_what_is_nearest():
    transition = np.array([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    proba = np.array([[0.42, 0.28, 0.3], [0.1, 0.6, 0.3]])
    found = clean_proba(proba, transition)
    assert_allclose(found[:, 2], 0.3)
    assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        ([0.5, 0.5], r"a column for each class, got shape \(2,\)"),
        ([[-0.5, 1.5]], "probabilities that sum to 1"),
        ([[0.5, 0.4]], "probabilities that sum to 1"),
        ([[np.nan, 1]], "proba contains NaN"),
    ],
)
def test_refuses_what_are_no_probabilities(proba, message):
    with pytest.raises(ValueError, match=message):
        clean_proba(proba, np.eye(2))


def test_zeros_stay_finite():
    proba = np.eye(3)
    found = clean_proba(proba, uniform_transition(0.5, 3))
    assert_allclose(found.sum(axis=1), 1)
    assert_allclose(found, proba, atol=1e-6)


@pytest.mark.parametrize("transition", [np.eye(2), np.ones((3, 3)), -np.eye(3)])
def test_refuses_what_is_no_matrix_of_the_classes(transition):
    with pytest.raises(ValueError, match="transition"):
        clean_proba(np.full((1, 3), 1 / 3), transition)


def test_rows_count_for_themselves_however_many_there_are():
    proba = np.random.default_rng(0).dirichlet(np.ones(3), size=5_000)
    transition = pair_transition(0.3, 3)
    each = [clean_proba(proba[[row]], transition)[0] for row in (0, 2_500, 4_999)]
    assert_allclose(clean_proba(proba, transition)[[0, 2_500, 4_999]], each)
    assert clean_proba(proba[:0], transition).shape == (0, 3)
