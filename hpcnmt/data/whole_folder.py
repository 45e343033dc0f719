"""A result folder that appears whole or not at all: nothing overwritten, nothing half-written. Used by prepare and the sample corpus."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing_folder(path: Path) -> None:
    """Raises ValueError when `path` exists."""
    if path.exists():
        raise ValueError(f"{path} exists already, expected a new folder: choose another --out or remove it")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its name when the block ends well and is removed when it does not."""
    refuse_existing_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work
        work.chmod(0o755)
        work.rename(path)
    finally:
        if work.exists():
            shutil.rmtree(work)
