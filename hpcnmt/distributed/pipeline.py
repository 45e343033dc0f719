"""One exchange of a worker with all shards, slice by slice: what one shard has applied comes back while the next slice goes out.

A link carries both directions at once, so a push and a pull of M bytes over S shards take about (S + 2) / S times M / bandwidth.
Each lane of shards (layout.py) has one slice on its way out, and as many come back, so that a worker keeps the links of several hosts
busy; workers begin with different shards of a lane and so share the load. Where hosts have several shards, all workers push to the first
shard of every host before the second: in lockstep these have all pushes after a part of the time, and come back beside the rest. Every
slice keeps the order of exchange.py: data, header, flag; applied; version, ring slot, version. Called by Exchange.push_and_pull in the
worker's helper thread, through any transport.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hpcnmt.distributed.layout import LANES, Layout
from hpcnmt.distributed.message import PushHeader
from hpcnmt.distributed.transport import Words

if TYPE_CHECKING:
    from hpcnmt.distributed.exchange import Exchange

ASK_EVERY_S = 1e-3
"""Pause between two questions to a shard whether it has applied a push: each costs the shard a message."""


def lanes_of(worker: int, layout: Layout) -> list[list[int]]:
    """The shards of every lane in the order in which `worker` pushes to them: round by round, workers evenly spread over a round."""
    lanes: list[list[int]] = [[] for _ in range(LANES)]
    for peers in layout.rounds:
        for lane, order in enumerate(lanes):
            shards = [shard for shard in peers if layout.lane(shard) == lane]
            first = worker * len(shards) // layout.workers
            order += shards[first:] + shards[:first]
    return lanes


class Pipeline:
    """Pushes `gradient` [parameters] with `header`, and pulls into `replica` [parameters]."""

    def __init__(self, exchange: Exchange, gradient: Tensor, header: PushHeader, computed_on: Sequence[int], replica: Tensor) -> None:
        self.exchange, self.header, self.computed_on = exchange, header, computed_on
        self.out = [gradient[begin:end] for begin, end in exchange.slices]
        self.into = [replica[begin:end] for begin, end in exchange.slices]
        self.to_push = [deque(lane) for lane in lanes_of(exchange.worker, exchange.transport.layout)]
        self.pushing: dict[int, int] = {}  # the shard of each lane that is busy
        self.announced: list[int] = []
        self.applied: deque[int] = deque()
        self.pulling: dict[int, Words] = {}
        self.headers: dict[int, Words] = {}
        self._began: dict[tuple[str, int], float] = {}
        self._asked_s = 0.0

    def run(self) -> list[Words]:
        """Returns the header of every shard with the version that was pulled. RuntimeError after a deadline without any progress."""
        exchange = self.exchange
        with exchange.activity("exchange"):
            while len(self.headers) < len(self.out):
                what = self._waiting_for()
                exchange.activity.note(what)
                exchange.deadlines.wait(what, self._advance, exchange.transport.pause)
        return [self.headers[shard] for shard in range(len(self.out))]

    def _waiting_for(self) -> str:
        parts = [f"shard {shard} to receive" for shard in self.pushing.values()]
        parts += [f"shard {shard} to apply" for shard in self.announced]
        parts += [f"shard {shard} to send parameters after" for shard in self.pulling]
        return f"{', '.join(parts) or 'the shards to take'} push {self.exchange.sequence} of worker {self.exchange.worker}"

    def _advance(self) -> bool:
        """Moves every slice as far as it goes without waiting; True if any moved."""
        return any([self._push(), self._ask(), self._pull()])

    def _push(self) -> bool:
        transport = self.exchange.transport
        for lane, waiting in enumerate(self.to_push):
            if waiting and lane not in self.pushing:
                shard = self.pushing[lane] = waiting.popleft()
                self._begin("push", shard)
                transport.put(shard, self.exchange.worker, self.out[shard])
        complete = [(lane, shard) for lane, shard in self.pushing.items() if transport.is_complete(shard)]
        for lane, shard in complete:
            transport.flush(shard)
            self.exchange.announce(shard, self.header, self.computed_on[shard])
            self._end("push", shard)
            self._begin("apply", shard)
            self.announced.append(shard)
            del self.pushing[lane]
        return bool(complete)

    def _ask(self) -> bool:
        now = time.perf_counter()
        if not self.announced or now - self._asked_s < ASK_EVERY_S:
            return False
        self._asked_s = now
        done = [shard for shard in self.announced if self.exchange.is_applied(shard)]
        for shard in done:
            self._end("apply", shard)
            self.announced.remove(shard)
            self.applied.append(shard)
        return bool(done)

    def _pull(self) -> bool:
        while self.applied and len(self.pulling) < LANES:
            shard = self.applied.popleft()
            self._begin("pull", shard)
            self.pulling[shard] = self.exchange.start_pull(shard, self.into[shard])
        complete = [shard for shard in self.pulling if self.exchange.transport.is_complete(shard)]
        for shard in complete:
            header = self.pulling[shard]
            if self.exchange.finish_pull(shard, header):
                self._end("pull", shard)
                self.headers[shard] = header
                del self.pulling[shard]
            else:
                self.pulling[shard] = self.exchange.start_pull(shard, self.into[shard])
        return bool(complete)

    def _begin(self, name: str, shard: int) -> None:
        self._began[name, shard] = time.perf_counter()

    def _end(self, name: str, shard: int) -> None:
        self.exchange.activity.add(name, self._began[name, shard], time.perf_counter(), f"shard {shard}", f"{name} {shard}")
