"""Adam against torch's, in one step after another; betas that change; flat gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.optim.adam import Adam, AdamConfig, LaterBetas
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.optim.update import Update, UpdateConfig
from tests import quadratic


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


BETA1, BETA2 = st.floats(-0.9, 0.99), st.floats(0.0, 0.999)


@given(BETA1, BETA2, BETA1, BETA2, st.booleans())
def test_bias_correction_is_exact_while_betas_change(first1: float, first2: float, last1: float, last2: float, gradual: bool) -> None:
    # Whatever the betas: under a constant gradient the corrected moments are that gradient and its square, so every step is the rate.
    adam = Adam(3, AdamConfig(first1, first2, 1e-30, LaterBetas(300, last1, last2, gradual)))
    parameters, gradient = torch.zeros(3), torch.tensor([0.25, -2.0, 3.0])
    for step in range(1, 8):
        adam.step(parameters, gradient, 0.5, global_words=50 * step)
        torch.testing.assert_close(parameters, -0.5 * step * gradient.sign(), rtol=2e-4, atol=0)


def test_later_betas_hold_from_their_words_on() -> None:
    switch, ramp = (AdamConfig(0.9, 0.98, later=LaterBetas(1000, 0.5, 0.9, gradual)) for gradual in (False, True))
    assert [switch.betas_at(words) for words in (0, 999, 1000, 5000)] == [(0.9, 0.98), (0.9, 0.98), (0.5, 0.9), (0.5, 0.9)]
    assert ramp.betas_at(0) == (0.9, 0.98) and ramp.betas_at(1000) == ramp.betas_at(5000) == (0.5, 0.9)
    assert ramp.betas_at(250) == pytest.approx((0.8, 0.96))
    assert AdamConfig(0.9, 0.98).betas_at(10**12) == (0.9, 0.98)


def test_an_update_takes_the_betas_of_the_words_it_brings_in() -> None:
    # Equal to an Adam whose configuration is exchanged by hand before the update that reaches the words.
    config, late = AdamConfig(0.9, 0.98, later=LaterBetas(40, 0.0, 0.5)), AdamConfig(0.0, 0.5)
    ours, theirs = (Update(quadratic.SIZE, UpdateConfig(adam, quadratic.SCHEDULE)) for adam in (config, AdamConfig(0.9, 0.98)))
    results = [quadratic.initial(), quadratic.initial()]
    for step, words in enumerate((10, 20, 9, 1, 10)):
        gradient = torch.cos(torch.arange(quadratic.SIZE) + step)
        if step == 3:
            theirs.rule.config = late
        ours.apply(results[0], gradient, words)
        theirs.apply(results[1], gradient, words)
    assert torch.equal(*results)


def test_adam_takes_the_sum_where_it_is_not_divided() -> None:
    # With an epsilon that weighs, (sum, not divided) is (words * sum, divided), and not (sum, divided).
    results = {}
    for name, divide, factor in (("sum", False, 1.0), ("same", True, 16.0), ("mean", True, 1.0)):
        update = Update(quadratic.SIZE, UpdateConfig(AdamConfig(epsilon=0.1, divide_by_words=divide), quadratic.SCHEDULE))
        parameters = results[name] = quadratic.initial()
        for step in range(5):
            update.apply(parameters, factor * torch.cos(torch.arange(quadratic.SIZE) + step), 16)
    assert torch.equal(results["sum"], results["same"])
    assert float((results["sum"] - results["mean"]).abs().max()) > 1e-3


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
