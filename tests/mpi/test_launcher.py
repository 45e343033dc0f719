"""The launcher of local ranks: signals reach the ranks, and however it ends, nothing is left: no process, no shared memory, no folder."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hpcnmt.training import leftovers
from tests.need import mpiexec
from tests.processes import ROOT

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).with_name("launcher_program.py")
DEADLINE_S = 60.0


class Job:
    def __init__(self, run: Path, what: str) -> None:
        mpiexec()
        self.run = run
        self.name = secrets.token_hex(8)
        self.temporary = run.parent / "tmp"  # its own folder for temporary files: what is left there is seen
        self.temporary.mkdir(exist_ok=True)
        own = {"TMPDIR": str(self.temporary), "NAME_OF_JOB": self.name}
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | own
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, run, what], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self.segments: set[leftovers.Segment] = set()
        self.token = ""

    def records(self) -> list[Path]:
        return [path for path in self.temporary.glob("hpcnmt-*.json")]

    def up(self) -> None:
        """Waits until all ranks are."""
        assert self.process.stdout is not None
        for _ in range(3):
            line = self.process.stdout.readline()
            while not line.strip():  # a launcher may pass on the end of a line apart from the line
                assert line, "the program has ended"
                line = self.process.stdout.readline()
            assert line.startswith("up"), line
        self.token = leftovers.environment_of(self.ranks()[0])[leftovers.TOKEN]  # type: ignore[index]
        self.segments = leftovers.segments_of(self.ranks())
        assert self.segments  # else the test would see nothing

    def ours(self) -> dict[int, dict[str, str]]:
        found = {pid: leftovers.environment_of(pid) or {} for pid in leftovers.processes()}
        return {pid: v for pid, v in found.items() if v.get(leftovers.TOKEN) and v.get("NAME_OF_JOB") == self.name}

    def ranks(self) -> list[int]:
        return sorted(pid for pid, v in self.ours().items() if "PMI_RANK" in v or "OMPI_COMM_WORLD_RANK" in v)

    def mpiexec(self) -> int:
        return next(pid for pid in self.ours() if f"\nPPid:\t{self.process.pid}\n" in Path(f"/proc/{pid}/status").read_text())

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def nothing_is_left(self, folders: bool = True) -> None:
        until(lambda: not self.ours())
        assert not {name for name, _ in self.segments} & set(os.listdir("/dev/shm")) or not folders
        assert not folders or not list(self.temporary.iterdir())


def until(condition: Callable[[], bool]) -> None:
    limit_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.02)


@contextmanager
def job(run: Path, what: str) -> Iterator[Job]:
    started = Job(run, what)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()
        for pid in started.ours():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_the_ranks_and_their_code_comes_back(tmp_path: Path, number: signal.Signals) -> None:
    with job(tmp_path / "run", "wait") as started:
        started.up()
        started.process.send_signal(number)
        code, out, err = started.end()
        assert code == 75 and out.count(f" {number.name}") == 3, err
        assert err.count("hpcnmt:") == 1, err  # that of rank 0: cleaning up after an orderly end is no news
        started.nothing_is_left()


def test_a_signal_waits_for_ranks_that_start(tmp_path: Path) -> None:
    with job(tmp_path / "run", "late") as started:
        until(lambda: len(started.ranks()) == 3)
        started.process.send_signal(signal.SIGTERM)
        code, out, err = started.end()
        assert code == 75 and out.count(" SIGTERM") == 3, err


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with job(tmp_path / "run", "deaf") as started:
        started.up()
        started.process.send_signal(signal.SIGUSR1)
        time.sleep(1.2)  # later than one that is delivered twice
        started.process.send_signal(signal.SIGTERM)
        assert started.end()[0] == 128 + signal.SIGTERM
        started.nothing_is_left()


@pytest.mark.parametrize("victim", ["rank", "mpiexec"])
def test_nothing_is_left_when_one_is_killed(tmp_path: Path, victim: str) -> None:
    with job(tmp_path / "run", "wait") as started:
        started.up()
        os.kill(started.ranks()[1] if victim == "rank" else started.mpiexec(), signal.SIGKILL)
        code, _, err = started.end()
        assert code == 128 + signal.SIGKILL, err
        started.nothing_is_left()


def test_the_ranks_die_with_a_killed_launcher_and_the_next_start_cleans_up(tmp_path: Path) -> None:
    with job(tmp_path / "run", "wait") as started:
        started.up()
        until(lambda: any(name in path.read_text() for path in started.records()
                          for name, _ in started.segments))  # fmt: skip
        started.process.kill()
        started.process.communicate()
        until(lambda: not started.ours())
        assert {name for name, _ in started.segments} & set(os.listdir("/dev/shm")) and list(started.temporary.glob("hpcnmt-job-*"))
    with job(tmp_path / "run", "fail") as again:
        again.segments = started.segments
        code, _, err = again.end()
        assert code == 3, err
        again.nothing_is_left()


def test_a_run_is_not_started_twice(tmp_path: Path) -> None:
    with job(tmp_path / "run", "wait") as started:
        started.up()
        with job(tmp_path / "run", "wait") as second:
            code, _, err = second.end()
            assert code == 1 and f"is being trained by process {started.process.pid} of this host" in err
        assert len(started.ranks()) == 3
