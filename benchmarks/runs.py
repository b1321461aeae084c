"""The file of results that a benchmark appends to: one JSON line per run."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Run = dict[str, Any]  # dataset, noise, seed, model, settings and measures or error
Cell = tuple[str, str, int]  # dataset, noise, seed
Cells = dict[Cell, dict[str, Run]]  # the runs of each cell by model


def parse_names(text: str) -> list[str]:
    """Return the names of a list such as `digits,dna`."""
    return text.split(",")


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of a list such as `0,1,2`."""
    return [int(number) for number in text.split(",")]


def parse_noise(noise: str) -> tuple[str, float]:
    """Return the kind and the rate of a noise such as `pair-.4`."""
    kind, _, rate = noise.partition("-")
    return kind, float(rate or 0)


def read_results(path: Path, **wanted: Any) -> Cells:
    """Return the wanted runs of each cell by model; a later line replaces an earlier one."""
    done: Cells = defaultdict(dict)
    lines = path.read_text().splitlines() if path.exists() else []
    for result in map(json.loads, lines):
        if all(result[key] == value for key, value in wanted.items()):
            cell = result["dataset"], result["noise"], result["seed"]
            done[cell][result["model"]] = result
    return done


def is_done(done: Cells, cell: Cell, model: str, retry: bool) -> bool:
    result = done.get(cell, {}).get(model)
    return result is not None and not (retry and "error" in result)


def append(path: Path, result: Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def metric_of(result: Run) -> str:
    """Return what a run is judged by: the area under the ROC curve where that was measured."""
    return "auc" if "auc" in result else "accuracy"


def score(result: Run) -> float:
    return result[metric_of(result)]


def describe(result: Run, metric: str | None = None) -> str:
    cell = f"{result['dataset']:13} {result['noise']:12} {result['seed']} {result['model']:12}"
    if "error" in result:
        return f"{cell} {result['error']}"
    return f"{cell} {result[metric or metric_of(result)]:.3f} {result['fit_seconds']:8.1f} s"


def failures(done: Cells, models: list[str]) -> list[str]:
    return [
        "\nfailed: " + describe(runs[model])
        for runs in done.values()
        for model in models
        if "error" in runs.get(model, {})
    ]
