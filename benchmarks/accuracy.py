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
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from data import BINARY, EVERY, MIXED, REAL, SMALL, TABLES, Features, Labels, Split, load
from peers import APART, PEERS, of_dataframes
from runs import (
    Cell,
    Cells,
    Run,
    append,
    describe,
    is_done,
    parse_names,
    parse_noise,
    parse_numbers,
    read_results,
)
from sklearn.metrics import roc_auc_score
from standings import INJECTED, NOISES, summarise
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).parent / "results" / "accuracy.jsonl"
DOCS = Path(__file__).parents[1] / "docs"
ALL_PEERS = PEERS | APART
SEEDS = range(3)
SEEDS_OF_SMALL = range(10)  # whose few test rows leave a mean of three uncertain


def make_robust(settings: dict[str, Any], seed: int, threads: int) -> Any:
    import torch
    import torch._dynamo  # as torch does for its first optimiser, which a peer's time is without

    from robustclf import RobustClassifier

    torch.set_num_threads(threads)
    return RobustClassifier(random_state=seed).set_params(**settings)


def accuracy_on(model: Any, X: Features, y: Labels) -> Run:
    return {"accuracy": float((model.predict(X) == y).mean())}


def auc_on(model: Any, X: Features, y: Labels) -> Run:
    """Return also the area under the ROC curve, by which tables with few positives are judged."""
    proba = model.predict_proba(X)[:, 1]
    return accuracy_on(model, X, y) | {"auc": float(roc_auc_score(y, proba))}


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
            start, cpu_start = clock(), time.process_time()
            model.fit(X_train, y_noisy, **fit_params)
            fitted, cpu_fitted = clock(), time.process_time()
            measures = measure(model, X_test, y_test)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{error!r} in {Path(place.filename).name}:{place.lineno}"}
    seconds = {"fit": fitted - start, "predict": clock() - fitted}
    seconds["fit_cpu"] = cpu_fitted - cpu_start
    return measures | {f"{k}_seconds": round(s, 3) for k, s in seconds.items()}


def run_all(args: argparse.Namespace) -> None:
    """Run what the results file lacks."""
    done = read_results(args.results, max_train=args.max_train)
    refuse_mixed_settings(done, args)
    for cell in grid(args):
        todo = [model for model in args.models if not is_done(done, cell, model, args.retry)]
        if not todo:
            continue
        dataset, noise, seed = cell
        split = load(dataset, *parse_noise(noise), seed, args.max_train)
        for model in todo:
            labels = {"dataset": dataset, "noise": noise, "seed": seed, "model": model}
            labels |= {"max_train": args.max_train, "threads": args.threads}
            result = labels | run(model, split, cell, args)
            append(args.results, result)
            print(describe(result), flush=True)


def run(model: str, split: Split, cell: Cell, args: argparse.Namespace) -> Run:
    """Fit a peer or the variant; return its settings and measures."""
    dataset, _, seed = cell
    measure = auc_on if dataset.startswith("jira-") else accuracy_on
    if model in ALL_PEERS:
        make = partial(ALL_PEERS[model], seed, args.threads)
        if dataset in MIXED:
            make = partial(of_dataframes, model, make)
        return {"settings": {}} | evaluate(make, split, args.threads, measure)
    make = partial(make_robust, args.settings, seed, args.threads)
    if args.fit_clean:
        split = truly_labelled(split, load(dataset, "none", 0, seed, args.max_train))
    result = evaluate(make, split, args.threads, measure)
    return {"settings": args.settings, "fit_clean": args.fit_clean} | result


def truly_labelled(split: Split, clean: Split) -> Split:
    """Return the split without the training rows whose label is wrong."""
    X_train, y_noisy, X_test, y_test = split
    true = y_noisy == clean[1]
    return X_train[true], y_noisy[true], X_test, y_test


def grid(args: argparse.Namespace) -> Iterable[Cell]:
    for seed in args.seeds or SEEDS_OF_SMALL:
        for dataset in args.datasets:
            if args.seeds or dataset in SMALL or seed in SEEDS:
                for noise in noises_of(dataset):
                    if noise in args.noises:
                        yield dataset, noise, seed


def noises_of(dataset: str) -> tuple[str, ...]:
    """Return the noises of a table.

    Of two classes, with 60 % wrong, each is named the other; noise that depends on the features is
    drawn from numbers.
    """
    if dataset in REAL:
        return REAL[dataset]
    impossible = ("symmetric-.6",) * (dataset in BINARY)
    impossible += ("instance-.2", "instance-.4") * (dataset in MIXED)
    return tuple(noise for noise in INJECTED if noise not in impossible)


def refuse_mixed_settings(done: Cells, args: argparse.Namespace) -> None:
    wanted = json.loads(json.dumps(args.settings)), args.fit_clean
    for runs in done.values():
        old = runs.get(args.name) if args.name in args.models else None
        if old and (old["settings"], old.get("fit_clean", False)) != wanted:
            raise SystemExit(
                f"{args.name!r} was run with {_told(old)}, not with {_told(vars(args))}: "
                "give this variant another --name."
            )


def _told(run: Run) -> str:
    return f"{run['settings']}{' on the truly labelled rows' if run.get('fit_clean') else ''}"


def parse_setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", type=parse_names, help=f"of {', '.join(ALL_PEERS)} and the --name of a variant")
    add("--name", help="label of RobustClassifier with these --set; default robustclf, or oracle")
    add("--set", action="append", default=[], metavar="KEY=VALUE", type=parse_setting)
    add("--fit-clean", action="store_true", help="give the variant the truly labelled rows only")
    add(
        "--losses",
        type=parse_names,
        help="instead: RobustClassifier with each of these, by its alias",
    )
    add("--datasets", type=parse_names, default=[*TABLES, *REAL])
    add("--noises", type=parse_names, default=list(NOISES))
    add("--seeds", type=parse_numbers, help=f"default 0 to 2, and to 9 of {', '.join(SMALL)}")
    add("--max-train", type=int, default=10_000)
    add("--threads", type=int, default=1)
    add("--results", type=Path, default=RESULTS)
    add("--retry", action="store_true", help="run again what ended in an error")
    add("--summary", action="store_true", help="print the tables of the results, run nothing")
    add("--by-model", action="store_true", help="summary with one row per model, sorted")
    add("--detail", action="store_true", help="summary with one row per data set")
    add("--csv", type=Path, metavar="FOLDER", help="summary; write accuracy.csv there, too")
    add(
        "--diagram",
        type=Path,
        nargs="?",
        const=DOCS / "accuracy_ranks.svg",
        metavar="PATH",
        help="summary; draw the mean ranks, too (default docs/accuracy_ranks.svg)",
    )
    args = parser.parse_args(argv)
    args.settings = dict(args.set)
    args.name = args.name or ("oracle" if args.fit_clean else "robustclf")
    args.summary = bool(args.summary or args.csv or args.diagram)
    known = {"datasets": EVERY, "noises": NOISES}
    if not args.summary:
        args.models = args.models or [args.name, *([] if args.fit_clean else PEERS)]
        known["models"] = [args.name, *ALL_PEERS]
    for what, names_known in known.items():
        if unknown := set(getattr(args, what)).difference(names_known):
            parser.error(f"unknown {what} {unknown}; there are {', '.join(names_known)}.")
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
