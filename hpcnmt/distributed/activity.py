"""What a rank is doing: seconds by activity, the activity of this moment (for `hpcnmt status`), and the spans of a trace.

Names are few and fixed, see NAMES. Every thread has its own row: the main thread of a worker computes, packs, waits and copies; its
exchange thread exchanges, and notes the transfers with each shard on rows of their own. Invariants: the spans of one row nest;
`seconds` counts a name inclusive of what it contains, and the activities of a worker's main thread do not contain each other, so their
shares add up to its time; the naps of an idle shard that adjoin are one span. A span costs about two microseconds; without a trace nothing
grows. Used by worker.py, pipeline.py, shard.py, mpi.py, synchronous.py and what trains with them.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NAMES = {
    "compute": "forward and backward passes (or the sleep that stands for them)",
    "step": "optimizer steps of this rank",
    "pack": "clipping and rounding to the wire",
    "copy": "copies between replica, wire and host buffers",
    "wait": "blocked until the exchange or the all-reduce in flight is complete",
    "validate": "validation of a snapshot",
    "exchange": "one push and one pull with all shards",
    "push": "gradient on its way to one shard",
    "apply": "until that shard has applied the push; on a shard: applying it",
    "pull": "parameters on their way from one shard",
    "idle": "a shard without work",
}
TRAINING = ("compute", "wait", "copy", "pack", "step", "validate")
"""Those of a worker's main thread, whose shares add up to its time."""
MOST_SPANS = 500_000
ADJOINING_S = 1e-3
"""Naps of an idle shard with no more between them than a look at its flags are one stretch: thousands a second would fill the trace."""


@dataclass
class Span:
    """One stretch of one row, in seconds since the epoch; only that of a nap still grows."""

    row: str
    name: str
    detail: str
    begin_s: float
    end_s: float


@dataclass
class _Open:
    name: str
    detail: str
    begin: float
    since: float
    """When the nap of which this one is a part began; else the begin."""


class Activity:
    """Activities of the rank that is `role` number `index`; keeps spans where `trace` is on (the first MOST_SPANS of them)."""

    def __init__(self, role: str = "worker", index: int = 0, trace: bool = False) -> None:
        self.role, self.index, self.trace = role, index, trace
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.spans: list[Span] = []
        self._rows: dict[str, list[_Open]] = {}
        self._naps: dict[str, Span] = {}  # the last span of every row whose last span is a nap
        self._epoch_s = time.time() - time.perf_counter()

    @contextmanager
    def __call__(self, name: str, detail: str = "") -> Iterator[None]:
        """A stretch of the calling thread's row; `detail` says on what, e.g. "shard 1"."""
        row = _row()
        stack = self._rows.setdefault(row, [])
        begin = time.perf_counter()
        nap = self._nap(name, row, begin)
        stack.append(_Open(name, detail, begin, nap.begin_s - self._epoch_s if nap else begin))
        try:
            yield
        finally:
            stack.pop()
            self.add(name, begin, time.perf_counter(), detail, row)

    def note(self, detail: str) -> None:
        """Says more of the activity that the calling thread is in, for `now`."""
        stack = self._rows.get(_row())
        if stack:
            stack[-1].detail = detail

    def add(self, name: str, begin: float, end: float, detail: str = "", row: str | None = None) -> None:
        """A stretch that is over, in seconds of time.perf_counter: for what does not nest, as transfers to several shards at once."""
        self.seconds[name] += end - begin
        row = row or _row()
        nap = self._nap(name, row, begin)
        if nap:
            nap.end_s = self._epoch_s + end
            return
        span = Span(row, name, detail, self._epoch_s + begin, self._epoch_s + end)
        self._naps.pop(row, None)
        if name == "idle":
            self._naps[row] = span
        if self.trace and len(self.spans) < MOST_SPANS:
            self.spans.append(span)

    def _nap(self, name: str, row: str, begin: float) -> Span | None:
        """The span that a nap beginning at `begin` goes on with."""
        nap = self._naps.get(row) if name == "idle" else None
        return nap if nap and self._epoch_s + begin - nap.end_s < ADJOINING_S else None

    def now(self) -> dict[str, tuple[str, str, float]]:
        """(name, detail, seconds since it began) of the innermost activity of every row that is in one."""
        moment = time.perf_counter()
        return {row: (stack[-1].name, stack[-1].detail, moment - stack[-1].since) for row, stack in self._stacks() if stack}

    def so_far(self) -> dict[str, float]:
        """Seconds of every name, those of the activities that have not ended yet included."""
        seconds, moment = dict(self.seconds), time.perf_counter()
        for _, stack in self._stacks():
            for activity in stack:
                seconds[activity.name] = seconds.get(activity.name, 0.0) + moment - activity.begin
        return seconds

    def _stacks(self) -> list[tuple[str, list[_Open]]]:
        """A copy, because other threads go on meanwhile."""
        return [(row, list(stack)) for row, stack in list(self._rows.items())]

    def shares(self, total_s: float) -> dict[str, float]:
        """Seconds of every name as shares of `total_s`."""
        return {name: seconds / total_s for name, seconds in sorted(self.seconds.items())}


def _row() -> str:
    thread = threading.current_thread()
    return "main" if thread is threading.main_thread() else thread.name.split("_")[0]
