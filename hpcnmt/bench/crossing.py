"""Where a curve reaches a BLEU target, and the median of that over seeds. Used by time_to_bleu.py and product.py.

One validation jumps up and down by more than it rises near the end. So the target is reached at the first validation at which the mean of
the last VALIDATIONS ones is at least the target; its words and seconds count, later than a single lucky validation would say, and nothing
is interpolated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

VALIDATIONS = 3


def crossing(curve: Sequence[Mapping[str, float]], bleu: float) -> dict[str, float] | None:
    """The `target_words` (and `seconds`, where the curve has them) at which `bleu` is reached; None when it never is."""
    for last in range(VALIDATIONS, len(curve) + 1):
        if statistics.fmean(point["bleu"] for point in curve[last - VALIDATIONS : last]) >= bleu:
            return {name: curve[last - 1][name] for name in ("target_words", "seconds") if name in curve[last - 1]}
    return None


def median_over_seeds(reached: Sequence[Mapping[str, float] | None], name: str) -> float | None:
    """The median of `name` over seeds; a seed that never got there is later than all. None when the median is such a seed."""
    median = statistics.median([math.inf if point is None else point[name] for point in reached] or [math.inf])
    return None if math.isinf(median) else median
