"""Shard policies: the gradient buffer equals updates by joined sums, damping, clipping, stalls; switched off they change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.distributed import policy
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.policy import PushBuffer, ShardPolicy
from hpcnmt.distributed.record import Record
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.virtual import ClockConfig, LocalShards, VirtualCluster
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.optim.adam import AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.update import Update, UpdateConfig
from tests import quadratic
from tests.recording import gradients_of, keep_virtual, repeat

SIZE = quadratic.SIZE


def recorded(workers: int, shards: int, shard_policy: ShardPolicy, worker: WorkerConfig, pushes: int) -> tuple[LocalShards, Record]:
    """Shards of a run in virtual time that have received at least `pushes` pushes each; the rest of the buffers is stepped."""
    world = LocalShards(Layout(SIZE, workers, shards), ShardConfig(quadratic.UPDATE, policy=shard_policy))
    clock = ClockConfig(batch_spread=0.3)
    virtual = VirtualCluster(world, worker, clock, quadratic.gradients(workers), quadratic.initial())
    record = keep_virtual(virtual)
    while min(len(log) for log in record.shards) < pushes:
        virtual.step()
    world.step_rest()
    return world, record


def trained(workers: int, shards: int, shard_policy: ShardPolicy, worker: WorkerConfig, pushes: int) -> LocalShards:
    """The same without a record."""
    return recorded(workers, shards, shard_policy, worker, pushes)[0]


def parameters(world: LocalShards) -> torch.Tensor:
    out = torch.empty(SIZE)
    world.parameters(out)
    return out


@pytest.mark.parametrize("pushes", [4, 3])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_buffer_of_one_workers_pushes_is_one_update_by_the_joined_sum_bit_for_bit(pushes: int, shards: int) -> None:
    world = trained(1, shards, ShardPolicy(pushes), WorkerConfig(clip_norm=0.0), 12 * pushes)
    assert torch.equal(parameters(world), quadratic.plain_loop(12, delay=pushes, clip_norm=0.0))
    assert [(shard.version, shard.words - shard.update.words) for shard in world.shards] == [(12, 0)] * shards
    assert world.shards[0].staleness == {0: 12 * pushes}  # versions are steps


def test_a_partial_buffer_is_stepped_at_the_end_by_its_words() -> None:
    world = trained(1, 1, ShardPolicy(4), WorkerConfig(clip_norm=0.0), 11)
    replica, accumulator, update = quadratic.initial(), torch.zeros(SIZE), Update(SIZE, quadratic.UPDATE)
    compute = quadratic.batches(replica, accumulator, 0)
    for delay in (4, 4, 3):
        words = sum(compute().target_words for _ in range(delay))
        update.apply(replica, accumulator, words)
        accumulator.zero_()
    assert torch.equal(parameters(world), replica)
    world.step_rest()  # nothing is left
    assert (world.shards[0].version, world.shards[0].update.words) == (3, update.words)


POLICIES = [ShardPolicy(3), ShardPolicy(damp_staleness=True), ShardPolicy(4, True, 0.05), ShardPolicy(2, lockstep_words=200)]


@pytest.mark.parametrize("shard_policy", POLICIES, ids=["buffer", "damping", "all", "lockstep"])
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_log_replays_bit_for_bit(shard_policy: ShardPolicy, overlap: int) -> None:
    worker = WorkerConfig(overlap=overlap)
    world, record = recorded(3, 2, shard_policy, worker, 41)
    assert torch.equal(repeat(record, world.layout, world.shards[0].config, worker), parameters(world))


@pytest.mark.parametrize("shards", [1, 2])
def test_lockstep_is_synchronous_training_bit_for_bit_and_ends_by_words(shards: int) -> None:
    workers, policy_of_start = 3, ShardPolicy(lockstep_words=500)
    world, record = recorded(workers, shards, policy_of_start, WorkerConfig(clip_norm=0.0), 60)
    log, rounds, words, before = gradients_of(record.shards[0]), 0, 0, 0
    replica, update, gradient_of = quadratic.initial(), Update(SIZE, quadratic.UPDATE), quadratic.gradients(workers)
    while words < policy_of_start.lockstep_words:
        pushes, total, before = log[rounds * workers : (rounds + 1) * workers], torch.zeros(SIZE), words
        assert {worker for worker, _, _ in pushes} == set(range(workers)) and {version for _, _, version in pushes} == {rounds}
        for worker, _, _ in pushes:
            counts = gradient_of(worker, replica, total)
            words += counts.target_words if counts else 0
        update.apply(replica, total, words - before)
        rounds += 1
    again = trained(workers, shards, policy_of_start, WorkerConfig(clip_norm=0.0), rounds * workers)
    assert torch.equal(parameters(again), replica) and again.shards[0].words == words
    assert world.shards[0].version == rounds + len(log) - rounds * workers  # every push is a step afterwards
    assert world.shards[0].staleness[0] >= rounds * workers and max(world.shards[0].staleness) > 0


def test_after_lockstep_the_buffer_rules() -> None:
    world, record = recorded(3, 1, ShardPolicy(2, lockstep_words=200), WorkerConfig(), 40)
    shard, versions = world.shards[0], [version for _, _, version in gradients_of(record.shards[0])]
    rounds = next(index for index in range(40) if len({*versions[3 * index : 3 * index + 3]}) > 1 or versions[3 * index] != index)
    assert rounds > 2 and shard.words == shard.update.words
    assert abs(shard.version - rounds - (len(versions) - 3 * rounds) / 2) <= 1


@pytest.mark.parametrize("overlap", [0, 1])
def test_damping_leaves_pushes_that_are_at_most_one_step_old(overlap: int) -> None:
    damped, plain = (parameters(trained(1, 1, ShardPolicy(damp_staleness=on), WorkerConfig(overlap=overlap), 30)) for on in (True, False))
    assert torch.equal(damped, plain)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 40)), min_size=1, max_size=6))
def test_an_update_is_damped_by_the_mean_over_its_words(pushes: list[tuple[int, int]]) -> None:
    buffer, gradient = PushBuffer(5, ShardPolicy(len(pushes), damp_staleness=True)), torch.ones(5)
    steps = [buffer.add(gradient, words, staleness, lambda: None, len(pushes)) for words, staleness in pushes]
    last, total = steps.pop(), sum(words for words, _ in pushes)
    assert steps == [None] * len(steps) and last is not None and last.target_words == total
    assert last.rate_factor == pytest.approx(sum(words / max(1, staleness) for words, staleness in pushes) / total)
    assert torch.equal(last.gradient_sum, torch.full((5,), float(len(pushes))))
    assert buffer.rest() is None


def test_damping_multiplies_the_learning_rate() -> None:
    gradient, results = torch.cos(torch.arange(SIZE)), []
    for factor, rate in ((0.25, 0.04), (1.0, 0.01)):
        update, values = Update(SIZE, UpdateConfig(schedule=ScheduleConfig(rate))), quadratic.initial()
        for _ in range(5):
            update.apply(values, gradient, 500, rate_factor=factor)
        results.append(values)
    torch.testing.assert_close(*results, rtol=0, atol=1e-7)
    assert not torch.equal(results[0], quadratic.initial())


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_clipping_limits_the_norm_of_what_goes_into_adam(divide: bool, limit: float) -> None:
    gradient, words = 50 * torch.cos(torch.arange(SIZE)), 30
    clipped, scaled = (Update(SIZE, UpdateConfig(AdamConfig(epsilon=0.1, divide_by_words=divide))) for _ in range(2))
    values, expected = quadratic.initial(), quadratic.initial()
    for _ in range(5):
        clipped.apply(values, gradient, words, clip_norm=limit)
        norm = float(gradient.norm()) / (words if divide else 1)
        scaled.apply(expected, gradient * min(1.0, limit / norm), words)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(float(clipped.rule.moment2.sum()), float(scaled.rule.moment2.sum()), rtol=1e-4, atol=0)


def test_a_shard_clips_what_comes_over_a_rounding_wire() -> None:
    world = LocalShards(Layout(SIZE, 1, 2, wire="bf16"), ShardConfig(quadratic.UPDATE, policy=ShardPolicy(clip_norm=0.01)))
    worker, pushed = Exchange(world.transport, 0, DeadlineConfig()), (50 * torch.cos(torch.arange(SIZE))).bfloat16()
    worker.send_initial(quadratic.initial())
    worker.push(pushed, PushHeader(Kind.GRADIENT, 30))
    expected = quadratic.initial()
    for begin, end in world.layout.slices():
        Update(end - begin, quadratic.UPDATE).apply(expected[begin:end], pushed[begin:end].float(), 30, clip_norm=0.01)
    assert torch.equal(parameters(world), expected)


def test_a_buffer_sums_half_precision_pushes_in_full_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "PIECE_ELEMENTS", 100)
    buffer, pushes, calls = PushBuffer(SIZE, ShardPolicy(3)), torch.randn(3, SIZE).bfloat16(), []
    step = [buffer.add(push, 10, 0, lambda: calls.append(1), 3) for push in pushes][-1]
    assert step is not None and len(calls) == 3 * 11
    assert torch.equal(step.gradient_sum, pushes[0].float() + pushes[1].float() + pushes[2].float())


def test_without_policies_the_step_reads_the_inbox_at_once() -> None:
    buffer, gradient = PushBuffer(5, ShardPolicy()), torch.ones(5)
    step = buffer.add(gradient, 7, 3, lambda: pytest.fail("a pass over the gradient"), 1)
    assert step is not None and step.gradient_sum is gradient and (step.target_words, step.rate_factor) == (7, 1.0)


def test_a_stall_told_by_worker_0_restarts_the_warmup_before_the_push_that_tells_it() -> None:
    config = UpdateConfig(AdamConfig(), ScheduleConfig(0.05, 200, restart_on_stall=True))
    world = LocalShards(Layout(SIZE, 2, 2), ShardConfig(config))
    workers = [Exchange(world.transport, index, DeadlineConfig()) for index in range(2)]
    workers[0].send_initial(quadratic.initial())
    update, expected = Update(SIZE, config), quadratic.initial()
    for step in range(12):
        gradient = torch.cos(torch.arange(SIZE) + step)
        if step in (4, 9):
            workers[0].stalls += 1
            update.note_stall()
        workers[0].push(gradient, PushHeader(Kind.GRADIENT, 50))
        update.apply(expected, gradient, 50)
    workers[1].push(torch.zeros(SIZE), PushHeader(Kind.GRADIENT, 1))  # a worker that knows of no stalls repeats none
    update.apply(expected, torch.zeros(SIZE), 1)
    assert [shard.update.stalled_at_words for shard in world.shards] == [450, 450]
    assert torch.equal(parameters(world), expected)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="shard.buffer_pushes is 0, expected at least 1"):
        ShardPolicy(buffer_pushes=0)
    with pytest.raises(ValueError, match=r"shard.clip_norm is -1.0, expected 0 \(off\)"):
        ShardPolicy(clip_norm=-1.0)
