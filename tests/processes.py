"""Running a command with a deadline: when it is over, its own process group is killed, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(
    command: Sequence[object], deadline_s: float, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Exit code, standard output and standard error of `command`, which finds this tree's hpcnmt; fails the test at the deadline."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    process = subprocess.Popen(
        [str(part) for part in command], env=variables | dict(environment or {}), cwd=ROOT, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(stdin, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{command} took longer than {deadline_s} s:\n{out.decode()}\n{err.decode()}")
    return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())
