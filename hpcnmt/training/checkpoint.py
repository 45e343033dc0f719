"""Checkpoints while training goes on: a rank copies its state in memory at a cut, and a thread of its own writes it.

Every rank has a `Saver`; that of worker 0 also commits the checkpoint once the parts of all ranks are there (checkpoint_files.py).
Invariants: nobody waits for a disk but a run that is about to end; a part is written from copies, never from what is being trained; a
checkpoint that cannot be written whole (full disk, a rank that is gone, a cut that was cancelled) is given up with one line and training
goes on. The copies are kept from one checkpoint to the next: fresh memory would cost more than the copying.
Used by asynchronous.py, synchronous.py and local.py; what is in the parts is theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcnmt.training.checkpoint_files import Part, commit, discard, is_whole, part_folder, write_part
from hpcnmt.training.say import say

POLL_S = 0.05
BEST = "model.safetensors"


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state of a run is saved, and how many of these are kept."""

    every_s: float = 300.0
    """Seconds between two checkpoints; 0 = only when a signal or the time limit ends the run."""
    keep: int = 2
    """The newest so many stay; the best model is kept in any case."""
    before_limit_s: float = 120.0
    """Seconds before the time limit of a Slurm job at which the run saves and ends by itself; 0 = never."""

    def __post_init__(self) -> None:
        if self.every_s < 0 or self.before_limit_s < 0:
            raise ValueError(
                f"found checkpoint.every_s={self.every_s} and checkpoint.before_limit_s={self.before_limit_s}, "
                "expected neither to be negative"
            )
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep is {self.keep}, expected at least 1")


def random_state() -> dict[str, Tensor]:
    """The generators that dropout draws from, as tensors of a part."""
    found = {"random": torch.get_rng_state()}
    return found | ({"random_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `random_state`, as far as this host has the devices."""
    torch.set_rng_state(tensors["random"])
    if "random_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random_cuda"])


class Saver:
    """Writes the parts of the rank `name` ("worker-0") into the checkpoints of `run`; one at a time."""

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self.failed = 0  # parts that could not be written, or were left out
        self._copies: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an older part is still being written, or the checkpoint that it belongs to not complete yet."""
        return self._job is not None and not self._job.done()

    def take(
        self, number: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], must: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Copies `tensors` and begins to write the part of checkpoint `number`; `then` follows in the same thread.

        While an older part is still being written this one is left out with one line, unless it `must` be taken: then this waits.
        """
        if self._job is not None and must:
            self._job.result()
        if self.is_busy:
            self.failed += 1
            say(f"{self.name} is still writing an older checkpoint and leaves out number {number}: raise checkpoint.every_s")
            mark_failed(part_folder(self.run, number), self.name)
            return
        part = Part({name: self._copy(name, tensor) for name, tensor in tensors.items()}, dict(facts))
        self._job = self._thread.submit(self._write, number, part, then)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return copy.copy_(tensor)

    def _write(self, number: int, part: Part, then: Callable[[], None]) -> None:
        folder = part_folder(self.run, number)
        try:
            write_part(folder, self.name, part)
        except Exception as error:  # whatever it is: in this thread nobody else would hear of it
            self.failed += 1
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            say(f"{self.name} cannot save checkpoint {number}: {reason}; training goes on without it")
            mark_failed(folder, self.name)
        then()

    def close(self) -> None:
        """Waits for what is being written."""
        self._thread.shutdown(wait=True)


def mark_failed(folder: Path, name: str) -> None:
    """Lets the committing rank know at once; where even this cannot be written, its deadline does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.failed").touch()
    except OSError:
        return


class Committer:
    """Makes checkpoints complete, in the background thread of worker 0; `names` = the parts of all ranks."""

    def __init__(self, run: Path, names: Sequence[str], keep: int, limit_s: float) -> None:
        self.run, self.names, self.keep, self.limit_s = run, names, keep, limit_s
        self._in_use: set[Path] = set()
        self.committed = 0
        """Number of the last complete checkpoint of this process."""

    def link_best(self, number: int) -> dict[str, Path]:
        """A second name for the best model as it is now, which the checkpoint will take over; replaces one that was never used."""
        for unused in self.run.glob(".best-*.part"):
            if unused not in self._in_use:
                unused.unlink(missing_ok=True)
        best = self.run / BEST
        if not best.is_file():
            return {}
        second = self.run / f".best-{number}.part"
        second.unlink(missing_ok=True)
        try:
            os.link(best, second)
        except OSError:  # a file system without hard links
            shutil.copyfile(best, second)
        self._in_use.add(second)
        return {BEST: second}

    def commit(
        self, number: int, links: Mapping[str, Path], words: int | None = None, is_cancelled: Callable[[], bool] = lambda: False
    ) -> None:  # fmt: skip
        """Waits for the parts of all ranks, then makes checkpoint `number` complete, or gives it up with one line.

        `words`: global target words at the cut; None: those that shard 0 has counted there.
        """
        reason = self._wait(number, is_cancelled)
        try:
            if not reason:
                words = self._words_of_a_shard(number) if words is None else words
                commit(self.run, number, self.names, links, self.keep, words)
                self.committed = number
        except (OSError, ValueError) as error:
            reason = str(error)
        for path in links.values():
            path.unlink(missing_ok=True)
            self._in_use.discard(path)
        if reason:
            say(f"checkpoint {number} is given up: {reason}")
            discard(self.run, number)

    def _words_of_a_shard(self, number: int) -> int:
        return int(json.loads((part_folder(self.run, number) / "shard-0.json").read_text("utf-8"))["facts"]["words"])

    def _wait(self, number: int, is_cancelled: Callable[[], bool]) -> str:
        """Waits for all parts; why they will not come, or nothing."""
        folder, begin = part_folder(self.run, number), time.monotonic()
        while not is_whole(folder, self.names):
            failed = [name for name in self.names if (folder / f"{name}.failed").exists()]
            if failed:
                return f"found no part of {', '.join(failed)}"
            if is_cancelled():
                return "its cut was cancelled, because a worker was silent for too long"
            if time.monotonic() - begin > self.limit_s:
                missing = [name for name in self.names if not is_whole(folder, [name])]
                return f"waited {self.limit_s:.0f} s for the parts of {', '.join(missing)}: raise deadlines.peer_s if they are only slow"
            time.sleep(POLL_S)
        return ""
