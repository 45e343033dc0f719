"""What the policies cost where they are switched off: thread CPU time of all that a step decides, as a share of the CPU time of the step.

    python benchmarks/policy_cost.py PREPARED [--recipe multi30k-transformer] [--set SECTION.OPTION=VALUE] [--windows 2000] [--rounds 5]

Decisions: whole windows of one worker and one shard in virtual time on a vector of 64 parameters, where arithmetic on vectors costs
next to nothing: tau, schedule, betas, moving average, staleness, headers, versions. This is an upper bound, as it holds the engine's own
bookkeeping and the event clock too; `update` is the part of it inside the update rule. The step: tau batches forward and backward,
clipping and update of the whole model, on one thread. In turns, medians. With --set: what policies that are switched on decide; passes
of their own over the vector (a local optimizer, a buffer) are no part of it. Target: below 0.01 of the step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import write_result
from torch import Tensor

from hpcnmt.config import load_recipe, override
from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.virtual import LocalShards, VirtualCluster
from hpcnmt.distributed.worker import BatchCounts, window_counts
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.optim.update import Update
from hpcnmt.optim.window import GradientWindow
from hpcnmt.training.recipe import Recipe, build_recipe
from hpcnmt.training.setup import Trainee

FEW_PARAMETERS = 64


def window_cpu_s(recipe: Recipe, windows: int) -> float:
    """CPU seconds of one window of the engine on a vector of a few parameters."""
    values, gradients = torch.ones(FEW_PARAMETERS), torch.zeros(FEW_PARAMETERS)
    counts = BatchCounts(recipe.loader.batch_words, recipe.loader.batch_words, 1, 1.0)

    def gradient_of(worker: int, replica: Tensor, gradient: Tensor) -> BatchCounts:
        gradient.fill_(1.0)
        return counts

    def local() -> LocalOptimizer:
        return LocalOptimizer(FEW_PARAMETERS, recipe.worker.local, recipe.schedule, recipe.worker.clip_norm)

    shards = LocalShards(recipe.layout(FEW_PARAMETERS, 1, 1), ShardConfig(recipe.update, policy=recipe.shard))
    local_of = local if recipe.worker.local.mode != "off" else None
    cluster = VirtualCluster(shards, recipe.worker, recipe.clock, gradient_of, values, gradients, local_of)
    begin = time.thread_time()
    while len(shards.shards[0].log) < windows:
        cluster.step()
    return (time.thread_time() - begin) / windows


def update_cpu_s(recipe: Recipe, updates: int) -> float:
    """CPU seconds of one update of a vector of a few parameters."""
    values, gradient = torch.ones(FEW_PARAMETERS), torch.ones(FEW_PARAMETERS)
    update, words = Update(FEW_PARAMETERS, recipe.update), recipe.worker.delay * recipe.loader.batch_words
    update.start(values)
    begin = time.thread_time()
    for _ in range(updates):
        update.apply(values, gradient, words)
    return (time.thread_time() - begin) / updates


class Step:
    """Steps of the whole model on the batches of a corpus, as the plain loop makes them."""

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.trainee = Trainee.build(recipe, data)
        self.flat, self.delay = self.trainee.flat, recipe.worker.delay
        self.loader = Loader(TokenCorpus(data, "train"), recipe.loader, 0, 1)
        self.update = Update(self.flat.size, recipe.update)
        self.update.start(self.flat.values)
        self.window, self.wire = GradientWindow(self.flat.gradients, recipe.worker.clip_norm), torch.empty_like(self.flat.gradients)

    def _compute(self) -> BatchCounts | None:
        batch = self.loader.next_batch()
        return None if batch is None else self.trainee.add_gradient(batch)

    def cpu_s(self) -> float:
        """CPU seconds of the next step; the loader works in a thread of its own."""
        begin = time.thread_time()
        words = window_counts(self._compute, self.delay).target_words
        if not words:
            raise ValueError("found no data left, expected an endless loader: remove loader.max_epochs")
        if self.window.seal(self.wire, words):
            self.update.apply(self.flat.values, self.wire, words)
        return time.thread_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of hpcnmt prepare")
    parser.add_argument("--recipe", default="multi30k-transformer")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE")
    parser.add_argument("--windows", type=int, default=2000, help="windows and updates without a model in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = build_recipe(override(load_recipe(arguments.recipe), ["training.mode=virtual", *arguments.set]))
    step = Step(recipe, arguments.data)
    step.cpu_s(), window_cpu_s(recipe, 10)  # warm up
    seconds: dict[str, list[float]] = {"window": [], "update": [], "step": []}
    for _ in range(arguments.rounds):
        seconds["window"].append(window_cpu_s(recipe, arguments.windows))
        seconds["update"].append(update_cpu_s(recipe, arguments.windows))
        seconds["step"].append(step.cpu_s())
    step.loader.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    shares = {name: medians[name] / medians["step"] for name in ("window", "update")}
    print({name: f"{value * 1e6:.0f} us" for name, value in medians.items()}, {name: f"{share:.4%}" for name, share in shares.items()})
    figures = {"cpu_s": seconds, "median_cpu_s": medians, "share_of_step": shares, "parameters": step.flat.size}
    write_result(f"policy_cost-{arguments.recipe}", {"recipe": arguments.recipe, "set": arguments.set, "threads": 1} | figures)


if __name__ == "__main__":
    main()
