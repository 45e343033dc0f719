"""Run under mpiexec: synchronous training on real small models in float64, and by rank 0 the same in one process on the joined batches.

    synchronous_program.py equal horovod|torch STEPS     every rank prints, for each model and tau, a digest and (rank 0) the difference
    synchronous_program.py join horovod|torch            ranks with 3, 5, 7 batches at tau 2 end together
    synchronous_program.py silent torch|horovod          rank 1 falls silent after the start: the others must not wait for ever
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from hpcnmt.data.batching import Batch, make_batch
from hpcnmt.distributed.collective import Backend, Collective, find_world, open_collective
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.synchronous import LastBatch, SyncConfig, SynchronousLoop
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig, Seq2Seq
from hpcnmt.optim.adam import AdamConfig
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.update import Update, UpdateConfig
from hpcnmt.optim.window import GradientWindow
from hpcnmt.training.synchronous import ReadyHooks

VOCABULARY = 40
MODELS = {
    "transformer": ModelConfig("transformer", VOCABULARY, 0, 16, 24, 2, 2, 32, heads=2, dropout=0.0),
    "gru": ModelConfig("gru", VOCABULARY, 0, 16, 24, 2, 2, 32, heads=2, dropout=0.0),
}
UPDATE = UpdateConfig(AdamConfig(), ScheduleConfig(learning_rate=2e-3, warmup_words=100, reference_words=50), ema_alpha=1e-3)
CLIP_NORM = 0.05
CONFIG_BYTES = 4096
"""Of a bucket: several for each model."""


def report(**fields: object) -> None:
    """One JSON line in a single write, so that the lines of several ranks do not run into each other."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def rows(number: int, worker: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sentences of batch `number` of `worker`."""
    generator = np.random.default_rng([number, worker])

    def sentences() -> list[np.ndarray]:
        return [generator.integers(4, VOCABULARY, generator.integers(1, 8)) for _ in range(4)]

    return sentences(), sentences()


def batch(parts: Sequence[tuple[int, int]]) -> Batch:
    """One batch of the sentences of all (number, worker) in `parts`."""
    sources, targets = zip(*(rows(*part) for part in parts), strict=True)
    return make_batch(sum(sources, []), sum(targets, []), range(4 * len(parts)))


class Training:
    """A model with its update rule, and the gradient of a batch."""

    def __init__(self, config: ModelConfig) -> None:
        self.model: Seq2Seq = build_model(config, seed=5)
        self.flat = FlatParameters(self.model)
        self.window = GradientWindow(self.flat.gradients, CLIP_NORM)
        self.update = Update(self.flat.size, UPDATE)
        self.hooks = ReadyHooks(self.model, self.flat)

    def add_gradient(self, data: Batch, last: LastBatch | None = None) -> BatchCounts:
        loss, entropy = self.model.loss_sum(data.source_ids, data.source_lengths, data.target_ids, data.target_lengths)
        counts = BatchCounts(data.target_words, data.source_words, len(data.sentence_ids), float(entropy))
        if last is not None:
            last.counted(counts)
            self.hooks.ready = last.ready
        torch.autograd.backward(loss)
        self.hooks.ready = None
        return counts

    def digest(self) -> str:
        return hashlib.sha256(self.flat.values.numpy().tobytes()).hexdigest()


def train(collective: Collective, backend: Backend, config: ModelConfig, tau: int, counts: Sequence[int]) -> tuple[Training, int]:
    """Synchronous training until no rank has a batch left; rank r has counts[r]. Returns the number of windows."""
    training = Training(config)
    if collective.rank:
        training.flat.values.fill_(float("nan"))  # only rank 0's parameters count
    numbers = iter(range(counts[collective.rank]))

    def compute(last: LastBatch | None) -> BatchCounts | None:
        number = next(numbers, None)
        return None if number is None else training.add_gradient(batch([(number, collective.rank)]), last)

    flat = training.flat
    config, delay_at = SyncConfig(backend, CONFIG_BYTES), WorkerConfig(tau).delay_at
    loop = SynchronousLoop(collective, config, delay_at, training.window, training.update, flat.values, compute)
    loop.start()
    while loop.window().target_words:
        pass
    return training, loop.windows


def joined(config: ModelConfig, tau: int, counts: Sequence[int]) -> Training:
    """The same in one process: every window is ONE batch of all sentences of all ranks."""
    training = Training(config)
    training.update.start(training.flat.values)
    mean = torch.empty_like(training.flat.values)
    for begin in range(0, max(counts), tau):
        parts = [(number, worker) for worker, count in enumerate(counts) for number in range(begin, min(begin + tau, count))]
        total = training.add_gradient(batch(parts))
        if training.window.seal(mean, total.target_words):
            training.update.apply(training.flat.values, mean, total.target_words)
    return training


def difference(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    assert found is not None and expected is not None and found.dtype == torch.float64
    return float((found - expected).norm())


def compare(collective: Collective, backend: Backend, name: str, tau: int, counts: Sequence[int]) -> None:
    training, windows = train(collective, backend, MODELS[name], tau, counts)
    more = {}
    if collective.rank == 0:
        alone = joined(MODELS[name], tau, counts)
        more["difference"] = difference(training.flat.values, alone.flat.values)
        more["ema_difference"] = difference(training.update.ema, alone.update.ema)
        more["moved"] = difference(alone.flat.values, Training(MODELS[name]).flat.values)
    report(rank=collective.rank, model=name, tau=tau, windows=windows, words=training.update.words, digest=training.digest(), **more)


def main() -> None:
    what, backend = sys.argv[1], sys.argv[2]
    assert backend in ("horovod", "torch")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    world = find_world(backend, int(os.environ.get("PMI_SIZE") or os.environ["OMPI_COMM_WORLD_SIZE"]))  # type: ignore[arg-type]
    deadlines = DeadlineConfig(stall_warning_s=2, cut_s=3, peer_s=4, job_s=60) if what == "silent" else DeadlineConfig()
    collective = open_collective(backend, world, torch.device("cpu"), deadlines)  # type: ignore[arg-type]
    if what == "equal":
        for name in MODELS:
            for tau in (1, 2):
                compare(collective, backend, name, tau, [tau * int(sys.argv[3])] * world.size)  # type: ignore[arg-type]
    elif what == "join":
        compare(collective, backend, "transformer", 2, [3 + 2 * worker for worker in range(world.size)])  # type: ignore[arg-type]
    elif world.rank == 1:
        time.sleep(60)
    else:
        tensor = torch.ones(10)
        collective.finish(collective.start_sum(tensor, "silent"))
    collective.close()


if __name__ == "__main__":
    main()
