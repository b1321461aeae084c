"""Fits to tables larger than memory: cost against rows, and against the fit in memory.

Each run is a process of its own that fits one epoch to a synthetic Parquet file, streamed or in
memory, and appends one line to a results file; it is skipped when that line is there, so the
benchmark can be stopped and resumed at will. See README.md beside this file.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from runs import append, parse_names, parse_numbers
from speed import environment, peak_memory

RESULTS = Path(__file__).parent / "results" / "scale.jsonl"
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
MODES = ("streamed", "memory")
N_FEATURES, GROUP_ROWS = 50, 65_536
Runs = dict[int, dict[str, list[dict[str, Any]]]]


def write_table(path: Path, n_rows: int) -> None:
    """Write rows of 50 numbers whose labels are wrong in one of five cases, in row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"x{j}" for j in range(N_FEATURES)]
    types = [(name, pa.float32()) for name in names]
    schema = pa.schema([*types, ("label", pa.int8())])
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, schema, use_dictionary=False) as writer:
        for start in range(0, n_rows, GROUP_ROWS):
            rng = np.random.default_rng([0, start])
            X = rng.standard_normal((min(GROUP_ROWS, n_rows - start), N_FEATURES), np.float32)
            label = (X[:, 0] + X[:, 1] * X[:, 2] > 0) ^ (rng.random(len(X)) < 0.2)
            columns = [*X.T.copy(), label.astype(np.int8)]
            writer.write_table(pa.table(columns, schema=schema))
    partial.rename(path)


def measure(path: Path, n_rows: int, mode: str) -> dict[str, Any]:
    """Fit one epoch and predict, and say what that took; the reading in memory is not timed."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from robustclf import ParquetSource, RobustClassifier

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    base = peak_memory()
    given: tuple[Any, ...]
    if mode == "streamed":
        source = ParquetSource(path, label="label")
        rows = min(source.buffer_rows, n_rows // 4)  # so that small tables are streamed, too
        given = (ParquetSource(path, label="label", shuffle_buffer=rows),)
    else:
        X, y = np.empty((n_rows, N_FEATURES), np.float32), np.empty(n_rows, np.int8)
        start = 0
        for batch in pq.ParquetFile(path).iter_batches():
            part = slice(start, start := start + len(batch))
            y[part] = batch.column("label")
            for j in range(N_FEATURES):
                X[part, j] = batch.column(j)
        given = (X, y)
    clf = RobustClassifier(loss="gce", max_epochs=1, batch_size=1024, device="cpu", random_state=0)
    clf.fit(np.random.default_rng(0).random((256, N_FEATURES)), np.arange(256) % 2)  # loads torch
    wall, cpu = time.perf_counter(), time.process_time()
    clf.fit(*given)
    result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    result |= {"peak_of_fit": peak_memory(), "base": base, "loss": clf.history_[-1, "train_loss"]}
    cpu = time.process_time()
    clf.predict(given[0])
    return result | {"predict_cpu": time.process_time() - cpu, "peak": peak_memory()}


def run_all(args: argparse.Namespace) -> None:
    """Run what the results file lacks, streamed and in memory in turns."""
    done = {key(run) for run in read(args.results)}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for n_rows in args.sizes:
            path = Path(folder, f"{n_rows}.parquet")
            for turn in range(args.turns):
                for mode in args.modes:
                    run: dict[str, Any] = {"rows": n_rows, "mode": mode, "turn": turn}
                    if key(run) in done:
                        continue
                    if not path.exists():
                        write_table(path, n_rows)
                    command = [sys.executable, __file__, "--measure", str(path), str(n_rows), mode]
                    out = subprocess.run(command, check=True, capture_output=True, text=True)
                    run |= json.loads(out.stdout.splitlines()[-1])
                    append(args.results, run | environment(threads=1))
                    shown = f"{run['cpu'] / n_rows * 1e6:.1f} us a row, {run['peak'] / 1e9:.2f} GB"
                    print(f"{n_rows:,}", mode, turn, shown, flush=True)
            path.unlink(missing_ok=True)


def key(run: dict[str, Any]) -> tuple[int, str, int]:
    return run["rows"], run["mode"], run["turn"]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_size(runs: list[dict[str, Any]]) -> Runs:
    found: Runs = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=key):
        found[run["rows"]][run["mode"]].append(run)
    return dict(found)


def table(found: Runs) -> list[list[str]]:
    """Return a row for each size: microseconds of the processor for a row, and memory."""
    rows = [["rows", "streamed", "in memory", "ratio", "predict", "GB streamed", "GB in memory"]]
    for n_rows, modes in found.items():
        cost = {m: median(r["cpu"] for r in runs) / n_rows * 1e6 for m, runs in modes.items()}
        peak = {m: max(r["peak"] for r in runs) / 1e9 for m, runs in modes.items()}
        row = [f"{n_rows:,}", *(f"{cost[m]:.1f}" if m in cost else "" for m in MODES)]
        row.append(f"{cost['memory'] / cost['streamed']:.2f}" if len(cost) == 2 else "")
        predict = [r["predict_cpu"] / n_rows * 1e6 for r in modes["streamed"]]
        row.append(f"{median(predict):.1f}")
        rows.append([*row, *(f"{peak[m]:.2f}" if m in peak else "" for m in MODES)])
    return rows


def slope(found: Runs, mode: str) -> float:
    """Return the exponent b of a cost of a * rows**b, by least squares in logarithms."""
    sizes = [n_rows for n_rows, modes in found.items() if mode in modes]
    cost = [median(run["cpu"] for run in found[n_rows][mode]) for n_rows in sizes]
    return float(np.polyfit(np.log(sizes), np.log(cost), 1)[0])


def plot(found: Runs, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    ax = figure.subplots()
    for mode, marker, name in zip(MODES, "os", ("streamed", "in memory"), strict=True):
        sizes = [n_rows for n_rows, modes in found.items() if mode in modes]
        cost = [median(run["cpu"] for run in found[n_rows][mode]) for n_rows in sizes]
        ax.loglog(sizes, cost, marker, label=name, alpha=0.8)
    line = np.array([min(found), max(found)])
    per_row = median(run["cpu"] for run in found[line[-1]]["streamed"]) / line[-1]
    ax.loglog(line, per_row * line, color="0.6", zorder=0, label="linear")
    ax.set(xlabel="rows", ylabel="seconds of one processor, one epoch")
    ax.legend(frameon=False)
    # the same picture for the same numbers
    with mpl.rc_context({"svg.hashsalt": "scale", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def summarise(args: argparse.Namespace) -> None:
    found = by_size([run for run in read(args.results) if run["rows"] in args.sizes])
    rows = table(found)
    print(*(" | ".join(row) for row in rows), sep="\n")
    for mode in MODES:
        print(f"cost of {mode} grows as rows^{slope(found, mode):.2f}")
    if args.csv:
        with (args.csv / "scale.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        plot(found, args.csv / "scale.svg")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sizes", type=parse_numbers, default=list(SIZES))
    add("--modes", type=parse_names, default=list(MODES))
    add("--turns", type=int, default=1)
    add("--folder", type=Path, help="where the table is written, 2 GB; default the system's")
    add("--results", type=Path, default=RESULTS)
    add("--summary", action="store_true", help="print the table of the results, run nothing")
    add("--csv", type=Path, help="with --summary: folder to write the table and the plot to")
    add("--measure", nargs=3, metavar=("PATH", "ROWS", "MODE"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse_args()
    if arguments.measure:
        file, n, how = arguments.measure
        print(json.dumps(measure(Path(file), int(n), how)))
    elif arguments.summary:
        summarise(arguments)
    else:
        run_all(arguments)
