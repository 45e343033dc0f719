"""What workers lose to checkpoints: the real engine over MPI with simulated compute, as `hpcnmt bench throughput` has it, and real state.

    python benchmarks/checkpoint_idle.py WORK [--cuts 20] [--every-s 5] [--workers 2] [--shards 2] [--parameters 10e6] [--batch-s 0.4]

Shard 0 raises a cut every few seconds; every rank copies its state there and its Saver writes it beside training, as asynchronous.py
does. Paired: of the windows from one cut to the next, the first half (in which the push is held, the state copied and written) is compared
with the second half; what it takes longer is what this cut has cost that worker. Its parts: `worker_copy` (the worker takes its own state),
`wait` (pushes held by the cut; the shards' copies are in it, see `shard_copy_s`) and `beside` (everything else: writing takes processor,
memory and disk away). A cut costs the mean over its workers; the figure is the median over cuts, as a share of MINUTE_S between two of
them. Target: below 0.01. The first cut, whose copies take fresh memory, is left out. Measure on a quiet machine with a core for each rank.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import ROOT, write_result

from hpcnmt.bench.launch import launch
from hpcnmt.bench.simulated import SimulatedCompute
from hpcnmt.distributed import shard_state
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.layout import SAVE, Layout, cut_number, default_ring_slots
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.worker import WorkerConfig, WorkerLoop
from hpcnmt.optim.update import UpdateConfig
from hpcnmt.training.checkpoint import CheckpointConfig, Committer, Saver, random_state
from hpcnmt.training.checkpoint_files import newest_complete

MINUTE_S = 60.0
"""Seconds between two checkpoints that the share is of."""
BATCH_WORDS = 2000
BESIDE_THE_PERIODS = 2
"""Cuts more than are measured: the first one, and one that ends the last period."""
LEAST_WINDOWS = 4
"""Of a period: two halves of two."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and where checkpoints are written."""

    run: str
    workers: int
    shards: int
    parameters: int
    batch_s: float
    every_s: float
    cuts: int

    @property
    def names(self) -> list[str]:
        """The parts of a checkpoint."""
        return [f"worker-{index}" for index in range(self.workers)] + [f"shard-{index}" for index in range(self.shards)]


@dataclass
class Windows:
    """Seconds of every window of a worker, with what came after it until the next one."""

    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)  # of the worker's own state
    cuts: list[int] = field(default_factory=list)  # the windows that were the last before a cut

    def costs(self) -> list[dict[str, float]]:
        """Of every cut but the first and the last: the first half of its windows against the second one."""
        return [self._cost(begin, end) for begin, end in zip(self.cuts[1:-1], self.cuts[2:], strict=True)]

    def _cost(self, begin: int, end: int) -> dict[str, float]:
        if end - begin < LEAST_WINDOWS:
            raise RuntimeError(f"found {end - begin} windows between two cuts, expected at least {LEAST_WINDOWS}: raise --every-s")
        middle = begin + (end - begin) // 2
        lost, wait = self._extra(self.seconds, begin, middle, end), self._extra(self.waits, begin, middle, end)
        copy = self.copies[begin]
        return {"lost_s": lost, "worker_copy_s": copy, "wait_s": wait, "beside_s": lost - copy - wait, "compared_windows": middle - begin}

    @staticmethod
    def _extra(values: Sequence[float], begin: int, middle: int, end: int) -> float:
        return sum(values[begin:middle]) - (middle - begin) * statistics.mean(values[middle:end])


def _print(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def run_rank(setting: Setting) -> None:
    """The whole life of one rank; prints one line."""
    from mpi4py import MPI

    from hpcnmt.distributed.exchange import Exchange
    from hpcnmt.distributed.mpi import MpiWindows, check_world

    check_world(setting.workers, setting.shards)
    torch.set_num_threads(1)
    layout = Layout(setting.parameters, setting.workers, setting.shards, default_ring_slots(setting.workers))
    rank = MPI.COMM_WORLD.rank
    role, index = ("worker", rank) if rank < setting.workers else ("shard", rank - setting.workers)
    activity, saver = Activity(role, index), Saver(Path(setting.run), f"{role}-{index}")
    windows = MpiWindows(layout, DeadlineConfig(), activity)
    if role == "shard":
        _serve(windows, setting, saver)
    else:
        exchange = Exchange(windows, rank, windows.deadlines)
        exchange.activity = activity
        _Worker(setting, exchange, saver).train()
    windows.free()


def _serve(windows: Any, setting: Setting, saver: Saver) -> None:
    """A shard that saves as that of asynchronous.py does, and notes how long its copying takes."""
    copies: list[float] = []
    open_s: list[float] = []  # from the raising of a cut until it stands; shard 0 alone knows

    def watch(shard: Shard) -> None:
        def save(word: int) -> None:
            begin = time.perf_counter()
            if shard.index == 0:
                open_s.append(shard.clock() - shard.cut_raised_s)
            state = shard_state.live_state(shard, word)
            saver.take(cut_number(word), state.tensors, state.facts)
            copies.append(time.perf_counter() - begin)

        shard.save = save

    shard = windows.serve(ShardConfig(UpdateConfig(), save_every_s=setting.every_s), watch=watch)
    saver.close()
    _print(shard=shard.index, copies_s=copies[1:-1], open_s=open_s[1:-1], left_out=saver.failed)


class _Worker:
    """Simulated batches; saves as that of asynchronous.py does."""

    def __init__(self, setting: Setting, exchange: Any, saver: Saver) -> None:
        self.setting, self.exchange, self.saver = setting, exchange, saver
        replica, gradient = torch.zeros(setting.parameters), torch.zeros(setting.parameters)
        compute = SimulatedCompute(setting.batch_s, BATCH_WORDS, setting.parameters)
        self.loop = WorkerLoop(exchange, WorkerConfig(overlap=1), replica, gradient, compute)
        self.committer = Committer(Path(setting.run), setting.names, CheckpointConfig().keep, DeadlineConfig().peer_s)
        self.windows = Windows()
        self.written_s: list[float] = []  # from a cut until its checkpoint is complete; worker 0 alone knows

    def train(self) -> None:
        """Windows until the last cut; prints what the cuts have cost."""
        loop, windows = self.loop, self.windows
        loop.start(initial=self.exchange.worker == 0)
        while len(windows.cuts) < self.setting.cuts + BESIDE_THE_PERIODS:
            begin, waited = time.perf_counter(), self.exchange.activity.seconds["wait"]
            loop.window()
            copied = time.perf_counter()
            if loop.cut & SAVE:
                windows.cuts.append(len(windows.seconds))
                self._save(cut_number(loop.cut))
            end = time.perf_counter()
            if loop.snapshot > self.exchange.snapshot_read and self.exchange.worker == 0:
                self.exchange.skip_snapshot()
            windows.seconds.append(end - begin)
            windows.waits.append(self.exchange.activity.seconds["wait"] - waited)
            windows.copies.append(end - copied)
        loop.finish()
        loop.close()
        self.saver.close()
        _print(
            worker=self.exchange.worker, costs=windows.costs(), window_s=statistics.median(windows.seconds), left_out=self.saver.failed,
            written_s=self.written_s[1:-1],
        )  # fmt: skip

    def _save(self, number: int) -> None:
        begin = time.perf_counter()

        def commit() -> None:
            if self.exchange.worker == 0:
                self.committer.commit(number, {})
                if self.committer.committed == number:
                    self.written_s.append(time.perf_counter() - begin)

        self.saver.take(number, self.loop.tensors() | random_state(), self.loop.facts(), then=commit)


def figures(setting: Setting, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the ranks have printed, put together."""
    workers = sorted((line for line in lines if "worker" in line), key=lambda line: int(line["worker"]))
    shards = sorted((line for line in lines if "shard" in line), key=lambda line: int(line["shard"]))
    if len(workers) != setting.workers or len(shards) != setting.shards:
        raise RuntimeError(f"found figures of {len(workers)} workers and {len(shards)} shards: {lines}")
    names = ("lost_s", "worker_copy_s", "wait_s", "beside_s")
    cuts = [{name: statistics.mean(cost[name] for cost in of_workers) for name in names}
            for of_workers in zip(*(line["costs"] for line in workers), strict=True)]  # fmt: skip
    medians = {name: statistics.median(cut[name] for cut in cuts) for name in names}
    written_s, window_s = workers[0]["written_s"], statistics.median(line["window_s"] for line in workers)
    compared_s = window_s * min(cost["compared_windows"] for line in workers for cost in line["costs"])
    return {
        "share_of_a_minute": medians["lost_s"] / MINUTE_S,
        "shares_of_a_minute": {name.removesuffix("_s"): medians[name] / MINUTE_S for name in names[1:]},
        "median": medians, "cuts": cuts, "lost_s_by_worker": [[cost["lost_s"] for cost in line["costs"]] for line in workers],
        "window_s": window_s, "shard_copy_s": {"median": statistics.median(sum((line["copies_s"] for line in shards), [])),
                                               "by_shard": [line["copies_s"] for line in shards]},
        "cut_open_s": shards[0]["open_s"], "written_s": written_s, "compared_s": compared_s, "complete": len(written_s),
        "written_in_time": bool(written_s) and max(written_s) <= compared_s,
        "left_out": sum(line["left_out"] for line in lines),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the checkpoints, which are removed afterwards")
    parser.add_argument("--cuts", type=int, default=20, help="measured cuts")
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between two cuts")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--parameters", type=float, default=10e6)
    parser.add_argument("--batch-s", type=float, default=0.4, help="seconds of a simulated batch")
    parser.add_argument("--result", default="checkpoint-idle", help="name of the result")
    arguments = parser.parse_args()
    run = (arguments.work / "checkpoint-idle").absolute()
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    setting = Setting(
        str(run), arguments.workers, arguments.shards, int(arguments.parameters), arguments.batch_s, arguments.every_s, arguments.cuts
    )  # fmt: skip
    deadline_s = 120 + 4 * (arguments.cuts + BESIDE_THE_PERIODS) * (arguments.every_s + 2 * arguments.batch_s)
    program = ["checkpoint_idle", "--rank", json.dumps(asdict(setting))]
    try:
        output = launch(program, setting.workers + setting.shards, "", deadline_s, {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}"})
        newest = newest_complete(run)
        if newest is None:
            raise RuntimeError(f"found no complete checkpoint, expected some:\n{output}")
        newest.check()
        size = sum(path.stat().st_size for path in newest.folder.iterdir())
    finally:
        shutil.rmtree(run, ignore_errors=True)
    found = figures(setting, [json.loads(line) for line in output.splitlines() if line.startswith("{")])
    print(f"a cut costs a worker {1e3 * found['median']['lost_s']:.0f} ms: {found['share_of_a_minute']:.3%} at one a minute", flush=True)
    if not found["written_in_time"] or found["left_out"] or found["complete"] < arguments.cuts:
        print("checkpoints were left out or written for longer than half of --every-s: raise it", file=sys.stderr)
    settings = {name: value for name, value in asdict(setting).items() if name != "run"} | {"overlap": 1, "batch_words": BATCH_WORDS}
    write_result(arguments.result, {"settings": settings, "minute_s": MINUTE_S, "checkpoint_bytes": size} | found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        run_rank(Setting(**json.loads(sys.argv[2])))
    else:
        main()
