"""Words per second of our synchronous mode beside plain Horovod: DistributedOptimizer around torch's Adam, in a straightforward loop.

    python benchmarks/sync_baseline.py PREPARED [--ranks 2] [--tau 1] [--rounds 9] [--windows 4] [--recipe multi30k-transformer]

Starts RANKS local ranks of itself (or takes its place under mpiexec -n RANKS). Both sides train the same model on the same batches with
the same clipping, in turns: in every round each side gets WINDOWS windows of TAU batches a rank, from barrier to barrier; the median of
the ratios counts. Only the loops differ: flat gradients, own buckets and the fused update here; there a parameter's own gradient, summed by
Horovod's hooks and fusion buffer, torch.nn.utils.clip_grad_norm_ and torch.optim.Adam.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import write_result

from hpcnmt.config import load_recipe
from hpcnmt.data.batching import Batch
from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed.collective import Collective, find_world, open_collective
from hpcnmt.distributed.synchronous import LastBatch, SyncConfig, SynchronousLoop
from hpcnmt.distributed.worker import BatchCounts, WorkerConfig
from hpcnmt.models.build import build_model
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import GradientWindow
from hpcnmt.training.launch import is_launched, local_launcher
from hpcnmt.training.recipe import build_recipe
from hpcnmt.training.setup import Trainee
from hpcnmt.training.synchronous import ReadyHooks

Windows = Callable[[list[Batch]], None]
"""Trains windows of tau batches each on the batches of this rank."""


def our_windows(trainee: Trainee, collective: Collective, tau: int) -> Windows:
    """The synchronous mode's own loop."""
    flat, recipe = trainee.flat, trainee.recipe
    hooks, batches = ReadyHooks(trainee.model, flat), iter([])

    def compute(last: LastBatch | None) -> BatchCounts:
        hooks.ready = None if last is None else last.ready
        return trainee.add_gradient(next(batches), None if last is None else last.counted)

    window, update = GradientWindow(flat.gradients, recipe.worker.clip_norm), Update(flat.size, recipe.update)
    loop = SynchronousLoop(collective, SyncConfig("horovod"), WorkerConfig(tau).delay_at, window, update, flat.values, compute)
    loop.start()

    def train(chosen: list[Batch]) -> None:
        nonlocal batches
        batches = iter(chosen)
        for _ in range(len(chosen) // tau):
            loop.window()

    return train


def plain_windows(trainee: Trainee, tau: int) -> Windows:
    """What Horovod's manual says: wrap the optimizer, broadcast, and train."""
    import horovod.torch as hvd

    recipe = trainee.recipe
    model = build_model(recipe.model, recipe.training.seed)
    constants = recipe.optimizer
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(constants.beta1, constants.beta2), eps=constants.epsilon)
    optimizer = hvd.DistributedOptimizer(adam, named_parameters=model.named_parameters(), backward_passes_per_step=tau)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def train(chosen: list[Batch]) -> None:
        for begin in range(0, len(chosen), tau):
            optimizer.zero_grad()
            for batch in chosen[begin : begin + tau]:
                loss, _ = model.loss_sum(batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths)
                (loss / (tau * batch.target_words)).backward()
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.worker.clip_norm)
            with optimizer.skip_synchronize():
                optimizer.step()

    return train


def measure(arguments: argparse.Namespace) -> None:
    """One rank; rank 0 writes the result."""
    import horovod.torch as hvd

    world = find_world("horovod", arguments.ranks)
    torch.set_num_threads(1)
    recipe = build_recipe(load_recipe(arguments.recipe) | {"training": {"mode": "sync", "device": "cpu"}})
    trainee = Trainee.build(replace(recipe, worker=replace(recipe.worker, delay=arguments.tau)), arguments.data)
    trainee.seed_worker(world.rank)
    collective = open_collective("horovod", world, torch.device("cpu"), recipe.deadlines)
    loader = Loader(TokenCorpus(arguments.data, "train"), recipe.loader, world.rank, world.size)
    sides = {"hpcnmt": our_windows(trainee, collective, arguments.tau), "horovod": plain_windows(trainee, arguments.tau)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.rounds + 1):
        batches = [batch for _ in range(arguments.windows * arguments.tau) if (batch := loader.next_batch()) is not None]
        words = torch.tensor([sum(batch.target_words for batch in batches)], dtype=torch.float64)
        collective.finish(collective.start_sum(words, "words"))
        for name in sorted(sides, reverse=turn % 2 == 1):
            hvd.barrier()
            begin = time.perf_counter()
            sides[name](batches)
            hvd.barrier()
            rates[name].append(float(words) / (time.perf_counter() - begin))
    loader.close()
    collective.close()
    if world.rank == 0:
        rates = {name: values[1:] for name, values in rates.items()}  # the first round warms up
        ratios = [ours / plain for ours, plain in zip(rates["hpcnmt"], rates["horovod"], strict=True)]
        settings = {"ranks": arguments.ranks, "tau": arguments.tau, "recipe": arguments.recipe, "windows": arguments.windows}
        result = settings | {"parameters": trainee.flat.size, "library": collective.description, "target_words_per_s": rates}
        median = statistics.median(ratios)
        print(f"hpcnmt / plain Horovod: {median:.3f} (median of {len(ratios)})")
        family = "openmpi" if "Open MPI" in collective.description else "mpich"
        name = f"sync_baseline-{family}-{arguments.recipe}-n{arguments.ranks}-tau{arguments.tau}"
        write_result(name, result | {"ratio": ratios, "median_ratio": median})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tau", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--recipe", default="multi30k-transformer")
    arguments = parser.parse_args()
    if is_launched("async"):
        measure(arguments)
        return 0
    command, environment = local_launcher(arguments.ranks, threads=1)
    program = [sys.executable, "-m", "mpi4py", __file__, *sys.argv[1:]]  # so that an exception on one rank ends all
    return subprocess.run([*command, *program], env=os.environ | environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
