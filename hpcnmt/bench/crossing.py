"""Where a curve reaches a target, and the median of that over seeds. Used by time_to_bleu.py, product.py and ablation_summary.py.

One validation jumps up and down by more than it rises near the end. So the target is reached where the mean of the last VALIDATIONS ones
first becomes as good as the target (a BLEU not below it, a cross-entropy not above it): later than a single lucky validation would say.
Between the validation where it is and the one before, words and seconds are interpolated linearly; the first mean of a curve has none
before it and counts in full.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

VALIDATIONS = 3


LOWER_IS_BETTER = ("cross_entropy",)


def mean_of_last(curve: Sequence[Mapping[str, float]], metric: str = "bleu") -> float | None:
    """What is compared with a target at the end of `curve`; None while it has too few validations."""
    return statistics.fmean(point[metric] for point in curve[-VALIDATIONS:]) if len(curve) >= VALIDATIONS else None


def crossing(curve: Sequence[Mapping[str, float]], target: float, metric: str = "bleu") -> dict[str, float] | None:
    """The `target_words` (and `seconds`, where the curve has them) at which `target` is reached; None when it never is."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    mean = None
    for end in range(VALIDATIONS, len(curve) + 1):
        before, mean = mean, mean_of_last(curve[:end], metric)
        if mean is not None and sign * mean >= sign * target:
            share = 1.0 if before is None else (target - before) / (mean - before)
            last, here = curve[end - 2], curve[end - 1]
            return {name: last[name] + share * (here[name] - last[name]) for name in ("target_words", "seconds") if name in here}
    return None


def median_over_seeds(reached: Sequence[Mapping[str, float] | None], name: str) -> float | None:
    """The median of `name` over seeds; a seed that never got there is later than all. None when the median is such a seed."""
    median = statistics.median([math.inf if point is None else point[name] for point in reached] or [math.inf])
    return None if math.isinf(median) else median
