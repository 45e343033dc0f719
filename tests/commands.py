"""Whole commands of hpcnmt on a small generated corpus, for the system tests."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpcnmt.cli import main
from hpcnmt.data.sample import write_sample_corpus
from tests.processes import run

SMALL = ["training.max_target_words=12000", "validation.every_words=5000", "model.embedding_dim=32", "model.feedforward_dim=32"]


def hpcnmt(
    *arguments: object, stdin: bytes = b"", deadline_s: float = 120, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Runs one command of hpcnmt."""
    return run([*launcher, sys.executable, "-m", "hpcnmt", *arguments], deadline_s, stdin)


def here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One command of hpcnmt in this process: for what ends before it starts others, or takes long."""
    words, said = list(map(str, arguments)), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        return subprocess.CompletedProcess(words, main(words), "", said.getvalue())


def prepare_sample(path: Path) -> None:
    """PATH/text and PATH/prepared: 600 generated training pairs, 20 for validation, 20 for tests."""
    write_sample_corpus(path / "text", train=600, valid=20, test=20)
    files = [f"--{split}-{side}={path / 'text' / f'{split}.{end}'}" for split in ("train", "valid")
             for side, end in (("source", "src"), ("target", "trg"))]  # fmt: skip
    done = here("prepare", *files, "--out", path / "prepared", "--vocabulary-size", 300)
    assert done.returncode == 0, done.stderr


def train_command(folder: Path, run: str, *options: object, settings: tuple[str, ...] = ()) -> list[object]:
    """Arguments that train FOLDER/RUN for a short while."""
    flags = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return ["train", "sample", "--data", folder / "prepared", "--run", folder / run, *options, *flags]


def train(folder: Path, run: str, *options: object, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return hpcnmt(*train_command(folder, run, *options, settings=settings))


def train_here(folder: Path, run: str, *options: object, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`train`, for what is refused before ranks start."""
    return here(*train_command(folder, run, *options, settings=settings))


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind from metrics.jsonl of `run`."""
    return [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]
