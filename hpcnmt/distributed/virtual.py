"""Virtual time: W logical workers in ONE process, with real gradients, the real shards and an event clock.

Each logical worker has its own replica and its own `Exchange` over the in-process transport; only time is simulated: a window takes
`compute_s` of the worker's batches, a push and a pull take `transfer_s` each. So any number of workers and any staleness is trained exactly
and reproducibly on one core. Events of equal time are served in the order of the workers.

A write-back takes its share of `transfer_s`, and the worker's next batch is computed after it.
overlap 0: compute, push, pull, compute. overlap 1: the exchange of window k runs while window k+1 is computed, as in worker.py.
Called by training/virtual.py and by the tests; `Exchange`, `Shard` and the message format are those of a real run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.record import NoLog, WindowEntry, WindowLog
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import LocalTransport, wire_type
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig, sum_counts, window_counts
from hpcnmt.optim.local import LocalOptimizer, LocalWindow


@dataclass(frozen=True)
class ClockConfig:
    """Simulated times: of one batch (mean), its spread, one push or one pull of the whole model."""

    batch_s: float = 0.2
    batch_spread: float = 0.1
    """Standard deviation of a batch's time relative to its mean (normal, cut at a tenth of the mean)."""
    transfer_s: float = 0.02
    seed: int = 1

    def __post_init__(self) -> None:
        if self.batch_s <= 0 or self.batch_spread < 0 or self.transfer_s < 0:
            raise ValueError(
                f"found clock.batch_s={self.batch_s}, batch_spread={self.batch_spread}, transfer_s={self.transfer_s}; "
                "expected batch_s > 0 and the others not negative"
            )


class LocalShards:
    """Shards in this process, served at once whenever a worker waits for them."""

    def __init__(self, layout: Layout, config: ShardConfig) -> None:
        self.layout = layout
        self.transport = LocalTransport(layout, self.serve)
        self.shards = [Shard(index, layout, config, memory) for index, memory in enumerate(self.transport.memories)]

    def serve(self) -> None:
        """Applies every push that stands in an inbox and is not held by a cut."""
        while any([shard.serve_once() for shard in self.shards]):
            pass

    def note_stall(self) -> None:
        """A validation has found no new best."""
        for shard in self.shards:
            shard.update.note_stall()

    def step_rest(self) -> None:
        """Steps by what is left in the buffers: the end of a run."""
        for shard in self.shards:
            shard.step_rest()

    def parameters(self, out: Tensor) -> None:
        """Copies what would be published now (EMA where on) into `out` [parameters]."""
        for shard, (begin, end) in zip(self.shards, self.layout.slices(), strict=True):
            out[begin:end] = shard.update.published(shard.memory.ring[shard.version % self.layout.ring_slots])


GradientOf = Callable[[int, Tensor, Tensor], BatchCounts | None]
"""(worker, replica [parameters], gradient [parameters]) -> counts: adds the gradient of that worker's next batch to `gradient`.

None when that worker has no data left.
"""
LocalOf = Callable[[], LocalOptimizer]


@dataclass
class _Worker:
    exchange: Exchange
    replica: Tensor
    sum: LocalWindow
    versions: list[int] = field(default_factory=list)
    words: int = 0  # global target words known when the replica was swapped in
    arrived: Tensor | None = None  # overlap 1: the replica of the exchange that is complete
    in_flight: bool = False
    overlaps: bool = False  # whether the exchange of the window that was begun last runs beside the next one
    blocked: Callable[[], None] | None = None  # what goes on when the exchange in flight is complete
    fresh: bool = False  # whether the replica was swapped in since the last window
    began: tuple[bool, int, list[int]] = (False, 0, [])  # `fresh`, words and versions of the replica where the window began
    batches: int = 0  # of the window
    log: WindowLog = field(default_factory=NoLog)

    def pull(self) -> None:
        self.exchange.pull(self.replica)
        self.swapped_in()

    def swapped_in(self) -> None:
        self.versions, self.words, self.fresh = list(self.exchange.versions), self.exchange.global_words, True

    def begin(self) -> None:
        self.began, self.batches, self.fresh = (self.fresh, self.words, self.versions), 0, False

    def note(self, total: BatchCounts, sealed: bool) -> None:
        """Notes the window that has just been sealed, see WorkerLoop.window."""
        fresh, words, versions = self.began
        self.log.append(WindowEntry(
            self.exchange.sequence + sealed, self.batches, total.target_words, total.loss_sum, not sealed, self.overlaps, fresh, self.fresh,
            words, self.words, tuple(versions), tuple(self.versions),
        ))  # fmt: skip
        self.fresh = False


class VirtualCluster:
    """Runs windows of the logical workers in the order of a simulated clock."""

    def __init__(
        self, shards: LocalShards, config: WorkerConfig, clock: ClockConfig, gradient_of: GradientOf, initial: Tensor,
        gradient: Tensor | None = None, local_of: LocalOf | None = None,
    ) -> None:  # fmt: skip
        """`gradient` [parameters]: the buffer that `gradient_of` adds to, where the caller has one; `local_of` makes local optimizers."""
        self.shards, self.config, self.clock, self.gradient_of = shards, config, clock, gradient_of
        self.now_s = 0.0
        self._random = random.Random(clock.seed)
        self._gradient = torch.zeros_like(initial) if gradient is None else gradient
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._count = 0
        self._waiting: list[int] = []  # workers whose push is not acknowledged yet
        # One accumulator serves all where windows are computed one after the other; write-backs of others come in between.
        shared = local_of is not None and config.local.mode != "compensate" and not config.local.write_back
        accumulator = torch.zeros_like(initial) if shared else None
        self.workers = []
        for index in range(shards.layout.workers):
            exchange = Exchange(shards.transport, index, DeadlineConfig())
            if index == 0:
                exchange.send_initial(initial)
            self.workers.append(_Worker(exchange, torch.empty_like(initial), self._window(local_of, accumulator)))
        for index, worker in enumerate(self.workers):
            worker.pull()
            self._begin_window(index)

    @property
    def words(self) -> int:
        """Global target words applied on all shards."""
        return min(shard.words for shard in self.shards.shards)

    @property
    def dropped(self) -> int:
        """Windows dropped for a non-finite gradient."""
        return sum(worker.sum.dropped for worker in self.workers)

    @property
    def finished(self) -> bool:
        """True once no worker has data left and all pushes are applied."""
        return not self._events

    def _window(self, local_of: LocalOf | None, accumulator: Tensor | None) -> LocalWindow:
        error_feedback, local = self.shards.layout.wire == "bf16", local_of() if local_of else None
        return LocalWindow(self._gradient, self.config.clip_norm, error_feedback, local, accumulator)

    def step(self) -> None:
        """Handles the next event of the clock."""
        self.now_s, _, _, action = heapq.heappop(self._events)
        action()

    def _schedule(self, delay_s: float, worker: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_s + delay_s, worker, self._count, action))

    def _begin_window(self, index: int) -> None:
        worker = self.workers[index]
        worker.begin()
        delay, worker.overlaps = self.config.delay_at(worker.words), self.config.overlaps_at(worker.words)
        self._go_on(index, [max(self._random.gauss(1.0, self.clock.batch_spread), 0.1) for _ in range(delay)], [])

    def _go_on(self, index: int, times: list[float], done: list[BatchCounts]) -> None:
        """Goes on in a window with the batches that take `times`, relative to their mean, after those that are `done`.

        They are all computed at their end on the clock, because nothing touches the replica meanwhile; up to the next write-back.
        """
        worker = self.workers[index]
        writes_back = self.config.local.write_back and worker.sum.steps_next(worker.words)
        now, later = (times[:1], times[1:]) if writes_back else (times, [])

        def computed() -> None:
            counts = [*done, window_counts(lambda: self._batch(index), len(now))]
            if writes_back and counts[-1].target_words:
                share_s = self.clock.transfer_s / len(self.workers)
                self._schedule(share_s, index, lambda: self._written_back(index, later, counts))
            else:
                self._window_done(index, sum_counts(counts))

        self._schedule(self.clock.batch_s * sum(now), index, computed)

    def _written_back(self, index: int, times: list[float], done: list[BatchCounts]) -> None:
        worker = self.workers[index]
        begin, end = self.shards.layout.part(index)
        worker.exchange.write_back(worker.replica[begin:end])
        if times:
            self._go_on(index, times, done)
        else:
            self._window_done(index, sum_counts(done))

    def _window_done(self, index: int, total: BatchCounts) -> None:
        if not total.target_words:
            return  # this worker has no data left
        wire = torch.empty_like(self._gradient, dtype=wire_type(self.shards.layout))
        self.workers[index].sum.end_batches(self.workers[index].replica)
        if self.workers[index].sum.seal(wire, total.target_words):
            header = PushHeader(Kind.GRADIENT, total.target_words, total.source_words, total.sentences, total.loss_sum)
            self._when_complete(index, lambda: self._send(index, wire, header, total))
        else:
            self._when_complete(index, lambda: self._drop(index, total))

    def _batch(self, index: int) -> BatchCounts | None:
        worker = self.workers[index]
        worker.sum.before_batch(worker.words)
        counts = self.gradient_of(index, worker.replica, self._gradient)
        worker.batches += counts is not None
        if worker.sum.stepping and counts is not None:
            worker.sum.step(worker.replica, counts.target_words, worker.words)
        return counts

    def _when_complete(self, index: int, action: Callable[[], None]) -> None:
        """Goes on with `action` once the worker's exchange in flight, if any, is complete."""
        if self.workers[index].in_flight:
            self.workers[index].blocked = action
        else:
            action()

    def _drop(self, index: int, total: BatchCounts) -> None:
        self.workers[index].arrived = None
        self.workers[index].note(total, sealed=False)
        self.workers[index].pull()
        self._begin_window(index)

    def _send(self, index: int, gradient: Tensor, header: PushHeader, total: BatchCounts) -> None:
        worker = self.workers[index]
        computed_on, swapped = worker.versions, worker.arrived is not None
        if worker.arrived is not None:
            worker.replica, worker.arrived = worker.arrived, None
            worker.swapped_in()
        worker.note(total, sealed=True)
        if worker.overlaps:
            worker.sum.look_ahead(worker.replica, gradient, header.target_words, worker.words, swapped)
            self._begin_window(index)
        worker.in_flight = True
        self._schedule(self.clock.transfer_s, index, lambda: self._pushed(index, gradient, header, computed_on))

    def _pushed(self, index: int, gradient: Tensor, header: PushHeader, computed_on: list[int]) -> None:
        self.workers[index].exchange.start_push(gradient, header, computed_on)
        self.shards.serve()
        self._waiting.append(index)
        for other in [other for other in self._waiting if self._is_applied(other)]:  # in lockstep all of an update at once
            self._waiting.remove(other)
            self._schedule(self.clock.transfer_s, other, partial(self._pulled, other))

    def _is_applied(self, index: int) -> bool:
        return all(self.workers[index].exchange.is_applied(shard) for shard in range(self.shards.layout.shards))

    def _pulled(self, index: int) -> None:
        worker = self.workers[index]
        worker.in_flight = False
        if worker.overlaps:
            worker.arrived = torch.empty_like(worker.replica)
            worker.exchange.pull(worker.arrived)
            blocked, worker.blocked = worker.blocked, None
            if blocked:
                blocked()
            return
        worker.pull()
        self._begin_window(index)
