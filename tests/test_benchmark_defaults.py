import importlib
import sys
from pathlib import Path

from robustclf import RobustClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
defaults = importlib.import_module("defaults")


def test_every_variant_changes_one_default():
    own = RobustClassifier().get_params()
    for name, settings in defaults.VARIANTS.items():
        assert all(own[key] != value for key, value in settings.items())
        assert name == "defaults" or len(settings) == 1


def test_summary_by_hand(monkeypatch):
    monkeypatch.setattr(defaults, "VARIANTS", {"defaults": {}, "a": {}, "b": {}})
    cells = {
        ("digits", "none", 10): (0.9, 0.8, 0.9),
        ("vowel", "none", 10): (0.7, 0.9, 0.7),
        ("vowel", "pair-.4", 10): (0.5, 0.5, 0.4),
    }
    runs = {
        cell: {n: {"accuracy": value} for n, value in zip("dab", values, strict=True)}
        for cell, values in cells.items()
    }
    for each in runs.values():
        each["defaults"] = each.pop("d")
    runs["digits", "pair-.4", 10] = {"defaults": {"accuracy": 0.1}}  # not complete: left out
    assert defaults.summary(runs).splitlines() == [
        "change,none,pair-.4,mean",
        "none,0.800,0.500,0.650",
        "a,+0.050,+0.000,+0.025",
        "b,+0.000,-0.100,-0.050",
    ]
