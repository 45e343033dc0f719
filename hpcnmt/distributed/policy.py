"""What a shard does with a push before its optimizer steps: gradient buffer, staleness damping, clipping. No MPI, no messages.

Gradient buffer (the hybrid of Aji & Heafield 2019, D19-5608): the sum of B pushes is one update. With G_i the pushed sum and T_i the words
of push i, the step takes G = G_1 + ... + G_B and T = T_1 + ... + T_B, so G / T goes into Adam at the learning rate of T words. A worker
waits for no other: each push is acknowledged as soon as it stands in the buffer. Versions stay optimizer steps, and so does staleness.

Lockstep (the start of Sync-Switch, Li et al. 2021, arXiv 2104.08364): up to so many global words an update takes one push of every
worker, which is acknowledged only once the update is made. So all wait for each other and train synchronously; afterwards B rules.

Staleness damping (Zhang et al. 2016, arXiv 1511.05950): a push that is s steps old gets the learning rate times 1 / max(1, s); an update
by several pushes gets the mean of their factors, weighted by their words: sum_i T_i / max(1, s_i) / T.

Invariants: a policy that is off costs no pass over a vector; with B = 1 the step reads the inbox, as without a policy. Held by shard.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.optim.adam import PIECE_ELEMENTS


@dataclass(frozen=True)
class ShardPolicy:
    """How a shard makes updates out of pushes."""

    buffer_pushes: int = 1
    """B: pushes, of whatever workers, that are summed for one optimizer step; 1 = every push is a step."""
    damp_staleness: bool = False
    """Learning rate times 1 / max(1, staleness)."""
    clip_norm: float = 0.0
    """Norm limit of this shard's slice of what goes into Adam; 0 = off. It depends on the number of shards, and without
    `optimizer.divide_by_words` on the words of an update: it is here to reproduce the experiments of Bogoychev et al. 2018, whose
    shards clip. Otherwise `worker.clip_norm`."""
    lockstep_words: int = 0
    """Global target words up to which every update takes one push of each worker, which waits for it; 0 = never."""

    def __post_init__(self) -> None:
        if self.buffer_pushes < 1:
            raise ValueError(f"shard.buffer_pushes is {self.buffer_pushes}, expected at least 1 (every push is a step)")
        if self.lockstep_words < 0:
            raise ValueError(f"shard.lockstep_words is {self.lockstep_words}, expected 0 (no lockstep) or a positive number of words")
        if self.clip_norm < 0:
            raise ValueError(f"shard.clip_norm is {self.clip_norm}, expected 0 (off) or a positive norm")

    def damping(self, staleness: int) -> float:
        """Factor of the learning rate of a push that is `staleness` steps old."""
        return 1.0 / max(1, staleness) if self.damp_staleness else 1.0


@dataclass(frozen=True)
class Step:
    """What one optimizer step takes: `gradient_sum` [slice] over `target_words`, at `rate_factor` times the learning rate."""

    gradient_sum: Tensor
    target_words: int
    rate_factor: float


class PushBuffer:
    """The pushes of the next step of a slice of `size` parameters: `pushes` of them, `target_words` in all."""

    def __init__(self, size: int, policy: ShardPolicy) -> None:
        self.policy = policy
        self.pushes = self.target_words = 0
        self._damped_words = 0.0
        self.size, self._sum = size, torch.zeros(size) if policy.buffer_pushes > 1 else None
        self._stats = ops.new_stats()

    def add(self, gradient_sum: Tensor, target_words: int, staleness: int, between: Callable[[], None], due: int) -> Step | None:
        """Takes a push; the step that is made with it when it is the last of `due`. `gradient_sum` [slice] may be reused once that is made.

        `between` is called between pieces of about a million elements.
        """
        self.pushes += 1
        self.target_words += target_words
        self._damped_words += target_words * self.policy.damping(staleness)
        if due == 1 and self.pushes == 1:
            if self.policy.buffer_pushes == 1:
                self._sum = None  # lockstep is over
            return self._take(gradient_sum)
        if self._sum is None:
            self._sum = torch.zeros(self.size)
        for begin in range(0, gradient_sum.numel(), PIECE_ELEMENTS):
            part = slice(begin, begin + PIECE_ELEMENTS)
            if self.pushes == 1:
                self._sum[part].copy_(gradient_sum[part])
            else:
                ops.accumulate_(self._sum[part], gradient_sum[part], self._stats, zero_gradient=False)
            between()
        return self._take(self._sum) if self.pushes >= due else None

    def tensors(self) -> dict[str, Tensor]:
        """The sum of a partial update, for a checkpoint."""
        return {"buffered_sum": self._sum} if self._sum is not None and self.pushes else {}

    def facts(self) -> dict[str, float | int]:
        """What else a checkpoint holds."""
        return {"buffered_pushes": self.pushes, "buffered_words": self.target_words, "damped_words": self._damped_words}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.pushes, self.target_words = int(facts["buffered_pushes"]), int(facts["buffered_words"])
        self._damped_words = float(facts["damped_words"])
        if self.pushes:
            self._sum = tensors["buffered_sum"].clone()

    def rest(self) -> Step | None:
        """The step by what is left, at the end of a run; None when nothing is."""
        return self._take(self._sum) if self._sum is not None and self.pushes else None

    def _take(self, gradient_sum: Tensor) -> Step:
        step = Step(gradient_sum, self.target_words, self._damped_words / self.target_words)
        self.pushes = self.target_words = 0
        self._damped_words = 0.0
        return step
