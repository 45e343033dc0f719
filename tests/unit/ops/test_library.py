"""The operators as torch sees them: schemas, fake tensors, compiled programs; which implementation is chosen, and clear refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.ops import library

ROOT = Path(__file__).parents[3]


def rand(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(100).to(dtype)


def samples() -> list[tuple[str, tuple[object, ...], dict[str, object]]]:
    factors = ops.StepFactors(0.1).fill(torch.empty(ops.FACTORS))
    full = {"accumulator": rand(), "out": rand(), "ema": rand(), "zero_gradient": True}
    half = torch.bfloat16
    return [
        ("accumulate", (rand(), rand(half), ops.new_stats(), 2.0, True), {}),
        ("sum_squares", (rand(), ops.new_stats()), {}),
        ("step", (rand(), rand(), rand(), rand(), factors, ops.new_stats()), full),
        ("step", (rand(half), rand(), rand(), None, factors, ops.new_stats()), {}),
        ("pack", (rand(), rand(half), rand(), ops.new_stats(), 3.0, 1.0), {}),
        ("select", (rand(), rand(), torch.empty(10), torch.empty(10).long(), ops.new_stats(), 0.9), {}),
    ]


@pytest.mark.parametrize("index", range(6))
def test_opcheck(index: int) -> None:
    name, arguments, options = samples()[index]
    torch.library.opcheck(getattr(torch.ops.hpcnmt, name).default, arguments, options)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_program_does_the_same(backend: str) -> None:
    def program(p: Tensor, g: Tensor, m: Tensor, v: Tensor, a: Tensor, factors: Tensor, stats: Tensor) -> Tensor:
        ops.local_step_(p, g * 2, m, v, factors, stats, a)
        ops.sum_squares(m, stats)
        return p + 1

    factors = ops.StepFactors(0.1).fill(torch.empty(ops.FACTORS))
    arguments = [rand() for _ in range(5)] + [factors, ops.new_stats()]
    ours, theirs = [a.clone() for a in arguments], [a.clone() for a in arguments]
    compiled = torch.compile(program, backend=backend, fullgraph=True)
    assert torch.equal(program(*ours), compiled(*theirs))
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": torch.ones(99)}, "gradient has 99 elements, expected 100"),
        ({"gradient": torch.ones(100, dtype=torch.float64)}, "expected float32 or bfloat16"),
        ({"moment1": torch.ones(200)[::2]}, "moment1 is not contiguous"),
        ({"factors": torch.ones(3)}, "factors is Float of 3 elements"),
        ({"ema": torch.ones(100, dtype=torch.bfloat16)}, "ema is BFloat16, expected float32"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(change: dict[str, Tensor], message: str) -> None:
    arguments = {"gradient": rand(), "parameters": torch.ones(100), "moment1": rand(), "moment2": rand(),
                 "factors": torch.ones(ops.FACTORS), "stats": ops.new_stats()} | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        torch.ops.hpcnmt.step(**arguments)
    assert arguments["parameters"].eq(1).all()


def in_use(folder: Path, **environment: str) -> str:
    command = [sys.executable, "-c", "from hpcnmt import ops; print(ops.IN_USE)"]
    variables = os.environ | {"PYTHONPATH": str(folder)} | environment
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_reference_on_demand() -> None:
    assert in_use(ROOT, HPCNMT_KERNELS="reference").startswith("torch reference")


@pytest.mark.usefixtures("kernels")
def test_kernels_of_another_torch_are_not_loaded(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "hpcnmt", tmp_path / "hpcnmt")
    (built,) = (tmp_path / "hpcnmt/ops").glob("_kernels*.so")
    assert in_use(tmp_path).startswith("compiled")
    version = str(torch.__version__).encode()
    built.write_bytes(built.read_bytes().replace(b"for-torch=" + version, b"for-torch=" + b"0" * len(version)))
    assert "install hpcnmt again" in in_use(tmp_path)
    built.unlink()
    assert "no kernels were built" in in_use(tmp_path)


def test_threshold_keeps_about_the_share_it_was_asked_for() -> None:
    gradient, residual = torch.randn(50_000), torch.zeros(50_000)
    threshold = ops.estimate_threshold(gradient, residual, 0.01, samples=10_000)
    assert 0.005 < float((gradient.abs() >= threshold).float().mean()) < 0.02
    assert library.IN_USE == ops.IN_USE
