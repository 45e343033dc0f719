"""Starting the ranks of a measurement: on this host, or through any command that starts ranks (a virtual cluster, srun).

A launcher is a command to which `RANKS PROGRAM ...` is appended, for example `benchmarks/virtual_cluster.sh run`. Every start has a
deadline and ends its own process group only. Used by the modules of hpcnmt.bench that run programs on several ranks.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import hpcnmt
from hpcnmt.training.launch import local_launcher


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
    source = str(Path(hpcnmt.__file__).parents[1])
    search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        command, env=os.environ | variables | {"PYTHONPATH": search, "PATH": path} | dict(environment or {}), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=deadline_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise RuntimeError(f"{' '.join(command)} took longer than {deadline_s:.0f} s:\n{_tail(output)}") from None
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{_tail(output)}")
    return output


def _tail(output: str) -> str:
    return "\n".join(output.splitlines()[-15:])
