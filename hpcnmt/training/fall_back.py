"""What is told of a divergence, and how a supervised run falls back behind it.

The rank writes RUN/diverged.json and ends with code 3. `FallBack`, in the supervisor, removes the complete checkpoints that are newer than
the begin of the divergence, and gives the arguments that lower learning rate and delay. RUN/diverged-N.json remember the N falls back,
so that a run which is started again later goes on with the lowered options. Used by cli.py and start.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hpcnmt.optim.window import Diverged
from hpcnmt.training.divergence import DivergenceConfig
from hpcnmt.training.run_folder import replace_file
from hpcnmt.training.say import say
from hpcnmt.training.supervise import complete_checkpoints


def report_divergence(run: Path, error: Diverged) -> str:
    """Writes RUN/diverged.json, where there is a run folder; returns the line to say."""
    if run.is_dir():
        replace_file(run / "diverged.json", json.dumps({"began_words": error.began_words, "reason": str(error)}) + "\n")
    return f"training has diverged: {error}; lower schedule.learning_rate or worker.delay, or train with --supervise, which falls back"


class FallBack:
    """The falls back of one run.

    `words_of`: global target words that a complete checkpoint stands on. `settings_of`: --set arguments after so many falls.
    """

    def __init__(
        self, run: Path, config: DivergenceConfig, words_of: Callable[[Path], int], settings_of: Callable[[int], list[str]]
    ) -> None:  # fmt: skip
        self.run, self.config, self.words_of, self.settings_of = run, config, words_of, settings_of

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
        kept = ""
        for checkpoint in reversed(complete_checkpoints(self.run)):
            if began_words is None or self.words_of(checkpoint) <= began_words:
                kept = checkpoint.name
                break
            _remove(checkpoint)
        settings = self.settings_of(number)
        if (self.run / "diverged.json").is_file():
            (self.run / "diverged.json").replace(self.run / f"diverged-{number}.json")
        else:
            replace_file(self.run / f"diverged-{number}.json", json.dumps({"began_words": began_words, "reason": "unknown"}) + "\n")
        said = ", ".join(settings[1::2])
        say(f"training has diverged; falls back to {kept or 'the beginning'} with {said} ({number} of {self.config.fall_backs})")
        return settings


def _remove(checkpoint: Path) -> None:
    """By a rename first: what is half removed is no checkpoint any more."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.diverged")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _began_words(path: Path) -> int | None:
    try:
        words = json.loads(path.read_text("utf-8"))["began_words"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return words if type(words) is int else None


def checkpoint_words(checkpoint: Path) -> int:
    """Global target words of a complete checkpoint; 0 where its COMPLETE does not say, so that nothing is removed in doubt."""
    try:
        words = json.loads((checkpoint / "COMPLETE").read_text("utf-8"))["content"]["words"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return words if type(words) is int else 0
