"""Which labels are wrong, and how many: against cleanlab, on injected and on real noise.

Each run appends one line to a results file and is skipped when that line is there, so the
benchmark can be stopped and resumed at will. See README.md beside this file.
"""

import argparse
import csv
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from data import REAL, TABLES, Audit, load_audit
from runs import Cell, Cells, Run, append, parse_names, parse_noise, parse_numbers, read_results
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

RESULTS = Path(__file__).parent / "results" / "issues.jsonl"
DOCS = Path(__file__).parents[1] / "docs"
KINDS, RATES = ("symmetric", "pair", "instance"), (".1", ".2", ".4")
INJECTED = ("none", *(f"{kind}-{rate}" for rate in RATES for kind in KINDS))
SYSTEMS = ("robustclf", "cleanlab-forest")
MODELS = ("robustclf", "cleanlab", "cleanlab-forest")  # the second on probabilities of the first
LARGE = ("letter", "shuttle")  # tables of 20,000 rows
TRANSITIONS = ("confident_joint", "anchor", "dual_t", "em")
RANKED = "auroc", "average_precision", "recall"
Score = np.ndarray


def ranking(score: Score, wrong: np.ndarray) -> Run:
    """Return how well a score, high for wrong labels, ranks them."""
    if not wrong.any():
        return {}
    worst = np.argsort(-score, kind="stable")[: wrong.sum()]
    return {
        "auroc": float(roc_auc_score(wrong, score)),
        "average_precision": float(average_precision_score(wrong, score)),
        "recall": float(wrong[worst].mean()),
    }


def true_transition(given: np.ndarray, true: np.ndarray, k: int) -> np.ndarray:
    counts = np.zeros((k, k))
    np.add.at(counts, (true, given), 1)
    return counts / counts.sum(axis=1, keepdims=True).clip(1)


def transition_error(estimate: Any, given: np.ndarray, true: np.ndarray) -> float:
    """Return the mean over the rows of the table of half the absolute error of their class."""
    matrix = np.asarray(estimate)
    error = abs(matrix - true_transition(given, true, len(matrix))).sum(axis=1) / 2
    return float(error[true].mean())


def run_robustclf(audit: Audit, seed: int, args: argparse.Namespace) -> dict[str, Run]:
    """Fit once; rank by every method, and give cleanlab the same probabilities."""
    from robustclf import RobustClassifier
    from robustclf.noise import estimate_transition, find_label_issues, is_noisy, noise_rate
    from robustclf.noise._detectors import METHODS

    X, given, true = audit
    codes, start = np.arange(given.max() + 1), time.perf_counter()
    clf = RobustClassifier(loss=args.loss, cross_fit=5, track_dynamics=True)
    clf.set_params(random_state=seed, device=args.device)
    proba = clf.fit(X, given).oof_proba_
    known = {"classes": codes, "X": X, "dynamics": clf.dynamics_}
    issues = find_label_issues(given, proba, **known)
    rate = noise_rate(given, proba, classes=codes)
    seconds = time.perf_counter() - start
    wrong = given != true
    scores = {}
    for method in METHODS:
        ranked = find_label_issues(given, proba, method, n_issues="all", **known)
        score = np.empty(len(given))
        score[ranked.rows] = -np.arange(len(given))
        scores[method] = ranking(score, wrong)
    ours = {
        "scores": scores,
        "rate": rate.rate,
        "covered": bool(rate.low <= wrong.mean() <= rate.high),
        "bound_holds": bool(rate.lower_bound <= wrong.mean()),
        "noisy": is_noisy(given, proba, classes=codes),
        "flagged": len(issues) / len(given),
        "precision": float(wrong[issues.rows].mean()) if len(issues) else None,
        "transitions": {
            method: transition_error(
                estimate_transition(given, proba, method, classes=codes, n_bootstrap=0), given, true
            )
            for method in TRANSITIONS
        },
        "seconds": seconds,
    }
    return {"robustclf": ours, "cleanlab": _cleanlab_on(proba, given, true)}


def _cleanlab_on(proba: np.ndarray, given: np.ndarray, true: np.ndarray) -> Run:
    from cleanlab.count import compute_confident_joint, estimate_latent
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    wrong = given != true
    joint = compute_confident_joint(given, proba)
    _, noise_matrix, _ = estimate_latent(joint, given)
    flagged = find_label_issues(given, proba)
    return {
        "scores": {
            method: ranking(-get_label_quality_scores(given, proba, method=method), wrong)
            for method in ("self_confidence", "normalized_margin")
        },
        "rate": float(1 - np.trace(joint) / joint.sum()),
        "flagged": float(flagged.mean()),
        "precision": float(wrong[flagged].mean()) if flagged.any() else None,
        "transitions": {"confident_joint": transition_error(noise_matrix.T, given, true)},
    }


def run_forest(audit: Audit, seed: int, args: argparse.Namespace) -> dict[str, Run]:
    from cleanlab.classification import CleanLearning

    X, given, true = audit
    start = time.perf_counter()
    forest = RandomForestClassifier(300, random_state=seed)
    cleaner = CleanLearning(forest, seed=seed, find_label_issues_kwargs={"n_jobs": 1})
    issues = cleaner.find_label_issues(X, given)
    seconds = time.perf_counter() - start
    wrong, flagged = given != true, issues["is_label_issue"].to_numpy()
    joint = cleaner.confident_joint
    result = {
        "scores": {"self_confidence": ranking(-issues["label_quality"].to_numpy(), wrong)},
        "rate": float(1 - np.trace(joint) / joint.sum()),
        "flagged": float(flagged.mean()),
        "precision": float(wrong[flagged].mean()) if flagged.any() else None,
        "transitions": {"confident_joint": transition_error(cleaner.noise_matrix.T, given, true)},
        "seconds": seconds,
    }
    return {"cleanlab-forest": result}


RUNS = {"robustclf": run_robustclf, "cleanlab-forest": run_forest}


def run_all(args: argparse.Namespace) -> None:
    """Run what the results file lacks."""
    done = read_results(args.results, max_rows=args.max_rows)
    for dataset, noise, seed in grid(args):
        todo = [s for s in args.systems if s not in done.get((dataset, noise, seed), {})]
        if not todo:
            continue
        audit = load_audit(dataset, *parse_noise(noise), seed, args.max_rows)
        cell = {"dataset": dataset, "noise": noise, "seed": seed, "max_rows": args.max_rows}
        cell["true_rate"] = float((audit[1] != audit[2]).mean())
        for system in todo:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = RUNS[system](audit, seed, args)
            for model, result in results.items():
                append(args.results, cell | {"model": model} | result)
                shown = " ".join(
                    f"{m}={s.get('auroc', 0):.3f}" for m, s in result["scores"].items()
                )
                print(dataset, noise, seed, model, f"rate={result['rate']:.3f}", shown, flush=True)


def grid(args: argparse.Namespace) -> Iterable[Cell]:
    for seed in args.seeds:
        for dataset in args.datasets:
            for noise in REAL.get(dataset, INJECTED):
                if args.noises is None or noise in args.noises:
                    yield dataset, noise, seed


def groups(cells: Cells, models: Sequence[str]) -> dict[str, list[dict[str, Run]]]:
    """Return the cells that have all models by the row of the table that they belong to."""
    found: dict[str, list[dict[str, Run]]] = defaultdict(list)
    for (dataset, noise, _), runs in cells.items():
        if set(models) <= set(runs):
            name = noise if noise in INJECTED else f"{dataset.split('-')[0]} {noise}"
            found[name.replace("jira real", "jira").replace("trec real", "trec")].append(runs)
    order = [*INJECTED, *(f"cifar10n {noise}" for noise in REAL["cifar10n"]), "jira", "trec"]
    return {name: found[name] for name in order if name in found}


def average(cells: list[dict[str, Run]], model: str, method: str, what: str) -> float:
    return mean(runs[model]["scores"][method][what] for runs in cells)


def rankings(
    found: dict[str, list[dict[str, Run]]], models: Sequence[str], what: str
) -> list[list[str]]:
    """Return a row for each method of a system, a column for each noise, the best first."""
    noisy = {name: cells for name, cells in found.items() if name != "none"}
    every = [runs for cells in noisy.values() for runs in cells]
    rows = []
    for model in models:
        for method in every[0][model]["scores"]:
            values = [average(cells, model, method, what) for cells in noisy.values()]
            rows.append([model, method, average(every, model, method, what), *values])
    rows.sort(key=lambda row: -row[2])
    head = ["system", "method", "mean", *noisy]
    return [head, *([*row[:2], *(f"{v:.3f}" for v in row[2:])] for row in rows)]


def rates(found: dict[str, list[dict[str, Run]]], models: Sequence[str]) -> list[list[str]]:
    """Return the errors of the noise rate and of the transition, and false alarms."""
    rows = [["quantity", "system", "method", *found]]

    def row(quantity: str, model: str, method: str, value: Any) -> None:
        means = [[value(runs[model], runs) for runs in cells] for cells in found.values()]
        shown = [
            f"{mean(v for v in m if v is not None):.3f}" if any(v is not None for v in m) else ""
            for m in means
        ]
        rows.append([quantity, model, method, *shown])

    for model in models:
        row("error of the rate", model, "", lambda r, runs: abs(r["rate"] - r["true_rate"]))
    row("interval covers", "robustclf", "", lambda r, runs: float(r["covered"]))
    row("lower bound holds", "robustclf", "", lambda r, runs: float(r["bound_holds"]))
    row("says noisy", "robustclf", "", lambda r, runs: float(r["noisy"]))
    for model in models:
        row("share flagged", model, "", lambda r, runs: r["flagged"])
        row("precision of flags", model, "", lambda r, runs: r["precision"])
    for model in models:
        for method in TRANSITIONS if model == "robustclf" else ("confident_joint",):
            row(
                "error of the transition",
                model,
                method,
                lambda r, runs, method=method: r["transitions"][method],
            )
    return rows


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def summarise(args: argparse.Namespace) -> None:
    done = read_results(args.results, max_rows=args.max_rows)
    chosen = {cell: runs for cell, runs in done.items() if cell[2] in args.seeds}
    models = [m for m in MODELS if m in args.systems or m != "cleanlab-forest"]
    found = groups(chosen, models)
    print({name: len(cells) for name, cells in found.items()})
    tables = {f"issue_{what}": rankings(found, models, what) for what in RANKED}
    tables["issue_rates"] = rates(found, models)
    for name, rows in tables.items():
        if args.csv:
            write(args.csv / f"{name}.csv", rows)
        print(name, *(" | ".join(row) for row in rows), sep="\n")
    seconds = {
        model: [runs[model]["seconds"] for cells in found.values() for runs in cells]
        for model in args.systems
    }
    if len(seconds) > 1:
        ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
        print(f"seconds, ratio of {' to '.join(seconds)}: mean {mean(ratios):.2f}")


def cost(args: argparse.Namespace) -> None:
    """Print what an audit of 20,000 rows costs and finds, beside CleanLearning on the same rows."""
    from cleanlab.classification import CleanLearning

    from robustclf import RobustClassifier
    from robustclf.cli.audit import training_of
    from robustclf.noise import estimate_transition, find_label_issues, noise_rate

    for dataset in LARGE:
        X, given, true = load_audit(dataset, "symmetric", 0.2, seed=0, max_rows=20_000)
        start = time.process_time()
        clf = RobustClassifier(loss="gce", track_dynamics=True, random_state=0, device=args.device)
        clf.set_params(**training_of(len(given))).fit(X, given)
        noise_rate(given, clf.oof_proba_)
        estimate_transition(given, clf.oof_proba_)
        known = {"X": X, "dynamics": clf.dynamics_, "n_issues": "all"}
        issues = find_label_issues(given, clf.oof_proba_, **known)
        ours, start = time.process_time() - start, time.process_time()
        forest = RandomForestClassifier(300, random_state=0)
        cleaner = CleanLearning(forest, seed=0, find_label_issues_kwargs={"n_jobs": 1})
        cleaner.fit(X, given)
        theirs = time.process_time() - start
        score = np.empty(len(given))
        score[issues.rows] = -np.arange(len(given))
        quality = cleaner.get_label_issues()["label_quality"].to_numpy()
        aurocs = [ranking(s, given != true)["auroc"] for s in (score, -quality)]
        found = "area under the ROC curve {:.4f} and {:.4f}".format(*aurocs)
        print(f"{dataset}, {len(given):,} rows: {ours / theirs:.2f} of the time, {found}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--systems", type=parse_names, default=list(SYSTEMS))
    add("--datasets", type=parse_names, default=[*TABLES, *REAL])
    add("--noises", type=parse_names, help="default all")
    add("--seeds", type=parse_numbers, default=[0])
    add("--max-rows", type=int, default=5_000)
    add("--loss", default="gce", help="of robustclf; auto asks for a results file of its own")
    add("--device", default="cpu")
    add("--results", type=Path, default=RESULTS)
    add("--cost", action="store_true", help="time audits of 20,000 rows beside CleanLearning")
    add("--summary", action="store_true", help="print the tables of the results, run nothing")
    add("--csv", type=Path, help="with --summary: folder to write the tables to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse_args()
    if arguments.summary:
        summarise(arguments)
    elif arguments.cost:
        cost(arguments)
    else:
        run_all(arguments)
