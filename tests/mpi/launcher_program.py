"""The launcher of local ranks around a small program that holds a window, in place of a training.

    launcher_program.py RUN WHAT      starts 3 ranks of this file; ends with the exit code of the run
    launcher_program.py rank WHAT     one of them

WHAT: wait (until a signal; rank 0 then tells 75), late (the same, slow to begin), deaf (no handlers), fail (rank 1 tells 3 and aborts).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def rank(what: str) -> int:
    from hpcnmt.training.parent import die_with_parent, leave

    die_with_parent()
    if what == "late":
        time.sleep(2)  # signals come before there are handlers
    from mpi4py import MPI

    from hpcnmt.training.launch import abort
    from hpcnmt.training.signals import EndRequest

    world = MPI.COMM_WORLD
    window = MPI.Win.Allocate(1 << 20, 1, comm=world)
    if what == "deaf":
        os.write(1, b"up %d\n" % world.rank)
        time.sleep(120)
    with EndRequest(speaks=world.rank == 0) as request:
        world.Barrier()
        os.write(1, b"up %d\n" % world.rank)
        if what == "fail" and world.rank == 1:
            return abort("async", 3)
        while not request.requested:
            time.sleep(0.01)
        print(f"saved {world.rank} {request.reason}", flush=True)
    world.Barrier()
    window.Free()
    code = leave(75) if world.rank == 0 else 0
    MPI.Finalize()
    return code


def main() -> int:
    from hpcnmt.training.job import Forwarder, run_job
    from hpcnmt.training.launch import local_launcher

    command, environment = local_launcher(3, 1)
    with Forwarder() as signals:
        return run_job([*command, sys.executable, __file__, "rank", sys.argv[2]], environment, Path(sys.argv[1]), signals)


if __name__ == "__main__":
    sys.exit(rank(sys.argv[2]) if sys.argv[1] == "rank" else main())
