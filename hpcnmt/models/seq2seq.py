"""What every model shares: configuration, tied embeddings, cost summed over target words, and the decoding interface.

A model gives `hidden` states [batch, target_time, embedding]; the output projection and the cross-entropy are computed once, over the real
target words only. Called by training, validation, scoring and beam search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, BOS, EOS = 0, 2, 3


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. Tied embeddings: one matrix for source, target and output."""

    type: Literal["transformer", "gru"] = "transformer"
    vocabulary_size: int = 4000
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


class Seq2Seq(nn.Module, ABC):
    """A translation model. `source_ids` [batch, source_time], `target_ids` [batch, target_time] are labels: EOS-ended, PAD-filled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=config.embedding_dim**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        self.drop = nn.Dropout(config.dropout)

    @abstractmethod
    def hidden(self, source_ids: Tensor, source_lengths: Tensor, inputs: Tensor) -> Tensor:
        """Teacher-forced states [batch, target_time, embedding] for decoder `inputs` (BOS, then labels but the last)."""

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
        return F.log_softmax(self.logits(hidden).float(), -1), state

    def _real_words(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [words, vocabulary] and the mask [batch, target_time] of the real target words."""
        inputs = F.pad(target_ids[:, :-1], (1, 0), value=BOS)
        mask = torch.arange(target_ids.shape[1], device=target_ids.device) < target_lengths[:, None]
        with torch.autocast(target_ids.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.logits(self.hidden(source_ids, source_lengths, inputs)[mask])
        return logits.float(), mask

    def loss_sum(
        self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(label-smoothed loss, plain cross-entropy without gradient), both summed over the target words, in nats."""
        logits, mask = self._real_words(source_ids, source_lengths, target_ids, target_lengths)
        labels = target_ids[mask]
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.config.label_smoothing)
        with torch.no_grad():
            plain = loss.detach() if self.config.label_smoothing == 0 else F.cross_entropy(logits.detach(), labels, reduction="sum")
        return loss, plain

    @torch.no_grad()
    def sentence_cross_entropy(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor) -> Tensor:
        """Cross-entropy of every sentence [batch] in nats, without smoothing."""
        logits, mask = self._real_words(source_ids, source_lengths, target_ids, target_lengths)
        losses = torch.zeros(mask.shape, device=mask.device)
        losses[mask] = F.cross_entropy(logits, target_ids[mask], reduction="none")
        return losses.sum(1)
