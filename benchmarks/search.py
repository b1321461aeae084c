"""Seconds of RobustSearchCV as ratios to GridSearchCV over skorch and over RobustClassifier.

All searches cover the same 12 candidates and 5 folds of the same network with the same loss, and
take turns; each ratio is taken within a turn, and the median over the turns is reported. Run it
with nothing else on the machine. See README.md beside this file.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from speed import Job, Ratio, environment, report
from torch import nn

RESULTS = Path(__file__).parent / "results" / "search.jsonl"
LRS, DECAYS = [3e-4, 1e-3, 3e-3, 1e-2], [0.0, 0.01, 0.1]
FOLDS = 5
DROPOUT = 0.3  # the default of so many rows
SKORCH, OWN = "GridSearchCV(skorch)", "GridSearchCV(RobustClassifier)"
JOBS = {
    "small": (Job(5_000, 20, 5, 64, 64, epochs=30), 6.0, 3.0),
    "large": (Job(5_000, 20, 5, 256, 256, epochs=30), 3.0, 1.6),
}
Search = Callable[[], Any]


def candidates(job: Job, dropout: float, device: str) -> Any:
    from robustclf import RobustClassifier

    return RobustClassifier(
        loss="ce",
        hidden=(job.width, job.width),
        dropout=dropout,
        max_epochs=job.epochs,
        batch_size=job.batch_size,
        device=device,
        random_state=0,
    )


def skorch_net(job: Job, dropout: float) -> NeuralNetClassifier:
    return NeuralNetClassifier(
        partial(job.network, dropout),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=job.epochs,
        batch_size=job.batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


def searches(job: Job, X: NDArray, y: NDArray, n_jobs: int, device: str) -> dict[str, Search]:
    """Return what is compared, by name."""
    from robustclf.model_selection import RobustSearchCV

    def stacked(dropout: float = 0.0, **options: Any) -> Search:
        clf = candidates(job, dropout, device)
        grid = {"lr": LRS, "weight_decay": DECAYS}
        return RobustSearchCV(clf, grid, cv=FOLDS, refit=False, **options).fit

    def grid(estimator: Any, **names: Any) -> Search:
        return GridSearchCV(estimator, names, cv=FOLDS, refit=False, n_jobs=n_jobs).fit

    ours = {"lr": LRS, "weight_decay": DECAYS}
    theirs = {"lr": LRS, "optimizer__weight_decay": DECAYS}
    found = {
        "stack, one process": stacked(),
        "stack with halving, one process": stacked(halving=True),
    }
    for dropout in (0.0, DROPOUT):
        found[f"stack, dropout {dropout}"] = stacked(dropout, n_jobs=n_jobs)
        found[f"{OWN}, dropout {dropout}"] = grid(candidates(job, dropout, device), **ours)
        found[f"{SKORCH}, dropout {dropout}"] = grid(skorch_net(job, dropout), **theirs)
    return {name: lambda fit=fit: fit(X, y) for name, fit in found.items()}


def measure(job: Job, goals: tuple[float, float], args: argparse.Namespace) -> list[Ratio]:
    """Return the ratios: how many times faster the stack is."""
    X, y = job.data()
    few = Job(400, job.n_features, job.n_classes, job.width, job.batch_size, epochs=1)
    for search in searches(few, X[:400], y[:400], args.n_jobs, args.device).values():
        search()  # starts the workers, loads torch there
    seconds: dict[str, list[float]] = {}
    for _ in range(args.turns):
        for name, search in searches(job, X, y, args.n_jobs, args.device).items():
            start = time.perf_counter()
            search()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            print(f"  {job.name}, {name}: {seconds[name][-1]:.1f} s", flush=True)
    took = {name: np.array(values) for name, values in seconds.items()}
    pairs: list[tuple[str, str, float | None]] = [
        (f"{name}, dropout {dropout}", f"stack, dropout {dropout}", goal)
        for dropout in (0.0, DROPOUT)
        for name, goal in zip((SKORCH, OWN), goals, strict=True)
    ]
    own = f"{OWN}, dropout 0.0"
    pairs += [(own, "stack, one process", None), (own, "stack with halving, one process", None)]
    return [
        Ratio(f"{slow} / {fast} ({job.name})", list(took[slow] / took[fast]), goal, floor=True)
        for slow, fast, goal in pairs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default="small,large", help="small (width 64) and large (256)")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of 30, which takes long")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help=f"append to {RESULTS.name}, too")
    args = parser.parse_args()
    ratios = []
    for name in args.jobs.split(","):
        job, *goals = JOBS[name]
        job = replace(job, epochs=args.epochs or job.epochs)
        ratios += measure(job, (goals[0], goals[1]), args)
    where = environment(torch.get_num_threads()) | {"device": args.device}
    report(ratios, where, RESULTS if args.json else None, what="how many times faster")


if __name__ == "__main__":
    main()
