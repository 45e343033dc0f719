"""The pictures of an ablation: quality against words and against predicted seconds, differences to the baseline, staleness.

A line is the mean over the seeds of a policy, validation by validation, with a band from the smallest to the largest seed. Seconds are
words / words per second of a simulated rate, and the picture says so. Used by report.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes

from hpcnmt.bench import report_pictures
from hpcnmt.bench.rates import Phase, seconds_to
from hpcnmt.bench.report_ablation_tables import NAMES, rows_of
from hpcnmt.bench.report_fields import curve, entries, figures, histogram, number, numbers, points, settings, show
from hpcnmt.bench.report_style import BLACK, BLUE, GREY, VERMILLION, Picture, bar_rows, finish, legend, looks, panels, shorten, style
from hpcnmt.bench.results import Figures

METRICS = {"cross_entropy": "cross-entropy, nats per target word", "bleu": "validation BLEU"}
MOST_COLUMNS = 4
XOfWords = Callable[[float], float]
BEGINNING = 0.25
"""Share of a curve whose cross-entropy is left out of the picture when it is far above the rest."""


def _policy(point: Figures) -> str:
    return shorten(settings(point).get("name"))


def _by_policy(results: Figures) -> dict[str, list[Figures]]:
    """Points by policy, in the order of the summary's table where there is one."""
    found: dict[str, list[Figures]] = {shorten(row.get("name")): [] for row in rows_of(results, "policies")}
    for point in points(results).values():
        found.setdefault(_policy(point), []).append(point)
    return {name: seeds for name, seeds in found.items() if seeds}


def _band(seeds: Sequence[Figures], metric: str) -> list[tuple[float, float, float, float]]:
    """(words, mean, smallest, largest) of every validation that all seeds have."""
    lines = [line for point in seeds if (line := curve(point, "target_words", metric))]
    band = []
    for records in zip(*lines, strict=False):
        values = [value for _, value in records]
        band.append((statistics.fmean(words for words, _ in records), statistics.fmean(values), min(values), max(values)))
    return band


def _draw(axes: Sequence[Axes], policies: dict[str, list[Figures]], x_of_words: dict[str, XOfWords], results: Figures) -> None:
    """Cross-entropy and BLEU of `policies` on two axes; `x_of_words`: where target words are on the horizontal axis, by policy."""
    target = figures(figures(results.get("summary")).get("target"))
    look = looks(_by_policy(results))
    for axis, metric in zip(axes, METRICS, strict=True):
        ends = []
        for name, seeds in policies.items():
            band = _band(seeds, metric)
            if not band:
                continue
            words, mean, smallest, largest = (list(column) for column in zip(*band, strict=True))
            colour, marker = look[name]
            xs = [x_of_words[name](word) for word in words]
            axis.plot(xs, mean, color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)
            axis.fill_between(xs, smallest, largest, color=colour, alpha=0.15, linewidth=0)
            ends.append((min(smallest), max(largest[int(BEGINNING * len(largest)) :])))
        if ends and metric == "cross_entropy":
            low, high = min(end[0] for end in ends), max(end[1] for end in ends)
            axis.set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
        if (goal := number(target.get(metric))) is not None:
            axis.axhline(goal, color=BLACK, linestyle="--", linewidth=1, label="target")
        axis.set_ylabel(METRICS[metric])


@style()
def against_words(results: Figures) -> Picture | None:
    """Cross-entropy and BLEU against words, a line for each policy."""
    policies = _by_policy(results)
    figure, axes = panels(2, 2, 4.8)
    _draw(axes, policies, dict.fromkeys(policies, lambda words: 1e-6 * words), results)
    if not any(axis.lines for axis in axes):
        return None
    for axis in axes:
        axis.set_xlabel("target words, millions")
    legend(figure, axes, columns=4)
    caption = "Means over seeds; bands from the smallest to the largest. The first quarter of cross-entropy may be above the picture."
    return finish(figure, "words", "Cross-entropy and BLEU against words", caption)


def _phases(row: Figures) -> list[Phase]:
    """Of an entry of "seconds"; older results have one rate for all of the run."""
    found = []
    for phase in entries(row.get("phases")) or [{"from_words": 0, **row}]:
        begin, rate = number(phase.get("from_words")), number(phase.get("target_words_per_s"))
        if begin is None or not rate:
            return []
        found.append(Phase(int(begin), rate))
    return found


@style()
def against_seconds(results: Figures) -> Picture | None:
    """The same against predicted seconds, a row of panels for each network of the throughput results."""
    rates: dict[str, dict[str, XOfWords]] = {}
    for row in rows_of(results, "seconds"):
        if phases := _phases(row):
            rates.setdefault(shorten(row.get("rates")), {})[shorten(row.get("name"))] = partial(seconds_to, phases=phases)
    rates = dict(list(rates.items())[:MOST_COLUMNS])
    policies = _by_policy(results)
    if not rates:
        return None
    figure, axes = panels(2 * len(rates), 2, 4.0)
    for index, (label, of_words) in enumerate(rates.items()):
        pair = axes[2 * index : 2 * index + 2]
        _draw(pair, {name: seeds for name, seeds in policies.items() if name in of_words}, of_words, results)
        for axis in pair:
            axis.set_title(label, fontsize=9)
            axis.set_xlabel("predicted seconds")
    if not any(axis.lines for axis in axes):
        return None
    legend(figure, axes, columns=4)
    caption = (
        "Predicted: words of virtual time / words per second that were measured with simulated compute; means over seeds, bands from "
        "the smallest to the largest."
    )
    return finish(figure, "seconds", "Cross-entropy and BLEU against predicted seconds", caption)


@style()
def differences(results: Figures) -> Picture | None:
    """Difference of every policy to the baseline with its 95 % interval."""
    rows = rows_of(results, "policies")[: report_pictures.MOST_BARS]
    found = [row for row in rows if any(number(figures(row.get(f"{name}_difference")).get("mean")) is not None for name in NAMES)]
    if not found:
        return None
    figure, axes = bar_rows([shorten(row.get("name")) for row in found], columns=2)
    for axis, metric in zip(axes, METRICS, strict=True):
        sign = -1 if metric == "cross_entropy" else 1
        for index, row in enumerate(found):
            entry = figures(row.get(f"{metric}_difference"))
            mean, ends = number(entry.get("mean")), [end for end in numbers(entry.get("interval")) if end is not None]
            if mean is None:
                continue
            clear = len(ends) == 2 and min(ends) * max(ends) > 0
            colour = GREY if not clear else BLUE if sign * mean > 0 else VERMILLION
            if len(ends) == 2:
                axis.plot(ends, [index, index], color=colour, linewidth=2, solid_capstyle="butt")
            axis.plot(mean, index, marker="o" if clear else "D", color=colour, markeredgecolor="black", markeredgewidth=0.5)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xlabel(f"{METRICS[metric]}: difference\n({'left' if sign < 0 else 'right'} is better)")
    baseline = show(figures(results.get("summary")).get("baseline"))
    caption = (
        f"Last validation, mean over common seeds minus {shorten(baseline)}, with the 95 % interval (Student's t). "
        "Blue: better, red: worse, grey diamonds: the interval holds zero, or there is one seed only."
    )
    return finish(figure, "differences", f"Difference to {shorten(baseline)}", caption)


def staleness(results: Figures) -> Picture | None:
    """Histograms of staleness, those of all seeds of a policy together."""
    pooled: dict[str, Figures] = {}
    for name, seeds in _by_policy(results).items():
        counts: dict[str, float] = {}
        for point in seeds:
            for steps, count in histogram(point.get("staleness")).items():
                counts[str(steps)] = counts.get(str(steps), 0) + count
        if counts:
            pooled[name] = {"staleness": counts}
    return report_pictures.staleness({"points": pooled})
