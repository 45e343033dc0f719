"""The harness without ranks: what is planned, what is kept, and what follows from measured points."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.bench.commands import bench_parser
from hpcnmt.bench.results import FORMAT, Results, read_results
from hpcnmt.bench.simulated import SimulatedCompute, WindowTimes
from hpcnmt.bench.throughput import baselines, groups
from hpcnmt.bench.throughput_summary import ideal_ratio, summarize
from hpcnmt.cli import main
from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.synchronous import LastBatch
from hpcnmt.distributed.worker import BatchCounts


def parse(*options: str) -> argparse.Namespace:
    return bench_parser("throughput").parse_args(["--out", "t.json", *options])


def point(mode: str, workers: int, rate: float, **settings: Any) -> dict[str, Any]:
    base = {
        "mode": mode, "backend": "", "workers": workers, "shards": 2, "shard_hosts": 2, "delay": 2,
        "wire": "fp32", "overlap": 1, "batch_s": 0.4,
        "straggler": 1.0, "compute": "simulated", "parameters": 10_000_000, "link_bytes_per_s": 1.2e8, "network": "1gbit",
    }  # fmt: skip
    return {"settings": base | settings, "target_words_per_s": rate, "shares": {"wait": 0.02}}


def test_every_variant_of_a_setting_is_measured_in_the_same_group() -> None:
    planned = list(groups(parse("--mode", "async,sync,off", "--workers", "2,4", "--delay", "1,2", "--wire", "fp32,bf16")))
    assert len(planned) == 4
    keys = [variant.key for group in planned for variant in group]
    assert len(set(keys)) == len(keys) == 16
    for group in planned:
        assert len({(v.point.workers, v.point.delay, v.point.batch_s) for v in group}) == 1
        assert [v.point.mode for v in group] == ["async", "async", "sync", "off"]
        assert all(v.point.shards == (1 if v.point.mode == "async" else 0) for v in group)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "asink"], "expected of async, sync, off"),
        (["--workers", "2,x"], "found --workers 2,x, expected int values"),
        (["--workers", "0"], "expected --batch-s above 0"),
        (["--straggler", "0.5"], "expected --batch-s above 0"),
        (["--mode", "sync", "--baseline", "ddp"], "found --baseline ddp, expected torch or horovod"),
        (["--mode", "sync", "--baseline", "horovod-x=/no/python"], "found no /no/python"),
        (["--compute", "real"], "expected --data PREPARED"),
    ],
)
def test_wrong_options_end_with_one_line(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.json"
    assert main(["bench", "throughput", "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_baselines_have_a_label_and_a_python(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    assert baselines(None)[0][:2] == ("torch", "torch")
    assert baselines([f"horovod-mpich={python}"]) == [("horovod", "horovod-mpich", str(python))]


def test_a_results_file_is_gone_on_with_and_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    Results(path, "throughput", {"rounds": 3}).add("a", {"x": 1})
    again = Results(path, "throughput", {"rounds": 3})
    assert "a" in again and "b" not in again
    again.add("b", {"x": 2})
    assert list(read_results(path)["points"]) == ["a", "b"]
    before = path.read_text()
    with pytest.raises(ValueError, match="rounds: found 3, expected 5"):
        Results(path, "throughput", {"rounds": 5})
    with pytest.raises(ValueError, match="another kind"):
        Results(path, "comm", {"rounds": 3})
    assert path.read_text() == before
    path.write_text(json.dumps({"format": FORMAT + 1, "kind": "throughput", "points": {}}))
    with pytest.raises(ValueError, match="another version"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_results(path)


def test_the_ideal_ratio_is_that_of_the_formula() -> None:
    # compute-bound: only the all-reduce is saved; bound by the shards' links: N M / (S B) for each window
    assert ideal_ratio(4, 2, 4, 0.4, 4e7, 1e8) == pytest.approx((1.6 + 1.5 * 0.4) / 1.6)
    assert ideal_ratio(4, 1, 1, 0.1, 4e7, 1e8) == pytest.approx((0.1 + 1.5 * 0.4) / 1.6)
    # two thirds of the last batch hide the all-reduce
    assert ideal_ratio(4, 2, 4, 0.3, 4e7, 1e8, overlapped=True) == pytest.approx((1.2 + 0.6 - 0.2) / 1.2)
    assert ideal_ratio(4, 2, 4, 1.0, 4e7, 1e8, overlapped=True) == 1.0


def test_the_summary_compares_only_what_is_comparable() -> None:
    points = {
        "a1": point("async", 1, 5_000), "a4": point("async", 4, 19_000), "a4 bf16": point("async", 4, 30_000, wire="bf16"),
        "s4 torch": point("sync", 4, 14_000, backend="torch", shards=0, overlap=0),
        "s4 horovod": point("sync", 4, 12_000, backend="horovod-mpich", shards=0, overlap=0),
        "s4 other tau": point("sync", 4, 99_000, backend="torch", delay=4), "off4": point("off", 4, 20_000),
        "slow a": point("async", 4, 17_000, straggler=2.0), "slow s": point("sync", 4, 9_000, straggler=2.0, backend="torch"),
    }  # fmt: skip
    summary = summarize(points)
    curve = next(c for c in summary["speedup"] if c["label"].startswith("async tau 2 fp32"))
    assert curve["workers"] == [1, 4] and curve["speedup"] == [1.0, 3.8] and curve["efficiency"] == [1.0, 0.95]
    plain, slow = summary["async_to_sync"]
    assert plain["sync_backend"] == "torch" and plain["measured"] == pytest.approx(19 / 14)
    assert plain["share_of_ideal"] == pytest.approx(plain["measured"] / ideal_ratio(4, 2, 2, 0.4, 4e7, 1.2e8))
    assert slow["straggler"] == 2 and "ideal" not in slow
    assert summary["straggler"][0]["bound"] == pytest.approx(2 - 1 / 4)
    checks = {check["what"]: check for check in summary["checks"]}
    silence = checks["words/s over communication switched off: N 4, tau 2, C 0.4 s, at least"]
    assert silence["measured"] == 1.5 and silence["met"]
    assert checks["share of time waiting: N 4, tau 2, C 0.4 s, at most"]["met"]


def test_points_with_more_ranks_than_cores_give_no_ratio() -> None:
    points = {"a": point("async", 1, 1.0, oversubscribed=True), "b": point("async", 2, 2.0), "c": point("sync", 1, 1.0)}
    assert summarize(points)["speedup"] == [] and summarize(points)["async_to_sync"] == []


def test_simulated_gradients_become_ready_from_the_end_and_tile_the_vector() -> None:
    pieces: list[tuple[int, int]] = []
    counted: list[BatchCounts] = []
    last = LastBatch(counted.append, lambda begin, end: pieces.append((begin, end)))
    assert SimulatedCompute(0.001, 500, 1003, 4)(last).target_words == 500
    assert len(counted) == 1
    assert pieces == sorted(pieces, reverse=True) and pieces[-1][0] == 0 and pieces[0][1] == 1003
    assert all(low[1] == high[0] for high, low in zip(pieces, pieces[1:], strict=False))


def test_the_rate_counts_only_windows_inside_the_time() -> None:
    now = time.perf_counter()
    times = WindowTimes(now - 10, now + 10)
    times.ends = [1.0, 1.5, 2.0]
    assert times.windows_per_s() == 2.0
    assert times.add() and len(times.ends) == 4
    with pytest.raises(RuntimeError, match="raise --seconds"):
        WindowTimes(now + 5, now + 10).windows_per_s()


def test_activities_nest_and_every_thread_has_its_row() -> None:
    activity = Activity(trace=True)

    def other() -> None:
        with activity("exchange"):
            activity.note("shard 1")
            assert activity.now()["helper"][:2] == ("exchange", "shard 1")

    with activity("compute"):
        thread = threading.Thread(target=other, name="helper_0")
        thread.start()
        thread.join()
        with activity("copy"):
            assert activity.now()["main"][0] == "copy"
    assert activity.now() == {}
    rows = {(span.row, span.name) for span in activity.spans}
    assert rows == {("main", "compute"), ("main", "copy"), ("helper", "exchange")}
    assert activity.seconds["compute"] >= activity.seconds["copy"] > 0
