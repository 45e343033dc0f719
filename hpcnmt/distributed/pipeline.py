"""One exchange of a worker with all shards, slice by slice: what one shard has applied comes back while the next slice goes out.

A link carries both directions at once, so a push and a pull of M bytes over S shards take (S + 1) / S times M / bandwidth instead of twice.
At most one slice is on its way in each direction, and workers begin with different shards: each slice gets the whole link, and the
shards share the load. Every slice keeps the order of exchange.py: data, header, flag; applied; version, ring slot, version.
Called by Exchange.push_and_pull in the worker's helper thread, through any transport.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hpcnmt.distributed.message import PushHeader
from hpcnmt.distributed.transport import Words

if TYPE_CHECKING:
    from hpcnmt.distributed.exchange import Exchange

ASK_EVERY_S = 1e-3
"""Pause between two questions to a shard whether it has applied a push: each costs the shard a message."""


class Pipeline:
    """Pushes `gradient` [parameters] with `header`, and pulls into `replica` [parameters]."""

    def __init__(self, exchange: Exchange, gradient: Tensor, header: PushHeader, computed_on: Sequence[int], replica: Tensor) -> None:
        self.exchange, self.header, self.computed_on = exchange, header, computed_on
        self.out = [gradient[begin:end] for begin, end in exchange.slices]
        self.into = [replica[begin:end] for begin, end in exchange.slices]
        shards = len(exchange.slices)
        first = exchange.worker * shards // exchange.transport.layout.workers  # workers begin evenly spread over the shards
        self.to_push = deque((first + step) % shards for step in range(shards))
        self.pushing: int | None = None
        self.announced: list[int] = []
        self.applied: deque[int] = deque()
        self.pulling: tuple[int, Words] | None = None
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
                exchange.wait_s += exchange.deadlines.wait(what, self._advance, exchange.transport.pause)
        return [self.headers[shard] for shard in range(len(self.out))]

    def _waiting_for(self) -> str:
        parts = [f"shard {self.pushing} to receive"] if self.pushing is not None else []
        parts += [f"shard {shard} to apply" for shard in self.announced]
        parts += [f"shard {self.pulling[0]} to send parameters after"] if self.pulling else []
        return f"{', '.join(parts) or 'the shards to take'} push {self.exchange.sequence} of worker {self.exchange.worker}"

    def _advance(self) -> bool:
        """Moves every slice as far as it goes without waiting; True if any moved."""
        return any([self._push(), self._ask(), self._pull()])

    def _push(self) -> bool:
        transport = self.exchange.transport
        if self.pushing is None:
            if not self.to_push:
                return False
            self.pushing = self.to_push.popleft()
            self._begin("push", self.pushing)
            transport.put(self.pushing, self.exchange.worker, self.out[self.pushing])
        shard = self.pushing
        if not transport.is_complete(shard):
            return False
        transport.flush(shard)
        self.exchange.announce(shard, self.header, self.computed_on[shard])
        self._end("push", shard)
        self._begin("apply", shard)
        self.announced.append(shard)
        self.pushing = None
        return True

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
        if self.pulling is None:
            if not self.applied:
                return False
            shard = self.applied.popleft()
            self._begin("pull", shard)
            self.pulling = shard, self.exchange.start_pull(shard, self.into[shard])
        shard, header = self.pulling
        if not self.exchange.transport.is_complete(shard):
            return False
        if self.exchange.finish_pull(shard, header):
            self._end("pull", shard)
            self.headers[shard], self.pulling = header, None
        else:
            self.pulling = shard, self.exchange.start_pull(shard, self.into[shard])
        return True

    def _begin(self, name: str, shard: int) -> None:
        self._began[name, shard] = time.perf_counter()

    def _end(self, name: str, shard: int) -> None:
        row = f"{name} {shard}" if name == "apply" else name
        self.exchange.activity.add(name, self._began[name, shard], time.perf_counter(), f"shard {shard}", row)
