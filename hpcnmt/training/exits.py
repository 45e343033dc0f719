"""Exit codes of `hpcnmt train`, the same for the command, its ranks and whatever starts them (the supervisor, job scripts)."""

from __future__ import annotations

FINISHED = 0
FAILED = 1
"""An error, with its traceback."""
USER_ERROR = 2
"""Wrong input, in one line: the same command would fail again."""
DIVERGED = 3
"""The loss or the gradients are no longer those of a training: RUN/diverged.json says since when."""
SAVED = 75
"""Ended by a signal or before a time limit, after a checkpoint: start it again with --resume (EX_TEMPFAIL of sysexits.h)."""
SIGNAL = 128
"""Plus the number of a signal: killed by it."""
