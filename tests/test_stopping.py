"""When a fit stops, and which epoch it keeps."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping, EpochScoring
from skorch.history import History

from robustclf import RobustClassifier
from robustclf.noise import noise_corrected_accuracy, pair_transition, uniform_transition
from robustclf.stopping import (
    AccuracyStopping,
    NoiseCorrectedStopping,
    PredictionChangeStopping,
    make_stopping,
)

PAIR = pair_transition(0.2, n_classes=10)
RULES = {
    "accuracy": (AccuracyStopping, "valid_acc", 1),
    "corrected": (lambda p=None: NoiseCorrectedStopping(PAIR, p), "valid_acc_corrected", 1),
    "change": (PredictionChangeStopping, "prediction_change", -1),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def small(**params):
    defaults = {"hidden": (16,), "max_epochs": 20, "lr": 0.05, "dropout": 0.0, "random_state": 0}
    return RobustClassifier(**{"loss": "ce", "lr_schedule": "constant"} | defaults | params)


class Spy(Callback):
    """Keeps the data, and weights and predictions after each epoch."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.data, self.weights, self.trained, self.held, self.proba = X, [], [], [], []
        self.indices = set()

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if training:
            self.indices.update(batch.index.tolist())

    def predictions(self, net, x):
        return torch.cat([net.mean_proba(z) for z in net.logits(x)]).argmax(-1).numpy()

    def on_epoch_end(self, net, **kwargs):
        state = net.module_.state_dict() | net.criterion_.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})
        rows = self.data.rows.numpy()
        self.trained.append(self.predictions(net, self.data.x[rows]))
        if self.data.x_valid is not None:
            self.held.append(self.predictions(net, self.data.x_valid))


def spied(X, y, **params):
    fit = {k: params.pop(k) for k in ("sample_weight", "X_val", "y_val") if k in params}
    spy = Spy()
    return small(callbacks=[spy], **params).fit(X, y, **fit), spy


@pytest.fixture(scope="module")
def digits(noisy_digits):
    return [a[:500] for a in noisy_digits[:2]]


def weights_of(clf):
    return clf.net_.module_.state_dict() | clf.net_.criterion_.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


# Which epoch is kept ----------------------------------------------------------------------------


@every_rule
def test_the_weights_of_the_best_epoch_come_back(digits, rule):
    make, quantity, sign = RULES[rule]
    X, y = digits
    clf, spy = spied(X, y, early_stopping=make(None), max_epochs=25)
    scores = clf.history_[:, quantity]
    best = int(np.argmax(np.multiply(sign, scores)))
    assert len(scores) == 25
    assert 0 < best < 24
    assert same(weights_of(clf), spy.weights[best])
    assert not same(weights_of(clf), spy.weights[-1])
    if rule != "change":
        kept = spy.predictions(clf.net_, spy.data.x_valid)
        assert_array_equal(kept, spy.held[best])
        labels = spy.data.y_valid.numpy()
        score = np.mean(kept == labels)
        if rule == "corrected":
            score = noise_corrected_accuracy(labels, kept, PAIR, classes=range(10))
        assert score == pytest.approx(max(scores), abs=1e-6)


@every_rule
@pytest.mark.parametrize("patience", [1, 4])
def test_patience_ends_the_fit_without_a_warning(digits, rule, patience):
    make, quantity, sign = RULES[rule]
    X, y = digits
    clf, spy = spied(X, y, early_stopping=make(patience), max_epochs=80)
    scores = np.multiply(sign, clf.history_[:, quantity])
    assert len(scores) < 80
    assert np.argmax(scores) == len(scores) - 1 - patience
    assert same(weights_of(clf), spy.weights[-1 - patience])
    assert clf.net_.interrupted_ is False


def test_a_learned_link_goes_back_with_the_weights(iris):
    X, y = iris
    y = np.where(np.random.default_rng(0).random(150) < 0.3, (y + 1) % 3, y)
    clf, spy = spied(X, y, loss="legendretron", early_stopping=True, max_epochs=30, warm_up=0)
    accuracy = clf.history_[:, "valid_acc"]
    best = int(np.argmax(accuracy))
    assert best < 29
    learned = clf.net_.criterion_.state_dict()
    assert learned
    assert any(not torch.equal(value, spy.weights[-1][name]) for name, value in learned.items())
    assert same(weights_of(clf), spy.weights[best])


@pytest.mark.parametrize("scores", [[-0.5] * 9, [-0.5, -0.50001, -0.50002, -0.50003]])
def test_negative_scores_have_a_best_epoch_too(scores):
    """A corrected accuracy may be below zero, where a relative threshold lets worse ones pass."""
    stopping = NoiseCorrectedStopping(uniform_transition(0.2, 2), patience=3)
    net = SimpleNamespace(
        history=History(),
        module_=torch.nn.Identity(),
        criterion_=torch.nn.Identity(),
        n_classes=2,
        verbose=0,
    )
    stopping.on_train_begin(net, SimpleNamespace(weight_valid=None, y_valid=torch.tensor([0, 1])))

    def train():
        for score in scores:
            net.history.new_epoch()
            net.history.record("epoch", len(net.history))
            net.history.record("valid_acc_corrected", score)
            stopping.on_epoch_end(net)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert stopping.best_epoch_ == 1
    assert len(net.history) == 4


# Accuracy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shorthand", "patience"),
    [(True, None), (np.True_, None), (3, 3), (np.int64(3), 3), (1, 1), (AccuracyStopping, None)],
    ids=repr,
)
def test_what_true_and_integers_stand_for(digits, shorthand, patience):
    X, y = digits
    short = small(early_stopping=shorthand).fit(X, y)
    long = small(early_stopping=AccuracyStopping(patience)).fit(X, y)
    assert_array_equal(short.predict_proba(X), long.predict_proba(X))
    assert len(short.history_) == len(long.history_)


@pytest.mark.parametrize("none", [False, np.False_], ids=repr)
def test_false_holds_nothing_out(iris, none):
    X, y = iris
    clf = small(early_stopping=none).fit(X, y)
    assert make_stopping(none) is None
    assert "valid_acc" not in clf.history_[-1]
    assert_array_equal(clf.predict_proba(X), small().fit(X, y).predict_proba(X))


# Corrected for the noise ------------------------------------------------------------------------


def test_without_noise_the_correction_changes_nothing(digits):
    X, y = digits
    plain = small(early_stopping=True).fit(X, y)
    corrected = small(early_stopping=NoiseCorrectedStopping(np.eye(10))).fit(X, y)
    accuracy = plain.history_[:, "valid_acc"]
    assert_allclose(corrected.history_[:, "valid_acc_corrected"], accuracy, atol=1e-6)
    assert_array_equal(corrected.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_score_is_the_corrected_accuracy_of_the_held_out_rows(digits, weighted, given):
    X, y = digits
    weight = np.random.default_rng(0).integers(0, 4, 400) if weighted else None
    more = {"X_val": X[400:], "y_val": y[400:]} if given else {}
    clf, spy = spied(
        *(X[:400], y[:400]),
        early_stopping=NoiseCorrectedStopping(PAIR),
        sample_weight=weight,
        max_epochs=6,
        validation_fraction=0.2,
        **more,
    )
    labels = spy.data.y_valid.numpy()
    row_weight = None
    if given:
        assert_array_equal(labels, y[400:])
    elif weighted:
        held = [i for i in np.flatnonzero(weight) if i not in spy.indices]
        assert_array_equal(labels, y[held])
        row_weight = weight[held]
        assert np.ptp(row_weight) > 0
    for score, predicted in zip(clf.history_[:, "valid_acc_corrected"], spy.held, strict=True):
        expected = noise_corrected_accuracy(
            labels, predicted, PAIR, classes=range(10), sample_weight=row_weight
        )
        assert score == pytest.approx(expected, abs=1e-5)


def test_held_out_rows_may_lack_a_class(iris):
    X, y = iris
    stopping = NoiseCorrectedStopping(uniform_transition(0.1, 3))
    clf = small(early_stopping=stopping, max_epochs=4).fit(X, y, X_val=X[:60], y_val=y[:60])
    assert np.isfinite(clf.history_[:, "valid_acc_corrected"]).all()


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (np.full((3, 3), 1 / 3), "transition is singular: given labels cannot tell some true cl"),
        (np.eye(2), r"transition is 2 x 2 for 3 classes\."),
        (
            np.ones((3, 3)),
            r"probabilities that sum to 1, got \[1.0, 1.0, 1.0\] with sum 3",
        ),
        ([0.5, 0.5], r"transition must be square, a row for each true class, got shape \(2,\)"),
        (
            np.eye(3) * np.nan,
            r"each row of transition must hold prob.*got \[nan",
        ),
    ],
)
def test_a_matrix_that_is_no_transition_is_refused_before_training(iris, transition, message):
    spy = Spy()
    clf = small(early_stopping=NoiseCorrectedStopping(transition), callbacks=[spy])
    with pytest.raises(ValueError, match=message):
        clf.fit(*iris)
    assert not spy.indices
    assert not hasattr(clf, "net_")


# Changes of the predictions -----------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
def test_changes_by_hand(digits, window):
    X, y = digits
    clf, spy = spied(X, y, early_stopping=PredictionChangeStopping(None, window=window))
    changes = [1.0] + [
        np.mean(now != before)
        for before, now in zip(spy.trained[:-1], spy.trained[1:], strict=True)
    ]
    means = [np.mean(changes[max(0, t + 1 - window) : t + 1]) for t in range(20)]
    assert_allclose(clf.history_[:, "prediction_change"], means, atol=1e-12)
    assert same(weights_of(clf), spy.weights[int(np.argmin(means))])


def test_changes_need_no_held_out_rows(digits):
    X, y = digits
    weight = np.ones(500)
    weight[::7] = 0
    clf, spy = spied(X, y, early_stopping=PredictionChangeStopping(), sample_weight=weight)
    assert spy.indices == set(np.flatnonzero(weight))
    assert len(spy.trained[0]) == len(spy.indices)
    assert spy.data.x_valid is None
    assert "valid_acc" not in clf.history_[-1]


def test_changes_of_sparse_rows(digits):
    X, y = digits
    clf = small(preprocess=None, early_stopping=PredictionChangeStopping(), max_epochs=6)
    dense = clf.fit(X, y).history_[:, "prediction_change"]
    rare = clf.fit(sparse.csr_array(X), y).history_[:, "prediction_change"]
    assert_allclose(rare, dense, atol=0.01)


def test_changes_with_rows_to_watch(digits):
    X, y = digits
    clf = small(early_stopping=PredictionChangeStopping(None), max_epochs=6)
    watched = clf.fit(X, y, X_val=X[:100], y_val=y[:100]).history_
    assert len(watched[:, "valid_acc"]) == 6
    changes = clf.fit(X, y).history_[:, "prediction_change"]
    assert_array_equal(watched[:, "prediction_change"], changes)


# What it leaves alone, and what goes in its place -------------------------------------------------


@every_rule
def test_instances_are_copied_cloned_and_searched(digits, rule):
    X, y = (a[:300] for a in digits)
    make, quantity, _ = RULES[rule]
    stopping = make(2)
    before = {name: value for name, value in vars(stopping).items() if name != "transition"}
    clf = small(early_stopping=stopping, max_epochs=10)
    first = clf.fit(X, y).predict_proba(X)
    assert_array_equal(clf.fit(X, y).predict_proba(X), first)
    assert clf.early_stopping is stopping
    assert {name: v for name, v in vars(stopping).items() if name != "transition"} == before
    copied = clone(clf)
    assert copied.early_stopping is not stopping
    assert_array_equal(copied.fit(X, y).predict_proba(X), first)
    grid = {"early_stopping__patience": [1, 3]}
    search = GridSearchCV(clf, grid, cv=2, error_score="raise").fit(X, y)
    assert stopping.patience == 2
    best = search.best_estimator_
    assert best.early_stopping.patience == search.best_params_["early_stopping__patience"]
    assert quantity in best.history_[-1]


def test_a_grid_over_rules(digits):
    X, y = (a[:300] for a in digits)
    grid = {"early_stopping": [True, 2, *(make() for make, _, _ in RULES.values())]}
    search = GridSearchCV(small(max_epochs=5), grid, cv=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@every_rule
def test_a_fitted_model_holds_the_weights_once(digits, rule):
    X, y = (a[:300] for a in digits)
    stopped = small(hidden=(300, 300), early_stopping=RULES[rule][0](), max_epochs=5).fit(X, y)
    plain = small(hidden=(300, 300), max_epochs=5).fit(X, y)
    assert len(pickle.dumps(stopped)) < 1.05 * len(pickle.dumps(plain)) + 10_000
    for _, callback in stopped.net_.callbacks_:
        assert not any(isinstance(v, torch.Tensor | dict | list) for v in vars(callback).values())
    loaded = pickle.loads(pickle.dumps(stopped))
    assert_array_equal(loaded.predict_proba(X), stopped.predict_proba(X))
    loaded.fit(X, y)


def test_stopping_of_skorch(digits):
    X, y = digits
    stop = EarlyStopping("valid_acc", patience=3, lower_is_better=False, load_best=True)
    before = dict(vars(stop))
    clf, spy = spied(X, y, early_stopping=stop, max_epochs=60)
    accuracy = clf.history_[:, "valid_acc"]
    assert len(accuracy) < 60
    assert np.argmax(accuracy) == len(accuracy) - 4
    assert same(weights_of(clf), spy.weights[-4])
    assert vars(stop) == before


@every_rule
def test_goes_with_folds_and_members(digits, rule):
    X, y = (a[:300] for a in digits)
    clf = small(cross_fit=2, n_members=2, early_stopping=RULES[rule][0](), strategy="co_teaching")
    clf.fit(X, y)
    assert clf.oof_proba_.shape == (300, 10)
    assert_allclose(clf.predict_proba(X).sum(axis=1), 1, atol=1e-5)


@every_rule
def test_an_interrupted_fit_keeps_the_best_weights(digits, rule):
    class Interrupt(Callback):
        def on_batch_end(self, net, batch=None, training=None, **kwargs):
            if len(net.history) == 9:
                raise KeyboardInterrupt

    X, y = digits
    make, quantity, sign = RULES[rule]
    spy = Spy()
    clf = small(callbacks=[spy, Interrupt()], early_stopping=make(None))
    with pytest.warns(UserWarning, match="interrupted in epoch 9 of 20"):
        clf.fit(X, y)
    best = int(np.argmax(np.multiply(sign, clf.history_[:8, quantity])))
    assert same(weights_of(clf), spy.weights[best])


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, -1, 1.5])
def test_a_window_has_an_epoch(iris, window):
    stopping = PredictionChangeStopping(window=window)
    with pytest.raises(ValueError, match=rf"window must .* \[1, inf\), got {window}"):
        small(early_stopping=stopping).fit(*iris)


@every_rule
@pytest.mark.parametrize("patience", [0, -1, 2.5, np.nan])
def test_patience_has_an_epoch(iris, rule, patience):
    stopping = RULES[rule][0](patience)
    with pytest.raises(ValueError, match=rf"patience must .* \[1, inf\), got {patience}"):
        small(early_stopping=stopping).fit(*iris)


@pytest.mark.parametrize("value", ["yes", 0, -1, 1.5, None])
def test_what_early_stopping_can_be(iris, value):
    message = "'early_stopping' parameter .* an int in the range .* or an object implementing 'on_e"
    with pytest.raises(ValueError, match=message):
        small(early_stopping=value).fit(*iris)


def test_what_skorch_watches_has_to_be_recorded(iris):
    stop = EarlyStopping(patience=2, sink=lambda text: None)
    message = "unknown monitor of early_stopping 'valid_loss', allowed are 'train_loss'"
    with pytest.raises(ValueError, match=message):
        RobustClassifier(loss="gce", early_stopping=stop).fit(*iris)
    loss = EpochScoring("neg_log_loss", name="valid_loss", lower_is_better=False)
    clf = RobustClassifier(loss="gce", early_stopping=stop, callbacks=[loss], max_epochs=3)
    assert len(clf.fit(*iris).history_[:, "valid_loss"]) <= 3


def test_stopping_needs_all_rows_at_once(iris):
    with pytest.raises(ValueError, match="cross_fit, early_stopping and track_dynamics need all"):
        small(early_stopping=PredictionChangeStopping()).partial_fit(*iris)
