"""What a test cannot do without: skipped where that is missing, unless HPCNMT_REQUIRE=mpi,netns,kernels,... names it (CI does)."""

from __future__ import annotations

import os

import pytest


def need(name: str, present: bool, message: str) -> None:
    """Goes on if `present`; otherwise skips the test with `message`, or fails it when `name` is required."""
    if present:
        return
    if name in os.environ.get("HPCNMT_REQUIRE", "").split(","):
        pytest.fail(f"{message} (HPCNMT_REQUIRE names {name})")
    pytest.skip(message)
