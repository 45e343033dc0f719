"""Over TCP a worker talks to one shard while a transfer with another is in flight: otherwise pulls could not run beside pushes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.hosts import virtual_hosts
from tests.processes import run


@pytest.mark.netns
def test_words_and_gets_do_not_wait_for_a_transfer_with_another_shard() -> None:
    with virtual_hosts(3, "100mbit") as launcher:  # 20 MB take 1.7 s
        program = [sys.executable, "-m", "mpi4py", Path(__file__).with_name("beside_program.py")]
        done = run([*launcher, "3", *program], deadline_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert all(found["in_flight"].values()), found
    assert len(found["in_flight"]) == 5 and found["same"]
