"""Reports of ranks: written whole, only into the folder of this run, never in the way of training; and how they are judged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcnmt.distributed.activity import ADJOINING_S, Activity
from hpcnmt.distributed.layout import FLAG, Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import ShardMemory
from hpcnmt.training.status import RankReport, RankStatus, rank_report, read_statuses, shard_counters
from hpcnmt.training.status_table import GIVEN_UP_S, SILENT_S, is_over, judge, rows_of, show_status
from tests.quadratic import UPDATE

RUNNING = RankStatus(
    "worker", 1, 1, "node7", 42, "running", "", 1000.0, 1100.0,
    {"exchange": ("push", "shard 0", 3.0), "main": ("wait", "", 2.5)},
    {"compute": 80.0, "wait": 15.0, "push": 50.0, "exchange": 60.0, "apply": 9.0},
    {"windows": 7, "target_words": 700, "versions": [3, 4], "rejected_pulls": 2, "dropped_windows": 0},
)  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.005)


def test_a_rank_reports_while_it_runs_and_how_it_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    activity = Activity("shard", 3)
    with rank_report(run, activity, 5) as report:
        report.every_s = 0.01
        assert not run.exists(), "the folder is made by worker 0 alone"
        run.mkdir()
        report.counters = lambda: {"version": 9}
        with activity("apply", "worker 2"):
            until((run / "status" / "shard-3.json").exists)
            until(lambda: "main" in read_statuses(run)[0][0].now)
            status, written_s = read_statuses(run)[0]
            assert (status.role, status.index, status.rank, status.pid, status.state) == ("shard", 3, 5, os.getpid(), "running")
            assert status.now["main"][:2] == ["apply", "worker 2"] and status.seconds["apply"] > 0
            assert abs(written_s - time.time()) < SILENT_S
    status = read_statuses(run)[0][0]
    assert (status.state, status.counters, status.now) == ("ended", {"version": 9}, {})
    assert [p.name for p in (run / "status").iterdir()] == ["shard-3.json"], "no temporary file is left"
    assert [p.name for p in run.iterdir()] == ["status"], "no trace was asked for"


def test_an_exception_is_reported_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    activity = Activity("worker", 0, trace=True)
    with pytest.raises(RuntimeError, match="no shard"), rank_report(run, activity):
        run.mkdir()
        with activity("wait"):
            raise RuntimeError("no shard\nanywhere")
    assert (status := read_statuses(run)[0][0]).state == "failed" and status.message == "RuntimeError: no shard"
    assert [e["name"] for e in json.loads((run / "trace" / "worker-0.json").read_text())["traceEvents"] if e["ph"] == "X"] == ["wait"]


def test_nothing_is_written_into_a_folder_of_another_run(tmp_path: Path) -> None:
    with rank_report(tmp_path, Activity(trace=True)) as report:
        report.every_s = 0.01
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_costs_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with rank_report(run, Activity("worker", 2, trace=True)) as report:
        run.mkdir()
        (run / "status").write_text("in the way")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "worker 2: no reports for hpcnmt status any more" in lines[0]
    assert not report._thread.is_alive() and (run / "trace" / "worker-2.json").is_file()


def test_frozen_counters_are_read_no_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    memory = np.ones(3)
    with rank_report(run, Activity()) as report:
        run.mkdir()
        report.counters = lambda: {"version": int(memory.sum())}
        report.freeze_counters()
        memory[:] = 7
    assert read_statuses(run)[0][0].counters == {"version": 3}


def test_counters_of_a_shard() -> None:
    layout = Layout(8, 2, 1)
    memory = ShardMemory.view(layout, 0, torch.zeros(16), torch.zeros(8 * 5), np.zeros(layout.control_words, np.int64))
    shard = Shard(0, layout, ShardConfig(UPDATE), memory)
    assert shard_counters(shard) == {"version": -1, "target_words": 0, "staleness_mean": 0.0, "pushes_waiting": 0}
    shard._apply(0, 1, PushHeader(Kind.INIT))
    for behind in (0, 1, 2):
        shard._apply(0, 2, PushHeader(Kind.GRADIENT, 10, 10, 1, 1.0, version=shard.version - behind))
    memory.control[layout.worker_block(1) + FLAG] = 1
    assert shard_counters(shard) == {"version": 3, "target_words": 30, "staleness_mean": 1.0, "pushes_waiting": 1}


def test_a_row_says_who_does_what() -> None:
    row = judge(RUNNING, 1100.0, 1100.0 + SILENT_S - 1)
    assert (row.name, row.host, row.state_text) == ("worker 1", "node7", "running")
    assert row.doing == "wait 2.5 s; exchange: push (shard 0) 3.0 s"
    assert (row.words, row.steps, row.staleness) == ("700", "7 windows", "")
    assert row.shares == "compute 80%, wait 15%", "what runs beside the training has no part in its time"
    assert row.notes == "2 rejected pulls"
    counters = {"version": 12, "staleness_mean": 1.5, "pushes_waiting": 1}
    row = judge(replace(RUNNING, role="shard", seconds={"apply": 25.0, "idle": 70.0}, counters=counters), 1100.0, 1100.0)
    assert (row.words, row.steps, row.staleness, row.notes) == ("", "version 12", "1.50", "1 pushes waiting")
    assert row.shares == "apply 25%, idle 70%"


@pytest.mark.parametrize(
    ("state", "age_s", "expected"),
    [("running", SILENT_S - 1, "running"), ("running", SILENT_S + 5, "SILENT since 15 s"), ("running", 600.0, "SILENT since 10 min"),
     ("ended", 1e6, "ended"), ("failed", 1e6, "failed"), ("running", -30.0, "running")],
)  # fmt: skip
def test_only_a_running_rank_falls_silent(state: str, age_s: float, expected: str) -> None:
    row = judge(replace(RUNNING, state=state), 1100.0, 1100.0 + age_s)
    assert row.state_text == expected and bool(row.doing) == (state == "running")


def test_a_watch_ends_when_nothing_more_is_to_come() -> None:
    def over(*ranks: tuple[str, float]) -> bool:
        return is_over(rows_of([(replace(RUNNING, state=state), -age_s) for state, age_s in ranks], 0.0))

    assert over(("ended", 5), ("ended", 500)) and over(("failed", 500), ("ended", 5))
    assert not over(("ended", 5), ("running", 1))
    assert not over(("failed", 5), ("running", 1)) and over(("failed", 5), ("running", SILENT_S + 1))
    assert not over(("running", SILENT_S + 1), ("ended", 5)) and over(("running", GIVEN_UP_S + 1), ("ended", 5))


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no folder .*none, expected one of hpcnmt train"):
        read_statuses(tmp_path / "none")
    with pytest.raises(ValueError, match="found no reports of ranks"):
        read_statuses(tmp_path)
    (tmp_path / "status").mkdir()
    for text in ("{", "[]", '{"format": 2}', '{"format": 1, "rank": 0}'):
        (tmp_path / "status" / "worker-0.json").write_text(text)
        with pytest.raises(ValueError, match="worker-0.json is no status of a rank of this version"):
            read_statuses(tmp_path)


def test_ranks_are_shown_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run[/b]"
    ranks = (("shard", 0, 11), ("worker", 10, 10), ("worker", 9, 9))
    reports = [RankReport(run, Activity(role, index), rank) for role, index, rank in ranks]
    run.mkdir(parents=True)
    for report in reports:
        report.close("failed", "[/b] no room")
    show_status(run, watch=True, as_json=True)
    assert [(s["role"], s["index"], s["state"]) for s in json.loads(capsys.readouterr().out)] == [
        ("worker", 9, "failed"), ("worker", 10, "failed"), ("shard", 0, "failed")]  # fmt: skip
    show_status(run, watch=True, as_json=False)
    shown = capsys.readouterr().out
    assert shown.index("worker 9") < shown.index("worker 10") < shown.index("shard 0") and shown.count("[/b] no room") == 3


def test_adjoining_naps_are_one_stretch() -> None:
    activity = Activity("shard", trace=True)
    for begin in (1.0, 1.0 + ADJOINING_S / 2, 1.0 + 3 * ADJOINING_S):
        activity.add("idle", begin, begin + ADJOINING_S / 4)
    activity.add("apply", 1.1, 1.2)
    activity.add("idle", 1.2, 1.3)
    activity.add("idle", 1.3, 1.4, row="another")
    assert [s.name for s in activity.spans] == ["idle", "idle", "apply", "idle", "idle"]
    assert activity.spans[0].end_s - activity.spans[0].begin_s == pytest.approx(0.75 * ADJOINING_S, abs=1e-6)
    assert activity.seconds["idle"] == pytest.approx(0.75 * ADJOINING_S + 0.2)
