"""What the defaults of one network are worth: its accuracy with one of them changed.

On the four tables and seeds that auto was developed on. Each run appends one line to a results
file and is skipped when that line is there. See README.md beside this file.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import accuracy
from auto import DEVELOPED_ON
from runs import Cells, parse_numbers, read_results

RESULTS = Path(__file__).parent / "results" / "defaults.jsonl"
NOISES = ("none", "symmetric-.4", "pair-.4", "instance-.4")
SEEDS = (10, 11)
ALONE = {"loss": "gce"}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "loss ce": {"loss": "ce"},
    "hidden 128 128": {"hidden": (128, 128)},
    "hidden 512 512": {"hidden": (512, 512)},
    "hidden 256": {"hidden": (256,)},
    "module resnet": {"module": "resnet"},
    "numeric_embedding periodic": {"numeric_embedding": "periodic"},
    "n_members 4": {"n_members": 4},
    "dropout 0": {"dropout": 0.0},
    "dropout 0.5": {"dropout": 0.5},
    "lr 0.001": {"lr": 0.001},
    "lr 0.01": {"lr": 0.01},
    "lr_schedule constant": {"lr_schedule": "constant"},
    "weight_decay 0": {"weight_decay": 0.0},
    "weight_decay 0.1": {"weight_decay": 0.1},
    "warm_up 0": {"warm_up": 0.0},
    "warm_up 0.3": {"warm_up": 0.3},
    "max_epochs 20": {"max_epochs": 20},
    "max_epochs 150": {"max_epochs": 150},
    "batch_size 64": {"batch_size": 64},
    "batch_size 256": {"batch_size": 256},
    "early_stopping": {"early_stopping": True},
}


def summary(cells: Cells) -> str:
    """Return the table as CSV: means over tables and seeds, and what each change adds."""
    cells = {cell: runs for cell, runs in cells.items() if VARIANTS.keys() <= runs.keys()}
    by_noise = {n: [r for (_, noise, _), r in cells.items() if noise == n] for n in NOISES}
    by_noise = {noise: runs for noise, runs in by_noise.items() if runs}

    def means(name: str) -> Iterable[float]:
        return (mean(run[name]["accuracy"] for run in runs) for runs in by_noise.values())

    whole = list(means("defaults"))
    lines = ["change," + ",".join(by_noise) + ",mean"]
    lines.append(",".join(["none", *(f"{value:.3f}" for value in [*whole, mean(whole)])]))
    changes = []
    for name in list(VARIANTS)[1:]:
        gains = [value - base for value, base in zip(means(name), whole, strict=True)]
        changes.append((mean(gains), ",".join([name, *(f"{g:+.3f}" for g in gains)])))
    lines += [f"{line},{gain:+.3f}" for gain, line in sorted(changes, reverse=True)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=parse_numbers, default=SEEDS)
    parser.add_argument("--summary", action="store_true", help="print the table, run nothing")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="summary; write the table there")
    args = parser.parse_args()
    if not (args.summary or args.csv):
        run = accuracy.parse_args(["--results", str(args.results), "--max-train", "3000"])
        run.datasets, run.noises, run.seeds = DEVELOPED_ON, NOISES, args.seeds
        for run.name, settings in VARIANTS.items():
            run.models, run.settings = [run.name], ALONE | settings
            accuracy.run_all(run)
    table = summary(read_results(args.results))
    print(table)
    if args.csv:
        (args.csv / "defaults.csv").write_text(table + "\n")


if __name__ == "__main__":
    main()
