"""RobustSearchCV is GridSearchCV or RandomizedSearchCV, but for how the fits are trained."""

import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch.utils.data import TensorDataset

from robustclf import ArraySource, RobustClassifier
from robustclf._net import DivergenceError
from robustclf._stack import Stack
from robustclf.model_selection import RobustSearchCV
from robustclf.noise import noise_corrected_accuracy, uniform_transition
from robustclf.strategies import Strategy

CV = KFold(3, shuffle=True, random_state=0)
NAMES = np.array(["ant", "bee", "cat"])


def name(value):
    """Return a name of a case, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def table(n=160):
    """Return rows of three classes that overlap, of which a part have wrong labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=n)
    X = rng.normal(size=(n, 5))
    X[:, :3] += 2 * np.eye(3)[y]
    return X, np.where(rng.random(n) < 0.2, (y + 1) % 3, y)


X, Y = table()
WEIGHT = np.random.default_rng(1).exponential(size=len(X))
GROUPS = np.arange(len(X)) % 7


def small(**params):
    given = {"hidden": (8,), "max_epochs": 3, "batch_size": 32, "lr": 0.02, "random_state": 0}
    return RobustClassifier(**given | {"loss": "gce", "precision": "float64"} | params)


def same(mine, other, data=(X, Y), **fit_params):
    """Fit both searches and assert that all but their times are equal."""
    mine.fit(*data, **fit_params)
    other.fit(*data, **fit_params)
    results, expected = mine.cv_results_, other.cv_results_
    assert set(results) == set(expected)
    assert results["params"] == expected["params"]
    for name, values in expected.items():
        if name.startswith(("split", "mean", "std", "rank")) and "time" not in name:
            np.testing.assert_allclose(results[name], values, atol=1e-12, err_msg=name)
        elif name.startswith("param_"):
            assert results[name].tolist() == values.tolist()
    assert mine.n_splits_ == other.n_splits_
    assert mine.multimetric_ == other.multimetric_
    for name in ("best_index_", "best_params_", "best_score_"):
        assert hasattr(mine, name) == hasattr(other, name)
        assert getattr(mine, name, None) == getattr(other, name, None)
    assert hasattr(mine, "best_estimator_") == hasattr(other, "best_estimator_")
    if hasattr(other, "best_estimator_"):
        assert (mine.predict(data[0]) == other.predict(data[0])).all()
        assert (mine.classes_ == other.classes_).all()
    return mine


def same_as_grid(estimator, grid, data=(X, Y), cv=CV, fit_params=None, **params):
    mine = RobustSearchCV(estimator, grid, cv=cv, **params)
    return same(mine, GridSearchCV(estimator, grid, cv=cv, **params), data, **fit_params or {})


GRID = {"lr": [0.001, 0.02], "loss": ["ce", "gce"], "dropout": [0.0, 0.3]}


# The interface of GridSearchCV --------------------------------------------------------------------


def test_a_grid_is_searched_as_scikit_learn_does():
    search = same_as_grid(small(), GRID, return_train_score=True)
    assert search.groups_ == ["24 fits of 1 network in one stack"]


def test_default_splits_are_stratified_and_labels_can_be_strings():
    same(*(kind(small(), {"lr": [0.001, 0.02]}) for kind in (RobustSearchCV, GridSearchCV)))
    same_as_grid(small(), {"lr": [0.001, 0.02]}, data=(X, NAMES[Y]), cv=3)


def test_a_list_of_grids():
    same_as_grid(small(), [{"lr": [0.001, 0.02]}, {"loss": ["gce"], "loss__q": [0.3, 0.9]}])


@pytest.mark.parametrize(
    "params",
    [
        {"scoring": "balanced_accuracy"},
        {"scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss"},
        {"scoring": {"a": "accuracy", "b": "f1_macro"}, "refit": False},
        {"scoring": lambda clf, X, y: float((clf.predict(X) == y).mean())},
        {"scoring": lambda clf, X, y: {"a": clf.score(X, y), "b": 1.0}, "refit": "a"},
        {"refit": lambda results: int(results["rank_test_score"].argmax())},
        {"refit": False},
    ],
    ids=["name", "several", "several, no refit", "callable", "callable dict", "refit", "no refit"],
)
def test_scoring_and_refit(params):
    same_as_grid(small(), {"lr": [0.001, 0.02, 0.1]}, **params)


def test_several_scores_need_a_name_to_refit():
    with pytest.raises(ValueError, match="refit"):
        RobustSearchCV(small(), {"lr": [0.1]}, scoring=["accuracy", "f1_macro"]).fit(X, Y)


@pytest.mark.parametrize("n_iter", [None, 4])
def test_random_search_draws_the_candidates_of_scikit_learn(n_iter):
    space = {"lr": loguniform(1e-4, 0.1), "loss": ["ce", "gce"], "weight_decay": [0.0, 0.1]}
    mine = RobustSearchCV(small(), param_distributions=space, n_iter=n_iter, cv=CV, random_state=5)
    n = 10 if n_iter is None else n_iter
    same(mine, RandomizedSearchCV(small(), space, n_iter=n, cv=CV, random_state=5))


def test_data_frames():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcde"))
    frame["colour"] = np.array(["red", "blue", None], dtype=object)[Y]
    labels = pd.Series(NAMES[Y], index=np.arange(len(Y))[::-1])
    search = same_as_grid(small(), {"lr": [0.001, 0.02]}, data=(frame, labels))
    assert search.feature_names_in_.tolist() == [*"abcde", "colour"]


def test_sample_weights_of_fit_and_of_the_score():
    grid = {"lr": [0.001, 0.02], "class_weight": [None, "balanced"]}
    same_as_grid(small(), grid, fit_params={"sample_weight": WEIGHT})


def test_groups_of_the_splitter():
    same_as_grid(small(), {"lr": [0.001, 0.02]}, cv=GroupKFold(3), fit_params={"groups": GROUPS})


@pytest.mark.parametrize("strategy", ["group_dro", "group_loss_resample"])
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_groups_of_a_strategy(strategy, in_pipeline):
    clf, prefix = small(), ""
    if in_pipeline:
        clf, prefix = Pipeline([("scale", StandardScaler()), ("clf", clf)]), "clf__"
    grid = {f"{prefix}strategy": [strategy, None]}
    search = RobustSearchCV(clf, grid, cv=GroupKFold(3)).fit(X, Y, groups=GROUPS)
    train, test = next(GroupKFold(3).split(X, Y, GROUPS))
    alone = clone(clf).set_params(**{f"{prefix}strategy": strategy})
    alone.fit(X[train], Y[train], **{f"{prefix}groups": GROUPS[train]})
    assert search.cv_results_["split0_test_score"][0] == alone.score(X[test], Y[test])


def test_groups_that_are_routed():
    clf = small(strategy="group_dro")
    with config_context(enable_metadata_routing=True):
        routed = clone(clf).set_fit_request(groups=True)
        search = RobustSearchCV(routed, {"lr": [0.01, 0.1]}, cv=GroupKFold(3))
        found = search.fit(X, Y, groups=GROUPS)
    other = RobustSearchCV(clf, {"lr": [0.01, 0.1]}, cv=GroupKFold(3)).fit(X, Y, groups=GROUPS)
    assert np.array_equal(found.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize("transition", [None, "estimate"])
def test_groups_that_are_routed_through_a_pipeline(transition):
    clf = small(strategy="group_dro")
    pipe, grid = Pipeline([("scale", StandardScaler()), ("clf", clf)]), {"clf__lr": [0.01, 0.1]}
    options = {"cv": GroupKFold(3), "transition": transition}
    other = RobustSearchCV(clone(pipe), grid, **options).fit(X, Y, groups=GROUPS)
    with config_context(enable_metadata_routing=True):
        clf.set_fit_request(groups=True)
        found = RobustSearchCV(pipe, grid, **options).fit(X, Y, groups=GROUPS)
    assert np.array_equal(found.predict_proba(X), other.predict_proba(X))
    assert found.best_score_ == pytest.approx(other.best_score_)


def test_a_source_is_loaded():
    options = {"param_grid": {"lr": [0.01, 0.1]}, "cv": CV}
    other = RobustSearchCV(small(), **options).fit(X, Y)
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    for source, y in ((ArraySource(X), Y), (rows, None)):
        found = RobustSearchCV(small(), **options).fit(source, y)
        assert np.array_equal(found.predict_proba(X), other.predict_proba(X))
    with pytest.raises(TypeError, match="is it ParquetSource"):
        RobustSearchCV(small(), **options).fit("rows.parquet", Y)


def test_early_stopping_of_each_candidate():
    grid = {"lr": [1e-6, 0.02], "early_stopping": [1, 3, True, False]}
    same_as_grid(small(max_epochs=6), grid)


def test_single_precision_scores():
    grid = {"lr": [0.001, 0.02], "loss__q": [0.3, 0.9]}
    mine = RobustSearchCV(small(precision="float32"), grid, cv=CV, scoring="neg_log_loss")
    other = GridSearchCV(small(precision="float32"), grid, cv=CV, scoring="neg_log_loss")
    scores = [s.fit(X, Y).cv_results_["mean_test_score"] for s in (mine, other)]
    np.testing.assert_allclose(*scores, atol=1e-4)


# Failures -----------------------------------------------------------------------------------------

WILD = {"lr": [0.02, 1e30, 0.001]}
NOT_FINITE = "ignore:One or more of the:UserWarning"


@pytest.mark.filterwarnings(NOT_FINITE, "ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.parametrize(
    "params",
    [
        {"return_train_score": True},
        {"error_score": -1.0},
        {"scoring": ["accuracy", "f1_macro"], "refit": "accuracy"},
        {"scoring": lambda clf, X, y: {"a": clf.score(X, y)}, "refit": "a", "error_score": 0.0},
    ],
    ids=["nan", "number", "several", "callable"],
)
def test_a_candidate_that_fails_alone(params):
    same_as_grid(small(), WILD, **params)
    same_as_grid(small(), {"lr": [0.02, -1.0]}, **params)  # fails before it trains


def test_a_failure_warns():
    with pytest.warns(FitFailedWarning, match="3 fits failed out of a total of 9") as caught:
        RobustSearchCV(small(), WILD, cv=CV, error_score=0.0).fit(X, Y)
    assert "The training loss became" in str(caught[0].message)


def test_a_failure_can_be_an_error():
    with pytest.raises(DivergenceError):
        RobustSearchCV(small(), WILD, cv=CV, error_score="raise").fit(X, Y)
    with pytest.raises(ValueError, match="All the 6 fits failed"):
        RobustSearchCV(small(), {"lr": [1e30, 1e31]}, cv=CV).fit(X, Y)


class Failing(Strategy):
    """Raise an error in the middle of a step."""

    stackable = True

    def __init__(self, fails=False):
        self.fails = fails

    def relabel(self, net, batch, logits):
        if self.fails:
            raise RuntimeError("no labels today")
        return batch.target


@pytest.mark.filterwarnings(NOT_FINITE, "ignore::sklearn.exceptions.FitFailedWarning")
def test_an_error_inside_a_step_is_that_of_its_candidate():
    search = same_as_grid(small(), {"strategy": [Failing(), Failing(fails=True)]})
    assert search.groups_ == ["6 alone: their stack raised RuntimeError('no labels today')"]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"estimator": LogisticRegression()}, TypeError, "must be a RobustClassifier"),
        ({"estimator": Pipeline([("a", LogisticRegression())])}, TypeError, "Use GridSearchCV"),
        ({"param_grid": None}, ValueError, "either param_grid or param_distributions, got neither"),
        ({"param_distributions": {"lr": [0.1]}}, ValueError, "got both"),
        ({"n_iter": 3}, ValueError, "n_iter=3 is for param_distributions"),
        ({"param_grid": {"learning_rate": [0.1]}}, ValueError, r"'learning_rate' (.|\n)*'lr'"),
        ({"transition": "guess"}, ValueError, "a matrix, 'estimate' or None, got 'guess'"),
        ({"transition": np.ones((3, 3))}, ValueError, "probabilities that sum to 1"),
        ({"transition": np.full((3, 3), 1 / 3)}, ValueError, "singular"),
        ({"transition": np.eye(3), "scoring": "accuracy"}, ValueError, "got scoring='accuracy'"),
    ],
    ids=name,
)
def test_wrong_parameters(params, error, message):
    given = {"estimator": small(), "param_grid": {"lr": [0.01]}} | params
    with pytest.raises(error, match=message):
        RobustSearchCV(**given, cv=CV).fit(X, Y)


# Pipelines ----------------------------------------------------------------------------------------


class Counting(TransformerMixin, BaseEstimator):
    """Scale the rows, and count how often that is learned."""

    fits = 0

    def __init__(self, scale=1.0):
        self.scale = scale

    def fit(self, X, y=None):
        type(self).fits += 1
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return self.scale * X


def test_transformers_are_fitted_once_per_fold():
    pipeline = Pipeline([("scale", Counting()), ("clf", small())])
    Counting.fits = 0
    RobustSearchCV(pipeline, {"clf__lr": [0.001, 0.02], "clf__loss": ["ce", "gce"]}, cv=CV).fit(
        X, Y
    )
    assert Counting.fits == 3 + 1
    Counting.fits = 0
    grid = {"clf__lr": [0.001, 0.02], "scale__scale": [0.1, 1.0]}
    RobustSearchCV(pipeline, grid, cv=CV, refit=False).fit(X, Y)
    assert Counting.fits == 2 * 3


@pytest.mark.parametrize(
    "grid",
    [
        {"clf__lr": [0.001, 0.02]},
        {"scale": [StandardScaler(), "passthrough"], "clf__lr": [0.001, 0.02]},
        {"scale__with_mean": [True, False], "clf__loss": ["ce", "gce"]},
        {"scale": [FunctionTransformer(lambda rows: 3 * rows)]},
        {"clf": [small(), small(loss="ce"), LogisticRegression()]},
    ],
    ids=["clf", "step", "parameter", "lambda", "classifier"],
)
def test_pipelines(grid):
    pipeline = Pipeline([("scale", StandardScaler()), ("clf", small(preprocess=None))])
    same_as_grid(pipeline, grid)


def test_weights_of_steps():
    pipeline = Pipeline([("scale", StandardScaler()), ("clf", small())])
    grid = {"clf__lr": [0.001, 0.02]}
    search = same_as_grid(pipeline, grid, fit_params={"clf__sample_weight": WEIGHT})
    assert search.groups_ == ["6 fits of 1 network in one stack"]
    weights = {"clf__sample_weight": WEIGHT, "scale__sample_weight": WEIGHT}
    search = same_as_grid(pipeline, grid, fit_params=weights)
    assert search.groups_ == ["6 alone: parameters of fit for another step"]


# How the fits are trained -------------------------------------------------------------------------


def test_shapes_make_groups():
    grid = {"hidden": [(8,), (6, 4)], "batch_size": [32, 64], "lr": [0.001, 0.02]}
    search = same_as_grid(small(), grid)
    assert search.groups_ == ["6 fits of 1 network in one stack"] * 4


def test_candidates_that_stand_alone_are_in_the_results():
    grid = {"strategy": ["vat", None, "mixup"], "module": ["mlp", torch.nn.Linear]}
    search = same_as_grid(small(), grid)
    assert search.groups_ == [
        "6 fits of 1 network in one stack",
        "3 alone: strategy VirtualAdversarial()",
        "9 alone: module Linear",
    ]


def test_memory_is_bounded():
    grid = {"lr": [0.001, 0.02, 0.1], "n_members": [1, 2]}
    search = RobustSearchCV(small(), grid, cv=CV, max_members=3)
    same(search, GridSearchCV(small(), grid, cv=CV))
    sizes = [int(group.split()[0]) for group in search.groups_]
    assert sum(sizes) == 18
    assert max(sizes) <= 3


def test_jobs_share_the_fits():
    grid = {"strategy": ["mixup", None, "vat"]}
    search = RobustSearchCV(small(), grid, cv=CV, n_jobs=2)
    same(search, GridSearchCV(small(), grid, cv=CV))
    assert len(search.groups_) > 2


def test_an_estimator_without_seed_gets_one_for_all_fits():
    clf = small(random_state=None)
    first, again, other = (
        RobustSearchCV(clf, {"lr": [0.02, 0.0200001]}, cv=CV, random_state=seed).fit(X, Y)
        for seed in (0, 0, 1)
    )
    assert isinstance(first.best_estimator_.random_state, int)
    proba = first.predict_proba(X)
    assert np.array_equal(proba, again.predict_proba(X))
    assert not np.allclose(proba, other.predict_proba(X))
    assert np.ptp(first.cv_results_["mean_test_score"]) < 0.02
    assert clf.random_state is None


def test_seeds_can_be_searched():
    same_as_grid(small(), {"random_state": [0, 1, 2]})


def test_verbose_shows_the_fits_that_stand_alone(capsys):
    grid = {"strategy": ["vat", None], "lr": [0.02]}
    RobustSearchCV(small(), grid, cv=CV, verbose=2).fit(X, Y)
    shown = capsys.readouterr().out
    assert shown.count("lr=0.02, strategy=vat") == 3
    assert "strategy=None" not in shown


def test_max_members_is_checked():
    with pytest.raises(ValueError, match="max_members == 0, must be >= 1"):
        RobustSearchCV(small(), {"lr": [0.01]}, max_members=0).fit(X, Y)


# Noise in the labels of the folds -----------------------------------------------------------------


@pytest.mark.parametrize("labels", [Y, NAMES[Y]], ids=["numbers", "strings"])
def test_scores_are_corrected_by_a_transition(labels):
    T = np.asarray(uniform_transition(0.3, n_classes=3))
    search = RobustSearchCV(small(), {"lr": [0.001, 0.02]}, cv=CV, transition=T).fit(X, labels)
    plain = RobustSearchCV(small(), {"lr": [0.001, 0.02]}, cv=CV).fit(X, labels)
    train, test = next(CV.split(X))
    predicted = small(lr=0.001).fit(X[train], labels[train]).predict(X[test])
    score = noise_corrected_accuracy(labels[test], predicted, T)
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(score)
    assert search.best_score_ > plain.best_score_
    assert np.array_equal(search.transition_, T)
    assert not hasattr(plain, "transition_")
    assert search.score(X, labels) == pytest.approx(
        noise_corrected_accuracy(labels, search.predict(X), T)
    )


def test_the_transition_can_be_estimated():
    clf = small(max_epochs=10, strategy="group_dro")
    search = RobustSearchCV(clf, {"lr": [0.01, 0.02]}, cv=GroupKFold(3), transition="estimate")
    assert search.get_metadata_routing() is not None
    search.fit(X, NAMES[Y], groups=GROUPS, sample_weight=WEIGHT)
    assert search.transition_.shape == (3, 3)
    np.testing.assert_allclose(search.transition_.sum(1), 1)
    assert search.transition_.trace() < 3
    again = clone(search).set_params(transition=search.transition_)
    again.fit(X, NAMES[Y], groups=GROUPS, sample_weight=WEIGHT)
    assert again.best_score_ == pytest.approx(search.best_score_)


def test_the_transition_is_estimated_with_the_weights_of_the_classes():
    clf = small(class_weight=dict(zip(NAMES, (1.0, 2.0, 3.0), strict=True)))
    search = RobustSearchCV(clf, {"lr": [0.02]}, cv=CV, transition="estimate")
    named = search.fit(X, NAMES[Y]).transition_
    clf = small(class_weight={0: 1.0, 1: 2.0, 2: 3.0})
    assert np.array_equal(search.set_params(estimator=clf).fit(X, Y).transition_, named)


def test_a_transition_of_other_classes_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(Stack, "train", None)
    with pytest.raises(ValueError, match="transition is 2 x 2 for 3 classes"):
        RobustSearchCV(small(), {"lr": [0.02]}, cv=CV, transition=np.eye(2)).fit(X, Y)


def test_a_corrected_score_asks_for_weights_as_the_classifier_does():
    T, grid = uniform_transition(0.3, n_classes=3), {"lr": [0.001, 0.02]}
    with config_context(enable_metadata_routing=True):
        clf = small().set_fit_request(sample_weight=True)
        found = [
            RobustSearchCV(clone(clf).set_score_request(sample_weight=asked), grid, transition=T)
            .fit(X, Y, sample_weight=WEIGHT)
            .cv_results_["mean_test_score"]
            for asked in (False, True)
        ]
    other = RobustSearchCV(small(), grid, transition=T).fit(X, Y, sample_weight=WEIGHT)
    assert np.allclose(found[1], other.cv_results_["mean_test_score"])
    assert not np.allclose(found[0], found[1])


def test_a_fit_without_a_transition_forgets_that_of_a_former_fit():
    search = RobustSearchCV(small(), {"lr": [0.02]}, cv=CV, transition=np.eye(3)).fit(X, Y)
    assert hasattr(search, "transition_")
    search.set_params(transition=None).fit(X, Y)
    assert not hasattr(search, "transition_")


@pytest.mark.parametrize(("verbose", "printed"), [(1, 0), (2, 3), (3, 3), (10, 6)])
def test_verbose_is_of_the_fits_that_stand_alone(capsys, verbose, printed):
    grid = {"strategy": ["vat", None]}
    search = RobustSearchCV(small(), grid, cv=CV, refit=False, verbose=verbose).fit(X, Y)
    assert len(search.groups_) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == printed
    assert all("strategy=vat" in line for line in lines)
    assert ("score=" in "".join(lines)) == (verbose > 2)


# Halving ------------------------------------------------------------------------------------------

RATES = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 0.005, 0.01, 0.02, 0.05]


def halving(grid, clf=None, **params):
    clf = small(max_epochs=9) if clf is None else clf
    return RobustSearchCV(clf, grid, cv=CV, halving=True, **params).fit(X, Y)


@pytest.mark.parametrize(("max_members", "strategy"), [(None, None), (4, "elr")])
def test_halving_drops_the_losers(max_members, strategy):
    clf = small(max_epochs=9, strategy=strategy, loss="ce")
    search = halving({"lr": RATES}, clf, max_members=max_members)
    results = search.cv_results_
    last = results["iter"] == 1
    assert results["n_epochs"].tolist() == np.where(last, 9, 3).tolist()
    assert last.sum() == 3
    assert last[search.best_index_]
    whole = GridSearchCV(clf, {"lr": RATES}, cv=CV).fit(X, Y).cv_results_
    for name in ("mean_test_score", "split1_test_score"):
        np.testing.assert_allclose(results[name][last], whole[name][last], atol=1e-12)
    assert search.best_score_ == results["mean_test_score"][last].max()
    assert not last[:4].any()


def test_the_fit_times_of_halving_add_up_to_the_time_of_all_stacks(monkeypatch):
    clock, train = [0.0], Stack.train

    def train_for_six_seconds(stack, until=None):
        clock[0] += 6
        train(stack, until)

    monkeypatch.setattr("robustclf._search.time", SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(Stack, "train", train_for_six_seconds)
    results = halving({"lr": RATES}, max_members=9, refit=False).cv_results_
    dropped = results["iter"] == 0
    np.testing.assert_allclose(results["mean_fit_time"][dropped], 6 / 9)
    assert 3 * results["mean_fit_time"].sum() == pytest.approx(clock[0])


def test_halving_finds_its_best_among_the_finalists():
    grid = {"lr": [0.02], "max_epochs": [4, 60], "dropout": [0.0], "loss": ["ce", "mae"]}
    results = (search := halving(grid)).cv_results_
    assert results["iter"].max() == 1
    assert results["iter"][search.best_index_] == 1
    few = {"lr": [0.05, 1e-7, 1e-8, 1e-9], "max_epochs": [3]}
    many = {"lr": [1e-9, 2e-9], "max_epochs": [30]}
    search = halving([few, many])
    assert search.best_params_ == {"lr": 0.05, "max_epochs": 3}


def test_halving_with_early_stopping_and_learned_losses():
    clf = small(max_epochs=9, early_stopping=1)
    results = (
        search := halving({"lr": RATES[::2], "loss": ["ce", "legendretron"]}, clf)
    ).cv_results_
    assert results["iter"].max() == 2
    assert results["iter"][search.best_index_] == 2
    whole = GridSearchCV(clf, [{k: [v] for k, v in search.best_params_.items()}], cv=CV).fit(X, Y)
    assert search.best_score_ == pytest.approx(whole.best_score_)


@pytest.mark.filterwarnings(NOT_FINITE, "ignore::sklearn.exceptions.FitFailedWarning")
def test_halving_drops_what_fails():
    search = halving({"lr": [1e30, -1.0, 0.001, 0.02, 1e29]})
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [1, 1, 0, 0, 1]
    assert search.cv_results_["n_epochs"].tolist() == [3, 0, 9, 9, 3]
    with pytest.raises(ValueError, match="All the 12 fits failed"):
        halving({"lr": [1e30, 1e31, -1.0, -2.0]})


def test_halving_ranks_by_one_of_several_scores():
    grid = {"lr": RATES[::2]}
    by_name = halving(grid, scoring=["accuracy", "neg_log_loss"], refit="neg_log_loss")
    assert by_name.cv_results_["iter"][by_name.best_index_] == 1
    several = {"scoring": lambda clf, X, y: {"a": clf.score(X, y), "b": -clf.score(X, y)}}
    best, worst = (halving(grid, **several, refit=name) for name in "ab")
    assert best.cv_results_["iter"][-1] == 1
    assert worst.cv_results_["iter"][-1] == 0
    for params in ({"scoring": ["accuracy", "f1_macro"]}, several):
        with pytest.raises(ValueError, match=r"refit must be one of \['a"):
            halving(grid, **params, refit=False)


def test_halving_needs_candidates_that_can_be_stacked():
    with pytest.raises(ValueError, match=r"strategy VirtualAdversarial\(\) of .*halving=False"):
        halving({"strategy": ["vat", None]})


# As an estimator ----------------------------------------------------------------------------------


def test_parameters_and_clones():
    search = RobustSearchCV(small(), {"lr": [0.02]}, transition=np.eye(3), max_members=5)
    params = clone(search).get_params()
    assert params["estimator__hidden"] == (8,)
    assert params["max_members"] == 5
    search.set_params(estimator__lr=0.5, cv=2)
    assert search.estimator.lr == 0.5
    assert clone(search).cv == 2


def test_what_is_not_fitted_says_so():
    search = RobustSearchCV(small(), {"lr": [0.02]}, cv=CV)
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(search, method)(X)
    with pytest.raises(NotFittedError):
        search.score(X, Y)
    search.set_params(refit=False).fit(X, Y)
    with pytest.raises(AttributeError, match="predict"):
        search.predict(X)


@pytest.mark.parametrize("transition", [None, "estimate"])
def test_a_fitted_search_can_be_pickled(transition):
    search = RobustSearchCV(small(), {"lr": [0.01, 0.02]}, cv=CV, transition=transition).fit(X, Y)
    again = pickle.loads(pickle.dumps(search))
    assert np.array_equal(again.predict_proba(X), search.predict_proba(X))
    assert again.score(X, Y) == search.score(X, Y)
    assert again.n_features_in_ == 5


def test_nested_in_another_cross_validation():
    grid = {"lr": [0.001, 0.02]}
    mine, other = (
        cross_val_score(kind(small(), grid, cv=2), X, Y, cv=CV)
        for kind in (RobustSearchCV, GridSearchCV)
    )
    np.testing.assert_allclose(mine, other)


def test_the_generators_of_the_caller_are_left_alone():
    torch_state = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    RobustSearchCV(small(), {"lr": [0.01, 0.02]}, cv=CV).fit(X, Y)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
