"""Starting the ranks of a measurement: on this host, or through any command that starts ranks (a virtual cluster, srun); ending them.

A launcher is a command to which `RANKS PROGRAM ...` is appended, for example `benchmarks/virtual_cluster.sh run`. Every start has a
deadline and ends its own process group only. Used by the modules of hpcnmt.bench that run programs on several ranks.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hpcnmt
from hpcnmt.training.launch import local_launcher

BETWEEN_HOSTS = {"MPIR_CVAR_CH4_NUM_VCIS": os.environ.get("MPIR_CVAR_CH4_NUM_VCIS", "8")}
"""What the engine wants of MPICH between hosts (see mpi.py); other libraries do not know it."""
TAIL_LINES = 50
"""What a failed program has said last; launchers add some twenty lines of their own about a job that was aborted."""
ENDING_S = 10.0
"""Time that a program gets to end by itself when it is asked to."""


def program_environment(python: str = sys.executable) -> dict[str, str]:
    """The environment of a program of this package: it finds the package and the installation of `python`, its mpiexec too."""
    source = str(Path(hpcnmt.__file__).parents[1])
    search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
    return os.environ | {"PYTHONPATH": search, "PATH": path}


def launch(
    program: Sequence[str], ranks: int, launcher: str, deadline_s: float, environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> str:  # fmt: skip
    """Runs `python -m PROGRAM...` on `ranks` ranks and returns its output; `launcher` "" means mpiexec on this host.

    `python` of another environment brings that environment's mpiexec along.

    Raises RuntimeError with the last lines of the output when the program fails or outlives `deadline_s`.
    """
    if launcher:
        command, variables = [*shlex.split(launcher), str(ranks)], {"OMP_NUM_THREADS": "1"}
    else:
        command, variables = local_launcher(ranks, 1, python)
    command = [*command, python, "-m", *program]
    process = subprocess.Popen(
        command, env=program_environment(python) | variables | dict(environment or {}), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=deadline_s)
    except BaseException as error:
        end_groups([process])
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise RuntimeError(f"{' '.join(command)} took longer than {deadline_s:.0f} s:\n{_tail(output)}") from None
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{_tail(output)}")
    return output


def end_groups(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Ends the process groups that `processes` lead: asks first, so that launchers can end their ranks, then kills what is left."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    limit = time.monotonic() + ENDING_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(limit - time.monotonic(), 0.0))
        with contextlib.suppress(ProcessLookupError):  # also what the leader of the group has left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(output: str) -> str:
    return "\n".join(output.splitlines()[-TAIL_LINES:])
