"""The request to end: real signals to a process of its own, also one whose main thread is deep inside C; the time limit of a Slurm job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcnmt.training.signals import EndRequest, job_end_s
from tests.processes import ROOT

WAITS = """
import time
from hpcnmt.training.signals import EndRequest
with EndRequest() as end:
    print("ready", flush=True)
    while not end.requested:
        time.sleep(0.01)
    print(end.reason, flush=True)
    {after}
"""
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes without a look at Python's handlers


@contextmanager
def program(after: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(after=after)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_does_not_end(number: signal.Signals) -> None:
    with program("print('saved', flush=True)") as process:
        process.send_signal(number)
        process.send_signal(number)  # the same one, delivered twice
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, f"{number.name}\nsaved\n"), err
        assert err == f"hpcnmt: {number.name}: the run saves and ends; a second signal ends it at once\n"


def test_a_second_signal_ends_at_once_whatever_the_main_thread_does() -> None:
    with program(IN_C) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stdout is not None and process.stdout.readline() == "SIGUSR1\n"
        time.sleep(1.2)  # later than one that is delivered twice
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with EndRequest(speaks=False) as end:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
        limit_s = time.monotonic() + 30
        while not end.requested and time.monotonic() < limit_s:
            time.sleep(0.01)
    assert end.reason == "SIGTERM" and (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_time_limit_that_comes_near_is_a_request(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now + 1000)))
    end = EndRequest(before_limit_s=120)
    assert not end.requested and not EndRequest().requested
    monkeypatch.setattr(time, "time", lambda: now + 900)
    assert end.requested and end.reason.startswith("time limit of job 17 in ")
    assert capfd.readouterr().err.count("time limit of job 17") == 1
    late = EndRequest(before_limit_s=120)  # 100 s are left: it trains for half of them, and does not end as it begins
    assert not late.requested
    monkeypatch.setattr(time, "time", lambda: now + 955)
    assert late.requested


def test_squeue_is_asked_where_the_environment_does_not_say(tmp_path: Path) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$*" = "-h -j 17 -o %e" ] && echo 2030-01-02T03:04:05\n')
    squeue.chmod(0o755)
    environment = {"SLURM_JOB_ID": "17", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    old, os.environ["PATH"] = os.environ["PATH"], environment["PATH"]
    try:
        assert job_end_s(environment, True) == time.mktime((2030, 1, 2, 3, 4, 5, 0, 0, -1))
        assert job_end_s(environment, False) is None and job_end_s({}, True) is None
        squeue.write_text("#!/bin/sh\necho N/A\n")
        assert job_end_s(environment, True) is None
    finally:
        os.environ["PATH"] = old
