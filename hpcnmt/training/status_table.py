"""`hpcnmt status`: who of a run does or waits for what, judged from the reports of its ranks (status.py), as a table or as JSON.

A rank that has not reported for SILENT_S is silent: stopped, killed, or cut off from the file system; its report cannot say which. The
age of a report is that of its file, so the clocks of this host and of the file system should agree to a few seconds.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hpcnmt.distributed.activity import NAMES
from hpcnmt.training.status import Counters, RankStatus, read_statuses

SILENT_S = 10.0
GIVEN_UP_S = 120.0
"""A watch ends when all ranks that have not ended are silent for so long."""
REFRESH_S = 1.0
BEHIND_TRAINING = ("exchange", "push", "pull")
"""Activities beside those of the main thread: they have no part in the shares of its time (nor has a worker's view of "apply")."""
LEAST_SHARE = 0.005
NOTED = ("pushes_waiting", "rejected_pulls", "dropped_windows")


@dataclass(frozen=True)
class Row:
    """What is shown of one rank."""

    name: str
    host: str
    state: str
    """running, ended, failed or silent."""
    silent_s: float
    doing: str
    words: str
    """Target words: a worker's own, or all that a shard has applied."""
    steps: str
    """Windows of a worker, version of a shard."""
    staleness: str
    shares: str
    """Of the time since the rank began."""
    notes: str
    """Why it failed; what is rare or wants attention."""

    @property
    def state_text(self) -> str:
        return f"SILENT since {_duration(self.silent_s)}" if self.state == "silent" else self.state


def judge(status: RankStatus, written_s: float, now_s: float) -> Row:
    """The row of one rank whose report was written at `written_s`, seen at `now_s`."""
    age_s = max(now_s - written_s, 0.0)
    silent = status.state == "running" and age_s > SILENT_S
    return Row(
        f"{status.role} {status.index}", status.host, "silent" if silent else status.state, age_s if silent else 0.0,
        _doing(status) if status.state == "running" else "", str(status.counters.get("target_words", "")), _steps(status.counters),
        _staleness(status.counters), _shares(status), status.message or _notes(status.counters),
    )  # fmt: skip


def rows_of(statuses: Sequence[tuple[RankStatus, float]], now_s: float) -> list[Row]:
    """One row for each rank."""
    return [judge(status, written_s, now_s) for status, written_s in statuses]


def is_over(rows: Sequence[Row]) -> bool:
    """True when no more is to be expected: all have ended, or failed, or are silent for long (for short, when another has failed)."""
    limit_s = SILENT_S if any(row.state == "failed" for row in rows) else GIVEN_UP_S
    return all(row.state in ("ended", "failed") or row.silent_s > limit_s for row in rows)


def _doing(status: RankStatus) -> str:
    """The main row first; other rows are named, unless by what they do."""
    parts = []
    for row, (name, detail, for_s) in sorted(status.now.items(), key=lambda item: item[0] != "main"):
        where = "" if row in ("main", name) else f"{row}: "
        parts.append(f"{where}{name}{f' ({detail})' if detail else ''} {_duration(for_s)}")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _steps(counters: Counters) -> str:
    if "version" in counters:
        return f"version {counters['version']}"
    return f"{counters['windows']} windows" if "windows" in counters else ""


def _notes(counters: Counters) -> str:
    return ", ".join(f"{counters[name]} {name.replace('_', ' ')}" for name in NOTED if counters.get(name))


def _staleness(counters: Counters) -> str:
    mean = counters.get("staleness_mean")
    return "" if mean is None else f"{mean:.2f}"


def _shares(status: RankStatus) -> str:
    beside = BEHIND_TRAINING + (("apply",) if status.role == "worker" and "exchange" in status.seconds else ())
    whole_s = max(status.time_s - status.begin_s, 1e-9)
    shares = {name: status.seconds[name] / whole_s for name in NAMES if name in status.seconds and name not in beside}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= LEAST_SHARE)


def _table(run: Path, rows: Sequence[Row]) -> Table:
    table = Table("rank", "host", "state", "does or waits for", "words", "steps", "staleness", "time", "notes", title=escape(str(run)))
    for row in rows:
        style = {"silent": "yellow", "failed": "red", "ended": "dim"}.get(row.state)
        cells = (row.name, row.host, row.state_text, row.doing, row.words, row.steps, row.staleness, row.shares, row.notes)
        table.add_row(*map(escape, cells), style=style)
    return table


def _as_json(statuses: Sequence[tuple[RankStatus, float]], rows: Sequence[Row]) -> str:
    pairs = zip(statuses, rows, strict=True)
    return json.dumps([asdict(status) | {"state": row.state, "silent_s": row.silent_s} for (status, _), row in pairs])


def _observe(run: Path, watch: bool) -> Iterator[tuple[list[tuple[RankStatus, float]], list[Row]]]:
    """The reports and their rows once, or again and again until the run is over."""
    while True:
        statuses = read_statuses(run)
        rows = rows_of(statuses, time.time())
        yield statuses, rows
        if not watch or is_over(rows):
            return
        time.sleep(REFRESH_S)


def show_status(run: Path, watch: bool, as_json: bool) -> None:
    """Prints what the ranks of `run` do, as a table or one line of JSON; with `watch`, until the run is over or one has seen enough (^C).

    Raises ValueError when there are no reports.
    """
    observations = _observe(run, watch)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            for statuses, rows in observations:
                print(_as_json(statuses, rows), flush=True)
            return
        console = Console(width=None if Console().is_terminal else 180)
        first = _table(run, next(observations)[1])
        if not watch:
            console.print(first)
            return
        with Live(first, console=console, auto_refresh=False) as live:
            for _, rows in observations:
                live.update(_table(run, rows), refresh=True)
