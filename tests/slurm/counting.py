"""What stands in for hpcnmt train where the job scripts' own logic is tested: counts in its run folder, saves at a signal, goes on.

    counting.py RUN --data DATA        each start takes the next word of RUN/plan: count (default: 5 more) | wait | fail | wrong | advance
RUN/events gets a line for each start and end; RUN/count is its checkpoint. Every rank checks the world and reads the corpus.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

caught: list[int] = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: caught.append(number))

from mpi4py import MPI  # noqa: E402 - signals are heard from the first moment on

MORE, EVERY_S, SAVED = 5, 0.1, 75
world, run, data = MPI.COMM_WORLD, Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--data") + 1])


def tell(text: str) -> None:
    if world.rank == 0:
        with (run / "events").open("a") as events:
            events.write(text + "\n")


def next_word() -> str:
    plan = run / "plan"
    words = plan.read_text().split() if plan.exists() else []
    if words and world.rank == 0:
        plan.write_text(" ".join(words[1:]))
    return words[0] if words else "count"


def count(more: int) -> int:
    checkpoint = run / "count"
    reached = int(checkpoint.read_text()) if checkpoint.exists() else 0
    tell(f"from {reached}")
    end = reached + more
    while reached < end:
        reached += 1
        time.sleep(EVERY_S)
        if world.allreduce(len(caught)):
            if world.rank == 0:
                checkpoint.write_text(str(reached))
            tell(f"saved {reached}")
            return SAVED if world.rank == 0 else 0
    tell(f"finished {reached}")
    return 0


if world.rank == 0:
    run.mkdir(exist_ok=True)
world.Barrier()
words = world.bcast(next_word())
hosts = sorted(set(world.allgather(f"{MPI.Get_processor_name()}:{os.environ.get('CUDA_VISIBLE_DEVICES', '')}")))
read = world.allgather((data / "corpus").read_text())
tell(f"start {words} ranks={world.size} hosts={','.join(hosts)} data={data} read={set(read) == {'corpus'}}")
if words == "advance":  # a new checkpoint, then a failure
    (run / "checkpoints" / "cut-00000001").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / "cut-00000001" / "COMPLETE").touch()
if words in ("fail", "advance", "wrong") and world.rank == 1:
    from hpcnmt.training.launch import abort  # heavy

    abort("async", 2 if words == "wrong" else 1)
if words not in ("count", "wait"):
    time.sleep(30)  # until the launcher ends this rank
code = count(MORE if words == "count" else 10**6)
MPI.Finalize()
if code == SAVED:
    time.sleep(0.3)  # after the others
sys.exit(code)
