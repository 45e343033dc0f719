"""Figures over seeds: spread, and differences between two ways of training on the seeds that both have. Pure functions.

The 95 % interval of a mean difference is mean +- t * s / sqrt(n) for n paired differences with standard deviation s, t of n - 1 degrees
of freedom (Student); with fewer than two common seeds there is none. Used by quality.py and ablation_summary.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from hpcnmt.bench.results import Figures
from hpcnmt.bench.runs import mean_staleness

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond these the last one serves, a little too wide."""


def spread(values: Sequence[float]) -> Figures:
    """Mean, smallest and largest."""
    return {"mean": statistics.fmean(values), "smallest": min(values), "largest": max(values)}


def last(points: Mapping[int, Figures], metric: str) -> dict[int, float]:
    """`metric` of the last validation of every seed."""
    return {seed: float(point["curve"][-1][metric]) for seed, point in points.items()}


def staleness_over(points: Mapping[int, Figures]) -> float | None:
    """Mean over seeds of the mean staleness; None where nothing was pushed."""
    means = [mean for point in points.values() if (mean := mean_staleness(point["staleness"])) is not None]
    return statistics.fmean(means) if means else None


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Figures | None:
    """Mean of ours - theirs over the common seeds with its 95 % interval; None without a common seed."""
    paired = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not paired:
        return None
    mean, interval = statistics.fmean(paired), None
    if len(paired) > 1:
        half = T_975[min(len(paired) - 1, len(T_975)) - 1] * statistics.stdev(paired) / math.sqrt(len(paired))
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "seeds": len(paired)}
