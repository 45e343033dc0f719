"""Child processes that train the runs of a benchmark (or do something else with them), several at once.

Invariants: a run that has ended is never trained again; one that was cut off is removed and trained anew. A run that fails leaves the
others alone. No child outlives the benchmark, however that ends (but by SIGKILL). Used by quality.py, ablation.py, time_to_bleu.py and
translations.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from hpcnmt.bench.launch import end_groups, program_environment
from hpcnmt.bench.runs import Run, is_done

POLL_S = 0.1
LOG_TAIL_LINES = 5
T = TypeVar("T")
Child = subprocess.Popen[bytes]


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[None]:
    """Makes the folder of the runs and keeps other benchmarks out of it: they would remove runs that are under way."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another benchmark is training in {path}: wait for its end, or choose another --work") from error
        yield


def train_all(runs: Sequence[Run], jobs: int, launcher: str, done: Callable[[Run], None]) -> list[str]:
    """Trains what is not trained yet, `jobs` runs at once, and calls `done` with every run that stands; returns what went wrong."""
    ended = {run.key: is_done(run) for run in runs}  # all of them first: what is in the way is said before hours of training
    waiting = [run for run in runs if not ended[run.key]]
    for run in runs:
        if ended[run.key]:
            done(run)

    def over(run: Run, process: Child) -> str:
        if process.returncode == 0 and is_done(run):
            done(run)
            return ""
        return said_last(run.key, process, _log(run))

    return in_parallel(waiting, jobs, lambda run: _start(run, launcher), over)


def in_parallel(tasks: Iterable[T], jobs: int, start: Callable[[T], Child], over: Callable[[T, Child], str]) -> list[str]:
    """Starts a child for every task, `jobs` at once; `over` gets each task whose child has ended, and says what went wrong, if anything."""
    waiting, active = deque(tasks), list[tuple[T, Child]]()
    failures: list[str] = []
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                task = waiting.popleft()
                active.append((task, start(task)))
            for entry in [entry for entry in active if entry[1].poll() is not None]:
                active.remove(entry)
                failure = over(*entry)
                failures += [failure] if failure else []
            time.sleep(POLL_S)
    finally:
        end_groups([process for _, process in active])
    return failures


def _start(run: Run, launcher: str) -> Child:
    shutil.rmtree(run.folder, ignore_errors=True)  # a part of this run, or nothing: is_done has looked
    print(f"{run.key}: training; log {_log(run)}", flush=True)
    with _log(run).open("wb") as log:
        return subprocess.Popen(
            run.command(launcher), env=program_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip


def _log(run: Run) -> Path:
    return run.folder.with_name(run.folder.name + ".log")


def said_last(key: str, process: Child, log: Path) -> str:
    """How a child that failed ended."""
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:])
    return f"{key} ended with exit code {process.returncode}, log {log}:\n{tail}"
