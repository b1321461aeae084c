"""What holds for the package as a whole; a failure says what to do."""

import ast
import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest

import robustclf
from robustclf._net import SCHEDULES
from robustclf.losses._base import LOSSES
from robustclf.modules import ACTIVATIONS, EMBEDDINGS, MODULES
from robustclf.optimizers import OPTIMIZERS
from robustclf.recipes import RECIPES
from robustclf.strategies import STRATEGIES

ROOT = Path(robustclf.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}

# design: "Layers (imports point down only)"; one line is one layer
LAYERS = [
    {"_random", "_version"},
    {"_files", "_registry", "_rows", "_distributed", "preprocessing"},
    {"_held_out"},
    {"_wrapped"},
    {
        "_device",
        "_params",
        "_progress",
        "losses",
        "sources",
        "noise",
    },
    {"conformal", "ood", "calibration", "metrics"},
    {"strategies", "stopping", "_dynamics"},
    {"optimizers", "modules", "recipes"},
    {"_packing", "_training_set"},
    {"_net"},
    {"_stream"},
    {"_build"},
    {"_export", "_lanes"},
    {"_stack", "_mixture"},
    {"_weighing", "_fitted"},
    {"_auto"},
    {"classifier"},
    {"_search"},
    {"model_selection"},
    {"plotting", "__init__"},
    {"cli"},
    {"__main__"},
]
WITHOUT_TORCH = {"preprocessing", "_held_out", "_wrapped", "_rows", "_registry", "_params"}
WITHOUT_TORCH |= {"noise", "conformal", "ood", "calibration", "metrics"}


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree):
    """Modules imported by name, each with the line; not those for type checkers only."""
    hints = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    ignored = {id(node) for hint in hints for node in ast.walk(hint)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in ignored:
            yield "." * node.level + (node.module or ""), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    mine = part(path)
    assert mine in level, f"add {mine!r} to LAYERS at the layer it belongs to"
    for name, line in imported(TREES[path]):
        where = f"{path}:{line} imports {name}"
        assert not name.startswith("."), f"{where}: import absolutely"
        assert name != "robustclf" or level[mine] > level["__init__"], f"{where}: from its module"
        if name.startswith("robustclf."):
            other = name.split(".")[1]
            assert other == mine or level[other] < level[mine], f"{where}: move it down a layer"
        assert not (mine in WITHOUT_TORCH and name.startswith("torch")), f"{where}: numpy only"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_prints(path):
    calls = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.Call)]
    lines = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert part(path) == "__main__" or not lines, f"{path}:{lines}: return it, record it or warn"


def public():
    names = {f"robustclf.{name}": getattr(robustclf, name) for name in robustclf.__all__}
    for registry in (LOSSES, STRATEGIES, OPTIMIZERS):
        names |= {f"{registry.kind} {alias}": registry.get(alias) for alias in registry.names()}
    return {k: v for k, v in names.items() if v.__module__.startswith("robustclf")}


@pytest.mark.parametrize("name", public())
def test_docstrings(name):
    what = public()[name]
    doc = inspect.cleandoc(what.__doc__ or "")
    assert len(doc.split("\n\n")[0]) > 20, f"{name} needs a sentence of documentation"
    assert "\nExamples\n--------\n>>> " in doc, f"{name} needs an executed example"
    if not name.startswith("robustclf.") or name == "robustclf.RobustClassifier":
        assert "\nReferences\n----------\n" in doc, f"{name} needs a reference"


@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "predict_proba", "embed"])
def test_methods_say_what_they_take_and_return(method):
    function = getattr(robustclf.RobustClassifier, method)
    doc = inspect.cleandoc(function.__doc__)
    assert "\nParameters\n" in doc
    assert "\nReturns\n" in doc
    for name in list(inspect.signature(function).parameters)[1:]:
        assert name in doc


def test_public_names():
    assert sorted(robustclf.__all__) == robustclf.__all__
    namespace = {}
    exec("from robustclf import *", namespace)
    assert set(robustclf.__all__) <= set(namespace)


def test_the_reference_lists_every_public_name_once():
    page = (ROOT.parent / "docs" / "api.rst").read_text()
    listed = []
    for line in (line.strip() for line in page.splitlines() if line.startswith("   robustclf")):
        try:
            module = importlib.import_module(line)
        except ModuleNotFoundError:  # one name
            home, _, name = line.rpartition(".")
            listed.append(getattr(importlib.import_module(home), name))
        else:
            listed += [getattr(module, name) for name in getattr(module, "__all__", ())]
    times = Counter(map(id, listed))
    # functions may have a short name besides; a class that two places describe fails the build
    twice = [what for what in listed if inspect.isclass(what) and times[id(what)] > 1]
    assert not twice, f"{twice}: list one of the places in docs/api.rst, or single names"
    for package in ROOT.glob("*/__init__.py"):
        module = importlib.import_module(f"robustclf.{package.parent.name}")
        missing = [n for n in getattr(module, "__all__", ()) if id(getattr(module, n)) not in times]
        assert not missing, f"add {missing} of {module.__name__} to docs/api.rst"


ALIASES = {
    f"{kind} {alias}": alias
    for kind, names in {
        "loss": LOSSES.names(),
        "strategy": STRATEGIES.names(),
        "recipe": RECIPES.names(),
        "optimizer": OPTIMIZERS.names(),
        "module": MODULES.names(),
        "numeric_embedding": EMBEDDINGS.names(),
        "activation": ACTIVATIONS,
        "lr_schedule": SCHEDULES,
    }.items()
    for alias in names
}


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_has_a_test_of_its_own(name):
    tests = Path(__file__).parent
    text = "".join(p.read_text() for p in tests.glob("test_*.py") if p != Path(__file__))
    assert f'"{ALIASES[name]}"' in text, f"test the formula of {name!r} in tests/"
