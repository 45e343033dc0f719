"""Training in one process: the plain loop (what asynchrony is compared with) and virtual time (any number of logical workers)."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.virtual import LocalShards, VirtualCluster
from hpcnmt.distributed.worker import BatchCounts, window_counts
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import Diverged, GradientWindow
from hpcnmt.training.checkpoint_files import Checkpoint, remove_temporary
from hpcnmt.training.divergence import LossMonitor
from hpcnmt.training.exits import FINISHED
from hpcnmt.training.journal import Journal
from hpcnmt.training.process_state import ProcessState, needed_parts
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.resume import Resumed, common_checkpoint, readable
from hpcnmt.training.setup import Trainee, choose_device
from hpcnmt.training.signals import EndRequest
from hpcnmt.training.status import RankReport, rank_report, shard_counters
from hpcnmt.training.validation import Interrupted, Validation


def end_run(
    journal: Journal, validation: Validation, words: int, loaders: list[Loader], extra: dict[str, object], source_words: int | None = None
) -> None:  # fmt: skip
    """The last record: seconds of training are those without validation. `source_words`: of the whole run, where they are counted."""
    train_s = journal.seconds - validation.seconds
    waiting, loaded = (sum(getattr(loader, name) for loader in loaders) for name in ("wait_s", "source_words"))
    if source_words is None:
        source_words = round(words * loaded / max(sum(loader.words for loader in loaders) - loaded, 1))
    rates = {
        "train_s": train_s, "validating_s": validation.seconds, "target_words_per_s": words / train_s,
        "source_words_per_s": source_words / train_s, "total_words_per_s": (words + source_words) / train_s,
    }  # fmt: skip
    journal.record("end", words, rates | {"loader_wait_s": waiting, "padding_share": loaders[0].padding_share} | extra)
    for loader in loaders:
        loader.close()
    journal.close()


def train_plain(recipe: Recipe, data: Path, run: Path, resume: bool = False) -> int:
    """tau batches, one update, in this process: the same model, batches, clipping and update rule as the engine's; the exit code."""
    with EndRequest(recipe.checkpoint.before_limit_s, asks_squeue=True) as request:
        with rank_report(run, Activity(trace=recipe.training.trace), resumes=resume) as report:
            checkpoint = common_checkpoint(run, recipe, resume, 0, int, bool, lambda found: needed_parts(found, 0, 1))
            return _train_plain(recipe, data, run, report, request, checkpoint)


def _train_plain(recipe: Recipe, data: Path, run: Path, report: RankReport, request: EndRequest, checkpoint: Checkpoint | None) -> int:
    activity = report.activity
    trainee = Trainee.build(recipe, data, choose_device(recipe, 0))
    trainee.seed_worker(0)
    recipe, flat = trainee.recipe, trainee.flat
    journal, validation = trainee.open_run(run, 1, 0, "none", Resumed.of(checkpoint) if checkpoint else None)
    update = Update(flat.size, recipe.update, flat.values.device)
    window, wire = GradientWindow(flat.gradients, recipe.worker.clip_norm), torch.empty_like(flat.gradients)
    state = ProcessState(run, 0, 1, flat.values, update, recipe.checkpoint, recipe.deadlines.peer_s)
    remove_temporary(run)
    with readable(checkpoint) if checkpoint else nullcontext():
        facts = state.resume(checkpoint)
    loader = state.open_loader(TokenCorpus(data, "train"), recipe.loader, checkpoint)
    next_validation, windows = facts.get("next_validation", recipe.validation.every_words), facts.get("windows", 0)
    source_words, window.dropped = facts.get("source_words", 0), facts.get("dropped", 0)
    validation.is_interrupted = lambda: request.requested

    def validate_if_due() -> None:
        nonlocal next_validation
        if update.words < next_validation or request.requested:
            return
        try:
            with activity("validate"):
                validation.evaluate(update.published(flat.values), update.words)
        except Interrupted:
            return  # it is due still
        next_validation = update.words + recipe.validation.every_words
        if validation.has_stalled:
            update.note_stall()

    monitor = LossMonitor(recipe.divergence)
    if "monitor" in facts:
        monitor.load(facts["monitor"])

    def save(must: bool) -> None:
        facts = {"monitor": monitor.state(), "next_validation": next_validation}
        facts |= {"windows": windows, "source_words": source_words, "dropped": window.dropped}
        state.save(facts | {"journal": journal.facts(), "validation": validation.facts(), "loader": loader.state()}, must)

    report.counters = lambda: {"windows": windows, "target_words": update.words, "dropped_windows": window.dropped}

    def compute() -> BatchCounts | None:
        batch = loader.next_batch()
        return None if batch is None else trainee.add_gradient(batch)

    validate_if_due()  # which the signal that ended the run before may have put off
    while update.words < recipe.training.max_target_words and not validation.should_stop:
        with activity("compute"):
            total = window_counts(compute, recipe.worker.delay_at(update.words))
        if not total.target_words:
            break
        with activity("step"):
            try:
                sealed = window.seal(wire, total.target_words)
            except Diverged as error:
                raise error.located(update.words, loader.last_sentence_ids, "its last batch") from error
            if sealed:
                update.apply(flat.values, wire, total.target_words)
        windows += 1
        source_words += total.source_words
        journal.training(update.words, total.loss_sum / total.target_words)
        monitor.after(total.loss_sum / total.target_words, update.words)
        validate_if_due()
        if request.requested:
            save(must=True)
            return state.leave(journal, loader, request.reason)
        if state.is_due:
            save(must=False)
    validation.is_interrupted = lambda: False
    with activity("validate"):
        validation.evaluate(update.published(flat.values), update.words, final=True)
    state.saver.close()
    end_run(journal, validation, update.words, [loader], {"dropped_windows": window.dropped}, source_words)
    return FINISHED


def train_virtual(recipe: Recipe, data: Path, run: Path, workers: int, shards: int) -> None:
    """Logical workers on a simulated clock; see distributed/virtual.py."""
    with rank_report(run, Activity(trace=recipe.training.trace)) as report:
        _train_virtual(recipe, data, run, workers, shards, report)


def _train_virtual(recipe: Recipe, data: Path, run: Path, workers: int, shards: int, report: RankReport) -> None:
    activity = report.activity
    trainee = Trainee.build(recipe, data, choose_device(recipe, 0))
    trainee.seed_worker(0)
    recipe, flat = trainee.recipe, trainee.flat
    layout = recipe.layout(flat.size, workers, shards)
    cluster_shards = LocalShards(layout, ShardConfig(recipe.update, policy=recipe.shard))
    for shard in cluster_shards.shards:
        shard.activity = activity
    journal, validation = trainee.open_run(run, workers, shards, "none")
    corpus = TokenCorpus(data, "train")
    loaders = [Loader(corpus, recipe.loader, worker, workers) for worker in range(workers)]
    losses: list[tuple[float, int]] = [(0.0, 1)]

    def gradient_of(worker: int, replica: Tensor, gradient: Tensor) -> BatchCounts | None:
        batch = loaders[worker].next_batch()
        if batch is None:
            return None
        flat.values.copy_(replica)
        with activity("compute"):
            counts = trainee.add_gradient(batch)  # into flat.gradients = gradient
        losses[0] = (counts.loss_sum, counts.target_words)
        return counts

    def local() -> LocalOptimizer:
        return LocalOptimizer(flat.size, recipe.worker.local, recipe.schedule, recipe.worker.clip_norm, flat.values.device)

    local_of = local if recipe.worker.local.mode != "off" else None
    cluster = VirtualCluster(cluster_shards, recipe.worker, recipe.clock, gradient_of, flat.values, flat.gradients, local_of)
    report.counters = lambda: shard_counters(cluster_shards.shards[0]) | {"dropped_windows": cluster.dropped}
    next_validation = recipe.validation.every_words
    snapshot = torch.empty_like(flat.values)
    while cluster.words < recipe.training.max_target_words and not validation.should_stop and not cluster.finished:
        cluster.step()
        journal.training(cluster.words, losses[0][0] / losses[0][1], {"simulated_s": cluster.now_s})
        if cluster.words >= next_validation:
            next_validation = cluster.words + recipe.validation.every_words
            cluster_shards.parameters(snapshot)
            with activity("validate"):
                validation.evaluate(snapshot, cluster.words, clock={"simulated_s": cluster.now_s})
            if validation.has_stalled:
                cluster_shards.note_stall()
    cluster_shards.step_rest()
    cluster_shards.parameters(snapshot)
    with activity("validate"):
        validation.evaluate(snapshot, cluster.words, final=True, clock={"simulated_s": cluster.now_s})
    staleness = {str(k): v for k, v in sorted(cluster_shards.shards[0].staleness.items())}
    figures = {"simulated_s": cluster.now_s, "staleness": staleness, "dropped_windows": cluster.dropped}
    end_run(journal, validation, cluster.words, loaders, figures)
