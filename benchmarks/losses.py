"""Seconds of each loss and its gradient as ratios to torch's cross entropy.

All ratios come from one run: each loss takes turns with the cross entropy, and a ratio is that of
the medians over the turns. Run it with nothing else on the machine.
See README.md beside this file.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from speed import Task, take_turns
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from robustclf.losses import Loss, list_losses, make_loss

SHAPES = ((4096, 10), (4096, 100), (256, 10_000))
TOLD = ("forward_corrected", "backward_corrected", "logit_adjusted")  # about the classes
MOST_INVERTED = 1_000  # classes, beyond which the inverse of a matrix takes minutes
GOALS = {"pointwise": 1.3, "others": 2.5, "learned, stochastic or with special functions": None}
Shape = tuple[int, int]
Ratios = dict[str, list[float | None]]


def all_aliases() -> list[str]:
    return sorted([*list_losses(), *TOLD])


def build(alias: str, n_classes: int, device: str = "cpu") -> Loss:
    """Return the loss in the form that trains."""
    params = {}
    if alias.endswith("_corrected"):
        params["transition"] = torch.eye(n_classes, device=device)
    elif alias == "logit_adjusted":
        params["prior"] = torch.full((n_classes,), 1 / n_classes, device=device)
    loss = make_loss(alias, **params).build(n_classes)
    for module in loss.learned():
        module.to(device)
    return loss


def group_of(alias: str) -> str:
    """Return the name of the group, which has the goal."""
    loss = build(alias, n_classes=3)
    pointwise, others, apart = GOALS
    if loss.stochastic or list(loss.learned()) or alias == "evidential":
        return apart
    return pointwise if loss.pointwise else others


def step(value: Callable[[], Tensor], leaves: Sequence[Tensor]) -> None:
    """Compute a value and its gradients, and wait for them."""
    for leaf in leaves:
        leaf.grad = None
    value().backward()
    if leaves[0].is_cuda:
        torch.cuda.synchronize()


def pair_of_tasks(loss: Loss, shape: Shape, device: str) -> dict[str, Task]:
    """Return one step of the cross entropy and of the loss, on the same logits and labels."""
    generator = torch.Generator().manual_seed(0)
    n_samples, n_classes = shape
    logits = torch.randn(shape, generator=generator).to(device).requires_grad_()
    target = torch.randint(n_classes, (n_samples,), generator=generator).to(device)
    leaves = [logits, *loss.parameters()]
    views = (loss.n_members, -1) if loss.n_members > 1 else (n_samples,)

    def value() -> Tensor:
        return loss(logits.view(*views, n_classes), target.view(*views)).mean()

    return {
        "reference": lambda: step(lambda: functional.cross_entropy(logits, target), [logits]),
        "loss": lambda: step(value, leaves),
    }


def measure(shapes: Sequence[Shape], aliases: Sequence[str], rounds: int, device: str) -> Ratios:
    """Return the ratios of each loss, one per shape; None where the loss is left out."""
    ratios: Ratios = {alias: [] for alias in aliases}
    for shape in shapes:
        for alias, row in ratios.items():
            left_out = alias == "backward_corrected" and shape[1] > MOST_INVERTED
            row.append(None if left_out else ratio(alias, shape, rounds, device))
    return ratios


def ratio(alias: str, shape: Shape, rounds: int, device: str) -> float:
    tasks = pair_of_tasks(build(alias, shape[1], device), shape, device)
    take_turns(tasks, turns=2)  # discarded
    seconds = take_turns(tasks, rounds)
    return round(float(np.median(seconds["loss"]) / np.median(seconds["reference"])), 2)


def table(ratios: Ratios, shapes: Sequence[Shape]) -> str:
    """Return a Markdown table per group; a ratio above the goal has an asterisk."""
    names = " | ".join(f"{n_samples:,} x {n_classes:,}" for n_samples, n_classes in shapes)
    groups: dict[str, list[str]] = {}
    for alias, row in ratios.items():
        groups.setdefault(group_of(alias), []).append(f"| {alias} | {cells(row, alias)} |")
    parts = []
    for group, goal in GOALS.items():
        if group in groups:
            title = f"{group} (goal {goal})" if goal else f"{group} (no goal)"
            rule = "---|" * (1 + len(shapes))
            parts.append("\n".join([f"| {title} | {names} |", f"|{rule}", *groups[group]]))
    return "\n\n".join(parts)


def cells(row: Sequence[float | None], alias: str) -> str:
    goal = GOALS[group_of(alias)] or float("inf")
    marked = ("-" if r is None else f"{r:.2f}{' *' if r > goal else ''}" for r in row)
    return " | ".join(marked)


def parse_shapes(text: str) -> list[Shape]:
    """Return the shapes in a list like `4096x10,256x10000`."""
    pairs = (shape.split("x") for shape in text.split(","))
    return [(int(n_samples), int(n_classes)) for n_samples, n_classes in pairs]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", help="comma-separated aliases (default: all)")
    parser.add_argument("--shapes", type=parse_shapes, default=SHAPES, help="like 4096x10,256x1000")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there, too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    aliases = args.losses.split(",") if args.losses else all_aliases()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        ratios = measure(args.shapes, aliases, args.rounds, args.device)
    where = {"torch": torch.__version__, "threads": args.threads}
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(f"torch {torch.__version__}, {device}, threads {args.threads}", end="\n\n")
    print(table(ratios, args.shapes))
    if args.json:
        rows = ",\n".join(f"  {json.dumps(alias)}: {json.dumps(r)}" for alias, r in ratios.items())
        head = json.dumps(where | {"shapes": args.shapes})[1:-1]
        args.json.write_text(f'{{{head}, "ratios": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
