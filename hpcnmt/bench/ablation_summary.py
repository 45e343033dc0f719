"""The summary of an ablation from its points: what each policy reaches, how far it is from the baseline, and how soon it gets to a target.

Quality is against words (virtual time); seconds are a product: words to the target / words per second of a simulated rate. Pure
functions; called by ablation.py, shown by report_ablation.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hpcnmt.bench.crossing import LOWER_IS_BETTER, crossing, mean_of_last, median_over_seeds
from hpcnmt.bench.grid import Grid, Target
from hpcnmt.bench.network_crossing import synchronous_wins
from hpcnmt.bench.rates import Column, seconds_to
from hpcnmt.bench.results import Figures
from hpcnmt.bench.runs import GROWING
from hpcnmt.bench.seeds import difference, last, spread, staleness_over
from hpcnmt.bench.significance import TESTED, pooled_interval

METRICS = ("cross_entropy", "bleu", "chrf")
TARGETS = ("cross_entropy", "bleu")
SETTINGS = ("mode", "workers", "delay", "overlap", "wire", "batch_words")
BySeed = dict[int, Figures]


def by_policy(points: Mapping[str, Figures]) -> dict[str, BySeed]:
    """Points by policy and seed."""
    found: dict[str, BySeed] = {}
    for point in points.values():
        found.setdefault(point["settings"]["name"], {})[point["settings"]["seed"]] = point
    return found


def targets(given: Target, baseline: BySeed) -> dict[str, float | None]:
    """What is to be reached: as given, or the median over the baseline's seeds of the mean of their last validations.

    Of an even number of seeds the worse one in the middle counts, so that the baseline itself always has a median time to it.
    """
    found: dict[str, float | None] = {}
    for metric in TARGETS:
        ends = [end for point in baseline.values() if (end := mean_of_last(point["curve"], metric)) is not None]
        middle = statistics.median_high if metric in LOWER_IS_BETTER else statistics.median_low
        found[metric] = getattr(given, metric) or (middle(ends) if ends else None)
    return found


def summarize(points: Mapping[str, Figures], grid: Grid, columns: Sequence[Column]) -> Figures:
    """The whole summary: "baseline", "target", "policies" (in the order of the grid), "tuned" where policies are trials of methods, and
    with throughput results "seconds" and "synchronous_wins"."""
    policies = by_policy(points)
    compared = policies.get(grid.baseline, {})
    goal = targets(grid.target, compared)
    order = [*(name for name in grid.policies if name in policies), *(name for name in policies if name not in grid.policies)]
    rows = [_row(name, policies[name], compared, goal) for name in order]
    seconds = [entry for column in columns for entry in _seconds(rows, column, grid.baseline)]
    tuned = [_tuned(method, trials, rows, grid) for method, trials in grid.methods.items()]
    summary = {"baseline": grid.baseline, "target": goal, "policies": rows}
    wins = synchronous_wins(rows, seconds, columns)
    summary |= {"tuned": tuned} if tuned else {}
    return summary | ({"seconds": seconds} if columns else {}) | ({"synchronous_wins": wins} if wins else {})


def _tuned(method: str, trials: Sequence[str], rows: Sequence[Figures], grid: Grid) -> Figures:
    """The best trial of a method by the last cross-entropy, and how many trials it had."""
    found = [row for row in rows if row["name"] in trials and row["cross_entropy"]]
    best = min(found, key=lambda row: row["cross_entropy"]["mean"], default=None)
    chosen = {} if best is None else {
        "best": best["name"], "set": list(grid.policies[best["name"]].set), "cross_entropy": best["cross_entropy"], "bleu": best["bleu"],
    }  # fmt: skip
    return {"method": method, "trials": len(found)} | chosen


def unequal_trials(summary: Figures) -> str:
    """A line when methods were tuned with different numbers of trials, or "": such a comparison favours one of them."""
    counts = {row["method"]: row["trials"] for row in summary.get("tuned", ())}
    if len(set(counts.values())) < 2:
        return ""
    return "methods have different numbers of trials: " + ", ".join(f"{name} {count}" for name, count in counts.items())


def _row(name: str, seeds: BySeed, baseline: BySeed, goal: Mapping[str, float | None]) -> Figures:
    settings = next(iter(seeds.values()))["settings"]
    row: Figures = {"name": name} | {key: settings[key] for key in SETTINGS} | {"seeds": sorted(seeds)}
    row |= {key: settings[key] for key in GROWING if key in settings}
    row["target_words"] = statistics.fmean(point["curve"][-1]["target_words"] for point in seeds.values())
    for metric in METRICS:
        found = last(seeds, metric)
        row[metric] = spread(list(found.values()))
        row[f"{metric}_difference"] = None if seeds is baseline else difference(found, last(baseline, metric))
    for metric, target in goal.items():
        reached = [None if target is None else crossing(point["curve"], target, metric) for point in seeds.values()]
        row[f"words_to_{metric}"] = median_over_seeds(reached, "target_words")
        row[f"reached_{metric}"] = sum(point is not None for point in reached)
    return row | {"mean_staleness": staleness_over(seeds), "test": _tested(seeds, baseline)}


def _tested(seeds: BySeed, baseline: BySeed) -> Figures | None:
    """BLEU and chrF on the test sentences; None where no seed was translated.

    Two intervals of the difference: "interval" is of its mean over seeds (Student's t), "resampled" holds 95 % of the paired
    bootstrap samples of all common seeds together, in which both the sentences and the seeds vary.
    """
    ours, theirs = ({seed: point["test"] for seed, point in points.items() if "test" in point} for points in (seeds, baseline))
    if not ours:
        return None
    row: Figures = {"seeds": sorted(ours), "sentences": next(iter(ours.values()))["sentences"]}
    for metric in TESTED:
        row[metric] = spread([test[metric] for test in ours.values()])
        against = None if seeds is baseline else difference(*({s: test[metric] for s, test in each.items()} for each in (ours, theirs)))
        samples = [test["resampled"][metric] for test in ours.values() if "resampled" in test]
        row[f"{metric}_difference"] = against and against | {"resampled": pooled_interval(samples)}
    return row


def _seconds(rows: Sequence[Figures], column: Column, baseline: str) -> list[Figures]:
    """A row for each policy that has a rate in `column`: the simulated batch stands for the baseline's, so for no batch of other words."""
    found, batch_words = [], next((row["batch_words"] for row in rows if row["name"] == baseline), None)
    for row in rows:
        phases = column.phases(row) if row["batch_words"] == batch_words else []
        if not phases:
            continue
        entry: dict[str, Any] = {
            "rates": column.label, "name": row["name"], "throughput": ", then ".join(phase.throughput for phase in phases),
            "target_words_per_s": row["target_words"] / seconds_to(row["target_words"], phases),
            "phases": [{"from_words": phase.from_words, "target_words_per_s": phase.target_words_per_s} for phase in phases],
        }  # fmt: skip
        for metric in TARGETS:
            words = row[f"words_to_{metric}"]
            entry[f"seconds_to_{metric}"] = None if words is None else seconds_to(words, phases)
        found.append(entry)
    compared: Figures = next((entry for entry in found if entry["name"] == baseline), {})
    for entry, metric in ((entry, metric) for entry in found for metric in TARGETS):
        ours, theirs = entry[f"seconds_to_{metric}"], compared.get(f"seconds_to_{metric}")
        entry[f"ratio_{metric}"] = None if ours is None or not theirs else ours / theirs
    return found


def without_rate(summary: Figures, columns: Sequence[Column]) -> list[str]:
    """What has no seconds, in words."""
    having = {(entry["rates"], entry["name"]) for entry in summary.get("seconds", ())}
    names = [row["name"] for row in summary["policies"]]
    return [f"{name} ({column.label})" for column in columns for name in names if (column.label, name) not in having]
