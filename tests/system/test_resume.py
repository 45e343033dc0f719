"""Going on with a run: a signal saves, --resume goes on to the bit; other workers, other shards; what does not fit is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import hpcnmt, records, train_command
from tests.need import mpiexec, need_backend
from tests.processes import ROOT

pytestmark = [pytest.mark.system, pytest.mark.mpi]
ONE_FAMILY = pytest.mark.one_family
SAVED = 75
DEADLINE_S = 120.0
MODES = {
    "async": (2, ("worker.overlap=1", "worker.delay=2", "worker.local.mode=compensate", "validation.every_words=100000")),
    "plain": (0, ("training.mode=plain", "training.ema_alpha=0.001")),
    "sync": (2, ("training.mode=sync", "sync.backend=torch")),
    "horovod": (2, ("training.mode=sync",)),
}
SETTINGS = ("model.dropout=0.1", "training.max_target_words=16000", "validation.every_words=3000")


@contextmanager
def started(*arguments: object, launcher: tuple[object, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, which is killed at the end of the block."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    command = [str(part) for part in (*launcher, sys.executable, "-m", "hpcnmt", *arguments)]
    process = subprocess.Popen(
        command, env=variables, cwd=ROOT, start_new_session=True, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )  # fmt: skip
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def wait_for(what: str, done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert process.poll() is None, f"ended before {what}: {process.stderr.read() if process.stderr else ''}"
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


def pid_of(run: Path, rank: str) -> int:
    return int(json.loads((run / "status" / f"{rank}.json").read_text())["pid"])


def validations(run: Path) -> list[tuple[int, float, float]]:
    return [(r["target_words"], r["cross_entropy"], r["bleu"]) for r in records(run, "validation")]


def launcher_of(ranks: int) -> tuple[object, ...]:
    return (mpiexec(), "-n", ranks) if ranks else ()


def options_of(mode: str) -> tuple[object, ...]:
    return {"async": ("--workers", 1, "--shards", 1), "plain": ()}.get(mode, ("--workers", 2))


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=ONE_FAMILY if mode in ("plain", "sync") else ()) for mode in MODES])
def test_a_run_that_was_ended_by_a_signal_goes_on_to_the_bit(folder: Path, mode: str) -> None:
    need_backend("horovod" if mode == "horovod" else "torch")
    ranks, settings = MODES[mode]
    arguments = train_command(folder, f"{mode}-whole", *options_of(mode), settings=(*SETTINGS, *settings))
    whole = hpcnmt(*arguments, launcher=tuple(map(str, launcher_of(ranks))), deadline_s=DEADLINE_S)
    assert whole.returncode == 0, whole.stderr
    arguments = train_command(folder, f"{mode}-parts", *options_of(mode), "--resume", settings=(*SETTINGS, *settings))
    run, last = folder / f"{mode}-parts", "shard-0" if mode == "async" else f"worker-{max(ranks - 1, 0)}"
    with started(*arguments, launcher=launcher_of(ranks)) as process:
        metrics, status = run / "metrics.jsonl", run / "status" / f"{last}.json"
        begun = "training" if mode == "async" else "validation"  # a cut for a checkpoint may put off one for a validation
        wait_for(f"a {begun} record", lambda: metrics.exists() and begun in metrics.read_text() and status.exists(), process)
        os.kill(pid_of(run, last), signal.SIGUSR1)  # on any rank
        assert process.wait(DEADLINE_S) == SAVED, process.stderr.read() if process.stderr else ""
    before = records(run, "training")[-1]["target_words"]
    assert not (run / "final.safetensors").exists() and before < 16000
    done = hpcnmt(*arguments, launcher=tuple(map(str, launcher_of(ranks))), deadline_s=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    resume = records(run, "resume")
    assert len(resume) == 1 and 0 < resume[0]["target_words"] < 16000 and resume[0]["lost_target_words"] == 0
    assert validations(run) == validations(folder / f"{mode}-whole")
    for name in ("final.safetensors", "model.safetensors"):
        assert (run / name).read_bytes() == (folder / f"{mode}-whole" / name).read_bytes(), name
    again = hpcnmt(*arguments)
    assert again.returncode == 0 and "finished already" in again.stderr
    assert not [p for p in run.rglob("*") if p.name.endswith((".part", ".tmp")) or p.name.startswith(".removed")]
