"""Every reader of outside input with what feeds it: valid files, how to change them, and the call that has to take or refuse them.

An input is a mapping of file names to changed contents. Readers of checksummed files get half of their inputs sealed anew (the checksum
fits what was changed), so that the checks behind the checksum are reached too. Used by worker.py and tests/unit/test_fuzz_readers.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import samples
from tests.fuzz.mutate import (
    TEXTS,
    YAML_PIECES,
    json_text,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_packed,
    mutate_text,
    mutate_yaml,
    weird,
)

Files = dict[str, bytes]
Make = Callable[[Files, random.Random], Files]
DRAWN_ONE_IN = 100
"""Drawing takes a thousand times as long as reading: pictures of one input in so many are drawn."""


TRANSLATED_ONE_IN = 10


@dataclass(frozen=True)
class Reader:
    """What is fuzzed under one name."""

    prepare: Callable[[Path], None]
    """Writes valid files into an empty folder."""
    make: Make
    """Valid files and chance -> the changed ones."""
    read: Callable[[Path, int], object]
    """Reads the folder, for input of this number."""


def _mutate(name: str, data: bytes, chance: random.Random) -> bytes:
    ending = name.rpartition(".")[2]
    if ending in ("json", "COMPLETE"):
        return mutate_json(data, chance)
    if ending == "jsonl":
        return mutate_lines(data, chance)
    if ending in ("yaml", "yml"):
        return mutate_yaml(data, chance)
    if ending in ("gz", "xz"):
        return mutate_packed(data, chance, ending)
    return mutate_bytes(data, chance)


def one_of(weights: dict[str, int] | None = None) -> Make:
    """Changes one file, now and then two; the likelier, the larger its weight (default: all alike)."""

    def make(originals: Files, chance: random.Random) -> Files:
        names = weights or dict.fromkeys(originals, 1)
        chosen = chance.choices(list(names), list(names.values()), k=chance.choice((1, 1, 1, 1, 2)))
        return {name: _mutate(name, originals[name], chance) for name in chosen}

    return make


# ---- recipes ----


@functools.cache
def _options() -> list[tuple[str, Any]]:
    from hpcnmt.bench.runs import flat_options
    from hpcnmt.training.recipe import Recipe

    return list(flat_options(dataclasses.asdict(Recipe())).items())


def _make_set(_: Files, chance: random.Random) -> Files:
    lines = []
    for _number in range(chance.choice((1, 1, 2, 5))):
        name, value = chance.choice(_options())
        kind = chance.randrange(5)
        text = {0: json_text(weird(chance)), 1: chance.choice(YAML_PIECES), 2: json.dumps(value), 3: chance.choice(TEXTS)}.get(kind)
        line = f"{name}={text if text is not None else chance.choice((-1, 0, 1, 2, 10**9, 1e-3, 'true'))}"
        lines.append(mutate_text(line, ("=", ".", "..", *YAML_PIECES), chance).decode("utf-8", "replace") if kind == 4 else line)
    return {"set.json": json.dumps(lines).encode()}


def _make_recipe(originals: Files, chance: random.Random) -> Files:
    """Some sections only: reading YAML is slow."""
    lines = originals["recipe.yaml"].decode().splitlines()
    chosen = sorted(chance.sample(range(len(lines)), chance.choice((1, 2, 2, 3, 5))))
    text = "\n".join(lines[i] for i in chosen).encode() + b"\n"
    return {"recipe.yaml": _mutate("recipe.yaml", text, chance)}


def _read_recipe(folder: Path, _: int) -> None:
    from hpcnmt.config import override, read_yaml
    from hpcnmt.training.recipe import build_recipe

    recipe = build_recipe(override(read_yaml(folder / "recipe.yaml"), ["training.seed=2"]))
    recipe.layout(1000, 2, 1)


def _read_set(folder: Path, _: int) -> None:
    from hpcnmt.config import override
    from hpcnmt.training.recipe import build_recipe

    build_recipe(override({"worker": {"delay": 2}, "model": {}}, json.loads((folder / "set.json").read_text())))


def _read_grid(folder: Path, _: int) -> None:
    from hpcnmt.bench.grid import read_grid

    grid = read_grid(folder / "grid.yaml")
    for name in grid.policies:
        grid.settings(name)


# ---- data ----


def _read_text(folder: Path, number: int) -> None:
    from hpcnmt.data.textio import read_parallel

    read_parallel(folder / ("source.txt.gz" if number % 2 else "source.txt.xz"), folder / "target.txt")


def _read_corpus(folder: Path, _: int) -> None:
    from hpcnmt.data.corpus import TokenCorpus
    from hpcnmt.data.loader import LoaderConfig, ordered_batches
    from hpcnmt.training.recipe import Recipe
    from hpcnmt.training.setup import check_sizes

    corpus = TokenCorpus(folder, "train")
    for batch in ordered_batches(corpus, 100):
        if int(batch.source_ids.min()) < 0 or int(batch.target_ids.max()) >= samples.VOCABULARY_LIMIT:
            raise AssertionError("ids beyond the vocabulary came through")
    recipe = Recipe(loader=LoaderConfig(batch_words=50))
    check_sizes(recipe, folder, 2, 1)


def _read_vocabulary(folder: Path, _: int) -> None:
    from hpcnmt.data.vocabulary import Vocabularies

    vocabularies = Vocabularies.read(folder)
    ids = vocabularies.source.encode(["the red house", "ü\u2581\ud7ff x" * 20, ""])
    for row in ids:
        vocabularies.target.decode(row)
    vocabularies.target.decode(list(range(min(vocabularies.target.size, 200))))


def _read_position(folder: Path, _: int) -> None:
    from hpcnmt.data.position import pool
    from hpcnmt.reading import read_json

    pool(read_json(folder / "states.json", [object]), 3, lambda epoch: 20)


# ---- run folders ----


def _make_checkpoint(originals: Files, chance: random.Random) -> Files:
    found = one_of()(originals, chance)
    return samples.seal_checkpoint(originals | found) if chance.random() < 0.6 else found


def _read_checkpoint(folder: Path, _: int) -> None:
    from hpcnmt.training.checkpoint_files import newest_complete

    said: list[str] = []
    checkpoint = newest_complete(folder, say=said.append)
    if any(len(line.splitlines()) != 1 for line in said):
        raise AssertionError("a remark of several lines")
    if checkpoint is not None:
        checkpoint.check()


def _make_model(originals: Files, chance: random.Random) -> Files:
    found = one_of({"config.json": 4, "model.safetensors": 4, "vocab.model": 2})(originals, chance)
    return samples.seal_run(originals, found) if "vocab.model" in found and chance.random() < 0.7 else found


def _read_model(folder: Path, number: int) -> None:
    from hpcnmt.inference.beam import BeamConfig
    from hpcnmt.inference.translate import translate_lines
    from hpcnmt.training.run_folder import RunFolder

    model, vocabularies = RunFolder(folder).load()
    if number % TRANSLATED_ONE_IN == 0:
        translate_lines(model, vocabularies, ["the red house"], BeamConfig(1, max_length_factor=1.0), 1)


def _read_metrics(folder: Path, _: int) -> None:
    from hpcnmt.bench.runs import training_seconds
    from hpcnmt.training.run_folder import VALIDATION, RunFolder
    from hpcnmt.training.summary import print_summary

    training_seconds(RunFolder(folder).fields("validation", VALIDATION), "async")
    with _quiet():
        print_summary(folder)


def _read_advice(folder: Path, number: int) -> None:
    from hpcnmt import cli
    from hpcnmt.advise import advise

    arguments = cli._parser().parse_args(["advise", "--run", str(folder), *["--json"] * (number % DRAWN_ONE_IN != 0)])
    with _quiet():
        advise(arguments)


def _read_statuses(folder: Path, _: int) -> None:
    from hpcnmt.training.status_table import show_status

    with _quiet():
        show_status(folder, False, False)
        show_status(folder, False, True)


def _read_traces(folder: Path, _: int) -> None:
    from hpcnmt.training.trace import read_traces, totals

    totals(read_traces(folder))


def _read_staleness(folder: Path, _: int) -> None:
    from hpcnmt.bench.runs import mean_staleness
    from hpcnmt.training.run_folder import RunFolder

    for counts in RunFolder(folder).staleness():
        mean_staleness({str(steps): pushes for steps, pushes in counts.items()})


# ---- results ----


def _make_results(originals: Files, chance: random.Random) -> Files:
    name = chance.choice([name for name in originals if name != "chosen.json"])
    return {"chosen.json": _mutate(name, originals[name], chance)}


def _read_results(folder: Path, number: int) -> None:
    from hpcnmt.bench.report import write_report
    from hpcnmt.bench.results import Results

    path = folder / "chosen.json"
    with contextlib.nullcontext() if number % DRAWN_ONE_IN == 0 else samples.without_pictures():
        write_report([path], folder / "report.html")
    Results(path, "throughput", {"batches_s": [0.1, 0.4], "rounds": 3}).points.get("x")


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        yield errors


def _lone(name: str, content: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(content()), "utf-8") and None


READERS: dict[str, Reader] = {
    "recipe": Reader(samples.write_recipe, _make_recipe, _read_recipe),
    "set": Reader(_lone("set.json", list), _make_set, _read_set),
    "grid": Reader(samples.write_grid, one_of(), _read_grid),
    "text": Reader(samples.write_text, one_of(), _read_text),
    "corpus": Reader(samples.write_corpus, samples.make_corpus(one_of(samples.CORPUS_WEIGHTS)), _read_corpus),
    "vocabulary": Reader(samples.write_vocabulary, one_of(), _read_vocabulary),
    "position": Reader(_lone("states.json", samples.states), one_of(), _read_position),
    "checkpoint": Reader(samples.write_checkpoint, _make_checkpoint, _read_checkpoint),
    "model": Reader(samples.write_model, _make_model, _read_model),
    "metrics": Reader(samples.write_metrics, one_of(), _read_metrics),
    "advise": Reader(samples.write_advisable, one_of(), _read_advice),
    "status": Reader(samples.write_statuses, one_of(), _read_statuses),
    "trace": Reader(samples.write_traces, one_of(), _read_traces),
    "shards": Reader(samples.write_shards, one_of(), _read_staleness),
    "results": Reader(samples.write_results, _make_results, _read_results),
}  # fmt: skip
