"""Output projection and label-smoothed cross-entropy in one pass over chunks of words: the logits are never kept.

For logits z of a word with label y, smoothing e and vocabulary V:  loss = lse(z) - (1 - e) z_y - e mean(z),
d loss / d z = softmax(z) - (1 - e) onehot(y) - e / V  (as torch.nn.functional.cross_entropy). Each chunk of logits becomes its own gradient
in place while it is in the cache, and is folded into the gradients of states and embedding at once. Called by seq2seq.py.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 21


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` widened from bf16; fp32 and fp64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, embedding: Tensor, bias: Tensor, labels: Tensor, smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        vocabulary = embedding.shape[0]
        weight, hidden, offset = embedding.to(dtype), states.to(dtype), bias.to(dtype)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        d_bias = torch.zeros_like(bias)
        loss, entropy = torch.zeros(2, dtype=torch.float64, device=states.device).unbind()
        chunk = max(CHUNK_ELEMENTS // vocabulary, 1)
        for begin in range(0, hidden.shape[0], chunk):
            rows, target = hidden[begin : begin + chunk], labels[begin : begin + chunk, None]
            logits = at_least_fp32(torch.addmm(offset, rows, weight.t()))
            largest, place = logits.max(1, keepdim=True)
            of_label = logits.gather(1, target)
            mean = logits.mean(1, keepdim=True) if smoothing else of_label
            torch.softmax(logits, 1, out=logits)
            log_sum = largest - logits.gather(1, place).log()
            entropy += (log_sum - of_label).sum(dtype=torch.float64)
            loss += (log_sum - (1.0 - smoothing) * of_label - smoothing * mean).sum(dtype=torch.float64)
            if smoothing:
                logits -= smoothing / vocabulary
            logits.scatter_add_(1, target, torch.full_like(of_label, smoothing - 1.0))
            gradient = logits.to(dtype)
            torch.mm(gradient, weight, out=d_hidden[begin : begin + chunk])
            d_weight.addmm_(gradient.t(), rows)
            d_bias += logits.sum(0)
        ctx.save_for_backward(d_hidden.to(states.dtype), d_weight.to(embedding.dtype), d_bias)
        kind = torch.promote_types(dtype, torch.float32)
        kind = torch.promote_types(dtype, torch.float32)
        loss, entropy = loss.to(kind), entropy.to(kind)
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        d_states, d_embedding, d_bias = ctx.saved_tensors
        if scale.item() != 1.0:
            d_states, d_embedding, d_bias = d_states * scale, d_embedding * scale, d_bias * scale
        return d_states, d_embedding, d_bias, None, None, None


def output_loss(
    states: Tensor, embedding: Tensor, bias: Tensor, labels: Tensor, smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(label-smoothed loss, plain cross-entropy), summed over words; states [words, dim], embedding [vocabulary, dim], labels [words].

    Matrix products run in `dtype`; the softmax is fp32 (fp64 for a model in fp64). The second result carries no gradient.
    """
    return cast(tuple[Tensor, Tensor], _OutputLoss.apply(states, embedding, bias, labels, smoothing, dtype))  # type: ignore[no-untyped-call]
