"""Batches: padded tensors, and the plan of an epoch by target-word budget with length bucketing.

Invariants: every sentence of the epoch stands in exactly one batch; the plan is a pure function of (lengths, config, epoch); a batch
holds at most `batch_words` target words (EOS counted) unless one sentence alone is longer. Used by loader.py and by validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcnmt.data.vocabulary import EOS, PAD

Ids = NDArray[np.int64]
CHUNK_SENTENCES = 16384


@dataclass(frozen=True)
class Batch:
    """One batch; rows end with EOS and are filled up with PAD. Words are unpadded, EOS counted."""

    source_ids: Tensor  # [batch, source_time]
    source_lengths: Tensor  # [batch]
    target_ids: Tensor  # [batch, target_time]
    target_lengths: Tensor  # [batch]
    sentence_ids: tuple[int, ...]
    source_words: int
    target_words: int


def _pad(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    lengths = [len(row) + 1 for row in rows]
    ids = np.full((len(rows), max(lengths)), PAD, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        ids[index, len(row)] = EOS
    return torch.from_numpy(ids), torch.tensor(lengths)


def make_batch(sources: Sequence[Ids], targets: Sequence[Ids], sentence_ids: Sequence[int]) -> Batch:
    """Pads rows of ids (without EOS) into a batch."""
    source_ids, source_lengths = _pad(sources)
    target_ids, target_lengths = _pad(targets)
    words = int(source_lengths.sum()), int(target_lengths.sum())
    return Batch(source_ids, source_lengths, target_ids, target_lengths, tuple(int(i) for i in sentence_ids), *words)


def cut_by_words(order: Ids, target_lengths: Ids, batch_words: int) -> list[Ids]:
    """Cuts sentences in `order` into batches of at most `batch_words` target words (EOS counted)."""
    batches, begin, words = [], 0, 0
    for position, sentence in enumerate(order):
        length = int(target_lengths[sentence]) + 1
        if words and words + length > batch_words:
            batches.append(order[begin:position])
            begin, words = position, 0
        words += length
    if begin < len(order):
        batches.append(order[begin:])
    return batches


def plan_epoch(source_lengths: Ids, target_lengths: Ids, batch_words: int, seed: int, epoch: int) -> list[Ids]:
    """Shuffles the sentences, sorts chunks of them by length, cuts batches, shuffles the batches; seeded by (seed, epoch)."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(target_lengths))
    batches: list[Ids] = []
    for begin in range(0, len(order), CHUNK_SENTENCES):
        chunk = order[begin : begin + CHUNK_SENTENCES]
        chunk = chunk[np.lexsort((source_lengths[chunk], target_lengths[chunk]))]
        batches += cut_by_words(chunk, target_lengths, batch_words)
    return [batches[i] for i in generator.permutation(len(batches))]
