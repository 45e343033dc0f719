"""Traces: events that Chrome and Perfetto take, spans that nest, and one file of all ranks."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.distributed import activity as activity_module
from hpcnmt.distributed.activity import Activity
from hpcnmt.training.trace import merge_traces, read_traces, totals, trace_events, write_trace

FIELDS = {"X": {"ph", "name", "pid", "tid", "ts", "dur"}, "M": {"ph", "name", "pid", "tid", "args"}}


def check_events(events: list[dict[str, Any]]) -> None:
    """Every event has its fields; every process and row has a name; the spans of a row are ordered and nest."""
    rows, names = defaultdict(list), set()
    for event in events:
        assert event.keys() - {"args"} == FIELDS[event["ph"]] - {"args"}, event
        assert event["pid"] > 0, "viewers take process 0 for the kernel"
        if event["ph"] == "M":
            names.add((event["name"], event["tid"] if event["name"] == "thread_name" else event["pid"]))
        else:
            assert isinstance(event["ts"], int) and isinstance(event["dur"], int) and event["ts"] >= 0 and event["dur"] >= 0
            rows[event["tid"], event["pid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len({tid for tid, _ in rows}) == len(rows), "no two ranks share a tid"
    for (tid, pid), spans in rows.items():
        assert ("thread_name", tid) in names and ("process_name", pid) in names
        open_until: list[int] = []
        for begin, end in spans:
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1], f"{begin}..{end} crosses the end of a span at {open_until[-1]}"
            open_until.append(end)
        assert [b for b, _ in spans] == sorted(b for b, _ in spans)


def some_rank(role: str, index: int, detail: str = "") -> Activity:
    activity = Activity(role, index, trace=True)

    def exchange() -> None:
        for _ in range(20):
            with activity("exchange", "a"), activity("push", detail), activity("copy"):
                pass

    thread = threading.Thread(target=exchange, name="exchange_0")
    thread.start()
    for _ in range(50):
        with activity("compute"):
            with activity("wait"):
                pass
            with activity("wait", 'shard 0 "é"'):
                pass
    thread.join()
    return activity


def test_events_have_the_fields_of_the_format_and_nest() -> None:
    activity = some_rank("worker", 2, "shard 1")
    events = trace_events(activity, 2)
    check_events(events)
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == len(activity.spans) == 20 * 3 + 50 * 3 and {e["pid"] for e in events} == {3}
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"main", "exchange"}
    assert {e["args"]["detail"] for e in spans if e["name"] == "push"} == {"shard 1"}
    seconds = sum(e["dur"] for e in spans if e["name"] == "compute") / 1e6
    assert seconds == pytest.approx(activity.seconds["compute"], abs=50 * 1e-6)


def test_a_crossing_is_seen() -> None:
    activity = Activity(trace=True)
    activity.add("push", 1.0, 3.0)
    activity.add("push", 2.0, 4.0)
    with pytest.raises(AssertionError, match="crosses"):
        check_events(trace_events(activity, 0))


def test_ranks_merge_into_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace").mkdir()
    ranks = [some_rank("worker", 0), some_rank("worker", 1), some_rank("shard", 0)]
    for rank, activity in enumerate(ranks):
        write_trace(tmp_path / "trace" / f"{activity.role}-{activity.index}.json", activity, rank)
    for _ in range(2):  # the merged file is none of a rank
        merge_traces(tmp_path, None)
    merged = json.loads((tmp_path / "trace" / "trace.json").read_text("utf-8"))["traceEvents"]
    check_events(merged)
    assert [e["pid"] for e in merged if e["ph"] == "X"].count(3) == len(ranks[2].spans)
    assert min(e["ts"] for e in merged if e["ph"] == "X") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("worker 0", "worker 1", "shard 0", "compute", "ui.perfetto.dev"))
    merge_traces(tmp_path, tmp_path / "other.json")
    assert (tmp_path / "other.json").read_text("utf-8") == (tmp_path / "trace" / "trace.json").read_text("utf-8")


def test_shares_are_of_the_time_of_the_rank(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    activity = Activity("shard", 4, trace=True)
    for begin, end, name in ((1.0, 2.0, "apply"), (2.0, 5.0, "idle"), (6.0, 9.0, "apply")):
        activity.add(name, begin, end)
    write_trace(tmp_path / "trace" / "shard-4.json", activity, 6)
    found = [(t.rank, t.name, t.count, round(t.seconds, 3), round(t.share, 3)) for t in totals(read_traces(tmp_path))]
    assert found == [("shard 4", "apply", 2, 4.0, 0.5), ("shard 4", "idle", 1, 3.0, 0.375)]


def test_a_trace_that_was_cut_off_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity_module, "MOST_SPANS", 10)
    monkeypatch.setattr("hpcnmt.training.trace.MOST_SPANS", 10)
    (tmp_path / "trace").mkdir()
    write_trace(tmp_path / "trace" / "worker-0.json", some_rank("worker", 0), 0)
    trace = read_traces(tmp_path)
    assert trace.cut_off == ("worker-0",) and len(trace.spans) == 10


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no folder"):
        merge_traces(tmp_path / "none", None)
    with pytest.raises(ValueError, match="found no traces in .*: train with --trace"):
        merge_traces(tmp_path, None)
    (tmp_path / "trace").mkdir()
    for text in ("[", "[]", '{"traceEvents": []}', '{"traceEvents": [{"ph": "X"}], "otherData": {"cut_off": false}}'):
        (tmp_path / "trace" / "worker-0.json").write_text(text)
        with pytest.raises(ValueError, match="worker-0.json is no trace of a rank"):
            merge_traces(tmp_path, None)
    write_trace(tmp_path / "trace" / "worker-0.json", some_rank("worker", 0), 0)
    with pytest.raises(ValueError, match="give --out a file in a folder that exists"):
        merge_traces(tmp_path, tmp_path / "none" / "trace.json")
