"""Directives that describe every loss and strategy of the registries, so new ones appear."""

from __future__ import annotations

import csv
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from numpydoc.docscrape import NumpyDocString
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from robustclf.losses import Loss, search_space
from robustclf.losses._base import LOSSES
from robustclf.optimizers import OPTIMIZERS
from robustclf.recipes import RECIPES
from robustclf.strategies import make_strategy, overrides
from robustclf.strategies._base import STRATEGIES

HOOKS = {
    "epoch_rows": "i",
    "on_batch": "x, t",
    "relabel": "t",
    "observe": "f",
    "weigh": "w",
    "penalty": "R",
}
FAMILIES = (  # modules of robustclf.losses in the order of the page; any others follow
    *("cross_entropy", "huberised", "scores", "symmetric", "asymmetric", "active_negative"),
    *("label_robust", "divergences", "evidential", "legendretron", "ensloss"),
    *("recipes", "transforms", "corrections"),
)
FACTS = ("bounded", "symmetric", "convex", "proper", "pointwise", "needs_memory", "stochastic")
DOCS = Path(__file__).parents[1]
COSTS = DOCS / "loss_costs.json"
MEASURED = ("helps", "accuracy", "groups", "adversarial", "semi")  # by benchmarks/strategies.py
TITLES = {
    "ce": "Cross entropy",
    "gce": "GCE",
    "recipe": "Recipes, against plain cross entropy",
}
HEADINGS = {"worse": "CIFAR-10N", "difference": "to plain", "none": "clean"}
Factory = Callable[..., Any]
Rows = Iterator[list[str]]


def summary(factory: Factory) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(factory) or "").partition("\n\n")[0].split())


def formula(factory: Factory) -> str:
    """Return the first formula of a docstring on one line."""
    found = re.search(r"^\.\. math::(.*?)^$", f"{inspect.getdoc(factory)}\n\n", re.S | re.M)
    return f".. math:: {' '.join(found[1].split())}" if found else ""


def reference(factory: Factory) -> str:
    """Return surnames, year and venue of the first reference, and a link where there is one."""
    references = "\n".join(NumpyDocString(inspect.getdoc(factory))["References"])
    first = " ".join(references.partition("\n\n")[0].split())
    if '"' in first:
        authors, _, rest = re.split(r', "|", ', first, maxsplit=2)
    else:  # sentences: authors, title, venue, arXiv
        parts = first.rstrip(".").split(". ")
        authors = re.sub(r" al$", " al.", parts[0])
        rest = ", ".join(parts[-2:] if "arXiv" in parts[-1] else parts[-1:])
    surnames = [re.sub(r"^(-?\w\.[ ]?)+", "", author) for author in authors.split(", ")]
    who = " and ".join(surnames) if len(surnames) < 3 else f"{surnames[0]} et al."
    where = rest.partition(". ")[0].rstrip(".")  # what follows is about other references
    return f"{who}, " + re.sub(r"arXiv:([\d.]+)", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", where)


def parameters(factory: Factory, space: dict[str, Any] | None = None) -> str:
    """Return the parameters with their defaults, and the ranges of those in the search space."""
    found = {p.name: _short(p.default) for p in inspect.signature(factory).parameters.values()}
    ranges = {name: f" ({_range(values)})" for name, values in (space or {}).items()}
    return ", ".join(f"``{name}={found[name]}``{ranges.get(name, '')}" for name in found)


def _range(values: Any) -> str:
    if isinstance(values, list):
        return ", ".join(map(str, values))
    low, high = values.support()
    return f"{low:.4g} to {high:.4g}" + (", log" if values.dist.name == "loguniform" else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def family_rank(alias: str) -> tuple[int, str]:
    """Return the place of the family on the page and the name of its module."""
    module = LOSSES.get(alias).__module__
    name = module.rpartition(".")[2]
    return FAMILIES.index(name) if name in FAMILIES else len(FAMILIES), module


def loss_page() -> Iterator[str]:
    """Describe the losses family by family."""
    costs = json.loads(COSTS.read_text())["ratios"]
    for (_, module), aliases in groupby(sorted(LOSSES.names(), key=family_rank), family_rank):
        line = sys.modules[module].__doc__.splitlines()[0]
        title, _, rest = line.partition(": ")
        title = title.rstrip(".")
        yield from ("", title, "-" * len(title), "", rest[:1].upper() + rest[1:], "")
        yield from list_table(loss_rows(aliases, costs), widths="28 72")


def loss_rows(aliases: Iterator[str], costs: dict[str, list[float | None]]) -> Rows:
    """Describe some losses, in two cells of several paragraphs."""
    yield ["alias, facts, cost", "loss, formula, parameters, reference"]
    for alias in aliases:
        factory = LOSSES.get(alias)
        facts = [fact.replace("_", " ") for fact in FACTS if getattr(factory(), fact)]
        cost = ["-" if ratio is None else f"{ratio:.1f}" for ratio in costs.get(alias, ())]
        left = [link(alias, factory), ", ".join(facts), " / ".join(cost)]
        names = parameters(factory, search_space(alias, prefix=""))
        right = [summary(factory), formula(factory), names, reference(factory)]
        yield ["\n\n".join(filter(None, cell)) for cell in (left, right)]


def fact_rows() -> Rows:
    """Describe the facts, in the words of the class that defines them."""
    yield ["fact", "meaning"]
    described = {p.name: p.desc for p in NumpyDocString(inspect.getdoc(Loss))["Attributes"]}
    for fact in FACTS:
        yield [fact.replace("_", " "), " ".join(described[fact])]


def strategy_rows() -> Rows:
    """Describe every strategy of the registry."""
    yield ["alias", "strategy", "edits", "parameters", "members", "reads"]
    for alias in STRATEGIES.names():
        factory, strategy = STRATEGIES.get(alias), make_strategy(alias)
        places = " and ".join(
            f"`{place}`" for hook, place in HOOKS.items() if overrides(strategy, hook)
        )
        yield [
            link(alias, factory),
            summary(factory),
            places,
            parameters(factory),
            str(strategy.n_members),
            ", ".join([*strategy.needs, *(["rows without label"] * strategy.uses_unlabelled)]),
        ]


def optimizer_rows() -> Rows:
    """Describe the optimisers that torch does not have."""
    yield ["alias", "optimiser", "parameters", "reference"]
    for alias in OPTIMIZERS.names():
        factory = OPTIMIZERS.get(alias)
        if factory.__module__.startswith("robustclf"):
            named = inspect.signature(factory).parameters
            shown = ", ".join(f"``{_plain(p)}``" for n, p in named.items() if n != "params")
            yield [link(alias, factory), summary(factory), shown, reference(factory)]


def _plain(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty)).replace("'", '"')


def recipe_rows() -> Rows:
    """Describe what each recipe is made of and how it differs from the paper."""
    yield ["recipe", "method", "arguments of RobustClassifier", "reference"]
    for name in RECIPES.names():
        factory = RECIPES.get(name)
        doc = NumpyDocString(inspect.getdoc(factory))
        method = " ".join([*doc["Summary"], *doc["Extended Summary"]])
        arguments = "\n\n".join(f"``{key}={value!r}``" for key, value in factory().items())
        yield [f"``{name}``", method, arguments, reference(factory)]


def measured(part: str) -> Iterator[str]:
    """Show what benchmarks/strategies.py wrote about a part, a table for each loss."""
    path = DOCS / f"strategy_{part}.csv"
    if not path.exists():
        yield "Not measured yet."
        return
    with path.open() as file:
        lines = list(csv.DictReader(file))
    for loss, group in groupby(lines, lambda line: line["loss"]):
        yield from ("", f".. rubric:: {TITLES[loss]}", "")
        yield from list_table(measured_rows(list(group)))


def measured_rows(lines: list[dict[str, str]]) -> Rows:
    """Put the counts of cells into the column of the difference; leave out empty columns."""
    for line in lines:
        won, lost = line.pop("won", ""), line.pop("lost", "")
        line["difference"] = f"{line.get('difference', '')} ({won}:{lost})" if won else ""
        line["variant"] = linked(line["variant"]) if "variant" in line else ""
    shown = [name for name in lines[0] if name != "loss" and any(line[name] for line in lines)]
    yield [HEADINGS.get(name, name) for name in shown]
    for line in lines:
        yield [HEADINGS.get(line[name], line[name]) for name in shown]


def linked(variant: str) -> str:
    """Return a variant as a link to the strategy, or as it is written in code."""
    known = variant in STRATEGIES.names()
    return link(variant, STRATEGIES.get(variant)) if known else f"``{variant}``"


def link(alias: str, factory: Factory) -> str:
    """Return the alias as a link to the reference."""
    role = "class" if inspect.isclass(factory) else "func"
    return f':py:{role}:`"{alias}" <{target(factory)}>`'


def target(factory: Factory) -> str:
    """Return the name under which the reference documents a class or function."""
    package = ".".join(factory.__module__.split(".")[:2])
    module = package if inspect.isclass(factory) else factory.__module__
    return f"{module}.{factory.__name__}"


def list_table(rows: Rows, widths: str = "auto") -> Iterator[str]:
    """Write rows, of which the first is the header, as reStructuredText."""
    yield from (".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", "")
    for row in rows:
        for i, cell in enumerate(row):
            first, *others = cell.split("\n")
            yield f"   {'* -' if i == 0 else '  -'} {first}"
            yield from (f"       {line}" for line in others)


class RegistryTable(SphinxDirective):
    """``.. registry-table:: losses``: one row for each alias, so a new one appears by itself."""

    required_arguments = 1
    texts: ClassVar[dict[str, Callable[[], Iterator[str]]]] = {
        "losses": loss_page,
        "facts": lambda: list_table(fact_rows(), widths="20 80"),
        "strategies": lambda: list_table(strategy_rows()),
        "optimizers": lambda: list_table(optimizer_rows(), widths="12 40 28 20"),
        "recipes": lambda: list_table(recipe_rows(), widths="14 30 36 20"),
        **{f"measured-{part}": partial(measured, part) for part in MEASURED},
    }

    def run(self) -> list[nodes.Node]:
        """Write reStructuredText and parse it."""
        for path in (COSTS, *(DOCS / f"strategy_{part}.csv" for part in MEASURED)):
            self.env.note_dependency(str(path))
        text = "\n".join(self.texts[self.arguments[0]]())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def check_targets(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of what the tables link to and api.rst does not list."""
    documented = env.get_domain("py").objects
    for registry in (LOSSES, STRATEGIES):
        for alias in registry.names():
            name = target(registry.get(alias))
            if name not in documented:
                logging.getLogger(__name__).warning("add %s (%r) to api.rst", name, alias)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive and the check."""
    app.add_directive("registry-table", RegistryTable)
    app.connect("env-check-consistency", check_targets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
