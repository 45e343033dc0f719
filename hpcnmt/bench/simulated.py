"""Simulated compute: a sleep that stands for the forward and backward pass of a batch on an accelerator.

The engine, MPI and every byte are real; only computing is a sleep, so that a waiting worker costs what it costs on a cluster (on a few
cores real compute would hide it: who waits gives its core away). The seconds of a batch are given; backward takes BACKWARD_SHARE of
them, in which a synchronous worker's gradient becomes ready piece by piece from its end, as autograd delivers it. `WindowTimes` turns the
ends of windows into a rate. Used by the rank programs of hpcnmt.bench.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from hpcnmt.distributed.synchronous import LastBatch
from hpcnmt.distributed.worker import BatchCounts

BACKWARD_SHARE = 2 / 3
"""Backward passes cost about twice their forward pass."""


@dataclass(frozen=True)
class SimulatedCompute:
    """Batches of `batch_words` target words that take `batch_s` seconds; a gradient of `parameters` elements in `pieces` pieces."""

    batch_s: float
    batch_words: int
    parameters: int
    pieces: int = 8

    def __call__(self, last: LastBatch | None = None) -> BatchCounts:
        """One batch; tells `last`, if given, what a forward and a backward pass would tell."""
        begin = time.perf_counter()
        counts = BatchCounts(self.batch_words, self.batch_words, max(1, self.batch_words // 25), float(self.batch_words))
        if last is not None:
            _sleep_until(begin + self.batch_s * (1 - BACKWARD_SHARE))
            last.counted(counts)
            width = -(-self.parameters // self.pieces)
            for piece in reversed(range(self.pieces)):
                _sleep_until(begin + self.batch_s * (1 - BACKWARD_SHARE * piece / self.pieces))
                last.ready(piece * width, min((piece + 1) * width, self.parameters))
        _sleep_until(begin + self.batch_s)
        return counts


def _sleep_until(moment: float) -> None:
    remaining = moment - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)


@dataclass
class WindowTimes:
    """Ends of the windows of one worker between `begin` and `end` (time.perf_counter)."""

    begin: float
    end: float
    ends: list[float] = field(default_factory=list)

    def add(self) -> bool:
        """Notes that a window has just ended; False once the time is over."""
        now = time.perf_counter()
        if self.begin <= now <= self.end:
            self.ends.append(now)
        return now < self.end

    def windows_per_s(self) -> float:
        """Rate between the first and the last end. Raises RuntimeError with fewer than two windows."""
        if len(self.ends) < 2:
            raise RuntimeError(f"found {len(self.ends)} windows in {self.end - self.begin:.0f} s, expected at least 2: raise --seconds")
        return (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])


def network_bytes() -> tuple[int, int]:
    """Bytes (sent, received) so far over all interfaces of this network namespace but loopback."""
    sent = received = 0
    with open("/proc/net/dev", encoding="utf-8") as stream:
        for line in stream.readlines()[2:]:
            name, _, fields = line.partition(":")
            if name.strip() != "lo":
                received += int(fields.split()[0])
                sent += int(fields.split()[8])
    return sent, received
