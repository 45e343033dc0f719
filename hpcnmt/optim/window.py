"""The summed gradient of one window, from the last batch to the wire: norm, clipping, rounding with error feedback, a clean accumulator.

Invariants: after `seal` the accumulator is zero, whatever happened; a window with any non-finite element is dropped whole (nothing of it
reaches the wire). Workers of both kinds, the plain loop, virtual time and scripts all seal their windows here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcnmt import ops

DROPS_IN_A_ROW = 10
"""So many windows in a row with a non-finite gradient mean that training has diverged."""


NAMED_SENTENCES = 20


class Diverged(RuntimeError):
    """Training no longer trains. `began_words`: global target words up to which it did, None where that is not known."""

    def __init__(self, message: str, began_words: int | None = None) -> None:
        super().__init__(message)
        self.began_words = began_words

    def located(self, began_words: int, sentences: Sequence[int], window: str = "this window") -> Diverged:
        """The same, by one who knows where in the run and in the data it was: `sentences` are the ids of the last window."""
        ids = ", ".join(map(str, sentences[:NAMED_SENTENCES])) + (" ..." if len(sentences) > NAMED_SENTENCES else "")
        said = f"; {window} has the training sentences {ids}" if sentences else ""
        return Diverged(f"{self}, since {began_words} global target words{said}", began_words)


class GradientWindow:
    """Seals windows summed in `accumulator` [parameters]. `error_feedback`: what rounding to the wire loses goes into the next window."""

    def __init__(self, accumulator: Tensor, clip_norm: float, error_feedback: bool = False) -> None:
        self.accumulator, self.clip_norm = accumulator, clip_norm
        self.stats = ops.new_stats(accumulator.device)
        self.residual = torch.zeros_like(accumulator) if error_feedback else None
        self.dropped = 0
        self._dropped_in_a_row = 0

    def seal(self, wire: Tensor, target_words: int, has_norm: bool = False) -> bool:
        """Writes the clipped sum to `wire` [parameters] and clears the accumulator; False if the window was dropped instead.

        Clips the norm of the mean gradient per word to `clip_norm` (0 = off); `has_norm`: the pass that summed left it in `stats`.
        Raises Diverged when too many windows in a row are dropped.
        """
        if not has_norm:
            ops.sum_squares(self.accumulator, self.stats)
        if self.stats[1] > 0:
            bad = int(self.stats[1])
            self.accumulator.zero_()
            self.stats.zero_()
            self.dropped += 1
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row == DROPS_IN_A_ROW:
                raise Diverged(f"found {bad} non-finite elements in the gradient of the {DROPS_IN_A_ROW}th window in a row")
            return False
        self._dropped_in_a_row = 0
        ops.pack_(self.accumulator, wire, self.stats, target_words, self.clip_norm, self.residual)
        return True
