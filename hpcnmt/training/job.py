"""One start of local ranks, from mpiexec's begin to the last trace of it: watching, forwarding signals, cleaning up.

Invariants: mpiexec and the ranks do not outlive this process, however it ends: each asks the kernel to be killed with its parent. After
mpiexec's end no process, no shared memory and no temporary file of them is left (leftovers.py); what a launcher that was killed could not
remove, the next start of the same run does. Signals go to the ranks, which know what to do; mpiexec, in a session of its own,
hears none of them, nor those of the terminal. A second signal kills everything. Called by launch.py and start.py.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from hpcnmt.training import leftovers
from hpcnmt.training.exits import FINISHED, SAVED, SIGNAL, USER_ERROR
from hpcnmt.training.parent import CODE_FILE, LAUNCHER, death_signal
from hpcnmt.training.signals import END_SIGNALS, SAME_S, Handler

OF_A_RANK = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
POLL_S = 0.05
LOOK_S = 1.0
"""Seconds between two looks at the shared memory of the ranks; while they start, every QUICK_LOOK_S for QUICK_S."""
QUICK_LOOK_S, QUICK_S = 0.25, 20.0
DEAF_S = 20.0
"""So long a signal waits for ranks that do not listen yet because they start; then they get it all the same."""
TO_LEAVE_S = 2.0
"""Time that what is left after an orderly end has to end by itself."""


class Forwarder:
    """Notes the signals to this process while it is entered, for all starts within; `run_job` passes them on."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.second: signal.Signals | None = None
        self._first_s = 0.0
        self._restore: list[tuple[signal.Signals, Handler]] = []

    def __enter__(self) -> Forwarder:
        if threading.current_thread() is threading.main_thread():
            for number in (*END_SIGNALS, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    self._restore.append((number, signal.signal(number, self._note)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._restore:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._restore = []

    def _note(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.first is None:
            self.first, self._first_s = signal.Signals(number), now_s
        elif now_s - self._first_s >= SAME_S and self.second is None:
            self.second = signal.Signals(number)

    def pause(self, seconds: float) -> bool:
        """Waits; returns early, with True, when there is a signal."""
        limit_s = time.monotonic() + seconds
        while self.first is None and (left_s := limit_s - time.monotonic()) > 0:
            time.sleep(min(left_s, POLL_S))
        return self.first is not None


def run_job(command: Sequence[str], environment: Mapping[str, str], run: Path, signals: Forwarder, alone: bool = False) -> int:
    """Runs `command`, an mpiexec and what it starts, for the run folder `run`; returns the exit code of the run.

    `alone`: it is no mpiexec, but the one process that trains.
    The code is what a rank has told (parent.tell_code), else that of mpiexec; 128 + n when signal n has killed a rank or mpiexec.
    Raises ValueError when ranks of `run` are running on this host already.
    """
    leftovers.clean_earlier(run)
    record = leftovers.JobRecord(secrets.token_hex(16), leftovers.new_folder())
    leftovers.write_record(run, record)
    try:
        job = _Job(command, environment, run, record, signals, alone)
        try:
            return job.watch()
        finally:
            job.end()
    finally:
        record.clean()
        leftovers.remove_record(run)


class _Job:
    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], run: Path, record: leftovers.JobRecord, signals: Forwarder,
        alone: bool,
    ) -> None:  # fmt: skip
        self.run, self.record, self.signals, self.alone = run, record, signals, alone
        self._code_file = Path(record.folder) / "exit-code"
        self._begin_s = self._looked_s = time.monotonic()
        self._told: set[int] = set()  # ranks that have the signal
        self._signal_s = 0.0
        variables = os.environ | dict(environment) | {
            leftovers.TOKEN: record.token, CODE_FILE: str(self._code_file),
            LAUNCHER: f"{platform.node()}/{record.launcher}@{record.launcher_began_s}",
        }  # fmt: skip
        variables.setdefault("PRTE_MCA_prte_tmpdir_base", record.folder)  # Open MPI's session folder
        die_with_me = death_signal() if sys.platform.startswith("linux") else None
        self.process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_me)

    def watch(self) -> int:
        while self.process.poll() is None:
            time.sleep(POLL_S)
            if self.signals.second is not None:
                self.end()
                return SIGNAL + self.signals.second
            if self.signals.first is not None:
                self._pass_on(self.signals.first)
            self._look()
        code = self._code(self.process.returncode)
        orderly = code in (FINISHED, USER_ERROR, SAVED)
        ended = self.record.clean(TO_LEAVE_S if orderly else 0.0)
        if ended and not orderly:
            sys.stderr.write(f"hpcnmt: ended {ended} processes that were left after exit code {code}\n")
            sys.stderr.flush()
        return code

    def end(self) -> None:
        """Kills whatever is left, mpiexec first, so that it has nothing to tell of its ranks."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _look(self) -> None:
        now_s = time.monotonic()
        every_s = QUICK_LOOK_S if now_s - self._begin_s < QUICK_S else LOOK_S
        if now_s - self._looked_s >= every_s:
            self._looked_s = now_s
            if self.record.look():
                leftovers.write_record(self.run, self.record)

    def _pass_on(self, number: signal.Signals) -> None:
        now_s = time.monotonic()
        self._signal_s = self._signal_s or now_s
        sent = signal.SIGTERM if number == signal.SIGHUP else number
        for pid in self._ranks() - self._told:
            if _listens(pid) or now_s - self._signal_s > DEAF_S:
                self._told.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, sent)

    def _ranks(self) -> set[int]:
        """Process ids of the ranks: those with a variable of a rank whose parent has none, so not what ranks have started."""
        if self.alone:
            return {self.process.pid}
        found = {pid for pid, variables in leftovers.with_token(self.record.token).items() if any(n in variables for n in OF_A_RANK)}
        return {pid for pid in found if _parent(pid) not in found}

    def _code(self, returned: int) -> int:
        with suppress(OSError, ValueError):
            return int(self._code_file.read_text("ascii"))
        if returned < 0:
            return SIGNAL - returned
        killed = 1 < returned < 32 and not self.alone  # MPICH's mpiexec gives the number of the signal that killed a rank
        return SIGNAL + returned if killed else returned


def _listens(pid: int) -> bool:
    """Whether the rank has installed its handlers (signals.py). MPICH catches SIGUSR1, Python SIGINT, both from early on."""
    caught = int(_status(pid, "SigCgt") or "0", 16)
    return all(caught >> (number - 1) & 1 for number in END_SIGNALS[-2:])


def _parent(pid: int) -> int:
    return int(_status(pid, "PPid") or "0")


def _status(pid: int, name: str) -> str:
    with suppress(OSError):
        for line in (leftovers.PROC / str(pid) / "status").read_text("utf-8", "replace").splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1]
    return ""
