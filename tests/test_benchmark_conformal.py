import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
conformal = importlib.import_module("conformal")
summary = importlib.import_module("conformal_summary")

DIGITS = ("digits", "symmetric-.2", 0)


@pytest.fixture(scope="module")
def problem():
    return conformal.make_problem(DIGITS, "tree")


def test_rows_calibrate_that_were_not_fitted_to(problem, monkeypatch):
    seen = {}

    class Recording(conformal.GaussianNB):
        def fit(self, X, y):
            seen["fitted"] = X
            return super().fit(X, y)

        def predict_proba(self, X):
            seen.setdefault("calibrated", X)
            return super().predict_proba(X)

    monkeypatch.setitem(conformal.CLASSIFIERS, "recording", lambda seed: Recording())
    conformal.make_problem(DIGITS, "recording")
    fitted, calibrated = (
        {row.tobytes() for row in seen[name]} for name in ("fitted", "calibrated")
    )
    assert len(fitted) + len(calibrated) == 1257
    assert not fitted & calibrated
    assert len(problem.given) == len(problem.true) == len(calibrated) == 628
    assert (problem.given != problem.true).mean() == pytest.approx(0.2, abs=0.05)


def test_transitions_are_those_of_the_noise(problem):
    uniform = np.full((10, 10), 0.2 / 9)
    np.fill_diagonal(uniform, 0.8)
    assert_allclose(problem.transition, uniform)
    pair = conformal.make_problem(("digits", "pair-.2", 0), "bayes").transition
    assert ((pair > 0) == np.eye(10) + np.roll(np.eye(10), 1, axis=1)).all()


def test_scaled_by_hand():
    matrix = np.array([[0.8, 0.2], [0.6, 0.4]])
    assert_allclose(conformal.scaled(matrix, 0.5), [[0.9, 0.1], [0.3, 0.7]])
    assert_allclose(conformal.scaled(matrix, 1.5), [[0.7, 0.3], [0.9, 0.1]])
    assert_allclose(conformal.scaled(np.array([[0.2, 0.8], [0, 1]]), 1.5), [[0, 1], [0, 1]])


def test_classes_without_training_rows_have_probability_0():
    model = conformal.GaussianNB().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 2, 2])
    proba = conformal.class_proba(model, np.array([[0.0]]), 4)
    assert proba.shape == (1, 4)
    assert_array_equal(proba[0, [1, 3]], 0)


def textbook(problem, labels, alpha):
    """Return coverage and size of the sets of LAC at the textbook's quantile."""
    scores = np.sort(1 - problem.proba[np.arange(len(labels)), labels])
    sets = 1 - problem.test_proba <= scores[int(np.ceil((len(labels) + 1) * (1 - alpha))) - 1]
    return sets[np.arange(len(sets)), problem.test].mean(), sets.sum(axis=1).mean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TorchCP imports
@pytest.mark.parametrize("method", ["clean", "ignored", "mapie", "crepes", "torchcp"])
def test_noise_that_is_ignored_gives_textbook_sets(problem, method):
    if method in conformal.PEERS:
        pytest.importorskip(method)
    result = conformal.run(method, problem, 0)["lac"]
    labels = problem.true if method == "clean" else problem.given
    expected = [textbook(problem, labels, alpha) for alpha in conformal.ALPHAS]
    assert_allclose(np.transpose([result["coverage"], result["size"]]), expected)


def test_told_rates_are_those_believed(problem):
    believed = {m: conformal.run(m, problem, 0)["believed"] for m in ("told", "half", "1.5x")}
    assert believed == pytest.approx({"told": 0.2, "half": 0.1, "1.5x": 0.3})


def test_what_is_there_is_not_run_again(problem, tmp_path, monkeypatch, capsys):
    path, made = tmp_path / "conformal.jsonl", []
    monkeypatch.setattr(conformal, "make_problem", lambda *args: made.append(args) or problem)
    argv = ["--datasets", "digits", "--noises", "pair-.2", "--classifiers", "tree"]
    argv += ["--results", str(path), "--seeds", "0,1", "--methods"]
    for methods in ("clean", "clean,ignored", "clean,ignored"):
        conformal.run_all(conformal.parse_args([*argv, methods]))
    assert len(made) == 4
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["model"] for line in lines] == ["clean"] * 2 + ["ignored"] * 2
    assert capsys.readouterr().out.startswith("digits pair-.2 0 tree")


def line(seed, method, coverage, size, **more):
    sets = {"coverage": [coverage, coverage - 0.05], "size": [size, size]}
    result = {"dataset": "dna", "noise": "pair-.2", "seed": seed, "classifier": "forest"}
    result |= {"model": method, "lac": sets, "calibration": 1115, "accuracy": 0.9}
    return json.dumps(result | {"wrong": 0.2, "believed": 0.1} | more)


def test_summary_judges_by_the_standard_error(tmp_path, capsys):
    path = tmp_path / "conformal.jsonl"
    lines = [line(seed, method, 0.96, 1) for seed in (0, 1) for method in summary.SHOWN]
    for seed, coverage in enumerate((0.93, 0.952)):  # mean .941, standard error .011: not below
        lines.append(line(seed, "told", coverage, 1.2))
    for seed, coverage in enumerate((0.93, 0.94)):  # mean .935, standard error .005: below
        lines.append(line(seed, "half", coverage, 2))
    lines.append(line(1, "mapie", 0.97, 1.5))
    lines.append(line(0, "estimate-asymptotic", 0.96, 1))
    path.write_text("\n".join(lines))
    args = conformal.parse_args(["--summary", "--results", str(path), "--csv", str(tmp_path)])
    conformal.summarise(args)
    rows = (tmp_path / "conformal_methods.csv").read_text().splitlines()
    assert "class,told,0.941,0.891,0 of 2,-0.009,1.20,1.20" in rows
    assert "class,half,0.935,0.885,2 of 2,-0.015,2.00,2.00" in rows
    sizes = (tmp_path / "conformal_size.csv").read_text().splitlines()
    assert sizes[1].startswith("pair-.2,dna,1115,1.000,1.000,1.200,")
    assert "forest,pair-.2,0.900,0.200,0.100," in (tmp_path / "conformal_weak.csv").read_text()
    out = capsys.readouterr().out
    assert "mapie lac: 1 runs" in out
    assert "0.5" in out.splitlines()[-1]


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        conformal.parse_args(["--methods", "mapy"])
    assert "unknown methods {'mapy'}" in capsys.readouterr().err
