"""The GRU recurrences, forward and backward by hand, over packed words (no padding): what makes the GRU fast.

Packed layout: rows are sorted by length, longest first; step t holds the first `active[t]` rows; all steps stand one after another,
[words, dim]. Only what depends on the state stays in the time loop. The backward loop computes gradients of states only; the gradient of
every weight is ONE matrix product over all words afterwards, instead of one product and one accumulation for each step.

GRU (Cho et al. 2014): r = sigmoid(i_r + a_r), z = sigmoid(i_z + a_z), n = tanh(i_n + r a_n), s' = n + z (s - n), with a = W s + b.
`gru_sequence_reference` and `conditional_gru_reference` in the tests are the same by autograd. Called by gru.py.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def gru_step(projected: Tensor, recurrent: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """(new state [rows, dim], gates r, z, n, a_n [rows, 4 dim]) from input and recurrent projections [rows, 3 dim]."""
    dim = state.shape[1]
    gates = torch.empty(state.shape[0], 4 * dim, dtype=state.dtype, device=state.device)
    reset_update = torch.add(projected[:, : 2 * dim], recurrent[:, : 2 * dim], out=gates[:, : 2 * dim]).sigmoid_()
    gates[:, 3 * dim :] = recurrent[:, 2 * dim :]
    candidate = torch.addcmul(projected[:, 2 * dim :], reset_update[:, :dim], gates[:, 3 * dim :], out=gates[:, 2 * dim : 3 * dim]).tanh_()
    return torch.lerp(candidate, state, reset_update[:, dim:]), gates


def gru_step_backward(d_new: Tensor, state: Tensor, gates: Tensor, d_projected: Tensor, d_recurrent: Tensor) -> Tensor:
    """Fills the gradients of both projections [rows, 3 dim]; returns the direct part of the gradient of the state, d_new * z."""
    dim = state.shape[1]
    reset, update, candidate, recurrent_candidate = gates.chunk(4, 1)
    direct = d_new * update
    d_candidate = (d_new - direct).mul_(1.0 - candidate.square())
    torch.mul(d_new * (state - candidate), update - update.square(), out=d_projected[:, dim : 2 * dim])
    torch.mul(d_candidate * recurrent_candidate, reset - reset.square(), out=d_projected[:, :dim])
    d_projected[:, 2 * dim :] = d_candidate
    d_recurrent[:, : 2 * dim] = d_projected[:, : 2 * dim]
    torch.mul(d_candidate, reset, out=d_recurrent[:, 2 * dim :])
    return direct


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in the weight's precision, result in that of `x`."""
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _weight_gradient(d_out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """d_out^T x over all words, in the weight's precision."""
    return d_out.to(weight.dtype).t() @ x.to(weight.dtype)


class _GruSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, bias: Tensor, active: list[int]) -> Tensor:
        """projected [words, 3 dim] -> states [words, dim], from a zero state."""
        dim = weight.shape[1]
        states = torch.empty(projected.shape[0], dim, dtype=projected.dtype, device=projected.device)
        gates = torch.empty(projected.shape[0], 4 * dim, dtype=projected.dtype, device=projected.device)
        previous = torch.zeros_like(states)
        begin, state = 0, torch.zeros(active[0], dim, dtype=projected.dtype, device=projected.device)
        for rows in active:
            end = begin + rows
            previous[begin:end] = state[:rows]
            state, gates[begin:end] = gru_step(projected[begin:end], _linear(state[:rows], weight, bias), state[:rows])
            states[begin:end] = state
            begin = end
        ctx.save_for_backward(previous, gates, weight, bias)
        ctx.active = active
        return states

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        previous, gates, weight, bias = ctx.saved_tensors
        (d_states,) = grad_outputs
        words, dim = previous.shape
        d_projected = torch.empty(words, 3 * dim, dtype=previous.dtype, device=previous.device)
        d_recurrent = torch.empty_like(d_projected)
        carry = torch.zeros(ctx.active[0], dim, dtype=previous.dtype, device=previous.device)
        end = words
        for rows in reversed(ctx.active):
            begin = end - rows
            span = slice(begin, end)
            d_state = carry[:rows].add_(d_states[span])
            direct = gru_step_backward(d_state, previous[span], gates[span], d_projected[span], d_recurrent[span])
            torch.add(direct, _linear(d_recurrent[span], weight.t()), out=carry[:rows])
            end = begin
        return d_projected, _weight_gradient(d_recurrent, previous, weight), d_recurrent.sum(0).to(bias.dtype), None


def gru_sequence(projected: Tensor, weight: Tensor, bias: Tensor, active: list[int]) -> Tensor:
    """States [words, dim] of a GRU over packed input projections [words, 3 dim]; `active[t]` rows at step t, never rising."""
    return cast(Tensor, _GruSequence.apply(projected, weight, bias, active))  # type: ignore[no-untyped-call]


def attention(keys: Tensor, query: Tensor, energy: Tensor, padding_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Additive attention: (tanh(keys + query) [rows, source_time, dim], weights [rows, source_time])."""
    mixed = torch.add(keys, query[:, None]).tanh_()
    return mixed, torch.softmax(mixed.matmul(energy) + padding_bias, -1)


class _ConditionalGru(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, start: Tensor, annotations: Tensor, keys: Tensor, padding_bias: Tensor, energy: Tensor,
        weight1: Tensor, bias1: Tensor, query: Tensor, context_weight: Tensor, context_bias: Tensor, weight2: Tensor, bias2: Tensor,
        active: list[int],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        words, dim = projected.shape[0], start.shape[1]
        new = projected.new_empty
        previous, middles, states, contexts = new(words, dim), new(words, dim), new(words, dim), new(words, annotations.shape[2])
        gates1, gates2, mixed, weights = new(words, 4 * dim), new(words, 4 * dim), [], []
        state, begin = start, 0
        for rows in active:
            span = slice(begin, begin + rows)
            before = state[:rows]
            previous[span] = before
            middle, gates1[span] = gru_step(projected[span], _linear(before, weight1, bias1), before)
            mix, alpha = attention(keys[:rows], _linear(middle, query), energy, padding_bias[:rows])
            context = torch.bmm(alpha[:, None], annotations[:rows], out=contexts[span][:, None]).squeeze(1)
            state, gates2[span] = gru_step(_linear(context, context_weight, context_bias), _linear(middle, weight2, bias2), middle)
            middles[span], states[span] = middle, state
            mixed.append(mix)
            weights.append(alpha)
            begin += rows
        saved = (annotations, energy, weight1, bias1, query, context_weight, context_bias, weight2, bias2)
        ctx.save_for_backward(*saved, previous, middles, contexts, gates1, gates2, *mixed, *weights)
        ctx.active, ctx.saved_weights = active, len(saved)
        return states, contexts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        annotations, energy, weight1, bias1, query, context_weight, context_bias, weight2, bias2 = ctx.saved_tensors[:9]
        previous, middles, contexts, gates1, gates2 = ctx.saved_tensors[9:14]
        steps = len(ctx.active)
        mixed, weights = ctx.saved_tensors[14 : 14 + steps], ctx.saved_tensors[14 + steps :]
        d_states, d_contexts_out = grad_outputs
        words, dim = previous.shape
        new = previous.new_empty
        d_projected, d_recurrent1, d_inner, d_recurrent2 = (new(words, 3 * dim) for _ in range(4))
        d_query, d_contexts = new(words, dim), new(words, annotations.shape[2])
        batch, source_time = annotations.shape[:2]
        d_keys, d_energy = previous.new_zeros(batch, source_time, dim), torch.zeros_like(energy)
        all_weights, all_contexts = (previous.new_zeros(batch, steps, n) for n in (source_time, annotations.shape[2]))
        carry = previous.new_zeros(batch, dim)
        end = words
        for step in range(steps - 1, -1, -1):
            rows = ctx.active[step]
            span = slice(end - rows, end)
            d_state = carry[:rows].add_(d_states[span])
            d_middle = gru_step_backward(d_state, middles[span], gates2[span], d_inner[span], d_recurrent2[span])
            d_middle += _linear(d_recurrent2[span], weight2.t())
            d_context = torch.add(d_contexts_out[span], _linear(d_inner[span], context_weight.t()), out=d_contexts[span])
            alpha, mix = weights[step], mixed[step]
            d_alpha = torch.bmm(annotations[:rows], d_context[:, :, None]).squeeze(2)
            d_scores = alpha * (d_alpha - (alpha * d_alpha).sum(1, keepdim=True))
            d_energy += d_scores.flatten() @ mix.flatten(0, 1)
            d_mix = torch.addcmul(torch.ones((), dtype=mix.dtype, device=mix.device), mix, mix, value=-1.0)
            d_mix.mul_(d_scores[:, :, None]).mul_(energy)
            d_keys[:rows] += d_mix
            torch.sum(d_mix, 1, out=d_query[span])
            d_middle += _linear(d_query[span], query.t())
            direct = gru_step_backward(d_middle, previous[span], gates1[span], d_projected[span], d_recurrent1[span])
            torch.add(direct, _linear(d_recurrent1[span], weight1.t()), out=carry[:rows])
            all_weights[:rows, step], all_contexts[:rows, step] = alpha, d_context
            end -= rows
        d_annotations = torch.bmm(all_weights.transpose(1, 2), all_contexts)
        return (
            d_projected, carry, d_annotations, d_keys, None, d_energy,
            _weight_gradient(d_recurrent1, previous, weight1), d_recurrent1.sum(0).to(bias1.dtype),
            _weight_gradient(d_query, middles, query),
            _weight_gradient(d_inner, contexts, context_weight), d_inner.sum(0).to(context_bias.dtype),
            _weight_gradient(d_recurrent2, middles, weight2), d_recurrent2.sum(0).to(bias2.dtype), None,
        )  # fmt: skip


def conditional_gru(
    projected: Tensor, start: Tensor, annotations: Tensor, keys: Tensor, padding_bias: Tensor, energy: Tensor,
    weight1: Tensor, bias1: Tensor, query: Tensor, context_weight: Tensor, context_bias: Tensor, weight2: Tensor, bias2: Tensor,
    active: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(states [words, dim], contexts [words, 2 dim]) of GRU 1 - attention - GRU 2 over packed words.

    projected [words, 3 dim], start [batch, dim], annotations [batch, source_time, 2 dim], keys [batch, source_time, dim],
    padding_bias [batch, source_time] (0 or -inf), energy [dim]; the batch is sorted by target length, longest first.
    """
    return cast(
        tuple[Tensor, Tensor],
        _ConditionalGru.apply(  # type: ignore[no-untyped-call]
            projected, start, annotations, keys, padding_bias, energy, weight1, bias1, query, context_weight, context_bias, weight2,
            bias2, active,
        ),
    )  # fmt: skip
