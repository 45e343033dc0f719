"""A worker's local optimizer: after every batch of a window the replica takes a step of its own, while the raw gradient is summed.

Against staleness within a delayed window (Bogoychev et al. 2018, section on local optimizers): the window's later batches see parameters
that already moved. The moments are private to the worker and never merged into the shards'; the next pull replaces the replica. What is
pushed stays the plain sum of the raw gradients. As a warm-up the steps end after a number of words or of batches, and nothing of them is
left: moments and accumulator are freed.

The other form, compensate (that of Marian 1.5 on several nodes), has no steps within a window. Under overlap 1 a worker goes on with a
replica that lacks the push it has just sent; it takes that step itself, with its local Adam, until the next replica brings the shards'
own. With one worker and equal constants it takes the very step of the shard. `carry` is the same for local steps after every batch: the
way that they have gone in the window in flight is gone again on the fresh replica.

With `average` the way is also what is pushed, in place of the gradients (local SGD): the shards only average (averaging.py).
Called by distributed/worker.py, virtual.py, replay.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.window import GradientWindow


@dataclass(frozen=True)
class LocalConfig:
    """When a worker steps on its replica, and how."""

    mode: Literal["off", "warmup", "always", "compensate"] = "off"
    """After every batch (always), or only at first (warmup); or by the push that is in flight, on every fresh replica (compensate)."""
    warmup_words: int = 0
    """warmup: windows that begin before so many global target words have local steps."""
    warmup_batches: int = 0
    """warmup: this worker's first so many batches have local steps, in place of `warmup_words`."""
    optimizer: AdamConfig = AdamConfig(beta1=0.93, beta2=0.997)
    """Betas of the local Adam; the defaults are those that the paper's experiments intended."""
    write_back: bool = False
    """After every local step the worker writes its own part of the replica (1 / workers of all parameters) back to the shards, as the
    experiments of Bogoychev et al. 2018 did; this discards what others pushed there since the worker's last pull."""
    learning_rate_factor: float = 1.0
    """Times the shards' learning rate of the same words."""
    carry: bool = False
    """always, warmup: under overlap 1 the local steps of the window in flight are kept on the fresh replica, which lacks its push."""
    average: bool = False
    """always: what is pushed is the way that the local steps of a window have gone, and the shards move by the mean way of the workers."""

    @property
    def looks_ahead(self) -> bool:
        """Whether a fresh replica moves on by what is in flight."""
        return self.mode == "compensate" or self.carry

    def __post_init__(self) -> None:
        if self.learning_rate_factor <= 0:
            raise ValueError(f"worker.local.learning_rate_factor is {self.learning_rate_factor}, expected a positive number")
        if self.warmup_words < 0 or self.warmup_batches < 0:
            found = f"worker.local.warmup_words={self.warmup_words} and worker.local.warmup_batches={self.warmup_batches}"
            raise ValueError(f"found {found}, expected neither to be negative")
        if self.mode == "warmup" and (self.warmup_words > 0) == (self.warmup_batches > 0):
            raise ValueError(
                f"found worker.local.warmup_words={self.warmup_words} and worker.local.warmup_batches={self.warmup_batches}, "
                "expected exactly one of them above 0 with worker.local.mode=warmup"
            )
        if self.average and (self.mode != "always" or self.write_back):
            other = "worker.local.write_back=true" if self.write_back else f"worker.local.mode={self.mode}"
            raise ValueError(f"found worker.local.average=true with {other}, expected worker.local.mode=always without write_back")
        later = self.optimizer.later
        if self.mode == "warmup" and not later.gradual and 0 < self.warmup_words < later.words:
            raise ValueError(
                f"found worker.local.optimizer.later.words={later.words}, expected at most worker.local.warmup_words={self.warmup_words}: "
                "there the local steps end"
            )


class LocalOptimizer:
    """The local Adam of one worker over the whole replica of `size` parameters; `clip_norm` limits the steps after a batch."""

    def __init__(
        self, size: int, config: LocalConfig, schedule: ScheduleConfig, clip_norm: float, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.schedule, self.clip_norm = config, schedule, clip_norm
        self.adam = Adam(size, config.optimizer, device)
        self.batches = 0  # stepped on so far
        self._norm = ops.new_stats(device)

    def is_over(self, global_words: int) -> bool:
        """Whether the warm-up has ended for a window that began at `global_words`, or for the batch that comes next."""
        config = self.config
        if config.mode != "warmup":
            return False
        return self.batches >= config.warmup_batches if config.warmup_batches else global_words >= config.warmup_words

    def step(
        self, replica: Tensor, gradient: Tensor, accumulator: Tensor | None, target_words: int, global_words: int, stats: Tensor
    ) -> None:  # fmt: skip
        """accumulator += gradient, a step on `replica`, gradient = 0, in one pass; clips its own batch as the shards' update is clipped.

        `stats` [2] receives the sum of squares of the accumulator and counts what was not finite (see hpcnmt.ops).
        """
        self.batches += 1
        scale = self.config.optimizer.scale_of(target_words)
        if self.clip_norm > 0:
            ops.sum_squares(gradient, self._norm)
            norm = float(self._norm[0]) ** 0.5 / target_words
            scale *= min(1.0, self.clip_norm / norm) if norm > 0 else 1.0
        factors = self.adam.factors(self._rate(target_words, global_words), scale, global_words + target_words)
        ops.local_step_(replica, gradient, self.adam.moment1, self.adam.moment2, factors, stats, accumulator)

    def compensate(self, replica: Tensor, pushed: Tensor, target_words: int, global_words: int) -> None:
        """A step on `replica` by the sum `pushed` [parameters, wire type] over `target_words`, still on its way to the shards."""
        scale = self.config.optimizer.scale_of(target_words)
        self.adam.step(replica, pushed, self._rate(target_words, global_words), scale, global_words + target_words)

    def _rate(self, target_words: int, global_words: int) -> float:
        return self.config.learning_rate_factor * self.schedule.at(global_words + target_words, target_words)


class LocalWindow(GradientWindow):
    """A window of gradients that autograd adds to `gradient` [parameters], with the local steps between its batches.

    While `stepping`, every batch's gradient moves on to an accumulator of its own, and the replica steps, in one pass. Otherwise, and
    from the end of a warm-up on, gradients add up where autograd writes them, without a pass over them.
    """

    def __init__(
        self, gradient: Tensor, clip_norm: float, error_feedback: bool, local: LocalOptimizer | None, accumulator: Tensor | None = None
    ) -> None:  # fmt: skip
        """`accumulator` [parameters] of zeros: where the caller has one."""
        stepping = local is not None and local.config.mode != "compensate"
        if not stepping:
            accumulator = gradient
        elif accumulator is None:
            accumulator = torch.zeros_like(gradient)
        self._averages = local is not None and local.config.average
        super().__init__(accumulator, 0.0 if self._averages else clip_norm, error_feedback)
        self.gradient, self.local, self.stepping = gradient, local, stepping
        # The replica where the window began, then the way back to there from its end; and how many local steps led there.
        needs_way = local is not None and stepping and (local.config.carry or local.config.average)
        self._way = torch.empty_like(gradient) if needs_way else None
        self._steps = self._steps_of_way = 0

    def before_batch(self, global_words: int) -> None:
        """Ends the local steps where their warm-up is over: what has been summed goes back to where autograd adds to it."""
        if self.stepping and not self.steps_next(global_words):
            self.gradient.copy_(self.accumulator)  # it was 0 after the last local step
            self.accumulator.zero_()  # others may share it
            self.accumulator, self.local, self.stepping, self._way = self.gradient, None, False, None

    def steps_next(self, global_words: int) -> bool:
        """Whether a local step follows the batch that comes next in a window that began at `global_words`."""
        return self.stepping and self.local is not None and not self.local.is_over(global_words)

    def step(self, replica: Tensor, target_words: int, global_words: int) -> None:
        """The local step after a batch of `target_words` in a window that began at `global_words`."""
        if self.local is None:
            raise RuntimeError("found a local step after the warm-up of the local optimizer, expected none")
        if self._way is not None and not self._steps:
            self._way.copy_(replica)
        self._steps += 1
        accumulator = None if self._averages else self.accumulator
        self.local.step(replica, self.gradient, accumulator, target_words, global_words, self.stats)

    def end_batches(self, replica: Tensor) -> None:
        """After the last batch of a window, before another replica is swapped in."""
        self._steps, self._steps_of_way = 0, self._steps
        if self._way is not None and self._steps_of_way:
            torch.sub(self._way, replica, out=self._way)

    def look_ahead(self, replica: Tensor, pushed: Tensor, target_words: int, global_words: int, swapped: bool) -> None:
        """After `pushed` has left: brings `replica`, of `global_words` and without it, up to it, with carry or compensate.

        `swapped`: whether it is another replica than that of the window, whose steps it lacks.
        """
        if self._way is not None:
            if self._steps_of_way and swapped:
                replica.sub_(self._way)
        elif self.local is not None and not self.stepping:
            self.local.compensate(replica, pushed, target_words, global_words)

    def seal(self, wire: Tensor, target_words: int, has_norm: bool = False) -> bool:
        """See GradientWindow.seal; the last local step of a window has left the norm.

        With `average` the way back takes the place of the summed gradient, which points against the way of the parameters, too.
        RuntimeError where the window has not been ended by `end_batches`.
        """
        if self._way is not None and self._steps:
            raise RuntimeError("found a window sealed within its batches, expected end_batches before")
        if self._averages and self._way is not None and not self.stats[1] > 0:
            self.accumulator.copy_(self._way)
        return super().seal(wire, target_words, has_norm or self.stepping)
