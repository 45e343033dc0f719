"""A prepared corpus: token ids of one split as memory-mapped arrays, checked against its description before use.

Format (corpus.json, version 2): for every split and side `SPLIT.SIDE.ids` (uint16 or int32, little endian) and `SPLIT.SIDE.offsets` (int64,
sentences + 1). Written by prepare.py; read by training, validation and benchmarks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcnmt.data.batching import Ids

FORMAT_VERSION = 2
SIDES = ("source", "target")


def write_split(folder: Path, split: str, sides: dict[str, list[list[int]]], vocabulary_size: int) -> dict[str, Any]:
    """Writes one split; returns its entry for corpus.json."""
    dtype = np.dtype("<u2") if vocabulary_size <= 2**16 else np.dtype("<i4")
    entry: dict[str, Any] = {"dtype": dtype.str, "sentences": len(sides["source"])}
    for side, rows in sides.items():
        offsets = np.zeros(len(rows) + 1, "<i8")
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.fromiter((i for row in rows for i in row), dtype, int(offsets[-1]))
        flat.tofile(folder / f"{split}.{side}.ids")
        offsets.tofile(folder / f"{split}.{side}.offsets")
        entry[f"{side}_tokens"] = len(flat)
    return entry


def read_description(folder: Path) -> dict[str, Any]:
    """corpus.json of a prepared folder. Raises ValueError when it is missing, broken or of another version."""
    path = folder / "corpus.json"
    if not path.is_file():
        raise ValueError(f"found no {path}, expected a folder made by hpcnmt prepare: run hpcnmt prepare --out {folder} first")
    try:
        description = json.loads(path.read_text("utf-8"))
        found = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a corpus description ({error}): run hpcnmt prepare again") from error
    if found != FORMAT_VERSION:
        raise ValueError(f"found corpus format {found} in {path}, expected {FORMAT_VERSION}: run hpcnmt prepare again")
    return dict(description)


class TokenCorpus:
    """One split of a prepared folder."""

    def __init__(self, folder: Path, split: str, vocabulary_digest: str | None = None) -> None:
        description = read_description(folder)
        if split not in description["splits"]:
            raise ValueError(f"found splits {sorted(description['splits'])} in {folder}, expected {split!r}")
        self.digest = str(description["vocabulary_digest"])
        if vocabulary_digest is not None and vocabulary_digest != self.digest:
            raise ValueError(
                f"{folder} was prepared with the vocabulary {self.digest[:12]}, found the vocabulary {vocabulary_digest[:12]}: "
                "use the vocabulary of the same folder, or prepare the corpus again"
            )
        entry = description["splits"][split]
        self._data: dict[str, tuple[NDArray[Any], Ids]] = {}
        for side in SIDES:
            ids_path, offsets_path = folder / f"{split}.{side}.ids", folder / f"{split}.{side}.offsets"
            dtype, tokens, count = np.dtype(entry["dtype"]), int(entry[f"{side}_tokens"]), int(entry["sentences"]) + 1
            for path, size in ((ids_path, tokens * dtype.itemsize), (offsets_path, count * 8)):
                found = path.stat().st_size if path.is_file() else -1
                if found != size:
                    raise ValueError(f"found {found} bytes in {path}, expected {size}: the corpus is damaged, run hpcnmt prepare again")
            offsets = np.fromfile(offsets_path, "<i8")
            if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 0).any():
                raise ValueError(f"{offsets_path} holds no rising offsets from 0 to {tokens}: run hpcnmt prepare again")
            self._data[side] = (np.memmap(ids_path, dtype, "r"), offsets)
        self.source_lengths: Ids = np.diff(self._data["source"][1])
        self.target_lengths: Ids = np.diff(self._data["target"][1])

    def __len__(self) -> int:
        return len(self.target_lengths)

    def _row(self, side: str, index: int) -> Ids:
        ids, offsets = self._data[side]
        return np.asarray(ids[offsets[index] : offsets[index + 1]], np.int64)

    def source(self, index: int) -> Ids:
        """Source ids of sentence `index`, without EOS."""
        return self._row("source", index)

    def target(self, index: int) -> Ids:
        """Target ids of sentence `index`, without EOS."""
        return self._row("target", index)
