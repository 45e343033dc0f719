"""A prepared corpus: token ids of one split as memory-mapped arrays, checked against its description before use.

Format (corpus.json, version 2): for every split and side `SPLIT.SIDE.ids` (uint16 or int32, little endian) and `SPLIT.SIDE.offsets` (int64,
sentences + 1), and since 0.2 their checksum `SIDE_sha256`, of the ids followed by the offsets. Invariant: an id that a row gives out is
one of the vocabulary. Written by prepare.py; read by training, validation and benchmarks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcnmt.data.batching import Ids
from hpcnmt.reading import check, read_json, short

FORMAT_VERSION = 2
DTYPES = ("<u2", "<i4")
SIDES = ("source", "target")
_ENTRY = {"dtype": str, "sentences": int, "source_tokens": int, "target_tokens": int, "source_sha256?": str, "target_sha256?": str}
_DESCRIPTION = {"vocabulary_size": int, "source_vocabulary_size?": int, "vocabulary_digest": str, "splits": {str: _ENTRY}}


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
        entry[f"{side}_sha256"] = hashlib.sha256(flat.tobytes() + offsets.tobytes()).hexdigest()
    return entry


def read_description(folder: Path) -> dict[str, Any]:
    """corpus.json of a prepared folder. Raises ValueError when it is missing, broken or of another version."""
    path = folder / "corpus.json"
    if not path.is_file():
        raise ValueError(f"found no {path}, expected a folder made by hpcnmt prepare: run hpcnmt prepare --out {folder} first")
    try:
        description: dict[str, Any] = read_json(path, {"format_version": int})
        if description["format_version"] == FORMAT_VERSION:
            check(description, _DESCRIPTION, path)
    except ValueError as error:
        raise ValueError(f"{path} is not a corpus description ({error}): run hpcnmt prepare again") from error
    if description["format_version"] != FORMAT_VERSION:
        found = description["format_version"]
        raise ValueError(f"found corpus format {found} in {path}, expected {FORMAT_VERSION}: run hpcnmt prepare again")
    return description


class TokenCorpus:
    """One split of a prepared folder."""

    def __init__(self, folder: Path, split: str, vocabulary_digest: str | None = None) -> None:
        description = read_description(folder)
        if split not in description["splits"]:
            raise ValueError(f"found splits {short(sorted(description['splits']))} in {folder}, expected {split!r}")
        self.digest: str = description["vocabulary_digest"]
        self._folder, self._split = folder, split
        if vocabulary_digest is not None and vocabulary_digest != self.digest:
            raise ValueError(
                f"{folder} was prepared with the vocabulary {self.digest[:12]}, found the vocabulary {vocabulary_digest[:12]}: "
                "use the vocabulary of the same folder, or prepare the corpus again"
            )
        self._entry = entry = description["splits"][split]
        sizes = {"source": description.get("source_vocabulary_size", 0) or description["vocabulary_size"]}
        self._pieces = sizes | {"target": description["vocabulary_size"]}
        if entry["dtype"] not in DTYPES or min(entry["sentences"], *(entry[f"{side}_tokens"] for side in SIDES)) < 0:
            raise ValueError(f"found the entry {short(entry)} of {split!r} in {folder / 'corpus.json'}: run hpcnmt prepare again")
        self._data: dict[str, tuple[NDArray[Any], Ids]] = {}
        for side in SIDES:
            ids_path, offsets_path = folder / f"{split}.{side}.ids", folder / f"{split}.{side}.offsets"
            dtype, tokens, count = np.dtype(entry["dtype"]), entry[f"{side}_tokens"], entry["sentences"] + 1
            for path, size in ((ids_path, tokens * dtype.itemsize), (offsets_path, count * 8)):
                found = path.stat().st_size if path.is_file() else -1
                if found != size:
                    raise ValueError(f"found {found} bytes in {path}, expected {size}: the corpus is damaged, run hpcnmt prepare again")
            offsets = np.fromfile(offsets_path, "<i8")
            if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 0).any():
                raise ValueError(f"{offsets_path} holds no rising offsets from 0 to {tokens}: run hpcnmt prepare again")
            self._data[side] = (np.memmap(ids_path, dtype, "r") if tokens else np.empty(0, dtype), offsets)
        self.source_lengths: Ids = np.diff(self._data["source"][1])
        self.target_lengths: Ids = np.diff(self._data["target"][1])

    def __len__(self) -> int:
        return len(self.target_lengths)

    def _row(self, side: str, index: int) -> Ids:
        ids, offsets = self._data[side]
        row = np.asarray(ids[offsets[index] : offsets[index + 1]], np.int64)
        if len(row) and not 0 <= row.min() <= row.max() < self._pieces[side]:
            where = f"the {side} side of sentence {index} of {self._split!r} in {self._folder}"
            raise ValueError(f"found an id beyond the vocabulary of {self._pieces[side]} pieces in {where}: run hpcnmt prepare again")
        return row

    def check(self) -> None:
        """Compares the checksums of both sides, as long as it takes to read the files; an older corpus has none. Raises ValueError."""
        for side in SIDES:
            expected = self._entry.get(f"{side}_sha256")
            if expected is None:
                continue
            digest = hashlib.sha256()
            for path in (self._folder / f"{self._split}.{side}.{kind}" for kind in ("ids", "offsets")):
                with path.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            if digest.hexdigest() != expected:
                raise ValueError(f"found another checksum of the {side} side of {self._split!r} in {self._folder} than when it was "
                                 "prepared: the corpus is damaged, run hpcnmt prepare again")  # fmt: skip

    def source(self, index: int) -> Ids:
        """Source ids of sentence `index`, without EOS."""
        return self._row("source", index)

    def target(self, index: int) -> Ids:
        """Target ids of sentence `index`, without EOS."""
        return self._row("target", index)
