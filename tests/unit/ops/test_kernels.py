"""The compiled kernels against the plain torch reference: any size, alignment, type, constants; any number of threads; any processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcnmt import ops
from hpcnmt.ops import reference

BLOCK = 16384  # elements of one block of the kernels (csrc/cpu/bind.cpp)
SIZES = st.one_of(st.integers(0, 200), st.integers(BLOCK - 40, BLOCK + 40), st.integers(3 * BLOCK - 5, 3 * BLOCK + 5))
OFFSETS = st.integers(0, 17)
TYPES = st.sampled_from([torch.float32, torch.bfloat16])
LARGE = 1 << 20  # from here on results are written past the caches


def vectors(seed: int, size: int, offset: int, count: int) -> list[Tensor]:
    """`count` random vectors [size] that begin `offset` elements into their memory."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size + offset, generator=generator)[offset:] for _ in range(count)]


def assert_close(found: Tensor | None, expected: Tensor | None) -> None:
    if found is not None and expected is not None:
        torch.testing.assert_close(found.float(), expected.float(), rtol=2e-6, atol=2e-6)


def copies(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.clone() for t in tensors]


def step_arguments(seed: int, size: int, offset: int, dtype: torch.dtype) -> list[Tensor]:
    gradient, parameters, moment1, moment2, accumulator, out, ema = vectors(seed, size, offset, 7)
    return [gradient.to(dtype), parameters, 0.1 * moment1, moment2.square(), accumulator, out, ema]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31), size=SIZES, offset=OFFSETS, dtype=TYPES, beta1=st.floats(-0.9, 0.99), beta2=st.floats(0.5, 0.9999),
    decay=st.sampled_from([0.0, 0.1]), optional=st.tuples(*[st.booleans()] * 5),
)  # fmt: skip
@example(1, LARGE + 5, 3, torch.float32, 0.9, 0.98, 0.1, (True, False, True, True, False))
@example(2, LARGE + 5, 1, torch.bfloat16, 0.9, 0.98, 0.0, (True, True, True, False, True))
def test_step(
    seed: int, size: int, offset: int, dtype: torch.dtype, beta1: float, beta2: float, decay: float, optional: tuple[bool, ...]
) -> None:
    has_moment2, has_accumulator, has_out, has_ema, zero = optional
    factors = ops.StepFactors(0.01, 0.3, beta1, beta2, 1e-8, 1 - beta1**3, 1 - beta2**3, decay, 0.2).fill(torch.empty(ops.FACTORS))
    gradient, parameters, moment1, moment2, accumulator, out, ema = step_arguments(seed, size, offset, dtype)
    chosen = [gradient, parameters, moment1, *(t if has else None for t, has in
              zip((moment2, accumulator, out, ema), (has_moment2, has_accumulator, has_out, has_ema), strict=True))]  # fmt: skip
    results = []
    for implementation in (torch.ops.hpcnmt.step, reference.step):
        g, p, m, v, a, o, e = copies(*chosen)
        stats = ops.new_stats()
        implementation(g, p, m, v, factors, stats, accumulator=a, out=o, ema=e, zero_gradient=zero)
        results.append([g, p, m, v, a, o, e, stats])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**31), size=SIZES, offset=OFFSETS, dtype=TYPES, scale=st.floats(-3, 3), zero=st.booleans())
def test_accumulate_and_sum_squares(seed: int, size: int, offset: int, dtype: torch.dtype, scale: float, zero: bool) -> None:
    accumulator, gradient = vectors(seed, size, offset, 2)
    results = []
    for implementation in (torch.ops.hpcnmt.accumulate, reference.accumulate):
        a, g, stats = accumulator.clone(), gradient.to(dtype, copy=True), ops.new_stats()
        implementation(a, g, stats, scale, zero)
        results.append([a, g, stats])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)
    again = ops.new_stats()
    ops.sum_squares(results[0][0], again)
    assert torch.equal(again, results[0][2])


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31), size=SIZES, offset=OFFSETS, dtype=TYPES, clip=st.sampled_from([0.0, 0.01, 100.0]),
    feedback=st.booleans(),
)  # fmt: skip
@example(1, LARGE + 5, 3, torch.float32, 0.01, True)
@example(2, LARGE + 5, 1, torch.bfloat16, 0.0, True)
def test_pack(seed: int, size: int, offset: int, dtype: torch.dtype, clip: float, feedback: bool) -> None:
    accumulator, residual = vectors(seed, size, offset, 2)
    stats = ops.new_stats()
    ops.sum_squares(accumulator, stats)
    results = []
    for implementation in (torch.ops.hpcnmt.pack, reference.pack):
        a, r, s = accumulator.clone(), residual.clone() if feedback else None, stats.clone()
        wire = torch.empty(size + 1, dtype=dtype)[1:]
        implementation(a, wire, r, s, 7.0, clip)
        results.append([a, wire, r, s])
    (a, wire, rest, s), (_, expected, expected_rest, _) = results
    assert not a.any() and s[1] == 0
    ulp = 2e-6 if dtype == torch.float32 else 2**-7  # one fused rounding may fall on the other side of a tie
    torch.testing.assert_close(wire.float(), expected.float(), rtol=ulp, atol=1e-6)
    if feedback:
        torch.testing.assert_close(wire.float() + rest, expected.float() + expected_rest, rtol=2e-6, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), size=SIZES, dtype=TYPES, threshold=st.floats(0.0, 3.0), room=st.integers(1, 300))
def test_select(seed: int, size: int, dtype: torch.dtype, threshold: float, room: int) -> None:
    gradient, residual = vectors(seed, size, 0, 2)
    results = []
    for implementation in (torch.ops.hpcnmt.select, reference.select):
        g, r, stats = gradient.to(dtype, copy=True), residual.clone(), ops.new_stats()
        values, indices = torch.zeros(room), torch.zeros(room).long()
        implementation(g, r, values, indices, stats, threshold)
        results.append([g, r, values, indices, stats])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=SIZES, offset=OFFSETS, dtype=TYPES, pushes=st.integers(1, 6))
def test_a_step_by_the_sum_of_several_pushes(seed: int, size: int, offset: int, dtype: torch.dtype, pushes: int) -> None:
    inbox = [push.to(dtype) for push in vectors(seed, size, offset, pushes)]
    as_pushed = [push.clone() for push in inbox]
    parameters, moment1, moment2, ema = vectors(seed + 1, size, offset, 4)
    moment2 = 0.1 + moment2.square()
    factors = ops.StepFactors(0.01, 1 / pushes, 0.9, 0.98, ema_share=0.2).fill(torch.empty(ops.FACTORS))
    total, stats, out = torch.zeros(size), ops.new_stats(), torch.empty(size)
    for push in inbox:
        ops.accumulate_(total, push, stats, zero_gradient=False)
    exact = torch.stack([push.double() for push in inbox]).sum(0)
    torch.testing.assert_close(total.double(), exact, rtol=2e-6, atol=2e-6)
    assert all(torch.equal(push, before) for push, before in zip(inbox, as_pushed, strict=True))
    m, v, e = moment1.clone(), moment2.clone(), ema.clone()
    ops.shard_step_(total, parameters, m, v, factors, stats, out=out, ema=e, zero_wire=True)
    expected = torch.empty(size)
    reference.step(exact.float(), parameters, moment1, moment2, factors, ops.new_stats(), out=expected, ema=ema)
    for found, wanted in zip((out, m, v, e), (expected, moment1, moment2, ema), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not total.any() and stats[1] == 0


def test_error_feedback_loses_nothing_over_many_windows() -> None:
    generator = torch.Generator().manual_seed(1)
    total, sent = torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    residual, wire, stats = torch.zeros(1000), torch.empty(1000, dtype=torch.bfloat16), ops.new_stats()
    for _ in range(200):
        gradient = torch.randn(1000, generator=generator)
        total += gradient
        ops.sum_squares(gradient, stats)
        ops.pack_(gradient, wire, stats, 1, 0.0, residual)
        sent += wire
    assert float((total - sent - residual).abs().max()) < 1e-4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("size", [7, BLOCK + 3, LARGE + 3])
def test_an_element_that_is_not_finite_is_left_as_it_is_and_counted(bad: float, size: int) -> None:
    gradient, parameters, moment1, moment2, accumulator, out, ema = step_arguments(3, size, 1, torch.float32)
    places = torch.tensor([0, size // 2, size - 1])
    gradient[places] = bad
    before = [t[places].clone() for t in (parameters, moment1, moment2, accumulator)]
    factors = ops.StepFactors(0.1, 1.0).fill(torch.empty(ops.FACTORS))
    stats = ops.new_stats()
    torch.ops.hpcnmt.step(gradient, parameters, moment1, moment2, factors, stats, accumulator=accumulator, out=out, zero_gradient=True)
    assert stats[1] == 3
    for vector, kept in zip((out, moment1, moment2, accumulator), before, strict=True):
        assert torch.equal(vector[places], kept)
        assert vector.isfinite().all()
    others = torch.ones(size, dtype=torch.bool).index_fill_(0, places, False)
    assert (out[others] != parameters[others]).float().mean() > 0.99
    assert not gradient.any()


def test_pack_sends_zero_for_what_is_not_finite() -> None:
    accumulator = torch.tensor([1.0, float("nan"), 3.395e38, -2.0])
    wire, residual, stats = torch.empty(4, dtype=torch.bfloat16), torch.full((4,), 0.5), ops.new_stats()
    ops.pack_(accumulator, wire, stats, 1, 0.0, residual)
    assert wire.tolist() == [1.5, 0.0, 0.0, -1.5] and stats[1] == 2
    assert residual.tolist() == [0.0, 0.5, 0.5, 0.0]


DIGESTS = """
import hashlib, torch
from hpcnmt import ops
from tests.unit.ops.test_kernels import step_arguments
digest = hashlib.sha256()
factors = ops.StepFactors(0.01, 0.3, 0.9, 0.98, 1e-8, 0.3, 0.1, 0.1, 0.2).fill(torch.empty(ops.FACTORS))
for size in (1, 33, 16385, 300001, 2000003):
    for dtype in (torch.float32, torch.bfloat16):
        g, p, m, v, a, o, e = step_arguments(size, size, 1, dtype)
        stats = ops.new_stats()
        torch.ops.hpcnmt.step(g, p, m, v, factors, stats, accumulator=a, out=o, ema=e)
        if %(sums)d: digest.update(stats.numpy().tobytes())
        ops.accumulate_(a, g, stats, 0.5, False)
        if %(sums)d: digest.update(stats.numpy().tobytes())
        values, indices = torch.zeros(size // 3), torch.zeros(size // 3, dtype=torch.int64)
        ops.drop_small_(g, m.clone(), values, indices, ops.new_stats(), 0.5)
        digest.update(values.numpy().tobytes() + indices.numpy().tobytes())
        wire = torch.empty(size, dtype=dtype)
        stats[0] = 0  # no clipping: sums may differ between instruction sets
        ops.pack_(a, wire, stats, 10, 1.0, e)
        for t in (p, m, v, o, wire.float(), e):
            digest.update(t.numpy().tobytes())
print(ops.IN_USE.split()[2].strip(','), digest.hexdigest())
"""


def digest(sums: bool, **environment: str) -> tuple[str, str]:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", DIGESTS % {"sums": sums}]
    variables = os.environ | {"PYTHONPATH": str(root)} | environment
    result = subprocess.run(command, env=variables, cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    name, value = result.stdout.split()
    return name, value


@pytest.mark.usefixtures("kernels")
def test_the_same_bits_from_any_number_of_threads() -> None:
    assert len({digest(True, OMP_NUM_THREADS=str(threads)) for threads in (1, 2, 5)}) == 1


@pytest.mark.usefixtures("kernels")
def test_the_same_bits_from_every_instruction_set() -> None:
    found = [digest(False, HPCNMT_CPU_KERNELS=name, OMP_NUM_THREADS="1") for name in ("scalar", "avx2", "avx512")]
    assert found[0][0] == "scalar" and len({value for _, value in found}) == 1, found
