"""Checkpoints of the modes in which every process holds all parameters: plain (one process) and sync (all hold the same).

Rank 0 alone keeps parameters and moments, which are the same everywhere; every rank keeps its place in the data and its random generators.
Invariant: all ranks take their state between the same two windows; so their parts are of one moment. Called by local.py and synchronous.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import Loader, LoaderConfig
from hpcnmt.optim.update import Update
from hpcnmt.training.checkpoint import CheckpointConfig, Committer, Saver, random_state, restore_random_state
from hpcnmt.training.checkpoint_files import Checkpoint
from hpcnmt.training.exits import FAILED, SAVED
from hpcnmt.training.journal import Journal


def needed_parts(checkpoint: Checkpoint, rank: int, world: int) -> list[str]:
    """What a rank goes on from: the part of rank 0, and its own where there were as many ranks."""
    own = [f"worker-{rank}"] if rank and len(checkpoint.names) == world else []
    return ["worker-0", *own]


class ProcessState:
    """What rank `rank` of `world` saves of `parameters` [parameters] and `update`."""

    def __init__(
        self, run: Path, rank: int, world: int, parameters: Tensor, update: Update, config: CheckpointConfig, limit_s: float
    ) -> None:  # fmt: skip
        self.rank, self.world, self.parameters, self.update, self.config = rank, world, parameters, update, config
        self.saver = Saver(run, f"worker-{rank}")
        self.committer = Committer(run, [f"worker-{index}" for index in range(world)], config.keep, limit_s)
        self.number = 0  # of the last checkpoint
        self._saved_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return 0 < self.config.every_s <= time.monotonic() - self._saved_s

    def resume(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Takes over parameters, update rule and random generators; returns the facts of rank 0, none at a beginning."""
        if checkpoint is None:
            self.update.start(self.parameters)
            return {}
        self.number = checkpoint.number
        part = checkpoint.read("worker-0")
        self.parameters.copy_(part.tensors["parameters"])
        self.update.load(part.tensors, part.facts["update"])
        if len(checkpoint.names) == self.world:
            restore_random_state(checkpoint.read(self.saver.name).tensors if self.rank else part.tensors)
        return part.facts

    def open_loader(self, corpus: TokenCorpus, config: LoaderConfig, checkpoint: Checkpoint | None) -> Loader:
        """The data from where the ranks of the checkpoint have left them; dealt anew where these were other numbers of ranks."""
        if checkpoint is None:
            return Loader(corpus, config, self.rank, self.world)
        states = [checkpoint.facts(name)["loader"] for name in checkpoint.names]
        return Loader.resumed(corpus, config, self.rank, self.world, states)

    def save(self, facts: Mapping[str, Any], must: bool) -> None:
        """Takes the state between two windows, all ranks between the same; rank 0 gives facts with journal and validation."""
        self.number += 1
        self._saved_s = time.monotonic()
        number, words = self.number, self.update.words
        links = self.committer.link_best(number) if self.rank == 0 and (must or not self.saver.is_busy) else {}
        tensors = {"parameters": self.parameters} | self.update.tensors() if self.rank == 0 else {}
        about = dict(facts) | ({"update": self.update.facts(), "global_words": words} if self.rank == 0 else {})

        def commit() -> None:
            if self.rank == 0:
                self.committer.commit(number, links, words)

        self.saver.take(number, tensors | random_state(), about, must, commit)

    def leave(self, journal: Journal | None, loader: Loader, reason: str) -> int:
        """The end of a run that will be resumed, after `save`; returns the exit code, on rank 0 SAVED."""
        self.saver.close()
        loader.close()
        if journal is None:
            return 0
        saved = self.committer.committed == self.number
        if saved:
            journal.say(f"saved checkpoint {self.number} ({reason or 'another rank was told to end'}): go on with --resume")
        journal.close()
        return SAVED if saved else FAILED
