"""A supervised run survives SIGKILLs in every phase: the program of the long measurement (benchmarks/kills.py) with small numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.commands import prepare_sample
from tests.need import mpiexec
from tests.processes import ROOT, run

pytestmark = [pytest.mark.system, pytest.mark.mpi, pytest.mark.one_family]
SETTINGS = ("model.embedding_dim=32", "model.feedforward_dim=32", "loader.batch_words=200", "validation.every_words=60000",
            "checkpoint.every_s=1")  # fmt: skip
WORDS = 50_000


def test_a_supervised_run_survives_a_kill_in_every_phase(tmp_path: Path) -> None:
    mpiexec()
    prepare_sample(tmp_path)
    flags = [part for setting in SETTINGS for part in ("--set", setting)]
    out = tmp_path / "kills.json"
    done = run(
        [sys.executable, ROOT / "benchmarks" / "kills.py", "--kills", 4, "--first-s", 0.5, "--last-s", 1, "--words", WORDS, "--references",
         0, "--workers", 1, "--shards", 2, "--data", tmp_path / "prepared", "--out", out, *flags], 300,
    )  # fmt: skip
    assert out.exists(), done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert done.returncode == 0 and all(held is True for held in result["checks"].values()), (result["checks"], done.stdout, done.stderr)
    assert len(result["kills"]) == 4 and max(kill["resumed_from"] for kill in result["kills"]) > 0
    assert all(kill["words_after"] <= kill["words_before"] or kill["hit"] in ("start-up", "rename") for kill in result["kills"])
