"""`hpcnmt bench comm` without ranks: what is planned, what follows from what the ranks print, and wrong options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.bench.comm import figures, key, planned, size_bytes, size_text, summarize
from hpcnmt.bench.comm_program import PHASES, CommPoint
from hpcnmt.bench.commands import bench_parser
from hpcnmt.cli import main

ONE = CommPoint(workers=1, shards=1, bytes=40_000_000, wire="fp32", busy=False, rounds=3)


def parse(*options: str) -> argparse.Namespace:
    return bench_parser("comm").parse_args(["--out", "c.json", *options])


def lines(point: CommPoint, slower: float = 1.0, worker_factors: tuple[float, ...] = (1.0,)) -> list[dict[str, Any]]:
    """What ranks print when push and pull take `slower` times as long as put and get, in rounds of different speed."""
    speeds, update_s = (0.9, 1.0, 1.3), 0.01
    workers = []
    for worker, factor in enumerate(worker_factors):
        put, get = [0.2 * factor * speed for speed in speeds], [0.3 * factor * speed for speed in speeds]
        push, pull = [slower * second for second in put], [slower * second for second in get]
        rounds = {"raw_put": put, "raw_get": get, "push": push, "pull": pull, "memcpy": [0.01] * 3, "apply": [update_s] * 3}
        rounds["exchange"] = [a + b + update_s for a, b in zip(push, pull, strict=True)]
        workers.append({"worker": worker, "rounds": rounds, "rejected_pulls": 1})
    return workers + [{"shard": shard, "rounds": {"update": [update_s] * 3}} for shard in range(point.shards)]


def test_every_combination_is_a_point_of_its_own() -> None:
    options = ["--sizes", "4KB,1MB", "--workers", "1,2,3", "--shards", "1,2", "--wire", "fp32,bf16", "--busy", "off,on"]
    points = list(planned(parse(*options)))
    assert len({key(point) for point in points}) == len(points) == 48
    assert key(ONE) == "n1 s1 40MB fp32"


@pytest.mark.parametrize("text", ["4KB", "999KB", "1MB", "40MB", "2GB", "1001MB"])
def test_sizes_are_read_as_they_are_written(text: str) -> None:
    assert size_text(size_bytes(text)) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "40"], "found --sizes 40, expected a number with KB, MB or GB"),
        (["--sizes", "0MB"], "found --sizes 0MB"),
        (["--workers", "one"], "found --workers one, expected int values"),
        (["--workers", "0"], "workers is 0, expected at least 1"),
        (["--shards", "2000", "--sizes", "4KB"], "found 2000 shards for 1000 parameters"),
        (["--wire", "fp16"], "found --wire fp16, expected of fp32, bf16"),
        (["--busy", "maybe"], "expected of off, on"),
        (["--rounds", "0"], "found --rounds 0, expected at least 1"),
    ],
)
def test_wrong_options_end_with_one_line(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.json"
    assert main(["bench", "comm", "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("slower", [1.0, 1.25])
def test_shares_compare_within_a_round_and_leave_the_update_apart(slower: float) -> None:
    found = figures(ONE, lines(ONE, slower), "1gbit")
    for name in ("push_share_of_put", "pull_share_of_get", "exchange_share_of_raw"):
        assert found[name] == pytest.approx(1 / slower)
    assert found["raw_put_gb_per_s"] == pytest.approx(0.04 / 0.2)
    assert set(found) >= {f"{name}_s" for name in (*PHASES, "raw_put", "raw_get", "memcpy", "update")}
    assert found["latency_us"] == {}


def test_the_slowest_worker_counts_and_all_bytes() -> None:
    point = CommPoint(workers=2, shards=1, bytes=4000, wire="bf16", busy=False, rounds=3)
    found = figures(point, lines(point, worker_factors=(1.0, 2.0)), "host")
    assert found["push_s"] == pytest.approx(0.4) and found["rejected_pulls"] == 2
    assert found["push_gb_per_s"] == pytest.approx(2 * 2000 / 0.4 * 1e-9)
    assert found["pull_gb_per_s"] == pytest.approx(2 * 4000 / 0.6 * 1e-9)
    assert found["latency_us"]["push"] == pytest.approx(0.4e6)
    assert "exchange_share_of_raw" not in found


def test_checks_take_the_largest_size_of_one_idle_shard_and_one_worker() -> None:
    small = CommPoint(1, 1, 1_000_000, "fp32", False, 3)
    others = [CommPoint(1, 1, 80_000_000, "fp32", True, 3), CommPoint(1, 2, 80_000_000, "fp32", False, 3)]
    points = {key(point): figures(point, lines(point, 2.0), "host") for point in [small, *others]}
    points[key(ONE)] = figures(ONE, lines(ONE, 1.05), "host")
    checks = summarize(points)["checks"]
    assert len(checks) == 3 and all(check["met"] and "40MB fp32" in check["what"] for check in checks)
    points[key(ONE)] = figures(ONE, lines(ONE, 1.2), "host")
    assert not any(check["met"] for check in summarize(points)["checks"])
    assert summarize({})["checks"] == []
