"""Adam against torch's, in one step after another; the schedule's shape."""

from __future__ import annotations

import pytest
import torch

from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.optim.schedule import ScheduleConfig


def test_adam_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(777, dtype=torch.float32), torch.nn.Parameter(torch.empty(777))
    theirs.data.copy_(ours)
    adam = Adam(777, AdamConfig(0.9, 0.98, 1e-8))
    reference = torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.98), eps=1e-8)
    for _ in range(100):
        gradient = torch.randn(777)
        theirs.grad = gradient.clone()
        reference.step()
        adam.step(ours, gradient, 1e-2)
    torch.testing.assert_close(ours, theirs.data, rtol=0, atol=2e-6)


def test_schedule() -> None:
    schedule = ScheduleConfig(1.0, 1000, "inverse_sqrt", 100)
    assert schedule.at(500, 100) == pytest.approx(0.5)
    assert schedule.at(4000, 200) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="warmup_words is 0"):
        ScheduleConfig(warmup_words=0)


def test_gradients_accumulate_into_the_flat_buffer_and_tied_parameters_appear_once() -> None:
    layer = torch.nn.Linear(3, 3, bias=False)
    module = torch.nn.ModuleList([layer, layer])
    flat = FlatParameters(module)
    assert flat.size == 9
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(flat.gradients, torch.ones(9))
    flat.values.fill_(2.0)
    assert torch.equal(layer.weight, torch.full((3, 3), 2.0))
    with pytest.raises(ValueError, match="another model"):
        flat.named_views(torch.zeros(8))
