import importlib
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from sklearn.base import clone

from robustclf import RobustClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
parts = importlib.import_module("auto")

NAMES = ["dropout", "sparse", "forest", "kernel", "kernel corrected", "dropout corrected"]
TRIED = [SimpleNamespace(name=name) for name in NAMES]


@pytest.mark.parametrize(
    ("variant", "left_out"),
    [
        ("auto", []),
        ("without dropout", ["dropout", "dropout corrected"]),
        ("without kernel", ["kernel", "kernel corrected"]),
        ("without kernels", ["kernel", "kernel corrected"]),
        ("without forests", ["forest"]),
        ("without networks", ["dropout", "sparse", "dropout corrected"]),
        ("without corrected others", ["kernel corrected"]),
        ("without corrected networks", ["dropout corrected"]),
        ("without any correction", ["kernel corrected", "dropout corrected"]),
    ],
)
def test_variants_leave_out_what_they_name(variant, left_out):
    keeps = parts.variants(TRIED)[variant]
    assert [model.name for model in TRIED if not keeps(model)] == left_out


def test_every_model_is_left_out_once():
    assert {"without dropout", "without sparse", "without forest"} < parts.variants(TRIED).keys()


def test_the_whole_mixture_is_what_the_classifier_predicts(iris, monkeypatch):
    X, y = iris
    forests = ("forest", "deep_forest")
    few = {name: clone(parts.SHALLOW[name]).set_params(n_estimators=10) for name in forests}
    quick = partial(RobustClassifier, budget="fast", max_epochs=5, hidden=(16,))
    monkeypatch.setattr("robustclf._auto.SHALLOW", few)
    monkeypatch.setattr(parts, "RobustClassifier", quick)
    scores = parts.measure((X[::2], y[::2], X[1::2], y[1::2]), seed=0)
    clf = quick(loss="auto", random_state=0).fit(X[::2], y[::2])
    assert scores["auto"] == clf.score(X[1::2], y[1::2])
    best = clf.auto_report_.candidates[0].name
    assert scores["best alone"] == scores[f"{best} alone"]


def test_summary_by_hand():
    cells = [
        ("none", {"auto": 0.9, "without forests": 0.8, "best alone": 0.84, "sparse alone": 0.1}),
        ("none", {"auto": 0.7, "best alone": 0.7}),  # a variant that was not there changes nothing
        ("pair-.4", {"auto": 0.5, "without forests": 0.6, "best alone": 0.48}),
    ]
    lines = [{"noise": noise, "scores": scores} for noise, scores in cells]
    assert parts.summary(lines).splitlines() == [
        "variant,none,pair-.4,mean",
        "auto,0.800,0.500,0.650",
        "without forests,-0.050,+0.100,+0.025",
        "best alone,-0.030,-0.020,-0.025",
    ]
