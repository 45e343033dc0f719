"""The loader: a worker's stream of batches, endless or of so many epochs, rank-disjoint, exactly resumable, prefetched by a thread (no fork
after MPI starts).

Every epoch is planned from (seed, epoch) alone and its batches are dealt round-robin: batch i goes to rank i % world. `state()` is the
position after the last batch handed out, whatever the prefetch has read ahead.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcnmt.data.batching import Batch, cut_by_words, make_batch, plan_epoch
from hpcnmt.data.corpus import TokenCorpus


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


State = dict[str, int | str]
_Item = tuple[int, int, Batch] | BaseException | None


class Loader:
    """Batches of rank `rank` of `world` workers."""

    def __init__(self, corpus: TokenCorpus, config: LoaderConfig, rank: int, world: int, state: State | None = None) -> None:
        self.corpus, self.config, self.rank, self.world = corpus, config, rank, world
        self._identity: State = {
            "seed": config.seed, "batch_words": config.batch_words, "rank": rank, "world": world,
            "sentences": len(corpus), "vocabulary": corpus.digest,
        }  # fmt: skip
        self.epoch, self._next_index = 0, rank
        if state is not None:
            for key, value in self._identity.items():
                if state.get(key) != value:
                    found = f"the loader state has {key} = {state.get(key)}, expected {value}"
                    raise ValueError(f"{found}: resume with the data and sizes of the run")
            self.epoch, self._next_index = int(state["epoch"]), int(state["next_index"])
        self.wait_s = 0.0
        self.words = self.source_words = self.padded_words = 0
        self._queue: queue.Queue[_Item] = queue.Queue(config.prefetch_batches)
        self.last_sentence_ids: tuple[int, ...] = ()
        """Of the batch handed out last."""
        self._ended = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(self.epoch, self._next_index), name="loader", daemon=True)
        self._thread.start()

    def state(self) -> State:
        """Position after the last batch handed out."""
        return self._identity | {"epoch": self.epoch, "next_index": self._next_index}

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
        self.epoch, index, batch = item
        self._next_index = index + self.world
        self.last_sentence_ids = batch.sentence_ids
        self.words += batch.source_words + batch.target_words
        self.source_words += batch.source_words
        self.padded_words += batch.source_ids.numel() + batch.target_ids.numel()
        return batch

    def _produce(self, epoch: int, index: int) -> None:
        try:
            while not 0 < self.config.max_epochs <= epoch:
                plan = plan_epoch(
                    self.corpus.source_lengths, self.corpus.target_lengths, self.config.batch_words, self.config.seed, epoch
                )  # fmt: skip
                if len(plan) < self.world:
                    raise ValueError(f"found {len(plan)} batches in an epoch for {self.world} workers: use a smaller loader.batch_words")
                while index < len(plan):
                    if not self._offer((epoch, index, _collect(self.corpus, plan[index]))):
                        return
                    index += self.world
                epoch, index = epoch + 1, self.rank
            self._offer(None)
        except BaseException as error:
            self._offer(error)

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
        self._thread.join(5.0)


def _collect(corpus: TokenCorpus, sentences: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Batch:
    rows = [int(i) for i in sentences]
    return make_batch([corpus.source(i) for i in rows], [corpus.target(i) for i in rows], rows)


def ordered_batches(corpus: TokenCorpus, batch_words: int) -> Iterator[Batch]:
    """Every sentence once, sorted by length: for validation and scoring."""
    order = np.lexsort((corpus.source_lengths, corpus.target_lengths))
    for batch in cut_by_words(order, corpus.target_lengths, batch_words):
        yield _collect(corpus, batch)
