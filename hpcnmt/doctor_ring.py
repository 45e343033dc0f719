"""A small real test of one-sided MPI: every rank writes into its right neighbour's window and checks what arrived.

Uses Win.Allocate, Lock_all, Put, Fetch_and_op, Get and Flush, as training does. Invariants: origin buffers live until
the flush; waits poll with Iprobe and sleep; a watchdog ends the process soon after DEADLINE_S, so that a broken MPI
cannot hang the caller. Called by hpcnmt/doctor.py, inside a launched world or as
`mpiexec -n 3 python -m mpi4py -m hpcnmt.doctor_ring`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from mpi4py import MPI

DEADLINE_S = 60.0
DATA_WORDS = 1 << 16  # window of a rank: DATA_WORDS int64, then ARRIVED, then COUNTER
ARRIVED, COUNTER = DATA_WORDS, DATA_WORDS + 1


def _wait(what: str, done: Callable[[], bool], comm: MPI.Comm, deadline_s: float) -> None:
    begin = time.monotonic()
    while not done():
        comm.Iprobe()
        time.sleep(1e-3)
        if time.monotonic() - begin > deadline_s:
            raise RuntimeError(f"rank {comm.rank} waited {deadline_s:.0f} s for {what}")


def _give_up(rank: int, deadline_s: float) -> None:
    print(f"rank {rank}: the one-sided ring test did not end within {deadline_s:.0f} s", file=sys.stderr, flush=True)
    os._exit(3)


def run_ring(comm: MPI.Intracomm, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """Runs the ring on all ranks of `comm`; returns ranks, hosts and seconds; RuntimeError says what arrived wrong."""
    watchdog = threading.Timer(deadline_s + 5, _give_up, (comm.rank, deadline_s))
    watchdog.daemon = True
    watchdog.start()
    begin = time.monotonic()
    window = MPI.Win.Allocate(8 * (DATA_WORDS + 2), 8, comm=comm)
    memory = np.frombuffer(cast(Any, window.tomemory()), np.int64)
    memory[:] = 0
    window.Lock_all()
    window.Sync()
    ready = comm.Ibarrier()
    _wait("all ranks to start", ready.Test, comm, deadline_s)
    _exchange(comm, window, memory, deadline_s)
    window.Unlock_all()
    del memory
    window.Free()
    hosts = len(set(comm.allgather(MPI.Get_processor_name())))
    watchdog.cancel()
    return {"ranks": comm.size, "hosts": hosts, "seconds": round(time.monotonic() - begin, 3)}


def _exchange(comm: MPI.Intracomm, window: MPI.Win, memory: Any, deadline_s: float) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    mine = np.arange(DATA_WORDS, dtype=np.int64) + 1000 * (comm.rank + 1)
    window.Put(mine, right, target=0)
    window.Flush(right)
    one, before, total = np.ones(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    window.Fetch_and_op(one, before, right, ARRIVED)
    window.Flush(right)
    window.Fetch_and_op(one, total, 0, COUNTER)
    window.Flush(0)

    def arrived() -> bool:
        window.Sync()
        return bool(memory[ARRIVED] == 1)

    _wait(f"the data of rank {left}", arrived, comm, deadline_s)
    if before[0] != 0 or not np.array_equal(memory[:DATA_WORDS], mine + 1000 * (left - comm.rank)):
        raise RuntimeError(f"rank {comm.rank} found wrong data after the Put of rank {left}")
    fetched = np.zeros(DATA_WORDS, np.int64)
    window.Get(fetched, right, target=0)
    window.Flush(right)
    if not np.array_equal(fetched, mine):
        raise RuntimeError(f"rank {comm.rank} got other data back from rank {right} than it had put")
    done = comm.Ibarrier()
    _wait("all ranks to finish", done.Test, comm, deadline_s)
    window.Sync()
    if comm.rank == 0 and int(memory[COUNTER]) != comm.size:
        counted = int(memory[COUNTER])
        raise RuntimeError(f"the shared counter is {counted}, expected {comm.size}: Fetch_and_op lost updates")


def main() -> None:
    result = run_ring(MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(result | {"thread_level": MPI.Query_thread()}), flush=True)


if __name__ == "__main__":
    main()
