"""Adam's state on flat vectors; the arithmetic is that of hpcnmt.ops.

Recursive bias-correction denominators d = b d + (1-b) equal 1 - b^t for constant betas, allow betas to change in mid-run and make a resume
exact (Kingma & Ba 2015). For any betas between -1 and 1 they stay in (0, 2), because |d - 1| never grows. Held by the update rule
(update.py) and by a worker's local optimizer (local.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcnmt import ops

PIECE_ELEMENTS = 1 << 20


def _check_betas(section: str, beta1: float, beta2: float) -> None:
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not -1.0 < value < 1.0:
            raise ValueError(f"{section}.{name} is {value}, expected a number between -1 and 1")
    if beta2 < 0:
        raise ValueError(f"{section}.beta2 is {beta2}, expected a number from 0 to 1: the second moment may not turn negative")


@dataclass(frozen=True)
class LaterBetas:
    """Momentum schedule on global target words T: from `words` on these betas hold in place of the first ones.

    gradual: b(T) = b_first + min(T / words, 1) (b_later - b_first). The switch is the "momentum cool-down" of the experiments of Bogoychev
    et al. 2018, which came after a number of batches of each worker; words mean the same for any number of workers. The gradual form is the
    usual linear schedule.
    """

    words: int = 0
    """Global target words from which on these betas hold; 0 = never."""
    beta1: float = 0.92
    beta2: float = 0.998
    """The defaults are the betas of those experiments after the switch."""
    gradual: bool = False
    """Linearly from the first betas at 0 words to these at `words`."""

    def __post_init__(self) -> None:
        if self.words < 0:
            raise ValueError(f"optimizer.later.words is {self.words}, expected 0 (the betas never change) or a positive number of words")
        _check_betas("optimizer.later", self.beta1, self.beta2)


@dataclass(frozen=True)
class AdamConfig:
    """Constants of Adam, and what it is given."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    later: LaterBetas = LaterBetas()
    """Other betas from some global target words on."""
    divide_by_words: bool = True
    """Adam steps by sum / words. false: by the sum itself, as in the experiments of Bogoychev et al. 2018; then epsilon weighs by the
    words of an update, and the second moment lags where these change."""

    def __post_init__(self) -> None:
        _check_betas("optimizer", self.beta1, self.beta2)
        if self.epsilon < ops.SMALLEST_EPSILON:
            raise ValueError(f"optimizer.epsilon is {self.epsilon}, expected at least {ops.SMALLEST_EPSILON}")

    def betas_at(self, global_words: int) -> tuple[float, float]:
        """beta1 and beta2 of the update that brings the global count to `global_words`."""
        later = self.later
        if later.words == 0:
            return self.beta1, self.beta2
        if global_words >= later.words:
            return later.beta1, later.beta2
        share = global_words / later.words if later.gradual else 0.0
        return self.beta1 + share * (later.beta1 - self.beta1), self.beta2 + share * (later.beta2 - self.beta2)

    def scale_of(self, target_words: int) -> float:
        """What the summed gradient of `target_words` is multiplied by before Adam."""
        return 1.0 / target_words if self.divide_by_words else 1.0


class Adam:
    """Adam state for `size` parameters on `device`; `stats` holds what the last step reported, `untouched` all elements it ever left."""

    def __init__(self, size: int, config: AdamConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.moment1 = torch.zeros(size, device=device)
        self.moment2 = torch.zeros(size, device=device)
        self.denominator1 = 0.0
        self.denominator2 = 0.0
        self.stats = ops.new_stats(device)
        self._factors = torch.empty(ops.FACTORS, device=device)

    def factors(self, learning_rate: float, gradient_scale: float, global_words: int, ema_share: float = 0.0) -> Tensor:
        """Advances the denominators by one step, with the betas of `global_words`; returns the constants of that step for hpcnmt.ops."""
        beta1, beta2 = self.config.betas_at(global_words)
        self.denominator1 = beta1 * self.denominator1 + (1.0 - beta1)
        self.denominator2 = beta2 * self.denominator2 + (1.0 - beta2)
        step = ops.StepFactors(
            learning_rate, gradient_scale, beta1, beta2, self.config.epsilon, self.denominator1, self.denominator2, ema_share=ema_share,
        )  # fmt: skip
        return step.fill(self._factors)

    def step(
        self, parameters: Tensor, gradient: Tensor, learning_rate: float, gradient_scale: float = 1.0, global_words: int = 0,
        out: Tensor | None = None, ema: Tensor | None = None, ema_share: float = 0.0, between: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """One step on `parameters` [size] with `gradient_scale` * `gradient` [size]; the result goes to `out` (default: in place).

        `global_words` choose the betas where `later` changes them. `ema` [size] moves by `ema_share` towards the result. Elements with a
        non-finite result are left as they are and counted.
        With `between`, which is called in between, the step goes piece by piece; the result is the same to the bit.
        """
        factors = self.factors(learning_rate, gradient_scale, global_words, ema_share)
        piece = PIECE_ELEMENTS if between else max(parameters.numel(), 1)
        for begin in range(0, parameters.numel(), piece):
            part = slice(begin, begin + piece)
            ops.shard_step_(
                gradient[part], parameters[part], self.moment1[part], self.moment2[part], factors, self.stats,
                out=None if out is None else out[part], ema=None if ema is None else ema[part],
            )  # fmt: skip
            if between:
                between()

    def tensors(self) -> dict[str, Tensor]:
        """The moments, for a checkpoint."""
        return {"moment1": self.moment1, "moment2": self.moment2}

    def facts(self) -> dict[str, float | int]:
        """What else a checkpoint holds."""
        return {"denominator1": self.denominator1, "denominator2": self.denominator2, "untouched": self.untouched}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; what fits in size only is checked by copying."""
        self.moment1.copy_(tensors["moment1"])
        self.moment2.copy_(tensors["moment2"])
        self.denominator1, self.denominator2 = float(facts["denominator1"]), float(facts["denominator2"])
        self.stats[1] = int(facts["untouched"])

    @property
    def untouched(self) -> int:
        """Elements that kept their state because a result would not have been finite, over all steps."""
        return int(self.stats[1])
