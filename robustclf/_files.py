"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(*paths: Path) -> Iterator[list[Path]]:
    """Yield a path to write to for each of ``paths``; they take their names if the block succeeds.

    The files are in the folder of their names, so that renaming one is a single step.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with written(folder / "a.txt") as [temporary]:
    ...     _ = temporary.write_text("all of it")
    ...     print([p.name == "a.txt" for p in folder.iterdir()])
    [False]
    >>> [p.name for p in folder.iterdir()]
    ['a.txt']
    """
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        yield temporary
        for path in temporary:
            with path.open("rb+") as handle:  # on the disk before it has its name
                os.fsync(handle.fileno())
        for source, path in zip(temporary, paths, strict=True):
            source.replace(path)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
