"""A training step against its matrix products alone, the arithmetic limit, in processor time.

The products of a step, forward and backward, are timed by themselves on tensors of the same shapes:
what a step takes beyond is dropout, losses, optimiser and Python. The variants take turns. See
README.md beside this file.
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from runs import parse_names
from speed import Job

from robustclf import RobustClassifier

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Setting:
    """A network of two hidden layers, the rows of a step and the networks side by side."""

    job: Job
    n_members: int

    @property
    def name(self) -> str:
        """Return what the table calls this setting."""
        return f"width {self.job.width}, batch {self.job.batch_size}, {self.n_members} side by side"

    def layers(self) -> list[tuple[int, int]]:
        """Return the shapes of the weights."""
        job = self.job
        sizes = [job.n_features, job.width, job.width, job.n_classes]
        return list(pairwise(sizes))


SETTINGS = [
    Setting(Job(5_000, 20, 5, width, batch, epochs=1), members)
    for width, batch in ((64, 64), (256, 128), (256, 256))
    for members in (1, 12, 60)
]


def flops(setting: Setting) -> int:
    """Return the operations of the products: forward, and the gradients of weights and inputs."""
    each = [a * b for a, b in setting.layers()]
    rows = 2 * setting.n_members * setting.job.batch_size
    return rows * (3 * sum(each) - each[0])  # the table needs no gradient


def products(setting: Setting, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return what multiplies matrices as a step does, and nothing else."""
    m, rows = setting.n_members, setting.job.batch_size
    inputs = [torch.randn(m, rows, a).to(dtype) for a, _ in setting.layers()]
    weights = [torch.randn(m, a, b).to(dtype) for a, b in setting.layers()]
    outputs = [torch.randn(m, rows, b).to(dtype) for _, b in setting.layers()]

    def multiply() -> None:
        for k, (x, w, g) in enumerate(zip(inputs, weights, outputs, strict=True)):
            torch.bmm(x, w)
            torch.bmm(x.transpose(1, 2), g)
            if k:
                torch.bmm(g, w.transpose(1, 2))

    return multiply


def step(setting: Setting, compiled: bool = False, **params: Any) -> Callable[[], Any]:
    """Return one step of a fit on one batch."""
    job = setting.job
    clf = RobustClassifier(
        loss="gce",
        hidden=(job.width, job.width),
        batch_size=job.batch_size,
        n_members=setting.n_members,
        device="cpu",
        random_state=0,
        **params,
    )
    prepared = clf._prepare(*job.data())
    net, data = prepared.net, prepared.data
    net.initialize()
    net.listen()
    data = data.to(net)
    net.criterion_.at_epoch(0)
    net.warming = False
    net.module_.train()
    if compiled:
        net.module_.forward = torch.compile(net.module_.forward)  # type: ignore[method-assign]
    batch = data.batch(data.rows[: job.batch_size])
    return lambda: net.train_step(batch)


VARIANTS: dict[str, Callable[[Setting], Callable[[], Any]]] = {
    "products": products,
    "products, bf16": lambda setting: products(setting, torch.bfloat16),
    "step": step,
    "step, no dropout": lambda setting: step(setting, dropout=0.0),
    "step, bf16": lambda setting: step(setting, precision="bf16"),
    "step, compiled": lambda setting: step(setting, compiled=True),
}


def seconds_of(task: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        task()
    return (time.process_time() - start) / repeats


def measure(setting: Setting, variants: list[str], turns: int, least: float) -> dict[str, float]:
    """Return the seconds of one step of each variant, the median over the turns."""
    tasks = {}
    for name in variants:
        tasks[name] = VARIANTS[name](setting)
        seconds_of(tasks[name], 3)  # compiles, too
    took: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(turns):
        for name, task in tasks.items():
            once = max(seconds_of(task, 1), 1e-5)
            took[name].append(seconds_of(task, max(1, round(least / once))))
    return {name: median(values) for name, values in took.items()}


def row(setting: Setting, seconds: dict[str, float]) -> list[str]:
    """Return a row of the table: throughput of the products, and the ratios to their time."""
    limit = seconds["products"]
    ratios = [f"{value / limit:.2f}" for name, value in seconds.items() if name != "products"]
    return [setting.name, f"{flops(setting) / limit / 1e9:.0f}", *ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each variant in a turn")
    parser.add_argument("--variants", type=parse_names, default=list(VARIANTS))
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write steps.csv there, too")
    args = parser.parse_args()
    if unknown := set(args.variants) - set(VARIANTS):
        parser.error(f"unknown variants {unknown}; there are {', '.join(VARIANTS)}.")
    torch.set_num_threads(1)
    variants = ["products", *(v for v in args.variants if v != "products")]
    rows = [["network", "GFLOP/s of the products", *variants[1:]]]
    for setting in SETTINGS:
        rows.append(row(setting, measure(setting, variants, args.turns, args.seconds)))
        print(" | ".join(rows[-1]), flush=True)
    if args.csv:
        with (args.csv / "steps.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
