"""What every mode needs first: the model on flat parameters, batches as gradients, and the run folder with its journal."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import hpcnmt
from hpcnmt import ops
from hpcnmt.data.batching import Batch, plan_epoch
from hpcnmt.data.corpus import SIDES, TokenCorpus, read_description
from hpcnmt.data.textio import read_lines
from hpcnmt.data.vocabulary import Vocabularies
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.worker import BatchCounts
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig, Seq2Seq
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.training.journal import Journal
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.resume import Resumed
from hpcnmt.training.run_folder import RunFolder
from hpcnmt.training.validation import Validation


def _sized(model: ModelConfig, data: Path) -> ModelConfig:
    """`model` for the vocabularies of the prepared folder `data`."""
    description = read_description(data)
    source_size = description.get("source_vocabulary_size", 0)
    return replace(model, vocabulary_size=description["vocabulary_size"], source_vocabulary_size=source_size)


@dataclass
class Trainee:
    """The model of one process, on flat parameters."""

    recipe: Recipe
    data: Path
    model: Seq2Seq
    flat: FlatParameters

    @classmethod
    def build(cls, recipe: Recipe, data: Path, device: torch.device | None = None) -> Trainee:
        """Builds the model for the vocabulary of the prepared folder `data` on `device` (default: CPU)."""
        recipe = replace(recipe, model=_sized(recipe.model, data))
        model = build_model(recipe.model, recipe.training.seed).to(device or torch.device("cpu"))
        return cls(recipe, data, model, FlatParameters(model))

    def seed_worker(self, worker: int) -> None:
        """Dropout differs between workers; threads as configured."""
        torch.set_num_threads(self.recipe.training.threads)
        torch.manual_seed(self.recipe.training.seed * 1000 + worker)

    def add_gradient(self, batch: Batch, counted: Callable[[BatchCounts], None] | None = None) -> BatchCounts:
        """Forward and backward: adds the gradient of the summed loss to the flat gradients; calls `counted` between the two.

        Raises RuntimeError that names the batch when there is not enough memory for it.
        """
        try:
            loss, entropy = self.model.loss_sum(batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths)
            counts = BatchCounts(batch.target_words, batch.source_words, len(batch.sentence_ids), float(entropy))
            if counted is not None:
                counted(counts)
            torch.autograd.backward(loss)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise RuntimeError(_too_large(batch, self.model.device)) from error
        return counts

    def open_run(self, path: Path, workers: int, shards: int, mpi: str, resumed: Resumed | None = None) -> tuple[Journal, Validation]:
        """Creates the run folder, or goes on with it; returns its journal and its validation."""
        context = {
            "hpcnmt": hpcnmt.__version__, "torch": torch.__version__, "python": platform.python_version(), "mpi": mpi,
            "kernels": ops.IN_USE, "device": self.model.device.type,
            "workers": workers, "shards": shards, "parameters": self.flat.size, "data": str(self.data),
        }  # fmt: skip
        most = self.recipe.training.max_target_words
        if resumed is None:
            run, journal = RunFolder.create(path, self.recipe, self.data, context), Journal(path, most)
        else:
            lost_words = resumed.lost_words(path)
            run = RunFolder.reopen(path, self.recipe, context, resumed.number, resumed.best)
            journal = Journal(path, most, resumed.journal, resumed.target_words)
            about = {"checkpoint": resumed.number, "lost_target_words": lost_words, "workers": workers, "shards": shards}
            journal.record("resume", resumed.target_words, about)
            journal.say(f"resumed from checkpoint {resumed.number} at {resumed.target_words} target words")
        journal.say(f"{self.flat.size} parameters, {workers} workers, {shards} shards, mode {self.recipe.training.mode}; run folder {path}")
        journal.say(f"device: {self.model.device}; kernels: {ops.IN_USE}")
        validation = Validation(self.recipe.validation, self.model, self.flat, self.data, run, journal)
        if resumed is not None:
            validation.load(resumed.validation)
        return journal, validation


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says so: Python's, that of a GPU, or that of torch's allocator on CPUs, which has no class of its own."""
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in said or "can't allocate memory" in said


def _too_large(batch: Batch, device: torch.device) -> str:
    (sentences, source_length), target_length = batch.source_ids.shape, batch.target_ids.shape[1]
    return (
        f"out of memory on {device} with a batch of {sentences} sentences x {source_length} source pieces, x {target_length} target pieces"
        f", {batch.source_words} + {batch.target_words} words, training sentences {', '.join(map(str, batch.sentence_ids[:5]))} ...: lower "
        f"loader.batch_words, or leave long sentences out with hpcnmt prepare --max-length"
    )


def choose_device(recipe: Recipe, local_worker: int) -> torch.device:
    """Device of the worker that is number `local_worker` on its host; makes a GPU the current one.

    Raises ValueError for a GPU that is asked for and not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if recipe.training.device == "cuda" and count == 0:
        raise ValueError("training.device is cuda, found no usable GPU: hpcnmt doctor says why; or set training.device to cpu")
    if recipe.training.device == "cpu" or count == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_worker % count)
    torch.cuda.set_device(device)
    return device


def check_corpus(data: Path) -> None:
    """Checks that the prepared folder `data` is whole and of one vocabulary, before a run folder is made. Raises ValueError."""
    digest = Vocabularies.read(data).digest
    train, valid = TokenCorpus(data, "train", digest), TokenCorpus(data, "valid", digest)
    for corpus in (train, valid):
        corpus.check()
    sentences = len(valid)
    for path in (data / f"valid.{side}.txt" for side in SIDES):
        found = sum(1 for _ in read_lines(path))
        if found != sentences:
            raise ValueError(f"found {found} lines in {path}, expected {sentences}: the corpus is damaged, run hpcnmt prepare again")


def check_sizes(recipe: Recipe, data: Path, workers: int, shards: int) -> Layout:
    """Checks before any rank starts: the corpus, slices, enough batches. Returns the layout; raises ValueError."""
    check_corpus(data)
    with torch.device("meta"):
        model = build_model(_sized(recipe.model, data), 0)
    layout = recipe.layout(sum(p.numel() for p in model.parameters()), workers, shards)
    corpus = TokenCorpus(data, "train")
    batches = len(plan_epoch(corpus.source_lengths, corpus.target_lengths, recipe.loader.batch_words, recipe.loader.seed, 0))
    if batches < workers:
        raise ValueError(f"found {batches} batches in an epoch for {workers} workers: use fewer --workers or a smaller loader.batch_words")
    return layout
