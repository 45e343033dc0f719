"""The network link of one virtual host goes down while a training runs on three: worker 0, worker 1, shard 0.

| fault | outcome |
| --- | --- |
| the worker's link for 5 s | the run goes on or waits; code 0, every push once |
| the shard's link for longer than deadlines.peer_s | code 1; the shard on the cut-off host ends by itself; --resume finishes, code 0 |
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import records, train_command
from tests.hosts import virtual_hosts
from tests.processes import ROOT

pytestmark = pytest.mark.netns
DEADLINE_S = 150.0
SETTINGS = (
    "loader.batch_words=150", "validation.every_words=1000000", "validation.beam=1", "checkpoint.every_s=1",
    "deadlines.stall_warning_s=2", "deadlines.cut_s=3",
)  # fmt: skip
SHORT = ("deadlines.peer_s=8", "deadlines.job_s=15", "training.max_target_words=1000000")


@pytest.fixture
def launcher() -> Iterator[list[str]]:
    with virtual_hosts(3, "1gbit") as command:
        yield command


def start(launcher: list[str], folder: Path, name: str, *settings: str, resume: bool = False) -> subprocess.Popen[str]:
    options = ("--workers", 2, "--shards", 1, *(("--resume",) if resume else ()))
    command = [*launcher, "3", sys.executable, "-m", "hpcnmt", *train_command(folder, name, *options, settings=(*SETTINGS, *settings))]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "PATH": path}
    return subprocess.Popen(
        [str(word) for word in command], env=os.environ | variables, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def set_link(host: int, state: str) -> None:
    subprocess.run(["ip", "link", "set", f"hpcv{host}", state], check=True, timeout=30)


def wait_until_reachable(host: int) -> None:
    """A link that is up carries nothing for a moment. That a port is closed is an answer, too."""
    limit_s = time.monotonic() + 30
    probe = ["ip", "netns", "exec", f"hpcnmt{host}", "bash", "-c", "echo > /dev/tcp/10.77.0.254/9"]
    while "refused" not in subprocess.run(probe, capture_output=True, text=True, timeout=30, env=os.environ | {"LC_ALL": "C"}).stderr:
        assert time.monotonic() < limit_s, f"host {host} cannot be reached"
        time.sleep(0.2)


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    limit_s = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None and time.monotonic() < limit_s, path
        time.sleep(0.05)


def output_of(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=DEADLINE_S)[0]
    finally:
        if process.poll() is None:
            process.kill()


def shard_words(run: Path) -> int:
    return int(json.loads((run / "status" / "shard-0.json").read_text())["counters"]["target_words"])


def test_a_worker_whose_link_was_down_for_seconds_goes_on(launcher: list[str], folder: Path) -> None:
    run, words = folder / "worker", 12_000
    process = start(launcher, folder, "worker", "deadlines.peer_s=60", f"training.max_target_words={words}")
    try:
        wait_for(process, run / "checkpoints" / "cut-00000001" / "COMPLETE")
        set_link(2, "down")
        time.sleep(5)
    finally:
        set_link(2, "up")
        output = output_of(process)
    assert process.returncode == 0, output
    (end,) = records(run, "end")
    shard = json.loads((run / "shard-0.json").read_text())
    counters = [json.loads((run / "status" / f"worker-{worker}.json").read_text())["counters"] for worker in range(2)]
    assert end["target_words"] == shard["target_words"] == sum(c["target_words"] for c in counters) >= words  # each push once
    assert shard["updates"] == sum(c["windows"] for c in counters)


def test_a_link_that_stays_down_ends_the_run_which_can_be_resumed(launcher: list[str], folder: Path) -> None:
    run = folder / "shard"
    process = start(launcher, folder, "shard", *SHORT)
    try:
        wait_for(process, run / "checkpoints" / "cut-00000001" / "COMPLETE")
        wait_for(process, run / "status" / "shard-0.json")
        shard = int(json.loads((run / "status" / "shard-0.json").read_text())["pid"])
        set_link(3, "down")
        output = output_of(process)
        assert process.returncode == 1 and "RuntimeError: waited 8 s for the shards to take push" in output, output
        limit_s = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{shard}").exists():  # its launcher cannot reach it
            assert time.monotonic() < limit_s, "the shard on the host that is cut off has not ended"
            time.sleep(0.1)
    finally:
        set_link(3, "up")
    wait_until_reachable(3)
    status = json.loads((run / "status" / "shard-0.json").read_text())
    assert status["state"] == "failed" and "heard nothing for 15 s" in status["message"]
    process = start(launcher, folder, "shard", "deadlines.peer_s=60", "training.max_target_words=12000", resume=True)
    output = output_of(process)
    assert process.returncode == 0, output
    assert records(run, "end")[0]["target_words"] >= 12000 and len(records(run, "resume")) == 1
