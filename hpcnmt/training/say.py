"""One line on standard error, as every part of `hpcnmt train` says what is not an error. No heavy imports: the launcher uses it, too."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Writes "hpcnmt: MESSAGE" at once."""
    sys.stderr.write(f"hpcnmt: {message}\n")
    sys.stderr.flush()
