"""What each part of loss="auto" contributes: the mixture without it, from the same fits.

Every cell is fitted once; what its models say of the test rows is kept, and the mixture is weighed
anew without one of them. A network trained through the transition matrix goes with the network it
is of. One line per cell is appended to a results file, and cells that are there are skipped.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import grid
from data import EVERY, load
from runs import append, parse_names, parse_noise, parse_numbers
from standings import INJECTED, NOISES

from robustclf import RobustClassifier
from robustclf._auto import AS_GIVEN, SHALLOW, Auto
from robustclf._weighing import CORRECTED, Tried

RESULTS = Path(__file__).parent / "results" / "auto.jsonl"
DEVELOPED_ON = ("vehicle", "vowel", "digits", "dna")
FILTERED = "filtered"
FAMILIES = {
    "forests": ("forest", "extra_trees", "deep_forest"),
    "kernels": ("kernel", "smooth_kernel", "linear_kernel"),
}


class Parts(Auto):
    """A fit that keeps every model, also those of no weight."""

    def _learned(self, tried: list[Tried], transition: Any) -> dict[str, Any]:
        self.tried = tried
        return super()._learned(tried, transition)


def base(model: Tried) -> str:
    return model.name.removesuffix(CORRECTED)


def is_corrected(model: Tried) -> bool:
    return model.name.endswith(CORRECTED)


def variants(tried: list[Tried]) -> dict[str, Callable[[Tried], bool]]:
    """Return which models each variant keeps."""
    kept: dict[str, Callable[[Tried], bool]] = {"auto": lambda _: True}
    for name in dict.fromkeys(map(base, tried)):
        kept[f"without {name}"] = lambda model, name=name: base(model) != name
    for family, names in FAMILIES.items():
        kept[f"without {family}"] = lambda model, names=names: base(model) not in names
    kept["without networks"] = lambda model: base(model) in SHALLOW
    kept["without corrected others"] = lambda m: not (is_corrected(m) and base(m) in SHALLOW)
    kept["without corrected networks"] = lambda m: not is_corrected(m) or base(m) in SHALLOW
    kept["without any correction"] = lambda model: not is_corrected(model)
    return kept


def measure(split: Any, seed: int) -> dict[str, float]:
    """Return the accuracy of each variant, and of each model alone."""
    X, y, X_test, y_test = split
    clf = RobustClassifier(loss="auto", random_state=seed)
    given = dict.fromkeys(("sample_weight", "groups", "trusted", "X_val", "y_val"))
    auto = Parts(clf, {"X": X, "y": y} | given)
    auto.run()
    x = auto.encoder.transform(X_test)
    said = {model.name: model.model.proba(x) for model in auto.tried}
    scores = {}
    for variant, keeps in variants(auto.tried).items():
        _, weights, models = auto._weighed([model for model in auto.tried if keeps(model)])
        mixed = sum(w * model.oof for w, model in zip(weights, models, strict=True))
        scaled = {m.name: m.model.corrected(said[m.name]) for m in models if m.name in AS_GIVEN}
        last = {m.name: auto._confirmed(m, mixed) for m in models if m.name == FILTERED}
        final = said | scaled | {name: model.model.proba(x) for name, model in last.items()}
        proba = sum(w * final[m.name] for w, m in zip(weights, models, strict=True))
        scores[variant] = float((proba.argmax(axis=1) == y_test).mean())
        if variant == "auto":
            proba = sum(w * (said | scaled)[m.name] for w, m in zip(weights, models, strict=True))
            scores["without step 7"] = float((proba.argmax(axis=1) == y_test).mean())
            best = models[int(np.argmax(weights))].name
            scores["best alone"] = float((final[best].argmax(axis=1) == y_test).mean())
    alone = {f"{n} alone": float((p.argmax(axis=1) == y_test).mean()) for n, p in said.items()}
    return scores | alone


def summary(lines: Iterable[dict[str, Any]]) -> str:
    """Return the table: per variant its mean over the cells of each noise, and the difference."""
    by_noise: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        by_noise.setdefault(line["noise"], []).append(line["scores"])
    noises = [noise for noise in NOISES if noise in by_noise]
    names = dict.fromkeys(name for cells in by_noise.values() for s in cells for name in s)
    rows = []
    for name in (n for n in names if not n.endswith(" alone") or n == "best alone"):
        means = [np.mean([s.get(name, s["auto"]) for s in by_noise[noise]]) for noise in noises]
        rows.append((name, means))
    whole = np.array(rows[0][1])
    table = ["variant," + ",".join(noises) + ",mean"]
    for name, means in rows:
        values = np.array(means) if name == "auto" else np.array(means) - whole
        shown = [f"{v:.3f}" if name == "auto" else f"{v:+.3f}" for v in [*values, values.mean()]]
        table.append(",".join([name, *shown]))
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=parse_names, default=list(DEVELOPED_ON))
    parser.add_argument("--noises", type=parse_names, default=list(INJECTED))
    parser.add_argument("--seeds", type=parse_numbers, default=[10])
    parser.add_argument("--max-train", type=int, default=3_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="print the table, run nothing")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="summary; write the table there")
    args = parser.parse_args()
    if unknown := set(args.datasets).difference(EVERY):
        parser.error(f"unknown tables {unknown}; there are {', '.join(EVERY)}.")
    text = args.results.read_text() if args.results.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    if args.summary or args.csv:
        table = summary(lines)
        print(table)
        if args.csv:
            (args.csv / "auto_parts.csv").write_text(table + "\n")
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done = {(line["dataset"], line["noise"], line["seed"]) for line in lines}
    for cell in grid(args):
        if cell not in done:
            dataset, noise, seed = cell
            scores = measure(load(dataset, *parse_noise(noise), seed, args.max_train), seed)
            labels = {"dataset": dataset, "noise": noise, "seed": seed}
            append(args.results, labels | {"scores": scores})
            print(*cell, f"{scores['auto']:.3f}", flush=True)


if __name__ == "__main__":
    main()
