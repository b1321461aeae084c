"""The tables of accuracy.py: means per noise, one variant against its peers, single tables."""

import csv
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
from data import EVERY, REAL
from peers import APART, PEERS
from ranks import critical_difference, draw, friedman, mean_ranks
from runs import Cell, Cells, Run, failures, read_results, score

INJECTED = (
    "none",
    "symmetric-.2",
    "symmetric-.4",
    "symmetric-.6",
    "pair-.2",
    "pair-.4",
    "instance-.2",
    "instance-.4",
    "class_dependent-.3",
)
NOISES = tuple(dict.fromkeys([*INJECTED, *(noise for noises in REAL.values() for noise in noises)]))
SECONDS = {"fit_seconds": "seconds a fit", "fit_cpu_seconds": "processor seconds a fit"}
Means = dict[str, dict[str, float]]  # of each table, by model


def summarise(args: Namespace) -> str:
    """Return the tables of what all shown models have; write the files that are asked for."""
    done, cells, models = _chosen(args)
    if args.csv:
        write_per_table(args.csv / "accuracy.csv", cells, models)
    groups = _groups(cells, args.detail)
    if args.by_model:
        return _model_rows(groups, models)
    rows = [_row(label, group, models) for label, group in groups.items()]
    if cells:
        rows += _seconds_rows(cells, models)
    head = ["| noise | data sets | runs | " + " | ".join(models) + " |"]
    rows = [*head, "|---" * (3 + len(models)) + "|", *rows]
    if against := standing(groups, args.name, models):
        lines = [f"| {' | '.join(row)} |" for row in against]
        rows += ["", lines[0], "|---" * len(against[0]) + "|", *lines[1:]]
        if args.csv:
            write(args.csv / "accuracy_standing.csv", against)
    rows += ranking(cells, models, args.diagram)
    return "\n".join([*rows, *failures(done, models)])


def _chosen(args: Namespace) -> tuple[Cells, Cells, list[str]]:
    """Return the wanted cells, those of them that all shown models have, and these models."""
    done = read_results(args.results, max_train=args.max_train)
    done = {cell: runs for cell, runs in done.items() if is_wanted(cell, args)}
    models = args.models or sorted({model for runs in done.values() for model in runs})
    return done, {cell: runs for cell, runs in done.items() if is_complete(runs, models)}, models


def is_wanted(cell: Cell, args: Namespace) -> bool:
    dataset, noise, seed = cell
    chosen_seed = args.seeds is None or seed in args.seeds
    return dataset in args.datasets and noise in args.noises and chosen_seed


def is_complete(results: dict[str, Run], models: list[str]) -> bool:
    return all("accuracy" in results.get(model, {}) for model in models)


def _groups(cells: Cells, detail: bool) -> dict[str, Cells]:
    """Split the cells by the row of the table they belong to, in the order of NOISES."""
    groups: dict[str, Cells] = defaultdict(dict)

    def place(cell: Cell) -> tuple[str, int, str]:
        return (cell[0] if detail else "", NOISES.index(cell[1]), cell[0])

    for cell in sorted(cells, key=place):
        groups[_label(*cell[:2], detail)][cell] = cells[cell]
    return groups


def _label(dataset: str, noise: str, detail: bool) -> str:
    if detail or dataset == "cifar10n":
        return f"{dataset} {noise}"
    return {"jira": "jira (AUC)", "trec": "trec"}.get(dataset.split("-")[0], noise)


def _row(label: str, cells: Cells, models: list[str]) -> str:
    tables = table_means(cells, models).values()
    means = [mean(table[model] for table in tables) for model in models]
    shown = [f"**{m:.3f}**" if m == max(means) else f"{m:.3f}" for m in means]
    return _table_row(label, cells, shown)


def _seconds_rows(cells: Cells, models: list[str]) -> list[str]:
    """Return the mean seconds, of the processor too where all were measured, and their ratios."""
    rows = []
    for key, label in SECONDS.items():
        if all(key in runs[model] for runs in cells.values() for model in models):
            seconds = [mean(runs[model][key] for runs in cells.values()) for model in models]
            rows.append(_table_row(label, cells, [f"{s:.1f}" for s in seconds]))
    ratios = [f"{s / seconds[0]:.2f}" for s in seconds]
    return [*rows, _table_row(f"ratio to {models[0]}", cells, ratios)]


def _table_row(label: str, cells: Cells, shown: list[str]) -> str:
    n_datasets = len({dataset for dataset, _, _ in cells})
    return f"| {label} | {n_datasets} | {len(cells)} | " + " | ".join(shown) + " |"


def _model_rows(groups: dict[str, Cells], models: list[str]) -> str:
    """Return the table turned round, the models with the best mean over the columns first."""
    means = {
        model: [mean(score(runs[model]) for runs in cells.values()) for cells in groups.values()]
        for model in models
    }
    lines = ["| model | mean | " + " | ".join(groups) + " |", "|---" * (2 + len(groups)) + "|"]
    for model in sorted(models, key=lambda model: -mean(means[model])):
        shown = [f"{value:.3f}" for value in [mean(means[model]), *means[model]]]
        lines.append(f"| {model} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def standing(groups: dict[str, Cells], name: str, models: list[str]) -> list[list[str]]:
    """Return the rows of a table: one variant against, in each row, the peer with the best mean.

    Differences are to that peer, the worst one is that of a single table; the rank is among the
    peers. The last column is there with a model that was fitted on the truly labelled rows: how
    much of the way from the peer to that model the variant has gone.
    """
    peers = [model for model in models if model in {*PEERS, *APART}]
    if name not in models or not peers:
        return []
    oracle = next(iter(oracles(groups, models)), None)
    head = ["noise", name, "best peer", "its mean", "difference", "worst table"]
    head += [f"mean rank of {1 + len(peers)}", *([f"of the way to {oracle}"] if oracle else [])]
    rows = [
        [label, *_against(table_means(cells, models), name, peers, oracle)]
        for label, cells in groups.items()
    ]
    return [head, *rows]


def _against(tables: Means, name: str, peers: list[str], oracle: str | None) -> list[str]:
    models = [name, *peers, *([oracle] if oracle else [])]
    means = {model: mean(table[model] for table in tables.values()) for model in models}
    best = max(peers, key=lambda peer: means[peer])
    by = {dataset: table[name] - table[best] for dataset, table in tables.items()}
    worst = min(by, key=lambda dataset: by[dataset])
    scores = np.array([[table[model] for model in (name, *peers)] for table in tables.values()])
    shown = [f"{means[name]:.3f}", best, f"{means[best]:.3f}", f"{means[name] - means[best]:+.3f}"]
    shown += [f"{worst} {by[worst]:+.3f}", f"{mean_ranks(scores)[0]:.1f}"]
    if oracle is None:
        return shown
    way = means[oracle] - means[best]
    return [*shown, f"{(means[name] - means[best]) / way:.2f}" if way > 0 else "-"]


def oracles(groups: dict[str, Cells], models: list[str]) -> list[str]:
    """Return the models that were told which rows are truly labelled."""
    every = [runs for cells in groups.values() for runs in cells.values()]
    return [model for model in models if any(runs[model].get("fit_clean") for runs in every)]


def table_means(cells: Cells, models: list[str]) -> Means:
    """Return the mean over the cells of each table."""
    by_table: dict[str, list[dict[str, Run]]] = defaultdict(list)
    for (dataset, _, _), runs in cells.items():
        by_table[dataset].append(runs)
    return {
        dataset: {model: mean(score(runs[model]) for runs in found) for model in models}
        for dataset, found in by_table.items()
    }


def ranking(cells: Cells, models: list[str], diagram: Path | None) -> list[str]:
    """Return the ranks of the means of each table, the best first; draw them.

    A table counts once, with the mean over its noises and seeds: those of one table are no
    independent trials. Models that were told the truth take no part.
    """
    fair = [model for model in models if model not in oracles({"": cells}, models)]
    tables = table_means(cells, fair)
    if len(fair) < 3 or len(tables) < 2:
        if diagram:
            raise SystemExit(
                f"a diagram needs three models and two tables that all of them have; there are "
                f"{len(fair)} models ({', '.join(fair)}) and {len(tables)} tables."
            )
        return []
    scores = np.array([list(means.values()) for means in tables.values()])
    if diagram:
        draw(fair, scores, diagram)
    ranks = sorted(zip(mean_ranks(scores), fair, strict=True))
    return [
        f"\nmean ranks over {len(tables)} tables: "
        + ", ".join(f"{model} {rank:.2f}" for rank, model in ranks),
        f"Friedman p = {friedman(scores):.2g}, "
        f"critical difference {critical_difference(len(fair), len(tables)):.2f}",
    ]


def write_per_table(path: Path, cells: Cells, models: list[str]) -> None:
    """Write a row per table and noise: the mean over the seeds of each model."""
    by_row: dict[tuple[str, str], Cells] = defaultdict(dict)
    for cell, runs in cells.items():
        by_row[cell[:2]][cell] = runs
    order = [(dataset, noise) for dataset in EVERY for noise in NOISES]
    rows = [["table", "noise", *models]]
    for row in (row for row in order if row in by_row):
        means = table_means(by_row[row], models)[row[0]]
        rows.append([*row, *(f"{means[model]:.3f}" for model in models)])
    write(path, rows)


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
