"""What weighs the models of loss="auto"."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from robustclf._weighing import CORRECTED, Labels, Tried

CODES = np.repeat([0, 1], 200)
RIGHT = np.eye(2)[CODES]


def labels_of(codes=CODES):
    return Labels(codes, np.ones(len(codes)), np.arange(len(codes)) % 5, 2)


def models(**oof):
    return [Tried(name, None, proba, 0.0, {}) for name, proba in oof.items()]


def wrong_in_each(step):
    """What is certain, and wrong in one of so many rows."""
    return np.where(np.arange(len(RIGHT))[:, None] % step, RIGHT, RIGHT[:, ::-1])


def test_models_that_predict_fewer_labels_weigh_less():
    weights = labels_of().weights(models(good=RIGHT, fair=wrong_in_each(10), alike=RIGHT))
    assert_allclose(weights.sum(), 1)
    assert_allclose(weights[0], weights[2])
    # 40 of 400 labels fewer, with a standard error of sqrt(.1 * .9 / 400)
    assert_allclose(weights[1] / weights[0], np.exp(-0.1 / np.sqrt(0.09 / 400)))


def test_a_model_that_is_worse_in_every_row_has_no_weight():
    with np.errstate(all="raise"):
        weights = labels_of().weights(models(right=RIGHT, wrong=1 - RIGHT))
    assert_array_equal(weights, [1, 0])


def test_labels_that_cannot_tell_models_apart_leave_the_weight_that_was_given():
    labels = labels_of()
    assert_allclose(labels.weights(models(dropout=RIGHT, filtered=RIGHT)), [1 / 9, 8 / 9])
    assert labels.weights(models(dropout=RIGHT, filtered=wrong_in_each(4)))[1] < 1e-3


def test_what_was_given_weighs_less_the_fewer_labels_are_wrong():
    labels, tried = labels_of(), models(sparse=RIGHT, filtered=RIGHT)
    assert_allclose(labels.weights(tried, noisy=0.0), [1 / 2, 1 / 2])
    assert_allclose(labels.weights(tried, noisy=3 / 7), [1 / 5, 4 / 5])


@pytest.mark.parametrize("suffix", ["", CORRECTED])
def test_nearly_linear_models_are_for_noisy_labels_and_grown_trees_for_clean_ones(suffix):
    names = ("sparse", f"linear_kernel{suffix}", f"deep_forest{suffix}")
    labels, tried = labels_of(), models(**dict.fromkeys(names, RIGHT))
    assert_allclose(labels.weights(tried, noisy=0.0), [1 / 2, 0, 1 / 2])
    assert_allclose(labels.weights(tried, noisy=0.25), [1 / 2, 1 / 8, 3 / 8])
    assert_allclose(labels.weights(tried), [1 / 2, 1 / 2, 0])


def test_models_without_prior_weight_have_no_say_in_that_of_others():
    labels, others = labels_of(), models(a=wrong_in_each(5), b=wrong_in_each(3))
    weights = labels.weights([*others, *models(deep_forest=RIGHT)])
    assert_array_equal(weights, [*labels.weights(others), 0])


def test_what_memorises_tells_nothing_of_the_noise():
    given = np.where(np.arange(400) % 5 == 0, 1 - CODES, CODES)
    labels = labels_of(given)
    knows = models(kernel=np.where(RIGHT == 1, 0.8, 0.2))
    transition = labels.transition([*knows, *models(deep_forest=np.eye(2)[given])])
    assert_array_equal(transition, labels.transition(knows))
    assert_allclose(transition.diagonal(), 0.8, atol=0.02)


def test_weights_count_rows_by_their_weight():
    only_first = np.array([[0.9, 0.1], [0.9, 0.1]])
    labels = Labels(np.array([0, 1]), np.array([3.0, 1.0]), np.arange(2), 2)
    assert labels.accuracy(only_first) == 0.75
