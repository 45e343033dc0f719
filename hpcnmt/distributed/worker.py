"""A worker's windows: accumulate tau batches, hand the sum over, go on with a replica.

`WorkerLoop` runs on any transport; gradients come from the injected `compute`. One helper thread owns all transport calls after start.
`overlap 0`: waits for its own push and a fresh replica (the order of Bogoychev et al. 2018). `overlap 1`: exactly one window late, before
push k+1 the exchange k is complete on ALL shards and swapped in. Both are deterministic for one worker and one shard.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.message import Kind, PushHeader


@dataclass(frozen=True)
class WorkerConfig:
    """How a worker forms its updates."""

    delay: int = 1
    """tau: batches summed before a push."""
    overlap: int = 0
    clip_norm: float = 1.0
    """Norm limit of the mean gradient per word; 0 = off."""

    def __post_init__(self) -> None:
        if self.delay < 1:
            raise ValueError(f"worker.delay is {self.delay}, expected at least 1")
        if self.overlap not in (0, 1):
            raise ValueError(f"worker.overlap is {self.overlap}, expected 0 or 1")
        if self.clip_norm < 0:
            raise ValueError(f"worker.clip_norm is {self.clip_norm}, expected 0 (off) or a positive norm")


@dataclass(frozen=True)
class BatchCounts:
    """What one batch contributed."""

    target_words: int
    source_words: int
    sentences: int
    loss_sum: float


Compute = Callable[[], BatchCounts]


def clip_sum_(gradient: Tensor, target_words: int, clip_norm: float) -> float:
    """Scales the summed `gradient` in place so that the norm of its mean per word is at most `clip_norm`; returns the norm before."""
    norm = float(torch.linalg.vector_norm(gradient)) / target_words
    if clip_norm > 0 and norm > clip_norm:
        gradient.mul_(clip_norm / norm)
    return norm


class WorkerLoop:
    """Windows of one worker. `replica` and `accumulator` are the flat buffers that `compute` reads and adds gradients to."""

    def __init__(self, exchange: Exchange, config: WorkerConfig, replica: Tensor, accumulator: Tensor, compute: Compute) -> None:
        self.exchange, self.config, self.compute = exchange, config, compute
        self.replica, self.accumulator = replica, accumulator
        self._outgoing = torch.empty_like(accumulator)
        self._incoming = torch.empty_like(replica) if config.overlap else replica
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._pending: Future[None] | None = None
        self.replica_versions: list[int] = []

    def start(self, initial: bool) -> None:
        """Sends the initial parameters (worker 0) and pulls the first replica."""
        if initial:
            self.call(self.exchange.send_initial, self.replica)
        self.call(self.exchange.pull, self.replica)
        self.replica_versions = list(self.exchange.versions)

    def call(self, function: Callable[..., None], *arguments: Tensor) -> None:
        """Runs one exchange call in the helper thread and waits for it."""
        self._helper.submit(function, *arguments).result()

    def window(self) -> BatchCounts:
        """Trains tau batches, pushes their sum, swaps in what the overlap mode prescribes; returns the counts of the window."""
        self.accumulator.zero_()
        computed_on = self.replica_versions
        counts = [self.compute() for _ in range(self.config.delay)]
        total = BatchCounts(
            sum(c.target_words for c in counts), sum(c.source_words for c in counts),
            sum(c.sentences for c in counts), sum(c.loss_sum for c in counts),
        )  # fmt: skip
        clip_sum_(self.accumulator, total.target_words, self.config.clip_norm)
        header = PushHeader(Kind.GRADIENT, total.target_words, total.source_words, total.sentences, total.loss_sum)
        self.complete()  # the exchange of the window before is complete on all shards from here on
        self._outgoing.copy_(self.accumulator)
        self._pending = self._helper.submit(self._exchange, header, computed_on)
        if not self.config.overlap:
            self.complete()
        return total

    def _exchange(self, header: PushHeader, computed_on: list[int]) -> None:
        self.exchange.push(self._outgoing, header, computed_on)
        self.exchange.pull(self._incoming)

    def complete(self) -> None:
        """Waits for the exchange in flight and swaps its replica in."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.result()
        self.replica_versions = list(self.exchange.versions)
        if self.config.overlap:
            self.replica.copy_(self._incoming)

    def finish(self) -> None:
        """Drains, says farewell; worker 0 stays until all have left."""
        self.complete()
        self.call(self.exchange.farewell)
        if self.exchange.worker == 0:
            self.call(self.exchange.wait_for_farewells)

    def close(self) -> None:
        """Joins the helper thread; no transport call comes after this."""
        self._helper.shutdown(wait=True)
