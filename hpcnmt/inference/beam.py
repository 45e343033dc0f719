"""Batched beam search with length normalisation over any Seq2Seq. Hypotheses carry neither BOS nor EOS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcnmt.models.seq2seq import BOS, EOS, PAD, Seq2Seq


@dataclass(frozen=True)
class BeamConfig:
    """Settings of the search; a score is log-probability / words ** length_penalty (EOS counted)."""

    beam: int = 6
    length_penalty: float = 0.6
    max_length_factor: float = 2.0
    n_best: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n_best <= self.beam:
            raise ValueError(f"found n_best {self.n_best} and beam {self.beam}, expected 1 <= n_best <= beam")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"found the length penalty {self.length_penalty}, expected a finite number")


@dataclass(frozen=True)
class Hypothesis:
    """One translation in ids, with its normalised score."""

    ids: list[int]
    score: float


@torch.no_grad()
def beam_search(model: Seq2Seq, source_ids: Tensor, source_lengths: Tensor, config: BeamConfig) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of every sentence, best first. The model works on its own device, the bookkeeping is done here."""
    device = model.device
    batch, beam, vocabulary = len(source_ids), config.beam, model.config.vocabulary_size
    limits = (source_lengths * config.max_length_factor + 10).long()
    state = model.start_decoding(source_ids.to(device), source_lengths.to(device))
    state = state.select(torch.arange(batch, device=device).repeat_interleave(beam))
    scores = torch.full((batch, beam), -torch.inf)  # log-probabilities of the open hypotheses
    scores[:, 0] = 0.0
    words = torch.full((batch * beam,), BOS)
    history = torch.zeros((batch * beam, 0), dtype=torch.long)
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    for length in range(1, int(limits.max()) + 1):
        log_probs, state = model.decode_step(words.to(device), state)
        log_probs[:, [PAD, BOS]] = -torch.inf
        totals = scores.to(device)[:, :, None] + log_probs.view(batch, beam, vocabulary)
        for sentence in torch.nonzero(limits <= length).flatten().tolist():
            closing = totals[sentence, :, EOS].clone()
            totals[sentence] = -torch.inf
            totals[sentence, :, EOS] = closing
        best, places = totals.view(batch, -1).topk(min(2 * beam, beam * vocabulary))
        keep_rows, keep_words = torch.zeros(batch, beam, dtype=torch.long), torch.full((batch, beam), EOS)
        scores = torch.full((batch, beam), -torch.inf)
        for sentence in range(batch):
            if len(finished[sentence]) >= beam:
                continue
            open_count = 0
            for score, place in zip(best[sentence].tolist(), places[sentence].tolist(), strict=True):
                if score == -torch.inf or open_count == beam:
                    break
                row, word = sentence * beam + place // vocabulary, place % vocabulary
                if word == EOS:
                    finished[sentence].append(Hypothesis(history[row].tolist(), score / length**config.length_penalty))
                else:
                    keep_rows[sentence, open_count], keep_words[sentence, open_count] = row, word
                    scores[sentence, open_count] = score
                    open_count += 1
        if torch.isinf(scores).all():
            break
        rows, words = keep_rows.flatten(), keep_words.flatten()
        history = torch.cat([history[rows], words[:, None]], 1)
        state = state.select(rows.to(device))
    return [sorted(found, key=lambda h: -h.score)[: config.n_best] for found in finished]
