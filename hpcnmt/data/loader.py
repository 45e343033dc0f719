"""The loader: a worker's stream of batches, endless or of so many epochs, rank-disjoint, exactly resumable, prefetched by a thread (no fork
after MPI starts).

Every epoch is planned from (seed, epoch) alone and its batches are dealt round-robin: batch i goes to rank i % world. `state()` is the
position after the last batch handed out, whatever the prefetch has read ahead; position.py says what it means, and deals the rest of the
data anew where the number of workers changes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np

from hpcnmt.data.batching import Batch, Ids, cut_by_words, make_batch, plan_epoch
from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.position import State, check_state, pool


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are formed."""

    batch_words: int = 2000
    """Target words (EOS counted) of one batch of one worker."""
    seed: int = 1
    prefetch_batches: int = 4
    max_epochs: int = 0
    """Epochs after which a worker has no data left; 0 = endless."""

    def __post_init__(self) -> None:
        for name in ("batch_words", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader.{name} is {getattr(self, name)}, expected at least 1")
        if self.max_epochs < 0:
            raise ValueError(f"loader.max_epochs is {self.max_epochs}, expected 0 (endless) or a positive number")
        if self.seed < 0:
            raise ValueError(f"loader.seed is {self.seed}, expected at least 0")


@dataclass(frozen=True)
class _Ready:
    """A batch, and the position after it: batches of the backlog handed out, epoch and index of the next of the regular stream."""

    batch: Batch
    handed: int
    epoch: int
    next_index: int


_Item = _Ready | BaseException | None


class Loader:
    """Batches of rank `rank` of `world` workers."""

    def __init__(self, corpus: TokenCorpus, config: LoaderConfig, rank: int, world: int, state: State | None = None) -> None:
        self.corpus, self.config, self.rank, self.world = corpus, config, rank, world
        self._identity: State = {
            "seed": config.seed, "batch_words": config.batch_words, "rank": rank, "world": world,
            "sentences": len(corpus), "vocabulary": corpus.digest,
        }  # fmt: skip
        self.epoch, self._next_index = 0, rank
        self._backlog: list[tuple[int, int]] = []
        self._handed = 0
        if state is not None:
            self._resume(state)
        self.wait_s = 0.0
        self.words = self.source_words = self.padded_words = 0
        self._queue: queue.Queue[_Item] = queue.Queue(config.prefetch_batches)
        self._ended = False
        self._closed = threading.Event()
        self._last: Batch | None = None
        self._thread = threading.Thread(target=self._produce, args=(self.epoch, self._next_index), name="loader", daemon=True)
        self._thread.start()

    @classmethod
    def resumed(cls, corpus: TokenCorpus, config: LoaderConfig, rank: int, world: int, states: Sequence[State]) -> Loader:
        """The loader that goes on from the `states` of all ranks of a run, which may have been another number of ranks."""
        if len(states) == world:
            return cls(corpus, config, rank, world, states[rank])
        return cls(corpus, config, rank, world, pool(states, world, batches_by_epoch(corpus, config))[rank])

    def _resume(self, state: State) -> None:
        for key, value in self._identity.items():
            if isinstance(state, dict) and state.get(key) != value:
                found = f"the loader state has {key} = {state.get(key)!r:.60}, expected {value!r}"
                raise ValueError(f"{found}: resume with the data and sizes of the run")
        check_state(state)
        self.epoch, self._next_index = state["epoch"], state["next_index"]
        self._backlog = [(epoch, index) for epoch, index in state["backlog"]]

    def state(self) -> State:
        """Position after the last batch handed out; JSON values."""
        backlog = [list(item) for item in self._backlog[self._handed :]]
        return self._identity | {"epoch": self.epoch, "next_index": self._next_index, "backlog": backlog}

    @property
    def last_sentence_ids(self) -> tuple[int, ...]:
        """Numbers of the sentences in the last batch handed out, to name them where training fails on it."""
        return self._last.sentence_ids if self._last else ()

    @property
    def padding_share(self) -> float:
        """Share of padding in the target and source positions handed out so far."""
        return 1.0 - self.words / self.padded_words if self.padded_words else 0.0

    def next_batch(self) -> Batch | None:
        """The next batch, None after the last epoch; raises what the prefetch thread raised."""
        if self._ended:
            return None
        begin = time.perf_counter()
        item = self._queue.get()
        self.wait_s += time.perf_counter() - begin
        if isinstance(item, BaseException):
            raise RuntimeError(f"the loader of worker {self.rank} failed: {item}") from item
        if item is None:
            self._ended = True
            return None
        batch = self._last = item.batch
        self._handed, self.epoch, self._next_index = item.handed, item.epoch, item.next_index
        self.words += batch.source_words + batch.target_words
        self.source_words += batch.source_words
        self.padded_words += batch.source_ids.numel() + batch.target_ids.numel()
        return batch

    def _produce(self, epoch: int, index: int) -> None:
        try:
            if not self._produce_backlog(epoch, index):
                return
            while not self._is_over(epoch):
                plan = self._plan(epoch)
                if len(plan) < self.world:
                    raise ValueError(f"found {len(plan)} batches in an epoch for {self.world} workers: use a smaller loader.batch_words")
                while index < len(plan):
                    batch = _collect(self.corpus, plan[index])
                    index += self.world
                    if not self._offer(_Ready(batch, len(self._backlog), epoch, index)):
                        return
                epoch, index = epoch + 1, self.rank
            self._offer(None)
        except BaseException as error:
            self._offer(error)

    def _produce_backlog(self, epoch: int, next_index: int) -> bool:
        """Batches of epochs begun by another number of workers, before the regular stream; False when the loader was closed."""
        planned, plan = -1, list[Ids]()
        for number, (of_epoch, index) in enumerate(self._backlog):
            if self._is_over(of_epoch):
                break
            if planned != of_epoch:
                planned, plan = of_epoch, self._plan(of_epoch)
            if index >= len(plan):
                raise ValueError(f"found batch {index} in the loader state, expected less than the {len(plan)} of epoch {of_epoch}")
            if not self._offer(_Ready(_collect(self.corpus, plan[index]), number + 1, epoch, next_index)):
                return False
        return True

    def _is_over(self, epoch: int) -> bool:
        return 0 < self.config.max_epochs <= epoch

    def _plan(self, epoch: int) -> list[Ids]:
        return plan_epoch(self.corpus.source_lengths, self.corpus.target_lengths, self.config.batch_words, self.config.seed, epoch)

    def _offer(self, item: _Item) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def close(self) -> None:
        """Ends the prefetch thread."""
        self._closed.set()
        with suppress(queue.Empty):  # wakes a thread that waits for room
            self._queue.get_nowait()
        self._thread.join(5.0)


def batches_by_epoch(corpus: TokenCorpus, config: LoaderConfig) -> Callable[[int], int]:
    """Number of batches of an epoch, planned once each: what `position.pool` asks for."""
    lengths = corpus.source_lengths, corpus.target_lengths
    return cache(lambda epoch: len(plan_epoch(*lengths, config.batch_words, config.seed, epoch)))


def _collect(corpus: TokenCorpus, sentences: Ids) -> Batch:
    rows = [int(i) for i in sentences]
    return make_batch([corpus.source(i) for i in rows], [corpus.target(i) for i in rows], rows)


def ordered_batches(corpus: TokenCorpus, batch_words: int) -> Iterator[Batch]:
    """Every sentence once, sorted by length: for validation and scoring."""
    order = np.lexsort((corpus.source_lengths, corpus.target_lengths))
    for batch in cut_by_words(order, corpus.target_lengths, batch_words):
        yield _collect(corpus, batch)
