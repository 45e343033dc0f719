"""Asynchronous training over MPI, one rank: a shard serves; a worker trains windows; worker 0 also validates the consistent cuts.

Validation goes on between two windows of worker 0 while the other workers train. No collective and no barrier between start and end.
Checkpoints (checkpoint.py): every rank takes its state where a cut of kind SAVE stands: a shard when it has applied the last push before
the cut, a worker after the window that made this push. A signal on any rank lets shard 0 raise a last cut, after which all leave.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed import shard_state
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import CUT, END, SAVE, VALIDATE, cut_number
from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world, ranks_of_this_host
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.shard_state import ShardState
from hpcnmt.distributed.worker import BatchCounts, WorkerLoop
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.training.checkpoint import Committer, Saver, mark_failed, random_state, restore_random_state
from hpcnmt.training.checkpoint_files import Checkpoint, part_folder, remove_temporary
from hpcnmt.training.divergence import LossMonitor
from hpcnmt.training.exits import FAILED, FINISHED, SAVED
from hpcnmt.training.journal import Journal
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.record import RecordFormat, recording
from hpcnmt.training.resume import Resumed, common_checkpoint, readable
from hpcnmt.training.setup import Trainee, check_sizes, choose_device
from hpcnmt.training.signals import EndRequest
from hpcnmt.training.status import Counters, RankReport, rank_report, shard_counters
from hpcnmt.training.validation import Interrupted, Validation

REJECTS_WORTH_A_WORD = 0.02
"""Repeated pulls for each good one, above which the run says what to change."""


def run_rank(recipe: Recipe, data: Path, run: Path, workers: int, shards: int, resume: bool = False) -> int:
    """The whole life of this rank; returns its exit code: SAVED on rank 0 of a run that a signal has ended."""
    check_world(workers, shards)
    rank = MPI.COMM_WORLD.rank
    role, index = ("worker", rank) if rank < workers else ("shard", rank - workers)
    activity = Activity(role, index, recipe.training.trace)
    with EndRequest(recipe.checkpoint.before_limit_s, rank == 0, rank == 0) as request, rank_report(run, activity, rank, resume) as report:
        neighbours = ranks_of_this_host()
        if rank == 0:
            check_sizes(recipe, data, workers, shards)
        checkpoint = _common_checkpoint(run, recipe, resume, f"{role}-{index}")
        if checkpoint is not None and recipe.training.record and len(checkpoint.names) != workers + shards:
            raise ValueError(
                f"found training.record=true and {workers} workers + {shards} shards, expected those of the record of {run}: "
                "resume with as many, or with training.record=false"
            )
        device = choose_device(recipe, neighbours.index(rank)) if role == "worker" else None
        trainee = Trainee.build(recipe, data, device)
        layout = recipe.layout(trainee.flat.size, workers, shards)
        if rank == 0:
            print(layout.memory_text(), file=sys.stderr, flush=True)  # before it is allocated
        check_memory(layout, neighbours)
        windows = MpiWindows(layout, recipe.deadlines, report.activity)
        saver = Saver(run, f"{role}-{index}")
        if role == "shard":
            code = _serve(windows, recipe, run, report, _Saving(saver, request, checkpoint))
        else:
            trainee.seed_worker(rank)
            worker = _Worker(trainee, Exchange(windows, rank, recipe.deadlines), run, report, _Saving(saver, request, checkpoint))
            form = RecordFormat("worker", rank, layout)
            with recording(run, form, recipe.training.record, worker.facts.get("record", 0)) as log:
                worker.loop.log, worker.recorded = log, log.position
                code = worker.train()
        report.freeze_counters()  # those of a shard look at its window memory
        with report.activity("wait", "the end of all ranks"):
            windows.free()
        if rank == 0:
            remove_temporary(run)  # of checkpoints that were given up
    return code


def _predecessor(worker: int, checkpoint: Checkpoint) -> str:
    """The part whose local optimizer `worker` goes on with: its own, where there was such a worker."""
    names = checkpoint.names_of("worker")
    return names[worker % len(names)]


def _common_checkpoint(run: Path, recipe: Recipe, resume: bool, name: str) -> Checkpoint | None:
    """What all ranks go on from, with the parts that the rank `name` needs: a shard those of all shards, of which its slice is cut."""

    def needed(checkpoint: Checkpoint) -> list[str]:
        if name.startswith("shard-"):
            return checkpoint.names_of("shard")
        return [_predecessor(int(name.removeprefix("worker-")), checkpoint)]

    world = MPI.COMM_WORLD
    return common_checkpoint(run, recipe, resume, world.rank, world.bcast, lambda well: world.allreduce(well, MPI.LAND), needed)


@dataclass(frozen=True)
class _Saving:
    """What a rank needs to save, to end, and to go on: `checkpoint` is the one that the run was resumed from."""

    saver: Saver
    request: EndRequest
    checkpoint: Checkpoint | None


def _serve(windows: MpiWindows, recipe: Recipe, run: Path, report: RankReport, saving: _Saving) -> int:
    def watch(shard: Shard) -> None:
        report.counters, shard.log = lambda: shard_counters(shard), log
        shard.is_asked_to_end = lambda: saving.request.requested
        shard.save = lambda word: _save_shard(shard, word, saving.saver, log.position())
        if checkpoint is not None:
            with readable(checkpoint):
                shard_state.load(shard, states)

    torch.set_num_threads(1)
    checkpoint, index, layout = saving.checkpoint, windows.shard_index, windows.layout
    states = [ShardState(part.tensors, part.facts) for part in map(checkpoint.read, checkpoint.names_of("shard"))] if checkpoint else []
    config = ShardConfig(recipe.update, recipe.validation.every_words, recipe.deadlines.cut_s, recipe.shard, recipe.checkpoint.every_s)
    position = int(states[index].facts["record"]) if states and recipe.training.record else 0
    with recording(run, RecordFormat("shard", index, layout), recipe.training.record, position) as log:
        shard = windows.serve(config, watch=watch)
    raised = int(shard.memory.control[CUT])
    if raised & SAVE and cut_number(raised) not in [number for number, _ in shard.cuts]:  # nobody was left to mark it
        mark_failed(part_folder(run, cut_number(raised)), saving.saver.name)
    saving.saver.close()
    staleness = {str(k): v for k, v in sorted(shard.staleness.items())}
    untouched = shard.update.rule.untouched
    figures = {"updates": shard.steps, "target_words": shard.words, "staleness": staleness, "untouched_elements": untouched}
    (run / f"shard-{shard.index}.json").write_text(json.dumps(figures) + "\n", "utf-8")
    return FINISHED


def _save_shard(shard: Shard, word: int, saver: Saver, record: int) -> None:
    state = shard_state.live_state(shard, word)
    saver.take(cut_number(word), state.tensors, state.facts | {"record": record}, must=bool(word & END))


class _Worker:
    def __init__(self, trainee: Trainee, exchange: Exchange, run: Path, report: RankReport, saving: _Saving) -> None:
        self.trainee, self.exchange, self.activity, self.saving = trainee, exchange, report.activity, saving
        exchange.activity = report.activity
        layout, flat = exchange.transport.layout, trainee.flat
        names = [f"worker-{index}" for index in range(layout.workers)] + [f"shard-{index}" for index in range(layout.shards)]
        config, schedule = trainee.recipe.worker, trainee.recipe.schedule
        local = None
        if config.local.mode != "off":
            local = LocalOptimizer(flat.size, config.local, schedule, config.clip_norm, flat.values.device)
        self.loop = WorkerLoop(exchange, config, flat.values, flat.gradients, self._compute, local)
        self.loop.sentence_ids = lambda: self.loader.last_sentence_ids
        self.source_words = self.target_words = self.windows = 0
        self.recorded: Callable[[], int] = lambda: 0
        """Windows in the record so far."""
        self.monitor = LossMonitor(trainee.recipe.divergence)
        self.validation_due = False  # whether the newest snapshot is to be validated although its cut was made for something else
        self.ended = False  # whether the last cut of a run that will be resumed has been marked
        report.counters = self._counters
        self.committer = Committer(run, names, trainee.recipe.checkpoint.keep, trainee.recipe.deadlines.peer_s)
        tensors, self.facts = self._resumed()
        self.loader = self._open_loader()
        self.journal: Journal | None = None
        self.validation: Validation | None = None
        if exchange.worker == 0:
            self._open_run(run)
        with report.activity("wait", "the first parameters"):
            self._begin(tensors)

    def _open_run(self, run: Path) -> None:
        layout, checkpoint = self.exchange.transport.layout, self.saving.checkpoint
        library = MPI.Get_library_version().splitlines()[0].strip("\0")
        resumed = Resumed.of(checkpoint) if checkpoint else None
        self.journal, self.validation = self.trainee.open_run(run, layout.workers, layout.shards, library, resumed)
        self.validation.is_interrupted = lambda: self.saving.request.requested
        self.exchange.ask_to_stop = self.validation.should_stop
        remove_temporary(run)  # nobody writes a part before this worker has begun

    def _resumed(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """What this worker goes on from: tensors and facts of its own where the run had as many workers, else the little that all share."""
        checkpoint, layout = self.saving.checkpoint, self.exchange.transport.layout
        if checkpoint is None:
            return {}, {}
        if len(checkpoint.names_of("worker")) != layout.workers:
            first = checkpoint.facts("worker-0")
            mine = {"stalls": first["stalls"]} | ({} if self.exchange.worker else {"validation_due": first["validation_due"]})
            torch.manual_seed(self.trainee.recipe.training.seed * 1000 + self.exchange.worker + 1_000_003 * checkpoint.number)
            name = _predecessor(self.exchange.worker, checkpoint)
            if "local" not in checkpoint.facts(name):
                return {}, mine
            part = checkpoint.read(name)
            return {moment: part.tensors[moment] for moment in ("moment1", "moment2")}, mine | {"local": part.facts["local"]}
        part = checkpoint.read(self.saving.saver.name)
        restore_random_state(part.tensors)
        same_shards = len(checkpoint.names_of("shard")) == layout.shards
        return part.tensors, part.facts | ({} if same_shards else {"sequence": 0})

    def _open_loader(self) -> Loader:
        checkpoint, layout = self.saving.checkpoint, self.exchange.transport.layout
        corpus, config, mine = TokenCorpus(self.trainee.data, "train"), self.trainee.recipe.loader, self.exchange.worker
        if checkpoint is None:
            return Loader(corpus, config, mine, layout.workers)
        states = [checkpoint.facts(name)["loader"] for name in checkpoint.names_of("worker")]
        return Loader.resumed(corpus, config, mine, layout.workers, states)

    def _begin(self, tensors: Mapping[str, Tensor]) -> None:
        if self.saving.checkpoint is None:
            self.loop.start(initial=self.exchange.worker == 0)
            return
        counted = (self.facts.get(name, 0) for name in ("source_words", "target_words", "windows"))
        self.source_words, self.target_words, self.windows = counted
        self.validation_due = self.facts.get("validation_due", False)
        if "monitor" in self.facts:
            self.monitor.load(self.facts["monitor"])
        for name, seconds in self.facts.get("activity", {}).items():
            self.activity.seconds[name] += seconds
        cut = int(self.saving.checkpoint.facts("shard-0")["cut"])
        with readable(self.saving.checkpoint):
            self.loop.resume(tensors, self.facts, cut, cut - 1 if self.validation_due else cut)

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

    def train(self) -> int:
        """All windows, then the orderly end; worker 0 validates the final snapshot, unless the run will be resumed. The exit code."""
        exchange, loop = self.exchange, self.loop
        while loop.replica_words < self.trainee.recipe.training.max_target_words and not loop.stopped:
            exchange.ask_to_end = self.saving.request.requested or exchange.end_wanted
            counts = loop.window()
            if loop.out_of_data:
                break
            self.windows += 1
            self._report(counts)
            self.monitor.after(counts.loss_sum / counts.target_words, loop.replica_words)
            if loop.cut & SAVE:
                self._save(loop.cut)
            if loop.cut & END:
                self.ended = True
                break
            if loop.snapshot > exchange.snapshot_read:
                self._read_cut()
        seconds = self.journal.seconds if self.journal else 0.0
        loop.complete()
        shares = self.activity.shares(seconds) if seconds else {}
        with self.activity("wait", "the end of all workers" if exchange.worker == 0 else "the shards to take the farewell"):
            loop.finish(None if self.ended else self._save_while_waiting)
        if self.journal is not None and not self.ended:
            self._end(self.journal.seconds if loop.out_of_data else seconds, shares)  # others may have trained on
        self.saving.saver.close()
        code = self._code()
        if self.journal is not None:
            self.journal.close()
        loop.close()
        self.loader.close()
        return code

    def _code(self) -> int:
        if not self.ended or self.journal is None:
            return FINISHED
        number = cut_number(self.exchange.cut_marked)
        if self.committer.committed == number:
            reason = self.saving.request.reason or "another rank was told to end"
            self.journal.say(f"saved checkpoint {number} ({reason}): go on with --resume")
            return SAVED
        return FAILED

    def _report(self, counts: BatchCounts) -> None:
        if self.journal is None:
            return
        waits = {"wait_s": self.activity.seconds["wait"], "loader_wait_s": self.loader.wait_s}
        waits |= {"rejected_pulls": self.exchange.rejected_pulls, "dropped_windows": self.loop.sum.dropped}
        self.journal.training(self.exchange.global_words, counts.loss_sum / counts.target_words, waits)

    def _save(self, cut: int) -> None:
        """Takes the state after the window that was the last before `cut`; worker 0 also waits, in the background, for all others."""
        number, facts = cut_number(cut), self.loop.facts() | {
            "windows": self.windows, "source_words": self.source_words, "target_words": self.target_words,
            "loader": self.loader.state(), "monitor": self.monitor.state(), "record": self.recorded(),
        }  # fmt: skip
        links: dict[str, Path] = {}
        if self.journal is not None and self.validation is not None:
            due = bool(cut & VALIDATE) or self.validation_due
            facts |= {"validation_due": due, "journal": self.journal.facts(), "validation": self.validation.facts()}
            facts["activity"] = dict(self.activity.seconds)
            links = self.committer.link_best(number) if cut & END or not self.saving.saver.is_busy else {}

        def commit() -> None:
            if self.journal is not None:
                self.committer.commit(number, links, None, lambda: self.exchange.cut_cancelled >= cut)

        self.saving.saver.take(number, self.loop.tensors() | random_state(), facts, bool(cut & END), commit)

    def _save_while_waiting(self) -> None:
        """A worker that has left has no push to mark a cut with, but belongs into its checkpoint as long as others train."""
        cut = self.exchange.new_cut_while_waiting()
        if cut & SAVE:
            self._save(cut)
        if cut & END and self.loop.out_of_data:  # others have not come to the end
            self.ended = True

    def _read_cut(self) -> None:
        if self.validation is None:
            return
        if self.loop.snapshot & VALIDATE or self.validation_due:
            self._validate()
        else:
            self.exchange.skip_snapshot()

    def _validate(self, final: bool = False) -> None:
        if self.validation is None:
            return
        snapshot = torch.empty(self.trainee.flat.size)
        self.loop.call(self.exchange.read_snapshot, snapshot)
        self.validation_due = True
        try:
            with self.activity("validate"):
                self.validation.evaluate(snapshot, self.exchange.snapshot_words, final)
        except Interrupted:
            return  # it is due still, and will be made after the run is resumed
        self.validation_due = False
        self.exchange.ask_to_stop = self.validation.should_stop
        self.exchange.stalls += self.validation.has_stalled

    def _end(self, train_s: float, shares: dict[str, float]) -> None:
        if self.journal is None or self.validation is None:
            return
        validating_s = self.validation.seconds
        self.validation.is_interrupted = lambda: False  # nothing is left to save: what was asked to end does so by itself
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
