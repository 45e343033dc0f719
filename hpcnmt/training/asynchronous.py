"""Asynchronous training over MPI, one rank: a shard serves; a worker trains windows; worker 0 also validates the consistent cuts.

Validation goes on between two windows of worker 0 while the other workers train. No collective and no barrier between start and end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mpi4py import MPI

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world, ranks_of_this_host
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.worker import BatchCounts, WorkerLoop
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.record import RecordFormat, recording
from hpcnmt.training.run_folder import refuse_existing
from hpcnmt.training.setup import Trainee, check_sizes, choose_device
from hpcnmt.training.status import Counters, RankReport, rank_report, shard_counters

REJECTS_WORTH_A_WORD = 0.02
"""Repeated pulls for each good one, above which the run says what to change."""


def run_rank(recipe: Recipe, data: Path, run: Path, workers: int, shards: int) -> None:
    """The whole life of this rank."""
    check_world(workers, shards)
    rank = MPI.COMM_WORLD.rank
    role, index = ("worker", rank) if rank < workers else ("shard", rank - workers)
    with rank_report(run, Activity(role, index, recipe.training.trace), rank) as report:
        neighbours = ranks_of_this_host()
        if rank == 0:  # the others wait for it where windows are allocated
            refuse_existing(run)
            check_sizes(recipe, data, workers, shards)
        device = choose_device(recipe, neighbours.index(rank)) if role == "worker" else None
        trainee = Trainee.build(recipe, data, device)
        layout = recipe.layout(trainee.flat.size, workers, shards)
        if rank == 0:
            print(layout.memory_text(), file=sys.stderr, flush=True)  # before it is allocated
        check_memory(layout, neighbours)
        windows = MpiWindows(layout, recipe.deadlines, report.activity)
        if role == "shard":
            _serve(windows, recipe, run, report)
        else:
            trainee.seed_worker(rank)
            worker = _Worker(trainee, Exchange(windows, rank, recipe.deadlines), run, report)
            with recording(run, RecordFormat("worker", rank, layout), recipe.training.record) as worker.loop.log:
                worker.train()
        report.freeze_counters()  # those of a shard look at its window memory
        with report.activity("wait", "the end of all ranks"):
            windows.free()


def _serve(windows: MpiWindows, recipe: Recipe, run: Path, report: RankReport) -> None:
    def watch(shard: Shard) -> None:
        report.counters, shard.log = lambda: shard_counters(shard), log

    torch.set_num_threads(1)
    config = ShardConfig(recipe.update, recipe.validation.every_words, recipe.deadlines.cut_s, recipe.shard)
    with recording(run, RecordFormat("shard", windows.shard_index, windows.layout), recipe.training.record) as log:
        shard = windows.serve(config, watch=watch)
    staleness = {str(k): v for k, v in sorted(shard.staleness.items())}
    untouched = shard.update.adam.untouched
    figures = {"updates": shard.steps, "target_words": shard.words, "staleness": staleness, "untouched_elements": untouched}
    (run / f"shard-{shard.index}.json").write_text(json.dumps(figures) + "\n", "utf-8")


class _Worker:
    def __init__(self, trainee: Trainee, exchange: Exchange, run: Path, report: RankReport) -> None:
        self.trainee, self.exchange, self.activity = trainee, exchange, report.activity
        exchange.activity = report.activity
        layout = exchange.transport.layout
        self.loader = Loader(TokenCorpus(trainee.data, "train"), trainee.recipe.loader, exchange.worker, layout.workers)
        flat = trainee.flat
        config, schedule = trainee.recipe.worker, trainee.recipe.schedule
        local = None
        if config.local.mode != "off":
            local = LocalOptimizer(flat.size, config.local, schedule, config.clip_norm, flat.values.device)
        self.loop = WorkerLoop(exchange, config, flat.values, flat.gradients, self._compute, local)
        self.source_words = self.target_words = self.windows = 0
        report.counters = self._counters
        self.journal, self.validation = None, None
        if exchange.worker == 0:
            library = MPI.Get_library_version().splitlines()[0].strip("\0")
            self.journal, self.validation = trainee.open_run(run, layout.workers, layout.shards, library)

    def _compute(self) -> BatchCounts | None:
        batch = self.loader.next_batch()
        if batch is None:
            return None
        counts = self.trainee.add_gradient(batch)
        self.source_words += counts.source_words
        self.target_words += counts.target_words
        return counts

    def _counters(self) -> Counters:
        exchange = self.exchange
        return {
            "windows": self.windows, "target_words": self.target_words, "global_words": exchange.global_words,
            "versions": exchange.versions, "rejected_pulls": exchange.rejected_pulls, "dropped_windows": self.loop.sum.dropped,
        }  # fmt: skip

    def train(self) -> None:
        """All windows, then the orderly end; worker 0 validates the final snapshot."""
        exchange, loop = self.exchange, self.loop
        loop.start(initial=exchange.worker == 0)
        while exchange.global_words < self.trainee.recipe.training.max_target_words and not exchange.stopped:
            counts = loop.window()
            if loop.out_of_data:
                break
            self.windows += 1
            if self.journal is not None:
                waits = {"wait_s": self.activity.seconds["wait"], "loader_wait_s": self.loader.wait_s}
                waits |= {"rejected_pulls": exchange.rejected_pulls, "dropped_windows": loop.sum.dropped}
                self.journal.training(exchange.global_words, counts.loss_sum / counts.target_words, waits)
            if exchange.snapshot_available > exchange.snapshot_read:
                self._validate()
        seconds = self.journal.seconds if self.journal else 0.0
        loop.complete()
        shares = self.activity.shares(seconds) if seconds else {}
        with self.activity("wait", "the end of all workers" if exchange.worker == 0 else "the shards to take the farewell"):
            loop.finish()
        if self.journal is not None:
            self._end(self.journal.seconds if loop.out_of_data else seconds, shares)  # others may have trained on
            self.journal.close()
        loop.close()
        self.loader.close()

    def _validate(self, final: bool = False) -> None:
        if self.validation is None:
            return
        self.loop.complete()
        snapshot = torch.empty(self.trainee.flat.size)
        self.loop.call(self.exchange.read_snapshot, snapshot)
        with self.activity("validate"):
            self.validation.evaluate(snapshot, self.exchange.snapshot_words, final)
        self.exchange.ask_to_stop = self.validation.should_stop
        self.exchange.stalls += self.validation.has_stalled

    def _end(self, train_s: float, shares: dict[str, float]) -> None:
        if self.journal is None or self.validation is None:
            return
        validating_s = self.validation.seconds
        self._validate(final=True)
        words, ratio = self.exchange.snapshot_words, self.source_words / max(self.target_words, 1)
        values = {
            "train_s": train_s, "validating_s": validating_s, "target_words_per_s": words / train_s,
            "source_words_per_s": words * ratio / train_s, "total_words_per_s": words * (1 + ratio) / train_s,
            "shares": shares, "loader_wait_s": self.loader.wait_s, "padding_share": self.loader.padding_share,
            "rejected_pulls": self.exchange.rejected_pulls, "dropped_windows": self.loop.sum.dropped,
        }  # fmt: skip
        self.journal.record("end", words, values)
        if self.exchange.rejected_pulls > REJECTS_WORTH_A_WORD * self.exchange.pulls:
            self.journal.say(
                f"{self.exchange.rejected_pulls} pulls of a slice, beside {self.exchange.pulls} good ones, were overrun by updates: "
                "raise training.ring_slots"
            )
