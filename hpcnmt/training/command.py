"""`hpcnmt train`: its arguments, the checks before a run starts, and what comes of errors.

Every mode ends here in one of two ways: ranks (this process is one of mpiexec, srun or torchrun, or starts local ones, start.py), or this
process alone. On a rank any error ends the whole job, because the others would wait for it until their deadlines: a user's error, a
divergence and a disk that fails with one line, anything else with its traceback. Heavy imports stay inside, so that --help is quick.
Called by cli.py.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from hpcnmt.training.exits import DIVERGED, FAILED, FINISHED, USER_ERROR
from hpcnmt.training.say import one_line, say

if TYPE_CHECKING:
    from hpcnmt.training.recipe import Recipe

RANK_ZERO_FIRST_S = 1.0
"""Seconds the other ranks leave to rank 0, so that an error which all of them find is told once."""
TO_BE_HEARD_S = 0.5
"""Between the message and the end of the job: a launcher that kills its ranks at once can lose what it has not yet passed on."""
MAY_PASS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE,
    errno.ENFILE,
}  # fmt: skip
"""Errors of files that are no wrong input: the same command may do better later."""


def add_arguments(train: argparse.ArgumentParser) -> None:
    """The arguments of `hpcnmt train`."""
    train.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    train.add_argument("--data", type=Path, required=True, help="folder of hpcnmt prepare")
    train.add_argument("--run", type=Path, required=True, help="new folder for this run")
    train.add_argument("--workers", type=int, help="default 2; not in mode plain")
    train.add_argument("--shards", type=int, help="default 1; not in modes plain and sync")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of RUN; begin where there is none")
    train.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="change an option of the recipe")
    train.add_argument("--trace", action="store_true", help="write what every rank does when to RUN/trace (training.trace=true)")
    train.add_argument("--supervise", action="store_true", help="start local ranks again from the newest checkpoint when they fail")
    train.add_argument("--restarts", type=int, metavar="N",
                       help="failures in a row without a new checkpoint after which --supervise gives up (default 3)")  # fmt: skip
    train.add_argument("--back-off", type=float, metavar="SECONDS",
                       help="wait before a restart, doubled up to 60 while there is no new checkpoint (default 1; 0 = none)")  # fmt: skip


def train(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit code (exits.py)."""
    from hpcnmt.config import load_recipe, override
    from hpcnmt.optim.window import Diverged
    from hpcnmt.training.launch import is_launched
    from hpcnmt.training.parent import is_ours
    from hpcnmt.training.recipe import build_recipe
    from hpcnmt.training.resume import check_run, is_finished
    from hpcnmt.training.start import check_supervision, start_local

    recipe = build_recipe(override(load_recipe(arguments.recipe), arguments.set + ["training.trace=true"] * arguments.trace))
    mode = recipe.training.mode
    check_supervision(arguments, mode)
    if mode == "plain" and not (arguments.workers is None and arguments.shards is None):
        raise ValueError("--workers and --shards have no effect with training.mode=plain: remove them")
    if mode == "sync" and arguments.shards is not None:
        raise ValueError("--shards has no effect with training.mode=sync, whose workers all hold the parameters: remove it")
    workers = 1 if mode == "plain" else 2 if arguments.workers is None else arguments.workers
    shards = 0 if mode == "sync" else 1 if arguments.shards is None else arguments.shards
    if arguments.resume and mode == "virtual":
        raise ValueError("--resume has no effect with training.mode=virtual, which makes no checkpoints: remove it and choose a new --run")
    if arguments.resume and is_finished(arguments.run):
        say(f"the run {arguments.run} is finished already: nothing is left to train")
        return FINISHED
    if mode in ("async", "sync") and is_launched(mode):
        return _train_rank(recipe, arguments.data, arguments.run, workers, shards, arguments.resume)
    check_run(arguments.run, recipe, arguments.resume)
    if mode in ("async", "sync"):
        _check_start(recipe, arguments.data, workers, shards)
        return start_local(arguments, recipe, workers + shards)
    from hpcnmt.doctor import launched_size
    from hpcnmt.training.local import train_plain, train_virtual
    from hpcnmt.training.setup import check_sizes

    check_sizes(recipe, arguments.data, workers, max(shards, 1))
    if launched := launched_size(os.environ):
        raise ValueError(f"training.mode={mode} is one process, but the launcher started {launched}: start it without mpiexec or srun")
    if arguments.supervise and not is_ours():
        return start_local(arguments, recipe, 0)
    try:
        if mode == "plain":
            return train_plain(recipe, arguments.data, arguments.run, arguments.resume)
        train_virtual(recipe, arguments.data, arguments.run, workers, shards)
    except (Diverged, OSError) as error:
        return failure(error, arguments.run)
    return FINISHED


def _check_start(recipe: Recipe, data: Path, workers: int, shards: int) -> None:
    """The checks before local ranks are started."""
    from hpcnmt.training.setup import check_sizes

    if recipe.training.mode == "sync":
        from hpcnmt.distributed.collective import check_backend

        check_backend(recipe.sync.backend)
    check_sizes(recipe, data, workers, max(shards, 1))


def failure(error: BaseException, run: Path) -> int:
    """Says what went wrong while `run` was trained, a divergence and a user's error in one line; returns the exit code."""
    from hpcnmt.optim.window import Diverged
    from hpcnmt.training.fall_back import report_divergence

    if isinstance(error, Diverged):
        say(report_divergence(run, error))
        return DIVERGED
    if isinstance(error, (ValueError, OSError)):
        say(one_line(error))
        return FAILED if isinstance(error, OSError) and error.errno in MAY_PASS else USER_ERROR
    traceback.print_exception(error)
    return FAILED


def _train_rank(recipe: Recipe, data: Path, run: Path, workers: int, shards: int, resume: bool) -> int:
    """One rank: any error ends the whole job, because the others would wait for this rank until their deadlines."""
    from hpcnmt.optim.window import Diverged
    from hpcnmt.training.launch import abort, end_world, is_first

    try:
        if recipe.training.mode == "sync":
            from hpcnmt.training import synchronous

            code = synchronous.run_rank(recipe, data, run, workers, resume)
        else:
            from hpcnmt.training import asynchronous

            code = asynchronous.run_rank(recipe, data, run, workers, shards, resume)
    except BaseException as error:
        if isinstance(error, (ValueError, OSError, Diverged)):
            time.sleep(0.0 if is_first(recipe.training.mode) else RANK_ZERO_FIRST_S)
        code = failure(error, run)
        sys.stderr.flush()
        time.sleep(TO_BE_HEARD_S)
        return abort(recipe.training.mode, code)
    return end_world(recipe.training.mode, code)
