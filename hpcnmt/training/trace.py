"""Traces in the JSON of Chrome and Perfetto (ui.perfetto.dev): one file a rank, one merged file, and seconds by activity.

    {"traceEvents": [{"ph": "X", "name": "compute", "pid": 1, "tid": 1001, "ts": MICROSECONDS, "dur": MICROSECONDS, "args": {...}}, ...]}

Invariants: a process is a rank, pid = rank + 1 (viewers take process 0 for the kernel); a thread is a row of its activities, with a tid
that no other rank has; times are whole microseconds since the epoch, in a merged file since its first span; the events of a
row are ordered so that what contains comes before what it contains. Written by status.py, merged for `hpcnmt trace`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hpcnmt.distributed.activity import MOST_SPANS, Activity, Span
from hpcnmt.reading import check, read_json
from hpcnmt.training.run_folder import rank_files, replace_file

Event = dict[str, Any]
_EVENT = {"ph": str, "name": str, "pid": int, "tid": int}
ROWS_A_RANK = 1000
"""More than a rank can have; tids are pid * ROWS_A_RANK + 1, 2, ..."""


def trace_events(activity: Activity, rank: int) -> list[Event]:
    """The spans of `activity` as events: the names of the process and of its threads, then the rows one after the other."""
    spans = list(activity.spans)
    pid = rank + 1
    rows = {row: pid * ROWS_A_RANK + number for number, row in enumerate(sorted({s.row for s in spans}, key=_row_order), 1)}
    events: list[Event] = [
        {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": f"{activity.role} {activity.index}"}},
        {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": rank}},
    ]
    for row, tid in rows.items():
        events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": row}})
        events.append({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}})
    stretches = [_stretch(span, pid, rows[span.row]) for span in spans]
    return events + sorted(stretches, key=lambda e: (e["tid"], e["ts"], -e["dur"]))


def _stretch(span: Span, pid: int, tid: int) -> Event:
    begin = round(span.begin_s * 1e6)
    event: Event = {"ph": "X", "name": span.name, "pid": pid, "tid": tid, "ts": begin, "dur": round(span.end_s * 1e6) - begin}
    return event | ({"args": {"detail": span.detail}} if span.detail else {})


def _row_order(row: str) -> tuple[bool, str]:
    return row != "main", row


def write_trace(path: Path, activity: Activity, rank: int) -> None:
    """One rank's file; says in it when the first MOST_SPANS spans were not all."""
    _write(path, trace_events(activity, rank), {"cut_off": len(activity.spans) >= MOST_SPANS})


def _write(path: Path, events: Iterable[Event], other: dict[str, Any]) -> None:
    lines = ",\n".join(json.dumps(event) for event in events)
    replace_file(path, f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(other)}, "traceEvents": [\n{lines}\n]}}\n')


@dataclass(frozen=True)
class Trace:
    """Events of one or more ranks; `cut_off` names those that have had more spans than a trace keeps."""

    events: list[Event]
    cut_off: tuple[str, ...] = ()

    @property
    def spans(self) -> list[Event]:
        """The events that take time."""
        return [event for event in self.events if event["ph"] == "X"]

    def names(self) -> dict[int, str]:
        """Names of the processes by pid."""
        return {e["pid"]: e["args"]["name"] for e in self.events if e["ph"] == "M" and e["name"] == "process_name"}


def read_traces(run: Path) -> Trace:
    """All ranks of `run` in one trace that begins at 0. Raises ValueError when there are none, or one is damaged."""
    events: list[Event] = []
    cut_off = []
    for path in rank_files(run, "trace"):
        try:
            content = read_json(path, {"traceEvents": [_EVENT], "otherData": {"cut_off": bool}})
            for event in content["traceEvents"]:
                _check_event(event, path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no trace of a rank ({error})") from error
        if content["otherData"]["cut_off"]:
            cut_off.append(path.stem)
        events += content["traceEvents"]
    if not events:
        raise ValueError(f"found no traces in {run / 'trace'}: train with --trace; ranks write them when they end")
    zero = min((e["ts"] for e in events if e["ph"] == "X"), default=0)
    shifted = [event | {"ts": event["ts"] - zero} if event["ph"] == "X" else event for event in events]
    return Trace(sorted(shifted, key=lambda e: (e["ph"] == "X", e["pid"])), tuple(cut_off))


def _check_event(event: Event, path: Path) -> None:
    if event["ph"] == "X":
        check(event, {"ts": int, "dur": int}, path, "a span")
    elif event["ph"] == "M" and event["name"] == "process_name":
        check(event, {"args": {"name": str}}, path, "a process")


@dataclass(frozen=True)
class Total:
    """One activity of one rank."""

    rank: str
    name: str
    count: int
    seconds: float
    share: float
    """Of the time from the first to the last span of the rank."""


def totals(trace: Trace) -> list[Total]:
    """Seconds and share of every rank and activity, the longest of a rank first."""
    names = trace.names()
    by_rank: dict[int, list[Event]] = {}
    for event in trace.spans:
        by_rank.setdefault(event["pid"], []).append(event)
    found = []
    for pid, spans in sorted(by_rank.items()):
        whole = max(e["ts"] + e["dur"] for e in spans) - min(e["ts"] for e in spans)
        lengths: dict[str, list[int]] = {}
        for event in spans:
            lengths.setdefault(event["name"], []).append(event["dur"])
        for name, each in sorted(lengths.items(), key=lambda item: -sum(item[1])):
            found.append(Total(names.get(pid, str(pid)), name, len(each), sum(each) / 1e6, sum(each) / max(whole, 1)))
    return found


def merge_traces(run: Path, out: Path | None) -> None:
    """`hpcnmt trace`: writes all ranks of `run` into one file (default RUN/trace/trace.json), and prints seconds by activity."""
    trace = read_traces(run)
    path = out or run / "trace" / "trace.json"
    try:
        _write(path, trace.events, {"cut_off": list(trace.cut_off)})
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}): give --out a file in a folder that exists") from error
    table = Table("rank", "activity", "times", "seconds", "share", title="activities")
    for column in table.columns[2:]:
        column.justify = "right"
    last = ""
    for total in totals(trace):
        table.add_row("" if total.rank == last else total.rank, total.name, str(total.count), f"{total.seconds:.3f}", f"{total.share:.1%}")
        last = total.rank
    Console(width=None if Console().is_terminal else 100).print(table)
    for name in trace.cut_off:
        print(f"{name}: only its first {MOST_SPANS} spans")
    print(f"open {path} at ui.perfetto.dev")
