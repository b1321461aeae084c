"""Fits that are trained as one stack are the fits that each would be alone."""

import re

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import ParameterSampler
from skorch.callbacks import Callback

from robustclf import (
    RobustClassifier,
    list_losses,
    list_strategies,
    make_loss,
    make_strategy,
)
from robustclf._device import check_precision
from robustclf._lanes import Fit, stands_alone
from robustclf._net import DivergenceError
from robustclf._stack import Stack
from robustclf.losses import BackwardCorrected, ForwardCorrected, Normalized
from robustclf.stopping import NoiseCorrectedStopping, PredictionChangeStopping
from robustclf.strategies import overrides

BASE = {
    "loss": "gce",
    "hidden": (8,),
    "max_epochs": 3,
    "batch_size": 16,
    "precision": "float64",
    "random_state": 0,
}


def name(value):
    """Return a name of a case, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def table(n=100, seed=0):
    """Return rows of three classes that overlap, of which a part have wrong labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    X = rng.normal(size=(n, 5))
    X[:, :3] += 1.5 * np.eye(3)[y]
    return X, np.where(rng.random(n) < 0.2, (y + 1) % 3, y)


X, Y = DATA = table()
FOLDS = [np.arange(64), np.arange(34, 100), np.r_[:40, 70:100]]  # 64, 66 and 70 rows, 4 batches
EVEN = [np.arange(64), np.arange(36, 100)]


ALONE = {}  # what several tests compare with


class Trained:
    """A classifier that was trained in a stack, and the same one trained alone."""

    def __init__(self, clf, rows, told, data):
        self.clf, (X, y) = clf, data
        plain = data is DATA and not told
        self.key = (repr(sorted(clf.get_params().items())), rows.tobytes()) if plain else None
        self.told = {name: value[rows] for name, value in told.items()}
        self.X = X.iloc[rows] if hasattr(X, "iloc") else X[rows]
        self.y = y[rows]
        self.fit = Fit(clf._prepare(self.X, self.y, **self.told))

    def keep(self):
        if self.fit.error is not None:
            raise self.fit.error
        self.clf._keep(self.fit.prepared.fitted())
        return self.clf

    def alone(self):
        if self.key is None:
            return clone(self.clf).fit(self.X, self.y, **self.told)
        if self.key not in ALONE:
            ALONE[self.key] = clone(self.clf).fit(self.X, self.y)
        return ALONE[self.key]

    def difference(self, alone=None):
        """Return the largest difference to ``alone`` of anything that was learned."""
        alone, mine = alone or self.alone(), self.keep()
        assert len(alone.history_) == len(mine.history_)
        pairs = [(mine.predict_proba(self.X), alone.predict_proba(self.X))]
        for name, value in alone.history_[-1].items():
            if isinstance(value, float) and name != "dur":
                pairs.append((mine.history_[:, name], alone.history_[:, name]))
        for name in ("oof_proba_", "label_quality_"):
            assert hasattr(mine, name) == hasattr(alone, name)
            if hasattr(alone, name):
                pairs.append((getattr(mine, name), getattr(alone, name)))
        if hasattr(alone, "dynamics_"):
            pairs += [(v, vars(alone.dynamics_)[k]) for k, v in vars(mine.dynamics_).items()]
        return max(np.abs(np.subtract(a, b, dtype=float)).max() for a, b in pairs)


def prepared(candidates, base, folds=FOLDS, told=None, data=DATA):
    """Return a fit of each candidate on each fold."""
    return [
        Trained(clone(RobustClassifier(**BASE | base | candidate)), rows, told or {}, data)
        for candidate in candidates
        for rows in folds
    ]


def stacked(runs):
    """Train fits of one shape in a stack."""
    assert len({run.fit.shape() for run in runs}) == 1
    assert {stands_alone(run.fit) for run in runs} == {""}
    stack = Stack([run.fit for run in runs])
    n_lanes = len(stack.lanes)
    stack.train()
    stack.finish()
    return n_lanes


def check(candidates, base=None, tolerance=1e-10, **kwargs):
    """Assert that a stack is its fits alone; return its number of lanes."""
    runs = prepared(candidates, base or {}, **kwargs)
    n_lanes = stacked(runs)
    for run in runs:
        assert run.difference() < tolerance
    return n_lanes


# What differs between fits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "n_lanes"),
    [
        ([{}, {"lr": 0.01}, {"lr": 1e-4}], 3),
        ([{}, {"weight_decay": 0.5}, {"weight_decay": 0.0}], 3),
        ([{"loss__q": 0.3}, {"loss__q": 0.7, "lr": 0.01}], 3),
        ([{"loss": "gce"}, {"loss": "ce"}, {"loss": "sce"}], 9),
        ([{"dropout": 0.1}, {"dropout": 0.5}], 3),
        ([{"dropout": 0.0}, {"dropout": 0.3}], 6),
        ([{}, {"random_state": 3}], 6),
        ([{}, {"class_weight": "balanced"}], 3),
        ([{}, {"n_members": 2}, {"n_members": 2, "lr": 0.01}], 6),
        ([{"cross_fit": 3}, {"cross_fit": 3, "lr": 0.01}, {}], 6),
        ([{"n_members": 3}, {"cross_fit": 2}], 6),
        ([{}, {"warm_up": 0.0}, {"warm_up": 0.7}], 9),
        ([{"lr_schedule": "constant"}, {"lr_schedule": "cosine"}, {}], 9),
        ([{"lr_schedule": lambda t: 1 - t}, {}], 6),
        ([{"batch_size": 16}, {"batch_size": 17}], 6),
        ([{"track_dynamics": True}, {"track_dynamics": True, "random_state": 3}], 6),
    ],
    ids=name,
)
def test_fits_of_one_stack_differ_in(candidates, n_lanes):
    assert (
        check(candidates, {"warm_up": 0.25} if "warm_up" not in str(candidates) else {}) == n_lanes
    )


def test_folds_of_one_size_share_a_lane():
    assert check([{}, {"lr": 0.01}, {"loss__q": 0.3}], folds=EVEN) == 1


def test_rows_have_weights():
    weight = np.random.default_rng(0).exponential(size=len(X)) * (np.arange(len(X)) % 9 > 0)
    told = {"sample_weight": weight}
    check([{}, {"lr": 0.01}, {"class_weight": "balanced"}], told=told)
    check([{}, {"lr": 0.01}], {"cross_fit": 2, "n_members": 2}, told=told)


def test_single_precision():
    check([{}, {"lr": 0.01}, {"loss__q": 0.3}], {"precision": "float32"}, tolerance=1e-4)


def test_half_precision():
    try:
        check_precision("bf16", "cpu")
    except ValueError:
        pytest.skip("this CPU has no bfloat16")
    check([{}, {"lr": 0.01}], {"precision": "bf16"}, tolerance=0.05)


@pytest.mark.parametrize(
    "base",
    [
        {"module": "resnet"},
        {"numeric_embedding": "periodic"},
        {"hidden": (8, 6), "activation": "tanh"},
    ],
    ids=name,
)
def test_networks(base):
    check([{}, {"lr": 0.01, "dropout": 0.2}, {"dropout": 0.0}], base)


def test_bins_that_depend_on_the_fold_are_of_another_shape():
    runs = prepared([{}, {"lr": 0.01}], {"numeric_embedding": "piecewise_linear"})
    assert len({run.fit.shape() for run in runs}) == len(FOLDS)
    assert stacked(runs[::3]) == 1
    assert max(run.difference() for run in runs[::3]) < 1e-10


def test_categories_and_missing_values_in_a_data_frame():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(X, columns=list("abcde")).mask(rng.random(X.shape) < 0.1)
    frame["f"] = np.array(["x", "y", "z"])[(Y + rng.integers(2, size=len(Y))) % 3]
    frame["f"] = frame["f"].astype("category")
    candidates = [{}, {"lr": 0.01}, {"strategy": "mixup"}, {"strategy": "feature_swap"}]
    check(candidates, data=(frame, Y))


# Losses -------------------------------------------------------------------------------------------

T = np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.0, 0.1, 0.9]])


def settings_of(alias):
    """Return two settings of the hyper-parameters that can be searched."""
    space = make_loss(alias).search_space
    drawn = ParameterSampler(space, 2, random_state=0) if space else []
    return [{f"loss__{name}": value for name, value in setting.items()} for setting in drawn]


@pytest.mark.parametrize("alias", [alias for alias in list_losses() if settings_of(alias)])
def test_parameters_of_every_loss(alias):
    base = {"loss": alias, "warm_up": 0.0, "max_epochs": 2}
    check(settings_of(alias), base, folds=EVEN[:1])


def gce(q):
    return make_loss("gce", q=q)


@pytest.mark.parametrize(
    ("losses", "n_lanes"),
    [
        ([Normalized(make_loss("focal", gamma=g)) for g in (0.3, 0.9)], 1),
        ([make_loss("clipped", theta=t, loss=gce(q)) for t, q in ((0.2, 0.7), (0.4, 0.3))], 1),
        ([gce(0.2) + 2 * make_loss("mae"), 0.5 * gce(0.7) + make_loss("mae")], 1),
        ([gce(0.2) + make_loss("mae"), make_loss("mae") + gce(0.2)], 2),
        ([gce(0.2), Normalized(gce(0.2))], 2),
        ([ForwardCorrected("ce", T), ForwardCorrected("ce", T.copy())], 1),
        ([ForwardCorrected("ce", T), ForwardCorrected("ce", np.eye(3))], 2),
        ([BackwardCorrected(gce(0.2), T.tolist()), BackwardCorrected(gce(0.7), T.tolist())], 1),
        ([BackwardCorrected("ce", T.tolist()), BackwardCorrected("ce", np.eye(3).tolist())], 2),
        ([BackwardCorrected("ce", torch.tensor(T)), BackwardCorrected("ce", torch.tensor(T))], 1),
        ([make_loss("logit_clipped", p=p) for p in (2.0, 3.0)], 2),
        ([make_loss("gjs", n_views=n) for n in (2, 3)], 2),
        ([make_loss("evidential", annealing_epochs=n) for n in (0, 2, 3)], 1),
    ],
    ids=name,
)
def test_losses_of_a_lane_differ_in_numbers(losses, n_lanes):
    candidates = [{"loss": loss} for loss in losses]
    assert check(candidates, {"warm_up": 0.0}, folds=EVEN) == n_lanes


@pytest.mark.parametrize("alias", ["legendretron", "ensloss"])
def test_learned_and_stochastic_losses_are_lanes_of_their_own(alias):
    candidates = [{}, {"lr": 0.01}, {"weight_decay": 0.5, "n_members": 2}]
    assert check(candidates, {"loss": alias, "warm_up": 0.25}) == 9


def test_learned_losses_stay_when_others_stop():
    candidates = [{"lr": 1e-7}, {"lr": 0.1}, {"lr": 0.03, "n_members": 2}, {"loss": "ce"}]
    check(candidates, {"loss": "legendretron", "early_stopping": 1, "max_epochs": 10})


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        2,
        True,
        NoiseCorrectedStopping(T, patience=2),
        PredictionChangeStopping(patience=1, window=1),
    ],
    ids=name,
)
def test_early_stopping_of_each_fit(rule):
    candidates = [{"lr": 0.03}, {"lr": 1e-7}, {"lr": 1e-6}, {"lr": 0.01, "dropout": 0.0}]
    runs = prepared(candidates, {"early_stopping": rule, "max_epochs": 10})
    stacked(runs)
    assert max(run.difference() for run in runs) < 1e-10
    lengths = {len(run.clf.history_) for run in runs}
    assert lengths == {10} if rule is True else len(lengths) > 2


def test_a_stack_is_cut_to_those_that_train_on():
    candidates = [{"lr": 1e-7, "early_stopping": 1}, {"lr": 1e-6, "early_stopping": 1}, {}]
    runs = prepared(candidates, {})
    stack = Stack([run.fit for run in runs])
    stack.train(2)
    going = [run.fit for run in runs if not run.fit.done]
    assert len(going) == 3
    assert {id(fit) for fit in going} == {id(fit) for fit in stack.fits}
    assert {p.shape[0] for p in stack.module.parameters()} == {len(going)}


def test_fits_without_dropout_that_are_left_over():
    candidates = [{"lr": 1e-7, "early_stopping": 1}, {"dropout": 0.0}]
    assert check(candidates, {"max_epochs": 5}, folds=EVEN[:1]) == 2


@pytest.mark.parametrize("strategy", ["elr", "co_teaching"])
def test_strategies_with_a_memory_and_early_stopping(strategy):
    base = {"strategy": strategy, "early_stopping": 1, "max_epochs": 8, "loss": "ce"}
    assert check([{"lr": 1e-7}, {"lr": 1e-6}, {"lr": 0.01}], base) == 3


@pytest.mark.parametrize(
    "base",
    [{"loss": "ce", "strategy": s} for s in ("elr", "ogc", "small_loss")]
    + [{"loss": "legendretron"}],
    ids=name,
)
def test_a_fit_that_has_stopped_stays_as_it_is_while_others_train(base):
    candidates = [{"lr": 1e-7, "early_stopping": 1}, {}, {"random_state": 1}]
    check(candidates, {"max_epochs": 6, "warm_up": 0.0} | base, folds=EVEN)


@pytest.mark.parametrize(
    ("optimizer", "loss"), [("adamw", "legendretron"), ("sgd", "ce"), ("sam", "ce")]
)
def test_dropped_fits_are_not_missed(optimizer, loss):
    seeds = [{"random_state": seed} for seed in range(4)]
    runs = prepared(seeds, {"optimizer": optimizer, "loss": loss}, folds=EVEN)
    stack = Stack([run.fit for run in runs])
    stack.train(2)
    stack.hand_over()
    kept = runs[1:3] + runs[5:6]
    stack.keep([run.fit for run in kept])
    stack.train()
    stack.finish()
    assert max(run.difference() for run in kept) < 1e-10


# Optimisers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        {"optimizer": "sgd", "optimizer__momentum": 0.9, "optimizer__nesterov": True},
        {"optimizer": "adam", "optimizer__amsgrad": True},
        {"optimizer": "nadam"},
        {"optimizer": "radam", "optimizer__decoupled_weight_decay": True},
        {"optimizer": "rmsprop", "optimizer__momentum": 0.5},
        {"optimizer__betas": (0.5, 0.9)},
    ],
    ids=name,
)
def test_optimisers_with_a_rate_for_each_member(base):
    candidates = [{}, {"lr": 0.03}, {"weight_decay": 0.9}]
    assert check(candidates, base | {"early_stopping": 2, "max_epochs": 6}) == 3


@pytest.mark.parametrize("alias", ["sam", "asam", "awp", "momo", "momo_adam", "fadam"])
def test_optimisers_that_know_of_members(alias):
    check([{}, {"loss": "ce"}, {"loss__q": 0.3}], {"optimizer": alias}, folds=EVEN)
    runs = prepared([{}, {"lr": 0.01}], {"optimizer": alias}, folds=EVEN[:1])
    assert len({run.fit.shape() for run in runs}) == 2


def test_parameters_of_an_optimiser_make_another_stack():
    candidates = [{}, {"optimizer__betas": (0.5, 0.9)}, {"optimizer__amsgrad": True}]
    assert len({run.fit.shape() for run in prepared(candidates, {}, folds=EVEN[:1])}) == 3


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"optimizer": torch.optim.Adafactor}, "optimizer Adafactor"),
        ({"optimizer": "sam", "optimizer__base": torch.optim.Adafactor}, "optimizer SAM"),
        ({"optimizer": "sam", "loss": "legendretron"}, "a learned loss with optimizer SAM"),
    ],
)
def test_optimisers_that_couple_members_stand_alone(params, reason):
    (run,) = prepared([params], {}, folds=EVEN[:1])
    assert stands_alone(run.fit) == reason


# Strategies ---------------------------------------------------------------------------------------

UNTRAINED = "ignore:strategy 'transition':UserWarning"  # networks of few steps
EARLY = {  # what a strategy needs to act within a few epochs
    "error_norm": {"threshold": 0.5, "start_epoch": 0},
    "neighbour_denoise": {"every": 1},
    "ogc": {"queue_size": 16, "every": 2},
    "pseudo_label": {"threshold": 0.3},
    "refurbish": {"warm_up": 1},
    "selc": {"warm_up": 1},
    "small_loss": {"warm_up": 1},
}


def with_strategy(alias):
    params = {f"strategy__{name}": value for name, value in EARLY.get(alias, {}).items()}
    told = {"groups": np.arange(len(X)) % 3} if "groups" in make_strategy(alias).needs else {}
    base = {"strategy": alias, "loss": "ce", "warm_up": 0.0, "max_epochs": 5, "lr": 0.01}
    return base | params, told


def can_be_stacked(alias):
    strategy = make_strategy(alias)
    inside = {"network", "features"} & set(strategy.needs)
    return not inside and not overrides(strategy, "epoch_rows")


@pytest.mark.filterwarnings(UNTRAINED)
@pytest.mark.parametrize("alias", [a for a in list_strategies() if can_be_stacked(a)])
def test_every_strategy_that_can_be_stacked(alias):
    base, told = with_strategy(alias)
    runs = prepared([{}, {"lr": 0.02}], base, folds=EVEN, told=told)
    assert stacked(runs) == (1 if make_strategy(alias).stackable else len(runs))
    assert max(run.difference() for run in runs) < 1e-10
    if alias != "pseudo_label":  # has nothing to do where all rows have labels
        own = {k: v for k, v in base.items() if not k.startswith("strategy")}
        plain = RobustClassifier(**BASE | own, n_members=runs[0].fit.net.n_members)
        plain.fit(runs[0].X, runs[0].y)
        changed = plain.predict_proba(X) - runs[0].clf.predict_proba(X)
        assert np.abs(changed).max() > 1e-6


@pytest.mark.parametrize("alias", [a for a in list_strategies() if not can_be_stacked(a)])
def test_strategies_that_read_the_network_in_a_step_stand_alone(alias):
    base, told = with_strategy(alias)
    (run,) = prepared([{}], base, folds=EVEN[:1], told=told)
    assert stands_alone(run.fit) == f"strategy {make_strategy(alias)!r}"


@pytest.mark.parametrize("strategy", ["mixup", "pseudo_label", "refurbish"])
def test_guesses_for_rows_without_label_stand_alone(strategy):
    y = np.where(np.arange(len(Y)) % 3 == 0, -1, Y)
    (run,) = prepared([{"strategy": strategy}], {}, folds=EVEN[:1], data=(X, y))
    assert "rows without label" in stands_alone(run.fit)


def test_strategies_of_different_parameters_are_different_lanes():
    candidates = [{}, {"strategy__alpha": 2.0}, {"strategy": "elr"}, {"strategy": None}]
    assert check(candidates, {"strategy": "mixup", "loss": "ce"}, folds=EVEN) == 4


def test_strategies_that_cannot_be_pickled_take_part():
    class Local(type(make_strategy("label_smoothing"))):
        def __init__(self, epsilon=0.1, how=lambda x: x):
            super().__init__(epsilon)
            self.how = how

    assert check([{}, {"lr": 0.01}], {"strategy": Local()}, folds=EVEN[:1]) == 2


def test_what_else_stands_alone():
    class Reader(Callback):
        def on_grad_computed(self, net, **kwargs):
            pass

    reasons = {
        "module Linear": {"module": torch.nn.Linear},
        "module Nested": {"module": "nested_mlp"},
        "a list of strategies": {"strategy": ["mixup", "bootstrap"]},
        "a callback that reads gradients": {"callbacks": [Reader()]},
        "lr_schedule=None": {"lr_schedule": None},
        "sparse rows": {"preprocess": None},
    }
    for reason, params in reasons.items():
        data = (sparse.csr_array(X), Y) if reason == "sparse rows" else DATA
        (run,) = prepared([params], {}, folds=EVEN[:1], data=data)
        assert stands_alone(run.fit).startswith(reason)


# Neighbours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [None, "elr", "co_teaching"])
@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_a_fit_that_diverges_is_alone_with_it(strategy, optimizer):
    wild = {"adamw": {"lr": 1e30}, "sam": {"random_state": 2, "loss": Exploding()}}[optimizer]
    base = {"strategy": strategy, "optimizer": optimizer, "loss": "ce", "warm_up": 0.0}
    runs = prepared([{}, wild, {"random_state": 1}], base, folds=EVEN)
    stacked(runs)
    assert [type(run.fit.error) for run in runs[2:4]] == [DivergenceError] * 2
    with pytest.raises(DivergenceError, match="in epoch") as alone:
        runs[2].alone()
    assert str(runs[2].fit.error) == str(alone.value)
    assert max(run.difference() for run in runs[:2] + runs[4:]) < 1e-10


class Exploding(type(make_loss("ce"))):
    """Cross entropy without end."""

    def of_log_p(self, log_p):
        return log_p * float("nan")


def test_the_generator_of_the_caller_is_left_alone():
    state = torch.random.get_rng_state()
    runs = prepared([{"strategy": "mixup"}, {"loss": "ensloss"}, {"lr": 1e30}], {})
    stacked(runs)
    for run in runs[:6]:
        run.keep()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_callbacks_see_the_network_of_their_epoch():
    class Watcher(Callback):
        def on_train_begin(self, net, **kwargs):
            self.seen_ = []

        def on_epoch_begin(self, net, **kwargs):
            self.seen_.append(float(next(net.module_.parameters()).detach().sum()))

        def on_epoch_end(self, net, **kwargs):
            self.seen_.append(float(next(net.module_.parameters()).detach().sum()))

    runs = prepared([{}, {"lr": 0.03}], {"callbacks": [Watcher()]}, folds=EVEN)
    stacked(runs)
    for run in runs:
        (mine,) = (c.seen_ for _, c in run.keep().net_.callbacks_)
        (alone,) = (c.seen_ for _, c in run.alone().net_.callbacks_)
        assert len(set(mine)) == 4
        assert mine == pytest.approx(alone, abs=1e-10)
