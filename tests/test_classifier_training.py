"""RobustClassifier: its loop, fits in parts and out of fold."""

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score
from skorch.callbacks import (
    Callback,
)
from small_classifier import Two, small

from robustclf import RobustClassifier
from robustclf._build import auto_batch_size, auto_epochs
from robustclf._net import SCHEDULES

# The loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        (None, [1, 1, 1, 1]),
        (lambda t: 1 - t, [1, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rates(iris, schedule, expected):
    clf = small(lr_schedule=schedule, lr=0.1, max_epochs=4, batch_size=200).fit(*iris)
    assert clf.history_[:, "lr"] == pytest.approx([0.1 * factor for factor in expected])


def test_one_cycle_rises_then_falls():
    rates = np.array([SCHEDULES["one_cycle"](t) for t in np.linspace(0, 1, 201)])
    assert rates.argmax() == 20
    assert rates.max() == pytest.approx(1)
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert 0 < rates[0] < 0.1
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", [*SCHEDULES, None])
def test_every_schedule_pickles(iris, schedule):
    clf = small(lr_schedule=schedule).fit(*iris)
    again = pickle.loads(pickle.dumps(clf))
    assert_array_equal(again.predict_proba(iris[0]), clf.predict_proba(iris[0]))


def test_history(iris):
    clf = small(max_epochs=5).fit(*iris)
    assert len(clf.history_) == 5
    assert {"epoch", "train_loss", "lr", "dur"} <= set(clf.history_[-1])
    assert "valid_acc" not in clf.history_[-1]
    assert clf.history_[:, "epoch"] == [1, 2, 3, 4, 5]
    assert clf.net_.history is clf.history_
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]


def test_auto_budget(iris):
    clf = RobustClassifier(loss="gce", hidden=(4,), random_state=0).fit(*iris)
    assert len(clf.history_) == 150
    assert (auto_epochs(2_000), auto_epochs(10_000)) == (40, 40)
    assert (auto_epochs(1_000), auto_batch_size(1_000)) == (60, 128)
    assert (auto_batch_size(100_000), auto_batch_size(10**6)) == (500, 1024)


@pytest.mark.parametrize("module", ["mlp", Two])
def test_early_stopping_restores_the_best_weights(noisy_digits, module):
    X, y, _ = noisy_digits
    seen = []

    class Record(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            self.data = X

        def on_epoch_end(self, net, dataset_valid=None, **kwargs):
            x, labels = dataset_valid.X, dataset_valid.y
            seen.append((x.clone(), labels.clone()))

    clf = small(
        loss="ce", early_stopping=True, max_epochs=30, lr=0.05, callbacks=[Record()], module=module
    ).fit(X, y)
    x, labels = seen[0]
    predicted = next(iter(clf.net_.logits(x))).mean(0).argmax(-1)
    accuracy = clf.history_[:, "valid_acc"]
    assert len(accuracy) == 30
    assert (predicted == labels).float().mean().item() == pytest.approx(max(accuracy), abs=1e-4)
    assert max(accuracy) > accuracy[-1] + 0.005
    assert len(labels) == 100
    assert np.bincount(labels).tolist() == pytest.approx(np.bincount(y) / 10, abs=1)


def test_early_stopping_with_patience_stops(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(loss="ce", early_stopping=3, max_epochs=60, lr=0.05).fit(X, y)
    accuracy = clf.history_[:, "valid_acc"]
    assert len(accuracy) < 60
    assert np.argmax(accuracy) == len(accuracy) - 4


def test_early_stopping_on_given_rows(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(early_stopping=True, max_epochs=10, lr=0.05)
    clf.fit(X[:700], y[:700], X_val=X[700:], y_val=y[700:])
    assert clf.score(X[700:], y[700:]) == pytest.approx(max(clf.history_[:, "valid_acc"]))


def test_validation_rows_are_watched_and_change_nothing(iris):
    X, y = iris
    labels = np.array(["a", "b", "c"])[y]
    clf = small().fit(X, labels, X_val=X[::2], y_val=labels[::2])
    plain = small().fit(X, labels)
    assert_array_equal(clf.predict_proba(X), plain.predict_proba(X))
    assert clf.history_[-1, "valid_acc"] == pytest.approx(clf.score(X[::2], labels[::2]))


def test_held_out_rows_do_not_train(binary):
    """With most rows held out, the wrong labels of those do not matter."""
    X, y = binary
    seen = []

    class Record(Callback):
        def on_batch_end(self, net, batch=None, training=None, **kwargs):
            if training:
                seen.extend(batch.index.tolist())

    small(early_stopping=True, validation_fraction=0.8, callbacks=[Record()]).fit(X, y)
    assert len(set(seen)) == 20


@pytest.mark.parametrize("loss", ["gce", "nce+rce"])
def test_sample_weight_is_repetition(iris, loss):
    X, y = iris
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = small(loss=loss, batch_size=1000).fit(X, y, sample_weight=weight)
    repeated = small(loss=loss, batch_size=1000).fit(np.repeat(X, weight, 0), np.repeat(y, weight))
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-5)
    scaled = small(loss=loss, batch_size=1000).fit(X, y, sample_weight=7 * weight)
    assert_allclose(weighted.predict_proba(X), scaled.predict_proba(X), atol=1e-5)
    plain = small(loss=loss, batch_size=1000).fit(X, y)
    assert np.abs(weighted.predict_proba(X) - plain.predict_proba(X)).max() > 1e-4


def test_class_weight_is_sample_weight(iris):
    X, y = iris[0][:120], iris[1][:120]  # 50, 50 and 20 rows
    by_class = {0: 1.0, 1: 2.0, 2: 0.5}
    one = small(class_weight=by_class).fit(X, y)
    other = small().fit(X, y, sample_weight=np.array([1.0, 2.0, 0.5])[y])
    assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    both = small(class_weight=by_class).fit(X, y, sample_weight=np.arange(120) + 1)
    other = small().fit(X, y, sample_weight=np.array([1.0, 2.0, 0.5])[y] * (np.arange(120) + 1))
    assert_array_equal(both.predict_proba(X), other.predict_proba(X))
    balanced = small(class_weight="balanced").fit(X, y)
    other = small().fit(X, y, sample_weight=40 / np.array([50, 50, 20])[y])
    assert_array_equal(balanced.predict_proba(X), other.predict_proba(X))
    assert np.abs(balanced.predict_proba(X) - one.predict_proba(X)).max() > 1e-3


# Fitting in parts -----------------------------------------------------------------------------


def test_partial_fit_learns_and_knows_all_classes(iris):
    X, y = iris
    order = np.random.default_rng(0).permutation(150)
    X, y = X[order], y[order]
    clf = small(loss="ce", batch_size=10, lr=0.02)
    for epoch in range(15):
        for part in np.array_split(np.arange(150), 3):
            classes = [0, 1, 2, 7] if epoch == 0 else None
            assert clf.partial_fit(X[part], y[part], classes=classes) is clf
    assert clf.classes_.tolist() == [0, 1, 2, 7]
    assert clf.predict_proba(X).shape == (150, 4)
    assert clf.score(X, y) > 0.9
    assert len(clf.history_) == 45
    assert clf.history_[:, "lr"] == [0.02] * 45


def test_partial_fit_goes_on_after_fit_at_a_constant_rate(iris):
    X, y = iris
    clf = small(lr=0.001, lr_schedule="one_cycle").fit(X, y)
    before = clf.predict_proba(X)
    clf.partial_fit(X[:60], y[:60])
    assert clf.history_[-1, "lr"] == 0.001
    after = clf.predict_proba(X)
    assert 0 < np.abs(after - before).max() < 0.1
    pickle.loads(pickle.dumps(clf)).partial_fit(X, y)


def test_partial_fit_goes_on_after_a_fit_that_watched_all_rows(iris):
    clf = small(early_stopping=True, track_dynamics=True).fit(*iris)
    clf.set_params(early_stopping=False, track_dynamics=False).partial_fit(*iris)
    assert np.isfinite(clf.predict_proba(iris[0])).all()
    assert not any(hasattr(callback, "dynamics_") for _, callback in clf.net_.callbacks_)


def test_partial_fit_has_no_warm_up(iris):
    probas = [
        small(loss=loss, warm_up=1.0).partial_fit(*iris).predict_proba(iris[0])
        for loss in ("ce", "mae")
    ]
    assert np.abs(probas[0] - probas[1]).max() > 1e-3


@pytest.mark.parametrize("strategy", ["mixup", "label_smoothing", "co_teaching", "elr"])
def test_partial_fit_with_strategies(iris, strategy):
    X, y = iris
    clf = small(loss="ce", strategy=strategy)
    clf.partial_fit(X[40:110], y[40:110], classes=[0, 1, 2]).partial_fit(X[::3], y[::3])
    assert np.isfinite(clf.predict_proba(X)).all()


def test_partial_fit_refuses(iris):
    X, y = iris
    for params in ({"cross_fit": 3}, {"early_stopping": True}, {"track_dynamics": True}):
        with pytest.raises(ValueError, match="need all rows at once: call fit"):
            small(**params).partial_fit(X, y)
    clf = small().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y contains labels \[3\] beyond the classes \[0, 1, 2\]"):
        clf.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="needs at least two classes"):
        small().partial_fit(X[:50], y[:50])


# Cross-fitting --------------------------------------------------------------------------------


def test_cross_fit_finds_wrong_labels(noisy_digits):
    X, y, flipped = noisy_digits
    clf = small(cross_fit=4, hidden=(64,), max_epochs=25, lr=0.01).fit(X, y)
    assert clf.oof_proba_.shape == (1000, 10)
    assert_allclose(clf.oof_proba_.sum(1), 1, atol=1e-5)
    assert_array_equal(clf.label_quality_, clf.oof_proba_[np.arange(1000), y])
    assert roc_auc_score(flipped, -clf.label_quality_) > 0.9


@pytest.mark.parametrize("strategy", [None, "co_teaching", "mixup"])
@pytest.mark.parametrize("n_members", [1, 2])
def test_cross_fit_does_not_change_predictions(noisy_digits, strategy, n_members):
    X, y, _ = noisy_digits
    options = {"strategy": strategy, "n_members": n_members, "dropout": 0.0}
    plain, crossed = small(**options).fit(X, y), small(cross_fit=3, **options).fit(X, y)
    assert_allclose(plain.predict_proba(X), crossed.predict_proba(X), atol=1e-4)
    shapes = [[p.shape for p in clf.net_.module_.parameters()] for clf in (plain, crossed)]
    assert shapes[0] == shapes[1]


def test_cross_fit_does_not_change_predictions_of_a_module_of_the_user(noisy_digits):
    X, y, _ = noisy_digits
    plain, crossed = (small(module=Two, cross_fit=k).fit(X, y) for k in (None, 3))
    assert_allclose(plain.predict_proba(X), crossed.predict_proba(X), atol=1e-4)


def test_out_of_fold_members_memorise_nothing(noisy_digits):
    """On labels of pure noise, out-of-fold probabilities know nothing of the given label."""
    X = noisy_digits[0]
    y = np.random.default_rng(0).integers(0, 2, 1000)
    clf = small(loss="ce", cross_fit=5, hidden=(64,), max_epochs=40, lr=0.02).fit(X, y)
    assert clf.score(X, y) > 0.9
    assert (clf.oof_proba_.argmax(1) == y).mean() < 0.6


def test_rows_that_no_member_trained_on_get_the_mean_of_all(noisy_digits):
    X, y, _ = noisy_digits
    weight = np.ones(1000)
    weight[:100] = 0
    clf = small(cross_fit=3).fit(X, y, sample_weight=weight)
    without = small(cross_fit=3).fit(X[100:], y[100:])
    assert_allclose(clf.oof_proba_[100:], without.oof_proba_, atol=1e-4)
    assert_allclose(clf.oof_proba_[:100].sum(1), 1, atol=1e-5)
    stopped = small(cross_fit=3, early_stopping=True).fit(X, y)
    assert_allclose(stopped.oof_proba_.sum(1), 1, atol=1e-5)


def test_a_new_fit_forgets_the_former(iris):
    X, y = iris
    clf = small(cross_fit=3).fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert clf.feature_names_in_.tolist() == list("abcd")
    clf.set_params(cross_fit=None).fit(X[:, :3], y)
    assert clf.n_features_in_ == 3
    for name in ("oof_proba_", "label_quality_", "feature_names_in_"):
        assert not hasattr(clf, name)
    assert_array_equal(
        clf.predict_proba(X[:, :3]), small().fit(X[:, :3], y).predict_proba(X[:, :3])
    )


# Warm-up, budget, failed fits -----------------------------------------------------------------


def test_warm_up_minimises_cross_entropy_first(iris):
    X, y = iris
    ce = small(loss="ce").fit(X, y).predict_proba(X)
    assert_array_equal(small(loss="mae", warm_up=1.0).fit(X, y).predict_proba(X), ce)
    none = small(loss="mae", warm_up=0.0).fit(X, y).predict_proba(X)
    half = small(loss="mae", warm_up=0.5).fit(X, y).predict_proba(X)
    assert abs(half - ce).max() > 1e-3
    assert abs(half - none).max() > 1e-3


def test_warm_up_lets_a_bounded_loss_learn_a_rare_class():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [1900, 100])
    X = rng.normal(size=(2000, 2)) + 3 * y[:, None]
    params = {"loss": "mae", "max_epochs": 20, "lr_schedule": "constant"}

    def recall(warm_up):
        clf = small(**params, warm_up=warm_up).fit(X, y)
        return (clf.predict(X[y == 1]) == 1).mean()

    assert recall(warm_up=0.0) < 0.1
    assert recall(warm_up=0.25) > 0.8


def test_dropout_auto_is_off_in_a_full_batch(iris):
    X, y = iris
    assert small(dropout="auto").fit(X[:100], y[:100]).net_.module_.body.dropout.p == 0.0
    assert small(dropout="auto").fit(X, y).net_.module_.body.dropout.p == 0.3
    assert small(dropout=0.1).fit(X[:100], y[:100]).net_.module_.body.dropout.p == 0.1


def test_a_failed_refit_leaves_the_fitted_model(iris):
    X, y = iris
    clf = small(cross_fit=3).fit(X, y)
    before, oof = clf.predict_proba(X), clf.oof_proba_
    with pytest.raises(ValueError, match="infinity"):
        clf.fit(np.where(X > 6, np.inf, X)[:, :3], y)
    with pytest.raises(ArithmeticError):
        clf.set_params(lr=1e30, loss="ce").fit(X[:, :2], y)
    assert_array_equal(clf.predict_proba(X), before)
    assert clf.oof_proba_ is oof
    assert clf.n_features_in_ == 4
