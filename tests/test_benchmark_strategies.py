import copy
import csv
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robustclf import RobustClassifier
from robustclf.strategies import list_strategies

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
data = importlib.import_module("data")
strategies = importlib.import_module("strategies")

CELL = ("digits", "symmetric-.2", 0)


@pytest.fixture
def tiny(monkeypatch):
    """Few rows and short fits."""
    monkeypatch.setattr(strategies, "SETTINGS", {"hidden": (8,), "max_epochs": 5})
    monkeypatch.setattr(strategies, "MAX_TRAIN", {"digits": 200})
    strategies.load_cell.cache_clear()
    yield
    strategies.load_cell.cache_clear()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(path, runs, **common):
    """Write results: (model, dataset, noise, accuracy) each."""
    names = "model", "dataset", "noise", "accuracy"
    common = {"part": "accuracy", "seed": 0, "fit_seconds": 2.0} | common
    results = [common | dict(zip(names, run, strict=True)) for run in runs]
    path.write_text("".join(json.dumps(result) + "\n" for result in results))


def summary(path, *arguments):
    return strategies.summarise(
        strategies.parse_args(["--summary", "--results", str(path), *arguments])
    )


def test_every_strategy_is_a_variant_and_one_that_must_be_told_groups_waits_for_its_part():
    assert set(list_strategies()) < set(strategies.variants())
    jobs = list(strategies.jobs(strategies.parse_args([])))
    run = {
        part: {job.variant for job in jobs if job.part == part and job.loss == "gce"}
        for part in strategies.PARTS
    }
    everywhere = {v for v in strategies.variants() if not strategies.told(v)}
    assert run["accuracy"] == everywhere
    assert {job.variant for job in jobs if job.loss == "recipe"} == set(strategies.list_recipes())
    assert everywhere <= run["groups"]
    assert all("plain" in run[part] for part in ("accuracy", "groups", "adversarial", "semi"))
    assert len(set(jobs)) == len(jobs)


def test_a_partial_file_holds_full_tables():
    args = strategies.parse_args([])
    jobs = list(strategies.jobs(args))
    order = [(job.cell[2], args.losses.index(job.loss)) for job in jobs]
    assert order == sorted(order)
    assert jobs[0].model == "ce/plain"


def test_shortcut_tells_the_class_in_training_and_nothing_in_the_test():
    (X, y, X_test, y_test), groups, test_groups = data.load_shortcut("digits", "none", 0, seed=1)
    assert (X[:, -1] == y).mean() == pytest.approx(0.95, abs=0.001)
    assert np.bincount(groups, minlength=4).min() > 20
    assert (X_test[:, -1] == y_test).mean() == pytest.approx(0.5, abs=0.07)
    np.testing.assert_array_equal(test_groups, 2 * y_test + X_test[:, -1])
    noisy = data.load_shortcut("digits", "symmetric", 0.2, seed=1)
    assert (noisy[0][1] != y).mean() == pytest.approx(0.2, abs=0.001)
    np.testing.assert_array_equal(noisy[0][0], X)


def test_labelled_rows_are_a_share_of_each_class():
    y = np.repeat([0, 1, 2], [50, 100, 150])
    rows = data.labelled_rows(y, 0.1, seed=0)
    np.testing.assert_array_equal(np.bincount(y[rows]), [5, 10, 15])


def test_attack_moves_each_number_by_eps_against_the_label():
    X = np.linspace(-1, 1, 201)[:, None]
    y = (X[:, 0] > 0).astype(int)
    model = RobustClassifier(
        loss="gce", preprocess=None, hidden=(16,), max_epochs=40, random_state=0
    ).fit(X, y)
    steep = copy.deepcopy(model)
    with torch.no_grad():  # probabilities of exactly one, whose loss has no gradient left
        for parameter in steep.net_.module_.parameters():
            parameter.mul_(100)
    for fitted in (model, steep):
        hit = strategies.fgsm_accuracy(fitted, X.astype("float32"), y, 0.25)
        assert hit == pytest.approx(0.75, abs=0.03)
        assert strategies.fgsm_accuracy(fitted, X, y, 0) == fitted.score(X, y)


def test_each_part_runs_once_and_resumes(tiny, tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    common = ["--datasets", "digits", "--seeds", "0", "--losses", "ce", "--results", str(path)]
    command = [*common, "--variants", "plain,vat"]
    for shard in ("0/2", "1/2", "0/1"):
        strategies.main([*command, "--shard", shard])
    found = lines(path)
    assert not [run for run in found if "error" in run]
    keys = [(run["part"], run["model"], run["noise"]) for run in found]
    assert len(set(keys)) == len(keys)
    assert capsys.readouterr().out.count("\n") == len(keys)
    assert {key[0] for key in keys} == set(strategies.PARTS) - {"cost"}
    for run in found:
        assert 0 <= run[strategies.PARTS[run["part"]].metric] <= 1


def test_cost_is_the_ratio_of_fits_in_turns(tiny, tmp_path):
    path = tmp_path / "results.jsonl"
    command = ["--cost", "--losses", "gce", "--results", str(path), "--variants"]
    strategies.main([*command, "plain,label_smoothing"])
    (run,) = lines(path)
    assert run["model"] == "gce/label_smoothing"
    assert 0.2 < run["ratio"] < 5
    save(path, [("gce/plain", "digits", "pair-.4", 0.5), ("gce/mixup", "digits", "pair-.4", 0.6)])
    with path.open("a") as file:
        file.write(json.dumps(run | {"model": "gce/mixup", "ratio": 1.26}) + "\n")
    table = summary(path)
    assert "| gce | mixup |  |  | .600 |  |  | .600 | +.100 | 1 | 0 | 1 | 1.3 |" in table


def test_an_error_is_recorded_and_listed(tiny, tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(strategies, "variants", lambda: {"plain": {}, "broken": {"strategy": "?"}})
    command = ["--parts", "accuracy", "--datasets", "digits", "--seeds", "0", "--losses", "ce"]
    strategies.main([*command, "--results", str(path), "--variants", "broken"])
    assert all("error" in run for run in lines(path))
    assert summary(path).count("failed: digits") == 4


def test_only_cells_that_plain_training_has_are_compared(tmp_path):
    path = tmp_path / "results.jsonl"
    hard, easy = ("vowel", "pair-.4"), ("digits", "symmetric-.4")
    runs = [("ce/plain", *easy, 0.9), ("ce/plain", *hard, 0.5), ("ce/plain", "digits", "none", 1.0)]
    runs += [("ce/elr", *easy, 0.8), ("ce/elr", "vehicle", "pair-.4", 0.7)]  # and not the hard one
    runs += [("ce/ogc", *easy, 0.95), ("ce/ogc", *hard, 0.65), ("ce/ogc", "digits", "none", 0.9)]
    save(path, runs)
    table = summary(path).splitlines()
    assert table[4:7] == [
        "| ce | ogc | .900 | .950 | .650 |  |  | .800 | +.100 | 2 | 0 | 2 | 1.0 |",
        "| ce | plain | 1.000 | .900 | .500 |  |  | .700 |  |  |  | 2 | 1.0 |",
        "| ce | elr |  | .800 |  |  |  | .800 | -.100 | 0 | 1 | 1 | 1.0 |",
    ]


def test_helps_and_hurts_need_most_of_at_least_three_cells(tmp_path):
    path = tmp_path / "results.jsonl"
    gains = {"a": (0.1, 0.1, 0.1, -0.1), "b": (0.2, 0.2, -0.1, -0.1), "c": (-0.02,) * 4}
    gains |= {"d": (0.001,) * 4, "e": (0.3,) * 2, "plain": (0.0,) * 4}
    tables = ("digits", "vehicle", "vowel", "satellite")
    save(
        path,
        [
            (f"ce/{variant}", table, "pair-.4", 0.5 + gain)
            for variant, values in gains.items()
            for table, gain in zip(tables, values, strict=False)
        ],
    )
    summary(path, "--csv", str(tmp_path))
    with (tmp_path / "strategy_helps.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {"loss": "ce", "noise": "pair", "helps": "a +.050", "hurts": "c -.020"}


def test_a_recipe_is_compared_with_cross_entropy(tmp_path):
    path = tmp_path / "results.jsonl"
    cell = ("digits", "pair-.4")
    save(path, [("ce/plain", *cell, 0.5), ("gce/plain", *cell, 0.7), ("recipe/pls", *cell, 0.6)])
    assert "| recipe | pls |  |  | .600 |  |  | .600 | +.100 | 1 | 0 | 1 | 1.0 |" in summary(path)


def test_documented_variants_exist():
    known = {(loss, variant) for loss in strategies.LOSSES for variant in strategies.variants()}
    known |= {("recipe", recipe) for recipe in strategies.list_recipes()}
    for path in (Path(__file__).parents[1] / "docs").glob("strategy_*.csv"):
        with path.open() as file:
            rows = [row for row in csv.DictReader(file) if "variant" in row]
        assert {(row["loss"], row["variant"]) for row in rows} <= known, (
            "run `python benchmarks/strategies.py --summary --csv docs` after deleting old names"
        )
