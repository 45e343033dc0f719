"""Synchronous training on real ranks, with Horovod and with torch.distributed (gloo): equal to one process on the joined batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.need import mpiexec, need_backend
from tests.processes import run

pytestmark = pytest.mark.mpi
BACKENDS = ["horovod", pytest.param("torch", marks=pytest.mark.one_family)]  # which needs MPI to meet only
TOLERANCE = 1e-10


def run_program(ranks: int, what: str, backend: str, *arguments: int) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Runs synchronous_program.py; its process and its JSON lines."""
    need_backend(backend)
    program = Path(__file__).with_name("synchronous_program.py")
    command = [mpiexec(), "-n", ranks, sys.executable, "-m", "mpi4py", program, what, backend, *arguments]
    done = run(command, deadline_s=150, environment={"HPCNMT_KERNELS": "reference"})
    return done, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_one_process_on_the_joined_batch(backend: str, ranks: int) -> None:
    done, lines = run_program(ranks, "equal", backend, 20)
    assert done.returncode == 0, done.stderr
    assert len(lines) == ranks * 4
    for model in ("transformer", "gru"):
        for tau in (1, 2):
            found = [line for line in lines if (line["model"], line["tau"]) == (model, tau)]
            assert len({line["digest"] for line in found}) == 1 and {line["windows"] for line in found} == {20}
            (first,) = (line for line in found if line["rank"] == 0)
            assert first["difference"] <= TOLERANCE and first["ema_difference"] <= TOLERANCE, first
            assert first["moved"] > 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_whose_data_ends_sooner_contribute_zeros_and_all_end_together(backend: str) -> None:
    done, lines = run_program(3, "join", backend)
    assert done.returncode == 0, done.stderr
    assert [line["windows"] for line in lines] == [4, 4, 4]  # 3, 5 and 7 batches in windows of two
    assert len({(line["words"], line["digest"]) for line in lines}) == 1
    assert [line["difference"] <= TOLERANCE for line in lines if line["rank"] == 0] == [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_rank_ends_the_others_at_the_deadline(backend: str) -> None:
    done, _ = run_program(2, "silent", backend)
    assert done.returncode != 0
    assert "failed on rank 0" in done.stderr and "Raise deadlines.peer_s" in done.stderr, done.stderr
