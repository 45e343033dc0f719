"""Temporary folders of the fuzzer. Used by samples.py, inputs.py and whoever starts processes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SCRATCH = "HPCNMT_FUZZ_SCRATCH"
"""Environment variable with the folder of whoever started this process, who will remove it: this process may not live to do so."""


def scratch() -> Path:
    """A new temporary folder: in that of SCRATCH, else in memory where that is possible."""
    given, memory = os.environ.get(SCRATCH), Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="hpcnmt-fuzz-", dir=given or (memory if os.access(memory, os.W_OK) else None)))
