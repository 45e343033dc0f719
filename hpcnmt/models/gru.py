"""The shallow GRU encoder-decoder with attention of the Nematus / Edinburgh WMT16 type (Sennrich et al. 2017).

Bidirectional GRU encoder; conditional GRU decoder: GRU 1 on the previous word, additive attention, GRU 2 on the context; read-out
tanh(W s + W y + W c). Works on packed words throughout (recurrence.py): nothing is computed for padding, and everything that does not
depend on a recurrent state is one product over all words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcnmt.models.output_loss import at_least_fp32
from hpcnmt.models.recurrence import attention, conditional_gru, gru_sequence, gru_step
from hpcnmt.models.seq2seq import BOS, DecoderState, ModelConfig, Seq2Seq, Words


@dataclass(frozen=True)
class Packing:
    """Real words of a padded batch, step by step, rows sorted by length: word p is column `times[p]` of row `rows[p]`."""

    order: Tensor  # [batch] rows, longest first
    rows: Tensor  # [words]
    times: Tensor  # [words]
    active: list[int]

    @classmethod
    def of(cls, lengths: Tensor) -> Packing:
        """Packing of rows with `lengths` [batch] words each."""
        order = torch.argsort(lengths, descending=True, stable=True)
        mask = torch.arange(int(lengths.max()), device=lengths.device)[:, None] < lengths[order]  # [time, batch]
        times, places = mask.nonzero(as_tuple=True)
        return cls(order, order[places], times, mask.sum(1).tolist())


@dataclass(frozen=True)
class GruState:
    """Recurrent state [rows, hidden], annotations, their attention keys, and the bias that hides padding [rows, source_time]."""

    state: Tensor
    annotations: Tensor
    keys: Tensor
    padding_bias: Tensor

    def select(self, rows: Tensor) -> GruState:
        return GruState(self.state[rows], self.annotations[rows], self.keys[rows], self.padding_bias[rows])


class GruWeights(nn.Module):
    """Recurrent weight [3 dim, dim] and bias of one GRU; its input projection is a Linear of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(3 * dim, dim)), nn.Parameter(torch.zeros(3 * dim))
        for block in self.weight.data.chunk(3):
            nn.init.orthogonal_(block)


class ShallowGru(Seq2Seq):
    """Bidirectional GRU encoder, conditional GRU decoder, tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim, hidden, both = config.embedding_dim, config.hidden_dim, 2 * config.hidden_dim
        self.input_forward, self.input_backward = nn.Linear(dim, 3 * hidden), nn.Linear(dim, 3 * hidden)
        self.step_forward, self.step_backward = GruWeights(hidden), GruWeights(hidden)
        self.annotation_norm = nn.LayerNorm(both) if config.layer_norm else nn.Identity()
        self.initial, self.keys, self.query = nn.Linear(both, hidden), nn.Linear(both, hidden), nn.Linear(hidden, hidden, bias=False)
        self.energy = nn.Parameter(torch.empty(hidden).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.input1, self.input2 = nn.Linear(dim, 3 * hidden), nn.Linear(both, 3 * hidden)
        self.step1, self.step2 = GruWeights(hidden), GruWeights(hidden)
        self.read_state, self.read_word, self.read_context = nn.Linear(hidden, dim), nn.Linear(dim, dim), nn.Linear(both, dim)
        self.read_norm = nn.LayerNorm(dim) if config.layer_norm else nn.Identity()

    def _cast(self, parameter: Tensor) -> Tensor:
        return parameter.to(self.dtype)

    def _encode(self, source_ids: Tensor, source_lengths: Tensor, place: Tensor) -> GruState:
        """Annotations in padded form; row r of the batch goes to row `place[r]`."""
        packing = Packing.of(source_lengths)
        rows, times = packing.rows, packing.times
        words = self.drop(self.source_embedding(source_ids[rows, times]))
        position = torch.zeros_like(source_ids)
        position[rows, times] = torch.arange(len(rows), device=rows.device)
        mirrored = position[rows, source_lengths[rows] - 1 - times]  # packed place of the same word counted from the end
        sides = []
        forward = (self.input_forward, self.step_forward, slice(None))
        for linear, step, index in (forward, (self.input_backward, self.step_backward, mirrored)):
            states = gru_sequence(at_least_fp32(linear(words))[index], self._cast(step.weight), self._cast(step.bias), packing.active)
            sides.append(states[index])
        packed = self.drop(self.annotation_norm(torch.cat(sides, 1)))
        padded_rows = place[rows]
        shape = (len(source_lengths), source_ids.shape[1])
        annotations = packed.new_zeros(*shape, packed.shape[1]).index_put((padded_rows, times), packed)
        keys = at_least_fp32(self.keys(packed))
        lengths = torch.empty_like(source_lengths)
        lengths[place] = source_lengths
        bias = torch.full(shape, float("-inf"), device=packed.device)
        bias[padded_rows, times] = 0.0
        start = at_least_fp32(torch.tanh(self.initial(annotations.sum(1) / lengths[:, None])))
        return GruState(start, annotations, keys.new_zeros(*shape, keys.shape[1]).index_put((padded_rows, times), keys), bias)

    def start_decoding(self, source_ids: Tensor, source_lengths: Tensor) -> GruState:
        return self._encode(source_ids, source_lengths, torch.arange(len(source_lengths), device=source_ids.device))

    def _read_out(self, states: Tensor, words: Tensor, contexts: Tensor) -> Tensor:
        mixed = self.read_state(states) + self.read_word(words) + self.read_context(contexts)
        out: Tensor = self.drop(torch.tanh(self.read_norm(mixed)))
        return out

    def word_states(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor, target_lengths: Tensor) -> Words:
        packing = Packing.of(target_lengths)
        place = torch.empty_like(packing.order)
        place[packing.order] = torch.arange(len(place), device=place.device)
        encoded = self._encode(source_ids, source_lengths, place)
        inputs = F.pad(target_ids[:, :-1], (1, 0), value=BOS)[packing.rows, packing.times]
        words = self.drop(self.embedding(inputs))
        step1, step2, cast = self.step1, self.step2, self._cast
        states, contexts = conditional_gru(
            at_least_fp32(self.input1(words)), encoded.state, encoded.annotations, encoded.keys, encoded.padding_bias, self.energy,
            cast(step1.weight), cast(step1.bias), cast(self.query.weight), cast(self.input2.weight), cast(self.input2.bias),
            cast(step2.weight), cast(step2.bias), packing.active,
        )  # fmt: skip
        return Words(self._read_out(states, words, contexts), packing.rows, packing.times)

    def decode_hidden(self, previous: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        if not isinstance(state, GruState):
            raise TypeError(f"found a {type(state).__name__}, expected the GruState of start_decoding")
        words = self.drop(self.embedding(previous))
        middle, _ = gru_step(self.input1(words), F.linear(state.state, self.step1.weight, self.step1.bias), state.state)
        _, weights = attention(state.keys, self.query(middle), self.energy, state.padding_bias)
        context = torch.bmm(weights[:, None], state.annotations).squeeze(1)
        recurrent, _ = gru_step(self.input2(context), F.linear(middle, self.step2.weight, self.step2.bias), middle)
        return self._read_out(recurrent, words, context), GruState(recurrent, state.annotations, state.keys, state.padding_bias)
