"""Scripted interleavings: the real shards and exchanges, every move chosen by a script.

A script is a list of moves, one text each:
    push W         worker W writes data, header and flag of its next push (marked when it has seen a cut); nothing is applied yet. The push
                   holds one batch, or those of the write-backs since the last one
    write_back W   worker W computes a batch, steps locally, and writes data, header and flag of its part
    serve S        shard S looks at its inbox once
    pull W         worker W pulls a replica and swaps it in
    farewell W     worker W sends its last message
    read W         worker W reads the snapshot of the cut
    wait N         N seconds pass on the clock of the shards
    fail W         worker W dies, and every shard learns of it before it looks at its inbox again
    flag_first W   a broken worker: raises the flag before its header (the shard must not apply it)
`Script.run` gives a trace: what every shard holds after every move. Golden traces of the tests are such lists in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import APPLIED, CANCELLED, FINAL_SNAPSHOT, FLAG, SNAPSHOT, Layout, cut_number
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.transport import wire_type
from hpcnmt.distributed.virtual import LocalOf, LocalShards
from hpcnmt.distributed.worker import BatchCounts, sum_counts
from hpcnmt.optim.local import LocalWindow

GradientOf = Callable[[int, Tensor, Tensor], BatchCounts]

MOVES = "push W, write_back W, serve S, pull W, farewell W, read W, wait N, fail W or flag_first W"


class Script:
    """Workers and shards in one process that move only when told."""

    def __init__(
        self, layout: Layout, config: ShardConfig, gradient_of: GradientOf, initial: Tensor, clip_norm: float = 1.0,
        local_of: LocalOf | None = None,
    ) -> None:  # fmt: skip
        """`local_of` makes the local optimizers; then the trace also holds the first value of every worker's part on a shard."""
        self.world = LocalShards(layout, config)
        self.now_s = 0.0
        self.failed: set[int] = set()
        for shard in self.world.shards:
            shard.clock, shard.failed_workers = lambda: self.now_s, lambda: self.failed
        self.gradient_of = gradient_of
        self.exchanges = [Exchange(self.world.transport, index, DeadlineConfig()) for index in range(layout.workers)]
        self.exchanges[0].send_initial(initial)
        self.replicas = [torch.empty_like(initial) for _ in self.exchanges]
        self._gradient = torch.zeros(layout.parameters)
        rounds, self._has_local = layout.wire == "bf16", local_of is not None
        self._sums = [LocalWindow(self._gradient, clip_norm, rounds, local_of() if local_of else None) for _ in self.exchanges]
        self._counts: list[list[BatchCounts]] = [[] for _ in self.exchanges]  # of the batches that are not pushed yet
        self._wire = torch.empty(layout.parameters, dtype=wire_type(layout))
        for exchange, replica in zip(self.exchanges, self.replicas, strict=True):
            exchange.pull(replica)

    def run(self, moves: Sequence[str]) -> list[dict[str, Any]]:
        """Makes the moves and returns the trace."""
        trace = []
        for move in moves:
            name, _, number = move.partition(" ")
            action = getattr(self, f"_{name}", None)
            if action is None or not number.isdigit():
                raise ValueError(f"found the move {move!r}, expected: {MOVES}")
            action(int(number))
            trace.append({"move": move, "shards": [self._state(index) for index in range(len(self.world.shards))]})
        return trace

    def _state(self, index: int) -> dict[str, Any]:
        shard, layout = self.world.shards[index], self.world.layout
        control = shard.memory.control
        blocks = [layout.worker_block(worker) for worker in range(layout.workers)]
        snapshot, policy = int(control[SNAPSHOT]), shard.config.policy
        sums = policy.buffer_pushes > 1 or policy.lockstep_words
        published = {"published": self._published(index)} if self._has_local else {}
        return published | {
            "version": shard.version, "words": shard.words, "flags": [int(control[b + FLAG]) for b in blocks],
            "applied": [int(control[b + APPLIED]) for b in blocks], "held": sorted(shard.marked),
            "snapshot": "final" if snapshot == FINAL_SNAPSHOT else cut_number(snapshot), "cancelled": cut_number(int(control[CANCELLED])),
            "staleness": [[k, v] for k, v in sorted(shard.staleness.items())],
        } | ({"buffered": shard.buffer.pushes, "stepped_words": shard.update.words} if sums else {})
        # fmt: skip

    def _published(self, index: int) -> list[float]:
        """The first value of every worker's part on a shard, as text of a trace that other processors repeat."""
        shard, layout = self.world.shards[index], self.world.layout
        current, first = shard.memory.ring[shard.version % layout.ring_slots], layout.slices()[index][0]
        parts = [layout.part_on(worker, index) for worker in range(layout.workers)]
        return [round(float(current[begin - first]), 4) for begin, end in parts if begin < end]

    def _batch(self, worker: int) -> None:
        window, exchange = self._sums[worker], self.exchanges[worker]
        window.before_batch(exchange.global_words)
        counts = self.gradient_of(worker, self.replicas[worker], self._gradient)
        self._counts[worker].append(counts)
        if window.stepping:
            window.step(self.replicas[worker], counts.target_words, exchange.global_words)

    def _push(self, worker: int) -> None:
        self._check_slot(worker)
        if not self._counts[worker]:
            self._batch(worker)
        self._sums[worker].end_batches(self.replicas[worker])
        header = _sealed(self._sums[worker], sum_counts(self._counts[worker]), worker, self._wire)
        self._counts[worker].clear()
        self.exchanges[worker].start_push(self._wire, header)

    def _write_back(self, worker: int) -> None:
        self._check_slot(worker)
        if not self._has_local:
            raise ValueError(f"worker {worker} may not write back: found no local optimizer, expected local_of")
        self._batch(worker)
        begin, end = self.world.layout.part(worker)
        self.exchanges[worker].start_write_back(self.replicas[worker][begin:end])

    def _check_slot(self, worker: int) -> None:
        offset, announced = self.world.layout.worker_block(worker) + APPLIED, self.exchanges[worker].announced
        waiting = [i for i, s in enumerate(self.world.shards) if s.memory.control[offset] != announced[i]]
        if waiting:
            raise ValueError(f"worker {worker} may not push: its slot on shards {waiting} is not applied yet, expected serve moves before")

    def _serve(self, shard: int) -> None:
        self.world.shards[shard].serve_once()

    def _pull(self, worker: int) -> None:
        self.exchanges[worker].pull(self.replicas[worker])

    def _farewell(self, worker: int) -> None:
        self._check_slot(worker)
        self.exchanges[worker].start_push(None, PushHeader(Kind.FAREWELL))

    def _read(self, worker: int) -> None:
        self.exchanges[worker].read_snapshot(torch.empty_like(self.replicas[worker]))

    def _wait(self, seconds: int) -> None:
        self.now_s += seconds

    def _fail(self, worker: int) -> None:
        self.failed.add(worker)

    def _flag_first(self, worker: int) -> None:
        layout, exchange = self.world.layout, self.exchanges[worker]
        for shard in range(layout.shards):
            self.world.transport.raise_flag(shard, layout.worker_block(worker) + FLAG, exchange.sequence + 1)


def _sealed(window: LocalWindow, counts: BatchCounts, worker: int, wire: Tensor) -> PushHeader:
    if not window.seal(wire, counts.target_words):
        raise ValueError(f"found a non-finite gradient of worker {worker}, expected finite ones in a script")
    return PushHeader(Kind.GRADIENT, counts.target_words, counts.source_words, counts.sentences, counts.loss_sum)
