"""A worker's windows: accumulate tau batches, hand the sum over, go on with a replica.

`WorkerLoop` runs on any transport; gradients come from the injected `compute`. One helper thread owns all transport calls after start.
What a window does depends on the global words known when its replica was swapped in, never on an exchange that is still under way.
`overlap 0`: waits for its own push and a fresh replica (the order of Bogoychev et al. 2018). `overlap 1`: exactly one window late, before
push k+1 the exchange k is complete on ALL shards and swapped in. Both are deterministic for one worker and one shard, also as to when a
snapshot or the end is seen: `replica_words`, `snapshot` and `stopped` are what was known when the replica was swapped in.
`overlap_from_words` goes from the one to the other between two windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.record import NoLog, WindowEntry, WindowLog
from hpcnmt.distributed.transport import wire_type
from hpcnmt.optim.local import LocalConfig, LocalOptimizer, LocalWindow
from hpcnmt.optim.window import Diverged


@dataclass(frozen=True)
class WorkerConfig:
    """How a worker forms its updates."""

    delay: int = 1
    """tau: batches summed before a push."""
    overlap: int = 0
    clip_norm: float = 1.0
    """Norm limit of the mean gradient per word; 0 = off."""
    local: LocalConfig = field(default_factory=LocalConfig)
    """Steps of the worker's own on its replica between pulls."""
    delay_ramp_words: int = 0
    """Global target words over which tau grows from 1 to `delay` in equal steps; 0 = `delay` from the start."""
    overlap_from_words: int = 0
    """Global target words from which on `overlap` 1 acts; before, windows wait for their exchange as with 0. 0 = from the start."""

    def __post_init__(self) -> None:
        if self.delay < 1:
            raise ValueError(f"worker.delay is {self.delay}, expected at least 1")
        if self.delay_ramp_words < 0:
            raise ValueError(f"worker.delay_ramp_words is {self.delay_ramp_words}, expected 0 (no ramp) or a positive number of words")
        if self.delay_ramp_words and self.delay == 1:
            raise ValueError("worker.delay_ramp_words has no effect with worker.delay=1: remove it, or set worker.delay to 2 or more")
        if self.overlap not in (0, 1):
            raise ValueError(f"worker.overlap is {self.overlap}, expected 0 or 1")
        if self.overlap_from_words < 0:
            raise ValueError(f"worker.overlap_from_words is {self.overlap_from_words}, expected 0 (from the start) or a positive number")
        if self.overlap_from_words and not self.overlap:
            raise ValueError("worker.overlap_from_words has no effect with worker.overlap=0: remove it, or set worker.overlap to 1")
        if self.clip_norm < 0:
            raise ValueError(f"worker.clip_norm is {self.clip_norm}, expected 0 (off) or a positive norm")
        self._check_local()

    def _check_local(self) -> None:
        local = self.local
        if local.carry and not self.overlap:
            raise ValueError(
                "worker.local.carry=true has no effect with worker.overlap=0: no batch is computed while a push is in flight; "
                "set worker.overlap to 1, or worker.local.carry to false"
            )
        if local.average and self.overlap and not local.carry:
            raise ValueError(
                "found worker.local.average=true and worker.overlap=1 without worker.local.carry: the next replica would lack the "
                "window in flight; set worker.local.carry to true"
            )
        if local.mode == "off" or local.average:
            return
        if local.mode == "compensate":
            if not self.overlap:
                raise ValueError(
                    "worker.local.mode=compensate has no effect with worker.overlap=0: no batch is computed while a push is in flight; "
                    "set worker.overlap to 1, or another worker.local.mode"
                )
            return
        if local.write_back:
            if self.overlap:
                raise ValueError(
                    "found worker.local.write_back=true with worker.overlap=1, expected worker.overlap=0: a worker's push and its "
                    "write-backs share one slot, and a write-back presumes that its own last push is in the replica"
                )
            return
        if local.carry:
            return
        if self.delay < 2:
            raise ValueError(
                f"worker.local.mode={local.mode} has no effect with worker.delay={self.delay}: the next pull replaces the replica "
                "before another batch sees the step; set worker.delay to 2 or more, worker.local.write_back to true (or, with "
                "worker.overlap=1, worker.local.carry), or worker.local.mode to off"
            )
        if local.warmup_words and self.delay_at(local.warmup_words - 1) < 2:
            raise ValueError(
                f"worker.local.mode=warmup has no effect with worker.local.warmup_words={local.warmup_words}: worker.delay_ramp_words="
                f"{self.delay_ramp_words} keeps windows at one batch for as long; make the warm-up longer or the ramp shorter"
            )

    def delay_at(self, global_words: int) -> int:
        """tau of a window that begins at `global_words`; every mode asks here."""
        if global_words >= self.delay_ramp_words:
            return self.delay
        return 1 + (self.delay - 1) * global_words // self.delay_ramp_words

    def overlaps_at(self, global_words: int) -> bool:
        """Whether the exchange of a window that begins at `global_words` runs beside the next one."""
        return self.overlap == 1 and global_words >= self.overlap_from_words


@dataclass(frozen=True)
class BatchCounts:
    """What one batch contributed."""

    target_words: int
    source_words: int
    sentences: int
    loss_sum: float


Compute = Callable[[], BatchCounts | None]
"""Computes one batch; None when no data is left."""


def sum_counts(counts: Sequence[BatchCounts]) -> BatchCounts:
    """Counts of a whole window."""
    return BatchCounts(
        sum(c.target_words for c in counts), sum(c.source_words for c in counts),
        sum(c.sentences for c in counts), sum(c.loss_sum for c in counts),
    )  # fmt: skip


def window_counts(compute: Compute, delay: int) -> BatchCounts:
    """Counts of a window of up to `delay` batches: fewer, at last none, when no data is left."""
    counts: list[BatchCounts] = []
    while len(counts) < delay and (batch := compute()) is not None:
        counts.append(batch)
    return sum_counts(counts)


def _host_buffer(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)


class WorkerLoop:
    """Windows of one worker. `compute` reads the flat buffer `replica` and adds a batch's gradient to the flat buffer `gradient`.

    Without a local optimizer the gradients of a window add up where autograd writes them; `local` moves each batch's gradient to an
    accumulator in the pass that also steps the replica (optim/local.py).
    """

    def __init__(
        self, exchange: Exchange, config: WorkerConfig, replica: Tensor, gradient: Tensor, compute: Compute,
        local: LocalOptimizer | None = None,
    ) -> None:  # fmt: skip
        self.exchange, self.config, self.compute = exchange, config, compute
        self.replica, self.gradient = replica, gradient
        kind = wire_type(exchange.transport.layout)
        self.sum = LocalWindow(gradient, config.clip_norm, kind != gradient.dtype, local)
        # MPI sees host memory only: on a GPU the packed gradient and the pulled replica pass through page-locked buffers.
        self._packed = torch.empty_like(gradient, dtype=kind)
        self._outgoing = _host_buffer(self._packed) if gradient.is_cuda else self._packed
        self._incoming = _host_buffer(replica) if replica.is_cuda or config.overlap else replica
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._pending: Future[None] | None = None
        self.replica_versions: list[int] = []
        self.replica_words = 0  # global target words known when the replica was swapped in
        self.snapshot = 0  # word of the newest snapshot that was known then
        self.stopped = False  # whether the end was known then
        self.fresh = False  # whether the replica was swapped in since the last window; otherwise it is what that one left
        self.batches = 0  # computed so far
        self.log: WindowLog = NoLog()
        self.out_of_data = False
        self.cut = 0
        """Word of the cut before which the last window's push was marked as the last one; 0 where it was not."""
        self._sequence = 0  # of the last window's push
        self.sentence_ids: Callable[[], Sequence[int]] = tuple
        """Ids of the sentences of the batch that `compute` has just done, for messages."""
        self._window_ids: list[int] = []
        self._sound_words = 0  # global target words at the last window whose gradient was finite

    def start(self, initial: bool) -> None:
        """Sends the initial parameters (worker 0) and pulls the first replica."""
        if initial:
            self.call(self.exchange.send_initial, self.replica.cpu())
        self._pull()

    def tensors(self) -> dict[str, Tensor]:
        """The state right after a window, for a checkpoint: the worker's own; copy them before the next window.

        The replica only where the next window is computed on it although a newer one is on its way; otherwise it is what the shards hold.
        """
        found = {} if self._pending is None else {"replica": self.replica}
        if self.sum.residual is not None:
            found["residual"] = self.sum.residual
        return found | (self.sum.local.adam.tensors() if self.sum.local is not None else {})

    def facts(self) -> dict[str, Any]:
        """What else a checkpoint holds of this worker."""
        local = {} if self.sum.local is None else {"local": self.sum.local.adam.facts() | {"batches": self.sum.local.batches}}
        return local | {
            "sequence": self._sequence, "replica_versions": self.replica_versions, "replica_words": self.replica_words,
            "dropped": self.sum.dropped, "stalls": self.exchange.stalls,
        }  # fmt: skip

    def resume(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], cut: int, snapshot_read: int) -> None:
        """Takes the place of `start` at the cut of word `cut`: goes on after the last window before it.

        Without "sequence" and "replica" (the run had other workers or shards) it begins there with nothing of its own.
        """
        self.exchange.resume(int(facts.get("sequence", 0)), cut, snapshot_read)
        self.exchange.stalls, self.sum.dropped = int(facts["stalls"]), int(facts.get("dropped", 0))
        if self.sum.residual is not None and "residual" in tensors:
            self.sum.residual.copy_(tensors["residual"])
        if self.sum.local is not None and "local" in facts:
            self.sum.local.adam.load(tensors, facts["local"])
            self.sum.local.batches = int(facts["local"]["batches"])
        if "replica" not in tensors:
            self._pull()
            return
        self.replica.copy_(tensors["replica"])
        versions, shards = [int(version) for version in facts["replica_versions"]], self.exchange.transport.layout.shards
        self.replica_versions = versions if len(versions) == shards else [max(versions)] * shards  # cut anew: close enough for counting
        self.replica_words = int(facts["replica_words"])
        self._pending = self._helper.submit(self.exchange.pull, self._incoming)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Runs one exchange call in the helper thread and waits for it."""
        self._helper.submit(function, *arguments).result()

    def window(self) -> BatchCounts:
        """Trains tau batches, pushes their sum, swaps in what the overlap mode prescribes; returns the counts of the window.

        Where data ends, the last window is of fewer batches; one of 0 target words pushes nothing and means that no data is left. A window
        with a non-finite gradient is dropped: nothing is pushed, and a fresh replica takes the place of the old one. Raises Diverged.
        """
        self.cut, self._window_ids = 0, []
        computed_on, overlaps = self.replica_versions, self.config.overlaps_at(self.replica_words)
        began_words, fresh, batches, self.fresh = self.replica_words, self.fresh, self.batches, False
        total = window_counts(self._batch, self.config.delay_at(self.replica_words))
        self.sum.end_batches(self.replica)
        self.complete()  # the exchange of the window before is complete on all shards from here on
        if not total.target_words:
            self.out_of_data = True
            return total
        sealed = self._seal(total.target_words, began_words)
        self.log.append(WindowEntry(
            self.exchange.sequence + sealed, self.batches - batches, total.target_words, total.loss_sum, not sealed, overlaps, fresh,
            self.fresh, began_words, self.replica_words, tuple(computed_on), tuple(self.replica_versions),
        ))  # fmt: skip
        swapped, self.fresh = self.fresh, False
        if not sealed:
            self._pull()
            return total
        header = PushHeader(Kind.GRADIENT, total.target_words, total.source_words, total.sentences, total.loss_sum)
        self.cut, self._sequence = self.exchange.cut_to_mark, self.exchange.sequence + 1
        self._pending = self._helper.submit(self._exchange, header, computed_on)
        if not overlaps:
            self.complete()
        elif self.config.local.looks_ahead:
            with self.exchange.activity("step"):
                self.sum.look_ahead(self.replica, self._packed, total.target_words, self.replica_words, swapped)
        return total

    def _seal(self, target_words: int, global_words: int) -> bool:
        """The window that began at `global_words` to where it is sent from; False if it was dropped. Raises Diverged."""
        with self.exchange.activity("pack"):
            try:
                sealed = self.sum.seal(self._packed, target_words)
            except Diverged as error:
                raise error.located(self._sound_words, self._window_ids) from error
            if sealed:
                self._sound_words = global_words
                if self._outgoing is not self._packed:
                    self._outgoing.copy_(self._packed)
        return sealed

    def _batch(self) -> BatchCounts | None:
        self.sum.before_batch(self.replica_words)
        with self.exchange.activity("compute"):
            counts = self.compute()
        if counts is not None:
            self.batches += 1
            self._window_ids += self.sentence_ids()
        if self.sum.stepping and counts is not None:
            with self.exchange.activity("step"):
                self.sum.step(self.replica, counts.target_words, self.replica_words)
            if self.config.local.write_back:
                self._write_back()
        return counts

    def _write_back(self) -> None:
        begin, end = self.exchange.transport.layout.part(self.exchange.worker)
        part = self.replica[begin:end]
        if part.is_cuda:
            part = self._outgoing[begin:end].copy_(part)  # free: without overlap the last push is complete
        with self.exchange.activity("wait"):
            self.call(self.exchange.write_back, part)

    def _pull(self) -> None:
        self.call(self.exchange.pull, self._incoming)
        self._swap_in()

    def _exchange(self, header: PushHeader, computed_on: list[int]) -> None:
        self.exchange.push_and_pull(self._outgoing, header, computed_on, self._incoming)

    def complete(self) -> None:
        """Waits for the exchange in flight and swaps its replica in."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with self.exchange.activity("wait"):
            pending.result()
        self._swap_in()

    def _swap_in(self) -> None:
        self.replica_versions, self.replica_words, self.fresh = list(self.exchange.versions), self.exchange.global_words, True
        self.snapshot, self.stopped = self.exchange.snapshot_available, self.exchange.stopped
        if self._incoming is not self.replica:
            with self.exchange.activity("copy"):
                self.replica.copy_(self._incoming)

    def finish(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Drains, says farewell; worker 0 stays until all have left, and so does a worker whose data has ended before that of others.

        With `meanwhile` every worker stays, and calls it again and again in the helper thread.
        """
        self.complete()
        self.call(self.exchange.farewell)
        self._sequence = self.exchange.sequence
        if self.exchange.worker == 0 or self.out_of_data or meanwhile is not None:
            self.call(self.exchange.wait_for_farewells, meanwhile or (lambda: None))

    def close(self) -> None:
        """Joins the helper thread; no transport call comes after this."""
        self._helper.shutdown(wait=True)
