"""What every model shares: configuration, tied embeddings, cost summed over target words, and the decoding interface.

A model gives one state for each REAL target word; the output projection and the cross-entropy are computed once, over those words
(output_loss.py). Called by training, validation, scoring and beam search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcnmt.models.output_loss import at_least_fp32, output_loss

PAD, BOS, EOS = 0, 2, 3


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. Tied embeddings: one matrix for source, target and output; for target and output when vocabularies are separate."""

    type: Literal["transformer", "gru"] = "transformer"
    vocabulary_size: int = 4000
    source_vocabulary_size: int = 0
    """Size of a source vocabulary of its own; 0 = the vocabulary is joint."""
    embedding_dim: int = 256
    hidden_dim: int = 512
    """State of the GRU."""
    encoder_layers: int = 3
    decoder_layers: int = 3
    feedforward_dim: int = 1024
    heads: int = 4
    dropout: float = 0.1
    layer_norm: bool = True
    """Layer norm on the GRU's annotations and read-out."""
    label_smoothing: float = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "embedding_dim", "hidden_dim", "encoder_layers", "decoder_layers", "feedforward_dim", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("dropout", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"model.{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        if self.type == "transformer" and (self.embedding_dim % self.heads or self.embedding_dim % 2):
            raise ValueError(f"model.heads ({self.heads}) must divide model.embedding_dim ({self.embedding_dim}), which must be even")


class DecoderState(Protocol):
    """Cached state of a batch of hypotheses."""

    def select(self, rows: Tensor) -> DecoderState:
        """The state of the hypotheses `rows` [new_rows], repeated or reordered."""


class Words(NamedTuple):
    """States of the real target words of a batch: word p has label `target_ids[rows[p], times[p]]`."""

    states: Tensor  # [words, embedding]
    rows: Tensor  # [words]
    times: Tensor  # [words]


class Seq2Seq(nn.Module, ABC):
    """A translation model. `source_ids` [batch, source_time], `target_ids` [batch, target_time] are labels: EOS-ended, PAD-filled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=config.embedding_dim**-0.5)
        self.own_source_embedding: nn.Embedding | None = None
        if config.source_vocabulary_size:
            self.own_source_embedding = nn.Embedding(config.source_vocabulary_size, config.embedding_dim)
            nn.init.normal_(self.own_source_embedding.weight, std=config.embedding_dim**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        self.drop = nn.Dropout(config.dropout)

    @property
    def source_embedding(self) -> nn.Embedding:
        """Embedding of source words: the shared one unless the vocabularies are separate."""
        return self.embedding if self.own_source_embedding is None else self.own_source_embedding

    @property
    def device(self) -> torch.device:
        """Where the parameters are; losses take ids from anywhere."""
        return self.output_bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of matrix products."""
        return torch.bfloat16 if self.config.precision == "bf16" else self.output_bias.dtype

    @abstractmethod
    def word_states(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor) -> Words:
        """Teacher-forced states of the real target words, in any order; word t follows the labels before it, the first follows BOS."""

    @abstractmethod
    def start_decoding(self, source_ids: Tensor, source_lengths: Tensor) -> DecoderState:
        """Encodes; the state before the first target word."""

    @abstractmethod
    def decode_hidden(self, previous: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One step: state vectors [rows, embedding] after `previous` [rows], and the next state."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Output projection with the tied embedding: [rows, embedding] -> [rows, vocabulary]."""
        return F.linear(hidden, self.embedding.weight, self.output_bias)

    def decode_step(self, previous: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Log-probabilities [rows, vocabulary] of the word after `previous` [rows]."""
        hidden, state = self.decode_hidden(previous, state)
        return F.log_softmax(at_least_fp32(self.logits(hidden)), -1), state

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _words(self, *batch: Tensor) -> tuple[Words, Tensor]:
        """States of the words of a batch (source ids, lengths, target ids, lengths), and the target ids, all on the model's device."""
        source_ids, source_lengths, target_ids, target_lengths = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        with self._autocast():
            return self.word_states(source_ids, source_lengths, target_ids, target_lengths), target_ids

    def loss_sum(
        self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(label-smoothed loss, plain cross-entropy without gradient), both summed over the target words, in nats."""
        words, target_ids = self._words(source_ids, source_lengths, target_ids, target_lengths)
        labels = target_ids[words.rows, words.times]
        return output_loss(words.states, self.embedding.weight, self.output_bias, labels, self.config.label_smoothing, self.dtype)

    @torch.no_grad()
    def sentence_cross_entropy(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor) -> Tensor:
        """Cross-entropy of every sentence [batch] in nats, without smoothing."""
        words, target_ids = self._words(source_ids, source_lengths, target_ids, target_lengths)
        with self._autocast():
            logits = at_least_fp32(self.logits(words.states))
        losses = F.cross_entropy(logits, target_ids[words.rows, words.times], reduction="none")
        return torch.zeros(len(target_ids), device=losses.device).index_add_(0, words.rows, losses)
