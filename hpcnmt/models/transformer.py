"""A pre-norm Transformer (Vaswani et al. 2017) on scaled_dot_product_attention, with cached keys and values for decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcnmt.models.seq2seq import BOS, DecoderState, ModelConfig, Seq2Seq, Words

KeysValues = tuple[Tensor, Tensor]  # each [rows, heads, time, head_dim]


def sinusoids(begin: int, length: int, dim: int) -> Tensor:
    """Sinusoidal position vectors [length, dim] from position `begin`."""
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(begin, begin + length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Attention(nn.Module):
    """Multi-head attention; queries from `x`, keys and values from `keys_values`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of `x` [rows, time, dim]."""
        keys, values = self.key_value(x).chunk(2, -1)
        return self._split(keys), self._split(values)

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        mixed = F.scaled_dot_product_attention(self._split(self.query(x)), *keys_values, attn_mask=mask, is_causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """One layer of the encoder, or with `cross` of the decoder: x + f(norm(x)) for each part."""

    def __init__(self, config: ModelConfig, cross: bool) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.attention, self.norm1 = Attention(dim, config.heads), nn.LayerNorm(dim)
        self.cross = Attention(dim, config.heads) if cross else None
        self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim) if cross else None
        self.up, self.down = nn.Linear(dim, config.feedforward_dim), nn.Linear(config.feedforward_dim, dim)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, memory: KeysValues | None = None,
        memory_mask: Tensor | None = None, past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:  # fmt: skip
        """Returns the output and the keys and values of the self-attention, `past` included."""
        normed = self.norm1(x)
        own = self.attention.keys_values(normed)
        if past is not None:
            own = (torch.cat([past[0], own[0]], 2), torch.cat([past[1], own[1]], 2))
        x = x + self.drop(self.attention(normed, own, mask, causal))
        if self.cross is not None and self.norm3 is not None and memory is not None:
            x = x + self.drop(self.cross(self.norm3(x), memory, memory_mask))
        return x + self.drop(self.down(self.drop(F.relu(self.up(self.norm2(x)))))), own


@dataclass(frozen=True)
class TransformerState:
    """Cache of the decoder: the past of every layer, keys and values of the source, and its mask [rows, 1, 1, source_time]."""

    past: list[KeysValues | None]
    memory: list[KeysValues]
    memory_mask: Tensor
    position: int

    def select(self, rows: Tensor) -> TransformerState:
        past = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.past]
        memory = [(k[rows], v[rows]) for k, v in self.memory]
        return TransformerState(past, memory, self.memory_mask[rows], self.position)


class Transformer(Seq2Seq):
    """Pre-norm encoder-decoder with tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = nn.ModuleList([Layer(config, False) for _ in range(config.encoder_layers)])
        self.decoder = nn.ModuleList([Layer(config, True) for _ in range(config.decoder_layers)])
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(config.embedding_dim), nn.LayerNorm(config.embedding_dim)

    def _embed(self, embedding: nn.Embedding, ids: Tensor, position: int) -> Tensor:
        dim = self.config.embedding_dim
        places = sinusoids(position, ids.shape[1], dim).to(ids.device)
        embedded: Tensor = self.drop(embedding(ids) * math.sqrt(dim) + places)
        return embedded

    def start_decoding(self, source_ids: Tensor, source_lengths: Tensor) -> TransformerState:
        real = torch.arange(source_ids.shape[1], device=source_ids.device) < source_lengths[:, None]
        mask = real[:, None, None, :]
        x = self._embed(self.source_embedding, source_ids, 0)
        for layer in self.encoder:
            x, _ = layer(x, mask, False)
        x = self.encoder_norm(x)
        memory = [layer.cross.keys_values(x) for layer in self.decoder]  # type: ignore[union-attr, operator]
        return TransformerState([None] * len(self.decoder), memory, mask, 0)

    def word_states(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor) -> Words:
        state = self.start_decoding(source_ids, source_lengths)
        x = self._embed(self.embedding, F.pad(target_ids[:, :-1], (1, 0), value=BOS), 0)
        for layer, memory in zip(self.decoder, state.memory, strict=True):
            x, _ = layer(x, None, True, memory, state.memory_mask)
        real = torch.arange(target_ids.shape[1], device=x.device) < target_lengths[:, None]
        rows, times = real.nonzero(as_tuple=True)
        return Words(self.decoder_norm(x[rows, times]), rows, times)

    def decode_hidden(self, previous: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        if not isinstance(state, TransformerState):
            raise TypeError(f"found a {type(state).__name__}, expected the TransformerState of start_decoding")
        x = self._embed(self.embedding, previous[:, None], state.position)
        past: list[KeysValues | None] = []
        for layer, memory, before in zip(self.decoder, state.memory, state.past, strict=True):
            x, own = layer(x, None, False, memory, state.memory_mask, before)
            past.append(own)
        return self.decoder_norm(x[:, 0]), TransformerState(past, state.memory, state.memory_mask, state.position + 1)
