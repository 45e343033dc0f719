"""Small valid files of every kind, the same in every process, and checksums put right after a change. Used by readers.py."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import lzma
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from hpcnmt.training.checkpoint_files import Part, commit, part_folder, write_part
from hpcnmt.training.checkpoint_format import content_sha256
from tests.fuzz.scratch import scratch

Files = dict[str, bytes]
VOCABULARY_LIMIT = 60
"""Pieces in the sample vocabulary, at most."""
WORDS = "red green blue house tree river walks sees the a small large".split()
CORPUS_WEIGHTS = {
    "corpus.json": 12, "vocab.model": 1, "train.source.ids": 1, "train.target.ids": 1, "train.source.offsets": 1, "train.target.offsets": 1,
    "valid.target.ids": 1, "valid.source.txt": 1,
}  # fmt: skip
RECIPE = """\
# as a user writes it
model: {type: transformer, embedding_dim: 16, heads: 2, encoder_layers: 1, decoder_layers: 1, feedforward_dim: 16}
loader: {batch_words: 50, max_epochs: 2}
worker: {delay: 2, overlap: 1, local: {mode: always, learning_rate_factor: 0.5, optimizer: {beta1: 0.5}}}
optimizer: {beta1: 0.9, beta2: 0.98, later: {words: 1000, beta1: 0.5, gradual: true}}
schedule: {learning_rate: 1e-3, warmup_words: 1000, decay: constant}
shard: {buffer_pushes: 2}
training: {mode: async, max_target_words: 100000, trace: true}
validation: {every_words: 1000, patience: 3, stop_on: [bleu, chrf], keep_best_by: bleu}
deadlines: {peer_s: 70}
"""
GRID = """\
recipe: sample
set: [training.max_target_words=3000]
baseline: async
target: {cross_entropy: 2.8, bleu: 20}
policies:
  async: {workers: 4}
  beta1-0: {workers: 4, set: [optimizer.beta1=0.0]}
  synchronous: {workers: 4, mode: sync-equivalent}
  lr2: {workers: 4, mode: sync-equivalent, set: [schedule.learning_rate=2.0e-3], trial_of: synchronous}
"""


def _sentences(count: int) -> list[str]:
    chance = random.Random(7)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(count)]


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), "utf-8")


def write_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")


def write_grid(folder: Path) -> None:
    (folder / "grid.yaml").write_text(GRID, "utf-8")


def write_text(folder: Path) -> None:
    text = "".join(f"{line}\n" for line in [*_sentences(20), "ein Straßenfest", ""]).encode()
    (folder / "target.txt").write_bytes(text)
    (folder / "source.txt.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "source.txt.xz").write_bytes(lzma.compress(text))


@functools.cache
def _prepared() -> Path:
    """A prepared folder, made once a process."""
    from hpcnmt.data.prepare import PrepareConfig, prepare

    work = scratch()
    lines = _sentences(60)
    for name, part in (("train", lines[:50]), ("valid", lines[50:])):
        (work / f"{name}.txt").write_text("\n".join(part) + "\n", "utf-8")
    prepare(PrepareConfig(work / "train.txt", work / "train.txt", work / "valid.txt", work / "valid.txt", work / "out", VOCABULARY_LIMIT))
    return work


def remove_prepared() -> None:
    """Takes away what was made for the whole process."""
    if _prepared.cache_info().currsize:
        shutil.rmtree(_prepared(), ignore_errors=True)
        _prepared.cache_clear()


def write_corpus(folder: Path) -> None:
    for path in (_prepared() / "out").iterdir():
        shutil.copyfile(path, folder / path.name)


def make_corpus(make: Callable[[Files, random.Random], Files]) -> Callable[[Files, random.Random], Files]:
    """Half of the changed arrays get their checksums put right in corpus.json."""

    def sealed(originals: Files, chance: random.Random) -> Files:
        found = make(originals, chance)
        if "corpus.json" not in found and chance.random() < 0.7:
            description = json.loads(originals["corpus.json"])
            files = originals | found
            for split, entry in description["splits"].items():
                for side in ("source", "target"):
                    ids, offsets = files[f"{split}.{side}.ids"], files[f"{split}.{side}.offsets"]
                    entry[f"{side}_sha256"] = hashlib.sha256(ids + offsets).hexdigest()
                    entry[f"{side}_tokens"] = len(ids) // 2
            description["vocabulary_digest"] = hashlib.sha256(files["vocab.model"]).hexdigest()
            found["corpus.json"] = json.dumps(description).encode()
        return found

    return sealed


def write_vocabulary(folder: Path) -> None:
    shutil.copyfile(_prepared() / "out" / "vocab.model", folder / "vocab.model")


def states() -> list[dict[str, Any]]:
    """Of two workers with backlogs."""
    data = {"seed": 1, "batch_words": 50, "sentences": 100, "vocabulary": "0" * 64, "world": 2, "epoch": 3}
    return [data | {"rank": 0, "next_index": 4, "backlog": [[1, 2], [2, 5]]}, data | {"rank": 1, "next_index": 9, "backlog": []}]


# ---- run folders ----


def write_checkpoint(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").write_bytes(b"model")
    for number in (1, 2):
        for name in ("worker-0", "shard-0"):
            tensors = {"parameters": torch.arange(6.0).reshape(2, 3), "moments": torch.zeros(4, dtype=torch.bfloat16)}
            write_part(part_folder(folder, number), name, Part(tensors, {"words": 5, "loader": states()[0], "best": {"bleu": 3.5}}))
        commit(folder, number, ("worker-0", "shard-0"), {"model.safetensors": folder / "model.safetensors"}, words=number)


def seal_checkpoint(files: Files) -> Files:
    """All files of a checkpoint, with the checksums in COMPLETE (and the size in NAME.json) put right, as far as they can be read."""
    for folder in ("checkpoints/cut-00000001", "checkpoints/cut-00000002"):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            outer = json.loads(files[f"{folder}/COMPLETE"])
            content = outer["content"]
            for name in ("worker-0", "shard-0"):
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    about = json.loads(files[f"{folder}/{name}.json"])
                    if about["bytes"] != len(files[f"{folder}/{name}.safetensors"]) and isinstance(about["bytes"], int):
                        about["bytes"] = len(files[f"{folder}/{name}.safetensors"])
                        files[f"{folder}/{name}.json"] = json.dumps(about).encode()
                content["parts"][name] = hashlib.sha256(files[f"{folder}/{name}.json"]).hexdigest()
            outer["sha256"] = content_sha256(content)
            files[f"{folder}/COMPLETE"] = json.dumps(outer).encode()
    return files


def _recipe() -> Any:
    from hpcnmt.training.recipe import build_recipe

    model = {"type": "transformer", "embedding_dim": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward_dim": 8}
    return build_recipe({"model": model, "worker": {"delay": 2}})


def write_model(folder: Path) -> None:
    from safetensors.torch import save_file

    from hpcnmt.data.vocabulary import Vocabularies
    from hpcnmt.models.build import build_model
    from hpcnmt.training.setup import _sized

    write_vocabulary(folder)
    content = asdict(_recipe())
    model = _sized(_recipe().model, _prepared() / "out")
    content["model"] = asdict(model)
    _json(folder / "config.json", content | {"context": {"vocabulary": Vocabularies.read(folder).digest, "workers": 2, "shards": 1}})
    save_file({name: tensor.contiguous() for name, tensor in build_model(model, 1).state_dict().items()}, folder / "model.safetensors")


def seal_run(originals: Files, found: Files) -> Files:
    """With the digest of the changed vocabulary in config.json."""
    content = json.loads(originals["config.json"])
    content["context"]["vocabulary"] = hashlib.sha256(found["vocab.model"]).hexdigest()
    return found | {"config.json": json.dumps(content).encode()}


def _records() -> list[dict[str, Any]]:
    validation = {"cross_entropy": 3.5, "bleu": 10.0, "chrf": 30.0, "took_s": 0.5, "bleu_signature": "nrefs:1"}
    common = {"seconds": 1.5, "target_words": 1000}
    end = {
        "train_s": 10.0, "validating_s": 1.0, "target_words_per_s": 100.0, "source_words_per_s": 90.0, "total_words_per_s": 190.0,
        "shares": {"compute": 0.8, "wait": 0.1, "copy": 0.02}, "loader_wait_s": 0.1, "padding_share": 0.1, "staleness": {"0": 3, "2": 5},
    }  # fmt: skip
    return [
        {"kind": "training", "cross_entropy": 4.0, "target_words_per_s": 99.0} | common, {"kind": "validation"} | common | validation,
        {"kind": "validation"} | common | validation | {"target_words": 2000}, {"kind": "end"} | common | end,
    ]  # fmt: skip


def write_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in _records()), "utf-8")
    _json(folder / "evaluation.json", {"bleu": 30.0, "chrf": 50.0, "sentences": 10, "bleu_signature": "x"})


def write_shards(folder: Path) -> None:
    write_metrics(folder)
    (folder / "evaluation.json").unlink()
    for index in range(2):
        _json(folder / f"shard-{index}.json", {"updates": 8, "target_words": 900, "staleness": {"0": 3, "1": 5}, "untouched_elements": 0})


def write_advisable(folder: Path) -> None:
    write_shards(folder)
    _json(folder / "config.json", asdict(_recipe()) | {"context": {"workers": 2, "shards": 2, "vocabulary": "0" * 64}})


def write_statuses(folder: Path) -> None:
    from hpcnmt.training.status import RankStatus

    (folder / "status").mkdir()
    seconds = {"compute": 5.0, "wait": 1.0, "exchange": 2.0}
    for rank, (role, index) in enumerate((("worker", 0), ("worker", 1), ("shard", 0))):
        counters = {"version": 5, "target_words": 100, "staleness_mean": 1.5, "pushes_waiting": 1} if role == "shard" else {"windows": 3}
        now = {"main": ("wait", "for shard 0", 0.5), "exchange": ("push", "", 0.1)}
        status = RankStatus(role, index, rank, "host", 12, "running", "", 1.7e9, 1.7e9 + 10, now, seconds, counters)
        _json(folder / "status" / f"{role}-{index}.json", asdict(status))


def write_traces(folder: Path) -> None:
    from hpcnmt.distributed.activity import Activity
    from hpcnmt.training.trace import write_trace

    (folder / "trace").mkdir()
    for index in range(2):
        activity = Activity("worker", index, trace=True)
        for number in range(5):
            activity.add("compute", 100.0 + number, 100.5 + number, "x", "main")
        write_trace(folder / "trace" / f"worker-{index}.json", activity, index)


# ---- results ----


def write_results(folder: Path) -> None:
    from tests.report_samples import SAMPLES

    for name, sample in SAMPLES.items():
        content = sample()
        content["points"] = dict(list(content["points"].items())[:3])
        for point in content["points"].values():
            point.update({name: point[name][:2] for name in ("curve", "memory", "rounds") if name in point})
        content["summary"] = {name: value[:2] if isinstance(value, list) else value for name, value in content["summary"].items()}
        _json(folder / f"{name}.json", content)
    shutil.copyfile(folder / "throughput.json", folder / "chosen.json")


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """hpcnmt report that reads and writes everything but pictures."""
    from hpcnmt.bench import report

    with contextlib.ExitStack() as stack:
        for module, names in (
            (report.pictures, "speedup shares async_to_sync staleness time_to_bleu quality comm memory"),
            (report.ablation, "against_words against_seconds differences staleness"),
        ):  # fmt: skip
            for name in names.split():
                stack.enter_context(mock.patch.object(module, name, lambda results: None))
        yield
