"""Who owns what: roles of the ranks, slices of the parameters, and the words of the control block.

Invariants: slices are contiguous, tile [0, parameters) and differ by at most one parameter, the longer ones first; shards are the last
ranks of the world, so worker w is rank w. Used by transports, shards and workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

# Control words of one shard (int64). A block of header words, then one block for each worker.
VERSION, GLOBAL_WORDS, CUT, SNAPSHOT, FAREWELLS, STOP, SNAPSHOT_WORDS, CANCELLED = range(8)
HEADER_WORDS = 8
# Words of a worker's block: the flag is raised last; the sequence stands at both ends of the message.
FLAG, APPLIED, CANCEL, HEAD, MESSAGE, TAIL = 0, 1, 2, 3, 4, 15
WORKER_WORDS = 16
FINAL_SNAPSHOT = 2**62
# A cut is one word, so that its number and what it is for are read together: number * 8 + kind.
VALIDATE, SAVE, END = 1, 2, 4
CUT_KINDS = 8
MOST_DEFAULT_SLOTS = 8
LANES = 2
"""Pushes of one worker that are on their way at once, each to a shard of another lane."""


def next_cut(word: int, kind: int) -> int:
    """The word of the cut after the one of `word`, for `kind`: VALIDATE, SAVE, or SAVE | END (save, then leave), or several of them."""
    return (word // CUT_KINDS + 1) * CUT_KINDS + kind


def cut_number(word: int) -> int:
    """Number of the cut of `word`."""
    return word // CUT_KINDS


def default_ring_slots(workers: int) -> int:
    """Enough that a pull survives one update by every worker, but not more memory than for MOST_DEFAULT_SLOTS versions."""
    return min(max(workers + 2, 4), MOST_DEFAULT_SLOTS)


@dataclass(frozen=True)
class Layout:
    """Sizes of one run: `parameters` split over `shards`, sent by `workers`, published in a ring of `ring_slots` versions."""

    parameters: int
    workers: int
    shards: int
    ring_slots: int = 4
    wire: Literal["fp32", "bf16"] = "fp32"
    """Type of pushed gradients; parameters always travel in fp32."""
    place_on_host: tuple[int, ...] = ()
    """For each shard how many of the shards before it are on its host; (): every shard is taken to be alone on its host."""

    def __post_init__(self) -> None:
        for name in ("parameters", "workers", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.ring_slots < 3:
            raise ValueError(f"ring_slots is {self.ring_slots}, expected at least 3 (a pull must survive one update)")
        if self.shards > self.parameters:
            raise ValueError(
                f"found {self.shards} shards for {self.parameters} parameters, expected a non-empty slice for each: use fewer --shards"
            )

    def slices(self) -> list[tuple[int, int]]:
        """[begin, end) of every shard's slice."""
        width, longer = divmod(self.parameters, self.shards)
        ends = [(s + 1) * width + min(s + 1, longer) for s in range(self.shards)]
        return list(zip([0, *ends], ends, strict=False))

    def slice_size(self, shard: int) -> int:
        """Number of parameters in the slice of `shard`."""
        begin, end = self.slices()[shard]
        return end - begin

    def part(self, worker: int) -> tuple[int, int]:
        """[begin, end) of the parameters that `worker` writes back after its local steps: W parts tile them, whatever the shards."""
        return self.parameters * worker // self.workers, self.parameters * (worker + 1) // self.workers

    def part_on(self, worker: int, shard: int) -> tuple[int, int]:
        """[begin, end) of what of that part lies on `shard`; begin = end where nothing does."""
        (first, last), (begin, end) = self.slices()[shard], self.part(worker)
        begin = min(max(begin, first), last)
        return begin, max(min(end, last), begin)

    def with_hosts(self, hosts: Sequence[str]) -> Layout:
        """The same, with what it takes to order pushes by: the host of every shard. One host for all has no link to share."""
        places = tuple(hosts[:shard].count(hosts[shard]) for shard in range(self.shards))
        return replace(self, place_on_host=places if len(set(hosts)) > 1 else ())

    @cached_property
    def rounds(self) -> list[list[int]]:
        """The first shard of every host, the second one of every host that has two, and so on."""
        places = self.place_on_host or (0,) * self.shards
        return [[shard for shard in range(self.shards) if places[shard] == place] for place in range(max(places) + 1)]

    def lane(self, shard: int) -> int:
        """Lane of `shard`: that of the first half of its round, or of the second, so that the lanes of a worker use different hosts."""
        return self._lanes[shard]

    @cached_property
    def _lanes(self) -> dict[int, int]:
        return {shard: place * LANES // len(peers) for peers in self.rounds for place, shard in enumerate(peers)}

    @property
    def wire_bytes(self) -> int:
        """Bytes of one element of a push."""
        return 2 if self.wire == "bf16" else 4

    @property
    def control_words(self) -> int:
        """Length of one shard's control block in int64 words."""
        return HEADER_WORDS + WORKER_WORDS * self.workers

    def worker_block(self, worker: int) -> int:
        """First control word of `worker`."""
        return HEADER_WORDS + WORKER_WORDS * worker

    def memory_text(self) -> str:
        """One line on the window memory of the largest shard, for the log."""
        size_mb = 1e-6 * self.slice_size(0)
        return (
            f"window memory of a shard: {self.shard_bytes(0) / 1e6:.1f} MB = inbox {self.workers} x {self.wire_bytes * size_mb:.1f} "
            f"+ ring {self.ring_slots} x {4 * size_mb:.1f} + snapshot {4 * size_mb:.1f}; {self.shards} shards"
        )

    def shard_bytes(self, shard: int) -> int:
        """Window memory of one shard: inbox, ring, snapshot slot, control."""
        inbox = self.wire_bytes * self.workers
        return self.slice_size(shard) * (inbox + 4 * (self.ring_slots + 1)) + 8 * self.control_words
