"""Job scripts that hpcnmt slurm writes: valid bash, filled in, whatever the names are; wrong input is refused, and nothing written."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from hpcnmt.cli import main
from hpcnmt.slurm_script import template
from tests.commands import prepare_sample

ODD = "a b'c\"d $HOME `id` $(id) ; * \\ # settings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job scripts") / ODD
    path.mkdir()
    prepare_sample(path)
    return path


def written(folder: Path, *options: str) -> str:
    """The script for these options, after bash has parsed it."""
    out = folder / "script.sh"
    out.unlink(missing_ok=True)
    words = ["slurm", "sample", "--data", str(folder / "prepared"), "--run", str(folder / "run"), "--out", str(out), *options]
    assert main(words) == 0
    assert subprocess.run(["bash", "-n", out], timeout=60).returncode == 0
    return out.read_text("utf-8")


def bash_sees(text: str, variable: str) -> list[str]:
    """The words of a variable after bash has read the settings of the script."""
    settings = text.split("\n# settings\n", 1)[1].split("\n# end of settings\n", 1)[0]
    show = f'\nprintf "%s\\0" "${{{variable}[@]}}"'
    done = subprocess.run(["bash", "-uc", settings + show], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\0")[:-1]


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("options", [(), ("--array", "1-3,7%2"), ("--hetjob",), ("--set", "training.mode=sync")], ids=str)
def test_every_kind_is_valid_and_keeps_odd_names(folder: Path, options: tuple[str, ...]) -> None:
    setting = "optimizer.later={words: 5, beta1: 0.5}"
    text = written(folder, *options, "--set", setting)
    assert bash_sees(text, "data") == [str(folder / "prepared")] and bash_sees(text, "run") == [str(folder / "run")]
    given = [word for word in options if word in ("--set", "training.mode=sync")]
    assert bash_sees(text, "options") == [*given, "--set", setting]
    assert "--requeue" in directives(text) and "--signal=B:USR1@120" in directives(text) and "--open-mode=append" in directives(text)
    assert template("common.sh") in text and "\nsource \"${HPCNMT_COMMON" not in text


def test_resources_are_filled_in(folder: Path) -> None:
    job = ("--nodes", "2", "--gpus-per-node", "4", "--time", "1-00:00:00", "--account", "me", "--set", "training.threads=3")
    found = directives(written(folder, "--workers", "4", "--shards", "3", "--partition", "gpu,a100", *job))
    wanted = {"nodes=2", "ntasks=7", "ntasks-per-node=4", "cpus-per-task=3", "gpus-per-node=4", "time=1-00:00:00", "account=me"}
    assert wanted | {"partition=gpu,a100"} <= {line.removeprefix("--") for line in found}
    places = ("--hetjob", "--cpu-partition", "c", "--gpu-partition", "g")
    workers, shards = " ".join(directives(written(folder, "--workers", "4", "--shards", "3", *places, *job))).split(" hetjob ")
    assert all(f"--{word} " in f"{workers} " for word in ("ntasks=4", "nodes=2", "partition=g", "gpus-per-node=4", "account=me"))
    assert all(f"--{word} " in f"{shards} " for word in ("ntasks=3", "nodes=1", "partition=c", "account=me")) and "gpus" not in shards
    assert "gpus" not in " ".join(directives(written(folder, "--hetjob")))


@pytest.mark.parametrize(("options", "message"), [
    (("--workers", "5000"), "use fewer --workers"),
    (("--shards", "1000000"), "use fewer --shards"),
    (("--set", "training.mode=plain"), "is one process"),
    (("--set", "training.mode=sync", "--shards", "1"), "remove them"),
    (("--set", "training.moed=sync"), "unknown option training.moed"),
    (("--partition", "a b"), "--partition"),
    (("--account", "x\n#SBATCH --uid=0"), "--account"),
    (("--time", "soon"), "--time"),
    (("--array", "1;id"), "--array"),
    (("--nodes", "4"), "use fewer nodes"),
    (("--cpu-partition", "c"), "need --hetjob"),
    (("--hetjob", "--array", "1-3"), "expected one of them"),
    (("--site", "none"), "--site"),
    (("--submit", "--out", "-"), "give --out FILE"),
])  # fmt: skip
def test_wrong_input_is_one_line(folder: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "refused.sh"
    words = ["slurm", "sample", "--data", str(folder / "prepared"), "--run", str(folder / "run"), "--out", str(out), *options]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists(), error


def test_an_existing_script_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(folder)
    words = ["slurm", "sample", "--data", str(folder / "prepared"), "--run", str(folder / "run"), "--out", str(folder / "script.sh")]
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    assert (folder / "script.sh").read_text("utf-8") == text


def test_submitting_calls_sbatch_with_an_argument_list(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "arguments"))}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    written(folder, "--submit")
    assert (tmp_path / "arguments").read_text() == f"{folder / 'script.sh'}\n"
