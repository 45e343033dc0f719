"""`hpcnmt bench comm` on two and three real ranks of this host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.bench.comm import link_bytes_per_s
from tests.processes import run

pytestmark = pytest.mark.mpi


def bench(out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "hpcnmt", "bench", "comm", "--out", str(out), "--rounds", "2", *options]
    done = run(command, deadline_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_exchanges_beside_raw_transfers_and_a_second_call_goes_on(tmp_path: Path) -> None:
    out, options = tmp_path / "c.json", ["--wire", "fp32,bf16", "--busy", "on"]
    first = bench(out, *options, "--workers", "2", "--sizes", "100KB")
    assert set(first["points"]) == {"n2 s1 100KB fp32 busy", "n2 s1 100KB bf16 busy"}
    assert first["summary"]["checks"] == []
    found = bench(out, "--busy", "off", "--workers", "1", "--shards", "2,1", "--sizes", "4KB")
    assert set(found["points"]) == {*first["points"], "n1 s2 4KB fp32", "n1 s1 4KB fp32"}
    assert first["points"].items() <= found["points"].items()  # not measured again
    for figures in found["points"].values():
        parts = [figures[f"{name}_s"] for name in ("push", "apply", "pull", "update", "raw_put", "raw_get", "memcpy")]
        assert all(0 < part for part in parts)
        assert figures["exchange_s"] > max(figures["push_s"], figures["pull_s"])
        assert figures["push_share_of_put"] > 0 and figures["pull_gb_per_s"] > 0
    assert len(found["summary"]["checks"]) == 3
    assert "push" in found["points"]["n1 s1 4KB fp32"]["latency_us"]


def test_bandwidth_of_a_link() -> None:
    assert link_bytes_per_s("", megabytes=0.1) > 1e5


def test_a_wrong_world_ends_the_measurement_with_what_was_found(tmp_path: Path) -> None:
    launcher = f"{sys.executable} -c \"import subprocess, sys; sys.exit(subprocess.call(['mpiexec', '-n', '1', *sys.argv[2:]]))\""
    command = [sys.executable, "-m", "hpcnmt", "bench", "comm", "--out", str(tmp_path / "c.json"), "--sizes", "4KB", "--launcher", launcher]
    done = run(command, deadline_s=100)
    assert done.returncode != 0 and "found a world of 1 ranks, expected 1 workers + 1 shards" in done.stderr
