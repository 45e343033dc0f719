"""Training in one process: the plain loop (what asynchrony is compared with) and virtual time (any number of logical workers)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.virtual import LocalShards, VirtualCluster
from hpcnmt.distributed.worker import BatchCounts, sum_counts
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import GradientWindow
from hpcnmt.training.journal import Journal
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.setup import Trainee, choose_device
from hpcnmt.training.validation import Validation


def _end(journal: Journal, validation: Validation, words: int, loaders: list[Loader], extra: dict[str, object]) -> None:
    """The last record: seconds of training are those without validation."""
    train_s = journal.seconds - validation.seconds
    waiting, source_words = (sum(getattr(loader, name) for loader in loaders) for name in ("wait_s", "source_words"))
    ratio = source_words / max(sum(loader.words for loader in loaders) - source_words, 1)
    rates = {
        "train_s": train_s, "validating_s": validation.seconds, "target_words_per_s": words / train_s,
        "source_words_per_s": words * ratio / train_s, "total_words_per_s": words * (1 + ratio) / train_s,
    }  # fmt: skip
    journal.record("end", words, rates | {"loader_wait_s": waiting, "padding_share": loaders[0].padding_share} | extra)
    for loader in loaders:
        loader.close()
    journal.close()


def train_plain(recipe: Recipe, data: Path, run: Path) -> None:
    """tau batches, one update, in this process: the same model, batches, clipping and update rule as the engine's."""
    trainee = Trainee.build(recipe, data, choose_device(recipe, 0))
    trainee.seed_worker(0)
    recipe, flat = trainee.recipe, trainee.flat
    journal, validation = trainee.open_run(run, 1, 0, "none")
    loader = Loader(TokenCorpus(data, "train"), recipe.loader, 0, 1)
    update = Update(flat.size, recipe.update, flat.values.device)
    update.start(flat.values)
    window, wire = GradientWindow(flat.gradients, recipe.worker.clip_norm), torch.empty_like(flat.gradients)
    next_validation = recipe.validation.every_words
    while update.words < recipe.training.max_target_words and not validation.should_stop:
        total = sum_counts([trainee.add_gradient(loader.next_batch()) for _ in range(recipe.worker.delay)])
        if window.seal(wire, total.target_words):
            update.apply(flat.values, wire, total.target_words)
        journal.training(update.words, total.loss_sum / total.target_words)
        if update.words >= next_validation:
            next_validation = update.words + recipe.validation.every_words
            validation.evaluate(update.published(flat.values), update.words)
    validation.evaluate(update.published(flat.values), update.words, final=True)
    _end(journal, validation, update.words, [loader], {"dropped_windows": window.dropped})


def train_virtual(recipe: Recipe, data: Path, run: Path, workers: int, shards: int) -> None:
    """Logical workers on a simulated clock; see distributed/virtual.py."""
    trainee = Trainee.build(recipe, data, choose_device(recipe, 0))
    trainee.seed_worker(0)
    recipe, flat = trainee.recipe, trainee.flat
    layout = Layout(flat.size, workers, shards, recipe.training.ring_slots, recipe.training.wire)
    cluster_shards = LocalShards(layout, ShardConfig(recipe.update))
    journal, validation = trainee.open_run(run, workers, shards, "none")
    corpus = TokenCorpus(data, "train")
    loaders = [Loader(corpus, recipe.loader, worker, workers) for worker in range(workers)]
    losses: list[tuple[float, int]] = [(0.0, 1)]

    def gradient_of(worker: int, replica: Tensor, gradient: Tensor) -> BatchCounts:
        flat.values.copy_(replica)
        counts = trainee.add_gradient(loaders[worker].next_batch())  # into flat.gradients = gradient
        losses[0] = (counts.loss_sum, counts.target_words)
        return counts

    def local() -> LocalOptimizer:
        return LocalOptimizer(flat.size, recipe.worker.local, recipe.schedule, recipe.worker.clip_norm, flat.values.device)

    local_of = local if recipe.worker.local.mode != "off" else None
    cluster = VirtualCluster(cluster_shards, recipe.worker, recipe.clock, gradient_of, flat.values, flat.gradients, local_of)
    next_validation = recipe.validation.every_words
    snapshot = torch.empty_like(flat.values)
    while cluster.words < recipe.training.max_target_words and not validation.should_stop:
        cluster.step()
        journal.training(cluster.words, losses[0][0] / losses[0][1], {"simulated_s": cluster.now_s})
        if cluster.words >= next_validation:
            next_validation = cluster.words + recipe.validation.every_words
            cluster_shards.parameters(snapshot)
            validation.evaluate(snapshot, cluster.words)
    cluster_shards.parameters(snapshot)
    validation.evaluate(snapshot, cluster.words, final=True)
    staleness = {str(k): v for k, v in sorted(cluster_shards.shards[0].staleness.items())}
    figures = {"simulated_s": cluster.now_s, "staleness": staleness, "dropped_windows": cluster.dropped}
    _end(journal, validation, cluster.words, loaders, figures)
