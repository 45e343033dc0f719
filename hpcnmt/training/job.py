"""The training job of one rank: a shard serves, a worker trains; worker 0 also validates and writes the run folder.

Called by `hpcnmt train` on every rank of the world. No collective and no barrier between start and end.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sacrebleu
import torch

from hpcnmt.data.corpus import TokenCorpus, read_description
from hpcnmt.data.loader import Loader, ordered_batches
from hpcnmt.data.textio import read_lines
from hpcnmt.data.vocabulary import Vocabulary
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.worker import BatchCounts, WorkerLoop
from hpcnmt.inference.beam import BeamConfig
from hpcnmt.inference.translate import translate_lines
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import Seq2Seq
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.training.recipe import Recipe, RunFolder


def log(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


class Validation:
    """Cross-entropy per word, BLEU and chrF on the validation split; keeps the best model by cross-entropy."""

    def __init__(self, model: Seq2Seq, flat: FlatParameters, data: Path, run: RunFolder) -> None:
        self.model, self.flat, self.run = model, flat, run
        self.corpus, self.vocabulary = TokenCorpus(data, "valid"), Vocabulary(data / "vocab.model")
        self.sources, self.references = (list(read_lines(data / f"valid.{side}.txt")) for side in ("source", "target"))
        self.best = float("inf")

    def evaluate(self, snapshot: torch.Tensor, words: int, seconds: float) -> None:
        """Validates the parameters `snapshot`; the replica is put back afterwards."""
        replica = self.flat.values.clone()
        self.flat.values.copy_(snapshot)
        self.model.eval()
        loss, count = 0.0, 0
        for batch in ordered_batches(self.corpus, 2000):
            arguments = (batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths)
            loss += float(self.model.sentence_cross_entropy(*arguments).sum())
            count += batch.target_words
        hypotheses = [h[0].text for h in translate_lines(self.model, self.vocabulary, self.sources, BeamConfig(beam=1))]
        bleu, chrf = sacrebleu.corpus_bleu(hypotheses, [self.references]), sacrebleu.corpus_chrf(hypotheses, [self.references])
        entropy = loss / count
        if entropy < self.best:
            self.best = entropy
            self.run.save_model(self.flat.named_views(self.flat.values))
        self.model.train()
        self.flat.values.copy_(replica)
        record = {"kind": "validation", "target_words": words, "seconds": round(seconds, 2), "cross_entropy": entropy}
        self.run.append(record | {"bleu": bleu.score, "chrf": chrf.score})
        log(f"validation at {words} words: cross-entropy {entropy:.4f} nats/word, BLEU {bleu.score:.2f}, chrF {chrf.score:.2f}")


def run_rank(recipe: Recipe, data: Path, run: Path, workers: int, shards: int) -> None:
    """The whole life of this rank."""
    check_world(workers, shards)
    torch.set_num_threads(recipe.training.threads)
    description = read_description(data)
    recipe = replace(recipe, model=replace(recipe.model, vocabulary_size=int(description["vocabulary_size"])))
    model = build_model(recipe.model, recipe.training.seed)
    flat = FlatParameters(model)
    layout = Layout(flat.size, workers, shards)
    check_memory(layout)
    windows = MpiWindows(layout, recipe.deadlines)
    rank = windows.comm.rank
    if rank >= workers:
        config = ShardConfig(recipe.optimizer, recipe.schedule, recipe.training.ema_decay, recipe.training.validate_every_words)
        shard = windows.serve(config)
        shares = {str(k): v for k, v in sorted(shard.staleness.items())}
        with (run / f"shard-{shard.index}.json").open("w", encoding="utf-8") as stream:
            json.dump({"updates": shard.version, "target_words": shard.words, "staleness": shares}, stream)
    else:
        torch.manual_seed(recipe.training.seed * 1000 + rank)  # dropout differs between workers
        folder = RunFolder.create(run, asdict(recipe), data / "vocab.model") if rank == 0 else None
        _train(recipe, model, flat, Exchange(windows, rank, recipe.deadlines), data, folder)
    windows.free()


def _train(
    recipe: Recipe, model: Seq2Seq, flat: FlatParameters, exchange: Exchange, data: Path, folder: RunFolder | None
) -> None:  # fmt: skip
    loader = Loader(TokenCorpus(data, "train"), recipe.loader, exchange.worker, exchange.transport.layout.workers)
    source_words = 0

    def compute() -> BatchCounts:
        nonlocal source_words
        batch = loader.next_batch()
        loss, entropy = model.loss_sum(batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths)
        torch.autograd.backward(loss)
        source_words += batch.source_words
        return BatchCounts(batch.target_words, batch.source_words, len(batch.sentence_ids), float(entropy))

    loop = WorkerLoop(exchange, recipe.worker, flat.values, flat.gradients, compute)
    validation = Validation(model, flat, data, folder) if folder else None
    loop.start(initial=exchange.worker == 0)
    begin, own_words, validating_s, next_report = time.monotonic(), 0, 0.0, 0.0
    while exchange.global_words < recipe.training.max_target_words:
        counts = loop.window()
        own_words += counts.target_words
        if validation is None or folder is None:
            continue
        seconds = time.monotonic() - begin
        if seconds >= next_report:
            next_report = seconds + 5.0
            loss = counts.loss_sum / counts.target_words
            folder.append({"kind": "training", "target_words": exchange.global_words, "seconds": round(seconds, 2), "cross_entropy": loss})
            share = exchange.global_words / recipe.training.max_target_words
            log(f"{share:6.1%}  {exchange.global_words} words  {exchange.global_words / seconds:.0f} words/s  {loss:.3f} nats/word")
        loop.complete()
        if exchange.snapshot_ready() > exchange.snapshot_read:
            snapshot = torch.empty_like(flat.values)
            loop.call(exchange.read_snapshot, snapshot)
            paused = time.monotonic()
            validation.evaluate(snapshot, exchange.global_words, seconds)
            validating_s += time.monotonic() - paused
    train_s = time.monotonic() - begin
    loop.finish()
    if validation is not None and folder is not None:
        snapshot = torch.empty_like(flat.values)
        loop.call(exchange.read_snapshot, snapshot)
        validation.evaluate(snapshot, exchange.global_words, time.monotonic() - begin)
        ratio = source_words / max(own_words, 1)
        summary: dict[str, Any] = {
            "kind": "end", "target_words": exchange.global_words, "train_s": train_s, "validating_s": validating_s,
            "target_words_per_s": exchange.global_words / train_s, "source_words_per_s": exchange.global_words * ratio / train_s,
            "exchange_wait_s": exchange.wait_s, "loader_wait_s": loader.wait_s, "padding_share": loader.padding_share,
            "rejected_pulls": exchange.rejected_pulls,
        }  # fmt: skip
        folder.append(summary)
    loop.close()
    loader.close()
