"""`hpcnmt replay`: repeats a recorded asynchronous run in this process, and compares what it ends with, bit for bit.

Model, batches, dropout and update rule are built as the run built them, from RUN/config.json and the prepared corpus. Each worker of a
run is a process with a random generator of its own; here they take turns, so each one's generator is put in place around its batches.
Equal kernels, torch and kind of processor are needed for equal bits: what differs is said first.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hpcnmt import ops
from hpcnmt.config import from_mapping
from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader
from hpcnmt.data.vocabulary import Vocabularies
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.record import Record, check_record
from hpcnmt.distributed.replay import Replay
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.worker import BatchCounts
from hpcnmt.optim.local import LocalOptimizer
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.record import read_record
from hpcnmt.training.setup import Trainee, check_sizes, choose_device

DIFFERENT = 1


@dataclass(frozen=True)
class _Run:
    """A recorded run: its recipe, and what config.json says of how it was made."""

    recipe: Recipe
    context: dict[str, Any]
    layout: Layout


def _read_run(run: Path, data: Path) -> _Run:
    """The run of the folder `run`, checked against the corpus `data`. Raises ValueError."""
    config = run / "config.json"
    if not config.is_file():
        raise ValueError(f"found no {config}, expected the folder of a recorded run: give --run the folder of hpcnmt train")
    try:
        content = json.loads(config.read_text("utf-8"))
        context = content.pop("context")
        workers, shards, parameters, digest = (context[name] for name in ("workers", "shards", "parameters", "vocabulary"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{config} is not the configuration of a run ({error})") from error
    recipe = from_mapping(Recipe, content)
    if recipe.training.mode != "async" or not recipe.training.record:
        raise ValueError(
            f"found training.mode={recipe.training.mode} and training.record={recipe.training.record} in {config}, expected an "
            "asynchronous run with a record: train with --set training.record=true"
        )
    found = Vocabularies.read(data).digest
    if found != digest:
        raise ValueError(f"found the vocabulary {found[:12]} in {data}, expected {digest[:12]}: give --data the corpus of the run")
    layout = check_sizes(recipe, data, workers, shards)
    if layout.parameters != parameters:
        raise ValueError(f"the recipe gives {layout.parameters} parameters with {data}, expected {parameters}: give --data that of the run")
    return _Run(recipe, context, layout)


class _Generators:
    """The random state of every worker: on the CPU, and on the GPU where that computes."""

    def __init__(self, trainee: Trainee, workers: int) -> None:
        self.on_gpu = trainee.flat.values.is_cuda
        self.states = []
        for worker in range(workers):
            trainee.seed_worker(worker)
            self.states.append(self._state())

    def _state(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.on_gpu else None

    def within(self, worker: int, compute: Callable[[], BatchCounts]) -> BatchCounts:
        """Computes with the generator of `worker`."""
        on_cpu, on_gpu = self.states[worker]
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
        counts = compute()
        self.states[worker] = self._state()
        return counts


def _build(run: _Run, record: Record, data: Path, loaders: list[Loader]) -> tuple[Replay, Trainee]:
    """The replay of `record`; the loaders of all workers go into `loaders`, to be closed by the caller."""
    layout = run.layout
    trainee = Trainee.build(run.recipe, data, choose_device(run.recipe, 0))
    recipe, flat, corpus = trainee.recipe, trainee.flat, TokenCorpus(data, "train")
    generators = _Generators(trainee, layout.workers)
    loaders += [Loader(corpus, recipe.loader, worker, layout.workers) for worker in range(layout.workers)]

    def gradient_of(worker: int, replica: Tensor, gradient: Tensor) -> BatchCounts | None:
        batch = loaders[worker].next_batch()
        if batch is None:
            return None
        flat.values.copy_(replica)
        return generators.within(worker, lambda: trainee.add_gradient(batch))  # into flat.gradients = gradient

    def local() -> LocalOptimizer:
        return LocalOptimizer(flat.size, recipe.worker.local, recipe.schedule, recipe.worker.clip_norm, flat.values.device)

    replay = Replay(
        record, layout, ShardConfig(recipe.update, policy=recipe.shard), recipe.worker, gradient_of, flat.values.cpu().clone(),
        flat.gradients, local if recipe.worker.local.mode != "off" else None,
    )  # fmt: skip
    return replay, trainee


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _say_what_differs(context: dict[str, Any], device: torch.device) -> None:
    """One line for each thing that equal bits may depend on."""
    now = {"kernels": ops.IN_USE, "torch": torch.__version__, "device": device.type}
    for name, found in now.items():
        if context.get(name) != found:
            _say(f"{name}: recorded with {context.get(name)}, replayed with {found}: bits may differ")


def _run(replay: Replay, total: int, until: int | None) -> None:
    if not sys.stderr.isatty():
        replay.run(until)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("replay", total=total)
        replay.run(until, lambda pushes: progress.update(task, completed=pushes, description=f"{pushes} of {total} pushes"))


def _final(run: Path) -> dict[str, Tensor]:
    path = run / "final.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first tensor of `found` that is not bit for bit that of `expected`, in words; None when all are equal."""
    if found.keys() != expected.keys():
        return f"found the tensors {sorted(found)[:3]} ..., expected {sorted(expected)[:3]} ..."
    for name, tensor in found.items():
        other = expected[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {other.dtype} {tuple(other.shape)}"
        unequal = tensor.reshape(-1, 1).view(torch.uint8) != other.reshape(-1, 1).view(torch.uint8)  # [elements, bytes]
        if unequal.any():
            largest, elements = float((tensor - other).abs().max()), int(unequal.any(1).sum())
            return f"{name} differs in {elements} of {tensor.numel()} elements, by at most {largest:.3g}"
    return None


def replay_run(run: Path, data: Path, until: int | None = None, check_only: bool = False) -> int:
    """Repeats the run; prints what was replayed, and whether it is equal. Returns the exit code; ValueError for a record that cannot be."""
    if until is not None and until < 1:
        raise ValueError(f"--until is {until}, expected at least 1 push")
    recorded = _read_run(run, data)
    record = read_record(run, recorded.layout)
    pushes = [record.pushes(shard) for shard in range(recorded.layout.shards)]
    if record.ended:
        check_record(record)
    elif check_only or until is None or until > min(pushes):
        raise ValueError(
            f"the record of {run} ends after {min(pushes)} pushes without the end of the run: wait for that, or give --until PUSHES"
        )
    if check_only:
        print(f"{pushes} pushes of the shards: every one applied once, in the order of its worker, on the versions it names")
        return 0
    whole = until is None or (record.ended and until >= max(pushes))
    expected = _final(run) if whole else None
    loaders: list[Loader] = []
    try:
        replay, trainee = _build(recorded, record, data, loaders)
        _say_what_differs(recorded.context, trainee.flat.values.device)
        _run(replay, min([*pushes, until or min(pushes)]), None if whole else until)
    finally:
        for loader in loaders:
            loader.close()
    return _judge(replay, trainee, expected)


def _judge(replay: Replay, trainee: Trainee, expected: dict[str, Tensor] | None) -> int:
    final = torch.empty(trainee.flat.size)
    replay.parameters(final)
    pushes, words = ([getattr(shard, name) for shard in source] for name, source in (
        ("pushes", replay.shards), ("words", [shard.shard for shard in replay.shards])
    ))  # fmt: skip
    print(f"replayed {pushes} pushes of the shards, {min(words)} target words")
    if replay.deviation is not None:
        print(f"first deviation: {replay.deviation}")
    if expected is None:
        print(f"parameters {hashlib.sha256(final.numpy().tobytes()).hexdigest()[:16]}; nothing to compare with before the end of a run")
        return DIFFERENT if replay.deviation is not None else 0
    different = difference(trainee.flat.named_views(final), expected)
    print(f"DIFFERENT: {different}" if different else "equal bit for bit")
    return DIFFERENT if different else 0
