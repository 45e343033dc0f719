"""Faults of whole runs, and what must come of them.

| fault | outcome |
| --- | --- |
| SIGKILL of a shard, no --supervise | code 137, no process and no temporary file left, checkpoints readable |
| then other numbers of workers and shards | goes on from the newest checkpoint and finishes; the data are dealt to the new workers |
| full disk under `checkpoints` | one line for each part and each checkpoint, training goes on, code 0, nothing half-written |
| newest checkpoint damaged (a byte of a part's .json, of a tensor) | passed over in one line, the one before it is taken |
| every checkpoint damaged | refused, code 2; the run is not begun anew |
| resumed with another model, with a record, in virtual mode, with other data | refused in one line, code 2; the folder stays as it was |
| two processes in one run folder | the second is refused; when the first is killed, another may begin |

SIGKILL of what mpiexec has started, one by one, is in tests/mpi/test_launcher.py; with --supervise in test_kills.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcnmt.cli import main
from hpcnmt.training import leftovers
from hpcnmt.training.checkpoint_files import Checkpoint, complete_checkpoints, newest_complete
from hpcnmt.training.run_folder import RunFolder
from tests.commands import SMALL, hpcnmt, records, train_command
from tests.need import mpiexec, need
from tests.processes import ROOT
from tests.processes import run as run_process

pytestmark = [pytest.mark.system, pytest.mark.mpi, pytest.mark.one_family]
DEADLINE_S = 120.0
WORDS = 12_000
SETTINGS = ("loader.batch_words=150", "checkpoint.every_s=0.3", "validation.every_words=100000", "validation.beam=1")
LONG = "training.max_target_words=5000000"


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """A run of 3 workers and 2 shards, of which a shard is killed after the second checkpoint; FOLDER/killed has two of them."""
    mpiexec()
    run, temporary = folder / "killed", folder / "tmp"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "NAME_OF_JOB": str(run)}
    command = train_command(folder, "killed", "--workers", 3, "--shards", 2, settings=(*SETTINGS, LONG))
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpcnmt", *map(str, command)], env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        limit_s = time.monotonic() + DEADLINE_S
        while len(list(run.glob("checkpoints/cut-*/COMPLETE"))) < 2 or not (run / "status" / "shard-1.json").exists():
            assert process.poll() is None and time.monotonic() < limit_s, (folder / "killed.log").read_text()
            time.sleep(0.02)
        os.kill(int(json.loads((run / "status" / "shard-1.json").read_text())["pid"]), signal.SIGKILL)
        code = process.wait(DEADLINE_S)
    finally:
        if process.poll() is None:
            process.kill()  # its ranks die with it
            process.wait()
    said = (folder / "killed.log").read_text()
    assert code == 128 + signal.SIGKILL and "Traceback" not in said, said
    return run


def copy_of(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.with_name(name)))


def resume(folder: Path, run: str, workers: int, shards: int, *settings: str) -> subprocess.CompletedProcess[str]:
    options = ("--workers", workers, "--shards", shards, "--resume")
    words = json.loads((newest(folder / run)[-1] / "COMPLETE").read_text())["content"]["words"] + WORDS
    return hpcnmt(*train_command(folder, run, *options, settings=(*SETTINGS, f"training.max_target_words={words}", *settings)))


def newest(run: Path) -> list[Path]:
    """Complete checkpoints, the newest last."""
    return sorted(path.parent for path in run.glob("checkpoints/cut-*/COMPLETE"))


def temporary_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.startswith((".removed", ".cut-")) or p.name.endswith((".part", ".tmp"))]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_nothing_is_left_of_a_killed_run_but_checkpoints_that_can_be_read(killed: Path) -> None:
    processes = [pid for pid in leftovers.processes() if (leftovers.environment_of(pid) or {}).get("NAME_OF_JOB") == str(killed)]
    assert not processes
    left = [path for path in (killed.parent / "tmp").iterdir() if not path.name.startswith("torchinductor")]
    assert not left
    assert len(newest(killed)) == 2
    for path in newest(killed):
        Checkpoint(path).check()


def test_a_killed_run_goes_on_with_other_numbers_of_workers_and_shards(folder: Path, killed: Path) -> None:
    run = copy_of(killed, "other-numbers")
    before = newest_complete(run)
    assert before is not None and len(before.names) == 5
    old = [before.facts(f"worker-{index}")["loader"] for index in range(3)]
    done = resume(folder, "other-numbers", 2, 3)
    assert done.returncode == 0, done.stderr
    assert [record["checkpoint"] for record in records(run, "resume")] == [before.number]
    shards = [json.loads((run / f"shard-{index}.json").read_text())["target_words"] for index in range(3)]
    assert len(set(shards)) == 1 and shards[0] >= before.words + WORDS and len(list(run.glob("shard-*.json"))) == 3
    assert not temporary_files(run)
    assert {path.stem for path in (run / "status").iterdir()} == {"worker-0", "worker-1", "shard-0", "shard-1", "shard-2"}
    after = newest_complete(run)
    assert after is not None and after.number > before.number and after.names == ("worker-0", "worker-1", "shard-0", "shard-1", "shard-2")
    new = [after.facts(f"worker-{index}")["loader"] for index in range(2)]
    assert [state["world"] for state in new] == [2, 2] and [state["rank"] for state in new] == [0, 1]
    assert {state["vocabulary"] for state in new} == {state["vocabulary"] for state in old}
    assert min(state["epoch"] for state in new) > max(state["epoch"] for state in old)  # all go on with an epoch nobody had begun
    assert all(epoch >= min(state["epoch"] for state in old) for state in new for epoch, _ in state["backlog"])


def test_a_full_disk_costs_checkpoints_only(folder: Path) -> None:
    possible = os.getuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    need("netns", possible, "mounts of its own need root")
    run = folder / "full"
    (run / "checkpoints").mkdir(parents=True)
    options = train_command(folder, "full", "--workers", 1, "--shards", 1, "--resume", settings=SETTINGS)
    script = 'mount -t tmpfs -o size=64k none "$1/checkpoints" && shift && "$@"; code=$?; ls -A "$RUN/checkpoints"; exit $code'
    done = run_process(
        ["unshare", "--mount", "bash", "-c", script, "bash", run, sys.executable, "-m", "hpcnmt", *options], DEADLINE_S,
        environment={"RUN": str(run)},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "cannot save checkpoint" in line]
    assert done.returncode == 0 and lines and all("No space left on device" in line for line in lines), done.stderr
    assert done.stdout.split() == [] and (run / "final.safetensors").is_file() and not temporary_files(run), done.stdout
    assert "Traceback" not in done.stderr
    failed = {re.findall(r"cannot save checkpoint ([0-9]+):", line)[0] for line in lines}
    given_up = re.findall(r"checkpoint ([0-9]+) is given up", done.stderr)
    assert failed <= set(given_up) and len(given_up) == len(set(given_up))  # told once, beside one line for each part


@pytest.mark.parametrize(("name", "at"), [("worker-0.json", 50), ("shard-1.safetensors", -3)])
def test_a_damaged_newest_checkpoint_is_passed_over(folder: Path, killed: Path, name: str, at: int) -> None:
    run = copy_of(killed, f"damaged-{name}")
    older, damaged = newest(run)
    sound = Checkpoint(older)  # which newer ones may replace
    flip(damaged / name, at)
    done = resume(folder, run.name, 3, 2, f"training.max_target_words={sound.words + 2000}")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "passed over" in line]
    assert said and all(str(damaged) in line and "checksum" in line for line in said)
    assert records(run, "resume")[-1]["checkpoint"] == sound.number
    others = [found for found in complete_checkpoints(run) if found.folder != damaged]  # it stays until another takes its number
    assert others
    others[0].check()


def test_without_a_readable_checkpoint_a_run_is_refused(folder: Path, killed: Path) -> None:
    run = copy_of(killed, "all-damaged")
    before = (run / "metrics.jsonl").read_bytes()
    for path in newest(run):
        flip(path / "worker-2.safetensors", -3)
    done = resume(folder, "all-damaged", 3, 2)
    said = [line for line in done.stderr.splitlines() if "passed over" in line]
    assert done.returncode == 2 and len(said) == 2 and all("worker-2.safetensors" in line for line in said), done.stderr
    assert "found no checkpoint in" in done.stderr
    assert "Traceback" not in done.stderr and (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.embedding_dim=64", "model.embedding_dim=64, expected 32"),
        ("training.record=true", "has not been recorded from its start"),
        ("training.mode=virtual", "--resume has no effect with training.mode=virtual"),
        ("optimizer.beta1=0.9", "optimizer.beta1=0.9, expected 0.5"),
    ],
)
def test_a_run_is_not_resumed_with_what_does_not_fit(
    folder: Path, killed: Path, capsys: pytest.CaptureFixture[str], setting: str, expected: str
) -> None:
    before = (killed / "metrics.jsonl").read_bytes(), (killed / "config.json").read_bytes(), newest(killed)
    settings = (*(known for known in SETTINGS if not known.startswith("checkpoint")), LONG, setting)
    arguments = train_command(folder, "killed", "--workers", 3, "--shards", 2, "--resume", settings=settings)
    assert main([str(argument) for argument in arguments]) == 2  # before any rank is started
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and expected in lines[0]
    assert ((killed / "metrics.jsonl").read_bytes(), (killed / "config.json").read_bytes(), newest(killed)) == before


def test_a_run_is_not_resumed_with_other_data(folder: Path, killed: Path) -> None:
    run, other = copy_of(killed, "other-data"), folder / "other"
    before = (run / "metrics.jsonl").read_bytes(), (run / "config.json").read_bytes()
    files = [f"--{split}-{side}={folder / 'text' / f'{split}.{end}'}" for split in ("train", "valid")
             for side, end in (("source", "src"), ("target", "trg"))]  # fmt: skip
    done = hpcnmt("prepare", *files, "--out", other / "prepared", "--vocabulary-size", 250)
    assert done.returncode == 0, done.stderr
    flags = [part for setting in (*SMALL, *SETTINGS, LONG) for part in ("--set", setting)]
    options = ("--data", other / "prepared", "--run", run, "--workers", 3, "--shards", 2, "--resume")
    done = hpcnmt("train", "sample", *options, *flags)
    said = [line for line in done.stderr.splitlines() if line.startswith("hpcnmt: ") and "expected" in line]
    assert done.returncode == 2 and said and "Traceback" not in done.stderr, done.stderr
    assert ((run / "metrics.jsonl").read_bytes(), (run / "config.json").read_bytes()) == before


def test_a_second_process_is_refused_as_long_as_the_first_lives(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from hpcnmt.training.run_folder import RunFolder; "
        "run = RunFolder(pathlib.Path(sys.argv[1])); run.hold(0); print('held', flush=True); time.sleep(600)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process still trains into"):
            RunFolder(tmp_path).hold(wait_s=0.2)
    finally:
        first.kill()
        first.communicate()
    RunFolder(tmp_path).hold(wait_s=DEADLINE_S)
