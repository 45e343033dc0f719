"""What translate, score and evaluate do with a run folder. Called by the console command."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TextIO

import numpy as np

from hpcnmt.data.batching import cut_by_words, make_batch
from hpcnmt.data.textio import decode_line, read_parallel
from hpcnmt.inference.beam import BeamConfig
from hpcnmt.inference.scores import corpus_scores
from hpcnmt.inference.translate import translate_lines
from hpcnmt.training.run_folder import RunFolder

CHUNK_LINES = 4096
SCORE_BATCH_WORDS = 4000


def translate(run: Path, source: IO[bytes], target: TextIO, beam: BeamConfig, batch_sentences: int) -> None:
    """Translates the lines of `source` in chunks, in order, and writes each chunk as soon as it is done."""
    model, vocabularies = RunFolder(run).load()
    first = 0
    while True:
        lines = [decode_line(raw, "standard input", first + i) for i, raw in zip(range(1, CHUNK_LINES + 1), source, strict=False)]
        if not lines:
            return
        for number, found in enumerate(translate_lines(model, vocabularies, lines, beam, batch_sentences), first):
            for one in found:
                target.write(f"{number} ||| {one.text} ||| {one.score:.4f}\n" if beam.n_best > 1 else f"{one.text}\n")
        target.flush()
        first += len(lines)


def score(run: Path, source: Path, reference: Path, normalize: bool) -> list[float]:
    """Log-probability (nats) of every reference given its source; divided by its words (EOS counted) with `normalize`."""
    pairs = read_parallel(source, reference)
    model, vocabularies = RunFolder(run).load()
    sources, targets = (
        [np.array(ids, np.int64) for ids in vocabulary.encode([pair[side] for pair in pairs])]
        for side, vocabulary in enumerate((vocabularies.source, vocabularies.target))
    )
    lengths = np.array([len(row) for row in targets])
    results = [0.0] * len(pairs)
    for rows in cut_by_words(np.argsort(lengths, kind="stable"), lengths, SCORE_BATCH_WORDS):
        batch = make_batch([sources[i] for i in rows], [targets[i] for i in rows], [int(i) for i in rows])
        losses = model.sentence_cross_entropy(batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths)
        for index, loss, words in zip(batch.sentence_ids, losses.tolist(), batch.target_lengths.tolist(), strict=True):
            results[index] = -loss / (words if normalize else 1)
    return results


def evaluate(run: Path, source: Path, reference: Path, beam: BeamConfig, batch_sentences: int) -> dict[str, float | str]:
    """BLEU and chrF of the translations, with sacreBLEU's signatures."""
    pairs = read_parallel(source, reference)
    model, vocabularies = RunFolder(run).load()
    hypotheses = [found[0].text for found in translate_lines(model, vocabularies, [p[0] for p in pairs], beam, batch_sentences)]
    scores, signatures = corpus_scores(hypotheses, [p[1] for p in pairs])
    return {"sentences": len(pairs)} | scores | signatures
