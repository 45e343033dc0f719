"""The CUDA kernels against the torch reference on the same device; graphs, streams, vectors beyond 2^31 elements. Run by env/gpu.sh."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.ops import reference
from tests.need import need

pytestmark = pytest.mark.gpu
SIZES = [0, 1, 3, 255, 1024, 4099, 1_000_003]
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def cuda() -> None:
    need("gpu", torch.cuda.is_available(), "no GPU here")
    assert ", CUDA" in ops.IN_USE, ops.IN_USE


def vectors(size: int, offset: int, count: int) -> list[Tensor]:
    torch.manual_seed(size + offset)
    return [torch.randn(size + offset, device="cuda")[offset:] for _ in range(count)]


def constants() -> Tensor:
    return ops.StepFactors(0.01, 0.3, 0.9, 0.98, 1e-8, 0.3, 0.1, 0.1, 0.2).fill(torch.empty(ops.FACTORS, device="cuda"))


def assert_close(found: Tensor | None, expected: Tensor | None) -> None:
    if found is not None and expected is not None and not found.is_floating_point():
        assert torch.equal(found, expected)
    elif found is not None and expected is not None:
        torch.testing.assert_close(found.float(), expected.float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("size", "offset", "dtype"), [*itertools.product(SIZES, [0, 1], TYPES)])
@pytest.mark.parametrize("full", [True, False])
def test_step(size: int, offset: int, dtype: torch.dtype, full: bool) -> None:
    gradient, parameters, moment1, moment2, accumulator, out, ema = vectors(size, offset, 7)
    optional = [moment2.square(), accumulator, out, ema] if full else [None] * 4
    results = []
    for implementation in (torch.ops.hpcnmt.step, reference.step):
        g, p, m, v, a, o, e = (None if t is None else t.clone() for t in (gradient.to(dtype), parameters, moment1, *optional))
        stats = ops.new_stats("cuda")
        implementation(g, p, m, v, constants(), stats, accumulator=a, out=o, ema=e, zero_gradient=full)
        results.append([g, p, m, v, a, o, e, stats])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize(("size", "offset", "dtype"), [*itertools.product(SIZES, [0, 1], TYPES)])
def test_accumulate_pack_and_select(size: int, offset: int, dtype: torch.dtype) -> None:
    accumulator, gradient, residual = vectors(size, offset, 3)
    results = []
    for module in (torch.ops.hpcnmt, reference):
        a, g, r, stats = accumulator.clone(), gradient.to(dtype, copy=True), residual.clone(), ops.new_stats("cuda")
        module.accumulate(a, g, stats, 0.5, False)
        total, first = a.clone(), stats.clone()
        wire = torch.empty(size, dtype=dtype, device="cuda")
        module.pack(a, wire, None, stats, 10.0, 1e-3)
        values, indices = torch.zeros(100, device="cuda"), torch.zeros(100, dtype=torch.int64, device="cuda")
        module.select(g, r, values, indices, stats, 1.5)
        results.append([total, first, a, wire, g, r, values, indices, stats])
    for number, (found, expected) in enumerate(zip(*results, strict=True)):
        if number == 3 and dtype == torch.bfloat16:
            torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-6)
        else:
            assert_close(found, expected)


def test_not_finite_elements_are_left_and_counted() -> None:
    gradient, parameters, moment1, moment2, accumulator = vectors(100_003, 0, 5)
    places = torch.tensor([0, 50_000, 100_002], device="cuda")
    gradient[places] = float("nan")
    before = [t[places].clone() for t in (parameters, moment1, accumulator)]
    stats = ops.new_stats("cuda")
    ops.local_step_(parameters, gradient, moment1, moment2.square(), constants(), stats, accumulator)
    assert int(stats[1]) == 3 and not gradient.any()
    assert all(torch.equal(t[places], kept) for t, kept in zip((parameters, moment1, accumulator), before, strict=True))


def test_the_same_bits_every_time() -> None:
    (values,) = vectors(10_000_019, 0, 1)
    sums = set()
    for _ in range(10):
        stats = ops.new_stats("cuda")
        ops.sum_squares(values, stats)
        sums.add(float(stats[0]))
    assert len(sums) == 1


def test_a_captured_graph_reads_new_constants() -> None:
    gradient, parameters, moment1, moment2, accumulator = vectors(70_001, 0, 5)
    moment2.square_()
    state = (parameters, gradient, moment1, moment2)
    stats, factors = ops.new_stats("cuda"), constants()
    before = [t.clone() for t in (*state, accumulator)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.local_step_(*state, factors, stats, accumulator)
    for vector, start in zip((*state, accumulator), before, strict=True):
        vector.copy_(start)
    ops.StepFactors(0.5, 0.1).fill(factors)
    graph.replay()
    p, g, m, v, a = before
    ops.local_step_(p, g, m, v, factors, stats, a)
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip((*state, accumulator), (p, g, m, v, a), strict=True))


def test_the_current_stream_is_used() -> None:
    stream = torch.cuda.Stream()
    accumulator, gradient = torch.zeros(1000, device="cuda"), torch.zeros(1000, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        gradient.fill_(1.0)
        ops.accumulate_(accumulator, gradient, ops.new_stats("cuda"))
    torch.cuda.synchronize()
    assert accumulator.eq(1.0).all()


def test_more_than_2_to_the_31_elements() -> None:
    size = 2**31 + 5
    need("gpu", torch.cuda.mem_get_info()[0] > 20 * 2**30, "needs 20 GiB of GPU memory")
    accumulator = torch.zeros(size, device="cuda")
    gradient = torch.zeros(size, dtype=torch.bfloat16, device="cuda")
    gradient[-3:] = 2.0
    gradient[0] = 1.0
    stats = ops.new_stats("cuda")
    ops.accumulate_(accumulator, gradient, stats, zero_gradient=False)
    assert accumulator[-3:].tolist() == [2.0] * 3 and float(stats[0]) == 13.0
    values, indices = torch.zeros(10, device="cuda"), torch.zeros(10, dtype=torch.int64, device="cuda")
    ops.drop_small_(gradient, accumulator, values, indices, stats, 3.0)
    assert indices[:3].tolist() == [size - 3, size - 2, size - 1] and values[:3].tolist() == [4.0] * 3


def test_a_step_on_more_than_2_to_the_31_parameters() -> None:
    size = 2**31 + 5
    need("gpu", torch.cuda.mem_get_info()[0] > 34 * 2**30, "needs 34 GiB of GPU memory")
    parameters, moment1, moment2 = (torch.zeros(size, device="cuda") for _ in range(3))
    wire = torch.zeros(size, dtype=torch.bfloat16, device="cuda")
    wire[-3:] = 2.0
    stats = ops.new_stats("cuda")
    factors = ops.StepFactors(0.1, 1.0, 0.9, 0.98, 1e-8, 0.1, 0.02).fill(torch.empty(ops.FACTORS, device="cuda"))
    ops.shard_step_(wire, parameters, moment1, moment2, factors, stats)
    torch.testing.assert_close(parameters[-3:], torch.full((3,), -0.1, device="cuda"), rtol=1e-5, atol=0)
    assert int(parameters.count_nonzero()) == 3 and stats[1] == 0
    ops.pack_(moment1, wire, ops.new_stats("cuda"), 1.0, 0.0)
    assert not moment1.any() and int(wire.count_nonzero()) == 3 and wire[-3:].sub(0.2).abs().max() < 1e-3
