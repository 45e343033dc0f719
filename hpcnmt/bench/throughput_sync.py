"""The synchronous side of `hpcnmt bench throughput` with simulated compute: the real loop, buckets and library, batches that sleep.

A synchronous worker also takes the optimizer's step itself, over the whole model. On an accelerator that is a millisecond; on the cores
of the machine that simulates it, all workers together would take far longer, and slow down the baseline. So the step is left out here
(asynchronous workers leave theirs to the shards, which take it). Called by throughput_program.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpcnmt.bench.throughput_program import Measurement, Point
from hpcnmt.distributed.collective import Backend, find_world, open_collective
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.mpi import ranks_of_this_host
from hpcnmt.distributed.synchronous import SyncConfig, SynchronousLoop
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.optim.update import Update, UpdateConfig
from hpcnmt.optim.window import GradientWindow


class StepOfAnAccelerator(Update):
    """Counts the words of an update and takes no time."""

    def apply(
        self, parameters: Tensor, gradient_sum: Tensor, target_words: int, out: Tensor | None = None,
        between: Callable[[], None] | None = None, rate_factor: float = 1.0, clip_norm: float = 0.0,
    ) -> None:  # fmt: skip
        self.words += target_words


def run_sync(point: Point) -> None:
    """One rank."""
    backend: Backend = "horovod" if point.backend == "horovod" else "torch"
    world = find_world(backend, point.workers)
    alone = len(ranks_of_this_host()) == 1
    collective = open_collective(backend, world, torch.device("cpu"), DeadlineConfig())
    parameters, gradient = torch.zeros(point.parameters), torch.zeros(point.parameters)
    window, update = GradientWindow(gradient, clip_norm=1.0), StepOfAnAccelerator(1, UpdateConfig())
    config, activity = SyncConfig(backend, point.bucket_bytes), point.activity("worker", world.rank)
    delay_at = WorkerConfig(point.delay).delay_at
    loop = SynchronousLoop(collective, config, delay_at, window, update, parameters, point.compute(world.rank), activity)
    loop.start()
    measured = Measurement(point, world.rank, loop.activity)
    while not loop.stopped:
        loop.window()
        loop.ask_to_stop = not measured.goes_on() and world.rank == 0
    collective.close()
    measured.report(alone=alone)
    point.write_trace(activity, world.rank)
