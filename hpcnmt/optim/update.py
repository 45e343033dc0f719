"""The one update rule: a summed gradient and its words become new parameters. Shards, synchronous workers, the plain
loop and virtual time all call it.

sum / words (or the sum) -> Adam with betas and learning rate of (global words, words of this update) -> exponential moving average. Where
workers push the ways of their local steps, the mean way takes the place of Adam (averaging.py).
EMA (Marian's form, decay rescaled by the words of the update): d = max(1 - (1 - alpha)^(T / T_ref), 1 - (u+1)/(u+10)),
avg <- (1-d) avg + d p.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.averaging import Averaging
from hpcnmt.optim.schedule import ScheduleConfig


@dataclass(frozen=True)
class UpdateConfig:
    """Optimizer, learning rate and moving average of one run."""

    adam: AdamConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_alpha: float = 0.0
    """alpha of the exponential moving average for each `schedule.reference_words` target words; 0 = off."""
    average: bool = False
    """What comes are ways of local steps: their mean over the workers is the update."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.ema_alpha < 1.0:
            raise ValueError(f"update.ema_alpha is {self.ema_alpha}, expected at least 0 (off) and less than 1")


class Update:
    """State of the rule for `size` parameters: Adam's moments, the moving average, the global target words stepped by, and the count at
    which a stalled validation last restarted the warm-up. `workers` is what a mean is over, where the configuration says `average`."""

    def __init__(self, size: int, config: UpdateConfig, device: torch.device | str = "cpu", workers: int = 0) -> None:
        self.config = config
        self.rule: Adam | Averaging = Averaging(size, workers, device) if config.average else Adam(size, config.adam, device)
        self.ema = torch.empty(size, device=device) if config.ema_alpha > 0 else None
        self.words = self.stalled_at_words = 0
        self._norm = ops.new_stats(device)

    def start(self, parameters: Tensor) -> None:
        """Takes the initial `parameters` [size] into the moving average."""
        if self.ema is not None:
            self.ema.copy_(parameters)

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint: moments, and the moving average where it is on."""
        return self.rule.tensors() | ({} if self.ema is None else {"ema": self.ema})

    def facts(self) -> dict[str, float | int]:
        """What else a checkpoint holds."""
        return self.rule.facts() | {"stepped_words": self.words, "stalled_at_words": self.stalled_at_words}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.rule.load(tensors, facts)
        if self.ema is not None:
            self.ema.copy_(tensors["ema"])
        self.words, self.stalled_at_words = int(facts["stepped_words"]), int(facts["stalled_at_words"])

    def note_stall(self) -> None:
        """A validation has found no new best: the warm-up begins anew where the schedule says so."""
        if self.config.schedule.restart_on_stall:
            self.stalled_at_words = self.words

    def apply(
        self, parameters: Tensor, gradient_sum: Tensor, target_words: int, out: Tensor | None = None,
        between: Callable[[], None] | None = None, rate_factor: float = 1.0, clip_norm: float = 0.0,
    ) -> None:  # fmt: skip
        """One update, in one pass, by `gradient_sum` [size] over `target_words`; the result goes to `out` (default: in place).

        With `average` what is summed in `gradient_sum` are ways back, and neither learning rate nor clipping counts.

        `between` is called between pieces of about a million elements. `rate_factor` multiplies the learning rate. `clip_norm` (0 = off,
        otherwise one more pass) limits the norm of what goes into Adam.
        """
        self.words += target_words
        schedule = self.config.schedule
        share = target_words / schedule.reference_words
        start = 1.0 - 9.0 / (self.words / schedule.reference_words + 10.0)
        ema_share = 1.0 - min((1.0 - self.config.ema_alpha) ** share, start**share)
        if isinstance(self.rule, Averaging):
            self.rule.step(parameters, gradient_sum, out, self.ema, ema_share, between)
            return
        rate = rate_factor * schedule.at(self.words, target_words, self.stalled_at_words)
        scale = self.config.adam.scale_of(target_words)
        if clip_norm > 0:
            scale *= self._clip_factor(gradient_sum, scale, clip_norm)
        self.rule.step(parameters, gradient_sum, rate, scale, self.words, out, self.ema, ema_share, between)

    def _clip_factor(self, gradient_sum: Tensor, scale: float, clip_norm: float) -> float:
        ops.sum_squares(gradient_sum.float(), self._norm)  # a copy only of what comes over a wire of bf16
        norm = float(self._norm[0]) ** 0.5 * scale
        return clip_norm / norm if norm > clip_norm else 1.0

    def published(self, parameters: Tensor) -> Tensor:
        """What validation and saving use: the moving average where it is on, otherwise `parameters`."""
        return parameters if self.ema is None else self.ema
