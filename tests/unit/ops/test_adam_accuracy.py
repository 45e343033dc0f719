"""Adam of the kernels against a float64 reference and against torch's own fused Adam."""

from __future__ import annotations

import torch

from hpcnmt.optim.adam import Adam, AdamConfig

SIZE, STEPS, RATE = 20_001, 100, 1e-3


def test_100_steps_stay_as_close_to_float64_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(SIZE, generator=generator)
    gradients = [torch.randn(SIZE, generator=generator) * 10.0 ** torch.randint(-4, 1, (SIZE,), generator=generator) for _ in range(STEPS)]
    exact, theirs, ours = start.double().requires_grad_(), start.clone().requires_grad_(), start.clone()
    references = [torch.optim.Adam([p], RATE, (0.9, 0.98), 1e-8, fused=fused) for p, fused in ((exact, False), (theirs, True))]
    adam = Adam(SIZE, AdamConfig(0.9, 0.98, 1e-8))
    for gradient in gradients:
        exact.grad, theirs.grad = gradient.double(), gradient.clone()
        for reference in references:
            reference.step()
        adam.step(ours, gradient, RATE)
    error = (ours.double() - exact.detach()).abs()
    assert float(error.max()) <= 2e-6 * float(exact.detach().abs().max())
    of_torch = (theirs.detach().double() - exact.detach()).abs()
    assert float(error.mean()) <= 2 * float(of_torch.mean())
    assert float(error.max()) <= 2 * float(of_torch.max())


def test_betas_may_change_in_mid_run() -> None:
    adam = Adam(3, AdamConfig(0.9, 0.98))
    parameters, gradient = torch.zeros(3), torch.ones(3)
    adam.step(parameters, gradient, 0.1)
    adam.config = AdamConfig(0.5, 0.9)
    adam.step(parameters, gradient, 0.1)
    # a constant gradient: unbiased moments are 1 whatever the betas were, so each step is the learning rate
    torch.testing.assert_close(parameters, torch.full((3,), -0.2), rtol=1e-5, atol=0)
