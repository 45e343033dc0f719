"""Flat parameters: named views on one contiguous fp32 buffer, and the same for the gradients.

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
        self.shapes = {name: tuple(p.shape) for name, p in named}
        self.size = sum(p.numel() for _, p in named)
        device = named[0][1].device
        self.values = torch.empty(self.size, dtype=torch.float32, device=device)
        self.gradients = torch.zeros(self.size, dtype=torch.float32, device=device)
        offset = 0
        for _, parameter in named:
            end = offset + parameter.numel()
            view = self.values[offset:end].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.gradients[offset:end].view(parameter.shape)
            offset = end

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Cuts any flat vector [parameters] into tensors named and shaped like the parameters."""
        if flat.numel() != self.size:
            raise ValueError(f"found a flat vector of {flat.numel()} elements, expected {self.size} (is it of another model?)")
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            count = int(torch.Size(shape).numel())
            views[name] = flat[offset : offset + count].view(shape)
            offset += count
        return views
