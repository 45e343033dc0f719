"""Cleaning up touches only what belongs to this user, is unused, and is of the job; records of others or damaged ones are not believed."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcnmt.training import leftovers
from hpcnmt.training.leftovers import SHARED_MEMORY, JobRecord

pytestmark = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="no /dev/shm")
TOKEN = "0123456789abcdef"


@pytest.fixture
def segment() -> Iterator[Path]:
    path = SHARED_MEMORY / f"mpich_shm_test{os.getpid()}_0"
    path.write_bytes(b"x" * mmap.PAGESIZE)
    yield path
    path.unlink(missing_ok=True)


def test_a_segment_in_use_stays_and_an_unused_one_goes(segment: Path) -> None:
    this = (segment.name, segment.stat().st_ino)
    assert this in leftovers.segments_of_mpi() and this not in leftovers.segments_of_mpi(since_s=segment.stat().st_ctime + 1)
    with segment.open("r+b") as file:
        assert leftovers.remove_segments([this]) == []  # open
        mapped = mmap.mmap(file.fileno(), 0)
    assert this in leftovers.segments_of([os.getpid()]) and leftovers.remove_segments([this]) == []  # mapped
    mapped.close()
    assert leftovers.remove_segments([(segment.name, this[1] + 1)]) == [] and segment.exists()  # another one of that name
    assert leftovers.remove_segments([this]) == [segment.name] and not segment.exists()


def test_only_processes_with_the_token_are_ended() -> None:
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    variables = [os.environ | {leftovers.TOKEN: token} for token in (TOKEN, "f" * 16)]
    ours, other = (subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for environment in variables)
    try:
        for process in (ours, other):
            assert process.stdout is not None and process.stdout.readline()
        assert leftovers.end_processes(TOKEN) == 1
        assert ours.wait(10) == -9 and other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


def test_a_record_comes_back_and_a_wrong_one_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run, victim = tmp_path / "run", tmp_path / "precious"
    victim.mkdir()
    record = JobRecord(TOKEN, leftovers.new_folder(), segments={("mpich_shm_1_0", 7)})
    leftovers.write_record(run, record)
    assert leftovers.read_record(run) == record and record.is_running
    path = leftovers.record_path(run)
    good = json.loads(path.read_text())
    wrong = [{"folder": str(victim)}, {"folder": f"{tmp_path}/hpcnmt-job-x/../precious"}, {"segments": [["../passwd", 1]]}, {"token": "*"},
             {"token": 7}, {"segments": "abc"}, {"launcher": "x"}, {"began_s": None}]  # fmt: skip
    for changed in wrong:
        path.write_text(json.dumps(good | changed))
        assert leftovers.read_record(run) is None, changed
        leftovers.clean_earlier(run)
    for text in ("", "[]", "null", '{"token": 1', "\x00"):
        path.write_text(text)
        assert leftovers.read_record(run) is None, text
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text(json.dumps(good))
    assert leftovers.read_record(run) is None and victim.is_dir()
    path.unlink()
    path.write_text(json.dumps(good | {"launcher": 2**22 + 1}))  # one that is dead
    leftovers.clean_earlier(run)
    assert not path.exists() and not Path(record.folder).exists()
