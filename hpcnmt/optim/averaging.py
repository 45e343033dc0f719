"""The shards' side of local SGD: parameters move by the mean of the ways that the workers' local steps have gone.

With N workers a push moves them by 1 / N of its way, whenever it comes: N pushes make the mean, of one moment (lockstep: McMahan et al.
2017, arXiv 1602.05629; Stich 2019, arXiv 1805.09767) or of several (asynchronous). No moments, no learning rate: both are the workers'.
Held by the update rule (update.py) in place of Adam; the arithmetic is the momentum rule of hpcnmt.ops without momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpcnmt import ops
from hpcnmt.optim.adam import PIECE_ELEMENTS


class Averaging:
    """The mean over `workers` for `size` parameters on `device`. A worker that has left is counted as one that has stopped moving."""

    def __init__(self, size: int, workers: int, device: torch.device | str = "cpu") -> None:
        if workers < 1:
            raise ValueError(f"found a mean over {workers} workers, expected at least 1")
        self.workers = workers
        self.stats = ops.new_stats(device)
        self._moment = torch.zeros(min(size, PIECE_ELEMENTS), device=device)  # what the kernel writes; nothing is kept in it
        self._factors = torch.empty(ops.FACTORS, device=device)

    def step(
        self, parameters: Tensor, ways_back: Tensor, out: Tensor | None = None, ema: Tensor | None = None, ema_share: float = 0.0,
        between: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """parameters - `ways_back` [size] / workers goes to `out` (default: in place), piece by piece; see Adam.step."""
        ops.StepFactors(1.0 / self.workers, beta1=0.0, ema_share=ema_share).fill(self._factors)
        for begin in range(0, parameters.numel(), PIECE_ELEMENTS):
            part = slice(begin, begin + PIECE_ELEMENTS)
            ops.shard_step_(
                ways_back[part], parameters[part], self._moment[: ways_back[part].numel()], None, self._factors, self.stats,
                out=None if out is None else out[part], ema=None if ema is None else ema[part],
            )  # fmt: skip
            if between:
                between()

    def tensors(self) -> dict[str, Tensor]:
        """Nothing has to be kept in a checkpoint."""
        return {}

    def facts(self) -> dict[str, float | int]:
        """What a checkpoint holds."""
        return {"untouched": self.untouched}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.stats[1] = int(facts["untouched"])

    @property
    def untouched(self) -> int:
        """Elements that stayed where they were because a result would not have been finite, over all steps."""
        return int(self.stats[1])
