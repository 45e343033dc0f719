"""The shallow GRU encoder-decoder with attention of the Nematus / Edinburgh WMT16 type (Sennrich et al. 2017).

Bidirectional GRU encoder; conditional GRU decoder: GRU 1 on the previous word, additive attention, GRU 2 on the context; read-out
tanh(W s + W y + W c). Everything that does not depend on the recurrent state is computed for all times at once, outside the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcnmt.models.seq2seq import DecoderState, ModelConfig, Seq2Seq


class GruStep(nn.Module):
    """One GRU step on an input that is projected already: gates reset, update, candidate (Cho et al. 2014)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.recurrent = nn.Linear(dim, 3 * dim)

    def forward(self, projected: Tensor, state: Tensor) -> Tensor:
        """`projected` [rows, 3 * dim], `state` [rows, dim] -> new state."""
        input_reset, input_update, input_candidate = projected.chunk(3, -1)
        reset, update, candidate = self.recurrent(state).chunk(3, -1)
        update = torch.sigmoid(input_update + update)
        candidate = torch.tanh(input_candidate + torch.sigmoid(input_reset + reset) * candidate)
        return candidate + update * (state - candidate)


@dataclass(frozen=True)
class GruState:
    """Recurrent state [rows, hidden], annotations, their attention keys, and the bias that hides padding [rows, source_time]."""

    state: Tensor
    annotations: Tensor
    keys: Tensor
    padding_bias: Tensor

    def select(self, rows: Tensor) -> GruState:
        return GruState(self.state[rows], self.annotations[rows], self.keys[rows], self.padding_bias[rows])


class ShallowGru(Seq2Seq):
    """Bidirectional GRU encoder, conditional GRU decoder, three-way tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim, hidden, both = config.embedding_dim, config.hidden_dim, 2 * config.hidden_dim
        self.encoder = nn.GRU(dim, hidden, batch_first=True, bidirectional=True)
        self.annotation_norm = nn.LayerNorm(both) if config.layer_norm else nn.Identity()
        self.initial, self.keys, self.query = nn.Linear(both, hidden), nn.Linear(both, hidden), nn.Linear(hidden, hidden, bias=False)
        self.energy = nn.Linear(hidden, 1, bias=False)
        self.input1, self.input2 = nn.Linear(dim, 3 * hidden), nn.Linear(both, 3 * hidden)
        self.step1, self.step2 = GruStep(hidden), GruStep(hidden)
        self.read_state, self.read_word, self.read_context = nn.Linear(hidden, dim), nn.Linear(dim, dim), nn.Linear(both, dim)
        self.read_norm = nn.LayerNorm(dim) if config.layer_norm else nn.Identity()

    def start_decoding(self, source_ids: Tensor, source_lengths: Tensor) -> GruState:
        embedded = self.drop(self.embedding(source_ids))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, source_lengths.cpu(), batch_first=True, enforce_sorted=False)
        annotations, _ = nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=source_ids.shape[1])
        real = torch.arange(source_ids.shape[1], device=source_ids.device) < source_lengths[:, None]
        annotations = self.drop(self.annotation_norm(annotations)) * real[:, :, None]
        state = torch.tanh(self.initial(annotations.sum(1) / source_lengths[:, None]))
        bias = torch.zeros(real.shape, device=source_ids.device).masked_fill(~real, float("-inf"))
        return GruState(state, annotations, self.keys(annotations), bias)

    def _step(self, projected: Tensor, state: GruState) -> tuple[Tensor, Tensor]:
        """New recurrent state [rows, hidden] and context [rows, 2 * hidden]."""
        middle = self.step1(projected, state.state)
        energies = self.energy(torch.tanh(state.keys + self.query(middle)[:, None])).squeeze(-1) + state.padding_bias
        weights = torch.softmax(energies, -1)
        context = torch.bmm(weights[:, None].to(state.annotations.dtype), state.annotations).squeeze(1)
        return self.step2(self.input2(context), middle), context

    def _read_out(self, states: Tensor, words: Tensor, contexts: Tensor) -> Tensor:
        mixed = self.read_state(states) + self.read_word(words) + self.read_context(contexts)
        out: Tensor = self.drop(torch.tanh(self.read_norm(mixed)))
        return out

    def hidden(self, source_ids: Tensor, source_lengths: Tensor, inputs: Tensor) -> Tensor:
        start = self.start_decoding(source_ids, source_lengths)
        words = self.drop(self.embedding(inputs))
        state, states, contexts = start, [], []
        for projected in self.input1(words).unbind(1):
            recurrent, context = self._step(projected, state)
            state = GruState(recurrent, start.annotations, start.keys, start.padding_bias)
            states.append(recurrent)
            contexts.append(context)
        return self._read_out(torch.stack(states, 1), words, torch.stack(contexts, 1))

    def decode_hidden(self, previous: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        if not isinstance(state, GruState):
            raise TypeError(f"found a {type(state).__name__}, expected the GruState of start_decoding")
        words = self.drop(self.embedding(previous))
        recurrent, context = self._step(self.input1(words), state)
        out = self._read_out(recurrent, words, context)
        return out, GruState(recurrent, state.annotations, state.keys, state.padding_bias)
