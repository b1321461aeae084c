import csv
import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
scale = importlib.import_module("scale")


@pytest.fixture
def results(tmp_path):
    """Runs of a cost of 20 (streamed) and 25 microseconds a row."""
    path = tmp_path / "scale.jsonl"
    runs = [
        {"rows": n, "mode": mode, "turn": turn, "cpu": cost * n / 1e6 * (1 + turn), "peak": 10**9}
        | {"predict_cpu": n / 1e6}
        for n in (1_000, 100_000)
        for mode, cost in (("streamed", 20), ("memory", 25))
        for turn in (-0.5, 0, 0.5)
    ]
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return path


def test_the_summary_writes_ratios_and_a_plot(results, tmp_path, capsys):
    args = ["--summary", "--results", str(results), "--csv", str(tmp_path)]
    scale.summarise(scale.parse_args([*args, "--sizes", "1000,100000"]))
    with (tmp_path / "scale.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rows"] for row in rows] == ["1,000", "100,000"]
    assert {(row["streamed"], row["in memory"], row["ratio"]) for row in rows} == {
        ("20.0", "25.0", "1.25")
    }
    assert (tmp_path / "scale.svg").read_text().startswith("<?xml")
    assert "cost of streamed grows as rows^1.00" in capsys.readouterr().out


@pytest.mark.parametrize("mode", scale.MODES)
def test_a_run_fits_the_table_that_was_written(mode, tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr(scale, "GROUP_ROWS", 300)
    scale.write_table(path := tmp_path / "t.parquet", 1_000)
    threads = pa.cpu_count()
    run = scale.measure(path, 1_000, mode)
    pa.set_cpu_count(threads)
    assert 0 < run["loss"] < 1
    assert run["base"] <= run["peak_of_fit"] <= run["peak"]


def test_what_is_there_is_not_run_again(results, monkeypatch):
    monkeypatch.setattr(scale, "write_table", pytest.fail)
    args = ["--results", str(results), "--sizes", "1000,100000", "--turns", "1"]
    scale.run_all(scale.parse_args(args))
