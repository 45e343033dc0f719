"""A shard: owns one slice of the parameters with its Adam moments and EMA, and serves pushes from its own memory only.

`serve_once` looks at every worker's flag, round-robin from the last served, and applies what is new: the update rule writes version v+1
into ring slot (v+1) % K; then the version word, then the applied-sequence word (which gives the slot back to the worker). It never waits
for a worker.

Consistent cut: shard 0 raises a cut number every `cut_words` target words. A push marked with the cut is its worker's last before it; later
pushes are held until every worker's marked push (or farewell) is applied; then the state is copied into the snapshot slot. The next cut
is raised only after worker 0 has read the last one. Run by `mpi.py`, or in one process (transport.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from hpcnmt.distributed.layout import (
    APPLIED,
    CUT,
    FAREWELLS,
    FINAL_SNAPSHOT,
    FLAG,
    GLOBAL_WORDS,
    HEAD,
    MESSAGE,
    SNAPSHOT,
    SNAPSHOT_WORDS,
    STOP,
    TAIL,
    VERSION,
    Layout,
)  # fmt: skip
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.transport import ShardMemory
from hpcnmt.optim.update import Update, UpdateConfig


@dataclass(frozen=True)
class ShardConfig:
    """What a shard does with a push."""

    update: UpdateConfig = field(default_factory=UpdateConfig)
    cut_words: int = 0
    """Global target words between two consistent cuts (shard 0 decides); 0 = none."""


class Shard:
    """Logic and state of shard `index`; `memory` is its only contact with the world."""

    def __init__(self, index: int, layout: Layout, config: ShardConfig, memory: ShardMemory) -> None:
        self.index, self.layout, self.config, self.memory = index, layout, config, memory
        self.update = Update(layout.slice_size(index), config.update)
        self.version, self.cut = -1, 0
        self.next_cut_words = config.cut_words
        self.snapshot_read = 0
        self.marked: set[int] = set()
        self.departed: set[int] = set()
        self.staleness: Counter[int] = Counter()
        self.log: list[tuple[int, int, int]] = []  # (worker, sequence, version the gradient was computed on)
        self.cuts: list[tuple[int, int]] = []  # (number, global target words) of every snapshot
        self._next_worker = 0

    @property
    def words(self) -> int:
        """Global target words applied so far."""
        return self.update.words

    @property
    def finished(self) -> bool:
        """True once every worker has said farewell."""
        return len(self.departed) == self.layout.workers

    def serve_once(self) -> bool:
        """Applies at most one push of every worker; returns whether anything was done."""
        control, worked, first = self.memory.control, False, self._next_worker
        for step in range(self.layout.workers):
            worker = (first + step) % self.layout.workers
            block = self.layout.worker_block(worker)
            sequence = int(control[block + FLAG])
            if sequence == int(control[block + APPLIED]) or worker in self.marked:
                continue
            if int(control[block + HEAD]) != sequence or int(control[block + TAIL]) != sequence:
                continue  # the flag ran ahead of the header: look again
            header = PushHeader.unpack([int(w) for w in control[block + MESSAGE : block + TAIL]])
            self._apply(worker, sequence, header)
            control[block + APPLIED] = sequence
            self._next_worker = (worker + 1) % self.layout.workers
            worked = True
            self._after(worker, header)
        return worked

    def _apply(self, worker: int, sequence: int, header: PushHeader) -> None:
        ring, control = self.memory.ring, self.memory.control
        if header.kind == Kind.INIT:
            ring[0].copy_(self.memory.inbox[worker])
            self.update.start(ring[0])
            self.version = 0
        elif header.kind == Kind.GRADIENT:
            if self.version < 0:
                raise RuntimeError(f"shard {self.index}: worker {worker} pushed before the initial parameters arrived")
            if header.target_words < 1:
                raise RuntimeError(f"shard {self.index}: worker {worker} pushed {header.target_words} target words, expected at least 1")
            self.staleness[self.version - header.version] += 1
            self.apply_gradient(self.memory.inbox[worker], header.target_words)
            self.log.append((worker, sequence, header.version))
        control[GLOBAL_WORDS] = self.words
        control[VERSION] = self.version

    def apply_gradient(self, gradient_sum: Tensor, target_words: int) -> None:
        """Version v+1 from version v and a summed gradient [slice]; replay calls it without a message."""
        ring, slots = self.memory.ring, self.layout.ring_slots
        self.update.apply(ring[self.version % slots], gradient_sum, target_words, out=ring[(self.version + 1) % slots])
        self.version += 1

    def _after(self, worker: int, header: PushHeader) -> None:
        control = self.memory.control
        self.snapshot_read = max(self.snapshot_read, header.snapshot_read)
        if header.stop:
            control[STOP] = 1
        if header.kind == Kind.FAREWELL:
            self.departed.add(worker)
            control[FAREWELLS] = len(self.departed)
        self.cut = max(self.cut, header.cut)
        if header.cut and header.cut == self.cut and int(control[SNAPSHOT]) < self.cut:
            self.marked.add(worker)
        if self.cut > int(control[SNAPSHOT]) and len(self.marked | self.departed) == self.layout.workers:
            self._publish(self.cut)
            self.marked.clear()
        if self.finished:
            self._publish(FINAL_SNAPSHOT)
        due = self.config.cut_words and self.words >= self.next_cut_words and self.snapshot_read == int(control[SNAPSHOT])
        if self.index == 0 and due and int(control[CUT]) == int(control[SNAPSHOT]):
            control[CUT] += 1
            self.next_cut_words = self.words + self.config.cut_words

    def _publish(self, number: int) -> None:
        current = self.memory.ring[self.version % self.layout.ring_slots]
        self.memory.ring[self.layout.ring_slots].copy_(self.update.published(current))
        self.memory.control[SNAPSHOT_WORDS] = self.words
        self.memory.control[SNAPSHOT] = number
        self.cuts.append((number, self.words))
