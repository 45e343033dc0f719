"""The typed door to the kernels: everything that touches each parameter once per batch or update, in one pass at the speed of memory.

All vectors are flat and contiguous. State (parameters, moments, accumulators, averages) is float32; gradients and the wire are float32 or
bfloat16. Every operator works on the current stream, returns nothing, and reports through `stats`, two float64 on the same device:
stats[0] = the sum of squares that its docstring names, stats[1] += the number of elements left untouched because a result would not have
been finite. Sums do not depend on the number of threads. Kernels: csrc/; plain torch: reference.py; `IN_USE` says which run.
Called by shards, workers and every training loop; nothing else in hpcnmt implements an optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcnmt.ops.factors import FACTORS, SMALLEST_EPSILON, StepFactors
from hpcnmt.ops.library import COMPILED, IN_USE

__all__ = [
    "COMPILED", "FACTORS", "IN_USE", "SMALLEST_EPSILON", "StepFactors", "accumulate_", "drop_small_", "estimate_threshold", "local_step_",
    "new_stats", "pack_", "shard_step_", "sum_squares",
]  # fmt: skip
_ops = torch.ops.hpcnmt


def new_stats(device: torch.device | str = "cpu") -> Tensor:
    """Zeroed statistics [2]."""
    return torch.zeros(2, dtype=torch.float64, device=device)


def accumulate_(accumulator: Tensor, gradient: Tensor, stats: Tensor, scale: float = 1.0, zero_gradient: bool = True) -> None:
    """accumulator += scale * gradient; gradient = 0 unless told otherwise. stats[0]: of the new accumulator.

    With zero_gradient=False also the sum of several pushes on a shard, read from window memory in the wire's type: a `shard_step_` with
    zero_wire=True then updates by the sum and clears it for the next one.
    """
    _ops.accumulate(accumulator, gradient, stats, scale, zero_gradient)


def sum_squares(values: Tensor, stats: Tensor) -> None:
    """stats[0]: of the finite `values`; the others are counted."""
    _ops.sum_squares(values, stats)


def local_step_(
    parameters: Tensor, gradient: Tensor, moment1: Tensor, moment2: Tensor | None, factors: Tensor, stats: Tensor,
    accumulator: Tensor | None = None,
) -> None:  # fmt: skip
    """A worker's local step: accumulator += gradient (if given), one optimizer step on the replica, gradient = 0.

    Adam or AdamW; with moment2 = None SGD with momentum. `factors` [FACTORS] from `StepFactors`. stats[0]: of the new accumulator, 0
    where there is none.
    """
    _ops.step(gradient, parameters, moment1, moment2, factors, stats, accumulator=accumulator, zero_gradient=True)


def pack_(accumulator: Tensor, wire: Tensor, stats: Tensor, words: float, clip_norm: float, residual: Tensor | None = None) -> None:
    """wire = round(scale * accumulator + residual); residual = what rounding lost; accumulator = 0.

    scale = min(1, clip_norm / norm) with norm = sqrt(stats[0]) / words, the norm of the mean gradient per word; clip_norm 0 = off. stats[0]
    must hold the sum of squares of the accumulator (from `accumulate_`, `local_step_` or `sum_squares`). Error feedback after Seide et al.
    2014: only with bfloat16 on the wire is there anything to keep.
    """
    _ops.pack(accumulator, wire, residual, stats, words, clip_norm)


def shard_step_(
    wire: Tensor, parameters: Tensor, moment1: Tensor, moment2: Tensor | None, factors: Tensor, stats: Tensor,
    out: Tensor | None = None, ema: Tensor | None = None, zero_wire: bool = False,
) -> None:  # fmt: skip
    """A shard's update straight from window memory: step by the pushed sum, moving average, new parameters to `out` (default: in place).

    `zero_wire`: clears `wire` in the same pass (a sum of several pushes; an inbox is left as it is).
    """
    _ops.step(wire, parameters, moment1, moment2, factors, stats, out=out, ema=ema, zero_gradient=zero_wire)


def drop_small_(gradient: Tensor, residual: Tensor, values: Tensor, indices: Tensor, stats: Tensor, threshold: float) -> None:
    """Gradient dropping (Aji & Heafield 2017): what reaches `threshold` in |gradient + residual| moves into `values` and `indices`.

    In order of the index, as far as these have room; the rest becomes the residual; gradient = 0. stats[0]: number of elements moved.
    """
    _ops.select(gradient, residual, values, indices, stats, threshold)


def estimate_threshold(gradient: Tensor, residual: Tensor, keep_share: float, samples: int = 100_000) -> float:
    """Magnitude that about `keep_share` of gradient + residual reach, from every n-th element (the sampling of Aji & Heafield 2017)."""
    if not 0.0 < keep_share <= 1.0:
        raise ValueError(f"keep_share is {keep_share}, expected more than 0 and at most 1")
    stride = max(1, gradient.numel() // samples)
    magnitudes = (gradient[::stride].float() + residual[::stride]).abs()
    kept = max(1, round(keep_share * magnitudes.numel()))
    return float(torch.kthvalue(magnitudes, magnitudes.numel() - kept + 1).values)
