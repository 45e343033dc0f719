"""A small deterministic training problem for engine tests: noisy least squares, the same batches for the same (seed, worker, step)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpcnmt.distributed.worker import BatchCounts, clip_sum_
from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig

SIZE = 1003
SCHEDULE = ScheduleConfig(learning_rate=0.05, warmup_words=200, reference_words=20)
ADAM = AdamConfig()


def initial() -> Tensor:
    return torch.linspace(-1.0, 1.0, SIZE)


def batches(replica: Tensor, accumulator: Tensor, worker: int) -> Callable[[], BatchCounts]:
    """A `compute` for WorkerLoop: adds the gradient of the next batch to `accumulator`."""
    generator = torch.Generator().manual_seed(worker)

    def compute() -> BatchCounts:
        words = int(torch.randint(10, 30, (1,), generator=generator))
        noise = torch.randn(SIZE, generator=generator)
        difference = replica - torch.sin(torch.arange(SIZE)) + 0.1 * noise
        accumulator.add_(difference * words)
        return BatchCounts(words, words + 1, 1, float(difference.square().sum()))

    return compute


def plain_loop(steps: int, delay: int = 1, clip_norm: float = 1.0) -> Tensor:
    """The single-process loop that one worker with one shard must equal bit for bit."""
    replica, accumulator = initial(), torch.zeros(SIZE)
    compute, adam, seen = batches(replica, accumulator, 0), Adam(SIZE, ADAM), 0
    for _ in range(steps):
        accumulator.zero_()
        words = sum(compute().target_words for _ in range(delay))
        clip_sum_(accumulator, words, clip_norm)
        seen += words
        adam.step(replica, accumulator / words, SCHEDULE.at(seen, words))
    return replica
