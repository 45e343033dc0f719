"""What `hpcnmt advise` speaks of: a setting, and what rules, judgements and disagreements say of it. Pure data, with the rules that a
setting needs to know its own staleness. Used by advise.py, advise_findings.py and advise_local.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcnmt.optim import rules
from hpcnmt.training.recipe import Recipe

WORTH_HIDING = 0.05
"""Share of waiting from which a larger tau is advised."""


@dataclass(frozen=True)
class Setting:
    """A run that is planned or was measured; what is not given comes from the recipe or from a rule."""

    recipe: Recipe
    workers: int
    measured_staleness: float | None = None
    measured_push_words: float | None = None
    wait_share: float | None = None
    """Share of its time (without validation) that a worker waits for its exchange."""
    total_momentum: float = 0.9
    """The beta1 that is best without staleness."""

    def __post_init__(self) -> None:
        if self.recipe.training.mode in ("sync", "plain"):
            raise ValueError(f"found training.mode={self.recipe.training.mode}, which knows no staleness: advise is for async and virtual")
        if self.workers < 1:
            raise ValueError(f"found {self.workers} workers, expected at least 1")
        stale = self.measured_staleness
        if stale is not None and not 0.0 <= stale < math.inf:
            raise ValueError(f"found staleness {stale}, expected the mean number of steps, at least 0")
        if self.wait_share is not None and not 0.0 <= self.wait_share < 1.0:
            raise ValueError(f"found a waiting share of {self.wait_share}, expected at least 0 and less than 1")
        if not 0.0 <= self.total_momentum < 1.0:
            raise ValueError(f"found momentum {self.total_momentum}, expected at least 0 and less than 1")

    @property
    def delay(self) -> int:
        """tau, after the rule that hides the exchange."""
        worker = self.recipe.worker
        if worker.overlap and self.wait_share is not None and self.wait_share > WORTH_HIDING:
            return rules.delay_to_hide(worker.delay, self.wait_share, worker.overlap)
        return worker.delay

    @property
    def in_lockstep(self) -> bool:
        """Whether all of the run waits for every worker at every update."""
        return self.recipe.shard.lockstep_words >= self.recipe.training.max_target_words

    @property
    def averages(self) -> bool:
        """Whether the shards only average what the workers' own optimizers do."""
        return self.recipe.worker.local.average

    @property
    def adam_beta2(self) -> float:
        """Of the Adam that trains: the shards', or the workers'."""
        return (self.recipe.worker.local.optimizer if self.averages else self.recipe.optimizer).beta2

    @property
    def adam_step_words(self) -> float:
        """Global words from one of its steps to the next."""
        return self.workers * self.push_words / self.delay if self.averages else self.update_words

    @property
    def buffer_pushes(self) -> int:
        """B, after the hybrid rule where the recipe has a buffer at all; in lockstep one push of each worker."""
        if self.in_lockstep:
            return self.workers
        return rules.hybrid_pushes(self.workers) if self.recipe.shard.buffer_pushes > 1 else 1

    @property
    def push_words(self) -> float:
        """Of tau batches."""
        planned = self.recipe.worker.delay * self.recipe.loader.batch_words
        return (self.measured_push_words or planned) * self.delay / self.recipe.worker.delay

    @property
    def update_words(self) -> float:
        """T."""
        return self.buffer_pushes * self.push_words

    @property
    def expected_staleness(self) -> float:
        """By the rule."""
        if self.in_lockstep:
            return float(self.recipe.worker.overlap)
        return rules.expected_staleness(self.workers, self.recipe.worker.overlap, self.buffer_pushes)

    @property
    def staleness(self) -> float:
        """S: measured where it is known; another B than in that run makes steps, in which it is counted, rarer or more frequent."""
        if self.measured_staleness is None:
            return self.expected_staleness
        if self.in_lockstep:
            return self.measured_staleness
        return self.measured_staleness * self.recipe.shard.buffer_pushes / self.buffer_pushes


@dataclass(frozen=True)
class Finding:
    """What one rule gives."""

    rule: str
    gives: str
    value: float
    formula: str
    source: str
    followed: bool = False


@dataclass(frozen=True)
class Disagreement:
    """Rules that give different values for the same thing."""

    about: str
    sides: tuple[str, ...]
    follows: str
    why: str


@dataclass(frozen=True)
class Judgement:
    """An option of the recipe beside what is advised."""

    option: str
    found: float | str
    advised: float | str
    fits: bool


def as_yaml(value: float | str) -> str:
    """As --set takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def number(value: float | str) -> str:
    """Three or four digits, thousands apart: 0.15, 3.5, 400,000; a word as it is, true and false."""
    if isinstance(value, (str, bool)):
        return as_yaml(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
