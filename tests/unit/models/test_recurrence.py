"""Hand-written backward passes against autograd, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpcnmt.models.output_loss import output_loss
from hpcnmt.models.recurrence import conditional_gru, gru_sequence

ACTIVE = [4, 4, 2, 1]
WORDS, DIM = sum(ACTIVE), 5


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gru_cell(projected: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    i_r, i_z, i_n = projected.chunk(3, 1)
    a_r, a_z, a_n = F.linear(state, weight, bias).chunk(3, 1)
    z, n = torch.sigmoid(i_z + a_z), torch.tanh(i_n + torch.sigmoid(i_r + a_r) * a_n)
    return (1 - z) * n + z * state


def gru_sequence_reference(projected: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    state, begin, states = torch.zeros(ACTIVE[0], DIM, dtype=projected.dtype), 0, []
    for rows in ACTIVE:
        state = gru_cell(projected[begin : begin + rows], state[:rows], weight, bias)
        states.append(state)
        begin += rows
    return torch.cat(states)


def conditional_gru_reference(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    projected, start, annotations, keys, padding, energy, weight1, bias1, query, weight_c, bias_c, weight2, bias2 = inputs
    state, begin, states, contexts = start, 0, [], []
    for rows in ACTIVE:
        middle = gru_cell(projected[begin : begin + rows], state[:rows], weight1, bias1)
        scores = torch.tanh(keys[:rows] + F.linear(middle, query)[:, None]) @ energy + padding[:rows]
        context = (scores.softmax(1)[:, :, None] * annotations[:rows]).sum(1)
        state = gru_cell(F.linear(context, weight_c, bias_c), middle, weight2, bias2)
        states.append(state)
        contexts.append(context)
        begin += rows
    return torch.cat(states), torch.cat(contexts)


def compare(ours: list[Tensor], theirs: list[Tensor], inputs: list[Tensor]) -> None:
    weights = [torch.randn(o.shape, generator=torch.Generator().manual_seed(2), dtype=o.dtype) for o in ours]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(sum((o * w).sum() for o, w in zip(side, weights, strict=True)), inputs) for side in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_gru_sequence() -> None:
    inputs = tensors((WORDS, 3 * DIM), (3 * DIM, DIM), (3 * DIM,))
    compare([gru_sequence(*inputs, ACTIVE)], [gru_sequence_reference(*inputs)], inputs)


def test_conditional_gru() -> None:
    batch, source_time = ACTIVE[0], 3
    inputs = tensors(
        (WORDS, 3 * DIM), (batch, DIM), (batch, source_time, 2 * DIM), (batch, source_time, DIM), (DIM,), (3 * DIM, DIM), (3 * DIM,),
        (DIM, DIM), (3 * DIM, 2 * DIM), (3 * DIM,), (3 * DIM, DIM), (3 * DIM,),
    )  # fmt: skip
    padding = torch.zeros(batch, source_time, dtype=torch.float64)
    padding[1, 2] = -torch.inf
    arguments = [*inputs[:4], padding, *inputs[4:]]
    compare(list(conditional_gru(*arguments, ACTIVE)), list(conditional_gru_reference(*arguments)), inputs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_output_loss(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcnmt.models.output_loss.CHUNK_ELEMENTS", 3 * 17)  # several chunks, the last one smaller
    states, embedding, bias = tensors((10, 4), (17, 4), (17,))
    labels = torch.arange(10)
    ours, entropy = output_loss(states.float(), embedding.float(), bias.float(), labels, smoothing, torch.float32)
    logits = F.linear(states, embedding, bias)
    theirs = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy.double(), F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-6, atol=1e-5)
    inputs = [states, embedding, bias]
    for one, other in zip(torch.autograd.grad(2 * ours, inputs), torch.autograd.grad(2 * theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
