"""The folder of one run: config.json, vocabularies, model.safetensors (best), final.safetensors, metrics.jsonl, tensorboard/, shard-N.json,
status/ and trace/ (one file a rank, see status.py and trace.py).

Created by the first worker (which refuses an existing folder), read by translate, score, evaluate, summary, advise, status and trace.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcnmt.config import from_mapping
from hpcnmt.data.vocabulary import Vocabularies, copy_vocabularies
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig, Seq2Seq
from hpcnmt.training.recipe import Recipe

LOCK_WAIT_S = 30.0
OF_A_RUN = ("metrics.jsonl", "tensorboard", "model.safetensors", "final.safetensors", "record")
"""What a run that begins anew must not find of an older one."""


def refuse_existing(path: Path) -> None:
    """Raises ValueError when `path` exists."""
    if path.exists():
        raise ValueError(f"{path} exists already, expected a new run folder: choose another --run or remove it")


def replace_file(path: Path, text: str) -> None:
    """Writes beside `path`, then renames: whoever reads it finds the old or the new file, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def rank_files(run: Path, kind: str) -> list[Path]:
    """RUN/KIND/ROLE-INDEX.json of every rank, sorted by name. Raises ValueError when there is no folder `run`."""
    if not run.is_dir():
        raise ValueError(f"found no folder {run}, expected one of hpcnmt train: give --run the folder of a run")
    return sorted(path for path in (run / kind).glob("*.json") if re.fullmatch(r"[a-z]+-[0-9]+", path.stem))


class RunFolder:
    """Files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def hold(self, wait_s: float = LOCK_WAIT_S) -> None:
        """Makes this process the only one that trains into the folder, until it ends, however it ends.

        After a failed node an older job may still be running, unseen by Slurm. Raises ValueError when it does not end within `wait_s`.
        """
        file, begin = (self.path / ".lock").open("ab"), time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = file
                return
            except BlockingIOError:
                if time.monotonic() - begin > wait_s:
                    raise ValueError(f"another process still trains into {self.path}: end it first, or choose another --run") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                return

    @classmethod
    def create(cls, path: Path, recipe: Recipe, prepared: Path, context: dict[str, Any]) -> RunFolder:
        """Makes the folder with the resolved recipe, `context` (versions, ranks) and the vocabularies of `prepared`.

        A run that was killed before its first checkpoint is begun anew; whoever calls has refused folders of anything else.
        """
        context = context | {"vocabulary": Vocabularies.read(prepared).digest}
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.hold()
        for name in OF_A_RUN:
            stale = path / name
            if stale.is_dir():
                shutil.rmtree(stale)
            else:
                stale.unlink(missing_ok=True)
        (path / "config.json").write_text(json.dumps(asdict(recipe) | {"context": context}, indent=2) + "\n", "utf-8")
        copy_vocabularies(prepared, path)
        return run

    @classmethod
    def reopen(cls, path: Path, recipe: Recipe, context: dict[str, Any], resumed_from: int, best: Path | None) -> RunFolder:
        """Goes on with the run from checkpoint `resumed_from`, whose best model is the file `best`; vocabularies stay as they are."""
        run = cls(path)
        run.hold()
        content = json.loads((path / "config.json").read_text("utf-8"))
        before = content["context"]
        context = before | context | {"resumed_from": [*before.get("resumed_from", []), resumed_from]}
        replace_file(path / "config.json", json.dumps(asdict(recipe) | {"context": context}, indent=2) + "\n")
        ranks = {f"{role}-{index}.json" for role in ("worker", "shard") for index in range(context.get(f"{role}s", 0))}
        gone = [status for status in rank_files(path, "status") if status.name not in ranks]  # of more ranks than there are now
        for stale in (*path.glob("shard-*.json"), path / "final.safetensors", *gone):
            stale.unlink(missing_ok=True)
        if best is not None:
            temporary = path / f".model.{os.getpid()}.part"
            shutil.copyfile(best, temporary)
            temporary.rename(path / "model.safetensors")
        else:
            (path / "model.safetensors").unlink(missing_ok=True)
        return run

    def save_model(self, tensors: dict[str, Tensor], name: str) -> None:
        """Writes NAME.safetensors beside its place, then renames it."""
        temporary = self.path / f".{name}.{os.getpid()}.part"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        temporary.chmod((self.path / "config.json").stat().st_mode & 0o777)  # safetensors would keep it from colleagues
        temporary.rename(self.path / f"{name}.safetensors")

    def load(self) -> tuple[Seq2Seq, Vocabularies]:
        """The best model in evaluation mode, and its vocabularies. Raises ValueError for missing or unfitting files."""
        config, weights = self.path / "config.json", self.path / "model.safetensors"
        for path in (config, weights):
            if not path.is_file():
                raise ValueError(f"found no {path}, expected the folder of a validated run: give --run the folder of hpcnmt train")
        try:
            content = json.loads(config.read_text("utf-8"))
            section, digest = content["model"], content["context"]["vocabulary"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{config} is not the configuration of a run ({error})") from error
        vocabularies = Vocabularies.read(self.path)
        model = build_model(from_mapping(ModelConfig, section, "model."), 0)
        if vocabularies.digest != digest:
            raise ValueError(
                f"found the vocabulary {vocabularies.digest[:12]} in {self.path}, expected {digest[:12]}: take that of the same run"
            )
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights} does not fit {config}: {error}") from error
        return model.requires_grad_(False).eval(), vocabularies

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"found no {path}, expected the folder of hpcnmt train")
        found = []
        for line in path.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not isinstance(record, dict) or "kind" not in record:
                raise ValueError(f"found {line[:40]!r} in {path}, expected the records of hpcnmt train")
            found.append(record)
        return found

    def staleness(self) -> list[Counter[int]]:
        """Pushes by staleness: of every shard, or of virtual time; empty before the run has ended, and without shards."""
        found = []
        for path in sorted(self.path.glob("shard-*.json")):
            try:
                found.append(_histogram(json.loads(path.read_text("utf-8"))["staleness"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is not the report of a shard ({error})") from error
        return found + [_histogram(record["staleness"]) for record in self.records() if record["kind"] == "end" and "staleness" in record]


def _histogram(staleness: dict[str, int]) -> Counter[int]:
    return Counter({int(steps): int(pushes) for steps, pushes in staleness.items()})
