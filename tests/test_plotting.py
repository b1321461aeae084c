"""What the displays draw is what was computed; numbers are read back from the artists."""

import inspect
import sys
from importlib import import_module

import matplotlib
import numpy as np
import pytest
import torch
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB

import robustclf
from robustclf import RobustClassifier, make_loss, plotting
from robustclf.calibration import expected_calibration_error, reliability_curve
from robustclf.noise.dynamics import TrainingDynamics
from robustclf.noise.issues import find_label_issues
from robustclf.noise.transition import estimate_transition
from robustclf.plotting import (
    LabelQualityDisplay,
    LossDisplay,
    NoiseRobustnessDisplay,
    ReliabilityDisplay,
    TrainingDynamicsDisplay,
    TransitionDisplay,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

T = np.array([[0.9, 0.1], [0.25, 0.75]])
Y = np.repeat(["no", "yes"], 20)
OWN = np.array([0.9, 0.8, 0.9, 0.2] * 5)  # of the rows of either class; each fourth looks wrong
PROBA = np.concatenate([np.column_stack([OWN, 1 - OWN]), np.column_stack([1 - OWN, OWN])])


def dynamics(n_epochs=5, n_samples=20, seed=0):
    values = np.random.default_rng(seed).normal(size=(3, n_epochs, n_samples))
    return TrainingDynamics(*values, mean_proba=np.full((n_samples, 2), 0.5))


DISPLAYS = {
    "TransitionDisplay": TransitionDisplay(T),
    "LabelQualityDisplay": LabelQualityDisplay([0.9, 0.2]),
    "TrainingDynamicsDisplay": TrainingDynamicsDisplay(dynamics()),
    "NoiseRobustnessDisplay": NoiseRobustnessDisplay([0, 0.2], {"a": [[1.0, 0.8], [0.5, 0.7]]}),
    "ReliabilityDisplay": ReliabilityDisplay([0.6, 0.9], [0.5, 1.0], labelled=[0.4, 0.8]),
    "LossDisplay": LossDisplay([0.1, 0.5], {"a": [2.0, 1.0]}),
}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


class FromFirstColumn(ClassifierMixin, BaseEstimator):
    """Believes the first column of X; scores are what the labels of the fit differ from it."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.wrong_ = (X[:, 0] != y).mean()
        return self

    def predict(self, X):
        return X[:, 0]

    def predict_proba(self, X):
        return np.eye(len(self.classes_))[X[:, 0].astype(int)] * 0.7 + 0.3 / len(self.classes_)

    def score(self, X, y):
        assert_array_equal(X[:, 0], y)  # what is scored is clean
        return self.wrong_


# All displays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plotting.__all__)
def test_plot_draws_into_axes_and_returns_the_display(name):
    display = DISPLAYS[name]
    figure, ax = plt.subplots()
    before = plt.get_fignums()
    assert display.plot(ax) is display
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert plt.get_fignums() == before
    assert display.plot().ax_ is not ax
    assert display.ax_.get_xlabel()
    assert display.ax_.get_ylabel()


@pytest.mark.parametrize("name", plotting.__all__)
def test_parameters_are_stored_as_they_are(name):
    cls = getattr(plotting, name)
    marks = {parameter: object() for parameter in inspect.signature(cls).parameters}
    assert vars(cls(**marks)) == marks


@pytest.mark.parametrize("name", plotting.__all__)
def test_docstrings(name):
    cls = getattr(plotting, name)
    makers = [getattr(cls, maker) for maker in vars(cls) if maker.startswith("from_")]
    assert "\nExamples\n--------\n>>> " in inspect.cleandoc(cls.__doc__)
    for function in [cls.plot, *makers]:
        doc = inspect.cleandoc(function.__doc__)
        assert "\nParameters\n" in doc
        assert "\nReturns\n" in doc
        for parameter in list(inspect.signature(function).parameters)[function is cls.plot :]:
            assert parameter in doc, f"{function.__qualname__}: {parameter}"


@pytest.mark.parametrize("name", plotting.__all__)
def test_without_matplotlib_the_error_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    cls = getattr(plotting, name)
    with pytest.raises(ImportError, match=rf"{name}\.plot .*pip install robustclf\[plot\]"):
        DISPLAYS[name].plot()
    for maker in [maker for maker in vars(cls) if maker.startswith("from_")]:
        needed = {
            p.name: None
            for p in inspect.signature(getattr(cls, maker)).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        }
        with pytest.raises(ImportError, match=rf"{name}\.{maker} needs matplotlib"):
            getattr(cls, maker)(**needed)  # before what is given is looked at


def test_import_does_not_need_matplotlib(monkeypatch):
    monkeypatch.setattr(robustclf, "plotting", plotting)  # which the import replaces
    for name in [name for name in sys.modules if name.startswith("robustclf.plotting")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert import_module("robustclf.plotting").__all__ == plotting.__all__


# Transition ---------------------------------------------------------------------------------------


def words(display):
    return [text.get_text() for text in display.ax_.texts]


def test_transition_rows_are_true_classes():
    display = TransitionDisplay(T, classes=["no", "yes"]).plot()
    assert_array_equal(display.im_.get_array(), T)
    assert [[cell.get_text() for cell in row] for row in display.text_] == [
        ["0.90", "0.10"],
        ["0.25", "0.75"],
    ]
    right, low = display.text_[1, 0].get_position()
    assert (right, low) == (0, 1)  # column given, row true; rows run downwards
    assert display.ax_.get_ylim() == (1.5, -0.5)
    ticks = display.ax_.get_xticklabels(), display.ax_.get_yticklabels()
    assert [[tick.get_text() for tick in axis] for axis in ticks] == [["no", "yes"]] * 2
    assert display.ax_.get_ylabel() == "true class"
    assert display.ax_.get_xlabel() == "given label"


def test_transition_with_intervals_of_up_to_six_classes():
    display = TransitionDisplay(T, T - 0.05, T + 0.05).plot()
    assert words(display)[:4] == ["0.90", "0.85 to 0.95", "0.10", "0.05 to 0.15"]
    for k, with_interval in [(6, True), (7, False)]:
        matrix = np.full((k, k), 1 / k)
        display = TransitionDisplay(matrix, matrix - 0.1, matrix + 0.1).plot()
        assert len(words(display)) == k * k * (1 + with_interval)


@pytest.mark.parametrize(("k", "n_numbers"), [(15, 225), (16, 0)])
def test_transition_writes_no_numbers_beyond_fifteen_classes(k, n_numbers):
    display = TransitionDisplay(np.eye(k)).plot()
    assert len(words(display)) == n_numbers
    assert (display.text_ is None) == (n_numbers == 0)


def test_transition_of_an_estimate_brings_classes_and_intervals():
    estimate = estimate_transition(Y, PROBA, random_state=0)
    whole = TransitionDisplay(estimate).plot()
    parts = TransitionDisplay(
        estimate.transition, estimate.low, estimate.high, estimate.classes
    ).plot()
    assert words(whole) == words(parts)
    assert any(" to " in word for word in words(whole))
    assert [tick.get_text() for tick in whole.ax_.get_xticklabels()] == ["no", "yes"]


def test_transition_without_bootstrap_has_no_intervals():
    display = TransitionDisplay.from_predictions(Y, PROBA, n_bootstrap=0)
    assert words(display) == ["0.75", "0.25", "0.25", "0.75"]


def test_transition_text_stands_out_from_the_colour():
    text = TransitionDisplay(np.eye(2)).plot().text_
    assert (text[0, 0].get_color(), text[0, 1].get_color()) == ("white", "black")
    text = TransitionDisplay(np.eye(2)).plot(cmap="Blues_r", text_kw={"fontsize": 3}).text_
    assert (text[0, 0].get_color(), text[0, 1].get_color()) == ("black", "white")
    assert text[0, 0].get_fontsize() == 3


def test_transition_can_do_without_the_scale():
    assert len(TransitionDisplay(T).plot().figure_.axes) == 2
    assert len(TransitionDisplay(T).plot(colorbar=False).figure_.axes) == 1


def test_transition_methods_and_their_parameters():
    trusted = [*range(5), *range(20, 25)]
    display = TransitionDisplay.from_predictions(Y, PROBA, method="anchor", n_bootstrap=0)
    assert_allclose(display.transition, estimate_transition(Y, PROBA, "anchor", n_bootstrap=0))
    display = TransitionDisplay.from_predictions(
        Y, PROBA, method="trusted", trusted=trusted, y_trusted=Y[trusted], n_bootstrap=0
    )
    assert_allclose(display.transition, [[0.74, 0.26], [0.26, 0.74]])


@pytest.mark.parametrize(
    ("display", "message"),
    [
        (TransitionDisplay(T.T + 0.1), "sum to 1"),
        (TransitionDisplay(T, low=T), r"low and high must have the shape \(2, 2\)"),
        (TransitionDisplay(T, T[:1], T), r"must have the shape \(2, 2\) of T, got \[\(1, 2\)"),
        (TransitionDisplay(T, classes=["a", "b", "c"]), "classes must name each of 2 classes"),
    ],
)
def test_transition_refuses(display, message):
    with pytest.raises(ValueError, match=message):
        display.plot()
    assert not plt.get_fignums()


# Out-of-fold probabilities ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [TransitionDisplay, LabelQualityDisplay])
def test_from_estimator_fits_copies_without_the_row(cls):
    X, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    model = GaussianNB()
    proba = cross_val_predict(model, X, names, cv=3, method="predict_proba")
    given = cls.from_estimator(model, X, names, cv=3)
    same = cls.from_predictions(names, proba)
    assert not hasattr(model, "classes_")
    for attribute in {"transition", "classes", "quality", "suspicious"} & vars(same).keys():
        assert_array_equal(getattr(given, attribute), getattr(same, attribute))


@pytest.mark.parametrize("cls", [TransitionDisplay, LabelQualityDisplay])
def test_from_estimator_reads_out_of_fold_probabilities_of_these_rows(cls):
    model = FromFirstColumn()
    model.classes_, model.oof_proba_ = np.array(["no", "yes"]), PROBA
    given, same = cls.from_estimator(model, None, Y), cls.from_predictions(Y, PROBA)
    for attribute in {"transition", "quality"} & vars(same).keys():
        assert_array_equal(getattr(given, attribute), getattr(same, attribute))
    X, y = np.repeat([[0.0], [1.0]], 5, axis=0), np.repeat([0, 1], 5)
    other = cls.from_estimator(model, X, y, cv=2)  # of ten rows, not forty: fitted anew
    expected = {"transition": np.eye(2), "quality": np.full(10, 0.85)}
    for attribute in expected.keys() & vars(other).keys():
        assert_allclose(getattr(other, attribute), expected[attribute])


def test_from_estimator_fits_anew_to_as_many_other_rows():
    X, y = numbered(40, 2)
    model = FromFirstColumn().fit(X, y)
    model.oof_proba_, model.label_quality_ = model.predict_proba(X) / 2 + 0.25, np.full(40, 0.675)
    model.label_quality_[0] = np.nan
    assert_allclose(LabelQualityDisplay.from_estimator(model, X, y).quality, 0.675)
    other = LabelQualityDisplay.from_estimator(model, X[::-1], y[::-1])
    assert_allclose(other.quality, 0.85)


def test_from_estimator_fits_copies_to_the_labels_as_they_are():
    X, y = load_iris(return_X_y=True)
    clf = RobustClassifier(loss="ce", hidden=(), max_epochs=20, lr=0.1, random_state=0)
    rare = {"a": 1.0, "b": 1.0, "c": 1e-6}
    display = LabelQualityDisplay.from_estimator(
        clf.set_params(class_weight=rare), X, np.array(["a", "b", "c"])[y], cv=3
    )
    assert display.quality[y == 1].mean() > 0.5 > display.quality[y == 2].mean()
    assert_array_equal(
        LabelQualityDisplay.from_estimator(
            clf.set_params(class_weight={5: 1.0, 6: 1.0, 7: 1e-6}), X, y + 5, cv=3
        ).quality,
        display.quality,
    )


@pytest.mark.parametrize("cls", [TransitionDisplay, LabelQualityDisplay])
def test_from_estimator_refuses_regressors(cls):
    with pytest.raises(ValueError, match="must be a classifier, got LinearRegression"):
        cls.from_estimator(LinearRegression(), np.zeros((40, 1)), Y)


# Label quality ------------------------------------------------------------------------------------


def heights(display):
    return {name: [bar.get_height() for bar in bars] for name, bars in display.bars_.items()}


def test_quality_counts_every_row_once():
    quality = np.random.default_rng(0).random(1000)
    quality[:2] = 0, 1  # the ends belong to the first and the last bar
    display = LabelQualityDisplay(quality).plot(bins=7)
    assert heights(display).keys() == {"all"}
    assert_array_equal(heights(display)["all"], np.histogram(quality, 7, range=(0, 1))[0])
    assert sum(heights(display)["all"]) == 1000


@pytest.mark.parametrize("suspicious", [[0, 3], [True, False, False, True, False]])
def test_quality_stacks_the_others_on_the_suspicious(suspicious):
    quality = [0.1, 0.2, 0.9, 0.8, np.nan]
    display = LabelQualityDisplay(quality, suspicious).plot(bins=2)
    assert heights(display) == {"suspicious": [1, 1], "other": [1, 1]}
    assert [bar.get_y() for bar in display.bars_["other"]] == [1, 1]
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert legend == ["suspicious rows (2)", "other rows (2)"]  # the fifth has no label


def test_quality_is_the_probability_of_the_given_label():
    display = LabelQualityDisplay.from_predictions(Y, PROBA, bins=10)
    assert_allclose(display.quality, np.tile(OWN, 2))
    assert_array_equal(display.suspicious, find_label_issues(Y, PROBA).rows)
    assert 0 < len(display.suspicious) == sum(heights(display)["suspicious"])
    assert set(display.suspicious) <= set(range(3, 40, 4))
    assert len(display.bars_["other"]) == 10
    told = LabelQualityDisplay.from_predictions(Y, PROBA, suspicious=[0], log=True)
    assert sum(heights(told)["suspicious"]) == 1
    assert told.ax_.get_yscale() == "symlog"


def test_quality_of_labels_that_nothing_speaks_against():
    display = LabelQualityDisplay.from_predictions(Y, np.eye(2)[(Y == "yes").astype(int)], bins=3)
    assert heights(display) == {"suspicious": [0, 0, 0], "other": [0, 0, 40]}


def test_quality_with_a_class_that_no_row_has():
    proba = np.column_stack([PROBA * 0.5, np.full(40, 0.5)])
    display = LabelQualityDisplay.from_predictions(Y, proba, classes=["no", "yes", "zero"])
    assert_allclose(display.quality[0], 0.45)


@pytest.mark.parametrize(
    ("display", "message"),
    [
        (LabelQualityDisplay([0.1, 1.2]), r"in \[0, 1\].* from 0.1 to 1.2"),
        (LabelQualityDisplay([[0.1, 0.2]]), r"got shape \(1, 2\)"),
        (LabelQualityDisplay([0.1, 0.2], [2]), "suspicious must be a mask of 2 rows"),
        (LabelQualityDisplay([0.1, 0.2], [True]), "suspicious must be a mask of 2 rows"),
    ],
)
def test_quality_refuses(display, message):
    with pytest.raises(ValueError, match=message):
        display.plot()


@pytest.mark.parametrize("bins", [0, 2.5])
def test_quality_has_a_number_of_bars(bins):
    with pytest.raises(ValueError, match=f"bins must be an integer >= 1, got {bins}"):
        LabelQualityDisplay([0.1, 0.2]).plot(bins=bins)


# Training dynamics --------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["loss", "margin", "error_norm"])
def test_dynamics_are_medians_and_percentiles(quantity):
    recorded, rows = dynamics(), np.arange(20) < 6
    display = TrainingDynamicsDisplay(recorded, rows).plot(quantity=quantity)
    for name, group in {"suspicious": rows, "other": ~rows}.items():
        values = getattr(recorded, quantity)[:, group]
        assert_array_equal(display.lines_[name].get_xdata(), [1, 2, 3, 4, 5])
        assert_allclose(display.lines_[name].get_ydata(), np.median(values, axis=1))
        [path] = display.bands_[name].get_paths()
        for epoch, of_rows in enumerate(values, start=1):
            ends = path.vertices[path.vertices[:, 0] == epoch, 1]
            assert_allclose([ends.min(), ends.max()], np.quantile(of_rows, [0.1, 0.9]))


def test_dynamics_suspects_negative_areas_under_the_margin():
    recorded = dynamics()
    display = TrainingDynamicsDisplay(recorded).plot()
    same = TrainingDynamicsDisplay(recorded, np.flatnonzero(recorded.aum() < 0)).plot()
    assert display.lines_.keys() == {"suspicious", "other"}
    for name, line in display.lines_.items():
        assert_array_equal(line.get_ydata(), same.lines_[name].get_ydata())


def test_dynamics_leave_out_rows_without_a_label():
    recorded, missing = dynamics(), np.arange(20) < 3
    display = TrainingDynamicsDisplay(recorded.without(missing)).plot()
    same = TrainingDynamicsDisplay(recorded.take(~missing)).plot()
    for name, line in display.lines_.items():
        assert line.get_label() == same.lines_[name].get_label()
        assert_allclose(line.get_ydata(), same.lines_[name].get_ydata(), rtol=1e-6)


def test_dynamics_of_rows_that_are_all_fine():
    display = TrainingDynamicsDisplay(dynamics(n_epochs=1), np.zeros(20, bool)).plot()
    assert display.lines_.keys() == display.bands_.keys() == {"other"}


def test_dynamics_of_a_classifier(iris):
    X, y = iris
    clf = RobustClassifier(loss="gce", max_epochs=3, track_dynamics=True, random_state=0)
    with pytest.raises(NotFittedError):
        TrainingDynamicsDisplay.from_estimator(clf)
    display = TrainingDynamicsDisplay.from_estimator(clf.fit(X, y), suspicious=[0, 1, 2])
    expected = np.median(clf.dynamics_.loss[:, :3], axis=1)
    assert_allclose(display.lines_["suspicious"].get_ydata(), expected)
    assert "p_y" in display.ax_.get_ylabel()
    with pytest.raises(ValueError, match="suspicious must be a mask of 150 rows"):
        TrainingDynamicsDisplay.from_estimator(clf, suspicious=[150])


def test_dynamics_refuses_what_recorded_none():
    model = GaussianNB().fit([[0], [1]], [0, 1])
    with pytest.raises(ValueError, match=r"no dynamics_: fit RobustClassifier\(track_dynamics=Tru"):
        TrainingDynamicsDisplay.from_estimator(model)
    with pytest.raises(ValueError, match=r"unknown quantity 'margn'.* did you mean 'margin'"):
        TrainingDynamicsDisplay(dynamics()).plot(quantity="margn")


# Robustness ---------------------------------------------------------------------------------------


def numbered(n_samples=200, n_classes=4):
    y = np.arange(n_samples) % n_classes
    return np.column_stack([y, np.arange(n_samples)]).astype(float), y


@pytest.mark.parametrize("kind", ["symmetric", "pair", "instance", "feature_noise", "adversarial"])
def test_robustness_noise_is_in_the_training_part_alone(kind):
    X, y = numbered()
    display = NoiseRobustnessDisplay.from_estimator(
        FromFirstColumn(), X, y, kind=kind, rates=(0, 0.1, 0.4), cv=4
    )
    assert display.scores.keys() == {"FromFirstColumn"}
    assert_allclose(display.scores["FromFirstColumn"], [[0] * 4, [0.1] * 4, [0.4] * 4])
    assert kind.replace("_", " ") in display.ax_.get_xlabel()


def test_robustness_conventions():
    X, y = numbered(2000)
    display = NoiseRobustnessDisplay.from_estimator(
        FromFirstColumn(), X, y, convention="all", rates=[0.4]
    )
    assert_allclose(display.scores["FromFirstColumn"].mean(), 0.4 * 3 / 4, atol=0.01)
    assert "drawn from all classes" in display.ax_.get_xlabel()


def test_robustness_gives_all_estimators_the_same_labels_and_jobs_change_nothing():
    X, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    models = {"one": GaussianNB(), "two": GaussianNB()}
    params = {"rates": (0.0, 0.4), "cv": 3, "random_state": 7, "scoring": "balanced_accuracy"}
    display = NoiseRobustnessDisplay.from_estimators(models, X, names, **params)
    assert_array_equal(display.scores["one"], display.scores["two"])
    with parallel_config(backend="threading"):
        again = NoiseRobustnessDisplay.from_estimators(models, X, names, n_jobs=2, **params)
    assert_array_equal(display.scores["two"], again.scores["two"])
    other = NoiseRobustnessDisplay.from_estimators(models, X, names, **(params | {"cv": 4}))
    assert other.scores["one"].shape == (2, 4)
    assert display.ax_.get_ylabel() == "balanced accuracy on clean test rows"
    assert not hasattr(models["one"], "classes_")


def test_robustness_draws_mean_and_standard_deviation():
    scores = {"a": [[0.9, 0.7], [0.5, 0.5]], "b": [[1.0, 1.0], [0.9, 0.7]]}
    display = NoiseRobustnessDisplay([0, 0.25], scores).plot()
    assert_allclose(display.lines_["a"].get_ydata(), [0.8, 0.5])
    assert_allclose(display.lines_["b"].get_ydata(), [1, 0.8])
    [path] = display.bands_["a"].get_paths()
    at_zero = path.vertices[path.vertices[:, 0] == 0, 1]
    assert_allclose([at_zero.min(), at_zero.max()], [0.7, 0.9])
    ticks = [tick.get_text() for tick in display.ax_.get_xticklabels()]
    assert ticks == ["0 %", "25 %"]
    legend = display.ax_.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert "2 repeats" in legend.get_title().get_text()


def test_robustness_refuses():
    X, y = numbered(40)
    make = NoiseRobustnessDisplay.from_estimators
    models = {"a": FromFirstColumn()}
    with pytest.raises(ValueError, match=r"unknown kind of noise.*did you mean 'symmetric'"):
        make(models, X, y, kind="symetric")
    with pytest.raises(ValueError, match="unknown kind of noise with a rate 'open_set'"):
        make(models, X, y, kind="open_set")
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.5"):
        make(models, X, y, rates=(0, 1.5))
    for none in ({}, FromFirstColumn()):
        with pytest.raises(ValueError, match="estimators must be a dict of names"):
            make(none, X, y)
    with pytest.raises(ValueError, match="acuracy"):  # before X is looked at, and any fit
        make(models, None, None, scoring="acuracy")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make(models, X, y[:-1])
    with pytest.raises(ValueError, match=r"scores of 'a' .* each of 2 rates.* got shape \(1, 2\)"):
        NoiseRobustnessDisplay([0, 0.2], {"a": [[1, 1]]}).plot()


# Losses -------------------------------------------------------------------------------------------

P = np.array([0.05, 0.3, 0.6, 0.99])
CURVES = {  # of cross entropy, mean absolute error 1 - p and (1 - p^q) / q with q = 0.7
    "loss": [-np.log(P), 1 - P, (1 - P**0.7) / 0.7],
    "gradient_p": [1 / P, np.ones(4), P**-0.3],
    "gradient_logit": [1 - P, P * (1 - P), P**0.7 * (1 - P)],
}


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("quantity", CURVES)
def test_loss_curves(quantity, n_classes):
    display = LossDisplay.from_losses(quantity=quantity, p=P, n_classes=n_classes)
    for name, expected in zip(["ce", "mae", "gce"], CURVES[quantity], strict=True):
        assert_allclose(display.curves[name], expected)
        assert_allclose(display.lines_[name].get_ydata(), expected)
    assert display.ax_.get_yscale() == ("log" if quantity == "gradient_p" else "linear")
    chance = display.ax_.lines[-1]
    assert_allclose(chance.get_xdata(), 1 / n_classes)


def test_loss_of_all_other_classes():
    # 1 - p_y is spread evenly: normalised cross entropy knows what the others cost
    [curve] = LossDisplay.from_losses("nce", p=P, n_classes=5).curves.values()
    assert_allclose(curve, np.log(P) / (np.log(P) + 4 * np.log((1 - P) / 4)))


def test_losses_are_aliases_or_instances():
    gce, total = make_loss("gce", q=0.3), make_loss("ce") + make_loss("mae")
    display = LossDisplay.from_losses([gce, total, "ce"], p=P)
    assert list(display.curves) == [repr(gce), repr(total), "ce"]
    assert_allclose(display.curves[repr(gce)], (1 - P**0.3) / 0.3)
    assert_allclose(display.curves[repr(total)], 1 - P - np.log(P))
    assert list(LossDisplay.from_losses(gce, p=P).curves) == [repr(gce)]


def test_loss_at_probabilities_in_any_array():
    curve = LossDisplay.from_losses("gce", p=P).curves["gce"]
    assert_array_equal(LossDisplay.from_losses("gce", p=P[::-1]).curves["gce"], curve[::-1])
    fixed = P.copy()
    fixed.setflags(write=False)
    assert_array_equal(LossDisplay.from_losses("gce", p=fixed).curves["gce"], curve)


def test_loss_leaves_the_generator_of_the_caller_alone():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="'legendretron' has no curve"):
        LossDisplay.from_losses("legendretron")
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_refuses():
    with pytest.raises(ValueError, match=r"unknown loss 'gec'.* did you mean 'gce'"):
        LossDisplay.from_losses(["gec"])
    with pytest.raises(ValueError, match="unknown quantity 'grad'"):
        LossDisplay.from_losses(quantity="grad")
    with pytest.raises(ValueError, match="'ensloss' has no curve: it is random"):
        LossDisplay.from_losses("ensloss")
    with pytest.raises(ValueError, match="'legendretron' has no curve: it is learned"):
        LossDisplay.from_losses("legendretron")
    with pytest.raises(ValueError, match="n_classes must be at least 2, got 1"):
        LossDisplay.from_losses(n_classes=1)
    with pytest.raises(ValueError, match=r"probabilities in \(0, 1\), got \[0. "):
        LossDisplay.from_losses(p=[0, 0.5])
    with pytest.raises(ValueError, match=r"curve 'a' has shape \(3,\), p has \(4,\)"):
        LossDisplay(P, {"a": [1, 2, 3]}).plot()


# Reliability --------------------------------------------------------------------------------------


def test_reliability_draws_the_curve_and_what_the_labels_say():
    curve = reliability_curve(Y, PROBA, noise=0.2, n_bins=1)
    display = ReliabilityDisplay.from_predictions(Y, PROBA, noise=0.2, n_bins=1)
    assert_allclose(display.line_.get_xydata(), np.column_stack(curve[:2]))
    plain = reliability_curve(Y, PROBA, n_bins=1)
    assert_allclose(display.labelled_.get_xydata(), np.column_stack(plain[:2]))
    names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert names == [f"noise-corrected (error {curve.error:.3f})", "by the given labels"]
    alone = ReliabilityDisplay.from_predictions(Y, PROBA)
    assert alone.labelled_ is None
    error = expected_calibration_error(Y, PROBA)
    assert alone.line_.get_label() == f"accuracy (error {error:.3f})"


def test_reliability_from_an_estimator_is_out_of_fold():
    X, y = load_iris(return_X_y=True)
    display = ReliabilityDisplay.from_estimator(GaussianNB(), X, y, cv=3, n_bins=3)
    proba = cross_val_predict(GaussianNB(), X, y, cv=3, method="predict_proba")
    assert_allclose(display.confidence, reliability_curve(y, proba, n_bins=3).confidence)


def test_reliability_refuses_numbers_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        ReliabilityDisplay([0.5, 0.6], [0.5]).plot()
