"""Synchronous training, one rank of it: the baseline over Horovod or torch.distributed (distributed/synchronous.py).

All ranks train the same windows; rank 0 also keeps the journal and validates between two of them, while the others wait in their next
sum. When to end is known to all ranks alike: from the summed words, or from rank 0's wish that comes with the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from hpcnmt.training.checkpoint_files import Checkpoint, remove_temporary
from hpcnmt.training.divergence import LossMonitor
from hpcnmt.training.exits import FINISHED
from hpcnmt.training.local import end_run
from hpcnmt.training.process_state import ProcessState, needed_parts
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.resume import Resumed, common_checkpoint, readable
from hpcnmt.training.setup import Trainee, choose_device
from hpcnmt.training.signals import EndRequest
from hpcnmt.training.status import RankReport, rank_report
from hpcnmt.training.validation import Interrupted

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


def run_rank(recipe: Recipe, data: Path, run: Path, workers: int, resume: bool = False) -> int:
    """The whole life of this rank; returns its exit code: SAVED on rank 0 of a run that a signal has ended."""
    world = find_world(recipe.sync.backend, workers)
    first = world.rank == 0
    activity = Activity("worker", world.rank, recipe.training.trace)
    with EndRequest(recipe.checkpoint.before_limit_s, first, first) as request, rank_report(run, activity, world.rank, resume) as report:
        trainee = Trainee.build(recipe, data, choose_device(recipe, world.local_rank))
        trainee.seed_worker(world.rank)
        collective = open_collective(recipe.sync.backend, world, trainee.flat.values.device, recipe.deadlines)
        checkpoint = _common_checkpoint(collective, trainee.flat.values.device, run, recipe, resume)
        return _train(trainee, collective, run, report, request, checkpoint)


def _common_checkpoint(collective: Collective, device: torch.device, run: Path, recipe: Recipe, resume: bool) -> Checkpoint | None:
    """What all ranks go on from, with the parts that this one needs."""

    def share(number: int) -> int:
        shared = torch.tensor([number], dtype=torch.float64, device=device)
        collective.broadcast(shared)
        return int(shared)

    def all_of_us(well: bool) -> bool:
        refused = torch.tensor([0.0 if well else 1.0], device=device)
        collective.finish(collective.start_sum(refused, "refused"))
        return not refused

    needed = partial(needed_parts, rank=collective.rank, world=collective.size)
    return common_checkpoint(run, recipe, resume, collective.rank, share, all_of_us, needed)


def _train(
    trainee: Trainee, collective: Collective, run: Path, report: RankReport, request: EndRequest, checkpoint: Checkpoint | None
) -> int:  # fmt: skip
    recipe, flat = trainee.recipe, trainee.flat
    window, update = GradientWindow(flat.gradients, recipe.worker.clip_norm), Update(flat.size, recipe.update, flat.values.device)
    state = ProcessState(run, collective.rank, collective.size, flat.values, update, recipe.checkpoint, recipe.deadlines.peer_s)
    with readable(checkpoint) if checkpoint else nullcontext():
        facts = state.resume(checkpoint)
    loader = state.open_loader(TokenCorpus(trainee.data, "train"), recipe.loader, checkpoint)
    compute = SynchronousCompute(trainee, loader)
    loop = SynchronousLoop(collective, recipe.sync, recipe.worker.delay_at, window, update, flat.values, compute, report.activity)
    loop.sentence_ids = lambda: loader.last_sentence_ids
    report.counters = lambda: {
        "windows": loop.windows, "target_words": compute.target_words, "global_words": update.words, "dropped_windows": window.dropped,
    }  # fmt: skip
    loop.windows, loop.source_words = facts.get("windows", 0), facts.get("source_words", 0)
    progress = _Progress(trainee, loop, loader, run, facts, request, checkpoint) if collective.rank == 0 else None
    if checkpoint is None:
        loop.start()
    if progress is not None:
        progress.validate_if_due()
    saved = False
    while update.words < recipe.training.max_target_words and not loop.stopped and not saved:
        loop.ask_to_end, loop.ask_to_save = request.requested, collective.rank == 0 and state.is_due
        total = loop.window()
        if not total.target_words:
            break
        if progress is not None:
            progress.after(total)
        if loop.told_to_save or loop.told_to_end:
            about = {"loader": loader.state()} | (progress.facts() if progress else {})
            state.save(about, must=loop.told_to_end)
            saved = loop.told_to_end
    with report.activity("wait", "the end of all workers"):
        collective.close()
    if saved:
        return state.leave(progress.journal if progress else None, loader, request.reason)
    state.saver.close()
    if progress is not None:
        progress.end()
    loader.close()
    return FINISHED


class _Progress:
    """Journal and validation of the run; on rank 0."""

    def __init__(
        self, trainee: Trainee, loop: SynchronousLoop, loader: Loader, run: Path, facts: Mapping[str, Any], request: EndRequest,
        checkpoint: Checkpoint | None,
    ) -> None:  # fmt: skip
        self.recipe, self.flat, self.loop, self.loader, self.request = trainee.recipe, trainee.flat, loop, loader, request
        resumed = Resumed.of(checkpoint) if checkpoint else None
        self.journal, self.validation = trainee.open_run(run, loop.collective.size, 0, loop.collective.description, resumed)
        self.validation.is_interrupted = lambda: request.requested
        loop.ask_to_stop, loop.stalled = self.validation.should_stop, bool(facts.get("has_stalled", False))
        remove_temporary(run)  # nobody writes a part before this rank has begun
        self._next_validation = facts.get("next_validation", self.recipe.validation.every_words)
        self.monitor = LossMonitor(self.recipe.divergence)
        if "monitor" in facts:
            self.monitor.load(facts["monitor"])

    def facts(self) -> dict[str, Any]:
        """What rank 0 saves beside the state of all ranks."""
        return {
            "next_validation": self._next_validation, "windows": self.loop.windows, "source_words": self.loop.source_words,
            "journal": self.journal.facts(), "validation": self.validation.facts(), "monitor": self.monitor.state(),
            "has_stalled": self.loop.stalled,
        }  # fmt: skip

    def after(self, total: BatchCounts) -> None:
        """After a window of all ranks; validates when it is time."""
        words, waits = self.loop.update.words, {"wait_s": self.loop.activity.seconds["wait"], "loader_wait_s": self.loader.wait_s}
        self.monitor.after(total.loss_sum / total.target_words, words)
        self.journal.training(words, total.loss_sum / total.target_words, waits | {"dropped_windows": self.loop.sum.dropped})
        self.validate_if_due()

    def validate_if_due(self) -> None:
        """Validates when it is time, and asks to stop when nothing improves any more.

        Also called before the first window: a signal may have put a validation off.
        """
        words = self.loop.update.words
        if words < self._next_validation or self.request.requested:
            return
        before = self.validation.seconds
        try:
            self._validate()
        except Interrupted:
            return  # it is due still
        self._next_validation = words + self.recipe.validation.every_words
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
        self.validation.is_interrupted = lambda: False
        train_s = self.journal.seconds - self.validation.seconds
        shares = self.loop.activity.shares(train_s)
        figures: dict[str, object] = {"shares": shares, "dropped_windows": self.loop.sum.dropped}
        self._validate(final=True)
        end_run(self.journal, self.validation, self.loop.update.words, [self.loader], figures, self.loop.source_words)
