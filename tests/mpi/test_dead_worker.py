"""Best effort of Open MPI with `--with-ft ulfm`: a worker is killed and the others train on, without a restart.

| fault | outcome |
| --- | --- |
| SIGKILL of worker 1 of 3 | one line; worker 0, worker 2 and the shard train to the end, code 0; no checkpoint after it |
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import prepare_sample, records, train_command
from tests.need import mpiexec
from tests.processes import ROOT

pytestmark = [pytest.mark.system, pytest.mark.mpi]
DEADLINE_S = 150.0
WORDS = 15_000
SETTINGS = (
    f"training.max_target_words={WORDS}", "loader.batch_words=150", "validation.every_words=1000000", "validation.beam=1",
    "checkpoint.every_s=0.5", "deadlines.stall_warning_s=3", "deadlines.cut_s=8", "deadlines.peer_s=10", "deadlines.job_s=60",
)  # fmt: skip


def test_the_others_train_on(tmp_path: Path) -> None:
    launcher = mpiexec()
    if "Open MPI" not in subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=60).stdout:
        pytest.skip("only Open MPI lets a run go on without a rank")
    prepare_sample(tmp_path)
    run, log = tmp_path / "run", tmp_path / "log"
    train = train_command(tmp_path, "run", "--workers", 3, "--shards", 1, settings=SETTINGS)
    command = [launcher, "--with-ft", "ulfm", "-n", "4", sys.executable, "-m", "hpcnmt", *map(str, train)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=ROOT, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    try:
        limit_s = time.monotonic() + DEADLINE_S
        status = run / "status" / "worker-1.json"
        while not (list(run.glob("checkpoints/cut-*/COMPLETE")) and status.exists()):
            assert process.poll() is None and time.monotonic() < limit_s, log.read_text()
            time.sleep(0.02)
        os.kill(int(json.loads(status.read_text())["pid"]), signal.SIGKILL)
        code = process.wait(DEADLINE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # mpiexec and its ranks are its session
            process.wait()
    said = log.read_text(errors="replace")
    assert code == 0 and "Traceback" not in said, said
    assert said.count("worker 1 has died: the others train on, without further checkpoints") == 1
    (end,) = records(run, "end")
    shard = json.loads((run / "shard-0.json").read_text())
    assert end["target_words"] == shard["target_words"] >= WORDS and (run / "final.safetensors").is_file()
    counters = {w: json.loads((run / "status" / f"worker-{w}.json").read_text())["counters"]["target_words"] for w in (0, 2)}
    assert min(counters.values()) > 0 and sum(counters.values()) < shard["target_words"]  # what worker 1 has pushed counts
