"""Values separated by commas on the command line of a benchmark, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def numbers(text: str, kind: Callable[[str], Any], name: str) -> list[Any]:
    """The numbers of option --`name`. Raises ValueError for anything else."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"found --{name} {text}, expected {getattr(kind, '__name__', '')} values separated by commas") from error


def choices(text: str, valid: tuple[str, ...], name: str) -> list[Any]:
    """The words of option --`name`, each one of `valid`. Raises ValueError for others."""
    found = text.split(",")
    if wrong := [part for part in found if part not in valid]:
        raise ValueError(f"found --{name} {','.join(wrong)}, expected of {', '.join(valid)}")
    return found
