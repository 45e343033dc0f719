"""`prepare`: text -> vocabulary and memory-mapped corpus, with filters that say what they dropped.

The result appears whole or not at all (whole_folder.py).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpcnmt.data.corpus import FORMAT_VERSION, write_split
from hpcnmt.data.textio import read_parallel
from hpcnmt.data.vocabulary import JOINT_FILE, SIDE_FILES, Vocabularies, train_vocabulary
from hpcnmt.data.whole_folder import refuse_existing_folder, whole_folder


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and the filters on training pairs (lengths in pieces)."""

    train_source: Path
    train_target: Path
    valid_source: Path
    valid_target: Path
    out: Path
    vocabulary_size: int = 4000
    """Pieces of the joint vocabulary, or of each of the two."""
    separate_vocabularies: bool = False
    max_length: int = 100
    max_length_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.max_length < 1 or not self.max_length_ratio >= 1.0:  # `not >=` refuses NaN too
            found = f"found --max-length {self.max_length} and --max-length-ratio {self.max_length_ratio}"
            raise ValueError(f"{found}, expected at least 1 for both")


@dataclass(frozen=True)
class PrepareReport:
    """What was kept and dropped."""

    train_pairs: int
    valid_pairs: int
    source_pieces: int
    target_pieces: int
    dropped: dict[str, int]


def drop_reason(source_length: int, target_length: int, config: PrepareConfig) -> str | None:
    """Why a training pair is dropped; None = kept."""
    if not source_length or not target_length:
        return "empty"
    if max(source_length, target_length) > config.max_length:
        return "too long"
    # short pairs have wild ratios by nature: two pieces of slack on both sides
    if max(source_length + 2, target_length + 2) > config.max_length_ratio * min(source_length + 2, target_length + 2):
        return "length ratio"
    return None


def prepare(config: PrepareConfig) -> PrepareReport:
    """Writes the prepared folder. Raises ValueError for missing or misaligned files, an existing folder, or nothing left to train on."""
    refuse_existing_folder(config.out)  # before texts are read
    train = read_parallel(config.train_source, config.train_target)
    valid = read_parallel(config.valid_source, config.valid_target)
    for number, pair in enumerate(valid, 1):
        for path, line in zip((config.valid_source, config.valid_target), pair, strict=True):
            if not line.strip():
                raise ValueError(f"{path}:{number}: found an empty line, expected a sentence: validation text is never filtered")
    with whole_folder(config.out) as work:
        return _write(config, train, valid, work)


def _train_vocabularies(config: PrepareConfig, train: list[tuple[str, str]], work: Path) -> Vocabularies:
    source, target = ([pair[index] for pair in train if pair[index].strip()] for index in (0, 1))
    for path, lines in ((config.train_source, source), (config.train_target, target)):
        if not lines:
            raise ValueError(f"found only empty lines in {path}, expected sentences")
    if config.separate_vocabularies:
        for name, lines in zip(SIDE_FILES, (source, target), strict=True):
            train_vocabulary(lines, work / name, config.vocabulary_size)
    else:
        train_vocabulary([line for pair in train for line in pair if line.strip()], work / JOINT_FILE, config.vocabulary_size)
    return Vocabularies.read(work)


def _write(config: PrepareConfig, train: list[tuple[str, str]], valid: list[tuple[str, str]], work: Path) -> PrepareReport:
    vocabularies = _train_vocabularies(config, train, work)
    sides = (vocabularies.source, vocabularies.target)
    dropped: Counter[str] = Counter()
    kept: dict[str, list[list[int]]] = {"source": [], "target": []}
    for source, target in zip(*(side.encode([pair[index] for pair in train]) for index, side in enumerate(sides)), strict=True):
        reason = drop_reason(len(source), len(target), config)
        if reason:
            dropped[reason] += 1
        else:
            kept["source"].append(source)
            kept["target"].append(target)
    if not kept["source"]:
        raise ValueError(f"no training pair is left of {len(train)} (dropped: {dict(dropped)}): loosen --max-length or --max-length-ratio")
    names = ("source", "target")
    valid_ids = {name: side.encode([pair[index] for pair in valid]) for index, (name, side) in enumerate(zip(names, sides, strict=True))}
    largest = max(side.size for side in sides)
    splits = {split: write_split(work, split, ids, largest) for split, ids in (("train", kept), ("valid", valid_ids))}
    for index, name in enumerate(names):
        (work / f"valid.{name}.txt").write_text("".join(pair[index] + "\n" for pair in valid), "utf-8")
    description = {
        "format_version": FORMAT_VERSION, "vocabulary_size": vocabularies.target.size,
        "source_vocabulary_size": vocabularies.separate_source_size, "vocabulary_digest": vocabularies.digest,
        "splits": splits, "dropped": dict(dropped),
    }  # fmt: skip
    (work / "corpus.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return PrepareReport(len(kept["source"]), len(valid), vocabularies.source.size, vocabularies.target.size, dict(dropped))
