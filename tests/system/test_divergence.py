"""Training that goes wrong by its numbers: bad gradients, a real divergence, and supervision in the modes without shards.

| fault | outcome |
| --- | --- |
| one NaN in one window of one worker | that window is dropped and counted, code 0 |
| a NaN in ten windows in a row | code 3, one line with the sentences, RUN/diverged.json |
| the learning rate grows until the loss explodes, --supervise | back to a checkpoint from before, newer ones removed, lower rate, code 0 |
| SIGKILL of a rank before that, modes plain and sync | started again from the newest checkpoint |
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import records, train_command
from tests.need import mpiexec
from tests.processes import ROOT
from tests.processes import run as run_process

pytestmark = [pytest.mark.system, pytest.mark.mpi, pytest.mark.one_family]
DEADLINE_S = 180.0
SETTINGS = ("loader.batch_words=150", "validation.every_words=1000000", "validation.beam=1")
FACTOR = 0.02
DIVERGING = (
    "training.max_target_words=12000", "checkpoint.every_s=0.1", "checkpoint.keep=1000", "schedule.warmup_words=1000000",
    "divergence.windows=5", "divergence.margin_nats=0.5", f"divergence.factor={FACTOR}", "divergence.fall_backs=1",
)  # fmt: skip
"""The rate grows with the words: the loss falls at first, and explodes after some 3,000 words."""


def train_with_bad_gradients(folder: Path, run: str, first: int, count: int) -> subprocess.CompletedProcess[str]:
    command = train_command(folder, run, "--workers", 2, "--shards", 1, settings=(*SETTINGS, "training.max_target_words=4000"))
    program = Path(__file__).with_name("bad_gradient_program.py")
    return run_process([mpiexec(), "-n", 3, sys.executable, program, 1, first, count, *command], DEADLINE_S)


def dropped(run: Path) -> list[int]:
    statuses = [json.loads((run / "status" / f"worker-{worker}.json").read_text()) for worker in range(2)]
    return [status["counters"]["dropped_windows"] for status in statuses]


def test_a_window_with_a_nan_is_dropped_and_the_run_goes_on(folder: Path) -> None:
    done = train_with_bad_gradients(folder, "one", 3, 1)
    assert done.returncode == 0, done.stderr
    run = folder / "one"
    assert dropped(run) == [0, 1] and not (run / "diverged.json").exists()
    assert math.isfinite(records(run, "validation")[-1]["cross_entropy"])
    shard = json.loads((run / "shard-0.json").read_text())
    workers = [json.loads((run / "status" / f"worker-{worker}.json").read_text())["counters"] for worker in range(2)]
    assert shard["updates"] == sum(worker["windows"] for worker in workers) - 1  # nothing of it was pushed
    assert 4000 <= shard["target_words"] < sum(worker["target_words"] for worker in workers)


def test_ten_windows_with_a_nan_in_a_row_end_the_run(folder: Path) -> None:
    done = train_with_bad_gradients(folder, "ten", 3, 1000)
    said = [line for line in done.stderr.splitlines() if line.startswith("hpcnmt: ")]
    assert done.returncode == 3 and len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "non-finite" in said[0] and "this window has the training sentences " in said[0]
    assert dropped(folder / "ten") == [0, 10]
    found = json.loads((folder / "ten" / "diverged.json").read_text())
    assert 0 < found["began_words"] < 4000 and found["reason"] in said[0]


def supervised(folder: Path, name: str, settings: tuple[str, ...], look: Callable[[], None], *options: object) -> str:
    """Trains FOLDER/NAME under --supervise and calls `look` again and again meanwhile; what it said. Fails unless the code is 0."""
    command = train_command(folder, name, "--supervise", "--back-off", 0, *options, settings=(*SETTINGS, *settings))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpcnmt", *map(str, command)], env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        limit_s = time.monotonic() + DEADLINE_S
        while process.poll() is None and time.monotonic() < limit_s:
            look()
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            process.kill()  # what it has started dies with it
            process.wait()
    said = (folder / f"{name}.log").read_text()
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize(
    ("mode", "rate", "kills", "options"),
    [("plain", 400.0, 1, ()), ("sync", 200.0, 1, ("--workers", 2)), ("async", 150.0, 0, ("--workers", 2, "--shards", 1))],
)
def test_a_supervised_run_falls_back_behind_a_divergence(
    folder: Path, mode: str, rate: float, kills: int, options: tuple[object, ...]
) -> None:
    mpiexec()
    backend = ("sync.backend=torch",) if mode == "sync" else ()
    run, killed, before = folder / mode, set[int](), dict[int, int]()
    victim = run / "status" / f"worker-{1 if mode == 'sync' else 0}.json"

    def look() -> None:
        """Notes all checkpoints before the fall back, number: words; kills a rank after the first."""
        if (run / "diverged-1.json").exists():
            return
        for path in run.glob("checkpoints/cut-*/COMPLETE"):
            if (number := int(path.parent.name[4:])) not in before:
                try:
                    before[number] = json.loads(path.read_text())["content"]["words"]
                except FileNotFoundError:
                    continue  # it is being removed
        if before and len(killed) < kills and victim.exists():
            killed.add(int(json.loads(victim.read_text())["pid"]))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    settings = (f"training.mode={mode}", f"schedule.learning_rate={rate}", *DIVERGING, *backend)
    said = supervised(folder, mode, settings, look, *options)
    assert (run / "diverged-1.json").exists(), said
    assert mode == "sync" or "Traceback" not in said, said  # a rank may notice that its peer is gone before it is ended
    began_words = json.loads((run / "diverged-1.json").read_text())["began_words"]
    *restarts, fall_back = [line for line in said.splitlines() if line.startswith("hpcnmt: ended with") or "falls back to" in line]
    assert len(killed) == len(restarts) == kills and all("killed by SIGKILL" in line for line in restarts), said
    sound = max(number for number, words in before.items() if words <= began_words)
    lowered = f"falls back to checkpoint {sound} with schedule.learning_rate={rate * FACTOR}"
    assert lowered in fall_back and max(before) > sound, (said, before)
    resumed = records(run, "resume")[-1]  # those since that checkpoint have gone from the journal with what they led to
    assert (resumed["checkpoint"], resumed["target_words"]) == (sound, before[sound])
    after = {int(path.parent.name[4:]): json.loads(path.read_text())["content"]["words"] for path in run.glob("checkpoints/*/COMPLETE")}
    assert {number: words for number, words in after.items() if number <= sound} == {n: w for n, w in before.items() if n <= sound}
    assert (run / "final.safetensors").is_file() and not (run / "diverged.json").exists()
    (end,) = records(run, "end")
    assert end["target_words"] >= 12000
