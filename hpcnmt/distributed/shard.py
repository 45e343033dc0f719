"""A shard: owns one slice of the parameters with its Adam moments and EMA, and serves pushes from its own memory only.

`serve_once` looks at every worker's flag, round-robin from the last served, and applies what is new: the update rule writes version v+1
into ring slot (v+1) % K; then the version word, then the applied-sequence word (which gives the slot back to the worker). It never waits
for a worker.

Consistent cut: shard 0 raises a cut every `cut_words` target words, every `save_every_s`, and when a rank is asked to end. A push marked
with the cut is its worker's last before it; later pushes are held until every worker's marked push (or farewell) is applied; then the cut
stands (its word says what for, see layout.py): VALIDATE fills the snapshot slot, SAVE hands the whole state to `save` (shard_state.py),
END is the last cut of a run that will be resumed. The next cut is raised only after worker 0 has read the last one. A worker that stays
silent would hold the others: after `cut_deadline_s` shard 0 alone decides to cancel the cut; the workers carry its decision to the other
shards, and no cut is raised until every worker has been heard again. A shard that had published the cancelled cut already keeps it unread:
worker 0 reads only what stands on ALL shards.

Words are counted twice: `words`, all that was received, is what others see and what cuts stand on, for it is the same on all shards once
the same pushes are applied; `update.words`, what the optimizer has stepped by, lags by the pushes in the buffer (policy.py). A cut leaves
a partial buffer as it is, and its snapshot does not hold these pushes; after the last farewell the rest is stepped.
In lockstep (policy.py) the pushes of an update are acknowledged together, once it is made; a cut is raised before these acknowledgements,
so that all workers mark their next push, and the cut stands between two updates.
A write-back takes the worker's part of the slice as it is in the worker's replica, and so discards what others pushed there since. It is a
new version, because it changes what is published, but no optimizer step: it counts no words, and staleness counts steps only.
Run by `mpi.py`, or in one process (transport.py).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.layout import (
    APPLIED,
    CANCEL,
    CANCELLED,
    CUT,
    END,
    FAREWELLS,
    FINAL_SNAPSHOT,
    FLAG,
    GLOBAL_WORDS,
    HEAD,
    MESSAGE,
    SAVE,
    SNAPSHOT,
    SNAPSHOT_WORDS,
    STOP,
    TAIL,
    VALIDATE,
    VERSION,
    Layout,
    cut_number,
    next_cut,
)  # fmt: skip
from hpcnmt.distributed.message import SAVE_AND_END, STOP_EARLY, Kind, PushHeader
from hpcnmt.distributed.policy import PushBuffer, ShardPolicy, Step
from hpcnmt.distributed.record import Event, NoLog, ShardEntry, ShardLog
from hpcnmt.distributed.transport import ShardMemory
from hpcnmt.optim.update import Update, UpdateConfig


@dataclass(frozen=True)
class ShardConfig:
    """What a shard does with a push."""

    update: UpdateConfig = field(default_factory=UpdateConfig)
    cut_words: int = 0
    """Global target words between two consistent cuts (shard 0 decides); 0 = none."""
    cut_deadline_s: float = 0.0
    """Seconds after which shard 0 cancels a cut that a silent worker holds up; 0 = never."""
    policy: ShardPolicy = field(default_factory=ShardPolicy)
    """How pushes become updates."""
    save_every_s: float = 0.0
    """Seconds between two cuts at which all ranks save their state (shard 0 decides); 0 = only when asked to end."""


class Shard:
    """Logic and state of shard `index`; `memory` is its only contact with the world."""

    def __init__(
        self, index: int, layout: Layout, config: ShardConfig, memory: ShardMemory, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self.index, self.layout, self.config, self.memory, self.clock = index, layout, config, memory, clock
        size = layout.slice_size(index)
        self.update, self.buffer = Update(size, config.update, workers=layout.workers), PushBuffer(size, config.policy)
        self.words = 0  # global target words received, those in the buffer included
        self.version, self.cut, self.stalls = -1, 0, 0
        self.next_cut_words = config.cut_words
        self.snapshot_read = 0
        self.cut_raised_s = 0.0
        self.heard: set[int] = set(range(layout.workers))  # workers that have pushed since the last cancelled cut
        self.marked: set[int] = set()
        self.departed: set[int] = set()
        self.staleness: Counter[int] = Counter()
        self.log: ShardLog = NoLog()
        self.cuts: list[tuple[int, int]] = []  # (number, global target words) of every snapshot
        self.write_backs: list[int] = []  # the versions that are write-backs, in order
        self.next_worker = 0
        self.taken = [0] * layout.workers  # the last message of every worker that was applied, or stands in the buffer
        self._in_lockstep = False  # whether the update that is being summed, or was made last, waits for a push of every worker
        self._waiting: list[int] = []  # workers whose push will be acknowledged with the update
        self.activity = Activity("shard", index)
        self.saved_s = clock()  # when the last cut for a checkpoint was raised
        self.end_asked = self.ended = False  # whether a worker has asked for a last cut, and whether that stands
        self.is_asked_to_end: Callable[[], bool] = lambda: False
        """Whether this rank itself has been told to save and end."""
        self.save: Callable[[int], None] = lambda word: None
        """Called at a cut of kind SAVE, with its word: takes the state as it is before it returns."""
        self.progress: Callable[[], None] = lambda: None
        """Called again and again during an update, so that the transfers of other workers move on meanwhile."""
        self.failed_workers: Callable[[], set[int]] = set
        """Workers whose process has died although the others live on: best effort, see mpi.py."""
        self.lost: set[int] = set()  # those that had not left before

    @property
    def steps(self) -> int:
        """Optimizer steps so far: versions without the first and the write-backs."""
        return self.version - len(self.write_backs)

    def steps_since(self, version: int) -> int:
        """Optimizer steps that have come after `version`."""
        return self.version - version - (len(self.write_backs) - bisect_right(self.write_backs, version))

    @property
    def _workers_left(self) -> int:
        return self.layout.workers - len(self.departed)

    @property
    def finished(self) -> bool:
        """True once every worker has said farewell."""
        return not self._workers_left

    def serve_once(self) -> bool:
        """Applies at most one push of every worker; returns whether anything was done."""
        self._cancel_a_late_cut()
        if self.index and self.is_asked_to_end():  # the workers carry it to shard 0
            self.memory.control[STOP] = int(self.memory.control[STOP]) | SAVE_AND_END
        control, worked, first = self.memory.control, False, self.next_worker
        for step in range(self.layout.workers):
            worker = (first + step) % self.layout.workers
            block = self.layout.worker_block(worker)
            sequence = int(control[block + FLAG])
            if sequence == self.taken[worker] or worker in self.marked:
                continue
            if int(control[block + HEAD]) != sequence or int(control[block + TAIL]) != sequence:
                continue  # the flag ran ahead of the header: look again
            header = PushHeader.unpack([int(w) for w in control[block + MESSAGE : block + TAIL]])
            self._apply(worker, sequence, header)
            self.taken[worker] = sequence
            waits = self._in_lockstep and header.kind == Kind.GRADIENT
            if waits:
                self._waiting.append(worker)
            self.next_worker = (worker + 1) % self.layout.workers
            worked = True
            self._after(worker, header)
            if not waits:  # only now: what its next pull finds of cuts is then the same in every run of one worker
                self._acknowledge(worker)
            while self._waiting and not self.buffer.pushes:
                self._acknowledge(self._waiting.pop())
            self.progress()
        for worker in sorted(self.failed_workers() - self.departed):
            self._lose(worker)
            worked = True
        return worked

    def _lose(self, worker: int) -> None:
        """A farewell without a message: what `worker` has pushed whole is applied, what it had begun to push is not."""
        self.lost.add(worker)
        self.log.append(ShardEntry(worker, self.taken[worker], self.version, Event.FAREWELL))
        self.apply_farewell(worker)
        while self._waiting and not self.buffer.pushes:
            self._acknowledge(self._waiting.pop())
        self._look_at_cuts()

    def _acknowledge(self, worker: int) -> None:
        self.memory.control[self.layout.worker_block(worker) + APPLIED] = self.taken[worker]

    def _apply(self, worker: int, sequence: int, header: PushHeader) -> None:
        control = self.memory.control
        if header.stalls > self.stalls:  # before the push that says so is applied, as the plain loop knows it before its next update
            self.stalls = header.stalls
            self.update.note_stall()
            self.log.append(ShardEntry(worker, sequence, header.version, Event.STALL))
        if header.kind == Kind.INIT:
            self.update.start(self.memory.ring[0])
            self.version = 0
        elif header.kind == Kind.GRADIENT:
            if self.version < 0:
                raise RuntimeError(f"shard {self.index}: worker {worker} pushed before the initial parameters arrived")
            if header.target_words < 1:
                raise RuntimeError(f"shard {self.index}: worker {worker} pushed {header.target_words} target words, expected at least 1")
            staleness = self.steps_since(header.version)
            self.staleness[staleness] += 1
            with self.activity("apply", f"worker {worker}"):
                self.apply_gradient(self.memory.inbox[worker], header.target_words, staleness)
            self.log.append(ShardEntry(worker, sequence, header.version, Event.GRADIENT))
        elif header.kind == Kind.WRITE_BACK:
            with self.activity("apply", f"worker {worker}"):
                begin, end = self.layout.part_on(worker, self.index)
                self.apply_write_back(worker, self.memory.inbox[worker, : end - begin])
            self.log.append(ShardEntry(worker, sequence, header.version, Event.WRITE_BACK))
        elif header.kind == Kind.FAREWELL:
            self.log.append(ShardEntry(worker, sequence, header.version, Event.FAREWELL))
        control[GLOBAL_WORDS] = self.words
        control[VERSION] = self.version

    def apply_write_back(self, worker: int, piece: Tensor) -> None:
        """Version v+1 = version v with `piece` as what the part of `worker` has on this shard. Replay calls it without a message."""
        ring, slots = self.memory.ring, self.layout.ring_slots
        new, (begin, end) = ring[(self.version + 1) % slots], self.layout.part_on(worker, self.index)
        first = self.layout.slices()[self.index][0]
        new.copy_(ring[self.version % slots])
        new[begin - first : end - first] = piece
        self.version += 1
        self.write_backs.append(self.version)

    def apply_gradient(self, gradient_sum: Tensor, target_words: int, staleness: int) -> None:
        """Takes a summed gradient [slice], `staleness` steps old; version v+1 if a step is due. Replay calls it without a message."""
        if not self.buffer.pushes:
            self._in_lockstep = self.words < self.config.policy.lockstep_words
        due = self._workers_left if self._in_lockstep else self.config.policy.buffer_pushes
        self.words += target_words
        self._step(self.buffer.add(gradient_sum, target_words, staleness, self.progress, due))

    def apply_farewell(self, worker: int) -> None:
        """`worker` has left: an update in lockstep waits for it no longer. Replay calls it without a message."""
        self.departed.add(worker)
        self.memory.control[FAREWELLS] = len(self.departed)
        if self._in_lockstep and self.buffer.pushes >= self._workers_left:
            self.step_rest()

    def step_rest(self) -> None:
        """Version v+1 by the pushes that are left in the buffer, if any: the end of a run, or of a worker that others wait for."""
        self._step(self.buffer.rest())
        self.memory.control[VERSION] = self.version

    def _step(self, step: Step | None) -> None:
        if step is None:
            return
        ring, slots = self.memory.ring, self.layout.ring_slots
        current, new = ring[self.version % slots], ring[(self.version + 1) % slots]
        clip_norm = self.config.policy.clip_norm
        self.update.apply(current, step.gradient_sum, step.target_words, new, self.progress, step.rate_factor, clip_norm)
        self.version += 1

    def _cancel_a_late_cut(self) -> None:
        control, layout = self.memory.control, self.layout
        if self.index == 0:
            open_cut = int(control[CUT]) > max(int(control[SNAPSHOT]), int(control[CANCELLED]))
            open_cut = open_cut and not int(control[CUT]) & END  # who has marked that one has left, and no other would come after it
            late = open_cut and 0 < self.config.cut_deadline_s < self.clock() - self.cut_raised_s
            cancelled = int(control[CUT]) if late else 0
        else:
            cancelled = max(int(control[layout.worker_block(worker) + CANCEL]) for worker in range(layout.workers))
        if cancelled > int(control[CANCELLED]):
            control[CANCELLED] = cancelled
            self.heard.clear()
            if self.cut <= cancelled:
                self.marked.clear()

    def _after(self, worker: int, header: PushHeader) -> None:
        control = self.memory.control
        self.heard.add(worker)
        self.snapshot_read = max(self.snapshot_read, header.snapshot_read)
        if header.stop == STOP_EARLY:
            control[STOP] = int(control[STOP]) | STOP_EARLY
        self.end_asked = self.end_asked or header.stop == SAVE_AND_END
        if header.kind == Kind.FAREWELL:
            self.apply_farewell(worker)
        self.cut = max(self.cut, header.cut)
        closed = max(int(control[SNAPSHOT]), int(control[CANCELLED]))
        if header.cut == self.cut > closed:
            self.marked.add(worker)
        self._look_at_cuts()

    def _look_at_cuts(self) -> None:
        """A cut stands when all have marked it or left; the last farewell ends the run; shard 0 may raise the next cut."""
        control = self.memory.control
        closed = max(int(control[SNAPSHOT]), int(control[CANCELLED]))
        if self.cut > closed and len(self.marked | self.departed) == self.layout.workers:
            self._publish(self.cut)
            self.marked.clear()
        if self.finished:
            self.step_rest()
            self._publish(FINAL_SNAPSHOT)
        if self.index == 0:
            self._raise_a_cut()

    def _raise_a_cut(self) -> None:
        control, last = self.memory.control, int(self.memory.control[CUT])
        is_open = last > max(int(control[SNAPSHOT]), int(control[CANCELLED]))
        reader_left = 0 in self.departed
        unread = not reader_left and self.snapshot_read != int(control[SNAPSHOT])
        all_heard = len(self.heard | self.departed) == self.layout.workers
        between_updates = not (self._in_lockstep and self.buffer.pushes)
        if self.finished or self.ended or is_open or unread or not all_heard or not between_updates:
            return
        kind, now = 0, self.clock()
        if self.config.cut_words and self.words >= self.next_cut_words and not reader_left:
            kind |= VALIDATE
            self.next_cut_words = self.words + self.config.cut_words
        if self.end_asked or self.is_asked_to_end():
            kind |= SAVE | END
        elif 0 < self.config.save_every_s <= now - self.saved_s and not self.lost:  # whose part no checkpoint would have
            kind |= SAVE
        if kind:
            control[CUT] = next_cut(last, kind)
            self.cut_raised_s = now
            if kind & SAVE:
                self.saved_s = now

    def _publish(self, word: int) -> None:
        if word == FINAL_SNAPSHOT or word & VALIDATE:
            current = self.memory.ring[self.version % self.layout.ring_slots]
            self.memory.ring[self.layout.ring_slots].copy_(self.update.published(current))
        if word != FINAL_SNAPSHOT:
            if word & SAVE:
                self.save(word)
            self.ended = bool(word & END)
        self.memory.control[SNAPSHOT_WORDS] = self.words
        self.memory.control[SNAPSHOT] = word
        self.cuts.append((word if word == FINAL_SNAPSHOT else cut_number(word), self.words))
