"""Record and replay in this process: runs of threads under every policy repeat bit for bit; records that were changed do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.record import Event, Record, WindowEntry, check_record
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import LocalTransport
from hpcnmt.distributed.virtual import GradientOf
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig, WorkerLoop
from hpcnmt.optim.local import LocalConfig
from tests import quadratic
from tests.quadratic import SIZE
from tests.recording import gradients_of, keep, repeat

WORKERS = 3
DEADLINES = DeadlineConfig(stall_warning_s=5, cut_s=10, peer_s=30, job_s=60)
EMA = ShardConfig(replace(quadratic.UPDATE, ema_alpha=0.01))
STALLS = ShardConfig(replace(quadratic.UPDATE, schedule=replace(quadratic.SCHEDULE, restart_on_stall=True)))
AVERAGES = ShardConfig(replace(quadratic.UPDATE, ema_alpha=0.01, average=True))
AVERAGE = LocalConfig("always", average=True, carry=True)
OF_PUSHES = ShardConfig(quadratic.UPDATE, policy=ShardPolicy(4, damp_staleness=True, clip_norm=0.05))


@dataclass(frozen=True)
class Case:
    """A run: `spoiled` batches of every worker hold a NaN; `batches` = how many there are for each; `stalls`: at every third window."""

    worker: WorkerConfig
    shard: ShardConfig = ShardConfig(quadratic.UPDATE)
    wire: str = "fp32"
    spoiled: tuple[int, ...] = ()
    batches: int = 10**6
    stalls: bool = False
    cut_words: int = 0


CASES = {
    "delay": Case(WorkerConfig(2)),
    "overlap": Case(WorkerConfig(2, 1, delay_ramp_words=300), EMA, cut_words=200),
    "later overlap": Case(WorkerConfig(2, 1, overlap_from_words=250, local=LocalConfig("always"))),
    "buffer over bf16": Case(WorkerConfig(1, 1), OF_PUSHES, "bf16"),
    "local steps": Case(WorkerConfig(3, 1, local=LocalConfig("always")), OF_PUSHES, cut_words=150),
    "carried steps": Case(WorkerConfig(2, 1, local=LocalConfig("always", carry=True)), EMA, "bf16", spoiled=(3, 8), cut_words=150),
    "averaged ways": Case(WorkerConfig(2, 1, local=AVERAGE), AVERAGES, "bf16", spoiled=(3, 8), cut_words=150),
    "averaged ways in lockstep": Case(WorkerConfig(1, 1, local=AVERAGE), replace(AVERAGES, policy=ShardPolicy(lockstep_words=10**6))),
    "warm-up in batches": Case(WorkerConfig(3, local=LocalConfig("warmup", warmup_batches=7))),
    "warm-up in words": Case(WorkerConfig(3, 1, local=LocalConfig("warmup", warmup_words=400), delay_ramp_words=300)),
    "compensation": Case(WorkerConfig(2, 1, local=LocalConfig("compensate")), cut_words=150),
    "compensation of a buffer": Case(WorkerConfig(1, 1, local=LocalConfig("compensate")), OF_PUSHES, "bf16", spoiled=(3,), cut_words=150),
    "write-backs": Case(WorkerConfig(2, local=LocalConfig("always", write_back=True)), spoiled=(4,)),
    "write-backs at first": Case(WorkerConfig(1, local=LocalConfig("warmup", warmup_batches=5, write_back=True)), EMA, cut_words=150),
    "lockstep": Case(WorkerConfig(1, 1), ShardConfig(quadratic.UPDATE, policy=ShardPolicy(2, lockstep_words=400)), "bf16"),
    "lockstep to the end": Case(WorkerConfig(2), ShardConfig(quadratic.UPDATE, policy=ShardPolicy(lockstep_words=10**6)), cut_words=150),
    "dropped windows": Case(WorkerConfig(2, 1, local=LocalConfig("compensate")), EMA, "bf16", spoiled=(3, 4, 8)),
    "end of data": Case(WorkerConfig(3, 1, local=LocalConfig("warmup", warmup_batches=16)), batches=16),
    "stalls": Case(WorkerConfig(1, 1), STALLS, stalls=True),
}  # fmt: skip


def compute_of(case: Case, index: int, replica: Tensor, gradient: Tensor) -> Callable[[], BatchCounts | None]:
    sound, count = quadratic.batches(replica, gradient, index), iter(range(10**6))

    def compute() -> BatchCounts | None:
        number = next(count)
        if number >= case.batches:
            return None
        counts = sound()
        if number in case.spoiled:
            gradient[17] = float("nan")
        return counts

    return compute


def gradient_of(case: Case) -> GradientOf:
    """The same batches for a replay."""
    replicas, gradients = torch.empty(WORKERS, SIZE), torch.zeros(WORKERS, SIZE)
    computes = [compute_of(case, w, replicas[w], gradients[w]) for w in range(WORKERS)]

    def compute(worker: int, replica: Tensor, gradient: Tensor) -> BatchCounts | None:
        replicas[worker].copy_(replica)
        gradients[worker].zero_()
        counts = computes[worker]()
        gradient.add_(gradients[worker])
        return counts

    return compute


def run_threads(case: Case) -> tuple[Record, Layout, Tensor]:
    """A run of 3 workers and 2 shards, each in a thread: its record, its layout and what it ends with."""
    layout = Layout(SIZE, WORKERS, 2, wire=case.wire)  # type: ignore[arg-type]
    transport = LocalTransport(layout, lambda: time.sleep(1e-4))
    config = replace(case.shard, cut_words=case.cut_words)
    shards = [Shard(i, layout, config, memory) for i, memory in enumerate(transport.memories)]
    loops, failed = [], []
    for index in range(WORKERS):
        replica, gradient = quadratic.initial(), torch.zeros(SIZE)
        compute, local = compute_of(case, index, replica, gradient), quadratic.local_of(case.worker)
        loops.append(WorkerLoop(Exchange(transport, index, DEADLINES), case.worker, replica, gradient, compute, local))
    record = keep(shards, loops)

    def serve(shard: Shard) -> None:
        while not shard.finished:
            if not shard.serve_once():
                time.sleep(1e-4)

    def work(index: int) -> None:
        loop = loops[index]
        exchange = loop.exchange
        loop.start(initial=index == 0)
        for window in range(12 - index):  # some leave before others
            loop.window()
            if loop.out_of_data:
                break
            if index == 0 and exchange.snapshot_available > exchange.snapshot_read:
                loop.complete()
                loop.call(exchange.read_snapshot, torch.empty(SIZE))
            exchange.stalls += case.stalls and index == 0 and window % 3 == 2
        loop.finish()
        loop.close()

    def guarded(act: Callable[[Any], None], argument: Any) -> None:
        try:
            act(argument)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(serve, shard), daemon=True) for shard in shards]
    threads += [threading.Thread(target=guarded, args=(work, index), daemon=True) for index in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive() and not failed, failed
    final = torch.empty(SIZE)
    loops[0].exchange.read_snapshot(final)
    return record, layout, final


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_threads_replays_bit_for_bit(name: str) -> None:
    case = CASES[name]
    record, layout, final = run_threads(case)
    assert record.ended
    check_record(record)
    assert any(window.dropped for log in record.workers for window in log) == bool(case.spoiled)
    assert any(entry.event == Event.STALL for log in record.shards for entry in log) == case.stalls
    assert torch.equal(repeat(record, layout, case.shard, case.worker, gradient_of(case)), final)


@pytest.fixture(scope="module")
def plain() -> tuple[Record, Layout, Tensor]:
    return run_threads(CASES["overlap"])


def test_another_order_of_two_pushes_is_seen(plain: tuple[Record, Layout, Tensor]) -> None:
    record, layout, final = plain
    case = CASES["overlap"]
    log = list(record.shards[0])
    pushes = [entry.event == Event.GRADIENT for entry in log]
    pairs = [i for i in range(len(log) - 1) if log[i].worker != log[i + 1].worker and pushes[i] and pushes[i + 1]][::5]
    assert len(pairs) > 2
    for i in pairs:
        swapped = [*log[:i], log[i + 1], log[i], *log[i + 2 :]]
        try:
            found = repeat(Record([swapped, record.shards[1]], record.workers), layout, case.shard, case.worker, gradient_of(case))
        except (ValueError, AssertionError) as error:  # contradictory, or a loss that differs
            assert "contradict" in str(error) or "recorded is" in str(error)
        else:
            assert not torch.equal(found, final)


def test_a_replay_until_so_many_pushes_needs_no_more_of_the_record(plain: tuple[Record, Layout, Tensor]) -> None:
    record, layout, _ = plain
    case = CASES["overlap"]
    cut = Record([log[:12] for log in record.shards], record.workers)
    assert not cut.ended
    results = [repeat(r, layout, case.shard, case.worker, gradient_of(case), until=8) for r in (record, cut)]
    assert torch.equal(*results)
    short = Record(record.shards, [log[:2] for log in record.workers])
    with pytest.raises(ValueError, match="record of worker . ends before its message"):
        repeat(short, layout, case.shard, case.worker, gradient_of(case))


def test_other_data_are_seen(plain: tuple[Record, Layout, Tensor]) -> None:
    record, layout, _ = plain
    sound = gradient_of(CASES["overlap"])

    def other(worker: int, replica: Tensor, gradient: Tensor) -> BatchCounts | None:
        counts = sound(worker, replica, gradient)
        return None if counts is None else replace(counts, target_words=counts.target_words + 1)

    with pytest.raises(ValueError, match="recorded are .* are data and recipe those of the run"):
        repeat(record, layout, EMA, CASES["overlap"].worker, other)


def tampered(record: Record, shard: int, change: Callable[[list[Any]], list[Any]]) -> Record:
    return Record([change(list(log)) if i == shard else log for i, log in enumerate(record.shards)], record.workers)


def test_the_check_names_what_is_wrong(plain: tuple[Record, Layout, Tensor]) -> None:
    record = plain[0]
    check_record(record)
    first = next(i for i, entry in enumerate(record.shards[1]) if entry.event == Event.GRADIENT)
    worker = record.shards[1][first].worker
    last = max(i for i, entry in enumerate(record.shards[1]) if entry.event == Event.GRADIENT and entry.worker == worker)
    cases: list[tuple[Callable[[list[Any]], list[Any]], str]] = [
        (lambda log: log[: first + 1] + log[first:], "after its message"),
        (lambda log: log[:first] + log[first + 1 :], rf"shard 1 has applied \d+ pushes of worker {worker}, expected \d+"),
        (lambda log: [log[last], *log[:last], *log[last + 1 :]], "after its message"),
        (lambda log: [*log[:last], log[last]._replace(version=0), *log[last + 1 :]], "one computed on version"),
        (lambda log: [*log[:last], log[last]._replace(sequence=10**6), *log[last + 1 :]], "notes none of the kind"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            check_record(tampered(record, 1, change))
    assert isinstance(record.workers[0][0], WindowEntry) and gradients_of(record.shards[0])
