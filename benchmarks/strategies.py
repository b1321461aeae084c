"""What every strategy does to cross entropy and GCE, as differences to training without it.

A variant is a strategy at its defaults, an optimiser, a network or a recipe. Each runs on the same
cells as plain training: accuracy on clean test labels, accuracy of the worst group, accuracy under
attack, accuracy from a tenth of the labels. Runs are appended to a results file and skipped when
they are there, so stop and resume at will. See README.md beside this file.
"""

import argparse
import csv
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from accuracy import accuracy_on, evaluate, make_robust
from data import Features, Labels, labelled_rows, load, load_shortcut
from runs import (
    Cell,
    Cells,
    Run,
    append,
    describe,
    failures,
    is_done,
    parse_names,
    parse_noise,
    parse_numbers,
    read_results,
)
from speed import take_turns
from threadpoolctl import threadpool_limits

from robustclf import RobustClassifier, list_recipes
from robustclf.strategies import list_strategies, make_strategy

RESULTS = Path(__file__).parent / "results" / "strategies.jsonl"
LOSSES = ("ce", "gce")
RECIPE = "recipe"  # in the place of a loss: a recipe brings its own, and is compared with CE
SETTINGS = {"hidden": (128, 128)}  # all else is the default
MAX_TRAIN = {"satellite": 2_000, "cifar10n": 5_000}
OPTIMIZER_SETTINGS: dict[str, dict[str, Any]] = {  # the default rate is one for AdamW
    "sam": {},
    "asam": {},
    "awp": {},
    "momo": {"lr": 1.0},
    "momo_adam": {"lr": 0.01},
    "fadam": {},
}
EPS = 0.1  # of the attack, in units of the encoded numbers: about a tenth of a quartile range
LABELLED = 0.1
HELPS = 0.01  # a smaller mean difference is not called a help or a harm, nor one in few cells
FEWEST = 3
COST_CELL = ("digits", "symmetric-.4", 0)


class Job(NamedTuple):
    """One run."""

    part: str
    loss: str
    variant: str
    cell: Cell
    turns: int = 3  # of the part cost, after one that warms up

    @property
    def model(self) -> str:
        """Return what the results file calls it."""
        return f"{self.loss}/{self.variant}"


def variants() -> dict[str, dict[str, Any]]:
    """Return the parameters of RobustClassifier for each variant, plain training first."""
    found: dict[str, dict[str, Any]] = {"plain": {}}
    found |= {alias: {"strategy": alias} for alias in list_strategies()}
    for name, settings in OPTIMIZER_SETTINGS.items():
        found[f"optimizer={name}"] = {"optimizer": name} | settings
    return found | {"module=nested_mlp": {"module": "nested_mlp"}}


def fact(variant: str, name: str, default: Any) -> Any:
    """Return a fact about a strategy; other variants have the default."""
    known = variant in list_strategies()
    return getattr(make_strategy(variant), name, default) if known else default


def told(variant: str) -> set[str]:
    """Return what a user has to tell the strategy beside the labels."""
    return {"groups", "trusted"}.intersection(fact(variant, "needs", ()))


def make(loss: str, variant: str, seed: int) -> Any:
    """Return the classifier, unfitted."""
    if loss == RECIPE:
        torch.set_num_threads(1)
        model = RobustClassifier.from_recipe(variant)
        return model.set_params(random_state=seed, **SETTINGS)
    return make_robust({"loss": loss} | SETTINGS | variants()[variant], seed, threads=1)


# The parts -------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def load_cell(loader: Callable[..., Any], cell: Cell) -> Any:
    dataset, noise, seed = cell
    return loader(dataset, *parse_noise(noise), seed, MAX_TRAIN.get(dataset, 10_000))


def fit(job: Job, split: Any, **params: Any) -> Run:
    maker = partial(make, job.loss, job.variant, job.cell[2])
    return evaluate(maker, split, threads=1, clock=time.process_time, **params)


def run_accuracy(job: Job) -> Run:
    """Train on wrong labels, test on clean ones."""
    return fit(job, load_cell(load, job.cell))


def run_groups(job: Job) -> Run:
    """Train with a shortcut that fails in test rows; the worst group is where it misleads most."""
    split, groups, test_groups = load_cell(load_shortcut, job.cell)
    params = {"groups": groups} if "groups" in told(job.variant) else {}
    return fit(job, split, measure=partial(worst_group, test_groups), **params)


def worst_group(groups: Labels, model: Any, X: Features, y: Labels) -> Run:
    right = model.predict(X) == y
    worst = min(float(right[groups == group].mean()) for group in np.unique(groups))
    return {"accuracy": float(right.mean()), "worst_group": worst}


def run_adversarial(job: Job) -> Run:
    """Attack the fitted network with the fast gradient sign method."""
    return fit(job, load_cell(load, job.cell), measure=under_attack)


def under_attack(model: Any, X: Features, y: Labels) -> Run:
    return accuracy_on(model, X, y) | {"under_attack": fgsm_accuracy(model, X, y, EPS)}


def fgsm_accuracy(model: Any, X: Features, y: Labels, eps: float) -> float:
    """Return the accuracy on encoded rows, each number moved by eps along the sign of the gradient.

    The gradient is that of log((1 - p_y) / p_y), which has the signs of that of -log p_y and does
    not vanish where p_y rounds to one.
    """
    net, label = model.net_, torch.from_numpy(y)[:, None]
    x = net.to_device(model.encoder_.transform(X)).requires_grad_()
    net.module_.eval()
    log_p = net.module_(x).log_softmax(-1).logsumexp(0)
    wrong = log_p.scatter(1, label, -torch.inf).logsumexp(1)
    (gradient,) = torch.autograd.grad((wrong - log_p.gather(1, label)[:, 0]).sum(), x)
    gradient[:, net.module_.inputs.n_numeric :] = 0
    (p,) = (net.mean_proba(logits) for logits in [net.module_(x + eps * gradient.sign())])
    return float((p.argmax(1) == label[:, 0]).double().mean())


def run_semi(job: Job) -> Run:
    """Give a tenth of the labels; plain training sees no other rows."""
    X, y, X_test, y_test = load_cell(load, job.cell)
    rows = labelled_rows(y, LABELLED, job.cell[2])
    if fact(job.variant, "uses_unlabelled", False):
        partly = np.full_like(y, -1)
        partly[rows] = y[rows]
        return fit(job, (X, partly, X_test, y_test))
    return fit(job, (X[rows], y[rows], X_test, y_test))


def run_cost(job: Job) -> Run:
    """Fit the variant and plain training in turns; return the ratio of the median CPU seconds."""
    X, y, *_ = load_cell(load, job.cell)
    params = {"groups": y} if "groups" in told(job.variant) else {}
    models = {
        "own": lambda: make(job.loss, job.variant, seed=0).fit(X, y, **params),
        "plain": lambda: make(plain_loss(job.loss), "plain", seed=0).fit(X, y),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}

    def timed(name: str) -> None:
        start = time.process_time()
        models[name]()
        seconds[name].append(time.process_time() - start)

    try:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            take_turns({name: partial(timed, name) for name in models}, job.turns)
    except Exception as error:
        return {"error": repr(error)}
    own, plain = (median(values[1:]) for values in seconds.values())  # the first warms up
    return {"ratio": round(own / plain, 3), "fit_seconds": round(own, 3)}


@dataclass(frozen=True)
class Part:
    """What a part measures, where, and of which variants."""

    run: Callable[[Job], Run]
    metric: str
    cells: dict[str, tuple[str, ...]]  # the noises of each table
    takes: Callable[[str], bool]
    compared: Callable[[str], bool] = lambda noise: True  # the noises that the rows are sorted by


ATTACKED = {  # beside plain training: what moves rows or weights to their worst
    *("adversarial", "smooth_adversarial", "vat", "feature_noise"),
    *("optimizer=sam", "optimizer=asam", "optimizer=awp"),
}
INJECTED = ("none", "symmetric-.4", "pair-.4", "instance-.4")
MILD = ("none", "symmetric-.2")
PARTS = {
    "accuracy": Part(
        run_accuracy,
        "accuracy",
        dict.fromkeys(("digits", "vehicle", "vowel", "satellite"), INJECTED)
        | {"cifar10n": ("worse",)},
        takes=lambda variant: not told(variant),
        compared=lambda noise: noise != "none",
    ),
    "groups": Part(
        run_groups,
        "worst_group",
        dict.fromkeys(("digits", "satellite"), MILD),
        takes=lambda variant: told(variant) <= {"groups"},
    ),
    "adversarial": Part(
        run_adversarial,
        "under_attack",
        dict.fromkeys(("digits", "vehicle", "satellite"), MILD),
        takes=lambda variant: variant in {"plain", *ATTACKED},
    ),
    "semi": Part(
        run_semi,
        "accuracy",
        dict.fromkeys(("digits", "vehicle", "vowel", "satellite"), MILD) | {"cifar10n": ("worse",)},
        takes=lambda variant: variant == "plain" or fact(variant, "uses_unlabelled", False),
    ),
    "cost": Part(
        run_cost,
        "ratio",
        {COST_CELL[0]: (COST_CELL[1],)},
        takes=lambda variant: variant != "plain" and told(variant) <= {"groups"},
    ),
}


# Running ---------------------------------------------------------------------------------------


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs, seed by seed and loss by loss: a partial file holds full tables."""
    for seed in args.seeds:
        for loss in args.losses:
            for name in args.parts:
                yield from part_jobs(name, loss, seed, args)


def part_jobs(name: str, loss: str, seed: int, args: argparse.Namespace) -> Iterator[Job]:
    part = PARTS[name]
    if loss == RECIPE:
        chosen = list_recipes() if name in ("accuracy", "cost") else []
    else:
        chosen = [variant for variant in variants() if part.takes(variant)]
    for dataset, noises in part.cells.items():
        for noise in noises:
            cell = dataset, noise, seed
            if dataset in args.datasets and (name != "cost" or cell == COST_CELL):
                some = (v for v in chosen if args.variants is None or v in args.variants)
                yield from (Job(name, loss, variant, cell, args.turns) for variant in some)


def run_all(args: argparse.Namespace) -> None:
    """Run what the results file lacks, or every n-th of it."""
    done = {part: read_results(args.results, part=part) for part in args.parts}
    shard, n_shards = args.shard
    for i, job in enumerate(jobs(args)):
        if i % n_shards == shard and not is_done(done[job.part], job.cell, job.model, args.retry):
            labels = dict(zip(("dataset", "noise", "seed"), job.cell, strict=True))
            labels |= {"part": job.part, "model": job.model}
            result = labels | PARTS[job.part].run(job)
            append(args.results, result)
            metric = PARTS[job.part].metric
            print(f"{job.part:11} {describe(result, metric)}", flush=True)


# The tables ------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A run and that of plain training in the same cell."""

    noise: str
    own: Run
    plain: Run


def plain_loss(loss: str) -> str:
    return "ce" if loss == RECIPE else loss


def paired(cells: Cells, model: str, metric: str) -> list[Pair]:
    """Return the cells that a model and plain training with its loss both have."""
    plain = f"{plain_loss(model.partition('/')[0])}/plain"
    found = []
    for (_, noise, _), runs in cells.items():
        pair = Pair(noise, runs.get(model, {}), runs.get(plain, {}))
        if metric in pair.own and metric in pair.plain:
            found.append(pair)
    return found


def differences(pairs: Sequence[Pair], metric: str) -> list[float]:
    return [pair.own[metric] - pair.plain[metric] for pair in pairs]


def kind(noise: str) -> str:
    return parse_noise(noise)[0]


def models_of(cells: Cells) -> dict[str, list[str]]:
    """Return the models by their loss."""
    found: dict[str, list[str]] = defaultdict(list)
    for model in sorted({model for runs in cells.values() for model in runs}):
        found[model.partition("/")[0]].append(model)
    return {loss: found[loss] for loss in (*LOSSES, RECIPE) if found[loss]}


def rows(name: str, cells: Cells, costs: dict[str, float]) -> list[dict[str, str]]:
    """Return a row per model, the best first within each loss.

    Every number is of the cells that plain training has too. The mean of a model that lacks some is
    one over other cells than that of the rest, so the paired difference sorts the rows.
    """
    part, table = PARTS[name], []
    for models in models_of(cells).values():
        by: dict[str, float] = {}
        pairs = {model: paired(cells, model, part.metric) for model in models}
        for model in models:
            compared = [pair for pair in pairs[model] if part.compared(pair.noise)]
            if compared:
                by[model] = mean(differences(compared, part.metric))
        ordered = sorted(by, key=lambda model: -by[model])
        table += [row(model, pairs[model], part, costs) for model in ordered]
    return table


def row(model: str, pairs: list[Pair], part: Part, costs: dict[str, float]) -> dict[str, str]:
    compared = [pair for pair in pairs if part.compared(pair.noise)]
    by = differences(compared, part.metric)
    loss, _, variant = model.partition("/")
    shown = {"loss": loss, "variant": variant}
    for column in dict.fromkeys(kind(n) for noises in part.cells.values() for n in noises):
        values = [pair.own[part.metric] for pair in pairs if kind(pair.noise) == column]
        shown[column] = number(mean(values)) if values else ""
    shown["mean"] = number(mean(pair.own[part.metric] for pair in compared))
    counts = [number(mean(by), "+"), str(sum(d > 0 for d in by)), str(sum(d < 0 for d in by))]
    counts = ["", "", ""] if variant == "plain" else counts
    shown |= dict(zip(("difference", "won", "lost"), counts, strict=True))
    shown["runs"] = str(len(compared))
    if part.metric != "accuracy":
        shown["accuracy"] = number(mean(pair.own["accuracy"] for pair in compared))
    shown["cost"] = f"{costs[model]:.1f}" if model in costs else ""
    return shown


def number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def is_clear(by: Sequence[float]) -> bool:
    """Tell whether differences have one sign in most of three or more cells, and some size."""
    if len(by) < FEWEST or abs(mean(by)) < HELPS:
        return False
    return sum(d * mean(by) > 0 for d in by) >= 0.75 * len(by)


def helped(cells: Cells) -> list[dict[str, str]]:
    """Return what helps and what hurts with each kind of noise, the strongest first."""
    table = []
    for loss, models in models_of(cells).items():
        for noise in dict.fromkeys(kind(noise) for _, noise, _ in cells):
            clear = {}
            for model in models:
                pairs = [p for p in paired(cells, model, "accuracy") if kind(p.noise) == noise]
                if is_clear(by := differences(pairs, "accuracy")):
                    clear[model.partition("/")[2]] = mean(by)
            ordered = sorted(clear.items(), key=lambda item: -abs(item[1]))
            better = ", ".join(f"{v} {number(d, '+')}" for v, d in ordered if d > 0)
            worse = ", ".join(f"{v} {number(d, '+')}" for v, d in ordered if d < 0)
            table.append({"loss": loss, "noise": noise, "helps": better, "hurts": worse})
    return table


def costs_of(part: str, cells: Cells, path: Path) -> dict[str, float]:
    """Return the cost of each model: the ratios that were measured in turns.

    Without any, and where the rows differ too (semi), the median ratio of the cells' CPU seconds.
    """
    plain = {f"{loss}/plain": 1.0 for loss in LOSSES}
    in_turns = read_results(path, part="cost").get(COST_CELL, {})
    if in_turns and part != "semi":
        return plain | {model: run["ratio"] for model, run in in_turns.items() if "ratio" in run}
    found = {}
    for model in (model for models in models_of(cells).values() for model in models):
        if pairs := paired(cells, model, "fit_seconds"):
            found[model] = median(p.own["fit_seconds"] / p.plain["fit_seconds"] for p in pairs)
    return found


def summarise(args: argparse.Namespace) -> str:
    """Return the tables of all parts as Markdown; write them as CSV into a folder, too."""
    tables, failed = {}, []
    for part in args.parts:
        cells = wanted(read_results(args.results, part=part), args)
        failed += failures(cells, sorted({model for runs in cells.values() for model in runs}))
        if part != "cost":
            tables[part] = rows(part, cells, costs_of(part, cells, args.results))
        if part == "accuracy":
            tables["helps"] = helped(cells)
    tables = {name: table for name, table in tables.items() if table}
    if args.csv:
        for name, table in tables.items():
            write(args.csv / f"strategy_{name}.csv", table)
    texts = [f"## {name}\n\n{markdown(table)}" for name, table in tables.items()]
    return "\n\n".join(texts + failed)


def wanted(cells: Cells, args: argparse.Namespace) -> Cells:
    """Return the cells of these tables and seeds."""
    return {
        (dataset, noise, seed): runs
        for (dataset, noise, seed), runs in cells.items()
        if dataset in args.datasets and (args.seeds is None or seed in args.seeds)
    }


def markdown(table: list[dict[str, str]]) -> str:
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, table: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def parse_shard(text: str) -> tuple[int, int]:
    """Return the two numbers of a text like `0/2`."""
    shard, n_shards = map(int, text.split("/"))
    if not 0 <= shard < n_shards:
        raise argparse.ArgumentTypeError(f"{text}: give 0/2 to one process and 1/2 to the other.")
    return shard, n_shards


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    tables = dict.fromkeys(dataset for part in PARTS.values() for dataset in part.cells)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", type=parse_names, default=list(PARTS), help=f"of {', '.join(PARTS)}")
    add("--cost", action="store_true", help="the part cost alone: fits in turns, for the ratios")
    add("--turns", type=int, default=3, help="of --cost")
    add("--hidden", type=parse_numbers, help="instead of 128,128; with --results of its own")
    add("--losses", type=parse_names, default=[*LOSSES, RECIPE], help="of ce, gce and recipe")
    add("--variants", type=parse_names, help="plain, aliases of strategies, optimizer=sam, ...")
    add("--datasets", type=parse_names, default=list(tables))
    add("--seeds", type=parse_numbers, help="default 0,1,2")
    add(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        help="0/2 and 1/2: two share the work",
    )
    add("--results", type=Path, default=RESULTS)
    add("--retry", action="store_true", help="run again what ended in an error")
    add("--summary", action="store_true", help="print the tables of the results, run nothing")
    add("--csv", type=Path, metavar="FOLDER", help="with --summary: write the tables there, too")
    args = parser.parse_args(arguments)
    if args.cost:
        args.parts, args.seeds = ["cost"], [COST_CELL[2]]
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"unknown parts {unknown}; there are {', '.join(PARTS)}.")
    if not args.summary:
        args.seeds = args.seeds or [0, 1, 2]
        args.parts = args.parts if args.cost else [name for name in args.parts if name != "cost"]
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.hidden:
        SETTINGS["hidden"] = tuple(args.hidden)
    if args.summary:
        print(summarise(args))
    else:
        run_all(args)


if __name__ == "__main__":
    main()
