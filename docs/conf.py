"""Sphinx configuration; the tables of losses and strategies are made from the registries."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import robustclf
from robustclf.losses._base import LOSSES
from robustclf.strategies import make_strategy, overrides
from robustclf.strategies._base import STRATEGIES

os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "robustclf"
author = "the robustclf contributors"
copyright = author  # noqa: A001 (Sphinx's name)
release = version = robustclf.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
default_role = "literal"

html_theme = "furo"
html_title = f"robustclf {release}"

autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = False  # but all of __all__
autodoc_typehints = "none"  # types are in the docstrings, in words
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
}

HOOKS = {"on_batch": "x, t", "relabel": "t", "weigh": "w", "penalty": "R"}


def summary(factory: Callable[..., Any]) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(factory) or "").partition("\n\n")[0].split())


def parameters(factory: Callable[..., Any]) -> str:
    """Return the names of the parameters with their defaults."""
    signature = inspect.signature(factory).parameters.values()
    return ", ".join(f"``{p.name}={_short(p.default)}``" for p in signature)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def loss_rows() -> Iterator[list[str]]:
    """Describe every loss of the registry."""
    yield ["alias", "loss", "parameters", "bounded", "symmetric"]
    for alias in LOSSES.names():
        factory = LOSSES.get(alias)
        loss = factory()
        marks = ["yes" if fact else "" for fact in (loss.bounded, loss.symmetric)]
        yield [_link(alias, factory), summary(factory), parameters(factory), *marks]


def strategy_rows() -> Iterator[list[str]]:
    """Describe every strategy of the registry."""
    yield ["alias", "strategy", "edits", "parameters", "members"]
    for alias in STRATEGIES.names():
        factory, strategy = STRATEGIES.get(alias), make_strategy(alias)
        places = " and ".join(
            f"`{place}`" for hook, place in HOOKS.items() if overrides(strategy, hook)
        )
        yield [
            _link(alias, factory),
            summary(factory),
            places,
            parameters(factory),
            str(strategy.n_members),
        ]


def _link(alias: str, factory: Callable[..., Any]) -> str:
    role = "class" if inspect.isclass(factory) else "func"
    package = ".".join(factory.__module__.split(".")[:2])
    module = package if inspect.isclass(factory) else factory.__module__
    return f':py:{role}:`"{alias}" <{module}.{factory.__name__}>`'


class RegistryTable(SphinxDirective):
    """``.. registry-table:: losses``: one row for each alias, so a new one appears by itself."""

    required_arguments = 1
    tables: ClassVar[dict[str, Callable[[], Iterator[list[str]]]]] = {
        "losses": loss_rows,
        "strategies": strategy_rows,
    }

    def run(self) -> list[nodes.Node]:
        """Write the table as reStructuredText and parse it."""
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in self.tables[self.arguments[0]]():
            lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("registry-table", RegistryTable)
