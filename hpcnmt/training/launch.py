"""Who starts ranks, and with what command; what a rank does that is started: it tells its exit code, and dies with its launcher.

`hpcnmt train` without a launcher runs itself under the mpiexec of its own installation (start.py, job.py); under mpiexec, srun or torchrun
it is a rank. Called by start.py and job.py, by benchmarks (`local_launcher`), and on ranks by cli.py.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hpcnmt.distributed.collective import is_started_by_torchrun
from hpcnmt.training import leftovers
from hpcnmt.training.exits import FINISHED, SIGNAL

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS")
CODE_FILE = "HPCNMT_EXIT_CODE"
"""Names the file in which a rank tells its launcher the exit code: mpiexec's own says less (MPICH: 9 for a killed rank)."""
LAUNCHER = "HPCNMT_LAUNCHER"
"""HOST/PID@BEGIN of the launcher of this file."""
PR_SET_PDEATHSIG = 1


def is_launched(mode: str) -> bool:
    """True on a rank that mpiexec or srun has started; in mode sync, which can do without MPI, also on one of torchrun."""
    return any(name in os.environ for name in RANK_VARIABLES) or (mode == "sync" and is_started_by_torchrun())


def is_ours() -> bool:
    """True in a process that the launcher of this file has started."""
    return leftovers.TOKEN in os.environ


def is_first(mode: str) -> bool:
    """Whether this is rank 0."""
    if mode == "sync" and is_started_by_torchrun():
        return os.environ["RANK"] == "0"
    from mpi4py import MPI

    return bool(MPI.COMM_WORLD.rank == 0)


def abort(mode: str, code: int) -> int:
    """Ends all ranks of MPI's world; returns `code` for torchrun, which ends its ranks itself when one fails."""
    tell_code(code)
    if mode == "sync" and is_started_by_torchrun():
        return code
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(code)
    return code


def tell_code(code: int) -> bool:
    """Tells the launcher of this file, if it has started this rank, with what code to end; the first to say so counts."""
    path = os.environ.get(CODE_FILE)
    if not path or not is_ours():
        return False
    try:
        with open(path, "x", encoding="ascii") as file:
            file.write(str(code))
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def leave(code: int) -> int:
    """The exit code of a rank that ends in good order: 0 where the launcher knows the code, because mpiexec would call others a failure."""
    return FINISHED if tell_code(code) else code


def death_signal() -> Callable[[], object]:
    """A function that makes the calling process die with its parent. Looked up before a fork, where no lock may be taken."""
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def die_with_parent() -> None:
    """On a process that the launcher has started (else nothing): it is killed when its parent, mpiexec, is. To be called early."""
    if not is_ours() or not sys.platform.startswith("linux"):
        return
    death_signal()()
    if launcher_is_gone():  # and so may the parent be, since before the line above
        os._exit(SIGNAL + signal.SIGKILL)


def launcher_is_gone() -> bool:
    """Whether the launcher that started this process has died on this host; False where it runs on another one."""
    host, _, process = os.environ.get(LAUNCHER, "").rpartition("/")
    pid, _, began_s = process.partition("@")
    return host == platform.node() and pid.isdigit() and str(leftovers.started_s(int(pid))) != began_s


def local_launcher(ranks: int, threads: int, python: str = sys.executable) -> tuple[list[str], dict[str, str]]:
    """The command that starts `ranks` local ranks of what follows it, and the environment variables that go with it.

    mpiexec is the one beside `python`, otherwise the first on PATH.
    """
    search = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    mpiexec = shutil.which("mpiexec", path=search)
    if mpiexec is None:
        raise ValueError("found no mpiexec: pip install 'hpcnmt[mpich]', or load the MPI module of your site")
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=60).stdout
    command = [mpiexec, "-n", str(ranks)]
    if "Open MPI" in version or "open-mpi" in version:
        # more ranks than cores are normal here: shards sleep while they have nothing to do
        command += ["--map-by", ":oversubscribe", "--bind-to", "none"]
        environment |= {"OMPI_MCA_osc": "^ucx"}  # silences one harmless line for each window
        if os.getuid() == 0:
            command.append("--allow-run-as-root")
    else:
        environment["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = os.environ.get("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
    return command, environment
