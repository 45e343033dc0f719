"""The rank program of `hpcnmt bench soak`: the real engine for minutes, with sleep in place of compute. usage: soak_program.py FOLDER

Reads FOLDER/soak.json (SoakConfig) and writes FOLDER/rank-N.json. Workers stop by their own clock; worker 0 also reads the consistent cuts,
as in training. Every rank notes its resident memory, in a thread, after a warm-up in which buffers are touched for the first time.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world, ranks_of_this_host
from hpcnmt.distributed.record import Event, ShardEntry
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig, WorkerLoop

BATCH_WORDS = 100
SPREAD = 0.2
"""Standard deviation of a batch's time relative to its mean."""
WARM_UP_SHARE = 0.1
SAMPLES = 100
CUTS = 20


@dataclass(frozen=True)
class SoakConfig:
    """One soak."""

    workers: int = 12
    shards: int = 4
    parameters: int = 1_000_000
    seconds: float = 600.0
    batch_s: float = 0.3
    overlap: int = 0

    def __post_init__(self) -> None:
        Layout(self.parameters, self.workers, self.shards)
        WorkerConfig(overlap=self.overlap)
        if not (self.batch_s > 0 and self.seconds >= 10 * self.batch_s):
            raise ValueError(f"found {self.seconds} s of soak with batches of {self.batch_s} s, expected at least 10 batches")

    @property
    def sample_s(self) -> float:
        """Time between two samples of memory."""
        return self.seconds * (1.0 - WARM_UP_SHARE) / SAMPLES

    @property
    def cut_words(self) -> int:
        """Global target words between two consistent cuts."""
        return max(int(self.seconds / self.batch_s / CUTS * self.workers * BATCH_WORDS), 1)


def resident_mb() -> float:
    """Resident memory of this process, shared windows included."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise RuntimeError("found no VmRSS in /proc/self/status, which a soak reads its memory from: it needs Linux")
    return int(found.group(1)) / 1024


def shared_segments() -> list[str]:
    """Files in /dev/shm that this process maps."""
    return sorted(set(re.findall(r"/dev/shm/\S+", Path("/proc/self/maps").read_text())))


class MemorySampler(threading.Thread):
    """Samples of resident memory at fixed times after the warm-up."""

    def __init__(self, config: SoakConfig) -> None:
        super().__init__(name="memory", daemon=True)
        self.config = config
        self._over, self._begin = threading.Event(), time.monotonic()
        self.rss_mb: list[float] = []

    def run(self) -> None:
        for index in range(SAMPLES):
            moment = WARM_UP_SHARE * self.config.seconds + index * self.config.sample_s
            if self._over.wait(self._begin + moment - time.monotonic()):
                return
            self.rss_mb.append(round(resident_mb(), 2))

    def stop(self) -> list[float]:
        """Ends the thread and returns the samples."""
        self._over.set()
        self.join()
        return self.rss_mb


def _train(config: SoakConfig, windows: MpiWindows) -> dict[str, Any]:
    rank = windows.comm.rank
    replica, gradient = torch.linspace(-1.0, 1.0, config.parameters), torch.zeros(config.parameters)
    times = random.Random(rank)

    def compute() -> BatchCounts:
        time.sleep(config.batch_s * max(times.gauss(1.0, SPREAD), 0.1))
        gradient.add_(replica, alpha=float(BATCH_WORDS))  # of half the squared norm, for each word
        return BatchCounts(BATCH_WORDS, BATCH_WORDS, 1, 1.0)

    exchange = Exchange(windows, rank, windows.deadlines)
    loop = WorkerLoop(exchange, WorkerConfig(overlap=config.overlap), replica, gradient, compute)
    loop.start(initial=rank == 0)
    snapshot = torch.empty(config.parameters)
    begin, pushed = time.monotonic(), 0
    while time.monotonic() - begin < config.seconds:
        loop.window()
        pushed += 1
        if rank == 0 and exchange.snapshot_available > exchange.snapshot_read:
            loop.complete()
            loop.call(exchange.read_snapshot, snapshot)
    loop.finish()
    loop.close()
    return {"windows": pushed - loop.sum.dropped, "dropped": loop.sum.dropped, "rejected_pulls": exchange.rejected_pulls}


class _Applied:
    """The log of a shard, counted: pushes of every worker, and those whose number was not above the one before."""

    def __init__(self) -> None:
        self.pushes: Counter[int] = Counter()
        self.last: Counter[int] = Counter()
        self.twice = 0

    def append(self, entry: ShardEntry) -> None:
        if entry.event == Event.GRADIENT:
            self.pushes[entry.worker] += 1
            self.twice += entry.sequence <= self.last[entry.worker]
            self.last[entry.worker] = entry.sequence


def _serve(windows: MpiWindows, config: ShardConfig) -> dict[str, Any]:
    """Serves to the end; counts of what the shard has applied."""
    applied = _Applied()

    def watch(shard: Shard) -> None:
        shard.log = applied

    shard = windows.serve(config, watch=watch)
    return {
        "shard": shard.index, "version": shard.version, "cuts": shard.cuts,
        "applied": [applied.pushes[worker] for worker in range(shard.layout.workers)], "twice": applied.twice,
        "staleness": {str(key): count for key, count in sorted(shard.staleness.items())},
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    config = SoakConfig(**json.loads((folder / "soak.json").read_text("utf-8")))
    torch.set_num_threads(1)
    check_world(config.workers, config.shards)
    layout = Layout(config.parameters, config.workers, config.shards)
    check_memory(layout, ranks_of_this_host())
    windows = MpiWindows(layout, DeadlineConfig())
    sampler = MemorySampler(config)
    sampler.start()
    rank = windows.comm.rank
    report = _train(config, windows) if rank < config.workers else _serve(windows, ShardConfig(cut_words=config.cut_words))
    report |= {"rank": rank, "rss_mb": sampler.stop(), "segments": shared_segments()}
    windows.free()
    (folder / f"rank-{rank}.json").write_text(json.dumps(report) + "\n", "utf-8")


if __name__ == "__main__":
    main()
