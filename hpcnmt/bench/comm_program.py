"""The ranks of one measurement of `hpcnmt bench comm`; every worker and every shard prints one JSON line.

Started as `mpiexec -n RANKS python -m mpi4py -m hpcnmt.bench.comm_program POINT` with POINT the JSON of a `CommPoint`; the last ranks are
shards. In every round all workers at once exchange through the engine, and then put and get the same bytes, from and to the same window
memory of the same ranks, with one bare MPI call for each shard, and copy them in their own memory; every other round in the opposite
order. Round 0 warms up and is not counted. Invariant: while workers put and get, the shards do nothing but give MPI progress.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from mpi4py import MPI
from torch import Tensor

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world, ranks_of_this_host
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import wire_type
from hpcnmt.optim.update import Update

PHASES = ("exchange", "push", "apply", "pull")
WORDS = 1000
"""Target words of a push: any number, no figure depends on it."""
REPEATED_BYTES = 4_000_000
MOST_REPEATS = 50


@dataclass(frozen=True)
class CommPoint:
    """What is measured."""

    workers: int
    shards: int
    bytes: int
    """Of all parameters in fp32, as a pull moves them; a push in bf16 moves half of it."""
    wire: Literal["fp32", "bf16"]
    busy: bool
    """Shards that have nothing to apply update vectors of their own."""
    rounds: int
    raw_only: bool = False
    """No exchange, no copies: bare puts and gets."""

    @property
    def layout(self) -> Layout:
        """Sizes of the windows. Raises ValueError when a shard would have nothing."""
        return Layout(self.bytes // 4, self.workers, self.shards, wire=self.wire)

    @property
    def repeats(self) -> int:
        """Small transfers are repeated within a round, and their median counts."""
        return max(1, min(MOST_REPEATS, REPEATED_BYTES // self.bytes))


class BenchWindows(MpiWindows):
    """Windows whose shards stand by, doing nothing but progress, between two messages of worker 0."""

    def _progress(self) -> None:
        if not self.comm.Iprobe(source=0):
            return
        self._receive(0)
        self._send(0)
        while not self.comm.Iprobe(source=0):
            os.sched_yield()
        self._receive(0)

    def stand_by(self) -> None:
        """Worker 0: returns once every shard stands by."""
        shards = range(self.layout.workers, self.comm.size)
        for rank in shards:
            self._send(rank)
        for rank in shards:
            self.deadlines.wait(f"rank {rank} to stand by", lambda rank=rank: self.comm.Iprobe(source=rank), self.pause)  # type: ignore[misc]
            self._receive(rank)

    def go_on(self) -> None:
        """Worker 0: sends the shards back to serving."""
        for rank in range(self.layout.workers, self.comm.size):
            self._send(rank)

    def _send(self, rank: int) -> None:
        self.comm.Send([bytearray(), MPI.BYTE], rank)

    def _receive(self, rank: int) -> None:
        self.comm.Recv([bytearray(), MPI.BYTE], rank)


class TimedShard(Shard):
    """Notes the seconds of every update."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.update_s: list[float] = []

    def apply_gradient(self, gradient_sum: Tensor, target_words: int, staleness: int) -> None:
        begin = time.perf_counter()
        super().apply_gradient(gradient_sum, target_words, staleness)
        self.update_s.append(time.perf_counter() - begin)

    def update_rounds(self, point: CommPoint) -> list[float]:
        """Median of every round but the warm-up: workers begin a round together."""
        width = point.workers * point.repeats
        return [statistics.median(self.update_s[begin : begin + width]) for begin in range(width, len(self.update_s), width)]


class BusyShard(TimedShard):
    """Is always updating: without a push it updates vectors of its own, as if the pushes of many other workers had come."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        size = self.layout.slice_size(self.index)
        self._others = Update(size, self.config.update)
        self._parameters, self._gradient = torch.ones(size), torch.full((size,), 0.01)

    def serve_once(self) -> bool:
        if not super().serve_once():
            self._others.apply(self._parameters, self._gradient, WORDS, between=self.progress)
        return True


class Measurement:
    """Seconds of one worker by name, one value for each round."""

    def __init__(self, point: CommPoint, windows: BenchWindows, team: MPI.Comm) -> None:
        self.point, self.windows, self.team = point, windows, team
        layout = windows.layout
        self.exchange = Exchange(windows, windows.comm.rank, windows.deadlines)
        torch.manual_seed(windows.comm.rank)
        self.gradient = torch.randn(layout.parameters).to(wire_type(layout))
        self.replica, self.fetched = torch.randn(layout.parameters), torch.zeros(layout.parameters)
        self.rounds: defaultdict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Measures all rounds and says farewell."""
        exchange = self.exchange
        if exchange.worker == 0:
            exchange.send_initial(self.replica)
        exchange.pull(self.replica)
        parts = [self._raw] if self.point.raw_only else [self._engine, self._raw]
        for turn in range(self.point.rounds + 1):
            for part in parts if turn % 2 == 0 else reversed(parts):
                self._together()
                part()
            if turn == 0:
                self._check()
                self.rounds.clear()
        exchange.farewell()
        if exchange.worker == 0:
            exchange.wait_for_farewells()

    def _together(self) -> None:
        request = self.team.Ibarrier()
        self.windows.deadlines.wait("the other workers", lambda: bool(request.Test()), self.windows.pause)

    def _engine(self) -> None:
        seconds, samples = self.exchange.activity.seconds, []
        header = PushHeader(Kind.GRADIENT, WORDS, WORDS, 1, float(WORDS))
        for _ in range(self.point.repeats):
            before = {name: seconds[name] for name in PHASES}
            self.exchange.push_and_pull(self.gradient, header, self.exchange.versions, self.replica)
            samples.append({name: seconds[name] - before[name] for name in PHASES})
        for name in PHASES:
            self.rounds[name].append(statistics.median(sample[name] for sample in samples))

    def _raw(self) -> None:
        if self.exchange.worker == 0:
            self.windows.stand_by()
        self._time("raw_put", self._put)
        self._time("raw_get", self._get)
        if not self.point.raw_only:
            self._time("memcpy", lambda: self.fetched.copy_(self.replica))
        self._together()
        if self.exchange.worker == 0:
            self.windows.go_on()

    def _time(self, name: str, operation: Callable[[], object]) -> None:
        self._together()
        samples = []
        for _ in range(self.point.repeats):
            begin = time.perf_counter()
            operation()
            samples.append(time.perf_counter() - begin)
        self.rounds[name].append(statistics.median(samples))

    def _put(self) -> None:
        """Into this worker's slots, whose flags stay down."""
        windows, layout = self.windows, self.windows.layout
        half = self.gradient.dtype == torch.bfloat16
        data, kind = (self.gradient.view(torch.int16).numpy(), MPI.INT16_T) if half else (self.gradient.numpy(), MPI.FLOAT)
        for shard, (begin, end) in enumerate(self.exchange.slices):
            rank, size = layout.workers + shard, end - begin
            inbox = windows.inbox_of(rank - windows.layout.workers)
            inbox.Rput([data[begin:end], kind], rank, target=(self.exchange.worker * size, size, kind)).Wait()
            inbox.Flush(rank)

    def _get(self) -> None:
        """The version that the last exchange pulled, or what has taken its slot since."""
        windows, layout = self.windows, self.windows.layout
        data = self.fetched.numpy()
        for shard, (begin, end) in enumerate(self.exchange.slices):
            rank, size = layout.workers + shard, end - begin
            slot = self.exchange.versions[shard] % layout.ring_slots
            windows.ring.Rget([data[begin:end], MPI.FLOAT], rank, target=(slot * size, size, MPI.FLOAT)).Wait()
            windows.ring.Flush(rank)

    def _check(self) -> None:
        """With one worker both ways have fetched the same version."""
        self._get()
        if self.point.workers == 1 and not torch.equal(self.fetched, self.replica):
            raise RuntimeError("the raw Get fetched other parameters than the pull of the same version: no figure can be trusted")


def report(**fields: object) -> None:
    """One JSON line in a single write, so that the lines of several ranks do not run into each other."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    point = CommPoint(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    check_world(point.workers, point.shards)
    check_memory(point.layout, ranks_of_this_host())
    windows = BenchWindows(point.layout, DeadlineConfig())
    rank = windows.comm.rank
    team = windows.comm.Split(int(rank < point.workers))
    if rank < point.workers:
        measurement = Measurement(point, windows, team)
        measurement.run()
        report(worker=rank, rounds=measurement.rounds, rejected_pulls=measurement.exchange.rejected_pulls)
    else:
        shard = cast(TimedShard, windows.serve(ShardConfig(), BusyShard if point.busy else TimedShard))
        report(shard=shard.index, rounds={"update": shard.update_rounds(point)})
    team.Free()
    windows.free()


def argument(point: CommPoint) -> str:
    """`point` for the command line of this program."""
    return json.dumps(asdict(point))


if __name__ == "__main__":
    main()
