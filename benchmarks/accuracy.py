"""Accuracy on clean test labels after training on noisy ones, against other libraries.

Each run appends one line to a results file and is skipped when that line is there, so the
benchmark can be stopped and resumed at will. See README.md beside this file.
"""

import argparse
import ast
import json
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from data import HUMAN_NOISE, TABLES, Features, Labels, Split, load
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).parent / "results" / "accuracy.jsonl"
PEERS = ("rf", "cl-rf", "lgbm", "mlp", "mlp-noes")
INJECTED = (
    "none",
    "symmetric-.2",
    "symmetric-.4",
    "pair-.2",
    "pair-.4",
    "instance-.2",
    "instance-.4",
)
Run = dict[str, Any]  # dataset, noise, seed, model, max_train, settings and accuracy or error
Cell = tuple[str, str, int]  # dataset, noise, seed
Cells = dict[Cell, dict[str, Run]]  # the runs of each cell by model


def make_peer(name: str, seed: int, threads: int) -> Any:
    forest = RandomForestClassifier(300, n_jobs=threads, random_state=seed)
    if name == "rf":
        return forest
    if name == "cl-rf":
        from cleanlab.classification import CleanLearning

        return CleanLearning(forest, seed=seed, find_label_issues_kwargs={"n_jobs": threads})
    if name == "lgbm":
        from lightgbm import LGBMClassifier

        return LGBMClassifier(n_jobs=threads, random_state=seed, verbose=-1)
    stop = {"mlp": True, "mlp-noes": False}[name]
    mlp = MLPClassifier(early_stopping=stop, max_iter=200, random_state=seed)
    return make_pipeline(StandardScaler(), mlp)


def make_robust(settings: dict[str, Any], seed: int, threads: int) -> Any:
    import torch

    from robustclf import RobustClassifier

    torch.set_num_threads(threads)
    return RobustClassifier(random_state=seed).set_params(**settings)


def run(split: Split, name: str, settings: dict[str, Any], seed: int, threads: int) -> Run:
    """Fit one model and return its accuracy and seconds, or what went wrong."""
    if name in PEERS:
        return evaluate(partial(make_peer, name, seed, threads), split, threads)
    return evaluate(partial(make_robust, settings, seed, threads), split, threads)


def accuracy_on(model: Any, X: Features, y: Labels) -> Run:
    return {"accuracy": float((model.predict(X) == y).mean())}


def evaluate(
    make: Callable[[], Any],
    split: Split,
    threads: int,
    measure: Callable[[Any, Features, Labels], Run] = accuracy_on,
    clock: Callable[[], float] = time.perf_counter,
    **fit_params: Any,
) -> Run:
    """Make and fit a model; return its measures and seconds, or what went wrong."""
    X_train, y_noisy, X_test, y_test = split
    try:
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make()
            start = clock()
            model.fit(X_train, y_noisy, **fit_params)
            fitted = clock()
            measures = measure(model, X_test, y_test)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{error!r} in {Path(place.filename).name}:{place.lineno}"}
    seconds = {"fit": fitted - start, "predict": clock() - fitted}
    return measures | {f"{k}_seconds": round(s, 3) for k, s in seconds.items()}


def run_all(args: argparse.Namespace) -> None:
    """Run what the results file lacks."""
    done = read_results(args.results, max_train=args.max_train)
    refuse_mixed_settings(done, args)
    for dataset, noise, seed in grid(args):
        todo = [m for m in args.models if not is_done(done, (dataset, noise, seed), m, args.retry)]
        if not todo:
            continue
        split = load(dataset, *parse_noise(noise), seed, args.max_train)
        for model in todo:
            cell = {"dataset": dataset, "noise": noise, "seed": seed, "max_train": args.max_train}
            settings = {} if model in PEERS else args.settings
            labels = cell | {"model": model, "settings": settings, "threads": args.threads}
            result = labels | run(split, model, settings, seed, args.threads)
            append(args.results, result)
            print(describe(result), flush=True)


def parse_noise(noise: str) -> tuple[str, float]:
    """Return the kind and the rate of a noise such as `pair-.4`."""
    kind, _, rate = noise.partition("-")
    return kind, float(rate or 0)


def grid(args: argparse.Namespace) -> Iterable[Cell]:
    for seed in args.seeds:
        for dataset in args.datasets:
            possible = HUMAN_NOISE if dataset == "cifar10n" else INJECTED
            for noise in possible:
                if noise in args.noises:
                    yield dataset, noise, seed


def is_done(done: Cells, cell: Cell, model: str, retry: bool) -> bool:
    result = done.get(cell, {}).get(model)
    return result is not None and not (retry and "error" in result)


def refuse_mixed_settings(done: Cells, args: argparse.Namespace) -> None:
    for runs in done.values():
        old = runs.get(args.name) if args.name in args.models else None
        if old and old["settings"] != json.loads(json.dumps(args.settings)):
            raise SystemExit(
                f"{args.name!r} was run with {old['settings']}, not with {args.settings}: "
                "give this variant another --name."
            )


def read_results(path: Path, **wanted: Any) -> Cells:
    """Return the wanted runs of each cell by model; a later line replaces an earlier one."""
    done: Cells = defaultdict(dict)
    lines = path.read_text().splitlines() if path.exists() else []
    for result in map(json.loads, lines):
        if all(result[key] == value for key, value in wanted.items()):
            cell = result["dataset"], result["noise"], result["seed"]
            done[cell][result["model"]] = result
    return done


def append(path: Path, result: Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def describe(result: Run, metric: str = "accuracy") -> str:
    cell = f"{result['dataset']:13} {result['noise']:12} {result['seed']} {result['model']:12}"
    if "error" in result:
        return f"{cell} {result['error']}"
    return f"{cell} {result[metric]:.3f} {result['fit_seconds']:8.1f} s"


def summarise(args: argparse.Namespace) -> str:
    """Return the table: per noise, the mean over the cells that all shown models have."""
    done, cells, models = _chosen(args)
    if args.by_model:
        return _model_rows(_groups(cells, args.detail), models)
    rows = [_row(label, group, models) for label, group in _groups(cells, args.detail).items()]
    if cells:
        rows += _seconds_rows(cells, models)
    head = ["| noise | data sets | runs | " + " | ".join(models) + " |"]
    return "\n".join([*head, "|---" * (3 + len(models)) + "|", *rows, *failures(done, models)])


def _chosen(args: argparse.Namespace) -> tuple[Cells, Cells, list[str]]:
    """Return the wanted cells, those of them that all shown models have, and these models."""
    done = read_results(args.results, max_train=args.max_train)
    done = {cell: runs for cell, runs in done.items() if is_wanted(cell, args)}
    models = args.models or sorted({model for runs in done.values() for model in runs})
    return done, {cell: runs for cell, runs in done.items() if is_complete(runs, models)}, models


def _model_rows(groups: dict[str, Cells], models: list[str]) -> str:
    """Return the table turned round, the models with the best mean over the columns first."""
    means = {
        model: [
            mean(runs[model]["accuracy"] for runs in cells.values()) for cells in groups.values()
        ]
        for model in models
    }
    lines = ["| model | mean | " + " | ".join(groups) + " |", "|---" * (2 + len(groups)) + "|"]
    for model in sorted(models, key=lambda model: -mean(means[model])):
        shown = [f"{value:.3f}" for value in [mean(means[model]), *means[model]]]
        lines.append(f"| {model} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def is_wanted(cell: Cell, args: argparse.Namespace) -> bool:
    dataset, noise, seed = cell
    chosen_seed = args.seeds is None or seed in args.seeds
    return dataset in args.datasets and noise in args.noises and chosen_seed


def is_complete(results: dict[str, Run], models: list[str]) -> bool:
    return all("accuracy" in results.get(model, {}) for model in models)


def _groups(cells: Cells, detail: bool) -> dict[str, Cells]:
    """Split the cells by the row of the table they belong to, in the order of INJECTED."""
    order = [*INJECTED, *HUMAN_NOISE]
    groups: dict[str, Cells] = defaultdict(dict)
    for cell in sorted(cells, key=lambda cell: (cell[0] if detail else "", order.index(cell[1]))):
        dataset, noise, _ = cell
        named = detail or noise in HUMAN_NOISE
        groups[f"{dataset} {noise}" if named else noise][cell] = cells[cell]
    return groups


def _row(label: str, cells: Cells, models: list[str]) -> str:
    means = [mean(runs[model]["accuracy"] for runs in cells.values()) for model in models]
    shown = [f"**{m:.3f}**" if m == max(means) else f"{m:.3f}" for m in means]
    return _table_row(label, cells, shown)


def _seconds_rows(cells: Cells, models: list[str]) -> list[str]:
    seconds = [mean(runs[model]["fit_seconds"] for runs in cells.values()) for model in models]
    return [
        _table_row("seconds a fit", cells, [f"{s:.1f}" for s in seconds]),
        _table_row(f"ratio to {models[0]}", cells, [f"{s / seconds[0]:.2f}" for s in seconds]),
    ]


def _table_row(label: str, cells: Cells, shown: list[str]) -> str:
    n_datasets = len({dataset for dataset, _, _ in cells})
    return f"| {label} | {n_datasets} | {len(cells)} | " + " | ".join(shown) + " |"


def failures(done: Cells, models: list[str]) -> list[str]:
    return [
        "\nfailed: " + describe(runs[model])
        for runs in done.values()
        for model in models
        if "error" in runs.get(model, {})
    ]


def parse_setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", type=names, help=f"of {', '.join(PEERS)} and the --name of a variant")
    add("--name", default="robustclf", help="label of RobustClassifier with these --set")
    add("--set", action="append", default=[], metavar="KEY=VALUE", type=parse_setting)
    add("--losses", type=names, help="instead: RobustClassifier with each of these, by its alias")
    add("--datasets", type=names, default=[*TABLES, "cifar10n"])
    add("--noises", type=names, default=[*INJECTED, *HUMAN_NOISE])
    add("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], help="default 0")
    add("--max-train", type=int, default=10_000)
    add("--threads", type=int, default=1)
    add("--results", type=Path, default=RESULTS)
    add("--retry", action="store_true", help="run again what ended in an error")
    add("--summary", action="store_true", help="print the table of the results, run nothing")
    add("--by-model", action="store_true", help="summary with one row per model, sorted")
    add("--detail", action="store_true", help="summary with one row per data set")
    args = parser.parse_args(argv)
    args.settings = dict(args.set)
    if not args.summary:
        args.seeds = args.seeds or [0]
        args.models = args.models or [args.name, *PEERS]
        if unknown := set(args.models) - {args.name, *PEERS}:
            parser.error(f"unknown models {unknown}; there are {', '.join([args.name, *PEERS])}.")
    return args


if __name__ == "__main__":
    arguments = parse_args()
    if arguments.summary:
        print(summarise(arguments))
    elif arguments.losses:
        for loss in arguments.losses:
            arguments.name, arguments.models = loss, [loss]
            arguments.settings = dict(arguments.set) | {"loss": loss}
            run_all(arguments)
    else:
        run_all(arguments)
