"""`hpcnmt bench throughput` on real ranks: on this host, and over TCP between two virtual hosts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import virtual_hosts
from tests.processes import run

SMALL = ["--batch-s", "0.05", "--batch-words", "100", "--parameters", "2e5", "--seconds", "2", "--rounds", "1"]


def bench(out: Path, *options: str) -> dict[str, Any]:
    done = run([sys.executable, "-m", "hpcnmt", "bench", "throughput", "--out", str(out), *SMALL, *options], deadline_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.mpi
def test_asynchronous_synchronous_and_silent_ranks(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    found = bench(out, "--mode", "async,sync,off", "--workers", "1,2", "--delay", "2")
    modes = ("async {} s1 fp32 overlap1 tau2 c0.05", "sync torch {} tau2 c0.05", "off {} tau2 c0.05")
    assert set(found["points"]) == {mode.format(workers) for mode in modes for workers in ("n1", "n2")}
    for figures in found["points"].values():
        settings = figures["settings"]
        most = settings["workers"] * settings["batch_words"] / settings["batch_s"]
        assert 0 < figures["target_words_per_s"] <= 1.05 * most
        assert figures["total_words_per_s"] == figures["source_words_per_s"] + figures["target_words_per_s"]
        assert 0 < figures["shares"]["compute"] <= 1.01
        assert figures["bytes_sent"] is None  # the hosts' interfaces say nothing about ranks of one host
        assert bool(figures["staleness"]) == (settings["mode"] == "async")
    assert {curve["label"].split()[0] for curve in found["summary"]["speedup"]} == {"async", "sync", "off"}
    assert all(curve["workers"] == [1, 2] for curve in found["summary"]["speedup"])
    assert [row["workers"] for row in found["summary"]["async_to_sync"]] == [2]  # one worker has nobody to wait for
    before = out.read_text()
    again = bench(out, "--mode", "async,sync,off", "--workers", "1,2", "--delay", "2")
    assert again == json.loads(before)  # nothing was measured again


@pytest.mark.netns
def test_over_virtual_hosts_the_bytes_are_those_of_one_push_and_one_pull(tmp_path: Path) -> None:
    with virtual_hosts(2, "1gbit") as launcher:
        found = bench(tmp_path / "t.json", "--launcher", " ".join(launcher), "--network", "1gbit", "--workers", "1", "--wire", "fp32,bf16")
    model_bytes = 4 * 200_000
    for key, share in (("async n1 s1 fp32 overlap1 tau1 c0.05", 1.0), ("async n1 s1 bf16 overlap1 tau1 c0.05", 0.5)):
        figures = found["points"][key]
        assert figures["settings"]["link_bytes_per_s"] < 1.3e8
        # per window between two ends of windows: the last exchange may still be on its way
        assert 0.9 * share * model_bytes < figures["bytes_sent"] < share * model_bytes * 1.25 + 200_000
        assert 0.9 * model_bytes < figures["bytes_received"] < model_bytes * 1.25 + 200_000
