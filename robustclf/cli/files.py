"""What is checked of files before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from robustclf._registry import closest


class InputError(ValueError):
    """What was given cannot be worked with; the message says why and what would do."""


def check_file(path: Path) -> None:
    """Raise an InputError unless ``path`` is a file with something in it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    if not path.is_file():
        folder = path.parent
        beside = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
        raise InputError(f"there is no file {path}{closest(path.name, beside)}")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")


def check_outputs(inputs: list[Path], outputs: list[Path], *, force: bool) -> None:
    """Raise an InputError for an input that is not there, or an output that must not be written.

    An output never takes the place of an input, and takes that of another file only by ``force``.
    """
    for path in inputs:
        check_file(path)
    for number, path in enumerate(outputs):
        if path.resolve() in [other.resolve() for other in outputs[:number]]:
            raise InputError(f"{path} is named twice as an output")
        if any(path.exists() and path.samefile(given) for given in inputs):
            raise InputError(f"{path} is an input: name another file to write")
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a file to write")
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} to write {path.name} into")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"the folder {path.parent} does not let {path.name} be written")
        if path.exists() and not force:
            raise InputError(f"{path} exists: name another file, or give --force to replace it")
