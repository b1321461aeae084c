"""Sphinx configuration; `_ext/registry_tables.py` makes the tables of losses and strategies."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import robustclf

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "robustclf"
author = "the robustclf contributors"
copyright = author  # noqa: A001 (Sphinx's name)
release = version = robustclf.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "registry_tables",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
default_role = "literal"

html_theme = "furo"
html_title = f"robustclf {release}"
mathjax4_config = {"output": {"displayOverflow": "linebreak"}}  # of formulas wider than their place

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
    "parallel": 2,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
}


def leave_out(app: Sphinx, what: str, name: str, member: object, *_: Any) -> bool | None:
    """Leave out scikit-learn's `set_fit_request` and the like, and properties without a word."""
    silent = isinstance(member, property) and not member.__doc__
    return True if silent or re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> None:
    """Register what to leave out."""
    app.connect("autodoc-skip-member", leave_out)
