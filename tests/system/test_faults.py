"""Faults and what is promised: a killed rank costs at most the work since the last checkpoint; the run goes on, also resized.

| fault | expected outcome |
| --- | --- |
| SIGKILL of a rank | the command ends with 137; --resume goes on, with other workers and shards, and every word counted |
| the newest checkpoint is damaged | one line, the one before it is taken |
| another recipe, another folder | one line, code 2, nothing changed |
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from hpcnmt.training.checkpoint_files import newest_complete
from tests.commands import hpcnmt, prepare_sample, records, train_command
from tests.system.test_resume import DEADLINE_S, pid_of, started, wait_for

pytestmark = [pytest.mark.system, pytest.mark.mpi, pytest.mark.one_family]
SETTINGS = ("checkpoint.every_s=0.5", "validation.every_words=100000", "training.max_target_words=40000", "model.dropout=0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults")
    prepare_sample(path)
    return path


def checkpoints(run: Path) -> list[Path]:
    return sorted(path.parent for path in run.glob("checkpoints/cut-*/COMPLETE"))


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """A run of 3 workers and 2 shards, killed after its second checkpoint."""
    run = folder / "killed"
    with started(*train_command(folder, "killed", "--workers", 3, "--shards", 2, "--resume", settings=SETTINGS)) as process:
        wait_for("two checkpoints", lambda: len(checkpoints(run)) > 1, process)
        os.kill(pid_of(run, "worker-1"), signal.SIGKILL)
        assert process.wait(DEADLINE_S) == 137
    return run


def copy_of(killed: Path, name: str) -> Path:
    return Path(shutil.copytree(killed, killed.with_name(name)))


def resume(folder: Path, run: Path, *options: object, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = train_command(folder, run.name, *options, "--resume", settings=(*SETTINGS, *settings))
    return hpcnmt(*command, deadline_s=DEADLINE_S)


def test_a_killed_run_goes_on_with_other_workers_and_shards(folder: Path, killed: Path) -> None:
    run = copy_of(killed, "resized")
    checkpoint = newest_complete(run)
    assert checkpoint is not None
    done = resume(folder, run, "--workers", 2, "--shards", 3)
    assert done.returncode == 0, done.stderr
    resumed = records(run, "resume")[0]
    assert (resumed["target_words"], resumed["workers"], resumed["shards"]) == (checkpoint.words, 2, 3)
    shards = [json.loads((run / f"shard-{index}.json").read_text())["target_words"] for index in range(3)]
    assert set(shards) == {records(run, "end")[0]["target_words"]} and shards[0] >= 40000
    statuses = json.loads(hpcnmt("status", "--run", run, "--json").stdout)
    trained = sum(s["counters"]["target_words"] for s in statuses if s["role"] == "worker" and s["index"] < 2)
    assert trained == shards[0] - checkpoint.words  # every push of the resumed run is counted once, on every shard


def test_a_damaged_checkpoint_is_passed_over(folder: Path, killed: Path) -> None:
    run = copy_of(killed, "damaged")
    older, newest = checkpoints(run)[-2:]
    part = newest / "worker-0.json"
    part.write_bytes(part.read_bytes()[:-9] + b" " + part.read_bytes()[-8:])
    done = resume(folder, run, "--workers", 3, "--shards", 2)
    assert done.returncode == 0 and f"passed over {newest}" in done.stderr, done.stderr
    assert records(run, "resume")[0]["checkpoint"] == int(older.name[4:])


def test_what_does_not_fit_is_refused_and_changes_nothing(folder: Path, killed: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in killed.rglob("*") if p.is_file() and p.name != ".lock"}

    before = content()
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "model.safetensors").write_bytes(b"of somebody else")
    runs = [
        (resume(folder, killed, settings=("model.heads=2",)), "found model.heads=2, expected"),
        (resume(folder, killed, settings=("training.record=true",)), "has not been recorded from its start"),
        (resume(folder, foreign), "but no config.json of a run"),
        (hpcnmt(*train_command(folder, "killed")), "exists already"),
    ]
    for done, message in runs:
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("hpcnmt:") == 1, (message, done.stderr)
    assert content() == before and (foreign / "model.safetensors").read_bytes() == b"of somebody else"
