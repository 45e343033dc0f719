"""Learning rate as a function of global target words, scaled by the words of the update.

lr = peak * warm-up(words) * decay(words) * update_words / reference_words: linear warm-up over `warmup_words`, then inverse square root
(or constant). Linear scaling in the words of the update follows Bogoychev et al. 2018. Pure functions, called by shards and the plain loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule on global target words."""

    learning_rate: float = 1e-3
    warmup_words: int = 100_000
    decay: Literal["inverse_sqrt", "constant"] = "inverse_sqrt"
    reference_words: int = 2000

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_words", "reference_words"):
            if getattr(self, name) <= 0:
                raise ValueError(f"schedule.{name} is {getattr(self, name)}, expected a positive number")

    def at(self, global_words: int, update_words: int) -> float:
        """Learning rate of an update of `update_words` that brings the global count to `global_words`."""
        progress = global_words / self.warmup_words
        factor = progress if progress < 1.0 else (progress**-0.5 if self.decay == "inverse_sqrt" else 1.0)
        return self.learning_rate * factor * update_words / self.reference_words
