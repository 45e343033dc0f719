"""What every rank says of itself while it runs: RUN/status/worker-0.json, shard-1.json ..., about once a second; and the trace at its end.

`rank_report` is all that the modes of training need. Invariants: a file is replaced by a rename, never half-written; nothing is written
before the run folder exists, nor into a folder that existed before this rank began (it is of another run); reporting never stops nor
fails the training: a file that cannot be written ends the reports of this rank with one line. A small daemon thread does the writing,
and calls no MPI. Used by asynchronous.py, synchronous.py and local.py; read through `read_statuses` by status_table.py.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.layout import APPLIED, FLAG
from hpcnmt.distributed.shard import Shard
from hpcnmt.reading import FINITE, check, parse_json
from hpcnmt.training.run_folder import rank_files, replace_file
from hpcnmt.training.trace import write_trace

FORMAT = 1
EVERY_S = 1.0
LAST_WRITE_S = 10.0
"""How long the end of a rank waits for the last write, on a file system that hangs."""
MESSAGE_CHARACTERS = 300
Counters = dict[str, Any]
_SHAPE = {
    "role": str, "index": int, "rank": int, "host": str, "pid": int, "state": str, "message": str, "begin_s": FINITE, "time_s": FINITE,
    "now": {str: [object]}, "seconds": {str: FINITE},
    "counters": {
        "target_words?": int, "version?": int, "windows?": int, "staleness_mean?": FINITE, "pushes_waiting?": int, "rejected_pulls?": int,
        "dropped_windows?": int,
    },
}  # fmt: skip


@dataclass(frozen=True)
class RankStatus:
    """One rank at the moment `time_s` of its own clock; `now` = name, detail and seconds of the activity of each row that is in one."""

    role: str
    index: int
    rank: int
    host: str
    pid: int
    state: str
    """running, ended or failed."""
    message: str
    begin_s: float
    time_s: float
    now: dict[str, tuple[str, str, float]]
    seconds: dict[str, float]
    """By activity, those still going on included."""
    counters: Counters
    format: int = FORMAT


class RankReport:
    """The reports of rank number `rank`, which does `activity`, into the folder `run`; set `counters` once there is something to count."""

    def __init__(self, run: Path, activity: Activity, rank: int = 0, every_s: float = EVERY_S, resumes: bool = False) -> None:
        self.run, self.activity, self.rank, self.every_s = run, activity, rank, every_s
        self.counters: Callable[[], Counters] = dict
        self.is_ours = resumes or not run.exists()
        self._begin_s = time.time()
        self._ending = ("running", "")
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="status", daemon=True)
        self._thread.start()

    def freeze_counters(self) -> None:
        """Reads the counters a last time: call it before the memory that they look at is freed."""
        with self._lock:
            last = self.counters()
            self.counters = lambda: last

    def close(self, state: str, message: str = "") -> None:
        """The last write."""
        self._ending = state, message
        self._over.set()
        self._thread.join(LAST_WRITE_S)

    def write_trace(self) -> None:
        """RUN/trace/ROLE-INDEX.json, where the activities keep spans."""
        if not (self.activity.trace and self.is_ours and self.run.is_dir()):
            return
        try:
            folder = self.run / "trace"
            folder.mkdir(exist_ok=True)
            write_trace(folder / self._name, self.activity, self.rank)
        except OSError as error:
            self._complain(f"no trace: {error}")

    @property
    def _name(self) -> str:
        return f"{self.activity.role}-{self.activity.index}.json"

    def _live(self) -> None:
        try:
            while not self._over.wait(self.every_s):
                self._write("running", "")
            self._write(*self._ending)
        except OSError as error:
            self._complain(f"no reports for hpcnmt status any more: {error}")

    def _write(self, state: str, message: str) -> None:
        if not (self.is_ours and self.run.is_dir()):
            return
        folder = self.run / "status"
        folder.mkdir(exist_ok=True)
        replace_file(folder / self._name, json.dumps(asdict(self._status(state, message))) + "\n")

    def _status(self, state: str, message: str) -> RankStatus:
        with self._lock:
            counters = self.counters()
        activity = self.activity
        return RankStatus(
            activity.role, activity.index, self.rank, platform.node(), os.getpid(), state, message, self._begin_s, time.time(),
            activity.now(), activity.so_far(), counters,
        )  # fmt: skip

    def _complain(self, message: str) -> None:
        sys.stderr.write(f"hpcnmt: {self.activity.role} {self.activity.index}: {message}\n")
        sys.stderr.flush()


@contextmanager
def rank_report(run: Path, activity: Activity, rank: int = 0, resumes: bool = False) -> Iterator[RankReport]:
    """Reports while the block runs, and how it ended; writes the trace where `activity` keeps one.

    Enter before any rank may have made `run`: with several ranks, before they first wait for each other. `resumes`: `run` may exist.
    """
    report = RankReport(run, activity, rank, resumes=resumes)
    try:
        yield report
    except BaseException as error:
        report.write_trace()
        lines = f"{type(error).__name__}: {error}".splitlines()
        report.close("failed", lines[0][:MESSAGE_CHARACTERS])
        raise
    report.write_trace()
    report.close("ended")


def shard_counters(shard: Shard) -> Counters:
    """What `hpcnmt status` shows of a shard; called from another thread while it serves."""
    staleness, control = dict(shard.staleness), shard.memory.control
    blocks = [shard.layout.worker_block(worker) for worker in range(shard.layout.workers)]
    return {
        "version": shard.version, "target_words": shard.words,
        "staleness_mean": sum(k * v for k, v in staleness.items()) / max(sum(staleness.values()), 1),
        "pushes_waiting": sum(int(control[block + FLAG]) != int(control[block + APPLIED]) for block in blocks),
    }  # fmt: skip


def read_statuses(run: Path) -> list[tuple[RankStatus, float]]:
    """The status of every rank in the order of the ranks, and when the file system last saw it (seconds since the epoch).

    Raises ValueError when `run` is no run folder or holds no status of any rank.
    """
    found = [_read(path) for path in rank_files(run, "status")]
    if not found:
        raise ValueError(f"found no reports of ranks in {run / 'status'}: has the training of {run} begun, with this version of hpcnmt?")
    return sorted(found, key=lambda pair: pair[0].rank)


def _read(path: Path) -> tuple[RankStatus, float]:
    try:
        with path.open(encoding="utf-8") as file:
            written_s = os.fstat(file.fileno()).st_mtime  # of the file that is open: over a network, names lag behind
            text = file.read()
        mapping = check(parse_json(text, path), {"format": int}, path)
        if mapping["format"] != FORMAT:
            raise ValueError(f"format {mapping['format']!r}, expected {FORMAT}")
        check(mapping, _SHAPE, path)
        for row, state in mapping["now"].items():
            if len(state) != 3:
                raise ValueError(f"found {len(state)} values for now.{row[:60]}, expected name, detail and seconds")
            for value, shape in zip(state, (str, str, FINITE), strict=True):
                check(value, shape, path, f"now.{row[:60]}")
        return RankStatus(**{field.name: mapping[field.name] for field in fields(RankStatus)}), written_s
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no status of a rank of this version of hpcnmt ({error})") from error
