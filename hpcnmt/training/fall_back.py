"""What is told of a divergence, and how a supervised run falls back behind it.

The rank writes RUN/diverged.json and ends with code 3. `FallBack`, in the supervisor, removes the complete checkpoints that are newer than
the begin of the divergence, and gives the arguments that lower learning rate and delay. RUN/diverged-N.json remember the N falls back,
so that a run which is started again later goes on with the lowered options. Used by command.py and start.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hpcnmt.optim.window import Diverged
from hpcnmt.training.checkpoint_files import complete_checkpoints, remove_newer
from hpcnmt.training.divergence import DivergenceConfig
from hpcnmt.training.run_folder import replace_file
from hpcnmt.training.say import say


def report_divergence(run: Path, error: Diverged) -> str:
    """Writes RUN/diverged.json, where there is a run folder; returns the line to say."""
    if run.is_dir():
        replace_file(run / "diverged.json", json.dumps({"began_words": error.began_words, "reason": str(error)}) + "\n")
    return f"training has diverged: {error}; lower schedule.learning_rate or worker.delay, or train with --supervise, which falls back"


class FallBack:
    """The falls back of one run; `settings_of`: --set arguments after so many falls."""

    def __init__(self, run: Path, config: DivergenceConfig, settings_of: Callable[[int], list[str]]) -> None:
        self.run, self.config, self.settings_of = run, config, settings_of

    @property
    def falls(self) -> int:
        """How often this run has fallen back, earlier starts included."""
        count = 0
        while (self.run / f"diverged-{count + 1}.json").is_file():
            count += 1
        return count

    def settings(self) -> list[str]:
        """Arguments that go with the falls so far."""
        return self.settings_of(self.falls) if self.falls else []

    def __call__(self) -> list[str] | None:
        """Removes the checkpoints since the divergence; returns the arguments to go on with, None after `fall_backs` of them."""
        number = self.falls + 1
        if number > self.config.fall_backs:
            say(
                f"training has diverged for the {number}th time (divergence.fall_backs={self.config.fall_backs}): gives up; lower "
                "schedule.learning_rate, lengthen schedule.warmup_words, or lower worker.delay, and look at the data"
            )
            return None
        began_words = _began_words(self.run / "diverged.json")
        sound = (found for found in complete_checkpoints(self.run) if began_words is None or found.words <= began_words)
        kept = next((found.number for found in sound), 0)
        remove_newer(self.run, kept)
        settings = self.settings_of(number)
        if (self.run / "diverged.json").is_file():
            (self.run / "diverged.json").replace(self.run / f"diverged-{number}.json")
        else:
            replace_file(self.run / f"diverged-{number}.json", json.dumps({"began_words": began_words, "reason": "unknown"}) + "\n")
        said, origin = ", ".join(settings[1::2]), f"checkpoint {kept}" if kept else "the beginning"
        say(f"training has diverged; falls back to {origin} with {said} ({number} of {self.config.fall_backs})")
        return settings


def _began_words(path: Path) -> int | None:
    try:
        words = json.loads(path.read_text("utf-8"))["began_words"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return words if type(words) is int else None
