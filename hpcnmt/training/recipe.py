"""The configuration of a training run: one frozen dataclass for each section of a recipe, and the checks across sections."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

from hpcnmt.config import from_mapping
from hpcnmt.data.loader import LoaderConfig
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.layout import Layout, default_ring_slots
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.synchronous import SyncConfig
from hpcnmt.distributed.virtual import ClockConfig
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.models.seq2seq import ModelConfig
from hpcnmt.optim.adam import AdamConfig
from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.update import UpdateConfig
from hpcnmt.training.checkpoint import CheckpointConfig
from hpcnmt.training.divergence import DivergenceConfig

Metric = Literal["cross_entropy", "bleu", "chrf"]


@dataclass(frozen=True)
class TrainingConfig:
    """Mode and length of the run."""

    mode: Literal["async", "sync", "plain", "virtual"] = "async"
    """async: workers and shards over MPI; sync: workers that sum every gradient (the baseline); plain: one process without an engine;
    virtual: logical workers in one process, simulated time."""
    max_target_words: int = 1_000_000
    ema_alpha: float = 0.0
    seed: int = 1
    threads: int = 1
    """Torch threads of each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute: auto takes a GPU where there is one, spread over the workers of a host. Shards stay on CPUs."""
    ring_slots: int = 0
    """Versions a shard keeps published, more where pulls are rejected often; 0: workers + 2, at least 4 and at most 8."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """Type of pushed gradients; bf16 halves their bytes, and each worker sends later what rounding has left behind."""
    trace: bool = False
    """Every rank keeps the spans of its activities and writes them to RUN/trace at its end."""
    record: bool = False
    """Every rank notes in RUN/record what depends on timing, so that `hpcnmt replay` can repeat the run bit for bit."""

    def __post_init__(self) -> None:
        for name in ("max_target_words", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}, expected at least 1")
        if self.ring_slots != 0 and self.ring_slots < 3:
            raise ValueError(f"training.ring_slots is {self.ring_slots}, expected 0 (as the workers need) or at least 3")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"training.seed is {self.seed}, expected a number from 0 to 2**32 - 1")
        if not 0.0 <= self.ema_alpha < 1.0:
            raise ValueError(f"training.ema_alpha is {self.ema_alpha}, expected at least 0 (off) and less than 1")


@dataclass(frozen=True)
class ValidationConfig:
    """When and how to validate, and when to stop early."""

    every_words: int = 200_000
    """Global target words between two validations."""
    beam: int = 1
    patience: int = 0
    """Validations without a new best in ANY of `stop_on` before training stops; 0 = never."""
    stop_on: tuple[Metric, ...] = ("cross_entropy",)
    keep_best_by: Metric = "cross_entropy"

    def __post_init__(self) -> None:
        if self.every_words < 1 or self.beam < 1 or self.patience < 0:
            raise ValueError(
                f"found validation.every_words={self.every_words}, beam={self.beam}, patience={self.patience}; "
                "expected every_words and beam of at least 1 and patience of at least 0"
            )
        if self.patience and not self.stop_on:
            raise ValueError("validation.stop_on is empty, expected at least one metric with validation.patience above 0")


@dataclass(frozen=True)
class Recipe:
    """One training run. The vocabulary's size comes from the prepared corpus."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    shard: ShardPolicy = field(default_factory=ShardPolicy)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)
    clock: ClockConfig = field(default_factory=ClockConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)

    def layout(self, parameters: int, workers: int, shards: int) -> Layout:
        """Sizes of an asynchronous run."""
        return Layout(parameters, workers, shards, self.training.ring_slots or default_ring_slots(workers), self.training.wire)

    @property
    def update(self) -> UpdateConfig:
        """The update rule of shards, synchronous workers, plain loop and virtual time."""
        return UpdateConfig(self.optimizer, self.schedule, self.training.ema_alpha, self.worker.local.average)


_ENGINE = (
    "training.ring_slots", "training.wire", "training.record", "worker.overlap", "worker.overlap_from_words", "worker.local", "shard",
)  # fmt: skip
WITHOUT_EFFECT = {
    ("model.type", "gru"): ("model.heads", "model.feedforward_dim", "model.encoder_layers", "model.decoder_layers"),
    ("model.type", "transformer"): ("model.hidden_dim", "model.layer_norm"),
    ("training.mode", "async"): ("clock", "sync"),
    ("training.mode", "sync"): ("clock", *_ENGINE),
    ("training.mode", "plain"): ("clock", "deadlines", "sync", *_ENGINE),
    ("training.mode", "virtual"): ("deadlines", "sync", "checkpoint", "divergence", "training.record"),
    ("worker.local.mode", "off"): ("worker.local",),
    ("worker.local.mode", "always"): ("worker.local.warmup_words", "worker.local.warmup_batches"),
    ("worker.local.average", "True"):
        ("optimizer", "shard.clip_norm", "shard.damp_staleness", "shard.buffer_pushes", "schedule.restart_on_stall"),
    ("worker.local.mode", "compensate"):
        ("worker.local.warmup_words", "worker.local.warmup_batches", "worker.local.write_back", "worker.local.carry"),
    ("optimizer.later.words", "0"): ("optimizer.later",),
    ("worker.local.optimizer.later.words", "0"): ("worker.local.optimizer.later",),
    ("schedule.warmup", "rate"): ("schedule.normaliser_start",),
    ("validation.patience", "0"): ("validation.stop_on",),
}


def _value(recipe: Recipe, name: str) -> Any:
    place: Any = recipe
    for part in name.split("."):
        place = getattr(place, part)
    return place


def build_recipe(mapping: dict[str, Any]) -> Recipe:
    """The typed recipe. Raises ValueError for unknown options, wrong values and options without effect in the chosen mode."""
    recipe, default = from_mapping(Recipe, mapping), Recipe()
    for name in ("model.vocabulary_size", "model.source_vocabulary_size"):
        if _value(recipe, name) != _value(default, name):
            raise ValueError(f"{name} has no effect in a recipe: it is that of the prepared corpus, remove it")
    watches_stalls = recipe.schedule.restart_on_stall
    if watches_stalls and not recipe.validation.stop_on:
        raise ValueError("validation.stop_on is empty, expected at least one metric with schedule.restart_on_stall=True")
    for (chooser, value), names in WITHOUT_EFFECT.items():
        for name in names if str(_value(recipe, chooser)) == value else ():
            if name == "validation.stop_on" and watches_stalls:
                continue  # it says what a stall is
            if _value(recipe, name) != _value(default, name):
                how = f" (--set {name}={{}})" if is_dataclass(_value(default, name)) else ""
                raise ValueError(f"{name} has no effect with {chooser}={value}: remove it{how}, or change {chooser}")
    if recipe.worker.local.write_back and recipe.training.wire != "fp32":
        raise ValueError(
            f"found worker.local.write_back=true with training.wire={recipe.training.wire}, expected training.wire=fp32: "
            "parameters are not rounded"
        )
    return recipe
