"""The constants of one optimizer step, as a small vector (float32, as the state) on the device of the parameters.

A vector rather than arguments: a captured CUDA graph or a compiled program reads new values in every step. The order is that of `enum
Factor` in csrc/formulas.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FACTORS = 10
SMALLEST_EPSILON = 1e-30
"""Below this float32 would round epsilon to nothing."""


@dataclass(frozen=True)
class StepFactors:
    """One step: the gradient's scale, the rule's constants, the bias-correction denominators after this step, the learning rate."""

    learning_rate: float
    gradient_scale: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    denominator1: float = 1.0
    denominator2: float = 1.0
    weight_decay: float = 0.0
    """Decoupled (AdamW); 0 = Adam."""
    ema_share: float = 0.0
    """Weight of the new parameters in the moving average."""

    def __post_init__(self) -> None:
        if self.epsilon < SMALLEST_EPSILON:
            raise ValueError(f"epsilon is {self.epsilon}, expected at least {SMALLEST_EPSILON}")
        if self.denominator1 == 0 or self.denominator2 <= 0:
            raise ValueError(f"bias-correction denominators are {self.denominator1} and {self.denominator2}, expected them after a step")

    def values(self) -> list[float]:
        """In the order of the kernels; computed in double precision, rounded once."""
        return [
            self.gradient_scale, self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.denominator2**-0.5, self.epsilon,
            self.learning_rate / self.denominator1, 1.0 - self.learning_rate * self.weight_decay, self.ema_share,
        ]  # fmt: skip

    def fill(self, factors: Tensor) -> Tensor:
        """Writes the values into `factors` [FACTORS] on any device and returns it."""
        return factors.copy_(torch.tensor(self.values(), dtype=torch.float64))
