"""What a fit records of its rows: losses, margins and probabilities, epoch by epoch."""

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import log_loss, roc_auc_score
from skorch.callbacks import Callback

import robustclf._dynamics as recorder_module
import robustclf._net as net_module
from robustclf import RobustClassifier
from robustclf._dynamics import DynamicsRecorder
from robustclf.noise import TrainingDynamics, find_label_issues

PARTS = ("loss", "margin", "error_norm", "mean_proba")


def small(**params):
    defaults = {"hidden": (16,), "max_epochs": 8, "lr": 0.02, "dropout": 0.0, "random_state": 0}
    return RobustClassifier(**{"loss": "gce", "track_dynamics": True} | defaults | params)


def arrays(dynamics):
    return [getattr(dynamics, part) for part in PARTS]


def own(values, y):
    return values[np.arange(len(y)), y]


class Spy(Callback):
    """Keeps the logits ``(member, sample, class)`` of all members after each epoch."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.x, self.logits = X.x, []

    def on_epoch_end(self, net, **kwargs):
        self.logits.append(next(iter(net.logits(self.x, oof=True))).double().numpy())

    def proba(self):
        p = np.exp(self.logits - np.max(self.logits, axis=-1, keepdims=True))
        return p / p.sum(axis=-1, keepdims=True)


def spied(X, y, **params):
    """Return a fitted classifier and the logits and probabilities ``(epoch, member, ...)``."""
    spy = Spy()
    clf = small(callbacks=[spy], **params).fit(X, y)
    return clf, np.array(spy.logits), spy.proba()


def left_out(clf, proba, y):
    """The member after the first ``n_members`` whose last probabilities are those out of fold."""
    gap = np.abs(proba[-1][clf.net_.n_members :] - clf.oof_proba_).max(axis=-1)
    assert (np.sort(gap, axis=0)[1] > 1e-5).all()
    return clf.net_.n_members + gap.argmin(axis=0)


# What a recording says --------------------------------------------------------------------------


def test_summaries_by_hand():
    margin = np.array([[1, -2, -1, 1], [3, -1, 2, -1], [2, -3, -4, 2], [2, -2, 1, -1]], float)
    norm = np.arange(16.0).reshape(4, 4)
    dynamics = TrainingDynamics(norm, margin, norm, np.full((4, 2), 0.5))
    assert dynamics.n_epochs == 4
    assert_allclose(dynamics.aum(), [2, -2, -0.5, 0.25])
    assert_allclose(dynamics.el2n(), [6, 7, 8, 9])
    assert_allclose(dynamics.el2n(2), [2, 3, 4, 5])
    assert_array_equal(dynamics.forgetting(), [0, 4, 1, 2])


def test_take_by_numbers_and_by_mask():
    rng = np.random.default_rng(0)
    dynamics = TrainingDynamics(*rng.random((3, 4, 5)), mean_proba=rng.random((5, 2)))
    rows, mask = [3, 0, 3], np.array([True, False, True, False, False])
    for some, numbers in ((rows, rows), (mask, [0, 2]), (mask.tolist(), [0, 2])):
        taken = dynamics.take(some)
        for part in PARTS[:3]:
            assert_array_equal(getattr(taken, part), getattr(dynamics, part)[:, numbers])
        assert_array_equal(taken.mean_proba, dynamics.mean_proba[numbers])


def test_without_is_nan_for_the_masked_rows_alone():
    rng = np.random.default_rng(0)
    dynamics = TrainingDynamics(*rng.random((3, 4, 5)), mean_proba=rng.random((5, 2)))
    mask = np.arange(5) == 2
    less = dynamics.without(mask)
    assert all(np.isnan(a).any() for a in arrays(less))
    assert all(np.isfinite(a).all() for a in arrays(less.take(~mask)))
    for one, other in zip(arrays(less.take(~mask)), arrays(dynamics.take(~mask)), strict=True):
        assert_array_equal(one, other)
    assert all(np.isfinite(a).all() for a in arrays(dynamics))


# What a fit records -------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"cross_fit": 3}, {"n_members": 2}], ids=str)
def test_shapes(iris, params):
    dynamics = small(**params).fit(*iris).dynamics_
    assert dynamics.n_epochs == 8
    assert [a.shape for a in arrays(dynamics)] == [(8, 150)] * 3 + [(150, 3)]
    assert_allclose(dynamics.mean_proba.sum(axis=1), 1, atol=1e-5)
    assert dynamics.loss.min() >= 0
    assert 0 <= dynamics.error_norm.min() <= dynamics.error_norm.max() <= np.sqrt(2) + 1e-6


@pytest.mark.parametrize("loss", ["ce", "gce", "evidential"])
@pytest.mark.parametrize("n_members", [1, 2])
def test_the_last_epoch_is_the_fitted_model(iris, loss, n_members):
    X, y = iris
    clf, logits, _ = spied(X, y, loss=loss, n_members=n_members, batch_size=50)
    dynamics = clf.dynamics_
    z = logits[-1]
    if n_members == 1:
        p = clf.predict_proba(X)
        assert_allclose(clf.decision_function(X), z[0], rtol=1e-4, atol=1e-4)
        assert dynamics.loss[-1].mean() == pytest.approx(log_loss(y, p), rel=1e-4)
        assert_allclose(dynamics.loss[-1], -np.log(own(p, y)), rtol=1e-4, atol=1e-5)
        assert_allclose(
            dynamics.error_norm[-1], np.linalg.norm(p - np.eye(3)[y], axis=1), atol=1e-5
        )
    others = np.where(np.eye(3, dtype=bool)[y], -np.inf, z).max(axis=-1)
    margins = np.array([own(m, y) for m in z]) - others
    assert_allclose(dynamics.margin[-1], margins.mean(axis=0), rtol=1e-4, atol=1e-4)


def test_the_margin_of_two_classes_is_the_decision(binary):
    X, y = binary
    clf = small().fit(X, y)
    sign = np.where(y == "yes", 1, -1)
    assert_allclose(clf.dynamics_.margin[-1], sign * clf.decision_function(X), rtol=1e-4)


def test_a_loss_that_is_out_of_range_stays_finite(iris):
    X, y = iris
    clf = small(loss="ce", lr=50.0, lr_schedule="constant").fit(X, y)
    assert clf.dynamics_.loss.max() > 50
    assert np.isfinite(clf.dynamics_.loss).all()


def test_members_that_train_on_a_row_are_averaged(noisy_digits):
    X, y, _ = (a[:200] for a in noisy_digits)
    clf, logits, p = spied(X, y, cross_fit=3, loss="ce", max_epochs=5)
    unseen = left_out(clf, p, y)
    seen = np.arange(4)[:, None] != unseen
    assert (seen.sum(axis=0) == 3).all()
    at = np.arange(len(y)), y
    losses = -np.log(p[:, :, at[0], at[1]])
    others = np.where(np.eye(10, dtype=bool)[y], -np.inf, logits).max(axis=-1)
    norms = np.linalg.norm(p - np.eye(10)[y], axis=-1)
    for name, values in {
        "loss": losses,
        "margin": logits[:, :, at[0], at[1]] - others,
        "error_norm": norms,
    }.items():
        expected = (values * seen).sum(axis=1) / 3
        assert_allclose(getattr(clf.dynamics_, name), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strictness", [0, 0.5, 4])
def test_mean_probabilities_are_weighted_by_accuracy_out_of_fold(
    noisy_digits, monkeypatch, strictness
):
    monkeypatch.setattr(recorder_module, "STRICTNESS", strictness)
    X, y, _ = (a[:200] for a in noisy_digits)
    clf, _, p = spied(X, y, cross_fit=3, loss="ce", max_epochs=10)
    unseen = left_out(clf, p, y)
    seen = np.arange(4)[:, None] != unseen
    predicted = p[:, unseen, np.arange(200)].argmax(axis=-1)
    accuracy = (predicted == y).mean(axis=1)
    errors_below = (accuracy.max() - accuracy) / (1 / (2 * np.sqrt(200)))
    weight = np.exp(-strictness * errors_below)
    assert np.ptp(accuracy) > 0.1
    by_epoch = (p * seen[None, :, :, None]).sum(axis=1) / 3
    expected = np.average(by_epoch, axis=0, weights=weight)
    assert_allclose(clf.dynamics_.mean_proba, expected, atol=1e-4)
    if strictness == 0:
        assert_allclose(clf.dynamics_.mean_proba, by_epoch.mean(axis=0), atol=1e-4)


def test_mean_probabilities_without_folds_are_plain_means(iris):
    clf, _, p = spied(*iris, n_members=2)
    assert_allclose(clf.dynamics_.mean_proba, p.mean(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("params", [{}, {"cross_fit": 2}], ids=str)
def test_rows_without_label_are_nan(partly_labelled, params):
    X, y, known = partly_labelled
    clf = small(strategy="pseudo_label", **params).fit(X, y)
    for array in arrays(clf.dynamics_.take(known)):
        assert np.isfinite(array).all()
    for array in arrays(clf.dynamics_.take(~known)):
        assert np.isnan(array).all()
    p = clf.oof_proba_ if params else clf.predict_proba(X)
    issues = find_label_issues(y[known], p[known], dynamics=clf.dynamics_.take(known), n_issues=3)
    assert len(issues) == 3


def test_rows_that_nobody_trains_on_get_the_mean_of_all_members(iris, monkeypatch):
    monkeypatch.setattr(recorder_module, "STRICTNESS", 0)
    X, y = iris
    weight = np.ones(150)
    weight[::10] = 0
    spy = Spy()
    clf = small(cross_fit=3, callbacks=[spy]).fit(X, y, sample_weight=weight)
    p = spy.proba()[:, :, ::10]
    some = clf.dynamics_.take(np.arange(0, 150, 10))
    assert_allclose(some.loss, -np.log(p[:, :, np.arange(15), y[::10]]).mean(axis=1), rtol=1e-3)
    assert_allclose(some.mean_proba, p.mean(axis=(0, 1)), atol=1e-5)
    held = small(cross_fit=3, early_stopping=True, loss="ce").fit(X, y).dynamics_
    assert all(np.isfinite(array).all() for array in arrays(held))


def test_wrong_labels_are_learned_late(noisy_digits):
    X, y, wrong = noisy_digits
    clf = small(loss="ce", hidden=(64,), max_epochs=24, cross_fit=2).fit(X, y)
    loss = clf.dynamics_.loss
    middle = loss[6:18]
    assert (middle[:, wrong].mean(axis=1) > 2 * middle[:, ~wrong].mean(axis=1)).all()
    assert loss[-1, wrong].mean() < loss[12, wrong].mean()
    assert roc_auc_score(wrong, -clf.dynamics_.aum()) > 0.9
    assert roc_auc_score(wrong, clf.dynamics_.el2n()) > 0.9
    issues = find_label_issues(y, clf.oof_proba_, dynamics=clf.dynamics_, n_issues=100)
    assert wrong[issues.rows].mean() > 0.95


# What it leaves alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [False, 2])
@pytest.mark.parametrize("module", ["mlp", "nested_mlp"])
def test_tracking_changes_no_prediction(iris, early_stopping, module):
    X, y = iris
    options = {"dropout": 0.2, "batch_size": 40, "cross_fit": 2, "strategy": "mixup"}
    options |= {"early_stopping": early_stopping, "module": module}
    tracked, plain = (small(track_dynamics=t, **options).fit(X, y) for t in (True, False))
    assert_array_equal(tracked.predict_proba(X), plain.predict_proba(X))
    assert_array_equal(tracked.oof_proba_, plain.oof_proba_)
    assert tracked.dynamics_.n_epochs == len(tracked.history_) == len(plain.history_)
    assert not hasattr(plain, "dynamics_")


@pytest.mark.parametrize("epoch", [1, 4])
def test_an_interrupted_fit_keeps_the_epochs_before(iris, epoch):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == epoch:
                raise KeyboardInterrupt

    clf = small(callbacks=[Interrupt()])
    with pytest.warns(UserWarning, match=f"interrupted in epoch {epoch} of 8"):
        clf.fit(*iris)
    plain = small().fit(*iris)
    assert_array_equal(clf.dynamics_.loss, plain.dynamics_.loss[: epoch - 1])
    assert np.isnan(clf.dynamics_.mean_proba).all() == (epoch == 1)


def test_a_new_fit_forgets_the_former(iris):
    clf = small().fit(*iris)
    assert hasattr(clf, "dynamics_")
    clf.set_params(track_dynamics=False).fit(*iris)
    assert not hasattr(clf, "dynamics_")
    again = clone(clf.set_params(track_dynamics=True)).fit(*iris).dynamics_
    for one, other in zip(arrays(again), arrays(small().fit(*iris).dynamics_), strict=True):
        assert_array_equal(one, other)


def test_pickles_once(noisy_digits):
    X, y, _ = noisy_digits
    clf = small(max_epochs=20).fit(X, y)
    size = sum(array.nbytes for array in arrays(clf.dynamics_))
    text = pickle.dumps(clf)
    alone = pickle.dumps(small(max_epochs=20, track_dynamics=False).fit(X, y))
    assert len(text) - len(alone) < 1.2 * size
    for one, other in zip(arrays(pickle.loads(text).dynamics_), arrays(clf.dynamics_), strict=True):
        assert_array_equal(one, other)
    callbacks = [c for _, c in clf.net_.callbacks_ if isinstance(c, DynamicsRecorder)]
    assert [vars(c).keys() & {"data_", "share_", "unseen_", "proba_"} for c in callbacks] == [set()]


def test_rows_may_be_many_sparse_or_a_table(iris, monkeypatch):
    X, y = iris
    whole = small(cross_fit=2).fit(X, y).dynamics_
    frame = small(cross_fit=2).fit(pd.DataFrame(X, columns=list("abcd")), y).dynamics_
    monkeypatch.setattr(net_module, "CHUNK", 37)
    parts = small(cross_fit=2).fit(X, y).dynamics_
    for one, *others in zip(arrays(whole), arrays(frame), arrays(parts), strict=True):
        for other in others:
            assert_allclose(one, other, atol=1e-5)
    rare = small(cross_fit=2).fit(sparse.csr_array(X), y).dynamics_
    dense = small(cross_fit=2, preprocess=None).fit(X, y).dynamics_
    alike = small(cross_fit=2, preprocess=None).fit(sparse.csr_array(X), y).dynamics_
    assert rare.loss.shape == whole.loss.shape
    assert_allclose(dense.loss, alike.loss, atol=1e-4)


def test_tracking_is_on_or_off(iris):
    with pytest.raises(
        ValueError, match=r"'track_dynamics' parameter .* must be an instance of 'bo"
    ):
        small(track_dynamics="yes").fit(*iris)
