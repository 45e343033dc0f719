"""Adam's state on flat vectors; the arithmetic is that of hpcnmt.ops.

Recursive bias-correction denominators d = b d + (1-b) equal 1 - b^t for constant betas, allow betas to change in mid-run and make a resume
exact (Kingma & Ba 2015). Held by the update rule (update.py) and by a worker's local optimizer (local.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcnmt import ops

PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class AdamConfig:
    """Constants of Adam."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not -1.0 < value < 1.0:
                raise ValueError(f"optimizer.{name} is {value}, expected a number between -1 and 1")
        if self.beta2 < 0:
            raise ValueError(f"optimizer.beta2 is {self.beta2}, expected a number from 0 to 1: the second moment may not turn negative")
        if self.epsilon < ops.SMALLEST_EPSILON:
            raise ValueError(f"optimizer.epsilon is {self.epsilon}, expected at least {ops.SMALLEST_EPSILON}")


class Adam:
    """Adam state for `size` parameters on `device`; `stats` holds what the last step reported, `untouched` all elements it ever left."""

    def __init__(self, size: int, config: AdamConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.moment1 = torch.zeros(size, device=device)
        self.moment2 = torch.zeros(size, device=device)
        self.denominator1 = 0.0
        self.denominator2 = 0.0
        self.stats = ops.new_stats(device)
        self._factors = torch.empty(ops.FACTORS, device=device)

    def factors(self, learning_rate: float, gradient_scale: float, ema_share: float = 0.0) -> Tensor:
        """Advances the denominators by one step; returns the constants of that step for hpcnmt.ops."""
        config = self.config
        self.denominator1 = config.beta1 * self.denominator1 + (1.0 - config.beta1)
        self.denominator2 = config.beta2 * self.denominator2 + (1.0 - config.beta2)
        step = ops.StepFactors(
            learning_rate, gradient_scale, config.beta1, config.beta2, config.epsilon, self.denominator1, self.denominator2,
            ema_share=ema_share,
        )  # fmt: skip
        return step.fill(self._factors)

    def step(
        self, parameters: Tensor, gradient: Tensor, learning_rate: float, gradient_scale: float = 1.0, out: Tensor | None = None,
        ema: Tensor | None = None, ema_share: float = 0.0, between: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """One step on `parameters` [size] with `gradient_scale` * `gradient` [size]; the result goes to `out` (default: in place).

        `ema` [size] moves by `ema_share` towards the result. Elements with a non-finite result are left as they are and counted.
        With `between`, which is called in between, the step goes piece by piece; the result is the same to the bit.
        """
        factors = self.factors(learning_rate, gradient_scale, ema_share)
        piece = PIECE_ELEMENTS if between else max(parameters.numel(), 1)
        for begin in range(0, parameters.numel(), piece):
            part = slice(begin, begin + piece)
            ops.shard_step_(
                gradient[part], parameters[part], self.moment1[part], self.moment2[part], factors, self.stats,
                out=None if out is None else out[part], ema=None if ema is None else ema[part],
            )  # fmt: skip
            if between:
                between()

    @property
    def untouched(self) -> int:
        """Elements that kept their state because a result would not have been finite, over all steps."""
        return int(self.stats[1])
