"""A worker's local optimizer: after every batch of a window the replica takes a step of its own, while the raw gradient is summed.

Against staleness within a delayed window (Bogoychev et al. 2018, section on local optimizers): the window's later batches see parameters
that already moved. The moments are private to the worker and never merged into the shards'; the next pull replaces the replica. What is
pushed stays the plain sum of the raw gradients. Called by distributed/worker.py and distributed/virtual.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig


@dataclass(frozen=True)
class LocalConfig:
    """When a worker steps on its replica, and how."""

    mode: Literal["off", "always"] = "off"
    optimizer: AdamConfig = AdamConfig(beta1=0.93, beta2=0.997)
    """Betas of the local Adam; the defaults are those that the paper's experiments intended."""
    learning_rate_factor: float = 1.0
    """Times the shards' learning rate of the same words."""

    def __post_init__(self) -> None:
        if self.learning_rate_factor <= 0:
            raise ValueError(f"worker.local.learning_rate_factor is {self.learning_rate_factor}, expected a positive number")


class LocalOptimizer:
    """The local Adam of one worker over the whole replica of `size` parameters."""

    def __init__(
        self, size: int, config: LocalConfig, schedule: ScheduleConfig, clip_norm: float, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.schedule, self.clip_norm = config, schedule, clip_norm
        self.adam = Adam(size, config.optimizer, device)
        self._norm = ops.new_stats(device)

    def step(self, replica: Tensor, gradient: Tensor, accumulator: Tensor, target_words: int, global_words: int, stats: Tensor) -> None:
        """accumulator += gradient, a step on `replica`, gradient = 0, in one pass; clips its own batch as the shards' update is clipped.

        `stats` [2] receives the sum of squares of the accumulator and counts what was not finite (see hpcnmt.ops).
        """
        scale = self.config.optimizer.scale_of(target_words)
        if self.clip_norm > 0:
            ops.sum_squares(gradient, self._norm)
            norm = float(self._norm[0]) ** 0.5 / target_words
            scale *= min(1.0, self.clip_norm / norm) if norm > 0 else 1.0
        rate = self.config.learning_rate_factor * self.schedule.at(global_words + target_words, target_words)
        factors = self.adam.factors(rate, scale, global_words + target_words)
        ops.local_step_(replica, gradient, self.adam.moment1, self.adam.moment2, factors, stats, accumulator)
