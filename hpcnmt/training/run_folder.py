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
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcnmt.config import from_mapping
from hpcnmt.data.vocabulary import Vocabularies, copy_vocabularies
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig, Seq2Seq
from hpcnmt.reading import FINITE, check, parse_json, read_json, short
from hpcnmt.training.recipe import Recipe

LOCK_WAIT_S = 30.0
OF_A_RUN = ("metrics.jsonl", "tensorboard", "model.safetensors", "final.safetensors", "record")
"""What a run that begins anew must not find of an older one."""
_FINITE = "seconds took_s simulated_s train_s padding_share source_words_per_s target_words_per_s total_words_per_s".split()
_RECORD: dict[str, object] = {"kind": str, "target_words?": int, "shares?": {str: FINITE}, "staleness?": {str: int}}
_RECORD |= {f"{name}?": FINITE for name in _FINITE} | {f"{name}?": float for name in ("cross_entropy", "bleu", "chrf")}
VALIDATION = ("target_words", "seconds", "took_s", "cross_entropy", "bleu", "chrf")
"""Fields that every record of a validation has."""
END = ("target_words", "train_s", "padding_share")
"""Fields that the record of an end has in every mode."""


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

    _held: ClassVar[dict[tuple[int, int], IO[bytes]]] = {}
    """Locks of this process by device and number of the file: held until it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def hold(self, wait_s: float = LOCK_WAIT_S) -> None:
        """Makes this process the only one that trains into the folder, until it ends, however it ends. May be called again.

        After a failed node an older job may still be running, unseen by Slurm. Raises ValueError when it does not end within `wait_s`.
        """
        file, begin = (self.path / ".lock").open("ab"), time.monotonic()
        about = os.fstat(file.fileno())
        place = about.st_dev, about.st_ino
        if place in self._held:
            file.close()
            return
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held[place] = file
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
        replace_file(path / "config.json", json.dumps(asdict(recipe) | {"context": context}, indent=2) + "\n")
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
        content = read_json(config, {"model": {str: object}, "context": {"vocabulary": str}})
        vocabularies = Vocabularies.read(self.path)
        if vocabularies.digest != (digest := content["context"]["vocabulary"]):
            raise ValueError(
                f"found the vocabulary {vocabularies.digest[:12]} in {self.path}, expected {digest[:12]}: take that of the same run"
            )
        shape = from_mapping(ModelConfig, content["model"], "model.")
        _expect_sizes(shape, vocabularies, config)
        try:
            tensors = load_file(weights)
            _expect_shapes(shape, tensors)
            model = build_model(shape, 0)
            model.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{weights} does not fit {config}: {error}") from error
        return model.requires_grad_(False).eval(), vocabularies

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"found no {path}, expected the folder of hpcnmt train")
        found = []
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            where = f"{path}:{number}"
            try:
                record = parse_json(line, where)
            except ValueError:
                break
            found.append(check(record, _RECORD, where))
        return found

    def fields(self, kind: str, names: Iterable[str]) -> list[dict[str, Any]]:
        """The records of this kind. Raises ValueError where one lacks any of the fields `names`."""
        chosen = [record for record in self.records() if record["kind"] == kind]
        return [check(record, dict.fromkeys(names, object), self.path / "metrics.jsonl", f"a record {kind}") for record in chosen]

    def staleness(self) -> list[Counter[int]]:
        """Pushes by staleness: of every shard, or of virtual time; empty before the run has ended, and without shards."""
        found = []
        for path in sorted(self.path.glob("shard-*.json")):
            try:
                found.append(_histogram(read_json(path, {"staleness": {str: int}})["staleness"], path))
            except ValueError as error:
                raise ValueError(f"{path} is not the report of a shard ({error})") from error
        ends = [record for record in self.records() if record["kind"] == "end" and "staleness" in record]
        return found + [_histogram(record["staleness"], self.path / "metrics.jsonl") for record in ends]


def _histogram(staleness: dict[str, int], where: Path) -> Counter[int]:
    for steps, pushes in staleness.items():
        if not (steps.isascii() and steps.isdigit() and len(steps) < 19) or pushes < 0:
            raise ValueError(f"found {short(steps)}: {pushes} for staleness in {where}, expected pushes by steps")
    return Counter({int(steps): pushes for steps, pushes in staleness.items()})


def _expect_sizes(model: ModelConfig, vocabularies: Vocabularies, config: Path) -> None:
    found, expected = (model.vocabulary_size, model.source_vocabulary_size), (vocabularies.target.size, vocabularies.separate_source_size)
    if found != expected:
        raise ValueError(f"found the vocabulary sizes {found} in {config}, expected {expected}, those of the vocabularies beside it")


def _expect_shapes(model: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Compares sizes before memory is taken for them. Raises RuntimeError."""
    if model.encoder_layers + model.decoder_layers > len(tensors):
        raise RuntimeError(f"found {len(tensors)} tensors for {model.encoder_layers} + {model.decoder_layers} layers")
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in build_model(model, 0).state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        name = next(name for name in [*expected, *found] if expected.get(name) != found.get(name))
        raise RuntimeError(f"found {short(found.get(name))} for {short(name)}, expected {short(expected.get(name))}")
