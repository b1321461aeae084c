import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from robustclf.losses._base import LOSSES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
accuracy = importlib.import_module("accuracy")
data = importlib.import_module("data")
losses = importlib.import_module("losses")
speed = importlib.import_module("speed")


@pytest.mark.parametrize("noise", ["symmetric", "pair", "instance"])
@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_noise_has_the_asked_share_of_wrong_labels_and_a_seed(noise, rate):
    X, clean, X_test, y_test = data.load("digits", "none", 0, seed=3)
    X_noisy, noisy, _, y_test_noisy = data.load("digits", noise, rate, seed=3)
    np.testing.assert_array_equal(X, X_noisy)
    np.testing.assert_array_equal(y_test, y_test_noisy)
    assert len(X_test) == len(y_test) == 540
    assert (noisy != clean).sum() == pytest.approx(rate * len(clean), abs=1)
    np.testing.assert_array_equal(noisy, data.load("digits", noise, rate, seed=3)[1])
    assert (noisy != data.load("digits", noise, rate, seed=4)[1]).any()


def test_pair_noise_gives_the_next_class_and_symmetric_noise_any():
    clean = data.load("digits", "none", 0, seed=0)[1]
    steps = {
        noise: set((data.load("digits", noise, 0.4, seed=0)[1] - clean) % 10)
        for noise in ("pair", "symmetric")
    }
    assert steps == {"pair": {0, 1}, "symmetric": set(range(10))}


def test_instance_noise_depends_on_the_features():
    rng = np.random.default_rng(0)
    X = np.repeat([[-1.0], [1.0]], 500, axis=0) * np.ones(20)
    noisy = data.instance(X, np.tile([0, 1, 2, 3], 250), 0.4, rng)
    below, above = (np.bincount(half, minlength=4) for half in (noisy[:500], noisy[500:]))
    assert abs(below - above).max() > 100


def test_large_training_parts_are_cut_and_no_class_disappears():
    X, y, _, _ = data.load("digits", "pair", 0.4, seed=0, max_train=60)
    assert X.shape == (60, 64)
    assert np.bincount(y, minlength=10).min() >= 2
    clean, noisy = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(data.keep_classes(clean, noisy), [0, 0, 1, 1, 1, 2])


def test_missing_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTCLF_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set ROBUSTCLF_DATA"):
        data.load("cifar10n", "worse", 0, seed=0)


def test_summary_averages_what_all_models_have(tmp_path):
    path = tmp_path / "results.jsonl"
    scores = {"digits": {"rf": 0.9, "mlp": 0.7}, "vowel": {"rf": 0.7, "mlp": 0.8}, "dna": {"rf": 0}}
    common = {"noise": "pair-.4", "seed": 1, "max_train": 10_000, "fit_seconds": 2.0}
    lines = [
        common | {"dataset": dataset, "model": model, "accuracy": score}
        for dataset, models in scores.items()
        for model, score in models.items()
    ]
    lines.append(common | {"dataset": "dna", "model": "mlp", "error": "ValueError()"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = accuracy.parse_args(["--summary", "--models", "rf,mlp", "--results", str(path)])
    table = accuracy.summarise(args)
    assert "| pair-.4 | 2 | 2 | **0.800** | 0.750 |" in table
    assert "| ratio to rf | 2 | 2 | 1.00 | 1.00 |" in table
    assert "dna           pair-.4      1 mlp          ValueError()" in table


def test_runs_are_appended_once_and_failures_recorded(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    command = "--models mlp,broken --name broken --set loss=typo --datasets digits --noises none"
    few = ["--seeds", "0", "--max-train", "200", "--results", str(path)]
    args = accuracy.parse_args([*command.split(), *few])
    accuracy.run_all(args)
    accuracy.run_all(args)
    mlp, broken = map(json.loads, path.read_text().splitlines())
    assert mlp["accuracy"] > 0.6
    assert broken["settings"] == {"loss": "typo"}
    assert "error" in broken
    assert capsys.readouterr().out.count("digits") == 2


def test_losses_are_timed_at_every_shape_and_written(tmp_path, capsys):
    path = tmp_path / "costs.json"
    aliases = ["mae", "nce", "legendretron", "backward_corrected"]
    command = f"--losses {','.join(aliases)} --shapes 64x4,2x1001 --rounds 2 --json {path}"
    losses.main(command.split())
    written = json.loads(path.read_text())
    assert written.keys() == {"torch", "threads", "shapes", "ratios"}
    assert written["shapes"] == [[64, 4], [2, 1001]]
    assert list(written["ratios"]) == aliases
    assert written["ratios"].pop("backward_corrected")[1] is None
    assert all(ratio > 0 for row in written["ratios"].values() for ratio in row)
    printed = capsys.readouterr().out
    assert "| backward_corrected |" in printed
    assert "| 64 x 4 | 2 x 1,001 |" in printed


def test_every_loss_of_the_package_is_timed():
    assert losses.all_aliases() == LOSSES.names()
    for alias in losses.all_aliases():
        for task in losses.pair_of_tasks(losses.build(alias, 3), (8, 3), "cpu").values():
            task()


def test_missed_goals_have_a_mark_and_learned_losses_no_goal():
    ratios = {"mae": [1.3, 1.31], "nce": [2.5, None], "ensloss": [99.0, 1.0]}
    table = losses.table(ratios, [(64, 4), (8, 5)])
    assert "| pointwise (goal 1.3) | 64 x 4 | 8 x 5 |" in table
    assert "| mae | 1.30 | 1.31 * |" in table
    assert "| nce | 2.50 | - |" in table
    assert "| ensloss | 99.00 | 1.00 |" in table


def test_documented_costs_are_of_every_loss():
    costs = json.loads((Path(__file__).parents[1] / "docs" / "loss_costs.json").read_text())
    assert costs["ratios"].keys() == set(LOSSES.names()), (
        "run `python benchmarks/losses.py --json docs/loss_costs.json` with nothing else running"
    )


def test_summary_by_model_puts_the_best_first(tmp_path):
    results = tmp_path / "results.jsonl"
    cell = {"dataset": "digits", "seed": 0, "max_train": 10_000, "settings": {}}
    lines = [
        cell | {"noise": noise, "model": model, "accuracy": value, "fit_seconds": 1.0}
        for noise, model, value in [
            ("none", "ce", 0.9),
            ("none", "mae", 0.8),
            ("pair-.4", "ce", 0.5),
            ("pair-.4", "mae", 0.7),
        ]
    ]
    results.write_text("\n".join(map(json.dumps, lines)))
    args = accuracy.parse_args(["--summary", "--by-model", "--results", str(results)])
    assert accuracy.summarise(args).splitlines() == [
        "| model | mean | none | pair-.4 |",
        "|---|---|---|---|",
        "| mae | 0.750 | 0.800 | 0.700 |",
        "| ce | 0.700 | 0.900 | 0.500 |",
    ]


def test_ratios_are_reported_with_a_goal_that_is_a_limit_or_a_floor(tmp_path, capsys):
    path = tmp_path / "results" / "speed.jsonl"
    ratios = [
        speed.Ratio("slow", [3.0, 2.0, 1.0], 1.5),
        speed.Ratio("fast", [3.0, 2.0, 1.0], 1.5, floor=True),
        speed.Ratio("known", [4.0]),
    ]
    speed.report(ratios, {"threads": 2}, path, what="how many times")
    speed.report(ratios[:1], {"threads": 1}, None)
    assert capsys.readouterr().out.splitlines() == [
        "threads 2",
        "",
        "| how many times | median | min .. max | goal | holds |",
        "|---|---|---|---|---|",
        "| slow | 2.00 | 1.00 .. 3.00 | 1.50 | NO |",
        "| fast | 2.00 | 1.00 .. 3.00 | 1.50 | yes |",
        "| known | 4.00 | 4.00 .. 4.00 | - | - |",
        "threads 1",
        "",
        "| what | median | min .. max | goal | holds |",
        "|---|---|---|---|---|",
        "| slow | 2.00 | 1.00 .. 3.00 | 1.50 | NO |",
    ]
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["threads"] == 2
    assert line["ratios"][2]["values"] == [4.0]
