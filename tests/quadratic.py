"""A small deterministic training problem for engine tests: noisy least squares, the same batches for the same (seed, worker, step)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig
from hpcnmt.optim.adam import AdamConfig
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.update import Update, UpdateConfig
from hpcnmt.optim.window import GradientWindow

SIZE = 1003
SCHEDULE = ScheduleConfig(learning_rate=0.05, warmup_words=200, reference_words=20)
UPDATE = UpdateConfig(AdamConfig(), SCHEDULE)
POLICIES = {
    "plain": ShardPolicy(), "hybrid": ShardPolicy(buffer_pushes=4, damp_staleness=True), "lockstep": ShardPolicy(lockstep_words=300),
}  # fmt: skip


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


def plain_loop(steps: int, delay: int = 1, clip_norm: float = 1.0, ramp_words: int = 0) -> Tensor:
    """The single-process loop that one worker with one shard must equal bit for bit."""
    replica, accumulator = initial(), torch.zeros(SIZE)
    compute, update = batches(replica, accumulator, 0), Update(SIZE, UPDATE)
    window, wire = GradientWindow(accumulator, clip_norm), torch.empty(SIZE)
    config = WorkerConfig(delay, delay_ramp_words=ramp_words)
    for _ in range(steps):
        words = sum(compute().target_words for _ in range(config.delay_at(update.words)))
        assert window.seal(wire, words)
        update.apply(replica, wire, words)
    return replica


def local_of(config: WorkerConfig) -> LocalOptimizer | None:
    if config.local.mode == "off":
        return None
    return LocalOptimizer(SIZE, config.local, SCHEDULE, config.clip_norm)


def by_hand(config: WorkerConfig, windows: int) -> tuple[Tensor, int]:
    """The parameters, and the number of local steps, of one worker without overlap: the rules written out, without the engine."""
    parameters, replica, gradient = initial(), initial(), torch.zeros(SIZE)
    compute, update, local = batches(replica, gradient, 0), Update(SIZE, UPDATE), local_of(config)
    accumulator, wire = torch.zeros(SIZE), torch.empty(SIZE)
    window, steps = GradientWindow(accumulator, config.clip_norm), 0
    for _ in range(windows):
        words, known = 0, update.words
        for _ in range(config.delay_at(known)):
            target_words = compute().target_words
            words += target_words
            limits = config.local.warmup_batches or steps + 1, config.local.warmup_words or known + 1
            if local is not None and steps < limits[0] and known < limits[1]:
                local.step(replica, gradient, accumulator, target_words, known, window.stats)
                steps += 1
                if config.local.write_back:
                    parameters.copy_(replica)
            else:
                accumulator.add_(gradient)
                gradient.zero_()
        window.seal(wire, words)
        update.apply(parameters, wire, words)
        replica.copy_(parameters)
    return parameters, steps


def gradients(workers: int) -> Callable[[int, Tensor, Tensor], BatchCounts]:
    """The same batches as `batches`, for virtual time and scripts."""
    replicas, accumulators = torch.empty(workers, SIZE), torch.empty(workers, SIZE)
    computes = [batches(replicas[w], accumulators[w], w) for w in range(workers)]

    def gradient_of(worker: int, replica: Tensor, accumulator: Tensor) -> BatchCounts:
        replicas[worker].copy_(replica)
        accumulators[worker].zero_()
        counts = computes[worker]()
        accumulator.add_(accumulators[worker])
        return counts

    return gradient_of
