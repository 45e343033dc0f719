"""Repeats an asynchronous run in one process, bit for bit, from what its ranks have noted (record.py).

The real shards apply the same messages in the same order, without windows; every worker computes its windows on the versions that it
noted, as worker.py does: batches, local steps, write-backs, sealing, compensation. A window is computed as soon as its versions stand, a
message is applied as soon as its worker has computed it and its turn has come. A record that contradicts itself so comes to a halt.

Memory: of a version of a shard only what a window still wants is kept. Every worker has its own replica, residual and local moments.
What is random (batches, dropout) is behind `gradient_of`. Called by training/replay.py and by the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.record import Event, Record, ShardEntry, WindowEntry
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import ShardMemory, wire_type
from hpcnmt.distributed.virtual import GradientOf, LocalOf
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig, window_counts
from hpcnmt.optim.local import LocalWindow

SMALLEST_RING = 3


@dataclass
class _Message:
    """A push or a write-back on its way: `data` [parameters, or the worker's part], to `left` shards still."""

    event: Event
    data: Tensor
    window: WindowEntry
    left: int


class _ReplayedShard:
    """A real shard without windows, and the versions of it that are wanted: `wanted` windows each."""

    def __init__(self, index: int, layout: Layout, config: ShardConfig, log: Sequence[ShardEntry], wanted: Counter[int]) -> None:
        ring = torch.zeros(layout.ring_slots + 1, layout.slice_size(index))
        memory = ShardMemory(torch.empty(0), ring, np.zeros(layout.control_words, np.int64))
        self.shard, self.log, self.wanted = Shard(index, layout, config, memory), log, wanted
        self.kept: dict[int, Tensor] = {}
        self.position = self.pushes = 0
        self.last = [0] * layout.workers  # message of every worker

    def start(self, initial: Tensor) -> None:
        shard = self.shard
        shard.memory.ring[0].copy_(initial)
        shard.update.start(shard.memory.ring[0])
        shard.version = 0
        self.keep()

    def keep(self) -> None:
        """Keeps the newest version if a window wants it."""
        version = self.shard.version
        if self.wanted[version] and version not in self.kept:
            self.kept[version] = self.shard.memory.ring[version % self.shard.layout.ring_slots].clone()

    def take(self, version: int, out: Tensor) -> None:
        """Copies `version` into `out` [slice]; the last one that wants it takes it away."""
        out.copy_(self.kept[version])
        self.wanted[version] -= 1
        if not self.wanted[version]:
            del self.kept[version]

    def apply(self, entry: ShardEntry, message: _Message) -> None:
        """The gradient or write-back that `entry` names."""
        shard, layout = self.shard, self.shard.layout
        if message.event == Event.GRADIENT:
            begin, end = layout.slices()[shard.index]
            shard.apply_gradient(message.data[begin:end], message.window.target_words, shard.steps_since(entry.version))
            self.pushes += 1
        else:
            first, _ = layout.part(entry.worker)
            begin, end = layout.part_on(entry.worker, shard.index)
            shard.apply_write_back(entry.worker, message.data[begin - first : end - first])


@dataclass
class _ReplayedWorker:
    """Position in the record, and what a worker keeps from window to window."""

    index: int
    entries: Sequence[WindowEntry]
    sum: LocalWindow
    replica: Tensor
    position: int = 0
    batches: int = 0  # of the window
    written: list[Tensor] = field(default_factory=list)  # what the window has written back so far


def _wanted(entry: WindowEntry) -> list[tuple[int, ...]]:
    """The replicas that a window takes from the shards."""
    return [entry.began_on] * entry.fresh + [entry.sealed_on] * (entry.swapped and not entry.dropped)


class Replay:
    """The run of `record`. `deviation` says where a loss first differed from the recorded one, None so far as they are equal."""

    def __init__(
        self, record: Record, layout: Layout, config: ShardConfig, worker: WorkerConfig, gradient_of: GradientOf, initial: Tensor,
        gradient: Tensor | None = None, local_of: LocalOf | None = None,
    ) -> None:  # fmt: skip
        """`gradient` [parameters]: the buffer that `gradient_of` adds to, where the caller has one; `local_of` makes local optimizers."""
        self.layout, self.config, self.gradient_of = replace(layout, ring_slots=SMALLEST_RING), worker, gradient_of
        self.deviation: str | None = None
        self._gradient = torch.zeros_like(initial) if gradient is None else gradient
        shared = torch.zeros_like(self._gradient) if local_of is not None and worker.local.mode != "compensate" else None
        self.workers = []
        for index, entries in enumerate(record.workers):
            local = local_of() if local_of else None
            window = LocalWindow(self._gradient, worker.clip_norm, layout.wire == "bf16", local, shared)
            self.workers.append(_ReplayedWorker(index, entries, window, torch.empty_like(self._gradient)))
        self.shards = []
        for index, (begin, end) in enumerate(layout.slices()):
            wanted = Counter(versions[index] for entries in record.workers for entry in entries for versions in _wanted(entry))
            self.shards.append(_ReplayedShard(index, self.layout, config, record.shards[index], wanted))
            self.shards[index].start(initial[begin:end])
        self._messages: dict[tuple[int, int], _Message] = {}

    @property
    def pushes(self) -> int:
        """Gradients that every shard has applied."""
        return min(shard.pushes for shard in self.shards)

    def run(self, until: int | None = None, watch: Callable[[int], None] = lambda pushes: None) -> None:
        """Repeats the whole run and steps what is left in buffers; or goes on until every shard has applied `until` pushes.

        Some shards may be ahead of them by then. `watch` is told `pushes` now and then. Raises ValueError when records contradict each
        other.
        """
        while any(shard.position < len(shard.log) for shard in self.shards) and (until is None or self.pushes < until):
            moved = [self._go_on(worker) for worker in self.workers]
            moved += [self._serve(shard) for shard in self.shards]
            if not any(moved):
                raise ValueError(self._halt())
            watch(self.pushes)
        if until is None:
            for shard in self.shards:
                shard.shard.step_rest()

    def parameters(self, out: Tensor) -> None:
        """Copies what would be published now (EMA where on) into `out` [parameters]."""
        for replayed, (begin, end) in zip(self.shards, self.layout.slices(), strict=True):
            shard = replayed.shard
            out[begin:end] = shard.update.published(shard.memory.ring[shard.version % self.layout.ring_slots])

    def _halt(self) -> str:
        for shard in self.shards:
            if shard.position == len(shard.log):
                continue
            worker, sequence, _, _ = shard.log[shard.position]
            if self.workers[worker].position == len(self.workers[worker].entries):
                return (
                    f"the record of worker {worker} ends before its message {sequence}, which shard {shard.shard.index} has applied "
                    f"after {shard.pushes} pushes: is the record of one run, and whole?"
                )
        positions = [shard.position for shard in self.shards]
        return f"the records contradict each other at entries {positions} of the shards: are they of one run?"

    def _go_on(self, worker: _ReplayedWorker) -> bool:
        """Computes the next window of `worker` if its versions stand."""
        if worker.position == len(worker.entries):
            return False
        entry = worker.entries[worker.position]
        for versions in _wanted(entry):
            if not all(version in shard.kept for version, shard in zip(versions, self.shards, strict=True)):
                return False
        if entry.fresh:
            self._fill(worker.replica, entry.began_on)
        worker.batches = 0
        counts = window_counts(lambda: self._batch(worker, entry), self.config.delay_at(entry.began_words))
        self._compare(worker, entry, counts)
        worker.sum.end_batches(worker.replica)
        if entry.swapped and not entry.dropped:
            self._fill(worker.replica, entry.sealed_on)
        self._seal(worker, entry)
        worker.position += 1
        return True

    def _fill(self, replica: Tensor, versions: Sequence[int]) -> None:
        for shard, version, (begin, end) in zip(self.shards, versions, self.layout.slices(), strict=True):
            shard.take(version, replica[begin:end])

    def _batch(self, worker: _ReplayedWorker, entry: WindowEntry) -> BatchCounts | None:
        window = worker.sum
        window.before_batch(entry.began_words)
        counts = self.gradient_of(worker.index, worker.replica, self._gradient)
        worker.batches += counts is not None
        if window.stepping and counts is not None:
            window.step(worker.replica, counts.target_words, entry.began_words)
            if self.config.local.write_back:
                begin, end = self.layout.part(worker.index)
                worker.written.append(worker.replica[begin:end].to("cpu", copy=True))
        return counts

    def _compare(self, worker: _ReplayedWorker, entry: WindowEntry, counts: BatchCounts) -> None:
        where = f"window {worker.position + 1} of worker {worker.index}"
        if (worker.batches, counts.target_words) != (entry.batches, entry.target_words):
            raise ValueError(
                f"{where}: found {counts.target_words} target words in {worker.batches} batches, recorded are {entry.target_words} in "
                f"{entry.batches}: are data and recipe those of the run?"
            )
        if self.deviation is None and counts.loss_sum != entry.loss_sum and not (np.isnan(counts.loss_sum) and np.isnan(entry.loss_sum)):
            self.deviation = f"{where}: loss {counts.loss_sum!r}, recorded is {entry.loss_sum!r}"

    def _seal(self, worker: _ReplayedWorker, entry: WindowEntry) -> None:
        """What the window sends: its write-backs, then its push; and the compensation by it."""
        wire = torch.empty_like(self._gradient, dtype=wire_type(self.layout))
        sealed = worker.sum.seal(wire, entry.target_words)
        if sealed == entry.dropped:
            found, recorded = ("finite", "not") if sealed else ("not finite", "finite")
            raise ValueError(
                f"window {worker.position + 1} of worker {worker.index}: its gradient is {found}, recorded is {recorded}"
                + (f"; {self.deviation}" if self.deviation else "")
            )
        first = entry.sequence - sealed - len(worker.written) + 1
        tellers = sum(begin < end for begin, end in (self.layout.part_on(worker.index, s) for s in range(self.layout.shards)))
        for sequence, part in enumerate(worker.written, first):
            self._messages[worker.index, sequence] = _Message(Event.WRITE_BACK, part, entry, tellers)
        worker.written.clear()
        if sealed:
            self._messages[worker.index, entry.sequence] = _Message(Event.GRADIENT, wire.cpu(), entry, self.layout.shards)
            if entry.overlapped:
                worker.sum.look_ahead(worker.replica, wire, entry.target_words, entry.sealed_words, entry.swapped)

    def _serve(self, shard: _ReplayedShard) -> bool:
        """Applies the next message of the record if its worker has computed it."""
        if shard.position == len(shard.log):
            return False
        entry = shard.log[shard.position]
        message = self._messages.get((entry.worker, entry.sequence))
        if entry.event in (Event.GRADIENT, Event.WRITE_BACK) and message is None:
            return False
        self._check(shard, entry, message)
        if entry.event == Event.STALL:
            shard.shard.update.note_stall()
        elif entry.event == Event.FAREWELL:
            shard.shard.apply_farewell(entry.worker)
        elif message is not None:
            shard.apply(entry, message)
            message.left -= 1
            if not message.left:
                del self._messages[entry.worker, entry.sequence]
        shard.keep()
        shard.position += 1
        return True

    def _check(self, shard: _ReplayedShard, entry: ShardEntry, message: _Message | None) -> None:
        where = f"entry {shard.position} of shard {shard.shard.index}"
        if entry.event == Event.STALL:
            return
        if entry.sequence <= shard.last[entry.worker]:
            last = shard.last[entry.worker]
            raise ValueError(f"{where}: found message {entry.sequence} of worker {entry.worker} after its message {last}")
        shard.last[entry.worker] = entry.sequence
        if message is None:
            return
        expected = message.window.began_on[shard.shard.index]
        if message.event != entry.event or (entry.event == Event.GRADIENT and entry.version != expected):
            raise ValueError(
                f"{where}: found {entry.event.name} on version {entry.version} as message {entry.sequence} of worker {entry.worker}, that "
                f"worker notes {message.event.name} on version {expected}"
            )
