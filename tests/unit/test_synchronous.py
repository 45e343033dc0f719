"""Synchronous training in one process: buckets in any order of readiness, the loop against the plain loop, dropped windows, the end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcnmt.data.batching import make_batch
from hpcnmt.distributed.collective import find_world
from hpcnmt.distributed.synchronous import BucketedSum, Compute, LastBatch, SyncConfig, SynchronousLoop, bucket_bounds
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig
from hpcnmt.optim.adam import AdamConfig
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.update import Update, UpdateConfig
from hpcnmt.optim.window import GradientWindow
from hpcnmt.training.synchronous import ReadyHooks
from tests import quadratic
from tests.threaded import ThreadedCollective, run_ranks

CONFIG = SyncConfig("torch", bucket_bytes=400)


@given(st.integers(1, 300), st.integers(1, 400))
def test_bounds_tile_the_gradient_and_only_the_first_bucket_is_short(size: int, elements: int) -> None:
    bounds = bucket_bounds(size, elements)
    assert [i for begin, end in bounds for i in range(begin, end)] == list(range(size))
    assert all(end - begin == elements for begin, end in bounds[1:]) and bounds[0][1] <= elements


def pieces(size: int, cuts: set[int], seed: int) -> list[tuple[int, int]]:
    """[0, size) cut at `cuts`, shuffled."""
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < size), size]
    found = list(zip(edges, edges[1:], strict=False))
    random.Random(seed).shuffle(found)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 70), st.sets(st.integers(1, 59), max_size=12), st.integers(0, 999),
    st.floats(0, 1),
)  # fmt: skip
def test_any_sizes_and_any_order_of_readiness_give_the_same_sum_in_the_same_order(
    ranks: int, size: int, elements: int, cuts: set[int], seed: int, told: float
) -> None:
    bounds = bucket_bounds(size, elements)

    def program(collective: ThreadedCollective) -> tuple[torch.Tensor, list[str]]:
        gradient = torch.zeros(size)
        buckets = BucketedSum(collective, gradient, bounds)
        for window in range(2):
            gradient.copy_(torch.arange(size) * (collective.rank + 1) + window)
            order = pieces(size, cuts, seed + collective.rank)
            missing = set(range(size))
            for begin, end in order[: round(told * len(order))]:  # the rest is never marked: finish takes it
                buckets.ready(begin, end)
                missing -= set(range(begin, end))
                started = collective.started[window * len(bounds) :]
                complete = [not missing & set(range(*bound)) for bound in reversed(bounds)]
                assert len(started) == (complete.index(False) if False in complete else len(bounds))  # no sooner and no later
            buckets.finish()
        return gradient, collective.started

    expected_order = [f"bucket {i}" for i in reversed(range(len(bounds)))] * 2
    for gradient, started in run_ranks(ranks, program):
        assert started == expected_order
        assert torch.equal(gradient, sum((torch.arange(size) * (rank + 1) + 1 for rank in range(ranks)), torch.zeros(size)))


def test_wrong_buckets_and_marks_are_refused() -> None:
    def program(collective: ThreadedCollective) -> None:
        with pytest.raises(ValueError, match="expected them to tile"):
            BucketedSum(collective, torch.zeros(10), [(0, 4), (5, 10)])
        buckets = BucketedSum(collective, torch.zeros(10), [(0, 4), (4, 10)])
        buckets.ready(2, 6)
        with pytest.raises(RuntimeError, match="marked ready twice"):
            buckets.ready(0, 3)

    run_ranks(1, program)
    with pytest.raises(ValueError, match="sync.bucket_bytes is 0"):
        SyncConfig(bucket_bytes=0)


def loop_of(
    collective: ThreadedCollective, delay: int = 1, clip_norm: float = 1.0, ramp_words: int = 0
) -> tuple[SynchronousLoop, torch.Tensor]:  # fmt: skip
    """The quadratic problem; worker = rank. Returns the flat gradient, too."""
    parameters, gradient = quadratic.initial(), torch.zeros(quadratic.SIZE)
    batch = quadratic.batches(parameters, gradient, collective.rank)

    def compute(last: LastBatch | None) -> BatchCounts:
        counts = batch()
        if last is not None:
            last.counted(counts)
            for begin, end in pieces(quadratic.SIZE, set(range(50, quadratic.SIZE, 90)), collective.rank):
                last.ready(begin, end)
        return counts

    window, update = GradientWindow(gradient, clip_norm), Update(quadratic.SIZE, quadratic.UPDATE)
    delay_at = WorkerConfig(delay, delay_ramp_words=ramp_words).delay_at
    return SynchronousLoop(collective, CONFIG, delay_at, window, update, parameters, compute), gradient


@pytest.mark.parametrize(("delay", "ramp_words"), [(1, 0), (3, 0), (3, 1000)])
def test_one_rank_equals_the_plain_loop_bit_for_bit(delay: int, ramp_words: int) -> None:
    def program(collective: ThreadedCollective) -> torch.Tensor:
        loop, _ = loop_of(collective, delay, ramp_words=ramp_words)
        loop.start()
        for _ in range(50):
            loop.window()
        assert set(loop.activity.seconds) == {"compute", "wait", "pack", "step"}
        return loop.parameters

    assert torch.equal(run_ranks(1, program)[0], quadratic.plain_loop(50, delay, ramp_words=ramp_words))


def test_a_window_with_a_nan_is_dropped_on_all_ranks_and_they_stay_equal() -> None:
    def program(collective: ThreadedCollective) -> tuple[torch.Tensor, int, int]:
        loop, gradient = loop_of(collective)
        sound: Compute = loop.compute
        windows = iter(range(100))

        def spoiled(last: LastBatch | None) -> BatchCounts | None:
            if next(windows) in (3, 4) and collective.rank == 1:
                gradient[17] = float("nan")
            return sound(last)

        loop.compute = spoiled
        loop.start()
        for _ in range(10):
            loop.window()
        assert not gradient.any()
        return loop.parameters, loop.sum.dropped, loop.update.words

    first, second, third = run_ranks(3, program)
    assert first[1:] == second[1:] == third[1:] and first[1] == 2
    assert first[0].isfinite().all() and torch.equal(first[0], second[0]) and torch.equal(first[0], third[0])


def test_a_wish_of_rank_0_ends_all_ranks_after_the_same_window() -> None:
    def program(collective: ThreadedCollective) -> int:
        loop, _ = loop_of(collective)
        loop.start()
        while not loop.stopped:
            loop.window()
            loop.ask_to_stop = collective.rank == 0 and loop.windows == 4
        return loop.windows

    assert run_ranks(3, program) == [5, 5, 5]


def test_ranks_without_data_contribute_zeros_and_all_end_together() -> None:
    def program(collective: ThreadedCollective) -> tuple[int, list[int], torch.Tensor]:
        loop, _ = loop_of(collective, delay=2)
        endless, batches = loop.compute, iter(range((0, 3, 8)[collective.rank]))
        loop.compute = lambda last: None if next(batches, None) is None else endless(last)
        loop.start()
        words = []
        while total := loop.window().target_words:
            words.append(total)
        return loop.update.words, words, loop.parameters

    found = run_ranks(3, program)
    assert [words for _, words, _ in found] == [found[0][1]] * 3 and len(found[0][1]) == 4
    assert all(torch.equal(parameters, found[0][2]) for _, _, parameters in found)


def test_the_counts_go_first() -> None:
    def program(collective: ThreadedCollective) -> None:
        loop, _ = loop_of(collective)
        loop.start()
        sound = loop.compute

        def hasty(last: LastBatch | None) -> BatchCounts | None:
            assert last is not None
            last.ready(0, 1)
            return None

        def doubled(last: LastBatch | None) -> BatchCounts | None:
            counts = sound(last)
            assert last is not None and counts is not None
            last.counted(counts)
            return counts

        for compute, message in ((hasty, "ready before LastBatch.counted"), (doubled, "second call of LastBatch.counted")):
            loop.compute = compute
            with pytest.raises(RuntimeError, match=message):
                loop.window()

    run_ranks(1, program)


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_hooks_tell_every_parameter_once_and_buckets_leave_during_the_backward_pass(kind: str) -> None:
    config = ModelConfig("transformer", 30, 0, 16, 24, 2, 2, 32, heads=2)
    model = build_model(replace(config, type="gru") if kind == "gru" else config, 1)
    flat = FlatParameters(model)
    hooks = ReadyHooks(model, flat)
    ids = make_batch([torch.arange(4, 9).numpy()], [torch.arange(4, 8).numpy()], [0])

    def backward() -> None:
        flat.gradients.zero_()
        torch.manual_seed(0)  # dropout
        torch.autograd.backward(model.loss_sum(ids.source_ids, ids.source_lengths, ids.target_ids, ids.target_lengths)[0])

    backward()
    expected = flat.gradients.clone()
    told: list[tuple[int, int]] = []
    started: list[int] = []  # buckets before each mark

    def program(collective: ThreadedCollective) -> None:
        buckets = BucketedSum(collective, flat.gradients, bucket_bounds(flat.size, flat.size // 8))

        def ready(begin: int, end: int) -> None:
            told.append((begin, end))
            started.append(len(collective.started))
            buckets.ready(begin, end)

        hooks.ready = ready
        backward()
        assert len(collective.started) == len(buckets.bounds)  # nothing is left for finish
        buckets.finish()

    run_ranks(1, program)
    assert torch.equal(flat.gradients, expected)
    assert sorted(told) == sorted(flat.ranges.values())
    assert started[-1] >= 4  # half of the model had left before its last parameter was ready


def test_torchrun_without_a_fitting_world_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="found 3 ranks of torchrun, expected 2 workers: use --workers 3"):
        find_world("torch", 2)
    assert find_world("torch", 3).launcher == "torchrun"


def test_a_stall_on_rank_0_restarts_the_warmup_on_all_ranks_before_the_next_update() -> None:
    schedule = ScheduleConfig(0.05, 200, reference_words=20, restart_on_stall=True)

    def program(collective: ThreadedCollective) -> tuple[torch.Tensor, list[int], list[int]]:
        loop, _ = loop_of(collective)
        loop.update = Update(quadratic.SIZE, UpdateConfig(AdamConfig(), schedule))
        loop.start()
        words, restarts = [], []
        for window in range(8):
            loop.stalled = window in (2, 5) and collective.rank == 0
            loop.window()
            words.append(loop.update.words)
            restarts.append(loop.update.stalled_at_words)
        return loop.parameters, words, restarts

    first, second = run_ranks(2, program)
    assert torch.equal(first[0], second[0]) and first[1:] == second[1:]
    words, restarts = first[1:]
    assert restarts == [0, 0, *[words[1]] * 3, *[words[4]] * 3]
