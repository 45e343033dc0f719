"""Adam on flat vectors with recursive bias-correction denominators, so that betas may change in mid-run and a resume is exact.

m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  d = b d + (1-b);  p = p - lr (m/d1) / (sqrt(v/d2) + eps)
(Kingma & Ba 2015; the recursive denominators equal 1 - b^t when b is constant). The one implementation for shards and the plain loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        if self.epsilon <= 0:
            raise ValueError(f"optimizer.epsilon is {self.epsilon}, expected a positive number")


class Adam:
    """Adam state for `size` parameters."""

    def __init__(self, size: int, config: AdamConfig) -> None:
        self.config = config
        self.moment1 = torch.zeros(size)
        self.moment2 = torch.zeros(size)
        self.denominator1 = 0.0
        self.denominator2 = 0.0

    def step(self, parameters: Tensor, gradient: Tensor, learning_rate: float, out: Tensor | None = None) -> None:
        """One step on `parameters` [size] with `gradient` [size] (mean per word); the result goes to `out` (default: in place)."""
        config = self.config
        self.moment1.lerp_(gradient, 1.0 - config.beta1)
        self.moment2.mul_(config.beta2).addcmul_(gradient, gradient, value=1.0 - config.beta2)
        self.denominator1 = config.beta1 * self.denominator1 + (1.0 - config.beta1)
        self.denominator2 = config.beta2 * self.denominator2 + (1.0 - config.beta2)
        root = torch.sqrt(self.moment2 / self.denominator2).add_(config.epsilon)
        target = parameters if out is None else out
        torch.addcdiv(parameters, self.moment1, root, value=-learning_rate / self.denominator1, out=target)
