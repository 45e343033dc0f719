"""What a run tells: metrics.jsonl, TensorBoard, and a progress bar (plain lines where standard error is no terminal).

Only one process of a run has a journal: worker 0, the plain loop, or virtual time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

REPORT_EVERY_S = 5.0


class Journal:
    """Writes the records of one run of `max_target_words`.

    `resumed`: the `facts` of a checkpoint, to which the records are cut back. Its words are known to whoever resumes: `target_words`.
    """

    def __init__(self, folder: Path, max_target_words: int, resumed: Mapping[str, Any] | None = None, target_words: int = 0) -> None:
        self.max_target_words = max_target_words
        path = folder / "metrics.jsonl"
        if resumed is not None and path.is_file():
            kept = path.read_bytes()[: int(resumed["bytes"])]
            os.truncate(path, kept.rfind(b"\n") + 1)  # after a power loss less may be left than the checkpoint knows of
        self.begin = time.monotonic() - (float(resumed["seconds"]) if resumed is not None else 0.0)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=target_words or None)
        self._next_report_s = 0.0
        self._last = (self.seconds, target_words)
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task("training", total=max_target_words)
            self._progress.start()

    @property
    def seconds(self) -> float:
        """Seconds since the journal was opened."""
        return time.monotonic() - self.begin

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds: how far the records go, and the seconds so far."""
        self._file.flush()
        return {"bytes": self._file.tell(), "seconds": self.seconds}

    def say(self, message: str) -> None:
        """One line for the person who watches."""
        if self._progress:
            self._progress.console.print(message)
        else:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    def record(self, kind: str, target_words: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers on TensorBoard."""
        line = {"kind": kind, "target_words": target_words, "seconds": round(self.seconds, 3)} | values
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, target_words)

    def training(self, target_words: int, cross_entropy: float, values: dict[str, Any] | None = None) -> None:
        """Progress after a window; a record and a line every few seconds only."""
        seconds = self.seconds
        if seconds < self._next_report_s:
            return
        self._next_report_s = seconds + REPORT_EVERY_S
        last_s, last_words = self._last
        rate = (target_words - last_words) / max(seconds - last_s, 1e-9)
        self._last = (seconds, target_words)
        self.record("training", target_words, {"cross_entropy": cross_entropy, "target_words_per_s": rate} | (values or {}))
        text = f"{target_words} target words, {rate:.0f} words/s, {cross_entropy:.3f} nats/word"
        if self._progress:
            self._progress.update(self._task, completed=min(target_words, self.max_target_words), description=text)
        else:
            self.say(f"{target_words / self.max_target_words:6.1%}  {text}")

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._progress:
            self._progress.stop()
        self._file.close()
        self._board.close()
