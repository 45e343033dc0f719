"""The configuration of a training run, and its run folder: config.json, vocab.model, metrics.jsonl, model.safetensors (the best)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcnmt.config import from_mapping
from hpcnmt.data.loader import LoaderConfig
from hpcnmt.data.vocabulary import Vocabulary
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig, Seq2Seq
from hpcnmt.optim.adam import AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Length of the run and validation, on global target words."""

    max_target_words: int = 1_000_000
    validate_every_words: int = 200_000
    ema_decay: float = 0.0
    seed: int = 1
    threads: int = 1
    """Torch threads of a worker."""

    def __post_init__(self) -> None:
        for name in ("max_target_words", "validate_every_words", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}, expected at least 1")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"training.ema_decay is {self.ema_decay}, expected at least 0 (off) and less than 1")


@dataclass(frozen=True)
class Recipe:
    """One training run. The vocabulary's size comes from the prepared corpus."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)


class RunFolder:
    """Files of one run; created by worker 0, read by inference."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, recipe: dict[str, Any], vocabulary: Path) -> RunFolder:
        """Makes the folder; ValueError when it exists."""
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise ValueError(f"{path} exists already, expected a new run folder: choose another --run or remove it") from error
        (path / "config.json").write_text(json.dumps(recipe, indent=2) + "\n", "utf-8")
        shutil.copyfile(vocabulary, path / "vocab.model")
        return cls(path)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def save_model(self, tensors: dict[str, Tensor]) -> None:
        """Writes model.safetensors beside its place, then renames it."""
        temporary = self.path / ".model.safetensors.part"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.rename(self.path / "model.safetensors")

    def load(self) -> tuple[Seq2Seq, Vocabulary]:
        """The saved model in evaluation mode, and its vocabulary."""
        config, weights = self.path / "config.json", self.path / "model.safetensors"
        for path in (config, weights):
            if not path.is_file():
                raise ValueError(f"found no {path}, expected the folder of a validated run: give --run the folder of hpcnmt train")
        vocabulary = Vocabulary(self.path / "vocab.model")
        model = build_model(from_mapping(ModelConfig, json.loads(config.read_text("utf-8"))["model"], "model."), 0)
        if model.config.vocabulary_size != vocabulary.size:
            raise ValueError(f"found {vocabulary.size} pieces in {self.path}/vocab.model, expected {model.config.vocabulary_size}")
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights} does not fit {config}: {error}") from error
        torch.set_grad_enabled(False)
        return model.eval(), vocabulary
