"""Transports: how a worker reaches the memory of a shard. The protocol above them is one and the same.

A shard owns a `ShardMemory` (inbox, ring, control) and touches nothing else. A worker reaches it through the `Transport` interface: put,
get, flush, read and write control words. Here are the interface and the in-process transport; `mpi.py` holds the windows.
With `LocalTransport` shards may run as threads, be served step by step by a script, or be driven by the event clock of virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcnmt.distributed.layout import VERSION, Layout

Words = NDArray[np.int64]


def wire_type(layout: Layout) -> torch.dtype:
    """Type of pushed gradients."""
    return torch.bfloat16 if layout.wire == "bf16" else torch.float32


@dataclass
class ShardMemory:
    """The memory of one shard: inbox [workers, slice] in the wire's type, ring [ring_slots + 1, slice] (last: the snapshot), control."""

    inbox: Tensor
    ring: Tensor
    control: Words

    @classmethod
    def view(cls, layout: Layout, shard: int, inbox: Tensor, ring: Tensor, control: Words) -> ShardMemory:
        """Shapes flat window memory and clears the control words; version -1 means "no parameters yet"."""
        size = layout.slice_size(shard)
        control[:] = 0
        control[VERSION] = -1
        return cls(inbox.view(layout.workers, size), ring.view(layout.ring_slots + 1, size), control)


class Transport(Protocol):
    """One-sided access of a worker to the shards. Nothing is complete at the shard before `flush`."""

    layout: Layout

    def put(self, shard: int, worker: int, data: Tensor) -> None:
        """Copies `data` [slice, or less] to the begin of the inbox slot of `worker`; `data` must live until `flush`."""

    def put_initial(self, shard: int, parameters: Tensor) -> None:
        """Copies `parameters` [slice] into ring slot 0; only before the first version."""

    def get(self, shard: int, slot: int, out: Tensor) -> None:
        """Copies ring slot `slot` into `out` [slice]; valid after `flush`."""

    def is_complete(self, shard: int) -> bool:
        """Whether `flush` would not have to wait for data any more; polling it moves the transfers on."""

    def flush(self, shard: int) -> None:
        """Completes all puts and gets towards `shard`."""

    def write_words(self, shard: int, offset: int, words: Words) -> None:
        """Writes and completes control words."""

    def raise_flag(self, shard: int, offset: int, sequence: int) -> None:
        """Replaces one control word atomically, after everything before it."""

    def read_words(self, shard: int, offset: int, count: int) -> Words:
        """Reads `count` control words, each of them untorn."""

    def pause(self) -> None:
        """Called between two polls."""


class LocalTransport:
    """All shards in this process. `on_poll` is called between two polls: serves the shards by hand, or sleeps while threads serve them."""

    def __init__(self, layout: Layout, on_poll: Callable[[], None]) -> None:
        self.layout = layout
        self._on_poll = on_poll
        self.memories = []
        for shard in range(layout.shards):
            size = layout.slice_size(shard)
            inbox, ring = torch.zeros(layout.workers * size, dtype=wire_type(layout)), torch.zeros((layout.ring_slots + 1) * size)
            self.memories.append(ShardMemory.view(layout, shard, inbox, ring, np.zeros(layout.control_words, np.int64)))

    def put(self, shard: int, worker: int, data: Tensor) -> None:
        self.memories[shard].inbox[worker, : data.numel()].copy_(data)

    def put_initial(self, shard: int, parameters: Tensor) -> None:
        self.memories[shard].ring[0].copy_(parameters)

    def get(self, shard: int, slot: int, out: Tensor) -> None:
        out.copy_(self.memories[shard].ring[slot])

    def is_complete(self, shard: int) -> bool:
        return True

    def flush(self, shard: int) -> None:
        """Copies are complete when they return."""

    def write_words(self, shard: int, offset: int, words: Words) -> None:
        self.memories[shard].control[offset : offset + len(words)] = words

    def raise_flag(self, shard: int, offset: int, sequence: int) -> None:
        self.memories[shard].control[offset] = sequence

    def read_words(self, shard: int, offset: int, count: int) -> Words:
        return self.memories[shard].control[offset : offset + count].copy()

    def pause(self) -> None:
        self._on_poll()
