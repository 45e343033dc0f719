"""Noticing that training has diverged by its loss, and what then is lowered. Gradients that are not finite are counted by optim/window.py.

`LossMonitor` sees the training cross-entropy of every window of one worker; what it raises says since when. What is told of it, and how a
supervised run falls back behind it, is fall_back.py. Called by the modes of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hpcnmt.optim.window import Diverged

SMOOTHING_WINDOWS = 20
"""The smoothed loss is the mean of the first so many windows, and then decays over as many."""
HIGHEST_MARGINS = 2.0
"""A loss counts as at most so many margins above the lowest: one batch can lift the smoothed loss by a tenth of a margin, however bad."""
SOUND_SHARE = 0.1
"""Share of the margin above the lowest loss up to which training is sound: what comes later belongs to the divergence."""


@dataclass(frozen=True)
class DivergenceConfig:
    """When training has diverged, and what `hpcnmt train --supervise` does then."""

    margin_nats: float = 3.0
    """Smoothed training cross-entropy (nats per word) above its lowest so far that means divergence; 0 = off."""
    windows: int = 50
    """So many windows in a row above the margin, of one worker."""
    factor: float = 0.5
    """Of schedule.learning_rate at each fall back."""
    halve_delay: bool = True
    """Each fall back also halves worker.delay, down to 1."""
    fall_backs: int = 2
    """At most; then the run ends with code 3."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin_nats < math.inf:
            raise ValueError(f"divergence.margin_nats is {self.margin_nats}, expected 0 (off) or a positive number")
        if self.windows < 1:
            raise ValueError(f"divergence.windows is {self.windows}, expected at least 1")
        if not 0 < self.factor <= 1:
            raise ValueError(f"divergence.factor is {self.factor}, expected above 0 and at most 1")
        if self.fall_backs < 0:
            raise ValueError(f"divergence.fall_backs is {self.fall_backs}, expected 0 (none) or a positive number")


class LossMonitor:
    """Smooths the loss of one worker's windows and compares it with its lowest so far."""

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self.windows = 0
        self.smoothed = self.lowest = math.inf
        self.above = 0
        """Windows in a row above the margin."""
        self.sound_words = 0
        """Global target words at the last window that was sound."""

    def after(self, loss_per_word: float, global_words: int) -> None:
        """After a window whose mean loss is `loss_per_word` (nats); raises Diverged when too many in a row are too high."""
        config = self.config
        if not config.margin_nats:
            return
        highest = self.lowest + HIGHEST_MARGINS * config.margin_nats
        loss = min(loss_per_word, highest) if math.isfinite(loss_per_word) else highest
        if not math.isfinite(loss):
            return  # before the first loss there is nothing to compare with
        self.windows += 1
        weight = 1.0 / min(self.windows, SMOOTHING_WINDOWS)
        self.smoothed = loss if self.windows == 1 else self.smoothed + weight * (loss - self.smoothed)
        self.lowest = min(self.lowest, self.smoothed)
        excess = self.smoothed - self.lowest
        if excess <= SOUND_SHARE * config.margin_nats:
            self.sound_words = global_words
        self.above = self.above + 1 if excess > config.margin_nats else 0
        if self.above >= config.windows:
            raise Diverged(
                f"found a training cross-entropy of {loss_per_word:.3f} nats/word, and smoothed more than {config.margin_nats:g} above its "
                f"lowest of {self.lowest:.3f} for {self.above} windows in a row, since {self.sound_words} global target words",
                self.sound_words,
            )

    def state(self) -> dict[str, float | int]:
        """Facts for a checkpoint: finite numbers only."""
        found = {"windows": self.windows, "above": self.above, "sound_words": self.sound_words}
        return found | ({"smoothed": self.smoothed, "lowest": self.lowest} if self.windows else {})

    def load(self, facts: dict[str, Any]) -> None:
        """Takes the place of what `state` has told. Raises ValueError for anything else."""
        whole = {name: facts.get(name) for name in ("windows", "above", "sound_words")}
        if not all(type(value) is int and value >= 0 for value in whole.values()):
            raise ValueError(f"found {facts!r}, expected the facts of a loss monitor")
        floats = {name: facts.get(name) for name in ("smoothed", "lowest")} if whole["windows"] else {}
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in floats.values()):
            raise ValueError(f"found {facts!r}, expected the facts of a loss monitor")
        self.windows, self.above, self.sound_words = (int(facts[name]) for name in whole)
        self.smoothed, self.lowest = (float(facts[name]) for name in floats) if floats else (math.inf, math.inf)


def lowered(config: DivergenceConfig, learning_rate: float, delay: int, falls: int) -> dict[str, float | int]:
    """Options after so many `falls` back of a run that began with `learning_rate` and `delay`."""
    options: dict[str, float | int] = {"schedule.learning_rate": learning_rate * config.factor**falls}
    smaller = max(delay >> falls, 1)
    if config.halve_delay and smaller != delay:
        options["worker.delay"] = smaller
    return options
