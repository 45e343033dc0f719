"""What an asynchronous run notes of itself, so that it can be repeated bit for bit: what every shard applied, what every worker did.

A shard notes each message in the order in which it applied them; a worker notes each window: which replica its batches saw, which
one stood when its sum was sealed, and what came out. Together they hold everything that depends on timing; all else follows from
the recipe, the seed and the data (replay.py). Shards and workers write into sinks that are injected, by default into none: a record
grows with the run. Files: training/record.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol


class Event(IntEnum):
    """What a shard has applied."""

    GRADIENT = 1
    WRITE_BACK = 2
    FAREWELL = 3
    STALL = 4
    """A validation without a new best, told by the push that is noted next."""


class ShardEntry(NamedTuple):
    """One message on a shard; `version` (of the shard): that the gradient was computed on, or the newest one that the worker knew."""

    worker: int
    sequence: int
    version: int
    event: Event = Event.GRADIENT


class WindowEntry(NamedTuple):
    """One window of a worker.

    Its batches began on the replica of `began_on` (a version for each shard), swapped in when `began_words` global words were known. When
    its sum was sealed the replica was `sealed_on` with `sealed_words`: another one where an exchange ended meanwhile (`swapped`).
    """

    sequence: int
    """Of the push; of the worker's last message so far where the window was dropped."""
    batches: int
    target_words: int
    loss_sum: float
    dropped: bool
    overlapped: bool
    """Its exchange ran beside the next window."""
    fresh: bool
    """The replica was swapped in after the window before; otherwise it is what that window left: after its local steps, compensated."""
    swapped: bool
    began_words: int
    sealed_words: int
    began_on: tuple[int, ...]
    sealed_on: tuple[int, ...]


class ShardLog(Protocol):
    """Where a shard notes; a list will do."""

    def append(self, entry: ShardEntry, /) -> object:
        """Takes the next entry."""


class WindowLog(Protocol):
    """Where a worker notes; a list will do."""

    def append(self, entry: WindowEntry, /) -> object:
        """Takes the next entry."""


class NoLog:
    """Keeps nothing."""

    def append(self, entry: ShardEntry | WindowEntry, /) -> None:
        """Forgets `entry`."""

    def position(self) -> int:
        """Entries kept."""
        return 0

    def sync(self) -> None:
        """Nothing is to be written."""


@dataclass(frozen=True)
class Record:
    """What all ranks of one run have noted: entries of every shard, and windows of every worker."""

    shards: Sequence[Sequence[ShardEntry]]
    workers: Sequence[Sequence[WindowEntry]]

    @property
    def ended(self) -> bool:
        """Whether every shard has noted the farewell of every worker."""
        farewells = [{entry.worker for entry in log if entry.event == Event.FAREWELL} for log in self.shards]
        return all(len(found) == len(self.workers) for found in farewells)

    def pushes(self, shard: int) -> int:
        """Gradients that `shard` has applied."""
        return sum(entry.event == Event.GRADIENT for entry in self.shards[shard])


def check_record(record: Record) -> None:
    """Checks a run that has ended: every push is applied exactly once on every shard, in the order of its worker, and computed on the
    versions that the worker names; all shards have received the same words. Raises ValueError with the first thing that is not so."""
    pushed = [{w.sequence: w for w in windows if not w.dropped} for windows in record.workers]
    words = []
    for shard, log in enumerate(record.shards):
        last, seen = [0] * len(record.workers), [0] * len(record.workers)
        total = 0
        for number, (worker, sequence, version, event) in enumerate(log):
            where = f"entry {number} of shard {shard}"
            if event == Event.STALL:
                continue
            if sequence <= last[worker]:
                raise ValueError(f"{where}: found message {sequence} of worker {worker} after its message {last[worker]}")
            last[worker] = sequence
            if event != Event.GRADIENT:
                continue
            window = pushed[worker].get(sequence)
            if window is None or window.began_on[shard] != version:
                expected = "none of the kind" if window is None else f"one computed on version {window.began_on[shard]}"
                raise ValueError(f"{where}: found push {sequence} of worker {worker} on version {version}, that worker notes {expected}")
            seen[worker] += 1
            total += window.target_words
        for worker, found in enumerate(seen):
            if found != len(pushed[worker]):
                raise ValueError(f"shard {shard} has applied {found} pushes of worker {worker}, expected {len(pushed[worker])}")
        words.append(total)
    if len(Counter(words)) > 1:
        raise ValueError(f"the shards have received {words} target words, expected as many on all")
