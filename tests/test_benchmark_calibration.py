import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
calibration = importlib.import_module("calibration")


def test_told_noise_calibrates_better_than_ignored_noise(monkeypatch):
    monkeypatch.setattr(calibration, "METHODS", ("temperature",))
    monkeypatch.delitem(calibration.CLASSIFIERS, "random forest")
    found = {label: error for *_, label, error in calibration.errors(0, (600, 600, 1_000))}
    assert list(found) == [
        "uncalibrated",
        "right labels",
        "noise ignored",
        "noise=0.2",
        'noise="estimate"',
    ]
    assert found["noise=0.2"] < found["noise ignored"] / 2


def test_sets_from_folds_and_from_held_out_rows():
    (folds, covered, size), (held_out, *_) = calibration.sets(0, judged=500)
    assert (folds, held_out) == ("cv=5", "cv=None")
    assert 0.9 < covered <= 1
    assert 1 <= size <= 3


def test_the_table_has_means_over_the_seeds(monkeypatch):
    def errors(seed):
        yield "tree", "vector", "right labels", 1.0 + seed
        yield "tree", "vector", 'noise="estimate"', 3.0 + 2 * seed

    monkeypatch.setattr(calibration, "errors", errors)
    lines = calibration.table([0, 1]).splitlines()
    assert lines == ["classifier,method,right labels,noise=estimate", "tree,vector,1.5,4.0"]
