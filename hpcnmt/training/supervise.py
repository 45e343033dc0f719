"""Starts a training again after failures, from its newest complete checkpoint, until it ends in good order or gets nowhere any more.

Invariants: codes 0 (finished), 2 (user error) and 75 (saved) end, and so does every code after a signal to the launcher; failures in a row
count only without progress, which is a newer complete checkpoint than at the last start; code 3 (diverged) falls back to a checkpoint
from before it began, with a smaller learning rate and delay (divergence.py). Knows nothing of processes: `start` is injected. Called by
start.py for `hpcnmt train --supervise`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from hpcnmt.training.checkpoint_files import complete_numbers
from hpcnmt.training.exits import DIVERGED, FAILED, FINISHED, SAVED, SIGNAL, USER_ERROR
from hpcnmt.training.say import say

Start = Callable[[list[str]], int]
"""Trains with these additional arguments and returns the exit code."""
LONGEST_BACK_OFF_S = 60.0


def newest_number(run: Path) -> int:
    """Number of the newest complete checkpoint; 0 without any."""
    return max(complete_numbers(run), default=0)


def supervise(
    start: Start, run: Path, restarts: int, back_off_s: float, pause: Callable[[float], bool], interrupted: Callable[[], bool],
    fall_back: Callable[[], list[str] | None], resumes: bool = False, settings: list[str] | None = None,
) -> int:  # fmt: skip
    """Runs `start` until it is over; returns the last exit code.

    `restarts`: failures in a row without progress after which it gives up. `pause` waits, and returns True when a signal came.
    `fall_back` makes the newest checkpoint one from before the divergence, and returns the arguments that lower what made it diverge; None
    when that has been done often enough. `settings`: such arguments of earlier ones. `resumes`: the first start goes on with a run.
    """
    arguments, fruitless = list(settings or []), 0
    while True:
        before = newest_number(run)
        code = start((["--resume"] if resumes else []) + arguments)
        if code in (FINISHED, USER_ERROR, SAVED) or interrupted():
            return code
        newest = newest_number(run)
        resumes = True
        if code == DIVERGED:
            lowered = fall_back()
            if lowered is None:
                return code
            arguments = lowered
            continue
        fruitless = 0 if newest > before else fruitless + 1
        if fruitless >= restarts:
            say(f"ended with {meaning(code)}, {fruitless} times in a row without a new checkpoint: gives up; {advice(code, run)}")
            return code
        wait_s = min(back_off_s * 2 ** max(fruitless - 1, 0), LONGEST_BACK_OFF_S)
        origin = f"from checkpoint {newest}" if newest else "from the beginning"
        when = f" in {wait_s:.0f} s" if wait_s else ""
        said = f" ({fruitless} of {restarts} without progress)" if fruitless else ""
        say(f"ended with {meaning(code)}; restarting {origin}{when}{said}")
        if pause(wait_s):
            return SAVED


def meaning(code: int) -> str:
    """Exit code `code` in words."""
    if code > SIGNAL:
        try:
            return f"code {code} (killed by {signal.Signals(code - SIGNAL).name})"
        except ValueError:
            pass
    return f"code {code}" + (" (an error, see above)" if code == FAILED else "")


def advice(code: int, run: Path) -> str:
    """What to look at after the last failure."""
    if code == SIGNAL + signal.SIGKILL:
        return f"look for the kernel's out-of-memory killer (dmesg, or the memory limit of the job), and at hpcnmt status --run {run}"
    return f"look at the messages of the ranks above, and at hpcnmt status --run {run}; then start it again with --resume"
