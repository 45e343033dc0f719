"""Flat parameters: named views on one contiguous buffer (fp32, or the one type of the module), and the same for the gradients.

This is the one small type where models and the distributed engine meet. Invariants: every parameter of the module is a view of `values`
and its `.grad` is a view of `gradients`, so autograd accumulates straight into the flat buffer; tied parameters appear once; the order is
that of `named_parameters()`. Called by the training loops; shards see only slices of `values`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatParameters:
    """Moves the parameters of `module` into one flat buffer `values` [parameters] with `gradients` [parameters] beside it."""

    def __init__(self, module: nn.Module) -> None:
        named = list(module.named_parameters())
        if not named:
            raise ValueError("the model has no parameters; expected at least one trainable tensor")
        types = {p.dtype for _, p in named}
        if len(types) > 1:
            raise ValueError(f"found parameters of the types {sorted(map(str, types))}, expected one type for all")
        self.shapes = {name: tuple(p.shape) for name, p in named}
        self.size = sum(p.numel() for _, p in named)
        first = named[0][1]
        self.values = torch.empty(self.size, dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros_like(self.values)
        self.ranges: dict[str, tuple[int, int]] = {}  # [begin, end) of every parameter
        offset = 0
        for name, parameter in named:
            end = offset + parameter.numel()
            self.ranges[name] = (offset, end)
            view = self.values[offset:end].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.gradients[offset:end].view(parameter.shape)
            offset = end

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Cuts any flat vector [parameters] into tensors named and shaped like the parameters."""
        if flat.numel() != self.size:
            raise ValueError(f"found a flat vector of {flat.numel()} elements, expected {self.size} (is it of another model?)")
        return {name: flat[begin:end].view(self.shapes[name]) for name, (begin, end) in self.ranges.items()}
