"""README and guide run as printed. `python tests/test_readme.py` writes README's outputs anew."""

import contextlib
import doctest
import io
import os
import re
import runpy
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from robustclf import RobustClassifier, make_loss

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guide.rst"
SCALING = ROOT / "docs" / "scaling.rst"
EXAMPLE = re.compile(r"(?<=```python\n)(.*?)```\n\nprints\n\n```text\n(.*?)(?=```)", re.S)
DEMO = re.compile(r"(?<=`make demo`)(.*?)```text\n(.*?)(?=```)", re.S)
DECIMAL = re.compile(r"\d+\.\d+")
SECONDS = re.compile(r" +\d+\.\d(?= seconds|$)", re.M)


@pytest.fixture(scope="module", autouse=True)
def _few_trees():
    """Leave the portfolio as users have it."""


def run_example(code):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


def run_demo():
    """Run the main job in the current folder, where it saves its plot."""
    matplotlib.use("agg")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(ROOT / "examples" / "plot_noisy_labels.py"), run_name="__main__")
    return printed.getvalue()


def differs(printed, written):
    """Compare text and integers exactly, decimals within 0.02: processors round differently."""
    if DECIMAL.sub("", printed).split() != DECIMAL.sub("", written).split():
        return True
    ours, theirs = (np.array(DECIMAL.findall(text), float) for text in (printed, written))
    return ours.shape != theirs.shape or bool((abs(ours - theirs) > 0.02).any())


def check(printed, written):
    ignored = [SECONDS.sub("", text) for text in (printed, written)]
    if differs(*ignored):
        pytest.fail(
            "README.md shows another output. Run `python tests/test_readme.py`, or write there:\n"
            f"```text\n{printed}```",
            pytrace=False,
        )


def test_example_prints_what_readme_says():
    code, written = EXAMPLE.search(README.read_text()).groups()
    check(run_example(code), written)


def test_main_job_prints_what_readme_says_and_saves_a_plot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(run_demo(), DEMO.search(README.read_text())[2])
    assert (tmp_path / "noisy_labels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", [GUIDE, SCALING], ids=lambda path: path.stem)
def test_pages_run_as_printed(page):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert tried > 10
    assert not failed


RECIPES = re.findall(r"- ``(RobustClassifier\(.*\))``", GUIDE.read_text())


@pytest.fixture(scope="module")
def noisy_digits():
    X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=1)
    rng = np.random.default_rng(1)
    wrong = rng.permutation(len(y)) < 0.4 * len(y)
    return X, np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y), X_test, y_test


def test_guide_has_recipes():
    assert len(RECIPES) > 5


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_of_the_guide_work(recipe, noisy_digits):
    X, y, X_test, y_test = noisy_digits
    T = np.where(np.eye(10), 0.6, 0.4 / 9)
    names = {"RobustClassifier": RobustClassifier, "make_loss": make_loss, "T": T}
    clf = eval(recipe, names).set_params(random_state=0).fit(X, y)
    assert clf.score(X_test, y_test) > 0.8


def refresh():
    """Run both programs of README.md and write down what they print."""
    text = README.read_text()
    code, _ = EXAMPLE.search(text).groups()
    text = EXAMPLE.sub(lambda m: f"{code}```\n\nprints\n\n```text\n{run_example(code)}", text)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        printed = run_demo().lstrip()
        os.chdir(ROOT)
    README.write_text(DEMO.sub(lambda m: f"{m[1]}```text\n{printed}", text, count=1))


if __name__ == "__main__":
    refresh()
