"""What a process knows of the launcher of hpcnmt that has started it: it dies with it, and tells it its exit code.

Job scripts (slurm/common.sh) ask for the exit code in the same way. Otherwise (an mpiexec of the user's, torchrun, one process) nothing
here does anything. The launcher's side is job.py;
called by cli.py first of all, so that few imports come before, and by launch.py.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable

from hpcnmt.training import leftovers
from hpcnmt.training.exits import FINISHED, SIGNAL

CODE_FILE = "HPCNMT_EXIT_CODE"
"""Names the file in which a rank tells its launcher the exit code: mpiexec's own says less (MPICH: 9 for a killed rank)."""
LAUNCHER = "HPCNMT_LAUNCHER"
"""HOST/PID@BEGIN of the launcher of this file."""
PR_SET_PDEATHSIG = 1


def is_ours() -> bool:
    """True in a process that the launcher of this file has started."""
    return leftovers.TOKEN in os.environ


def tell_code(code: int) -> bool:
    """Tells the launcher, or the job script, that has started this rank with what code to end; the first to say so counts."""
    path = os.environ.get(CODE_FILE)
    if not path:
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
