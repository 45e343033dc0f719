"""Learning rate as a function of global target words, scaled by the words of the update.

warmup rate:        lr = peak * min(s / warmup_words, 1) * decay(t) * T / reference_words
warmup normaliser:  lr = peak * decay(t) * T / W(s), W falling linearly from normaliser_start to reference_words over warmup_words

t: global target words, T: words of the update, s: words since the last restart of the warm-up (t without restarts); decay: inverse square
root of t / warmup_words from there on, or constant. Scaling by T, the normaliser (7200 to 1920 words) and cyclic restarts, every so many
words and at every stalled validation, follow Bogoychev et al. 2018 and its experiments. Pure functions, called by the update rule
(update.py), which holds the state, and by local optimizers.
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
    warmup: Literal["rate", "normaliser"] = "rate"
    """rate: the learning rate rises from 0; normaliser: the words it is divided by fall from `normaliser_start` to `reference_words`."""
    normaliser_start: int = 7200
    restart_words: int = 0
    """Global target words after which the warm-up begins anew, again and again; 0 = never."""
    restart_on_stall: bool = False
    """The warm-up begins anew at every validation without a new best in `validation.stop_on`; decay goes on."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_words", "reference_words"):
            if getattr(self, name) <= 0:
                raise ValueError(f"schedule.{name} is {getattr(self, name)}, expected a positive number")
        if self.warmup == "normaliser" and self.normaliser_start <= self.reference_words:
            raise ValueError(
                f"schedule.normaliser_start is {self.normaliser_start}, expected more than "
                f"schedule.reference_words={self.reference_words}: the warm-up divides by more words at first"
            )
        if self.restart_words and self.restart_words < self.warmup_words:
            raise ValueError(
                f"schedule.restart_words is {self.restart_words}, expected 0 (no restarts) or at least "
                f"schedule.warmup_words={self.warmup_words}: a warm-up must be able to end"
            )

    def at(self, global_words: int, update_words: int, stalled_at_words: int = 0) -> float:
        """Learning rate of an update of `update_words` that brings the global count to `global_words`.

        `stalled_at_words`: the global count at which a stalled validation last restarted the warm-up.
        """
        restarted_at = stalled_at_words
        if self.restart_words:  # by the words before this update, so that the first one after a restart is as the very first one
            restarted_at = max(restarted_at, (global_words - update_words) // self.restart_words * self.restart_words)
        warm = min((global_words - restarted_at) / self.warmup_words, 1.0)
        progress = global_words / self.warmup_words
        decay = progress**-0.5 if self.decay == "inverse_sqrt" and progress > 1.0 else 1.0
        if self.warmup == "rate":
            return self.learning_rate * (warm * decay) * update_words / self.reference_words
        normaliser = self.reference_words + (1.0 - warm) * (self.normaliser_start - self.reference_words)
        return self.learning_rate * decay * update_words / normaliser
