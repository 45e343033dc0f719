"""Synchronous training of one worker: every window's gradient is summed over all ranks before anybody steps.

The baseline that asynchrony is compared with, so it does what a good baseline does: tau batches add up locally, and while the backward
pass of the last one is still running, finished stretches of the flat gradient are already on their way (`BucketedSum`). All ranks then
hold the same sum and the same words, and take the same step: sum / words, clipping, update rule, as the plain loop does.

Invariants: all ranks start the same sums in the same order (the counts, then the buckets from the last to the first), whether a rank has
data left or not; parameters are the same on all ranks to the bit as long as the library gives all ranks the same sums. Knows nothing of
models: gradients come from the injected `compute`, real or simulated. Called by training/synchronous.py and by benchmarks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.collective import Backend, Collective, Handle
from hpcnmt.distributed.worker import BatchCounts, sum_counts
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import Diverged, GradientWindow

COUNTS = 8  # target words, source words, sentences, loss; asked to stop, validation has stalled, asked to save, to save and end


@dataclass(frozen=True)
class SyncConfig:
    """How gradients are summed in mode sync."""

    backend: Backend = "horovod"
    """horovod (over MPI), or torch: torch.distributed with gloo, NCCL on GPUs."""
    bucket_bytes: int = 8 << 20
    """Bytes of the gradient that are summed at once while the backward pass goes on."""

    def __post_init__(self) -> None:
        if self.bucket_bytes < 1:
            raise ValueError(f"sync.bucket_bytes is {self.bucket_bytes}, expected at least 1")


def bucket_bounds(size: int, bucket_elements: int) -> list[tuple[int, int]]:
    """[begin, end) of buckets that tile [0, size), all of `bucket_elements` but the first: the backward pass begins at the end."""
    bucket_elements = max(bucket_elements, 1)
    ends = range(size, 0, -bucket_elements)
    return [(max(end - bucket_elements, 0), end) for end in reversed(ends)]


class BucketedSum:
    """Sums the flat `gradient` [parameters] over the ranks, bucket by bucket, in one fixed order: from the last bucket to the first.

    A bucket is started once all its elements are marked ready and all buckets before it in that order are started; so the order is the
    same on all ranks, whatever the order in which gradients become ready.
    """

    def __init__(self, collective: Collective, gradient: Tensor, bounds: Sequence[tuple[int, int]]) -> None:
        if [begin for begin, _ in bounds] + [gradient.numel()] != [0] + [end for _, end in bounds]:
            raise ValueError(f"found the buckets {list(bounds)}, expected them to tile [0, {gradient.numel()}) in order")
        self.collective, self.gradient, self.bounds = collective, gradient, list(bounds)
        self._begins = [begin for begin, _ in bounds]
        self._handles: list[Handle] = []
        self._reset()

    def _reset(self) -> None:
        self._missing = [end - begin for begin, end in self.bounds]  # elements not ready yet
        self._next = len(self.bounds) - 1

    def ready(self, begin: int, end: int) -> None:
        """Marks gradient[begin:end] as final on this rank, once for each element and window; starts what may be started."""
        bucket = max(bisect_right(self._begins, begin) - 1, 0)
        while bucket < len(self.bounds) and self.bounds[bucket][0] < end:
            first, last = self.bounds[bucket]
            self._missing[bucket] -= max(min(end, last) - max(begin, first), 0)
            if self._missing[bucket] < 0:
                raise RuntimeError(f"elements of gradient[{begin}:{end}] were marked ready twice in one window")
            bucket += 1
        while self._next >= 0 and self._missing[self._next] == 0:
            self._start()

    def _start(self) -> None:
        begin, end = self.bounds[self._next]
        self._handles.append(self.collective.start_sum(self.gradient[begin:end], f"bucket {self._next}"))
        self._next -= 1

    def finish(self) -> None:
        """Starts what was not marked ready, and waits until the whole gradient is summed."""
        while self._next >= 0:
            self._start()
        handles, self._handles = self._handles, []
        for handle in handles:
            self.collective.finish(handle)
        self._reset()


@dataclass(frozen=True)
class LastBatch:
    """What `compute` may tell of the last batch of a window while it is being computed: first its counts, then what is ready."""

    counted: Callable[[BatchCounts], None]
    """After the forward pass, once."""
    ready: Callable[[int, int], None]
    """(begin, end) of the flat gradient that the backward pass will not touch again."""


Compute = Callable[[LastBatch | None], BatchCounts | None]
"""Adds the gradient of the next batch to the flat gradient; None when no data is left. Gets a LastBatch for the last batch of a window."""


class SynchronousLoop:
    """Windows of one rank. `compute` reads the flat `parameters` [parameters] and adds to the flat `gradient` [parameters].

    `delay_at`: tau at the global target words. `source_words` and `update.words` are those of all ranks together. `ask_to_stop`, set on
    rank 0, makes the next window the last one on all ranks. `stalled`, set on rank 0 after a validation without a new best, is told to
    the update rule of all ranks in the next window, before its update. On a GPU, operations return before they are done: there the
    seconds of `activity` say what the host waited for.
    """

    def __init__(
        self, collective: Collective, config: SyncConfig, delay_at: Callable[[int], int], window: GradientWindow, update: Update,
        parameters: Tensor, compute: Compute, activity: Activity | None = None,
    ) -> None:  # fmt: skip
        self.collective, self.delay_at, self.sum, self.update = collective, delay_at, window, update
        self.parameters, self.compute = parameters, compute
        self.activity = activity or Activity("worker", collective.rank)
        gradient = window.accumulator
        bounds = bucket_bounds(gradient.numel(), config.bucket_bytes // gradient.element_size())
        self.buckets = BucketedSum(collective, gradient, bounds)
        self.windows = self.source_words = 0
        self.ask_to_stop = self.stopped = self.stalled = False
        self.ask_to_save = self.ask_to_end = False  # set on any rank before a window
        self.told_to_save = self.told_to_end = False  # of the last window, the same on all ranks: save after it, save and leave
        self._mean = torch.empty_like(gradient)  # the clipped sum, as `update` takes it
        self._counts = torch.empty(COUNTS, dtype=torch.float64, device=gradient.device)
        self._counting: Handle | None = None
        self._before: list[BatchCounts] = []
        self.sentence_ids: Callable[[], Sequence[int]] = tuple
        """Ids of the sentences of the batch that `compute` has just done, for messages."""
        self._window_ids: list[int] = []

    def start(self) -> None:
        """All ranks take the parameters of rank 0."""
        self.collective.broadcast(self.parameters)
        self.update.start(self.parameters)

    def window(self) -> BatchCounts:
        """One window of all ranks; returns its counts over all ranks, 0 target words when no rank had data left.

        A rank without data contributes zeros. A window with a non-finite gradient is dropped, on all ranks alike.
        """
        with self.activity("compute"):
            self._accumulate()
        with self.activity("wait"):
            self.collective.finish(self._counting)
            self._counting = None
            self.buckets.finish()
        target_words, source_words, sentences, loss_sum, stop, stalled, save, end = self._counts.tolist()
        self.told_to_save, self.told_to_end = save > 0, end > 0
        total = BatchCounts(round(target_words), round(source_words), round(sentences), loss_sum)
        self.stopped = stop > 0
        if stalled > 0:
            self.update.note_stall()
            self.stalled = False
        self.source_words += total.source_words
        if total.target_words:
            self.windows += 1
            with self.activity("pack"):
                try:
                    sealed = self.sum.seal(self._mean, total.target_words)
                except Diverged as error:
                    raise error.located(self.update.words, self._window_ids, "that of this rank") from error
            if sealed:
                with self.activity("step"):
                    self.update.apply(self.parameters, self._mean, total.target_words)
        return total

    def _accumulate(self) -> None:
        """Up to tau batches of this rank; when it returns, the counts are on their way, and buckets as far as they are ready."""
        self._before, self._window_ids = [], []
        delay = self.delay_at(self.update.words)  # the same on all ranks
        for index in range(delay):
            counts = self.compute(LastBatch(self._counted, self._ready) if index == delay - 1 else None)
            if counts is None:
                break
            self._before.append(counts)
            self._window_ids += self.sentence_ids()
        if self._counting is None:
            self._start_counts(sum_counts(self._before))

    def _counted(self, last: BatchCounts) -> None:
        self._start_counts(sum_counts([*self._before, last]))

    def _start_counts(self, counts: BatchCounts) -> None:
        if self._counting is not None:
            raise RuntimeError("found a second call of LastBatch.counted in one window, expected one after the forward pass")
        said = (float(self.ask_to_stop), float(self.stalled), float(self.ask_to_save), float(self.ask_to_end))
        values = (counts.target_words, counts.source_words, counts.sentences, counts.loss_sum, *said)
        self._counts.copy_(torch.tensor(values, dtype=torch.float64))
        self._counting = self.collective.start_sum(self._counts, "counts")

    def _ready(self, begin: int, end: int) -> None:
        if self._counting is None:
            raise RuntimeError("found LastBatch.ready before LastBatch.counted: the counts go first, on all ranks")
        self.buckets.ready(begin, end)
