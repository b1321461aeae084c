"""Seconds and memory of RobustClassifier as ratios to a hand-written loop, skorch and scikit-learn.

All ratios come from one run: the candidates take turns (A B C A B C ...), each ratio is taken
within a turn, and the median over the turns is reported. Run it with nothing else on the machine.
See README.md beside this file.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNetClassifier
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
CHUNKS = (8192, 16384, 32768, 65536)
Task = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """A training job: the size of the table, the network and the number of steps."""

    n_samples: int
    n_features: int
    n_classes: int
    width: int
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """Return what the table calls this job."""
        table = f"{self.n_samples:,} x {self.n_features}"
        return f"{table}, width {self.width}, batch {self.batch_size}"

    def data(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return clusters that are easy enough for the loss to fall."""
        rng = np.random.default_rng(0)
        y = np.arange(self.n_samples) % self.n_classes
        centres = rng.standard_normal((self.n_classes, self.n_features))
        X = centres[y] + rng.standard_normal((self.n_samples, self.n_features))
        return ((X - X.mean(0)) / X.std(0)).astype(np.float32), y

    def network(self, dropout: float = 0.0) -> nn.Sequential:
        """Return the network that every candidate trains."""
        drop = [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(
            nn.Linear(self.n_features, self.width),
            nn.ReLU(),
            *drop,
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            *drop,
            nn.Linear(self.width, self.n_classes),
        )


@dataclass(frozen=True)
class Ratio:
    """One line of the table; it holds if the median is at most the goal, or at least a floor."""

    what: str
    values: list[float]
    goal: float | None = None
    floor: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the median is on the right side of the goal; None without one."""
        if not self.goal:
            return None
        middle = median(self.values)
        return middle >= self.goal if self.floor else middle <= self.goal

    def row(self) -> str:
        """Return the line as Markdown."""
        goal = f"{self.goal:.2f}" if self.goal else "-"
        holds = {True: "yes", False: "NO", None: "-"}[self.holds]
        spread = f"{median(self.values):.2f} | {min(self.values):.2f} .. {max(self.values):.2f}"
        return f"| {self.what} | {spread} | {goal} | {holds} |"


def fit_loop(job: Job, X: NDArray, y: NDArray, fused: bool = False) -> nn.Module:
    """Train as a careful user would write it."""
    inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
    network = job.network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused or None)
    for _ in range(job.epochs):
        for rows in torch.randperm(len(inputs)).split(job.batch_size):
            loss = functional.cross_entropy(network(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def fit_robust(job: Job, X: NDArray, y: NDArray, n_members: int = 1) -> Any:
    from robustclf import RobustClassifier

    model = RobustClassifier(
        loss="ce",
        n_members=n_members,
        hidden=(job.width, job.width),
        activation="relu",
        dropout=0.0,
        lr=1e-3,
        max_epochs=job.epochs,
        batch_size=job.batch_size,
        device="cpu",
        random_state=0,
    )
    return model.fit(X, y)


def fit_skorch(job: Job, X: NDArray, y: NDArray) -> Any:
    net = NeuralNetClassifier(
        job.network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=1e-3,
        max_epochs=job.epochs,
        batch_size=job.batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    return net.fit(X, y)


def fit_sklearn(job: Job, X: NDArray, y: NDArray) -> Any:
    from sklearn.neural_network import MLPClassifier

    mlp = MLPClassifier(
        (job.width, job.width),
        batch_size=job.batch_size,
        max_iter=job.epochs,
        n_iter_no_change=job.epochs + 1,
        tol=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_iter is meant to be reached
        return mlp.fit(X, y)


def take_turns(tasks: dict[str, Task], turns: int) -> dict[str, NDArray]:
    """Return the seconds of each task in each turn, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(-1, turns):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def compare(job: Job, turns: int, goal: float) -> list[Ratio]:
    """Compare one member with the loop, skorch and scikit-learn."""
    X, y = job.data()
    tasks: dict[str, Task] = {
        "robustclf": lambda: fit_robust(job, X, y),
        "the loop": lambda: fit_loop(job, X, y),
        "the loop with AdamW(fused=True)": lambda: fit_loop(job, X, y, fused=True),
        "skorch NeuralNetClassifier": lambda: fit_skorch(job, X, y),
        "scikit-learn MLPClassifier": lambda: fit_sklearn(job, X, y),
    }
    seconds = take_turns(tasks, turns)
    ours = seconds.pop("robustclf")
    return [
        Ratio(f"fit / {peer} ({job.name})", list(ours / seconds[peer]), limit)
        for peer, limit in zip(seconds, (goal, None, 0.6, 0.7), strict=True)
    ]


def compare_members(job: Job, turns: int, n_members: int = 8) -> list[Ratio]:
    X, y = job.data()
    tasks: dict[str, Task] = {
        "robustclf": lambda: fit_robust(job, X, y, n_members),
        "loops": lambda: [fit_loop(job, X, y) for _ in range(n_members)],
    }
    seconds = take_turns(tasks, turns)
    what = f"fit of {n_members} members / {n_members} loops ({job.name})"
    return [Ratio(what, list(seconds["robustclf"] / seconds["loops"]), 0.5)]


def predict_loop(network: nn.Module, X: NDArray, chunk: int) -> NDArray:
    with torch.inference_mode():
        parts = [network(rows).softmax(-1) for rows in torch.from_numpy(X).split(chunk)]
        return torch.cat(parts).numpy()


def compare_predict(n_rows: int, turns: int) -> list[Ratio]:
    job = Job(2_000, 20, 10, 256, 256, epochs=1)
    model, network = fit_robust(job, *job.data()), job.network()
    X = np.random.default_rng(0).standard_normal((n_rows, job.n_features), dtype=np.float32)
    chunk = fastest_chunk(network, X)
    many = take_turns(
        {
            "robustclf": lambda: model.predict_proba(X),
            "module": lambda: predict_loop(network, X, chunk),
        },
        turns,
    )
    calls = range(300)
    one = take_turns(
        {
            "robustclf": lambda: [model.predict_proba(X[:1]) for _ in calls],
            "module": lambda: [predict_loop(network, X[:1], 1) for _ in calls],
        },
        turns,
    )
    what = f"predict_proba of {n_rows:,} rows / bare module in chunks of {chunk:,}"
    return [
        Ratio(what, list(many["robustclf"] / many["module"]), 1.15),
        Ratio("predict_proba of one row / bare module", list(one["robustclf"] / one["module"]), 3),
    ]


def fastest_chunk(network: nn.Module, X: NDArray) -> int:
    tasks = {str(chunk): lambda chunk=chunk: predict_loop(network, X, chunk) for chunk in CHUNKS}
    seconds = take_turns(tasks, turns=1)
    return int(min(seconds, key=lambda name: seconds[name][0]))


def measure_memory(n_rows: int, threads: int) -> list[Ratio]:
    """Fit in a fresh process and compare what it took with the bytes of a float64 X."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of-fit", str(n_rows)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    imports, tiny, peak, size = json.loads(output.splitlines()[-1])
    what = f"peak memory of X and fit / bytes of X ({n_rows:,} x 40, float64)"
    return [
        Ratio(what, [(peak - imports) / size], 2.2),
        Ratio("the same without X", [(peak - imports) / size - 1]),
        Ratio("the same without X and what a first fit loads", [(peak - tiny) / size - 1]),
    ]


def memory_of_fit(n_rows: int) -> None:
    """Print the peak memory after the imports, a fit of 100 rows and the fit, and X's bytes."""
    import robustclf  # noqa: F401

    job = Job(n_rows, 40, 10, 256, 4096, epochs=1)
    peaks = [peak_memory()]
    for n in (100, n_rows):
        X = np.empty((n, job.n_features))
        np.random.default_rng(0).standard_normal(out=X)
        fit_robust(job, X, np.arange(n) % job.n_classes)
        peaks.append(peak_memory())
    print(json.dumps([*peaks, X.nbytes]))


def peak_memory() -> int:
    """Return this process's peak resident bytes (getrusage would count its parent's, too)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(quick: bool, threads: int) -> list[Ratio]:
    turns, scale = (3, 4) if quick else (5, 1)
    large = Job(20_000, 16, 26, 256, 256, epochs=8 // scale)
    small = Job(2_000, 20, 10, 128, 64, epochs=40 // scale)
    members = Job(20_000, 16, 26, 128, 128, epochs=4 // scale)
    return [
        *compare(large, turns, goal=1.10),
        *compare(small, turns, goal=1.25),
        *compare_members(members, turns),
        *compare_predict(1_000_000 // scale, turns),
        *measure_memory(1_000_000, threads),
    ]


def environment(threads: int) -> dict[str, Any]:
    packages = ("torch", "scikit-learn", "skorch", "numpy")
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "threads": threads,
    }


def report(
    ratios: list[Ratio], where: dict[str, Any], results: Path | None, what: str = "what"
) -> None:
    """Print where the ratios are from and their table, and append both to a file of results."""
    print(", ".join(f"{name} {value}" for name, value in where.items()), end="\n\n")
    print(f"| {what} | median | min .. max | goal | holds |\n|---|---|---|---|---|")
    print("\n".join(ratio.row() for ratio in ratios))
    if results:
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a") as file:
            file.write(json.dumps(where | {"ratios": [asdict(r) for r in ratios]}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="3 turns of smaller jobs")
    parser.add_argument("--json", action="store_true", help=f"append to {RESULTS.name}, too")
    parser.add_argument("--memory-of-fit", type=int, metavar="ROWS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        if args.memory_of_fit:
            memory_of_fit(args.memory_of_fit)
            return
        ratios = measure(args.quick, args.threads)
    report(ratios, environment(args.threads), RESULTS if args.json else None)


if __name__ == "__main__":
    main()
