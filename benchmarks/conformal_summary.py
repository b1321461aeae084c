"""The tables of the runs of conformal.py."""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from runs import Run, read_results

ALPHAS = (0.05, 0.1)
SCORES = ("lac", "aps")
SHOWN = ("clean", "ignored", "told", "told-asymptotic", "told-none", "estimate", "half", "1.5x")
PEERS = ("mapie", "crepes", "torchcp")
JUDGED = (
    *("clean", "ignored", *PEERS, "told", "told-none", "told-asymptotic", "told-bortolotti"),
    *("estimate", "estimate-asymptotic", "half", "1.5x", "1.5x-asymptotic"),
)
KINDS = {  # of noise, by what it depends on
    "class": ("symmetric-.2", "pair-.2"),
    "features": ("instance-.2",),
    "annotators": ("aggre", "random1", "worse"),
}
FACTS = ("accuracy", "wrong", "believed")
Table = list[list[str]]
Groups = dict[tuple[str, str], dict[str, list[Run]]]  # (noise, dataset) -> method -> seeds


def summarise(args: argparse.Namespace) -> None:
    """Print the tables; write them where `--csv` says."""
    forest = grouped(args, "forest")
    tables = {
        "conformal_coverage": per_table(forest, "coverage"),
        "conformal_size": per_table(forest, "size"),
        "conformal_methods": judged(forest),
        "conformal_weak": weak(args),
    }
    for name, rows in tables.items():
        if args.csv:
            write(args.csv / f"{name}.csv", rows)
        print(f"\n{name}", *(" | ".join(row) for row in rows), sep="\n")
    for text in agreement(forest):
        print(text)


def grouped(args: argparse.Namespace, classifier: str) -> Groups:
    """Return the runs of each noise and table by method."""
    found: Groups = defaultdict(lambda: defaultdict(list))
    for (dataset, noise, seed), runs in read_results(args.results, classifier=classifier).items():
        if seed in args.seeds:
            for method, result in runs.items():
                found[noise, dataset][method].append(result)
    return {key: found[key] for key in sorted(found, key=_place)}


def _place(key: tuple[str, str]) -> tuple[int, str]:
    order = ["none", *(noise for noises in KINDS.values() for noise in noises)]
    return order.index(key[0]), key[1]


def values(runs: list[Run], score: str, what: str, place: int) -> list[float]:
    return [run[score][what][place] for run in runs]


def per_table(found: Groups, what: str, score: str = "lac", place: int = 1) -> Table:
    """Return a row for each noise and table, a column for each method."""
    rows = [["noise", "table", "rows", *SHOWN]]
    for (noise, dataset), runs in found.items():
        if noise == "none":
            continue
        means = [mean(values(runs[method], score, what, place)) for method in SHOWN]
        count = str(runs["clean"][0]["calibration"])
        rows.append([noise, dataset, count, *(f"{value:.3f}" for value in means)])
    return rows


def judged(found: Groups) -> Table:
    """Return, for each kind of noise and method, what became of the promise and of the size.

    A cell is a table with its noise, a score and an alpha; it is below where the mean over the
    seeds is more than one standard error below 1 - alpha.
    """
    rows = [["noise", "method", "alpha .05", "alpha .1", "below", "worst", "size / clean", "most"]]
    for kind, noises in KINDS.items():
        tables = [runs for (noise, _), runs in found.items() if noise in noises]
        for method in JUDGED:
            if tables and all(method in runs for runs in tables):
                rows.append([kind, method, *_judged_row(tables, method)])
    return rows


def _judged_row(tables: list[dict[str, list[Run]]], method: str) -> list[str]:
    coverage: dict[int, list[float]] = {0: [], 1: []}
    excess, below, ratios = [], 0, []
    for runs in tables:
        for score in [score for score in SCORES if score in runs[method][0]]:
            for place, alpha in enumerate(ALPHAS):
                covered = values(runs[method], score, "coverage", place)
                coverage[place].append(mean(covered))
                excess.append(mean(covered) - (1 - alpha))
                below += excess[-1] < -standard_error(covered)
                sizes = [
                    mean(values(runs[name], score, "size", place)) for name in (method, "clean")
                ]
                ratios.append(sizes[0] / sizes[1])
    means = [f"{mean(coverage[place]):.3f}" for place in (0, 1)]
    sizes = [f"{mean(ratios):.2f}", f"{max(ratios):.2f}"]
    return [*means, f"{below} of {len(excess)}", f"{min(excess):+.3f}", *sizes]


def standard_error(numbers: list[float]) -> float:
    return stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0


def weak(args: argparse.Namespace) -> Table:
    """Return what `noise="estimate"` believes and covers, LAC at alpha .1; means over tables."""
    methods = ("told", "estimate-asymptotic", "estimate")
    head = ["classifier", "noise", "accuracy", "wrong", "estimated"]
    rows = [[*head, *methods, "its worst table"]]
    for classifier in ("forest", "tree", "bayes"):
        of_noise: dict[str, dict[str, list[float]]] = defaultdict(dict)
        for (noise, dataset), runs in grouped(args, classifier).items():
            if all(method in runs for method in methods):
                facts = [[run[key] for run in runs["estimate"]] for key in FACTS]
                covered = [values(runs[method], "lac", "coverage", 1) for method in methods]
                of_noise[noise][dataset] = [mean(column) for column in (*facts, *covered)]
        for noise, tables in of_noise.items():
            means = [mean(column) for column in zip(*tables.values(), strict=True)]
            worst = min(tables, key=lambda name: tables[name][-1])
            shown = [f"{value:.3f}" for value in means]
            rows.append([classifier, noise, *shown, f"{worst} {tables[worst][-1]:.3f}"])
    return rows


def agreement(found: Groups) -> list[str]:
    """Return how far the peers are from ConformalClassifier where it, too, ignores the noise."""
    texts = []
    for peer in PEERS:
        for score in SCORES:
            pairs = [
                (mine, theirs)
                for runs in found.values()
                for mine, theirs in _same_seed(runs["ignored"], runs.get(peer, []))
                if score in theirs
            ]
            if pairs:
                most = {what: _largest(pairs, score, what) for what in ("coverage", "size")}
                texts.append(f"{peer} {score}: {len(pairs)} runs, largest difference {most}")
    return texts


def _same_seed(ours: list[Run], theirs: list[Run]) -> Iterable[tuple[Run, Run]]:
    by_seed = {run["seed"]: run for run in ours}
    return [(by_seed[run["seed"]], run) for run in theirs]


def _largest(pairs: list[tuple[Run, Run]], score: str, what: str) -> float:
    return max(
        abs(a - b)
        for mine, theirs in pairs
        for a, b in zip(mine[score][what], theirs[score][what], strict=True)
    )


def write(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
