"""The exchange in one process: equality with the plain loop, consistent cuts, rejected pulls, and a planted bug that must be seen."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
import torch

from hpcnmt.distributed import pipeline
from hpcnmt.distributed.deadlines import DeadlineConfig, Silence
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import FINAL_SNAPSHOT, GLOBAL_WORDS, LANES, SNAPSHOT, Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.record import Record, check_record
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import LocalTransport
from hpcnmt.distributed.worker import BatchCounts, Compute, WorkerConfig, WorkerLoop
from hpcnmt.optim.local import LocalConfig, LocalOptimizer
from hpcnmt.optim.window import Diverged
from tests import quadratic
from tests.recording import gradients_of, keep, repeat

DEADLINES = DeadlineConfig(stall_warning_s=5, cut_s=10, peer_s=20, job_s=40)
CONFIG = ShardConfig(quadratic.UPDATE)


class World:
    """Shards in this process, served whenever a worker polls."""

    def __init__(self, layout: Layout, config: ShardConfig = CONFIG) -> None:
        self.transport = LocalTransport(layout, self.serve)
        self.shards = [Shard(i, layout, config, memory) for i, memory in enumerate(self.transport.memories)]

    def serve(self) -> None:
        for shard in self.shards:
            shard.serve_once()

    def worker(self, index: int, config: WorkerConfig) -> WorkerLoop:
        replica = quadratic.initial()
        accumulator = torch.zeros(quadratic.SIZE)
        compute = quadratic.batches(replica, accumulator, index)
        return WorkerLoop(Exchange(self.transport, index, DEADLINES), config, replica, accumulator, compute)


@pytest.mark.parametrize("delay", [1, 3])
def test_one_worker_one_shard_equals_the_plain_loop_bit_for_bit(delay: int) -> None:
    world = World(Layout(quadratic.SIZE, 1, 1))
    loop = world.worker(0, WorkerConfig(delay))
    loop.start(initial=True)
    for _ in range(50):
        loop.window()
    loop.finish()
    loop.close()
    assert torch.equal(loop.replica, quadratic.plain_loop(50, delay))
    assert world.shards[0].staleness == {0: 50}


def test_overlap_is_exactly_one_window_late_and_reproducible() -> None:
    results = []
    for _ in range(2):
        world = World(Layout(quadratic.SIZE, 1, 2))
        loop = world.worker(0, WorkerConfig(2, overlap=1))
        loop.start(initial=True)
        for _ in range(20):
            loop.window()
        loop.finish()
        loop.close()
        results.append(loop.replica.clone())
        assert world.shards[0].staleness == {0: 1, 1: 19}
    assert torch.equal(*results)


@pytest.mark.parametrize("policy", [ShardPolicy(), ShardPolicy(buffer_pushes=7, damp_staleness=True)], ids=["plain", "hybrid"])
def test_threads_apply_every_push_once_and_cuts_are_consistent(policy: ShardPolicy) -> None:
    layout = Layout(quadratic.SIZE, 3, 2)
    config = ShardConfig(quadratic.UPDATE, cut_words=200, policy=policy)
    world = World(layout, config)
    world.transport._on_poll = lambda: time.sleep(1e-4)

    record = keep(world.shards)
    record = Record(record.shards, [[] for _ in range(3)])

    def serve(shard: Shard) -> None:
        while not shard.finished:
            if not shard.serve_once():
                time.sleep(1e-4)

    def work(index: int) -> None:
        loop = world.worker(index, WorkerConfig(1, overlap=index % 2))
        loop.log = record.workers[index]
        loop.start(initial=index == 0)
        for _ in range(40):
            loop.window()
            if index == 0:
                loop.complete()
                if loop.exchange.snapshot_available > loop.exchange.snapshot_read:
                    loop.call(loop.exchange.read_snapshot, torch.empty(quadratic.SIZE))
        loop.finish()
        loop.close()

    threads = [threading.Thread(target=serve, args=(s,)) for s in world.shards]
    threads += [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for log in record.shards:
        assert sorted((w, s) for w, s, _ in gradients_of(log)) == sorted(
            (w, s) for w in range(3) for s in range(1 + (w == 0), 41 + (w == 0))
        )
    check_record(record)
    assert world.shards[0].words == world.shards[1].words
    cuts = world.shards[0].cuts
    assert len(cuts) > 1 and cuts[-1][0] == FINAL_SNAPSHOT
    assert cuts == world.shards[1].cuts  # both shards stand on the same words at every cut
    again = repeat(record, layout, config)
    published = [shard.memory.ring[shard.version % layout.ring_slots] for shard in world.shards]
    assert torch.equal(again, torch.cat(published))  # the same interleaving gives the same numbers, by threads or one by one


def test_pull_rejects_a_replica_that_was_overwritten_meanwhile() -> None:
    layout = Layout(quadratic.SIZE, 1, 1, ring_slots=3)
    world = World(layout)
    exchange = Exchange(world.transport, 0, DEADLINES)
    exchange.send_initial(quadratic.initial())
    original, updates = world.transport.get, iter([5])

    def slow_get(shard: int, slot: int, out: torch.Tensor) -> None:
        original(shard, slot, out)
        for _ in range(next(updates, 0)):  # the shard goes on while the first pull is under way
            exchange.push(torch.ones(quadratic.SIZE), PushHeader(Kind.GRADIENT, 10))

    world.transport.get = slow_get  # type: ignore[method-assign]
    replica = torch.empty(quadratic.SIZE)
    exchange.pull(replica)
    assert exchange.rejected_pulls == 1
    assert exchange.versions == [5]
    assert torch.equal(replica, world.transport.memories[0].ring[5 % 3])


def test_deadline_names_what_was_waited_for() -> None:
    transport = LocalTransport(Layout(10, 1, 1), lambda: time.sleep(0.01))  # nobody serves
    exchange = Exchange(transport, 0, DeadlineConfig(stall_warning_s=0.02, cut_s=0.02, peer_s=0.05, job_s=0.1, longest_poll_s=0.015))
    with pytest.raises(RuntimeError, match="shard 0 to apply push 1 of worker 0"):
        exchange.send_initial(torch.zeros(10))


def test_silence_counts_from_the_last_sign_and_only_while_this_process_runs() -> None:
    now = [0.0]
    silence = Silence(DeadlineConfig(stall_warning_s=2, cut_s=2, peer_s=5, job_s=10), clock=lambda: now[0])

    def after(seconds: float, sign: bool = False) -> None:
        now[0] += seconds
        silence.heard(sign, "a push")

    for _ in range(3):
        for _ in range(9):
            after(1)
        after(1, sign=True)
    after(1000)  # stopped, or the machine was suspended: counts as one second
    for _ in range(9):
        after(1)
    with pytest.raises(RuntimeError, match="heard nothing for 11 s, expected a push within 10 s"):
        after(1)


def test_a_worker_without_data_waits_for_the_others_as_long_as_they_train() -> None:
    deadlines = DeadlineConfig(stall_warning_s=0.02, cut_s=0.02, peer_s=0.05, job_s=0.1, longest_poll_s=0.015)
    polls = iter(range(1000))

    def others() -> None:
        control = transport.memories[0].control
        poll = next(polls)
        control[GLOBAL_WORDS] += poll % 3 == 0  # far sooner than job_s, for far longer than job_s
        if poll == 90:
            control[SNAPSHOT] = FINAL_SNAPSHOT

    transport = LocalTransport(Layout(10, 2, 1), others)
    Exchange(transport, 1, deadlines).wait_for_farewells()
    transport.memories[0].control[SNAPSHOT] = 0
    transport._on_poll = lambda: None  # now they have fallen silent
    with pytest.raises(RuntimeError, match="the farewell of all 2 workers on shard 0"):
        Exchange(transport, 1, deadlines).wait_for_farewells()


def test_a_partial_window_is_pushed_and_an_empty_one_is_not() -> None:
    world = World(Layout(quadratic.SIZE, 1, 1))
    loop = world.worker(0, WorkerConfig(delay=3))
    endless, batches = loop.compute, iter(range(4))
    loop.compute = lambda: None if next(batches, None) is None else endless()
    loop.start(initial=True)
    words = [loop.window().target_words for _ in range(3)]
    assert loop.out_of_data and words[0] > words[1] > words[2] == 0
    loop.finish()
    loop.close()
    assert (world.shards[0].version, world.shards[0].words) == (2, sum(words))


def test_zero_words_are_refused() -> None:
    world = World(Layout(quadratic.SIZE, 1, 1))
    exchange = Exchange(world.transport, 0, DEADLINES)
    exchange.send_initial(quadratic.initial())
    with pytest.raises(RuntimeError, match="0 target words"):
        exchange.push(torch.zeros(quadratic.SIZE), PushHeader(Kind.GRADIENT))


def test_a_bf16_wire_halves_the_inbox_and_trains_as_well() -> None:
    results = []
    for wire in ("fp32", "bf16"):
        world = World(Layout(quadratic.SIZE, 1, 2, wire=wire))
        loop = world.worker(0, WorkerConfig(1))
        loop.start(initial=True)
        for _ in range(60):
            loop.window()
        loop.finish()
        loop.close()
        results.append(loop.replica.clone())
    assert world.transport.memories[0].inbox.dtype == torch.bfloat16
    assert not torch.equal(*results)
    target = torch.sin(torch.arange(quadratic.SIZE))
    fp32, bf16 = ((replica - target).norm() for replica in results)
    assert abs(float(bf16 / fp32) - 1) < 0.02
    assert loop.sum.residual is not None and loop.sum.residual.any()


def spoiled(compute: Compute, gradient: torch.Tensor, windows: set[int]) -> Compute:
    """`compute` whose gradient holds a NaN in the given windows (one batch each)."""
    count = iter(range(1_000_000))

    def spoiled_compute() -> BatchCounts:
        counts = compute()
        if next(count) in windows:
            gradient[17] = float("nan")
        return counts

    return spoiled_compute


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_window_with_a_nan_is_dropped_and_training_goes_on(overlap: int) -> None:
    world = World(Layout(quadratic.SIZE, 1, 2))
    loop = world.worker(0, WorkerConfig(1, overlap))
    loop.compute = spoiled(loop.compute, loop.gradient, {3, 4})
    loop.start(initial=True)
    for _ in range(10):
        loop.window()
    loop.finish()
    loop.close()
    assert loop.sum.dropped == 2
    assert [shard.version for shard in world.shards] == [8, 8]
    assert loop.replica.isfinite().all() and not loop.gradient.any()
    assert torch.equal(loop.replica[:502], world.shards[0].memory.ring[8 % 4])


def test_divergence_ends_with_the_sentences_of_its_last_window() -> None:
    world = World(Layout(quadratic.SIZE, 1, 1))
    loop = world.worker(0, WorkerConfig(1))
    loop.compute = spoiled(loop.compute, loop.gradient, set(range(100)))
    loop.start(initial=True)
    ids = iter(range(1000))
    loop.sentence_ids = lambda: (next(ids), 500)
    with pytest.raises(Diverged, match="10th window in a row, since 0 global target words; this window has the training sentences 9, 500"):
        for _ in range(20):
            loop.window()
    loop.close()


def local_optimizer(factor: float = 1.0) -> LocalOptimizer:
    return LocalOptimizer(quadratic.SIZE, LocalConfig("always", learning_rate_factor=factor), quadratic.SCHEDULE, 1.0)


def pushes_of(delay: int, local: LocalOptimizer | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    world = World(Layout(quadratic.SIZE, 1, 1))
    loop = world.worker(0, WorkerConfig(delay))
    if local is not None:
        loop = WorkerLoop(loop.exchange, loop.config, loop.replica, loop.gradient, loop.compute, local)
    loop.start(initial=True)
    pushed = []
    for _ in range(5):
        loop.window()
        pushed.append(loop._outgoing.clone())
    loop.finish()
    loop.close()
    return pushed, loop.replica.clone()


def test_a_local_optimizer_pushes_raw_gradients_of_a_replica_that_moves() -> None:
    plain, _ = pushes_of(3, None)
    unmoved, _ = pushes_of(3, local_optimizer(1e-12))
    moved, _ = pushes_of(3, local_optimizer())
    torch.testing.assert_close(unmoved[0], plain[0], rtol=1e-5, atol=1e-5)  # the same sum, added up in another place
    assert float((moved[0] - plain[0]).abs().max()) > 1e-3  # later batches saw another replica


class SlowTransport(LocalTransport):
    """Transfers that take some polls to complete, in an order drawn at random."""

    def __init__(self, layout: Layout, on_poll: Callable[[], None], seed: int) -> None:
        super().__init__(layout, on_poll)
        self.random = random.Random(seed)
        self.in_flight: set[int] = set()
        self.most_in_flight = 0

    def put(self, shard: int, worker: int, data: torch.Tensor) -> None:
        super().put(shard, worker, data)
        self._sent(shard)

    def get(self, shard: int, slot: int, out: torch.Tensor) -> None:
        super().get(shard, slot, out)
        self._sent(shard)

    def _sent(self, shard: int) -> None:
        self.in_flight.add(shard)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))

    def is_complete(self, shard: int) -> bool:
        return self.random.random() < 0.3

    def flush(self, shard: int) -> None:
        self.in_flight.discard(shard)


@pytest.mark.parametrize("seed", range(5))
def test_slice_by_slice_equals_push_then_pull(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "ASK_EVERY_S", 0.0)
    results = []
    for pipelined in (True, False):
        layout = Layout(quadratic.SIZE, 1, 5)
        world = World(layout)
        world.transport = SlowTransport(layout, world.serve, seed)
        world.shards = [Shard(i, layout, CONFIG, memory) for i, memory in enumerate(world.transport.memories)]
        exchange = Exchange(world.transport, 0, DEADLINES)
        exchange.send_initial(quadratic.initial())
        replica, gradient = torch.empty(quadratic.SIZE), torch.zeros(quadratic.SIZE)
        exchange.pull(replica)
        for _ in range(10):
            counts = quadratic.batches(replica, gradient.zero_(), 0)()
            header = PushHeader(Kind.GRADIENT, counts.target_words)
            if pipelined:
                exchange.push_and_pull(gradient, header, exchange.versions, replica)
            else:
                exchange.push(gradient, header)
                exchange.pull(replica)
        results.append(replica.clone())
        assert exchange.versions == [10] * 5 and all(shard.staleness == {0: 10} for shard in world.shards)
        assert world.transport.most_in_flight == (2 * LANES if pipelined else 5)
    assert torch.equal(*results)
