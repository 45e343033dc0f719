"""Over TCP between virtual hosts, a worker that is stopped for a minute holds up nobody, and ends in good order when it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import virtual_hosts

pytestmark = pytest.mark.netns
ROOT = Path(__file__).parents[2]
BEFORE_S, STOPPED_S, AFTER_S = 20.0, 60.0, 10.0


@pytest.fixture
def launcher() -> Iterator[list[str]]:
    with virtual_hosts(4, "1gbit") as command:
        yield command


def windows_between(folder: Path, worker: int, begin: float, end: float) -> int:
    times = [float(line) for line in (folder / f"windows-{worker}").read_text().splitlines()]
    return sum(begin <= t < end for t in times)


def test_a_stopped_worker_holds_up_nobody(launcher: list[str], tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": path}
    program = str(Path(__file__).with_name("rate_program.py"))
    seconds = str(BEFORE_S + STOPPED_S + AFTER_S)
    process = subprocess.Popen(
        [*launcher, "4", sys.executable, "-m", "mpi4py", program, str(tmp_path), seconds], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"windows-{w}").is_file() and windows_between(tmp_path, w, 0, 1e18) for w in range(3)):
            assert time.monotonic() < deadline and process.poll() is None, process.communicate(timeout=10)[0]
            time.sleep(0.2)
        begin = time.monotonic()
        time.sleep(BEFORE_S)
        victim = int((tmp_path / "pid-2").read_text())
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(STOPPED_S)
        resumed = time.monotonic()
        os.kill(victim, signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert windows_between(tmp_path, 2, stopped + 1, resumed) == 0
    for worker in (0, 1):
        before = windows_between(tmp_path, worker, begin, stopped) / (stopped - begin)
        during = windows_between(tmp_path, worker, stopped, resumed) / (resumed - stopped)
        assert during >= 0.9 * before, f"worker {worker}: {before:.2f} windows/s before, {during:.2f} while worker 2 was stopped"
