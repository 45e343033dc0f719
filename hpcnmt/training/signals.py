"""The request to end: a signal (USR1, USR2, TERM, INT), or the time limit of the Slurm job that comes near.

`EndRequest` only says so; whoever trains looks at `requested` between two windows, saves and ends. Invariants: the first signal never
ends the process; a second one, a second or more later, ends it at once, whatever the main thread does. srun, a shell and a terminal often
deliver the same signal twice, so what comes within a second of the first one counts as the same. Python runs signal handlers in
the main thread only, which may be deep inside MPI: here a small thread reads the numbers that Python's C handler writes to a pipe.
Used by every rank and by the modes of one process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any

from hpcnmt.training.exits import SIGNAL

END_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""In the order in which handlers are installed: a process that catches the last two is ready for all of them (job.py asks)."""
SAME_S = 1.0
"""Signals so soon after the first one are the same request, delivered twice."""
SQUEUE_S = 10.0
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class EndRequest:
    """Use as a context manager in the main thread; `requested` and `reason` may be read from any thread.

    `before_limit_s`: seconds before the end of the Slurm job at which `requested` turns true by itself; 0 = only signals count.
    `asks_squeue`: asks squeue once where the environment does not say when the job ends; for one rank of the job. `speaks`: one line on
    standard error when it is requested.
    """

    def __init__(self, before_limit_s: float = 0.0, asks_squeue: bool = False, speaks: bool = True) -> None:
        self.reason = ""
        self._speaks = speaks
        self._requested = threading.Event()
        self._first_s = 0.0
        self._restore: list[tuple[signal.Signals, Handler]] = []
        self._pipe = (-1, -1)
        self._old_wakeup = -1
        self._thread: threading.Thread | None = None
        self._limit_s: float | None = None
        """When to end by itself, in seconds since the epoch."""
        if before_limit_s > 0:
            end_s = job_end_s(os.environ, asks_squeue)
            if end_s is not None:
                self._limit_s = end_s - before_limit_s
                left_s = end_s - time.time()
                if left_s < 2 * before_limit_s:  # a job that ended as soon as it began would be requeued for ever
                    self._limit_s = end_s - max(left_s, 0.0) / 2
                self._end_s = end_s

    @property
    def requested(self) -> bool:
        """Whether the run is to save and end."""
        if not self._requested.is_set() and self._limit_s is not None and time.time() >= self._limit_s:
            job, left_s = os.environ.get("SLURM_JOB_ID", ""), max(self._end_s - time.time(), 0.0)
            self._request(f"time limit of job {job} in {left_s:.0f} s")
        return self._requested.is_set()

    def _request(self, reason: str) -> None:
        if self._requested.is_set():
            return
        self.reason, self._first_s = reason, time.monotonic()
        self._requested.set()
        if self._speaks:
            self._say(f"hpcnmt: {reason}: the run saves and ends; a second signal ends it at once\n")

    @staticmethod
    def _say(line: str) -> None:
        """Past sys.stderr, whose lock the main thread may hold."""
        try:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
        except (OSError, ValueError):
            pass  # nobody reads any more

    def __enter__(self) -> EndRequest:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)  # a full pipe must never stop a signal handler
        self._pipe = reader, writer
        self._old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in END_SIGNALS:
            self._restore.append((number, signal.signal(number, _noted)))
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._restore:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._old_wakeup)
        reader, writer = self._pipe
        os.close(writer)  # ends the thread
        if self._thread is not None:
            self._thread.join(SAME_S)
        os.close(reader)
        self._restore, self._pipe, self._thread = [], (-1, -1), None

    def _listen(self) -> None:
        reader = self._pipe[0]
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in END_SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        by_itself = self._requested.is_set() and self.reason.startswith("time limit")
        if not self._requested.is_set():
            self._request(number.name)
        elif by_itself:  # the signal that Slurm sends before its limit is the first one, and says the same
            self.reason, self._first_s = number.name, time.monotonic()
        elif time.monotonic() - self._first_s >= SAME_S:
            self._say(f"hpcnmt: {number.name}, the second signal: ends at once\n")
            os._exit(SIGNAL + number)


def _noted(number: int, frame: FrameType | None) -> None:
    """Nothing to do: the pipe has the number."""


def job_end_s(environment: Mapping[str, str], asks_squeue: bool) -> float | None:
    """When the Slurm job ends, in seconds since the epoch; None outside Slurm, without a limit, or when nobody says."""
    job = environment.get("SLURM_JOB_ID", "")
    if not job.isdigit():
        return None
    try:
        return float(int(environment["SLURM_JOB_END_TIME"]))
    except (KeyError, ValueError):
        return _asked(job, environment) if asks_squeue else None


def _asked(job: str, environment: Mapping[str, str]) -> float | None:
    command = ["squeue", "-h", "-j", job, "-o", "%e"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SQUEUE_S, env=dict(environment) | {"SLURM_TIME_FORMAT": "standard"},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    for line in done.stdout.splitlines():
        try:
            return datetime.fromisoformat(line.strip()).timestamp()  # the local time of this host, as squeue writes it
        except ValueError:
            continue
    return None
