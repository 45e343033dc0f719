"""Run on virtual hosts: 3 workers whose batches take 0.2 s of sleep, 1 shard. Every worker writes the times of its windows to a file.

usage: rate_program.py FOLDER SECONDS
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.mpi import MpiWindows
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig, WorkerLoop

SIZE = 500_000


def compute() -> BatchCounts:
    time.sleep(0.2)
    return BatchCounts(100, 100, 10, 1.0)


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    windows = MpiWindows(Layout(SIZE, 3, 1), DeadlineConfig(30, 150, 300))
    rank = windows.comm.rank
    if rank == 3:
        windows.serve(ShardConfig())
        windows.free()
        return
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    loop = WorkerLoop(Exchange(windows, rank, windows.deadlines), WorkerConfig(), torch.zeros(SIZE), torch.zeros(SIZE), compute)
    loop.start(initial=rank == 0)
    begin = time.monotonic()
    with (folder / f"windows-{rank}").open("w") as stream:
        while time.monotonic() - begin < seconds:
            loop.window()
            stream.write(f"{time.monotonic()}\n")  # one clock for all processes of the machine
            stream.flush()
    loop.finish()
    loop.close()
    windows.free()


if __name__ == "__main__":
    main()
