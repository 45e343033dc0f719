"""Training runs of a benchmark: what is to be trained, which folders hold it already, and what they say.

A run is one `hpcnmt train` into a folder of its own. Invariant: a folder of anything but the same run is refused and left alone.
Used by quality.py, ablation.py and time_to_bleu.py; children.py trains.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcnmt.bench.identity import completed, first_difference, flat_options
from hpcnmt.config import load_recipe, override
from hpcnmt.data.corpus import read_description
from hpcnmt.data.vocabulary import Vocabularies
from hpcnmt.reading import read_json
from hpcnmt.training.recipe import Recipe, build_recipe
from hpcnmt.training.run_folder import VALIDATION, RunFolder
from hpcnmt.training.setup import check_sizes

GROWING = ("delay_ramp_words", "overlap_from_words", "lockstep_words")
"""Options of `worker` and `shard` by which delay, overlap and lockstep change within a run."""
OWN_OPTIONS = {
    "training.mode": "it is the benchmark's", "training.seed": "use --seeds", "loader.seed": "use --seeds", "clock.seed": "use --seeds",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training: `settings` are its --set options, mode and seeds among them; `recipe` is what they make of `recipe_name`."""

    name: str
    recipe_name: str
    settings: tuple[str, ...]
    recipe: Recipe
    data: Path
    folder: Path
    workers: int
    shards: int
    parameters: int
    stands_for: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the point that are not those of the training, such as the workers of a synchronous cluster that one process equals."""

    @property
    def key(self) -> str:
        """Of its point."""
        return f"{self.name} seed{self.recipe.training.seed}"

    @property
    def mode(self) -> str:
        """training.mode"""
        return self.recipe.training.mode

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return self.workers + self.shards if self.mode in ("async", "sync") else 1

    def identity(self) -> dict[str, Any]:
        """The settings of the point that the run becomes."""
        worker, training = self.recipe.worker, self.recipe.training
        growing = dict(zip(GROWING, (worker.delay_ramp_words, worker.overlap_from_words, self.recipe.shard.lockstep_words), strict=True))
        return {
            "name": self.name, "mode": self.mode, "workers": self.workers, "shards": self.shards, "seed": training.seed,
            "delay": worker.delay, "overlap": worker.overlap, "wire": training.wire, "parameters": self.parameters,
            "set": list(self.settings),
        } | {name: value for name, value in growing.items() if value} | dict(self.stands_for)  # fmt: skip

    def command(self, launcher: str) -> list[str]:
        """`hpcnmt train ...`, started by `launcher` where the run needs ranks and there is one."""
        started = [*shlex.split(launcher), str(self.ranks)] if launcher and self.mode in ("async", "sync") else []
        flags = ["--workers", str(self.workers)] if self.mode != "plain" else []
        flags += ["--shards", str(self.shards)] if self.mode in ("async", "virtual") else []
        sets = [part for setting in self.settings for part in ("--set", setting)]
        paths = ["--data", str(self.data), "--run", str(self.folder)]
        return [*started, sys.executable, "-m", "hpcnmt", "train", self.recipe_name, *paths, *flags, *sets]


def plan_run(
    name: str, recipe_name: str, settings: Sequence[str], seed: int, data: Path, work: Path, workers: int, shards: int
) -> Run:  # fmt: skip
    """The run of `name` and `seed` in a folder of its own in `work`; ValueError for what cannot be trained.

    The seed is that of the parameters and of dropout, of the order of batches, and of the clock where time is virtual.
    """
    seeds = [f"training.seed={seed}", f"loader.seed={seed}"]
    seeds += [f"clock.seed={seed}"] if "training.mode=virtual" in settings else []
    settings = (*settings, *seeds)
    recipe = build_recipe(override(load_recipe(recipe_name), list(settings)))
    layout = check_sizes(recipe, data, workers, max(shards, 1))
    return Run(name, recipe_name, settings, recipe, data, work / f"{name}-seed{seed}", workers, shards, layout.parameters)


def refuse_own_options(settings: Sequence[str], where: str) -> None:
    """ValueError for an option that the benchmark sets itself."""
    for setting in settings:
        name = setting.partition("=")[0]
        if name in OWN_OPTIONS:
            raise ValueError(f"found {name} in {where}: {OWN_OPTIONS[name]}")


def integers(text: str, what: str) -> list[int]:
    """Different whole numbers of at least 1 from "1,4,16"; ValueError that names `what`."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"found {what} {text!r}, expected different whole numbers of at least 1, such as {what} 1,2,4")
    return [int(part) for part in parts]


def data_identity(data: Path) -> dict[str, Any]:
    """What tells one prepared corpus from another, wherever it lies."""
    description = read_description(data)
    return {"vocabulary_digest": description["vocabulary_digest"], "splits": description["splits"]}


def is_done(run: Run) -> bool:
    """Whether its folder holds the end of this run. ValueError when it holds anything but (a part of) this run."""
    if not run.folder.exists() or (run.folder.is_dir() and not any(run.folder.iterdir())):
        return False
    try:
        found = read_json(run.folder / "config.json", {"context": {str: object}})
    except (OSError, ValueError) as error:
        raise ValueError(f"{run.folder} is in the way and holds no run ({error}): remove it, or choose another --work") from error
    context = found.pop("context")
    ended = (run.folder / "metrics.jsonl").is_file() and any(r["kind"] == "end" for r in RunFolder(run.folder).records())
    expected = flat_options(asdict(run.recipe) | {"context": {"workers": run.workers, "shards": run.shards}})
    found = completed(found | {"context": {name: context.get(name) for name in ("workers", "shards")}})
    found |= {name: expected[name] for name in expected if name.endswith("vocabulary_size")}  # known only to who has read the data
    difference = first_difference(found, expected)
    if ended and not difference and Vocabularies.read(run.folder).digest != read_description(run.data)["vocabulary_digest"]:
        difference = f"its vocabulary is not that of {run.data}"
    if difference:
        raise ValueError(f"{run.folder} holds another run ({difference}): remove it, or choose another --work")
    return ended


def training_seconds(validations: Sequence[Mapping[str, Any]], mode: str) -> list[float]:
    """Seconds of training that each validated snapshot had behind it.

    A record's `seconds` is the moment at which its validation was over, `took_s` how long that took. Where training stands still meanwhile,
    every validation so far is off the clock; asynchronous training goes on, and only the validation of the snapshot itself comes after it.
    """
    if mode == "async":
        return [float(v["seconds"]) - float(v["took_s"]) for v in validations]
    seconds, standing = [], 0.0
    for validation in validations:
        standing += float(validation["took_s"])
        seconds.append(float(validation["seconds"]) - standing)
    return seconds


def read_curve(run: Run) -> list[dict[str, float]]:
    """Validations of a run by target words; one of the same words as the one before (the last, often) is left out."""
    validations = RunFolder(run.folder).fields("validation", VALIDATION)
    curve: list[dict[str, float]] = []
    for validation, seconds in zip(validations, training_seconds(validations, run.mode), strict=True):
        if curve and curve[-1]["target_words"] == validation["target_words"]:
            continue
        names = ("target_words", "cross_entropy", "bleu", "chrf", "simulated_s")
        point = {name: validation[name] for name in names if name in validation}
        curve.append(point if run.mode == "virtual" else point | {"seconds": round(seconds, 3)})
    return curve


def read_end(run: Run) -> dict[str, Any]:
    """The record that ends a run."""
    return next(r for r in RunFolder(run.folder).records() if r["kind"] == "end")


def read_staleness(run: Run) -> dict[str, int]:
    """Pushes by staleness, those of all shards; empty where nothing is pushed."""
    counts = sum(RunFolder(run.folder).staleness(), Counter[int]())
    return {str(key): counts[key] for key in sorted(counts)}


def mean_staleness(staleness: Mapping[str, int]) -> float | None:
    """Mean of a histogram; None of an empty one."""
    total = sum(staleness.values())
    return sum(int(key) * count for key, count in staleness.items()) / total if total else None
