"""RobustClassifier: what a fit leaves alone, and what a kept model holds."""

import contextlib
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from small_classifier import Two, small

from robustclf import make_loss

# What a fit leaves alone ----------------------------------------------------------------------

EVERYTHING = {
    "loss": "ce",
    "strategy": ["mixup", "co_teaching", "elr"],
    "dropout": 0.2,
    "cross_fit": 2,
    "early_stopping": True,
    "batch_size": 40,
}


def test_random_state_governs_everything(iris):
    X, y = iris
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the caller's generator)
        clf = small(**EVERYTHING).fit(X, y)
        results.append((clf.predict_proba(X), clf.oof_proba_, clf.history_[:, "train_loss"]))
    for one, other in zip(*results, strict=True):
        assert_array_equal(one, other)
    other = small(**EVERYTHING | {"random_state": 1}).fit(X, y).predict_proba(X)
    assert np.abs(other - results[0][0]).max() > 1e-4
    shared = np.random.RandomState(0)
    first, second = (small(random_state=shared).fit(X, y).predict_proba(X) for _ in range(2))
    assert np.abs(first - second).max() > 1e-4
    assert_array_equal(
        first, small(random_state=np.random.RandomState(0)).fit(X, y).predict_proba(X)
    )


def test_a_fit_without_a_seed_differs_from_the_next(iris):
    one, other = (small(random_state=None).fit(*iris).predict_proba(iris[0]) for _ in range(2))
    assert np.abs(one - other).max() > 1e-4


def test_globals_are_untouched(iris):
    X, y = iris
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    clf = small(**EVERYTHING).fit(X, y)
    clf.predict_proba(X)
    small().partial_fit(X, y)
    assert torch.equal(rng, torch.get_rng_state())
    assert_array_equal(numpy_rng, np.random.get_state()[1])  # noqa: NPY002
    assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.is_grad_enabled()


def test_fits_in_threads_are_those_alone(iris):
    X, y = iris
    clf = small(loss="ensloss", strategy="mixup", dropout=0.3, batch_size=20)
    rng, alone = torch.get_rng_state(), clone(clf).fit(X, y).predict_proba(X)
    with ThreadPoolExecutor(3) as threads:
        each = list(threads.map(lambda _: clone(clf).fit(X, y).predict_proba(X), range(6)))
    assert_array_equal(each, np.stack([alone] * 6))
    assert torch.equal(rng, torch.get_rng_state())


def test_inputs_are_untouched(iris):
    X, y = iris[0].copy(), iris[1].copy()
    weight = np.arange(150.0)
    small(preprocess=None).fit(X, y, sample_weight=weight).predict(X)
    small(**EVERYTHING).fit(X, y, sample_weight=weight).predict(X)
    assert_array_equal(X, iris[0])
    assert_array_equal(y, iris[1])
    assert_array_equal(weight, np.arange(150.0))


@contextlib.contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("context", [double_by_default, torch.no_grad])
@pytest.mark.parametrize(
    "params",
    [{}, {"optimizer": "sam"}, EVERYTHING, {"numeric_embedding": "periodic", "batch_size": 40}],
    ids=["plain", "sam", "everything", "periodic"],
)
def test_works_in_the_callers_context(iris, context, params):
    X, y = iris
    with context():
        clf = small(max_epochs=30, **params).fit(X, y)
        proba = clf.predict_proba(X)
    assert proba.dtype == np.float32
    assert clf.score(X, y) > 0.6
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]


# Keeping a model ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"early_stopping": True},
        {"cross_fit": 5},
        {"loss": "ce", "strategy": "elr"},
        {"strategy": "co_teaching", "optimizer": "sam"},
        {"module": Two, "module__width": 400, "n_members": 2},
        {"verbose": 1, "preprocess": StandardScaler()},
    ],
    ids=str,
)
def test_a_pickle_is_little_more_than_the_weights(noisy_digits, params, capsys):
    X, y, _ = noisy_digits
    X = np.vstack([X, X])
    clf = small(hidden=(200,), max_epochs=4, **params).fit(X, np.concatenate([y, y]))
    weights = sum(p.numel() * p.element_size() for p in clf.net_.module_.parameters())
    out_of_fold = clf.oof_proba_.nbytes + clf.label_quality_.nbytes if clf.cross_fit else 0
    size, encoder = len(pickle.dumps(clf)), len(pickle.dumps(clf.encoder_))
    assert size < 1.2 * weights + encoder + out_of_fold + 20_000
    assert weights > 40_000
    file = io.BytesIO()
    joblib.dump(clf, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(clf)), joblib.load(file)):
        assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
        assert again.history_ == clf.history_


def test_no_training_row_inside_a_pickle(noisy_digits):
    X, y, _ = noisy_digits
    X = X + 0.123456789
    clf = small(loss="ce", strategy="elr", early_stopping=True, cross_fit=2).fit(X, y)
    data = pickle.dumps(clf)
    encoded = clf.encoder_.transform(X)
    for row in range(0, 1000, 50):
        assert X[row].tobytes() not in data
        assert encoded[row].tobytes() not in data
        assert encoded[row].astype("f8").tobytes() not in data


def test_size_does_not_grow_with_the_rows(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(loss="ce", strategy=["elr", "co_teaching"], early_stopping=True)
    few, many = (len(pickle.dumps(clf.fit(X[:n], y[:n]))) for n in (300, 1000))
    assert many < few + 2000


def test_a_model_of_a_device_that_is_not_here_loads_on_the_cpu(iris, monkeypatch):
    clf = small().fit(*iris)
    clf.net_.device = "cuda:77"  # as if it had been trained there
    again = pickle.loads(pickle.dumps(clf))
    assert again.net_.device == "cpu"
    assert_array_equal(again.predict_proba(iris[0]), small().fit(*iris).predict_proba(iris[0]))


def test_composed_losses(iris):
    loss = 2 * make_loss("nce") + make_loss("mae")
    clf = small(loss=loss, max_epochs=30, batch_size=25).fit(*iris)
    assert clf.score(*iris) > 0.8
    transition = 0.7 * np.eye(3) + 0.1
    clf = small(loss="forward_corrected", loss__transition=transition).fit(*iris)
    assert_array_equal(clf.net_.criterion_.loss.transition, transition)
    with pytest.raises(ValueError, match="transition"):
        small(loss="forward_corrected", loss__transition=np.eye(2)).fit(*iris)
