"""Who has started this process; the command that starts local ranks, and starting them.

`hpcnmt train` without a launcher runs itself under the mpiexec of its own installation; job.py looks after it. Called by command.py and
start.py, and by benchmarks (`local_launcher`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpcnmt.training.job import Forwarder, run_job
from hpcnmt.training.parent import leave, tell_code

LAST_S = 1.0
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS")


def is_launched(mode: str) -> bool:
    """True on a rank that mpiexec or srun has started; in mode sync, which can do without MPI, also on one of torchrun."""
    return any(name in os.environ for name in RANK_VARIABLES) or _by_torchrun(mode)


def _by_torchrun(mode: str) -> bool:
    if mode != "sync":
        return False
    from hpcnmt.distributed.collective import is_started_by_torchrun  # brings torch along

    return is_started_by_torchrun()


def is_first(mode: str) -> bool:
    """Whether this is rank 0."""
    if _by_torchrun(mode):
        return os.environ["RANK"] == "0"
    from mpi4py import MPI

    return bool(MPI.COMM_WORLD.rank == 0)


def abort(mode: str, code: int) -> int:
    """Ends all ranks of MPI's world; returns `code` for torchrun, which ends its ranks itself when one fails."""
    tell_code(code)
    if _by_torchrun(mode):
        return code
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(code)
    return code


def end_world(mode: str, code: int) -> int:
    """The orderly end of a rank; one with another code than 0 leaves after the others, so that srun -K ends none of them before."""
    if not _by_torchrun(mode):
        from mpi4py import MPI

        from hpcnmt.distributed.mpi import has_lost_ranks

        if has_lost_ranks():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(leave(code) if code else code)  # finalizing would wait for the dead, also at exit
        if not MPI.Is_finalized():
            MPI.Finalize()
    code = leave(code) if code else code
    if code:
        time.sleep(LAST_S)
    return code


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


def start_ranks(arguments: Sequence[str], ranks: int, threads: int, run: Path, signals: Forwarder) -> int:
    """Runs `hpcnmt ARGUMENTS` on `ranks` local ranks, for the run folder `run`; returns the exit code of the run."""
    command, environment = local_launcher(ranks, threads)
    return run_job([*command, sys.executable, "-m", "hpcnmt", *arguments], environment, run, signals)
