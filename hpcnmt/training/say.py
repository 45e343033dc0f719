"""One line on standard error, as every part of hpcnmt says what is not a result. No heavy imports: the launcher uses it, too."""

from __future__ import annotations

import sys

LONGEST = 1000
"""Characters of an error's message."""


def say(message: str) -> None:
    """Writes "hpcnmt: MESSAGE" at once."""
    sys.stderr.write(f"hpcnmt: {message}\n")
    sys.stderr.flush()


def one_line(error: BaseException) -> str:
    """What is said of an error: one line, no longer than a person reads, nothing that a terminal would obey."""
    is_of_file = isinstance(error, OSError) and error.filename is not None
    text = f"cannot use {error.filename}: {error.strerror}" if is_of_file and isinstance(error, OSError) else str(error)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 200]} ... {text[-190:]}"
