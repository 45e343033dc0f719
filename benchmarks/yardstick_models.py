"""The yardstick: the same two nets written straightforwardly in torch, for benchmarks/models.py.

GRU: nn.GRU encoder, a loop of two GRUCells with additive attention, ONE output projection over all real words. Transformer: torch's own
pre-norm encoder and decoder layers, one output projection over all real words. Three-way tied embeddings, cost summed over target words.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOS = 2


class YardstickGru(nn.Module):
    """Bidirectional nn.GRU, GRUCell - attention - GRUCell, deep output."""

    def __init__(self, vocabulary: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.encoder = nn.GRU(dim, hidden, batch_first=True, bidirectional=True)
        self.start, self.keys = nn.Linear(2 * hidden, hidden), nn.Linear(2 * hidden, hidden)
        self.query, self.energy = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, 1, bias=False)
        self.cell1, self.cell2 = nn.GRUCell(dim, hidden), nn.GRUCell(2 * hidden, hidden)
        self.from_state, self.from_word, self.from_context = nn.Linear(hidden, dim), nn.Linear(dim, dim), nn.Linear(2 * hidden, dim)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def loss_sum(self, source: Tensor, source_lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
        """Summed cross-entropy."""
        annotations, _ = self.encoder(self.embedding(source))
        real = torch.arange(source.shape[1]) < source_lengths[:, None]
        keys = self.keys(annotations)
        state = torch.tanh(self.start((annotations * real[:, :, None]).sum(1) / source_lengths[:, None]))
        words = self.embedding(F.pad(target[:, :-1], (1, 0), value=BOS))
        outputs = []
        for time in range(target.shape[1]):
            middle = self.cell1(words[:, time], state)
            energy = self.energy(torch.tanh(keys + self.query(middle)[:, None])).squeeze(-1).masked_fill(~real, -1e9)
            context = (energy.softmax(-1)[:, :, None] * annotations).sum(1)
            state = self.cell2(context, middle)
            outputs.append(torch.tanh(self.from_state(state) + self.from_word(words[:, time]) + self.from_context(context)))
        mask = torch.arange(target.shape[1]) < target_lengths[:, None]
        logits = F.linear(torch.stack(outputs, 1)[mask], self.embedding.weight, self.bias)
        return F.cross_entropy(logits, target[mask], reduction="sum")


class YardstickTransformer(nn.Module):
    """torch's own layers, norm first."""

    def __init__(self, vocabulary: int, dim: int, feedforward: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding, self.dim = nn.Embedding(vocabulary, dim), dim
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        encoder = nn.TransformerEncoderLayer(dim, heads, feedforward, **options)
        decoder = nn.TransformerDecoderLayer(dim, heads, feedforward, **options)
        self.encoder = nn.TransformerEncoder(encoder, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, layers, nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def _embed(self, ids: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(0, self.dim, 2) * (-math.log(10000.0) / self.dim))
        angles = torch.arange(ids.shape[1])[:, None] * rates
        return self.embedding(ids) * math.sqrt(self.dim) + torch.cat([angles.sin(), angles.cos()], 1)

    def loss_sum(self, source: Tensor, source_lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
        """Summed cross-entropy."""
        padding = torch.arange(source.shape[1]) >= source_lengths[:, None]
        memory = self.encoder(self._embed(source), src_key_padding_mask=padding)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        inputs = self._embed(F.pad(target[:, :-1], (1, 0), value=BOS))
        hidden = self.decoder(inputs, memory, tgt_mask=causal, memory_key_padding_mask=padding.float() * -1e9, tgt_is_causal=True)
        mask = torch.arange(target.shape[1]) < target_lengths[:, None]
        logits = F.linear(hidden[mask], self.embedding.weight, self.bias)
        return F.cross_entropy(logits, target[mask], reduction="sum")
