"""Where a curve reaches a target, and the median of that over seeds. Used by time_to_bleu.py, product.py and ablation_summary.py.

One validation jumps up and down by more than it rises near the end. So the curve is smoothed: each VALIDATIONS validations in a row count
as one point, whose metric, words and seconds are their means. The target is reached where the smoothed metric first becomes as good (a BLEU
not below it, a cross-entropy not above it). Between two smoothed points words and seconds are interpolated linearly; the first one has none
before it and counts in full. Where a window of validations stood for its end, every curve would reach the target one validation late,
which makes a slow method look less slow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

VALIDATIONS = 3


LOWER_IS_BETTER = ("cross_entropy",)


def _smoothed(curve: Sequence[Mapping[str, float]], metric: str) -> list[dict[str, float]]:
    """Means of `metric`, words and (where there are any) seconds of every VALIDATIONS validations in a row."""
    names = [name for name in (metric, "target_words", "seconds") if curve and name in curve[0]]
    windows = [curve[end - VALIDATIONS : end] for end in range(VALIDATIONS, len(curve) + 1)]
    return [{name: statistics.fmean(point[name] for point in window) for name in names} for window in windows]


def mean_of_last(curve: Sequence[Mapping[str, float]], metric: str = "bleu") -> float | None:
    """What is compared with a target at the end of `curve`; None while it has too few validations."""
    means = _smoothed(curve, metric)
    return means[-1][metric] if means else None


def crossing(curve: Sequence[Mapping[str, float]], target: float, metric: str = "bleu") -> dict[str, float] | None:
    """The `target_words` (and `seconds`, where the curve has them) at which `target` is reached; None when it never is."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    before: dict[str, float] | None = None
    for here in _smoothed(curve, metric):
        if sign * here[metric] >= sign * target:
            last, share = before or here, 1.0 if before is None else (target - before[metric]) / (here[metric] - before[metric])
            return {name: last[name] + share * (value - last[name]) for name, value in here.items() if name != metric}
        before = here
    return None


def median_over_seeds(reached: Sequence[Mapping[str, float] | None], name: str) -> float | None:
    """The median of `name` over seeds; a seed that never got there is later than all. None when the median is such a seed."""
    median = statistics.median([math.inf if point is None else point[name] for point in reached] or [math.inf])
    return None if math.isinf(median) else median
