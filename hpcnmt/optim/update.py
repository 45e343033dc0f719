"""The one update rule: a summed gradient and its words become new parameters. Shards, synchronous workers, the plain
loop and virtual time all call it.

sum / words -> Adam with the learning rate of (global words, words of this update) -> exponential moving average.
EMA (Marian's form, decay rescaled by the words of the update): d = max(1 - (1 - alpha)^(T / T_ref), 1 - (u+1)/(u+10)),
avg <- (1-d) avg + d p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig


@dataclass(frozen=True)
class UpdateConfig:
    """Optimizer, learning rate and moving average of one run."""

    adam: AdamConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_alpha: float = 0.0
    """alpha of the exponential moving average for each `schedule.reference_words` target words; 0 = off."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.ema_alpha < 1.0:
            raise ValueError(f"update.ema_alpha is {self.ema_alpha}, expected at least 0 (off) and less than 1")


class Update:
    """State of the rule for `size` parameters: Adam's moments, the moving average, the global target words seen."""

    def __init__(self, size: int, config: UpdateConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.adam = Adam(size, config.adam, device)
        self.ema = torch.empty(size, device=device) if config.ema_alpha > 0 else None
        self.words = 0

    def start(self, parameters: Tensor) -> None:
        """Takes the initial `parameters` [size] into the moving average."""
        if self.ema is not None:
            self.ema.copy_(parameters)

    def apply(
        self, parameters: Tensor, gradient_sum: Tensor, target_words: int, out: Tensor | None = None,
        between: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """One update, in one pass, by `gradient_sum` [size] over `target_words`; the result goes to `out` (default: in place).

        `between` is called between pieces of about a million elements.
        """
        self.words += target_words
        schedule = self.config.schedule
        share = target_words / schedule.reference_words
        start = 1.0 - 9.0 / (self.words / schedule.reference_words + 10.0)
        self.adam.step(
            parameters, gradient_sum, schedule.at(self.words, target_words), 1.0 / target_words, out, self.ema,
            ema_share=1.0 - min((1.0 - self.config.ema_alpha) ** share, start**share), between=between,
        )  # fmt: skip

    def published(self, parameters: Tensor) -> Tensor:
        """What validation and saving use: the moving average where it is on, otherwise `parameters`."""
        return parameters if self.ema is None else self.ema
