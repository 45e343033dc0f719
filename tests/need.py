"""What a test cannot do without: skipped where that is missing, unless HPCNMT_REQUIRE=mpi,netns,kernels,... names it (CI does)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest


def need(name: str, present: bool, message: str) -> None:
    """Goes on if `present`; otherwise skips the test with `message`, or fails it when `name` is required."""
    if present:
        return
    if name in os.environ.get("HPCNMT_REQUIRE", "").split(","):
        pytest.fail(f"{message} (HPCNMT_REQUIRE names {name})")
    pytest.skip(message)


def mpiexec() -> str:
    """The launcher of the MPI installed beside this Python, or the first on PATH."""
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    need("mpi", found is not None, "no mpiexec found: install the extra [mpich] or [openmpi]")
    return str(found)


def need_backend(backend: str) -> None:
    """Horovod, where it is the backend of a synchronous test."""
    if backend == "horovod":
        need("horovod", importlib.util.find_spec("horovod") is not None, "no Horovod found: bash env/horovod.sh mpich (or openmpi)")
