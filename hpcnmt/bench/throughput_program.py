"""The ranks of one measurement of `hpcnmt bench throughput` with simulated compute; every worker and shard prints one JSON line.

Started as `mpiexec -n RANKS python -m hpcnmt.bench.throughput_program POINT` with POINT the JSON of a `Point`. In mode async the last
ranks are shards; in mode sync every rank is a worker; in mode off workers compute and never communicate.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hpcnmt.bench.simulated import SimulatedCompute, WindowTimes, network_bytes
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.optim.update import UpdateConfig
from hpcnmt.training.trace import write_trace

WARMUP_S = 2.0
ALWAYS = 1 << 62
"""More words than any run has."""
Mode = Literal["async", "sync", "off"]


@dataclass(frozen=True)
class Point:
    """What is measured."""

    mode: Mode
    workers: int
    shards: int
    delay: int
    wire: Literal["fp32", "bf16"]
    overlap: int
    batch_s: float
    batch_words: int
    parameters: int
    straggler: float
    """Times the seconds of a batch on worker 0."""
    seconds: float
    backend: str = ""
    """Mode sync: torch or horovod."""
    bucket_bytes: int = 8 << 20
    shard_hosts: int = 0
    """Hosts that the shards share; 0: one for each."""
    lockstep: bool = False
    """Mode async: every update waits for a push of each worker (shard.lockstep_words)."""
    trace: str = ""
    """Folder for the spans of every rank, as `hpcnmt trace --run FOLDER` reads them; empty: none."""

    def compute(self, worker: int) -> SimulatedCompute:
        """The batches of `worker`."""
        pieces = max(1, 4 * self.parameters // self.bucket_bytes)
        return SimulatedCompute(self.batch_s * (self.straggler if worker == 0 else 1.0), self.batch_words, self.parameters, pieces)

    @property
    def ranks_per_host(self) -> list[int]:
        """Each worker alone, the shards spread over their hosts: for launchers that can place ranks."""
        hosts = min(self.shard_hosts or self.shards, self.shards)
        return [1] * self.workers + [self.shards * (h + 1) // hosts - self.shards * h // hosts for h in range(hosts)]

    def activity(self, role: str, index: int) -> Activity:
        """What a rank notes its activities in."""
        return Activity(role, index, trace=bool(self.trace))

    def write_trace(self, activity: Activity, rank: int) -> None:
        """Writes the spans of a rank where they are wanted."""
        if self.trace:
            folder = Path(self.trace) / "trace"
            folder.mkdir(parents=True, exist_ok=True)
            write_trace(folder / f"{activity.role}-{activity.index}.json", activity, rank)


class Measurement:
    """One worker's windows, activities and bytes between warm-up and end."""

    def __init__(self, point: Point, worker: int, activity: Activity) -> None:
        # windows that were begun before the clock starts fill the pipeline
        begin = time.perf_counter() + max(WARMUP_S, 2 * point.delay * point.batch_s)
        self.point, self.worker, self.activity = point, worker, activity
        self.times = WindowTimes(begin, begin + point.seconds)
        self._first: tuple[dict[str, float], tuple[int, int]] = ({}, (0, 0))
        self._last = self._first

    def goes_on(self) -> bool:
        """Notes the end of a window; False when time is over."""
        going, first = self.times.add(), len(self.times.ends) == 1
        if going and self.times.ends:
            self._last = (dict(self.activity.seconds), network_bytes())
            if first:
                self._first = self._last
        return going

    def report(self, **more: Any) -> None:
        """One line for the harness: between the first and the last end of a window."""
        rate = self.times.windows_per_s() * self.point.delay * self.point.batch_words
        windows, seconds = len(self.times.ends) - 1, self.times.ends[-1] - self.times.ends[0]
        (before, bytes_before), (after, bytes_after) = self._first, self._last
        sent, received = ((new - old) // windows for new, old in zip(bytes_after, bytes_before, strict=True))
        _print(
            worker=self.worker, target_words_per_s=rate, windows=windows, seconds=seconds,
            shares={name: (total - before.get(name, 0.0)) / seconds for name, total in after.items()},
            sent_per_window=sent, received_per_window=received, **more,
        )  # fmt: skip


def _print(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def run_async(point: Point) -> None:
    """Workers and shards on real windows."""
    from mpi4py import MPI

    from hpcnmt.distributed.exchange import Exchange
    from hpcnmt.distributed.layout import Layout, default_ring_slots
    from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world, ranks_of_this_host
    from hpcnmt.distributed.policy import ShardPolicy
    from hpcnmt.distributed.shard import ShardConfig
    from hpcnmt.distributed.worker import WorkerLoop

    check_world(point.workers, point.shards)
    layout = Layout(point.parameters, point.workers, point.shards, default_ring_slots(point.workers), point.wire)
    neighbours = ranks_of_this_host()
    check_memory(layout, neighbours)
    rank = MPI.COMM_WORLD.rank
    role, index = ("worker", rank) if rank < point.workers else ("shard", rank - point.workers)
    activity = point.activity(role, index)
    windows = MpiWindows(layout, DeadlineConfig(), activity)
    if rank >= point.workers:
        shard = windows.serve(ShardConfig(UpdateConfig(), policy=ShardPolicy(lockstep_words=ALWAYS if point.lockstep else 0)))
        _print(
            shard=shard.index, staleness={str(k): v for k, v in sorted(shard.staleness.items())}, apply_s=shard.activity.seconds["apply"]
        )
    else:
        exchange = Exchange(windows, rank, windows.deadlines)
        exchange.activity = activity
        replica, gradient = torch.zeros(point.parameters), torch.zeros(point.parameters)
        config = WorkerConfig(point.delay, point.overlap)
        loop = WorkerLoop(exchange, config, replica, gradient, point.compute(rank))
        loop.start(initial=rank == 0)
        measured = Measurement(point, rank, exchange.activity)
        going = True
        while going:
            loop.window()
            going = measured.goes_on()
        loop.finish()
        loop.close()
        measured.report(alone=len(neighbours) == 1, rejected_pulls=exchange.rejected_pulls)
    windows.free()
    point.write_trace(activity, rank)


def run_off(point: Point) -> None:
    """Computing alone: what the words per second would be without any communication."""
    from mpi4py import MPI

    worker = MPI.COMM_WORLD.rank
    compute, activity = point.compute(worker), point.activity("worker", worker)
    measured = Measurement(point, worker, activity)
    going = True
    while going:
        for _ in range(point.delay):
            with activity("compute"):
                compute()
        going = measured.goes_on()
    measured.report(alone=False)
    point.write_trace(activity, worker)


def main() -> None:
    point = Point(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    if point.mode == "async":
        run_async(point)
    elif point.mode == "sync":
        from hpcnmt.bench.throughput_sync import run_sync

        run_sync(point)
    else:
        run_off(point)


def argument(point: Point) -> str:
    """`point` for the command line of this program."""
    return json.dumps(asdict(point))


if __name__ == "__main__":
    main()
