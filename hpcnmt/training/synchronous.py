"""Synchronous training, one rank of it: the baseline over Horovod or torch.distributed (distributed/synchronous.py).

All ranks train the same windows; rank 0 also keeps the journal and validates between two of them, while the others wait in their next
sum. When to end is known to all ranks alike: from the summed words, or from rank 0's wish that comes with the counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.collective import Collective, find_world, open_collective
from hpcnmt.distributed.synchronous import LastBatch, SynchronousLoop
from hpcnmt.distributed.worker import BatchCounts
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import GradientWindow
from hpcnmt.training.local import end_run
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.setup import Trainee, choose_device
from hpcnmt.training.status import RankReport, rank_report

LONG_VALIDATION = 0.5
"""Share of deadlines.peer_s from which on a validation is worth a word."""


class ReadyHooks:
    """Tells `ready` (begin, end) of the flat gradient as soon as autograd has added the last contribution to a parameter's gradient."""

    def __init__(self, module: nn.Module, flat: FlatParameters) -> None:
        self.ready: Callable[[int, int], None] | None = None
        """Set while the backward pass of a window's last batch runs."""
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(self._tell, flat.ranges[name]))  # type: ignore[no-untyped-call]

    def _tell(self, place: tuple[int, int], _parameter: Tensor) -> None:
        if self.ready is not None:
            self.ready(*place)


class SynchronousCompute:
    """`compute` of a SynchronousLoop: the batches of `loader` through the model of `trainee`."""

    def __init__(self, trainee: Trainee, loader: Loader) -> None:
        self.trainee, self.loader = trainee, loader
        self.target_words = 0  # of this rank
        self._hooks = ReadyHooks(trainee.model, trainee.flat)

    def __call__(self, last: LastBatch | None) -> BatchCounts | None:
        batch = self.loader.next_batch()
        if batch is None:
            return None
        self.target_words += batch.target_words
        if last is None:
            return self.trainee.add_gradient(batch)
        self._hooks.ready = last.ready
        counts = self.trainee.add_gradient(batch, last.counted)
        self._hooks.ready = None
        return counts


def run_rank(recipe: Recipe, data: Path, run: Path, workers: int) -> None:
    """The whole life of this rank."""
    world = find_world(recipe.sync.backend, workers)
    with rank_report(run, Activity("worker", world.rank, recipe.training.trace), world.rank) as report:
        trainee = Trainee.build(recipe, data, choose_device(recipe, world.local_rank))
        trainee.seed_worker(world.rank)
        collective = open_collective(recipe.sync.backend, world, trainee.flat.values.device, recipe.deadlines)
        loader = Loader(TokenCorpus(data, "train"), recipe.loader, world.rank, world.size)
        _train(trainee, collective, loader, run, report)
        loader.close()


def _train(trainee: Trainee, collective: Collective, loader: Loader, run: Path, report: RankReport) -> None:
    recipe, flat = trainee.recipe, trainee.flat
    window, update = GradientWindow(flat.gradients, recipe.worker.clip_norm), Update(flat.size, recipe.update, flat.values.device)
    compute = SynchronousCompute(trainee, loader)
    loop = SynchronousLoop(collective, recipe.sync, recipe.worker.delay_at, window, update, flat.values, compute, report.activity)
    loop.sentence_ids = lambda: loader.last_sentence_ids
    report.counters = lambda: {
        "windows": loop.windows, "target_words": compute.target_words, "global_words": update.words, "dropped_windows": window.dropped,
    }  # fmt: skip
    progress = _Progress(trainee, loop, loader, run) if collective.rank == 0 else None
    loop.start()
    while update.words < recipe.training.max_target_words and not loop.stopped:
        total = loop.window()
        if not total.target_words:
            break
        if progress is not None:
            progress.after(total)
    with report.activity("wait", "the end of all workers"):
        collective.close()
    if progress is not None:
        progress.end()


class _Progress:
    """Journal and validation of the run; on rank 0."""

    def __init__(self, trainee: Trainee, loop: SynchronousLoop, loader: Loader, run: Path) -> None:
        self.recipe, self.flat, self.loop, self.loader = trainee.recipe, trainee.flat, loop, loader
        self.journal, self.validation = trainee.open_run(run, loop.collective.size, 0, loop.collective.description)
        self._next_validation = self.recipe.validation.every_words

    def after(self, total: BatchCounts) -> None:
        """After a window of all ranks; validates when it is time, and asks to stop when nothing improves any more."""
        words, waits = self.loop.update.words, {"wait_s": self.loop.activity.seconds["wait"], "loader_wait_s": self.loader.wait_s}
        self.journal.training(words, total.loss_sum / total.target_words, waits | {"dropped_windows": self.loop.sum.dropped})
        if words < self._next_validation:
            return
        self._next_validation = words + self.recipe.validation.every_words
        before = self.validation.seconds
        self._validate()
        self.loop.ask_to_stop = self.validation.should_stop
        self.loop.stalled = self.validation.has_stalled
        took, limit = self.validation.seconds - before, self.recipe.deadlines.peer_s
        if took > LONG_VALIDATION * limit and self.loop.collective.size > 1:
            self.journal.say(f"validation took {took:.0f} s while the other ranks wait for at most {limit:.0f} s: raise deadlines.peer_s")

    def _validate(self, final: bool = False) -> None:
        with self.loop.activity("validate"):
            self.validation.evaluate(self.loop.update.published(self.flat.values), self.loop.update.words, final)

    def end(self) -> None:
        """The last validation and the last record."""
        train_s = self.journal.seconds - self.validation.seconds
        shares = self.loop.activity.shares(train_s)
        figures: dict[str, object] = {"shares": shares, "dropped_windows": self.loop.sum.dropped}
        self._validate(final=True)
        end_run(self.journal, self.validation, self.loop.update.words, [self.loader], figures, self.loop.source_words)
