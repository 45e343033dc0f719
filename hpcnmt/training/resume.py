"""Going on with a run from its newest complete checkpoint: what may have changed since, and what every rank begins with.

`check_run` is called by the command, before ranks start; `common_checkpoint` by every rank: rank 0 proposes a checkpoint, and all of them
take it or pass it over together. Invariants: nothing is changed in the run folder before all checks have passed; what rank 0 has looked at
stays as it is, because it holds the folder from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcnmt.config import from_mapping
from hpcnmt.reading import read_json
from hpcnmt.training.checkpoint import BEST
from hpcnmt.training.checkpoint_files import (
    Checkpoint,
    checkpoints_folder,
    complete_checkpoints,
    complete_numbers,
    open_checkpoint,
    passed_over,
)
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.run_folder import OF_A_RUN, RunFolder, refuse_existing
from hpcnmt.training.say import say

MAY_CHANGE = (
    "training.max_target_words", "training.threads", "training.device", "training.trace", "training.ring_slots", "training.record",
    "validation.every_words", "validation.beam", "validation.patience", "loader.prefetch_batches", "loader.max_epochs",
    "schedule.learning_rate", "worker.delay", "worker.local.learning_rate_factor", "checkpoint", "deadlines", "divergence", "sync",
)  # fmt: skip
"""Options that a resumed run may have other values of; also --workers and --shards."""


@dataclass(frozen=True)
class Resumed:
    """What the rank with the journal goes on from: checkpoint `number` at `target_words`, whose facts of worker 0 are `worker`."""

    number: int
    target_words: int
    worker: dict[str, Any]
    best: Path | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Resumed:
        """What a checkpoint says. Raises ValueError when its best model is damaged."""
        return cls(checkpoint.number, checkpoint.words, checkpoint.facts("worker-0"), checkpoint.linked(BEST))

    @property
    def journal(self) -> dict[str, Any]:
        """See Journal.facts."""
        return dict(self.worker["journal"])

    @property
    def validation(self) -> dict[str, Any]:
        """See Validation.facts."""
        return dict(self.worker["validation"])

    def lost_words(self, run: Path) -> int:
        """Target words that were trained beyond the checkpoint, as far as the records of `run` say."""
        if not (run / "metrics.jsonl").is_file():
            return 0
        last_words = [int(record.get("target_words", 0)) for record in RunFolder(run).records()]
        return max(0, *last_words, self.target_words) - self.target_words


def is_finished(run: Path) -> bool:
    """Whether `run` has ended by itself: nothing is left to resume."""
    if not (run / "final.safetensors").is_file() or not (run / "metrics.jsonl").is_file():
        return False
    return any(record["kind"] == "end" for record in RunFolder(run).records())


def check_run(run: Path, recipe: Recipe, resume: bool, before: int | None = None) -> Checkpoint | None:
    """The checkpoint that a training into `run` goes on from (an older one than number `before`), None to begin.

    Raises ValueError for an existing run that it does not fit, and where no checkpoint can be read: a run is not begun anew for that.
    """
    if not resume:
        refuse_existing(run)
    path = run / "config.json"
    if not path.exists():
        if found := [name for name in OF_A_RUN if (run / name).exists()]:
            raise ValueError(f"found {found[0]} in {run}, but no config.json of a run: this is something else, choose another --run")
        return None
    content = read_json(path, {"model": {str: object}, "context": {"hpcnmt": str}})
    for checkpoint in complete_checkpoints(run):
        if before is None or checkpoint.number < before:
            _check_same(run, recipe, content)
            return checkpoint
    if complete_numbers(run):
        folder = checkpoints_folder(run)
        raise ValueError(f"found no checkpoint in {folder} that can be read, see above: bring one back, or remove it to begin anew")
    return None


def common_checkpoint(
    run: Path, recipe: Recipe, resume: bool, rank: int, share: Callable[[int], int], all_of_us: Callable[[bool], bool],
    needed: Callable[[Checkpoint], Sequence[str]],
) -> Checkpoint | None:  # fmt: skip
    """The newest checkpoint of which every rank can read the parts it has `needed`, with these already read; None to begin.

    `share` gives all ranks the number that rank 0 has, `all_of_us` whether every rank says yes. Raises what `check_run` raises, on rank 0;
    the others wait in `share` until they are ended with it.
    """
    if rank == 0 and resume and run.is_dir():
        RunFolder(run).hold()
    before = None
    while True:
        found = check_run(run, recipe, resume, before) if rank == 0 else None
        number = share(found.number if found else 0)
        if not number:
            return None
        whole = False
        try:
            checkpoint = open_checkpoint(run, number)
            checkpoint.load(needed(checkpoint))
            if rank == 0:
                checkpoint.linked(BEST)
            whole = True
        except ValueError as error:
            say(passed_over(run, number, error))
        if all_of_us(whole):
            return checkpoint
        before = number


@contextmanager
def readable(checkpoint: Checkpoint) -> Iterator[None]:
    """Turns what a part of another version or another program gives rise to into a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{checkpoint.folder} is no checkpoint of this version of hpcnmt ({type(error).__name__}: {error})") from error


def _check_same(run: Path, recipe: Recipe, content: dict[str, Any]) -> None:
    path = run / "config.json"
    content.pop("context")
    try:
        content["model"] |= {"vocabulary_size": recipe.model.vocabulary_size, "source_vocabulary_size": recipe.model.source_vocabulary_size}
        before = asdict(from_mapping(Recipe, content))
    except ValueError as error:
        raise ValueError(f"{path} is not the configuration of a run ({error})") from error
    if recipe.training.record and not before["training"]["record"]:
        raise ValueError(f"found training.record=true, but {run} has not been recorded from its start: resume with training.record=false")
    for name, found, expected in _differences(asdict(recipe), before):
        if not any(name == may or name.startswith(f"{may}.") for may in MAY_CHANGE):
            raise ValueError(f"found {name}={found}, expected {expected} as in {path}: resume with that, or choose another --run")


def _differences(found: dict[str, Any], expected: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key, value in found.items():
        other = expected.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(value, other, f"{path}{key}.")
        elif value != other:
            yield f"{path}{key}", value, other
