"""What `hpcnmt train` does where no launcher has started it: local ranks, or with --supervise one process too, started and watched.

Called by command.py, after everything that can be checked without ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hpcnmt.config import load_recipe, override
from hpcnmt.doctor import launched_size
from hpcnmt.training.divergence import lowered
from hpcnmt.training.fall_back import FallBack
from hpcnmt.training.job import Forwarder, run_job
from hpcnmt.training.launch import is_launched, start_ranks
from hpcnmt.training.parent import is_ours
from hpcnmt.training.recipe import Recipe, build_recipe
from hpcnmt.training.supervise import supervise


def check_supervision(arguments: argparse.Namespace, mode: str) -> None:
    """Raises ValueError where --supervise cannot do anything, or its options do not fit. Ranks of our own launcher ignore it."""
    if is_ours():
        return
    if not arguments.supervise:
        for name, value in (("--restarts", arguments.restarts), ("--back-off", arguments.back_off)):
            if value is not None:
                raise ValueError(f"{name} has no effect without --supervise: add --supervise, or remove {name}")
        return
    if is_launched(mode) or launched_size(os.environ):
        raise ValueError("found --supervise on a rank of mpiexec or srun, where the job script requeues: remove --supervise")
    if mode == "virtual":
        raise ValueError("--supervise has no effect with training.mode=virtual, which has no checkpoints: remove it")
    if arguments.restarts is not None and arguments.restarts < 1:
        raise ValueError(f"--restarts is {arguments.restarts}, expected at least 1")
    if arguments.back_off is not None and not 0 <= arguments.back_off < float("inf"):
        raise ValueError(f"--back-off is {arguments.back_off}, expected 0 (none) or a positive number of seconds")


def start_local(arguments: argparse.Namespace, recipe: Recipe, ranks: int) -> int:
    """Runs this very command on `ranks` local ranks (0: as one process without mpiexec), again and again with --supervise."""
    run: Path = arguments.run

    with Forwarder() as signals:

        def start(added: list[str]) -> int:
            words = with_arguments(sys.argv[1:], added)
            if ranks:
                return start_ranks(words, ranks, recipe.training.threads, run, signals)
            return run_job([sys.executable, "-m", "hpcnmt", *words], {}, run, signals, alone=True)

        if not arguments.supervise:
            return start([])
        fall_back = FallBack(run, recipe.divergence, lambda falls: settings_after(arguments, recipe, falls))
        restarts = 3 if arguments.restarts is None else arguments.restarts
        back_off_s = 1.0 if arguments.back_off is None else arguments.back_off
        return supervise(
            start, run, restarts, back_off_s, signals.pause, lambda: signals.first is not None, fall_back, settings=fall_back.settings()
        )


def with_arguments(words: list[str], added: list[str]) -> list[str]:
    """`words` of a command line with `added` options behind its own, so that they count."""
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end], *added, *words[end:]]


def settings_after(arguments: argparse.Namespace, recipe: Recipe, falls: int) -> list[str]:
    """--set arguments after so many falls back; the delay stays where the recipe does not allow a smaller one."""
    options = lowered(recipe.divergence, recipe.schedule.learning_rate, recipe.worker.delay, falls)
    for chosen in (options, {name: value for name, value in options.items() if name != "worker.delay"}):
        settings = [f"{name}={value}" for name, value in chosen.items()]
        try:
            build_recipe(override(load_recipe(arguments.recipe), arguments.set + settings))
        except ValueError:
            continue
        return [word for setting in settings for word in ("--set", setting)]
    return []
