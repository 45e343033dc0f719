"""Waiting with a deadline: no endless wait anywhere, and the message names what was waited for.

Only time in which this process itself was running counts: a poll that took longer than `longest_poll_s` means that the process was stopped
(SIGSTOP, suspended machine), and counts as `longest_poll_s` only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DeadlineConfig:
    """Limits of waiting, in increasing order."""

    stall_warning_s: float = 30.0
    cut_s: float = 60.0
    """A consistent cut that a silent worker holds up for so long is cancelled."""
    peer_s: float = 300.0
    """For an answer of another rank while both train."""
    job_s: float = 900.0
    """For the end of other ranks; and how long a shard lives without a push of any worker. A single worker pushes nothing while it
    validates: its validations must be shorter."""
    longest_poll_s: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.longest_poll_s < self.stall_warning_s < self.peer_s < self.job_s and 0 < self.cut_s < self.peer_s):
            raise ValueError(
                f"found deadlines longest_poll_s={self.longest_poll_s}, stall_warning_s={self.stall_warning_s}, cut_s={self.cut_s}, "
                f"peer_s={self.peer_s}, job_s={self.job_s}; "
                "expected 0 < longest_poll_s < stall_warning_s < peer_s < job_s and 0 < cut_s < peer_s"
            )

    def wait(self, what: str, done: Callable[[], bool], pause: Callable[[], None], limit_s: float | None = None) -> float:
        """Polls `done` until it is true and returns the seconds waited; RuntimeError naming `what` after `limit_s` (default: peer_s)."""
        limit_s = self.peer_s if limit_s is None else limit_s
        begin_s, own, warned = time.monotonic(), OwnTime(self.longest_poll_s), False
        while not done():
            pause()
            counted = own.passed()
            if counted > self.stall_warning_s and not warned:
                warned = True
                print(f"waiting for {what} since {counted:.0f} s (limit {limit_s:.0f} s)", file=sys.stderr, flush=True)
            if counted > limit_s:
                raise RuntimeError(
                    f"waited {counted:.0f} s for {what}, expected at most {limit_s:.0f} s: is that rank alive? "
                    "raise deadlines.peer_s if it is only slow"
                )
        return time.monotonic() - begin_s


class OwnTime:
    """Seconds in which this process was running, as far as looking at the clock again and again tells."""

    def __init__(self, longest_poll_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.longest_poll_s, self.clock = longest_poll_s, clock
        self._passed_s, self._last_s = 0.0, clock()

    def passed(self, from_now: bool = False) -> float:
        """Those since the beginning; `from_now`: which is now."""
        now_s = self.clock()
        self._passed_s = 0.0 if from_now else self._passed_s + min(now_s - self._last_s, self.longest_poll_s)
        self._last_s = now_s
        return self._passed_s


class Silence:
    """How long nobody has given a sign, in time in which this process itself was running, too; `heard` is called again and again."""

    def __init__(self, deadlines: DeadlineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.deadlines, self.seconds = deadlines, 0.0
        self._own = OwnTime(deadlines.longest_poll_s, clock)

    def heard(self, sign: bool, what: str) -> None:
        """`sign`: whether there was one since the last call; RuntimeError naming `what` after job_s without any."""
        self.seconds = self._own.passed(from_now=sign)
        if self.seconds > self.deadlines.job_s:
            raise RuntimeError(
                f"heard nothing for {self.seconds:.0f} s, expected {what} within {self.deadlines.job_s:.0f} s: is the host cut off, or has "
                "the job ended without this rank? raise deadlines.job_s if the workers are only slow"
            )
