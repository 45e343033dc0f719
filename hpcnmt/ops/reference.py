"""Every operator in plain torch: what the kernels are tested against, and what runs where none were built.

Same arguments and same meaning as in library.py; arithmetic in the type of the state (float32; tests of equivalence run it in float64)
without fused multiply-add, so the last bits may differ. An element whose result would not be finite keeps its state and is counted in
stats[1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _end(stats: Tensor, sum_squares: Tensor | float, good: Tensor) -> None:
    stats[0] = sum_squares
    stats[1] += good.numel() - torch.count_nonzero(good)


def accumulate(accumulator: Tensor, gradient: Tensor, stats: Tensor, scale: float, zero_gradient: bool) -> None:
    """accumulator += scale * gradient, then gradient = 0."""
    total = accumulator + scale * gradient.to(accumulator.dtype)
    good = total.isfinite()
    accumulator.copy_(torch.where(good, total, accumulator))
    if zero_gradient:
        gradient.zero_()
    _end(stats, accumulator.double().square().sum(), good)


def sum_squares(values: Tensor, stats: Tensor) -> None:
    """stats = (sum of squares of the finite values, count of the others added)."""
    good = values.isfinite()
    _end(stats, torch.where(good, values, 0.0).double().square().sum(), good)


def step(
    gradient: Tensor, parameters: Tensor, moment1: Tensor, moment2: Tensor | None, factors: Tensor, stats: Tensor,
    accumulator: Tensor | None = None, out: Tensor | None = None, ema: Tensor | None = None, zero_gradient: bool = False,
) -> None:  # fmt: skip
    """Accumulate, optimizer step, moving average, publish."""
    scale, beta1, rest1, beta2, rest2, root_scale, epsilon, size, decay, ema_share = factors.unbind()
    raw = gradient.to(parameters.dtype)
    total = raw if accumulator is None else accumulator + raw
    good = total.isfinite()
    mean = raw * scale
    if moment2 is None:
        new1 = beta1 * moment1 + mean
        new = decay * parameters - size * new1
        good = good & mean.isfinite() & new.isfinite()
    else:
        new1 = moment1 + rest1 * (mean - moment1)
        new2 = beta2 * moment2 + rest2 * mean * mean
        new = decay * parameters - size * (new1 / (new2.sqrt() * root_scale + epsilon))
        good = good & mean.isfinite() & new2.isfinite() & new.isfinite()
        moment2.copy_(torch.where(good, new2, moment2))
    moment1.copy_(torch.where(good, new1, moment1))
    target = parameters if out is None else out
    target.copy_(torch.where(good, new, parameters))
    kept = torch.where(good, total, 0.0 if accumulator is None else accumulator)
    if accumulator is not None:
        accumulator.copy_(kept)
    if ema is not None:
        ema.add_(ema_share * (target - ema))
    if zero_gradient:
        gradient.zero_()
    _end(stats, 0.0 if accumulator is None else kept.double().square().sum(), good)


def pack(accumulator: Tensor, wire: Tensor, residual: Tensor | None, stats: Tensor, words: float, clip_norm: float) -> None:
    """wire = round(min(1, clip / norm) * accumulator + residual), residual = what rounding lost, accumulator = 0."""
    norm = math.sqrt(float(stats[0])) / words
    scale = clip_norm / norm if norm > clip_norm > 0 else 1.0
    value = accumulator * scale if residual is None else accumulator * scale + residual
    good = value.isfinite() & value.to(wire.dtype).isfinite()
    sent = torch.where(good, value, 0.0).to(wire.dtype)
    wire.copy_(sent)
    if residual is not None:
        residual.copy_(torch.where(good, value - sent.to(value.dtype), residual))
    accumulator.zero_()
    stats[1] += good.numel() - torch.count_nonzero(good)


def select(gradient: Tensor, residual: Tensor, values: Tensor, indices: Tensor, stats: Tensor, threshold: float) -> None:
    """Moves the elements of gradient + residual that reach the threshold into (values, indices), in order, as far as these have room."""
    total = gradient.to(residual.dtype) + residual
    good = total.isfinite()
    found = torch.nonzero(good & (total.abs() >= threshold)).flatten()[: values.numel()]
    values[: found.numel()] = total[found]
    indices[: found.numel()] = found
    residual.copy_(torch.where(good, total, residual))
    residual[found] = 0.0
    gradient.zero_()
    _end(stats, float(found.numel()), good)
