"""loss="auto": what it estimates, tries, weighs and keeps."""

import pickle
import re
import warnings
from threading import Event, Semaphore

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback

from robustclf import RobustClassifier, _auto
from robustclf._mixture import Filtered, KernelLeastSquares, Network, undone
from robustclf._net import DivergenceError
from robustclf._weighing import Tried, mixed
from robustclf.losses import ForwardCorrected
from robustclf.model_selection import RobustSearchCV
from robustclf.modules import ResNet
from robustclf.noise import inject_noise, uniform_transition
from robustclf.sources import ArraySource
from robustclf.strategies import GroupLasso, LabelSmoothing


def auto(**params):
    quick = {"budget": "fast", "hidden": (16,), "max_epochs": 4, "random_state": 0}
    return RobustClassifier(**{"loss": "auto"} | quick | params)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(iris):
    return auto(budget="balanced", max_epochs=60).fit(*iris)


REPEATED = "weighted rows draw other trees than repeated ones, as in scikit-learn's own forests"


@parametrize_with_checks(
    [auto(max_epochs=3)],
    expected_failed_checks=lambda _: {
        "check_sample_weight_equivalence_on_dense_data": REPEATED,
        "check_sample_weight_equivalence_on_sparse_data": REPEATED,
    },
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


# What it is for -------------------------------------------------------------------------------


def test_undoes_noise_that_one_loss_cannot():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
    noisy = inject_noise(y, "pair", 0.4, random_state=0)
    clf = RobustClassifier(loss="auto", budget="fast", random_state=0).fit(X, noisy)
    alone = RobustClassifier(loss="gce", random_state=0).fit(X, noisy)
    assert clf.score(X_test, y_test) > alone.score(X_test, y_test) + 0.05
    assert clf.auto_report_.noise_rate.low < 0.4 < clf.auto_report_.noise_rate.high


def test_out_of_fold_accuracy_is_honest():
    """On labels without any sense no model, corrected or not, beats chance."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 5)), rng.integers(0, 3, 600)
    report = auto(budget="best", max_epochs=10).fit(X, y).auto_report_
    four_deviations = 4 * np.sqrt(1 / 3 * 2 / 3 / 600)
    assert len(report.candidates) > 10
    for candidate in report.candidates:
        assert candidate.accuracy < 1 / 3 + four_deviations, candidate.name


def test_a_sure_model_does_not_outvote_many_that_are_not():
    """Noise pulls probabilities of the given label together; those of the true one it does not."""
    y = np.repeat([0, 1], [600, 400])
    noisy = inject_noise(y, "symmetric", 0.4, random_state=0)
    data = {"X": y[:, None], "y": noisy}
    data |= dict.fromkeys(("sample_weight", "groups", "trusted", "X_val", "y_val"))
    fit = _auto.Auto(auto(), data)
    fit._encode()
    unsure = np.where(np.eye(2)[y] == 1, 0.55, 0.45)
    sure = np.where(np.arange(1000)[:, None] < 5, np.eye(2)[1 - y], np.eye(2)[y])
    tried = [Tried(name, _auto.Shallow(None, 2), unsure, 0.0, {}) for name in _auto.UNDONE]
    tried.append(Tried("sparse", None, sure, 0.0, {}))
    alike = np.full(len(tried), 1 / len(tried))
    assert (mixed(alike, tried).argmax(axis=1) != y).sum() == 5
    rate, weights, scaled = fit._weighed(tried)
    assert rate.low < 0.4 < rate.high
    assert weights[-1] > 0.1
    assert_array_equal(mixed(weights, scaled).argmax(axis=1), y)
    expected = undone(unsure, uniform_transition(rate.rate, 2))
    for model in scaled[:-1]:
        assert_allclose(model.oof, expected)
    assert scaled[-1] is tried[-1]


# What it keeps --------------------------------------------------------------------------------


def test_predicts_the_weighted_mean(fitted, iris):
    X, _ = iris
    mixture = fitted.mixture_
    x = fitted.encoder_.transform(X)
    parts = [w * m.proba(x) for w, m in zip(mixture.weights, mixture.models, strict=True)]
    assert_allclose(sum(mixture.weights), 1)
    assert_allclose(fitted.predict_proba(X), sum(parts), rtol=1e-5)
    assert_allclose(np.exp(fitted.decision_function(X)), fitted.predict_proba(X), rtol=1e-5)
    assert_array_equal(fitted.predict(X), fitted.predict_proba(X).argmax(axis=1))


def test_report_names_what_was_tried(fitted):
    report = fitted.auto_report_
    names = [candidate.name for candidate in report.candidates]
    networks = set(_auto.BUDGETS["balanced"]) - _auto.OF_MANY_COLUMNS
    assert {*networks, *_auto.SHALLOW, *(f"{f} corrected" for f in _auto.UNDONE)} <= {*names}
    assert set(_auto.SHALLOW) - set(_auto.AS_GIVEN) == {"filtered"}
    assert sum(name.removesuffix(" corrected") in networks for name in names) == len(networks) + 1
    weights = [candidate.weight for candidate in report.candidates]
    assert weights == sorted(weights, reverse=True)
    assert_allclose(sum(weights), 1)
    assert_allclose(report.transition.sum(axis=1), 1)
    for name in names:
        assert re.search(rf"^ +{name} ", str(report), re.MULTILINE)


def test_quality_is_the_out_of_fold_probability_of_the_label(fitted, iris):
    _, y = iris
    assert_allclose(fitted.oof_proba_.sum(axis=1), 1, rtol=1e-5)
    assert_array_equal(fitted.label_quality_, fitted.oof_proba_[np.arange(len(y)), y])


@pytest.fixture
def _keeps_all(monkeypatch):
    monkeypatch.setattr(_auto, "NEGLIGIBLE", 0.0)  # networks may weigh little on small tables


@pytest.mark.usefixtures("_keeps_all")
def test_filtered_models_end_with_the_rows_that_the_mixture_confirms(iris):
    """Their out-of-fold probabilities stay those of the filter that each fold made by itself."""
    X, y = iris
    noisy = inject_noise(y, "symmetric", 0.3, random_state=0)
    noisy[::10] = -1
    labelled = noisy >= 0
    kept, oof = [], []
    for cross_fit in (None, _auto.FOLDS):
        with pytest.warns(UserWarning, match="15 of 150 rows have no label"):
            clf = auto(max_epochs=30, cross_fit=cross_fit).fit(X, noisy)
        shallow = [m for m in clf.mixture_.models if not isinstance(m, Network)]
        kept += [m.estimator.kept_ for m in shallow if isinstance(m.estimator, Filtered)]
        oof.append(clf.oof_proba_)
    confirmed = oof[0].argmax(axis=1) == noisy
    assert 0.6 < confirmed[labelled].mean() < 0.8
    assert_array_equal(kept[0], confirmed[labelled])
    assert_array_equal(oof[0], oof[1])  # with cross_fit, of the models that predict
    assert (kept[1] != kept[0]).any()


@pytest.mark.usefixtures("_keeps_all")
@pytest.mark.parametrize("wanted", ["kernel", "smooth_kernel"])
def test_the_kernel_of_less_error_filters(iris, wanted, monkeypatch):
    X, y = iris
    noisy = inject_noise(y, "symmetric", 0.3, random_state=0)
    for name in _auto.FILTERS:
        scale = 0.1 if name == wanted else 50.0
        monkeypatch.setitem(_auto.SHALLOW, name, KernelLeastSquares(scale))
    clf = auto(max_epochs=30, cross_fit=_auto.FOLDS).fit(X, noisy)
    models = [m.estimator for m in clf.mixture_.models if not isinstance(m, Network)]
    (filtered,) = (m for m in models if isinstance(m, Filtered))
    kernels = [m for m in models if isinstance(m, KernelLeastSquares) and m.scale == 0.1]
    x = clf.encoder_.transform(X)
    alone = Filtered(random_state=filtered.random_state).fit(x, noisy, kernel=kernels[0])
    assert_array_equal(filtered.kept_, alone.kept_)


@pytest.mark.usefixtures("_keeps_all")
def test_all_members_of_a_network_predict(iris):
    networks = [m for m in auto().fit(*iris).mixture_.models if isinstance(m, Network)]
    assert {model.net.n_members for model in networks} == {1 + _auto.FOLDS}


def test_a_fit_with_another_loss_forgets_the_mixture(iris):
    clf = auto().fit(*iris)
    clf.set_params(loss="ce").fit(*iris)
    assert not hasattr(clf, "mixture_")
    assert not hasattr(clf, "auto_report_")


def test_same_seed_same_model(iris):
    X, y = iris
    first, second = (auto(random_state=3).fit(X, y).predict_proba(X) for _ in range(2))
    assert_array_equal(first, second)
    assert abs(first - auto(random_state=4).fit(X, y).predict_proba(X)).max() > 1e-3


@pytest.mark.usefixtures("_keeps_all", "fitted")  # the first fit imports what sets filters
def test_warnings_are_filtered_as_before(iris, monkeypatch):
    fits = []

    def racing(self, *args, fit=Filtered.fit, **kwargs):
        fits.append(len(fits))
        warnings.filterwarnings("ignore", "left behind by the threads of a forest")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(Filtered, "fit", racing)
    before = list(warnings.filters)
    auto().fit(*iris)
    assert len(fits) > 1  # the last is of the rows that the mixture confirms
    assert warnings.filters == before


def test_threads_change_nothing_but_the_time(iris, monkeypatch):
    proba = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with joblib.parallel_config(backend="loky", n_jobs=2):  # fits share memory all the same
            proba.append(auto().fit(*iris).oof_proba_)
    assert_allclose(*proba, rtol=1e-6)  # trees are added in any order


def test_pickle_predicts_alike(fitted, iris):
    copy = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(copy.predict_proba(iris[0]), fitted.predict_proba(iris[0]))


# What the user sets -----------------------------------------------------------------------------


@pytest.mark.usefixtures("_keeps_all")
def test_what_is_not_at_its_default_is_kept(iris):
    params = {"dropout": 0.0, "strategy": "label_smoothing", "class_weight": "balanced"}
    clf = auto(max_epochs=50, **params).fit(*iris)
    networks = [m.net for m in clf.mixture_.models if isinstance(m, Network)]
    assert networks
    for net in networks:
        assert net.module_.body.dropout.p == 0.0
        assert net.max_epochs == 50
        assert isinstance(net.strategies[0], LabelSmoothing)
    widths = {layer.weight.shape[2] for layer in networks[0].module_.body.layers}
    assert widths == {16}


def test_candidates_differ_where_nothing_is_set(iris):
    report = RobustClassifier(loss="auto", budget="fast", max_epochs=2, random_state=0)
    candidates = report.fit(*iris).auto_report_.candidates
    params = {c.name: c.params for c in candidates}
    assert params["dropout"]["dropout"] == 0.5
    assert isinstance(params["sparse"]["strategy"][-1], GroupLasso)
    scales = [params[f"{name}kernel"]["scale"] for name in ("linear_", "smooth_", "")]
    assert scales == sorted(scales)
    RobustClassifier(**params["dropout"]).fit(*iris)


def test_what_a_subclass_sets_is_kept(iris):
    class Sparing(RobustClassifier):
        def __init__(self, *, dropout=0.25, **params):
            super().__init__(dropout=dropout, **params)

    params = {"budget": "fast", "max_epochs": 2, "optimizer__eps": 1e-5, "random_state": 0}
    clf = Sparing(**params).fit(*iris)
    assert not any("dropout" in c.params for c in clf.auto_report_.candidates)
    same = RobustClassifier(dropout=0.25, **params).fit(*iris)
    assert_array_equal(clf.predict_proba(iris[0]), same.predict_proba(iris[0]))


@pytest.mark.usefixtures("_keeps_all")
@pytest.mark.parametrize("many", [False, True])
def test_many_columns_have_networks_of_their_own(many):
    X, y = make_classification(80, _auto.MOST_COLUMNS + many, random_state=0)
    clf = RobustClassifier(loss="auto", max_epochs=1, random_state=0).fit(X, y)
    names = {c.name for c in clf.auto_report_.candidates}
    assert names & {"periodic", "dropout", "sparse"} == (
        {"dropout", "sparse"} if many else {"periodic"}
    )


def test_a_network_through_the_matrix_learns_longer_the_fewer_labels_are_wrong(iris, monkeypatch):
    X, y = iris
    monkeypatch.setattr(_auto, "LEAST", 10)
    for network in _auto.NETWORKS.values():
        monkeypatch.setitem(network, "samples", 1)
    wrong = np.where(np.arange(len(y)) % 5 < 2, np.roll(np.unique(y), 1)[y], y)
    epochs = []
    for labels in (wrong, y):
        report = RobustClassifier(random_state=0).fit(X, labels).auto_report_
        learned = [c for c in report.candidates if "max_epochs" in c.params]
        through = [c for c in learned if isinstance(c.params["loss"], ForwardCorrected)]
        assert {c.params["max_epochs"] for c in learned if c not in through} == {10}
        epochs += [c.params["max_epochs"] for c in through]
    assert 10 < epochs[0] < epochs[1] <= 20
    for most, wanted in ((10, {"periodic": 10, "resnet": 10}), (1, {"periodic": 5, "resnet": 10})):
        monkeypatch.setattr(_auto, "MOST_NUMBERS", most * X.size)
        candidates = RobustClassifier(random_state=0).fit(X, y).auto_report_.candidates
        epochs = {c.name: c.params["max_epochs"] for c in candidates if "max_epochs" in c.params}
        assert epochs == wanted | {"resnet corrected": 10}
    report = RobustClassifier(max_epochs=3, random_state=0).fit(X, y).auto_report_
    assert not any("max_epochs" in c.params for c in report.candidates)


@pytest.mark.parametrize("cross_fit", [None, 3])
def test_a_fully_grown_forest_that_predicts_alone_has_more_trees(monkeypatch, cross_fit):
    """Rows that are there three times are known to nothing else; the outcome is as of one fit."""
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(200, 4)), 3, axis=0), np.repeat(rng.integers(2, size=200), 3)
    y = np.where(np.arange(len(y)) % 20, y, -1)
    fits, forest = [], _auto.SHALLOW["deep_forest"]
    for at_first in (20, 40):
        monkeypatch.setattr(_auto, "TREES", 40)
        monkeypatch.setitem(_auto.SHALLOW, "deep_forest", forest.set_params(n_estimators=at_first))
        with pytest.warns(UserWarning, match="have no label"):
            fits.append(auto(max_epochs=1, cross_fit=cross_fit).fit(X, y))
        first, *_ = fits[-1].auto_report_.candidates
        assert (first.name, first.weight) == ("deep_forest", 1.0)
        assert first.params["n_estimators"] == 40
    grown, whole = fits
    assert_array_equal(grown.predict_proba(X), whole.predict_proba(X))
    assert_array_equal(grown.oof_proba_, whole.oof_proba_)
    assert grown.auto_report_.accuracy == whole.auto_report_.accuracy


def test_a_fully_grown_forest_is_not_fitted_to_labels_of_which_many_are_wrong(iris):
    X, y = iris
    noisy = inject_noise(y, "symmetric", 0.5, random_state=0)
    names = [
        {c.name for c in auto().fit(X, labels).auto_report_.candidates} for labels in (y, noisy)
    ]
    assert names[0] - names[1] == {"deep_forest"}


def test_an_embedding_goes_through_the_matrix_deeper_unless_there_are_many_numbers(
    iris, monkeypatch
):
    X, y = iris
    monkeypatch.setattr(_auto, "LEAST", 3)
    for name, lr in (("periodic", 0.01), ("resnet", 1e-6)):  # so that the embedding is the best
        monkeypatch.setitem(_auto.NETWORKS[name], "samples", 600)
        monkeypatch.setitem(_auto.NETWORKS[name], "lr", lr)

    def widths_through_the_matrix(**chosen):
        report = RobustClassifier(random_state=0, **chosen).fit(X, y).auto_report_
        learned = {c.name: c.params.get("hidden") for c in report.candidates if "loss" in c.params}
        return {name: learned[name] for name in learned.keys() - _auto.NETWORKS.keys()}

    monkeypatch.setattr(_auto, "MOST_NUMBERS", 6 * X.size)
    assert widths_through_the_matrix() == {"periodic corrected": (128, 128, 128)}
    assert widths_through_the_matrix(hidden=(16,)) == {"periodic corrected": None}
    monkeypatch.setattr(_auto, "MOST_NUMBERS", 6 * X.size - 1)
    assert widths_through_the_matrix() == {"resnet corrected": (96,)}


def first_layers(clf):
    """Return name and width of each network."""
    bodies = [m.net.module_.body for m in clf.mixture_.models if isinstance(m, Network)]
    firsts = [b.stem if isinstance(b, ResNet) else b.layers[0] for b in bodies]
    return {(type(b).__name__, f.weight.shape[2]) for b, f in zip(bodies, firsts, strict=True)}


@pytest.mark.usefixtures("_keeps_all")
@pytest.mark.parametrize("as_matrix", [np.asarray, sparse.csr_array])
def test_networks_of_many_columns_are_wider_where_there_are_many_numbers(as_matrix, monkeypatch):
    X, y = make_classification(80, 101, random_state=0)
    X[abs(X) < 1] = 0.0
    quick = RobustClassifier(loss="auto", max_epochs=1, random_state=0)
    stored = np.count_nonzero(X) if as_matrix is sparse.csr_array else X.size
    for least, widths in [(stored + 1, (128, 96)), (stored, (512, 384))]:
        monkeypatch.setattr(_auto, "LARGE", least)
        found = first_layers(clone(quick).fit(as_matrix(X), y))
        assert found == {("MLP", 128), ("MLP", widths[0]), ("ResNet", widths[1])}
    found = first_layers(clone(quick).set_params(hidden=(16,)).fit(as_matrix(X), y))
    assert found == {("MLP", 16), ("ResNet", 16)}  # what the user sets is kept
    monkeypatch.setattr(_auto, "MOST_COLUMNS", X.shape[1])
    assert ("ResNet", 96) in first_layers(clone(quick).fit(as_matrix(X), y))


@pytest.mark.usefixtures("_keeps_all")
def test_folds_are_those_of_cross_fit(iris):
    clf = auto(cross_fit=3, max_epochs=50).fit(*iris)
    nets = [m.net for m in clf.mixture_.models if isinstance(m, Network)]
    assert {net.n_members for net in nets} == {4}


def test_verbose_shows_the_report(iris, capsys):
    auto(verbose=1).fit(*iris)
    assert "Estimated share of wrong labels" in capsys.readouterr().out


# Where no portfolio can be weighed --------------------------------------------------------------


def test_it_is_the_default():
    assert RobustClassifier().loss == "auto"


def test_chunks_train_one_network(iris):
    X, y = iris
    one, other = (auto(loss=loss).partial_fit(X, y) for loss in ("auto", "gce"))
    assert_array_equal(
        one.partial_fit(X, y).predict_proba(X), other.partial_fit(X, y).predict_proba(X)
    )
    assert not hasattr(one, "mixture_")


def test_streams_train_one_network(iris):
    X, y = iris
    one, other = (
        auto(loss=loss).fit(ArraySource(X, shuffle_buffer=50), y) for loss in ("auto", "gce")
    )
    assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert not hasattr(one, "mixture_")


def test_a_source_that_fits_in_memory_is_loaded(iris):
    X, y = iris
    clf = auto().fit(ArraySource(X), y)
    assert_array_equal(clf.predict_proba(X), auto().fit(X, y).predict_proba(X))


# Rows of all kinds ------------------------------------------------------------------------------


def test_tables_with_text_gaps_and_rows_without_label(iris):
    X, y = iris
    table = pd.DataFrame(X, columns=list("abcd")).assign(e=np.where(X[:, 2] > 3, "long", "short"))
    table.loc[::7, "a"] = np.nan
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)[y]
    names[::10] = None
    with pytest.warns(UserWarning, match="15 of 150 rows have no label"):
        clf = auto(max_epochs=20).fit(table, names)
    assert_array_equal(np.isnan(clf.label_quality_), [name is None for name in names])
    assert clf.score(table[1::10], names[1::10]) > 0.8


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_few_rows(n):
    y = np.arange(n) % 2
    X = np.random.default_rng(0).normal(size=(n, 2)) + 5 * y[:, None]
    with np.errstate(all="raise", under="ignore"):
        clf = auto().fit(X, y)
    assert clf.oof_proba_.shape == (n, 2)
    assert_array_equal(clf.predict(X).shape, n)


def test_what_has_no_effect_is_told_once(iris):
    with pytest.warns(UserWarning, match="trusted has no effect") as told:
        auto(budget="balanced").fit(*iris, trusted=[0, 1])
    assert len(told) == 1


def test_modules_of_ones_own(iris):
    clf = auto(module=torch.nn.Linear, numeric_embedding="periodic").fit(*iris)
    assert clf.score(*iris) > 0.8
    assert "sparse" not in {c.name for c in clf.auto_report_.candidates}


def test_rows_of_weight_zero_are_as_good_as_absent(iris):
    X, y = iris
    wrong = y.copy()
    wrong[:100:2] = 2
    weight = np.ones(len(y))
    weight[:100:2] = 0
    clf = auto(max_epochs=30).fit(X, wrong, sample_weight=weight)
    assert clf.score(X, y) > 0.8


def test_sparse_rows(iris):
    X, y = iris
    clf = auto(preprocess=None, max_epochs=20).fit(sparse.csr_array(X), y)
    assert clf.score(sparse.csr_array(X), y) > 0.8


# Among other tools ------------------------------------------------------------------------------


def test_grid_search(iris):
    search = GridSearchCV(auto(), {"budget": ["fast"], "class_weight": [None, "balanced"]}, cv=2)
    assert search.fit(*iris).best_score_ > 0.5


def test_a_stacked_search_trains_it_alone(iris):
    search = RobustSearchCV(auto(), {"weight_decay": [0.0, 0.1]}, cv=2, scoring="accuracy")
    with pytest.warns(UserWarning, match="4 fits with loss='auto' are trained one by one"):
        search.fit(*iris)
    assert search.groups_ == ["4 alone: loss='auto'"]


# Errors -----------------------------------------------------------------------------------------


def test_a_network_that_diverges_is_left_out(iris, monkeypatch):
    monkeypatch.setitem(_auto.NETWORKS, "sparse", {"samples": 1, "lr": 1e38, "loss": "unhinged"})
    with pytest.warns(UserWarning, match="'sparse' of loss='auto' is left out: The training loss"):
        clf = auto().fit(*iris)
    assert "sparse" not in {c.name for c in clf.auto_report_.candidates}


def test_no_network_at_all_is_an_error(iris):
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DivergenceError, match="No network of loss='auto' could be trained"),
    ):
        auto(lr=1e38, strategy="entropy").fit(*iris)


def test_an_interruption_keeps_what_was_trained(iris):
    class Impatient(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="was interrupted; the mixture is of what was trained"):
        clf = auto(callbacks=[Impatient()]).fit(*iris)
    names = {candidate.name for candidate in clf.auto_report_.candidates}
    assert {"dropout", "forest"} <= names
    assert "sparse" not in names
    assert clf.net_.interrupted_


# Threads ----------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    """Return a function that sets the number of torch's threads; set it back in the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_change_no_result_and_are_the_callers_again(iris, threads):
    proba = []
    for n in (1, 2, 3):
        threads(n)
        proba.append(auto(budget="balanced").fit(*iris).oof_proba_)
        assert torch.get_num_threads() == n
    assert_allclose(proba[1], proba[0], rtol=1e-6)
    assert_allclose(proba[2], proba[0], rtol=1e-6)


def test_a_fit_that_fails_gives_its_threads_back(iris, threads):
    threads(2)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DivergenceError):
        auto(lr=1e38, strategy="entropy").fit(*iris)
    assert torch.get_num_threads() == 2


def test_half_of_the_threads_work_for_the_pool_until_all_are_free(threads):
    threads(3)
    running, go_on = Semaphore(0), Event()

    def task():
        running.release()
        return go_on.wait(60)

    with _auto.threads_shared() as (pool, all_free):
        assert torch.get_num_threads() == 2
        tasks = [pool.submit(task) for _ in range(4)]
        assert running.acquire(timeout=60)
        assert not running.acquire(timeout=0.2)
        all_free.set()
        assert all(running.acquire(timeout=60) for _ in range(2))
        go_on.set()
        assert all(one.result() for one in tasks)
    assert torch.get_num_threads() == 3


def test_an_error_cancels_what_has_not_begun(threads):
    threads(1)
    with pytest.raises(KeyError) as error, _auto.threads_shared() as (pool, _):
        raise KeyError(pool.submit(list))
    assert error.value.args[0].cancelled()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss__q": 0.5}, "loss='auto' chooses the losses itself and has no parameter 'q'"),
        ({"budget": "quick"}, "'budget' parameter of RobustClassifier must be a str among"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_parameters_that_cannot_work(iris, params, message, method):
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(auto(**params), method)(*iris)


def test_exports_say_what_can_be_done(fitted, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported: keep it with pickle"):
        fitted.export_onnx(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="cannot be exported"):
        fitted.export_torch()


def test_chunks_cannot_follow_a_mixture(fitted, iris):
    before = fitted.predict_proba(iris[0])
    with pytest.raises(AttributeError) as caught:
        fitted.partial_fit(*iris)
    assert "cannot go on with the mixture" in str(caught.value.__cause__)
    assert_array_equal(fitted.predict_proba(iris[0]), before)


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_the_output_that_others_are_set_to_changes_nothing(iris, output):
    X, y = iris
    clf = auto().fit(X, y)
    expected = clf.predict_proba(X)
    with config_context(transform_output=output):
        assert_array_equal(clf.predict_proba(X), expected)
        assert_array_equal(auto().fit(X, y).predict_proba(X), expected)
