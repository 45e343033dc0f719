"""Lines to translations: batches by length, order kept, empty lines stay empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcnmt.data.batching import make_batch
from hpcnmt.data.vocabulary import Vocabularies
from hpcnmt.inference.beam import BeamConfig, beam_search
from hpcnmt.models.seq2seq import Seq2Seq


@dataclass(frozen=True)
class Translation:
    """Text and normalised score."""

    text: str
    score: float


def translate_lines(
    model: Seq2Seq, vocabularies: Vocabularies, lines: list[str], config: BeamConfig, batch_sentences: int = 64,
    between: Callable[[], None] = lambda: None,
) -> list[list[Translation]]:  # fmt: skip
    """The n-best translations of every line, best first; `between` is called before every batch, and may raise."""
    if batch_sentences < 1:
        raise ValueError(f"found batches of {batch_sentences} sentences, expected at least 1: give another --batch-sentences")
    rows = [np.array(ids, np.int64) for ids in vocabularies.source.encode(lines)]
    results: list[list[Translation]] = [[Translation("", 0.0)] for _ in lines]
    order = sorted((i for i, row in enumerate(rows) if len(row)), key=lambda i: len(rows[i]))
    for begin in range(0, len(order), batch_sentences):
        between()
        chosen = order[begin : begin + batch_sentences]
        batch = make_batch([rows[i] for i in chosen], [rows[i] for i in chosen], chosen)
        found = beam_search(model, batch.source_ids, batch.source_lengths, config)
        for index, hypotheses in zip(chosen, found, strict=True):
            results[index] = [Translation(vocabularies.target.decode(h.ids), h.score) for h in hypotheses]
    return results
