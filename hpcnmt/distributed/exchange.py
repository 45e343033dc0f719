"""The worker's side of the exchange: push a summed gradient to all shards, pull a whole replica, follow the cut.

Push: data, flush, header, then the flag (= sequence number) last. A slot belongs to its worker again only after the shard's applied
word says so. Pull: read the version, get its ring slot, read the version again; accept only if fewer than K-1 updates happened
meanwhile, otherwise again (counted in `rejected_pulls`). All methods but start_* block: overlap comes from the helper thread of
`worker.py`. A window's push and pull go slice by slice through pipeline.py; `push` and `pull` do the same one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.layout import (
    APPLIED,
    CANCEL,
    CANCELLED,
    CUT,
    FINAL_SNAPSHOT,
    FLAG,
    GLOBAL_WORDS,
    HEAD,
    HEADER_WORDS,
    SNAPSHOT,
    SNAPSHOT_WORDS,
    STOP,
    TAIL,
    VERSION,
    WORKER_WORDS,
)  # fmt: skip
from hpcnmt.distributed.message import SAVE_AND_END, STOP_EARLY, Kind, PushHeader
from hpcnmt.distributed.pipeline import Pipeline
from hpcnmt.distributed.transport import Transport, Words

FAREWELL_NAP_S = 0.01
"""Between two looks of a worker that has nothing left to do: the others still use the network."""


@dataclass
class Exchange:
    """Exchange of worker `worker` with every shard over `transport`."""

    transport: Transport
    worker: int
    deadlines: DeadlineConfig

    def __post_init__(self) -> None:
        layout = self.transport.layout
        self.sequence = 0
        self.announced = [0] * layout.shards  # the last sequence number that each shard was told of
        self.versions = [-1] * layout.shards
        self.global_words = 0
        self.cut_raised = self.cut_marked = self.cut_cancelled = self.snapshot_read = 0
        self.snapshot_words = 0  # global target words of the snapshot last read
        self.snapshot_available = 0  # newest snapshot seen on all shards at the last pull
        self.stopped = False  # worker 0 has asked all to end
        self.ask_to_stop = False  # set by worker 0: goes out with its next push
        self.end_wanted = False  # whether a shard has been told to save and end
        self.ask_to_end = False  # set by any worker after a signal: save at a cut, and leave
        self.stalls = 0  # counted by worker 0: validations without a new best; goes out with its next push
        self.pulls = self.rejected_pulls = 0  # of one slice each
        self.slices = layout.slices()
        self.activity = Activity("worker", self.worker)

    def push_and_pull(self, gradient: Tensor, header: PushHeader, computed_on: Sequence[int], replica: Tensor) -> None:
        """One exchange with all shards: sends `gradient`, and fills `replica` with versions that contain it (see pipeline.py)."""
        headers = Pipeline(self, gradient, self._next(header), computed_on, replica).run()
        self._adopt(headers)

    def push(self, gradient: Tensor, header: PushHeader, computed_on: Sequence[int] | None = None) -> None:
        """Sends `gradient` [parameters] and waits until every shard has applied it; `computed_on` = version of each shard's slice."""
        self.start_push(gradient, header, computed_on)
        self.finish_push()

    def start_push(self, gradient: Tensor | None, header: PushHeader, computed_on: Sequence[int] | None = None) -> None:
        """Puts data, header and flag; `gradient` may be reused only after `finish_push`."""
        versions = self.versions if computed_on is None else computed_on
        header = self._next(header)
        for shard, (begin, end) in enumerate(self.slices):
            if gradient is not None:
                self.transport.put(shard, self.worker, gradient[begin:end])
        for shard in range(len(self.slices)):
            if gradient is not None:
                self.transport.flush(shard)
            self.announce(shard, header, versions[shard])

    @property
    def cut_to_mark(self) -> int:
        """The cut that the next gradient is the last push before; 0 without one."""
        return self.cut_raised if self.cut_raised > self.cut_marked else 0

    def _next(self, header: PushHeader) -> PushHeader:
        """Takes the next sequence number; the header of that push, marked when it is the last before a cut."""
        self.sequence += 1
        if header.kind == Kind.GRADIENT and self.cut_to_mark:
            self.cut_marked = self.cut_to_mark
            header = replace(header, cut=self.cut_marked)
        return header

    def announce(self, shard: int, header: PushHeader, version: int) -> None:
        """Header, then flag: the slice of the push, which is complete at `shard`, was computed on `version` of that shard."""
        block = self.transport.layout.worker_block(self.worker)
        fields = replace(
            header, version=version, snapshot_read=self.snapshot_read, stalls=self.stalls,
            stop=SAVE_AND_END if self.ask_to_end else STOP_EARLY if self.ask_to_stop else 0,
        ).pack()  # fmt: skip
        words = np.zeros(WORKER_WORDS - HEAD, np.int64)
        words[0], words[1 : 1 + len(fields)], words[TAIL - HEAD] = self.sequence, fields, self.sequence
        self.announced[shard] = self.sequence
        self.transport.write_words(shard, block + HEAD, words)
        self.transport.raise_flag(shard, block + FLAG, self.sequence)

    def finish_push(self, shards: Iterable[int] | None = None) -> None:
        """Waits until every shard (or the given ones) has applied the last message to it."""
        for shard in range(len(self.slices)) if shards is None else shards:
            self.deadlines.wait(
                f"shard {shard} to apply push {self.announced[shard]} of worker {self.worker}",
                lambda shard=shard: self.is_applied(shard),  # type: ignore[misc]
                self.transport.pause,
            )

    def is_applied(self, shard: int) -> bool:
        """Whether `shard` has applied the last message to it, and its slot is this worker's again."""
        offset = self.transport.layout.worker_block(self.worker) + APPLIED
        if int(self.transport.read_words(shard, offset, 1)[0]) == self.announced[shard]:
            return True
        if self.cut_marked > max(self.cut_cancelled, self.snapshot_available):  # the push may be held by a cut
            self._relay_cancelled(self._header(0))
        return False

    def write_back(self, part: Tensor) -> None:
        """Puts `part`, this worker's part of its replica (Layout.part), in place of the shards' parameters; waits until they stand.

        What others pushed there since this worker's last pull is discarded, on purpose. Only the shards that own some of it are told.
        """
        with self.activity("exchange", "write-back"):
            self.finish_push(self.start_write_back(part))

    def start_write_back(self, part: Tensor) -> list[int]:
        """Puts data, header and flag; `part` may be changed only after `finish_push` of the shards that are returned."""
        layout = self.transport.layout
        if layout.wire != "fp32":
            raise ValueError(f"found a write-back over a wire of {layout.wire}, expected fp32: set training.wire=fp32")
        begin, _ = layout.part(self.worker)
        pieces = {shard: layout.part_on(self.worker, shard) for shard in range(layout.shards)}
        pieces = {shard: piece for shard, piece in pieces.items() if piece[0] < piece[1]}
        header = self._next(PushHeader(Kind.WRITE_BACK))
        for shard, (first, last) in pieces.items():
            self.transport.put(shard, self.worker, part[first - begin : last - begin])
        for shard in pieces:
            self.transport.flush(shard)
            self.announce(shard, header, self.versions[shard])
        return list(pieces)

    def _relay_cancelled(self, first_header: Words) -> None:
        """Carries the decision of shard 0 that a cut is cancelled to the other shards."""
        if int(first_header[CANCELLED]) > self.cut_cancelled:
            self.cut_cancelled = int(first_header[CANCELLED])
            for shard in range(1, len(self.slices)):
                self.transport.raise_flag(shard, self.transport.layout.worker_block(self.worker) + CANCEL, self.cut_cancelled)

    def pull(self, replica: Tensor) -> None:
        """Fills `replica` [parameters] with a published version of every shard and records the versions."""
        self._adopt([self._pull_slice(shard, replica[begin:end]) for shard, (begin, end) in enumerate(self.slices)])

    def _adopt(self, headers: Sequence[Words]) -> None:
        """Takes over what the headers of the shards, one for each slice pulled, say of versions, words, cuts and the end."""
        self.pulls += len(headers)
        self.versions = [int(header[VERSION]) for header in headers]
        self.global_words = min(int(header[GLOBAL_WORDS]) for header in headers)
        self.cut_raised, self.stopped = int(headers[0][CUT]), bool(headers[0][STOP] & STOP_EARLY)
        self.end_wanted = self.end_wanted or any(header[STOP] & SAVE_AND_END for header in headers)
        self._relay_cancelled(headers[0])
        snapshots = {int(header[SNAPSHOT]) for header in headers}
        if len(snapshots) == 1:
            self.snapshot_available = snapshots.pop()

    def _pull_slice(self, shard: int, out: Tensor) -> Words:
        self.deadlines.wait(
            f"the first parameters on shard {shard}", lambda: int(self._header(shard)[VERSION]) >= 0, self.transport.pause
        )
        while True:
            header = self.start_pull(shard, out)
            if self.finish_pull(shard, header):
                return header

    def start_pull(self, shard: int, out: Tensor) -> Words:
        """Starts to fetch the newest version of `shard` into `out` [slice]; returns the header that names it."""
        header = self._header(shard)
        self.transport.get(shard, int(header[VERSION]) % self.transport.layout.ring_slots, out)
        return header

    def finish_pull(self, shard: int, header: Words) -> bool:
        """Completes the fetch; False (and counted) when so many updates happened meanwhile that the slot was written over."""
        self.transport.flush(shard)
        if int(self._header(shard)[VERSION]) - int(header[VERSION]) <= self.transport.layout.ring_slots - 2:
            return True
        self.rejected_pulls += 1
        return False

    def _header(self, shard: int) -> Words:
        return self.transport.read_words(shard, 0, HEADER_WORDS)

    def read_snapshot(self, replica: Tensor) -> None:
        """Fills `replica` [parameters] with the consistent cut last published; only worker 0 calls this."""
        self.snapshot_words = int(self._header(0)[SNAPSHOT_WORDS])
        self.snapshot_read = min(int(self._header(shard)[SNAPSHOT]) for shard in range(len(self.slices)))
        for shard, (begin, end) in enumerate(self.slices):
            self.transport.get(shard, self.transport.layout.ring_slots, replica[begin:end])
            self.transport.flush(shard)

    def resume(self, sequence: int, cut: int, snapshot_read: int) -> None:
        """Goes on after the push `sequence`, the last one before `cut`, at which the shards stand again."""
        self.sequence, self.announced = sequence, [sequence] * len(self.slices)
        self.cut_raised = self.cut_marked = cut
        self.snapshot_read = snapshot_read

    def skip_snapshot(self) -> None:
        """Worker 0 has no use for the newest snapshot: the shards may go on to the next cut."""
        self.snapshot_read = self.snapshot_available

    def send_initial(self, parameters: Tensor) -> None:
        """Worker 0 writes the initial parameters straight into ring slot 0, which nobody reads before version 0 stands."""
        for shard, (begin, end) in enumerate(self.slices):
            self.transport.put_initial(shard, parameters[begin:end])
            self.transport.flush(shard)
        self.start_push(None, PushHeader(Kind.INIT))
        self.finish_push()

    def farewell(self) -> None:
        """The last message of this worker."""
        self.start_push(None, PushHeader(Kind.FAREWELL))
        self.finish_push()

    def new_cut_while_waiting(self) -> int:
        """The cut that has been raised since the last one that this worker, which has left, has seen; 0 without one."""
        header = self._header(0)
        raised = int(header[CUT])
        if raised <= max(self.cut_marked, int(header[CANCELLED])):
            return 0
        self.cut_raised = self.cut_marked = raised
        return raised

    def wait_for_farewells(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits until every worker has left, so that the final snapshot stands on all shards; for any time while others still train.

        Calls `meanwhile` now and then.
        """
        layout = self.transport.layout
        for shard in range(layout.shards):
            while int((header := self._header(shard))[SNAPSHOT]) != FINAL_SNAPSHOT:
                self.deadlines.wait(
                    f"the farewell of all {layout.workers} workers on shard {shard}, or an update there,",
                    lambda shard=shard, words=int(header[GLOBAL_WORDS]): self._has_moved_on(shard, words),  # type: ignore[misc]
                    lambda: self._pause_for_farewells(meanwhile),
                    self.deadlines.job_s,
                )
        meanwhile()

    def _has_moved_on(self, shard: int, words: int) -> bool:
        header = self._header(shard)
        return int(header[SNAPSHOT]) == FINAL_SNAPSHOT or int(header[GLOBAL_WORDS]) != words

    def _pause_for_farewells(self, meanwhile: Callable[[], None]) -> None:
        meanwhile()
        self.transport.pause()
        time.sleep(FAREWELL_NAP_S)
