"""Sentencepiece vocabularies, joint or one for each side. Ids: PAD 0, UNK 1, BOS 2, EOS 3.

Trained by `prepare`, loaded by training and inference. A folder holds either vocab.model or vocab.source.model and vocab.target.model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

PAD, UNK, BOS, EOS = 0, 1, 2, 3
JOINT_FILE, SIDE_FILES = "vocab.model", ("vocab.source.model", "vocab.target.model")


@contextmanager
def _refusals(size: int) -> Iterator[None]:
    """Turns what sentencepiece refuses (too few pieces for the characters, no usable line) into a ValueError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]
        raise ValueError(f"sentencepiece cannot train a vocabulary of {size} pieces: {reason} Give another --vocabulary-size?") from error


def train_vocabulary(lines: Iterable[str], path: Path, size: int) -> None:
    """Trains a unigram model of at most `size` pieces and writes it to `path` (single-threaded, so that it is reproducible)."""
    if size < 8:
        raise ValueError(f"found a vocabulary size of {size}, expected at least 8")
    with path.open("wb") as stream, _refusals(size):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=stream, vocab_size=size, hard_vocab_limit=False, character_coverage=1.0,
            pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS, num_threads=1, minloglevel=2, input_sentence_size=1_000_000,
            shuffle_input_sentence=False,
        )  # fmt: skip


class Vocabulary:
    """A trained vocabulary."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"found no vocabulary {path}, expected a sentencepiece model: run hpcnmt prepare first")
        data = path.read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a sentencepiece model: run hpcnmt prepare again") from error
        self.size: int = self._model.vocab_size()
        if (self._model.pad_id(), self._model.unk_id(), self._model.bos_id(), self._model.eos_id()) != (PAD, UNK, BOS, EOS):
            raise ValueError(f"{path} has other special ids than PAD 0, UNK 1, BOS 2, EOS 3: train it with hpcnmt prepare")

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Ids of every line, without BOS and EOS."""
        ids: list[list[int]] = self._model.encode(lines)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of one sequence of ids."""
        text: str = self._model.decode(ids)
        return text


@dataclass(frozen=True)
class Vocabularies:
    """The vocabularies of the two sides; a joint one is the same object twice."""

    source: Vocabulary
    target: Vocabulary

    @classmethod
    def read(cls, folder: Path) -> Vocabularies:
        """Those of a prepared folder or a run folder; ValueError when there are none."""
        if any((folder / name).is_file() for name in SIDE_FILES):
            source, target = (Vocabulary(folder / name) for name in SIDE_FILES)
            return cls(source, target)
        joint = Vocabulary(folder / JOINT_FILE)
        return cls(joint, joint)

    @property
    def joint(self) -> bool:
        """True when one vocabulary serves both sides."""
        return self.source is self.target

    @property
    def digest(self) -> str:
        """Identifies the pair."""
        return self.target.digest if self.joint else hashlib.sha256((self.source.digest + self.target.digest).encode()).hexdigest()

    @property
    def separate_source_size(self) -> int:
        """Pieces of a source vocabulary of its own; 0 when joint."""
        return 0 if self.joint else self.source.size


def copy_vocabularies(source: Path, target: Path) -> None:
    """Copies the vocabulary files of folder `source` into folder `target`."""
    for name in (JOINT_FILE, *SIDE_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
