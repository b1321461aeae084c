"""RobustClassifier: what is shown and told during a fit, and how one ends early."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from small_classifier import small

from robustclf._net import DivergenceError

# Words, callbacks and interruptions -----------------------------------------------------------


@pytest.mark.parametrize("validated", [False, True])
def test_a_progress_bar_shows_epoch_loss_and_accuracy(iris, capsys, validated):
    X, y = iris
    more = {"X_val": X, "y_val": y} if validated else {}
    clf = small(verbose=1, max_epochs=3).fit(X, y, **more)
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.rpartition("\r")[2]
    assert "3/3" in last
    assert "epoch" in last
    assert f"loss={clf.history_[-1, 'train_loss']:.4f}" in last
    key = "valid_acc" if validated else "train_acc"
    assert f"accuracy={clf.history_[-1, key]:.3f}" in last
    assert 0.2 < clf.history_[-1, key] <= 1


@pytest.mark.parametrize("params", [{}, {"early_stopping": 1}, {"cross_fit": 2}])
def test_quiet_unless_asked(iris, capfd, params):
    clf = small(**params).fit(*iris)
    clf.predict(iris[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("strategy", ["mixup", "co_teaching", "label_smoothing"])
def test_the_bar_goes_with_strategies(iris, capsys, strategy):
    small(verbose=1, strategy=strategy, cross_fit=2).fit(*iris)
    assert "accuracy=" in capsys.readouterr().err


class Recorder(Callback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.seen.append("train_begin")

    def on_train_end(self, net, X=None, y=None, **kwargs):
        self.seen.append("train_end")

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.seen.append("epoch_begin")

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.seen.append("epoch_end")

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.seen.append("batch_begin")

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        self.seen.append("batch_end")

    def on_grad_computed(self, net, named_parameters, batch=None, **kwargs):
        assert all(p.grad is not None for _, p in named_parameters)
        self.seen.append("grad")


def test_callbacks_are_notified_in_order(iris):
    recorder = Recorder()
    small(callbacks=[recorder], max_epochs=2, batch_size=75).fit(*iris)
    batch = ["batch_begin", "grad", "batch_end"]
    epoch = ["epoch_begin", *batch, *batch, "epoch_end"]
    assert recorder.seen == ["train_begin", *epoch, *epoch, "train_end"]


def test_scoring_callback_on_validation_rows(iris):
    X, y = iris
    scores = [
        EpochScoring("accuracy", lower_is_better=False, name="cached"),
        EpochScoring("accuracy", lower_is_better=False, name="again", use_caching=False),
        ("named", EpochScoring("neg_log_loss", lower_is_better=False, name="log_loss")),
    ]
    clf = small(callbacks=scores, n_members=2).fit(X, y, X_val=X[::2], y_val=y[::2])
    last = clf.history_[-1]
    assert last["cached"] == last["again"] == pytest.approx(last["valid_acc"])
    given = clf.predict_proba(X[::2])[np.arange(75), y[::2]]
    assert last["log_loss"] == pytest.approx(np.log(given).mean(), abs=1e-4)


def test_scoring_callback_on_training_batches(iris):
    score = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="train")
    clf = small(callbacks=[score], lr=1e-9, batch_size=50).fit(*iris)
    assert clf.history_[-1, "train"] == pytest.approx(clf.score(*iris))


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_gradient_clipping(iris, optimizer):
    options = {
        "optimizer": optimizer,
        "lr": 1.0,
        "lr_schedule": "constant",
        "weight_decay": 0,
        "max_epochs": 1,
        "batch_size": 200,
    }
    if optimizer == "sam":
        options["optimizer__base"] = "sgd"
    moved = []

    class Distance(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            self.start = torch.nn.utils.parameters_to_vector(net.module_.parameters()).detach()

        def on_train_end(self, net, X=None, y=None, **kwargs):
            end = torch.nn.utils.parameters_to_vector(net.module_.parameters()).detach()
            moved.append((end - self.start).norm().item())

    small(callbacks=[GradientNormClipping(1e-3), Distance()], **options).fit(*iris)
    small(callbacks=[Distance()], **options).fit(*iris)
    assert moved[0] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1] > 10 * moved[0]


def test_learning_rate_of_a_callback(iris):
    scheduler = LRScheduler("StepLR", step_size=1, gamma=0.5)
    clf = small(callbacks=[scheduler], lr_schedule=None, lr=0.1, max_epochs=3).fit(*iris)
    assert clf.history_[:, "lr"] == pytest.approx([0.1, 0.05, 0.025])


def test_early_stopping_of_the_user_is_no_interruption(iris):
    stop = EarlyStopping("train_loss", patience=2, threshold=10.0, sink=lambda text: None)
    clf = small(callbacks=[stop], max_epochs=20).fit(*iris)
    assert len(clf.history_) < 20


class Interrupt(Callback):
    def __init__(self, epoch, hook):
        self.epoch, self.hook = epoch, hook

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        if self.hook == "epoch" and len(net.history) == self.epoch:
            raise KeyboardInterrupt

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if self.hook == "batch" and len(net.history) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("hook", ["epoch", "batch"])
@pytest.mark.parametrize("epoch", [1, 5])
@pytest.mark.parametrize(
    "params",
    [{}, {"early_stopping": True}, {"cross_fit": 2}, {"strategy": "elr"}, {"verbose": 1}],
    ids=str,
)
def test_an_interrupted_fit_leaves_a_usable_model(iris, hook, epoch, params):
    X, y = iris
    clf = small(loss="ce", callbacks=[Interrupt(epoch, hook)], batch_size=50, **params)
    with pytest.warns(UserWarning, match=f"interrupted in epoch {epoch} of 8; the model keeps"):
        clf.fit(X, y)
    assert len(clf.history_) == epoch
    assert_allclose(clf.predict_proba(X).sum(1), 1, atol=1e-5)
    assert_array_equal(pickle.loads(pickle.dumps(clf)).predict(X), clf.predict(X))
    assert hasattr(clf, "oof_proba_") is ("cross_fit" in params)


def test_an_interrupted_chunk_warns(iris):
    clf = small(callbacks=[Interrupt(1, "epoch")])
    with pytest.warns(UserWarning, match="partial_fit was interrupted; the model keeps"):
        clf.partial_fit(*iris)
    clf.partial_fit(*iris)
    assert len(clf.history_) == 2


@pytest.mark.parametrize("loss", ["ce", "gce"])
def test_divergence_names_the_epoch_and_what_to_try(noisy_digits, loss):
    X, y, _ = noisy_digits
    clf = small(loss=loss, lr=1e30, lr_schedule="constant", batch_size=100)
    message = r"The training loss became (nan|inf) in epoch \d of 8 \(lr=1e\+30, loss=.*smaller lr"
    with pytest.raises(DivergenceError, match=message):
        clf.fit(X, y)
    assert not hasattr(clf, "net_")
