"""The worker's policies, each against a loop written by hand and against virtual time: ramp of the delay, local steps and their warm-up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt import ops
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.virtual import ClockConfig, LocalShards, VirtualCluster
from hpcnmt.distributed.worker import WorkerConfig, WorkerLoop
from hpcnmt.optim.adam import AdamConfig, LaterBetas
from hpcnmt.optim.local import LocalConfig, LocalOptimizer
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import GradientWindow
from tests import quadratic
from tests.quadratic import by_hand, local_of

WINDOWS = 12
CONFIG = ShardConfig(quadratic.UPDATE)
ALWAYS = WorkerConfig(3, local=LocalConfig("always"))
BATCHES = WorkerConfig(3, local=LocalConfig("warmup", warmup_batches=7))
WORDS = WorkerConfig(3, local=LocalConfig("warmup", warmup_words=200))
RAMP = WorkerConfig(4, delay_ramp_words=300)
POLICIES = {
    "ramp": RAMP, "always": ALWAYS, "batches": BATCHES, "words": WORDS, "ramp_and_words": replace(WORDS, delay_ramp_words=300),
}  # fmt: skip
WRITTEN_BACK = {
    "always": WorkerConfig(3, local=LocalConfig("always", write_back=True)),
    "delay_1": WorkerConfig(1, local=LocalConfig("always", write_back=True)),
    "batches": replace(BATCHES, local=replace(BATCHES.local, write_back=True)),
    "words": replace(WORDS, local=replace(WORDS.local, write_back=True), delay_ramp_words=300),
}  # fmt: skip
OVERLAPPED = {f"{name}_overlapped": replace(config, overlap=1) for name, config in POLICIES.items()}
SAME_ADAM = LocalConfig("compensate", optimizer=quadratic.UPDATE.adam)
OVERLAPPED |= {
    "compensate": WorkerConfig(1, 1, local=LocalConfig("compensate")), "compensate_2": WorkerConfig(2, 1, local=LocalConfig("compensate")),
    "compensate_ramp": WorkerConfig(3, 1, local=LocalConfig("compensate", learning_rate_factor=0.5), delay_ramp_words=300),
}  # fmt: skip
CARRIED = {
    "delay_1": WorkerConfig(1, 1, local=LocalConfig("always", carry=True)),
    "delay_3": WorkerConfig(3, 1, local=LocalConfig("always", carry=True)),
    "batches": WorkerConfig(3, 1, local=LocalConfig("warmup", warmup_batches=7, carry=True)),
    "ramp_and_words": WorkerConfig(4, 1, delay_ramp_words=300, local=LocalConfig("warmup", warmup_words=400, carry=True)),
}  # fmt: skip
OVERLAPPED |= {f"carry_{name}": config for name, config in CARRIED.items()}
AVERAGED = {
    "delay_1": WorkerConfig(1, local=LocalConfig("always", average=True)),
    "ramp": WorkerConfig(3, delay_ramp_words=300, local=LocalConfig("always", average=True)),
    "overlapped": WorkerConfig(2, 1, local=LocalConfig("always", average=True, carry=True)),
    "overlapped_later": WorkerConfig(2, 1, overlap_from_words=150, local=LocalConfig("always", average=True, carry=True)),
}  # fmt: skip
LATER_OVERLAPPED = {
    "delay_1": WorkerConfig(1, 1, overlap_from_words=100), "with_ramp": WorkerConfig(3, 1, delay_ramp_words=300, overlap_from_words=150),
    "compensate": WorkerConfig(2, 1, local=LocalConfig("compensate"), overlap_from_words=150),
    "carry": WorkerConfig(1, 1, local=LocalConfig("always", carry=True), overlap_from_words=150),
}  # fmt: skip


def shard_config(config: WorkerConfig, policy: ShardPolicy | None = None) -> ShardConfig:
    return ShardConfig(replace(quadratic.UPDATE, average=config.local.average), policy=policy or ShardPolicy())


def real_loop(config: WorkerConfig, windows: int = WINDOWS) -> WorkerLoop:
    """A worker that has trained with one shard, which served whenever it polled."""
    shards = LocalShards(Layout(quadratic.SIZE, 1, 1), shard_config(config))
    replica, gradient = quadratic.initial(), torch.zeros(quadratic.SIZE)
    exchange = Exchange(shards.transport, 0, DeadlineConfig())
    loop = WorkerLoop(exchange, config, replica, gradient, quadratic.batches(replica, gradient, 0), local_of(config))
    loop.start(initial=True)
    for _ in range(windows):
        loop.window()
    loop.finish()
    loop.close()
    return loop


def virtual(config: WorkerConfig, windows: int = WINDOWS) -> torch.Tensor:
    """Parameters after as many windows of one logical worker."""
    shards = LocalShards(Layout(quadratic.SIZE, 1, 1), shard_config(config))
    make = (lambda: LocalOptimizer(quadratic.SIZE, config.local, quadratic.SCHEDULE, config.clip_norm)) if local_of(config) else None
    cluster = VirtualCluster(shards, config, ClockConfig(), quadratic.gradients(1), quadratic.initial(), local_of=make)
    while shards.shards[0].staleness.total() < windows:
        cluster.step()
    out = torch.empty(quadratic.SIZE)
    shards.parameters(out)
    return out


@given(st.integers(2, 9), st.integers(1, 10_000))
def test_the_delay_grows_from_one_in_equal_steps(delay: int, ramp_words: int) -> None:
    config = WorkerConfig(delay, delay_ramp_words=ramp_words)
    found = [config.delay_at(words) for words in range(ramp_words + 1)]
    assert found[0] == 1 and found[-1] == config.delay_at(10**12) == delay
    assert found == sorted(found)
    if ramp_words >= delay:
        lengths = [found.count(value) for value in range(1, delay)]
        assert max(lengths) - min(lengths) <= 1 and set(found) == set(range(1, delay + 1))


@pytest.mark.parametrize("name", POLICIES)
def test_one_worker_and_one_shard_equal_the_loop_by_hand_bit_for_bit(name: str) -> None:
    assert torch.equal(real_loop(POLICIES[name]).replica, by_hand(POLICIES[name], WINDOWS)[0])


@pytest.mark.parametrize("config", [*POLICIES.values(), *OVERLAPPED.values(), *LATER_OVERLAPPED.values(), *AVERAGED.values()])
def test_virtual_time_equals_the_real_loop_bit_for_bit(config: WorkerConfig) -> None:
    assert torch.equal(real_loop(config).replica, virtual(config))


@pytest.mark.parametrize("name", LATER_OVERLAPPED)
def test_overlap_that_begins_later_is_none_before_and_the_whole_one_after(name: str) -> None:
    config = LATER_OVERLAPPED[name]
    ends = {from_words: real_loop(replace(config, overlap_from_words=from_words)).replica for from_words in (0, 10**9)}
    assert torch.equal(ends[10**9], real_loop(replace(config, overlap=0, overlap_from_words=0, local=LocalConfig())).replica)
    later = real_loop(config).replica
    assert not torch.equal(later, ends[0]) and not torch.equal(later, ends[10**9])


@pytest.mark.parametrize("name", WRITTEN_BACK)
def test_with_write_backs_virtual_time_and_the_loop_by_hand_equal_the_real_loop_bit_for_bit(name: str) -> None:
    config = WRITTEN_BACK[name]
    loop = real_loop(config)
    assert torch.equal(loop.replica, virtual(config))
    expected, steps = by_hand(config, WINDOWS)
    assert torch.equal(loop.replica, expected)
    assert loop.exchange.sequence == 1 + WINDOWS + steps + 1  # initial parameters, pushes, write-backs, farewell
    assert loop.exchange.pulls == 1 + WINDOWS


def test_a_write_back_over_a_rounding_wire_is_refused() -> None:
    shards = LocalShards(Layout(quadratic.SIZE, 1, 1, wire="bf16"), CONFIG)
    with pytest.raises(ValueError, match="write-back over a wire of bf16, expected fp32"):
        Exchange(shards.transport, 0, DeadlineConfig()).write_back(torch.zeros(quadratic.SIZE))


@pytest.mark.parametrize("name", [name for name in OVERLAPPED if "compensate" in name])
def test_compensation_equals_the_loop_by_hand_bit_for_bit(name: str) -> None:
    config = OVERLAPPED[name]
    replica, gradient, wire = quadratic.initial(), torch.zeros(quadratic.SIZE), torch.empty(quadratic.SIZE)
    compute, local = quadratic.batches(replica, gradient, 0), local_of(config)
    window, update, fresh, sent = GradientWindow(gradient, config.clip_norm), Update(quadratic.SIZE, quadratic.UPDATE), replica.clone(), 0
    for _ in range(WINDOWS):
        words = sum(compute().target_words for _ in range(config.delay_at(sent)))
        window.seal(wire, words)
        replica.copy_(fresh)  # the exchange of the window before is complete, that of this window begins
        sent = update.words
        assert local is not None
        local.compensate(replica, wire, words, sent)
        update.apply(fresh, wire, words)
    assert torch.equal(real_loop(config).replica, fresh)


@pytest.mark.parametrize("delay", [1, 3])
def test_compensation_with_the_constants_of_the_only_shard_undoes_the_delay_of_overlap(delay: int) -> None:
    found = real_loop(WorkerConfig(delay, 1, local=SAME_ADAM)).replica
    assert torch.equal(found, quadratic.plain_loop(WINDOWS, delay))
    assert not torch.equal(found, real_loop(WorkerConfig(delay, 1)).replica)


@pytest.mark.parametrize("name", CARRIED)
def test_carried_steps_equal_the_loop_by_hand_bit_for_bit(name: str) -> None:
    config = CARRIED[name]
    replica, gradient, wire, total = quadratic.initial(), *(torch.zeros(quadratic.SIZE) for _ in range(3))
    compute, local, update = quadratic.batches(replica, gradient, 0), local_of(config), Update(quadratic.SIZE, CONFIG.update)
    fresh, sent = replica.clone(), 0
    assert local is not None
    for window in range(WINDOWS):
        began, words, steps = replica.clone(), 0, 0
        for _ in range(config.delay_at(sent)):
            batch_words = compute().target_words
            words += batch_words
            if local.is_over(sent):
                total += gradient
                gradient.zero_()
            else:
                local.step(replica, gradient, total, batch_words, sent, ops.new_stats())
                steps += 1
        way = replica - began
        GradientWindow(total, config.clip_norm).seal(wire, words)
        if window:  # the exchange of the window before is complete, that of this window begins
            replica.copy_(fresh)
        sent = update.words
        if window and steps and not (config.local.warmup_batches and steps < 3):  # a warm-up that has ended leaves nothing behind
            replica += way
        update.apply(fresh, wire, words)
    assert torch.equal(real_loop(config).replica, fresh)


def test_carried_steps_with_the_constants_of_the_only_shard_undo_most_of_the_delay_of_overlap() -> None:
    """Not all: a step is taken at the learning rate of one window earlier."""
    plain, local = quadratic.plain_loop(WINDOWS, 1), replace(SAME_ADAM, mode="always", carry=True)
    off = [float((real_loop(WorkerConfig(1, 1, local=config)).replica - plain).norm()) for config in (local, LocalConfig())]
    assert off[0] < 0.2 * off[1]


@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_ways_equal_the_loop_by_hand_bit_for_bit(name: str) -> None:
    config = AVERAGED[name]
    replica, gradient, rest = quadratic.initial(), torch.zeros(quadratic.SIZE), torch.zeros(quadratic.SIZE)
    compute, local = quadratic.batches(replica, gradient, 0), local_of(config)
    fresh, sent, in_flight = replica.clone(), 0, (torch.zeros(quadratic.SIZE), 0)
    assert local is not None
    for _ in range(WINDOWS):
        began, words, known = replica.clone(), 0, sent
        for _ in range(config.delay_at(known)):
            batch_words = compute().target_words
            words += batch_words
            local.step(replica, gradient, rest, batch_words, known, ops.new_stats())
        way = replica - began
        fresh += in_flight[0]  # the exchange of the window before is complete, that of this window begins
        sent += in_flight[1]
        if config.overlaps_at(known):
            if in_flight[1]:
                replica.copy_(fresh).add_(way)
            in_flight = way, words
        else:
            fresh += way
            sent, in_flight = sent + words, (torch.zeros(quadratic.SIZE), 0)
            replica.copy_(fresh)
    assert torch.equal(real_loop(config).replica, fresh + in_flight[0])


@pytest.mark.parametrize("workers", [2, 3])
def test_in_lockstep_the_shards_have_the_mean_of_the_replicas(workers: int) -> None:
    config = WorkerConfig(3, local=LocalConfig("always", average=True))
    shards = LocalShards(Layout(quadratic.SIZE, workers, 2), shard_config(config, ShardPolicy(lockstep_words=10**6)))
    make = lambda: LocalOptimizer(quadratic.SIZE, config.local, quadratic.SCHEDULE, config.clip_norm)  # noqa: E731
    cluster = VirtualCluster(shards, config, ClockConfig(), quadratic.gradients(workers), quadratic.initial(), local_of=make)
    while min(shard.steps for shard in shards.shards) < 1:
        cluster.step()
    found, mean = torch.empty(quadratic.SIZE), torch.zeros(quadratic.SIZE)
    shards.parameters(found)
    for worker in range(workers):
        replica, gradient, rest, local = quadratic.initial(), torch.zeros(quadratic.SIZE), torch.zeros(quadratic.SIZE), make()
        compute = quadratic.batches(replica, gradient, worker)
        for _ in range(3):
            local.step(replica, gradient, rest, compute().target_words, 0, ops.new_stats())
        mean += replica / workers
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found, quadratic.initial())


@pytest.mark.parametrize(("config", "expected"), [(BATCHES, 7), (WORDS, None), (ALWAYS, 3 * WINDOWS)])
def test_a_warmup_ends_exactly_and_leaves_no_pass_behind(
    config: WorkerConfig, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_words = by_hand(config, WINDOWS)[1]
    steps = []
    original = ops.local_step_
    monkeypatch.setattr(ops, "local_step_", lambda *arguments: (steps.append(1), original(*arguments)))
    loop = real_loop(config)
    assert len(steps) == (by_words if expected is None else expected)
    if config is ALWAYS:
        assert loop.sum.stepping and loop.sum.accumulator is not loop.gradient
    else:
        assert 3 < len(steps) < 3 * WINDOWS
        assert loop.sum.accumulator is loop.gradient and loop.sum.local is None  # gradients add up in place, the moments are freed


def test_a_warmup_that_ends_within_a_window_loses_nothing_of_it() -> None:
    inert = LocalConfig("warmup", warmup_batches=7, learning_rate_factor=1e-12)
    found = real_loop(WorkerConfig(3, local=inert)).replica
    torch.testing.assert_close(found, quadratic.plain_loop(WINDOWS, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 1])
def test_virtual_time_drops_a_window_with_a_nan_as_the_real_loop_does(overlap: int) -> None:
    config = replace(BATCHES, overlap=overlap)
    shards = LocalShards(Layout(quadratic.SIZE, 1, 1), CONFIG)
    sound, count = quadratic.gradients(1), iter(range(1000))

    def spoiled(worker: int, replica: torch.Tensor, gradient: torch.Tensor):  # type: ignore[no-untyped-def]
        counts = sound(worker, replica, gradient)
        if next(count) in (4, 16):
            gradient[17] = float("nan")
        return counts

    make = lambda: LocalOptimizer(quadratic.SIZE, config.local, quadratic.SCHEDULE, config.clip_norm)  # noqa: E731
    cluster = VirtualCluster(shards, config, ClockConfig(), spoiled, quadratic.initial(), local_of=make)
    while shards.shards[0].staleness.total() < WINDOWS:
        cluster.step()
    replica, gradient = quadratic.initial(), torch.zeros(quadratic.SIZE)
    world, batches, calls = LocalShards(Layout(quadratic.SIZE, 1, 1), CONFIG), quadratic.batches(replica, gradient, 0), iter(range(1000))

    def compute():  # type: ignore[no-untyped-def]
        counts = batches()
        if next(calls) in (4, 16):
            gradient[17] = float("nan")
        return counts

    loop = WorkerLoop(Exchange(world.transport, 0, DeadlineConfig()), config, replica, gradient, compute, local_of(config))
    loop.start(initial=True)
    for _ in range(WINDOWS + 2):
        loop.window()
    loop.finish()
    loop.close()
    assert loop.sum.dropped == cluster.dropped == 2
    out = torch.empty(quadratic.SIZE)
    shards.parameters(out)
    assert torch.equal(out, replica) and out.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delay": 1, "local": LocalConfig("always")}, "set worker.delay to 2 or more"),
        ({"delay": 1, "delay_ramp_words": 100}, "delay_ramp_words has no effect with worker.delay=1"),
        ({"local": LocalConfig("compensate")}, "compensate has no effect with worker.overlap=0"),
        ({"overlap": 1, "local": LocalConfig("always", write_back=True)}, "write_back=true with worker.overlap=1, expected"),
        ({"delay": 2, "local": LocalConfig("always", carry=True)}, "carry=true has no effect with worker.overlap=0"),
        ({"overlap": 1, "local": LocalConfig("always", average=True)}, "set worker.local.carry to true"),
        ({"delay": 2, "delay_ramp_words": -1}, "delay_ramp_words is -1"),
        ({"overlap_from_words": 100}, "overlap_from_words has no effect with worker.overlap=0"),
        ({"overlap": 1, "overlap_from_words": -1}, "overlap_from_words is -1"),
        ({"delay": 3, "delay_ramp_words": 1000, "local": LocalConfig("warmup", warmup_words=500)}, "keeps windows at one batch"),
    ],
)
def test_policies_without_effect_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerConfig(**arguments)  # type: ignore[arg-type]


def test_later_betas_of_local_steps_come_before_their_end() -> None:
    switch = {gradual: AdamConfig(later=LaterBetas(101, gradual=gradual)) for gradual in (False, True)}
    with pytest.raises(ValueError, match=r"later.words=101, expected at most worker.local.warmup_words=100"):
        LocalConfig("warmup", warmup_words=100, optimizer=switch[False])
    for words, batches, gradual in ((101, 0, False), (0, 5, False), (100, 0, True)):
        assert LocalConfig("warmup", words, batches, switch[gradual]).optimizer == switch[gradual]


def test_only_steps_after_every_batch_to_the_end_are_averaged() -> None:
    with pytest.raises(ValueError, match="average=true with worker.local.mode=warmup, expected worker.local.mode=always"):
        LocalConfig("warmup", warmup_words=100, average=True)
    with pytest.raises(ValueError, match="average=true with worker.local.write_back=true, expected"):
        LocalConfig("always", average=True, write_back=True)


@pytest.mark.parametrize(("words", "batches"), [(0, 0), (10, 10), (-1, 5)])
def test_a_warmup_has_one_end(words: int, batches: int) -> None:
    with pytest.raises(ValueError, match="exactly one of them above 0|neither to be negative"):
        LocalConfig("warmup", words, batches)
