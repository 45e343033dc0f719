"""The tables of an ablation: policies beside the baseline, seconds to the target, test scores, and every run. Used by report.py."""

from __future__ import annotations

from collections.abc import Callable

from hpcnmt.bench.network_crossing import in_words
from hpcnmt.bench.report_fields import MISSING, entries, figures, fixed, numbers, points, settings, show
from hpcnmt.bench.report_tables import END_OF_RUN, Columns, by_columns, decimals, field, of_points
from hpcnmt.bench.results import Figures

NAMES = {"cross_entropy": ("cross-entropy", 4), "bleu": ("BLEU", 2), "chrf": ("chrF", 2)}


def rows_of(results: Figures, name: str) -> list[Figures]:
    """The list `name` of the summary."""
    return entries(figures(results.get("summary")).get(name))


def bounds(value: object) -> str:
    """An interval, as "-0.1 to 0.3"."""
    found = [end for end in numbers(value) if end is not None]
    return f"{found[0]:+.3f} to {found[1]:+.3f}" if len(found) == 2 else MISSING


def _spread(name: str, digits: int) -> Callable[[Figures], str]:
    def cell(row: Figures) -> str:
        found = figures(row.get(name))
        mean, low, high = (fixed(found.get(part), digits) for part in ("mean", "smallest", "largest"))
        return mean if mean == MISSING or low == high else f"{mean} ({low} to {high})"

    return cell


def _difference(name: str, digits: int, interval: str = "interval") -> Callable[[Figures], str]:
    """Mean and interval of a difference."""

    def cell(row: Figures) -> str:
        found = figures(row.get(name))
        mean, ends = fixed(found.get("mean"), digits), bounds(found.get(interval))
        return mean if ends == MISSING else f"{mean} ({ends})"

    return cell


def _seeds(row: Figures) -> str:
    return show(len(numbers(row.get("seeds"))) or None)


def policies(results: Figures) -> str:
    """Every policy: quality at the end, difference to the baseline, words to the target, staleness."""
    target = figures(figures(results.get("summary")).get("target"))
    columns: dict[str, Callable[[Figures], str]] = {
        "policy": field("name"), "mode": field("mode"), "workers": field("workers"), "tau": field("delay"),
        "overlap": field("overlap"), "seeds": _seeds,
    }  # fmt: skip
    for name, (title, digits) in NAMES.items():
        columns[f"last {title} (smallest to largest)"] = _spread(name, digits)
        columns[f"{title} - baseline (95 % interval)"] = _difference(f"{name}_difference", digits)
    for name, (title, digits) in NAMES.items():
        if name in target:
            columns[f"words to {title} {fixed(target.get(name), digits)}"] = decimals(f"words_to_{name}", 0)
            columns[f"seeds that reached {title}"] = field(f"reached_{name}")
    columns["mean staleness"] = decimals("mean_staleness", 2)
    baseline = figures(results.get("summary")).get("baseline")
    caption = f"Policies against {show(baseline)}: last validation, and median words to the target over seeds"
    return by_columns(caption, rows_of(results, "policies"), columns, lambda row: "good" * (row.get("name") == baseline))


def tuned(results: Figures) -> str:
    """The best trial of every method, with what it sets."""
    columns: dict[str, Callable[[Figures], str]] = {
        "method": field("method"), "trials": field("trials"), "best trial": field("best"),
        "its options": lambda row: ", ".join(map(show, row["set"] if isinstance(row.get("set"), list) else ())) or MISSING,
        "last cross-entropy": _spread("cross_entropy", 4), "last BLEU": _spread("bleu", 2),
    }  # fmt: skip
    return by_columns("Tuning: the best trial of every method, by cross-entropy", rows_of(results, "tuned"), columns)


def seconds(results: Figures) -> str:
    """Predicted seconds of every policy at each network, with the ratio to the baseline's."""
    columns: dict[str, Callable[[Figures], str]] = {
        "simulated network and batch": field("rates"), "policy": field("name"), "target words/s": decimals("target_words_per_s", 0),
    }  # fmt: skip
    for name in ("cross_entropy", "bleu"):
        title = NAMES[name][0]
        columns[f"seconds to {title}"] = decimals(f"seconds_to_{name}", 1)
        columns[f"{title}: seconds / baseline's"] = decimals(f"ratio_{name}", 3)
    caption = "Predicted seconds: words to the target (virtual time) / words per second (simulated compute)"
    return by_columns(caption, rows_of(results, "seconds"), columns)


def networks(results: Figures) -> str:
    """Every policy beside synchronous training at each network, and from which speed of the links on that wins."""
    rows = rows_of(results, "synchronous_wins")
    labels = dict.fromkeys(show(entry.get("rates")) for row in rows for entry in entries(row.get("ratios")))
    columns: dict[str, Callable[[Figures], str]] = {"policy": field("name"), "synchronous training": field("against")}
    for label in labels:
        columns[label] = _ratio_at(label)
    columns["synchronous training wins from"] = _wins_from
    return by_columns("Times as fast as synchronous training to the same cross-entropy (predicted), and where that wins", rows, columns)


def _ratio_at(label: str) -> Callable[[Figures], str]:
    return lambda row: next((fixed(e.get("ratio"), 3) for e in entries(row.get("ratios")) if show(e.get("rates")) == label), MISSING)


def _wins_from(row: Figures) -> str:
    return in_words(row) if len([end for end in numbers(row.get("measured_link_bytes_per_s")) if end]) == 2 else MISSING


def tested(results: Figures) -> str:
    """Scores on the test sentences, with both intervals of the difference to the baseline."""
    rows = [figures(row.get("test")) | {"name": row.get("name")} for row in rows_of(results, "policies") if figures(row.get("test"))]
    columns: dict[str, Callable[[Figures], str]] = {"policy": field("name"), "seeds": _seeds, "sentences": field("sentences")}
    for name in ("bleu", "chrf"):
        title, digits = NAMES[name]
        columns[f"{title} (smallest to largest)"] = _spread(name, digits)
        columns[f"{title} - baseline (95 % over seeds)"] = _difference(f"{name}_difference", digits)
        columns[f"{title}: 95 % of paired resamples"] = _resampled(f"{name}_difference")
    return by_columns("Test sentences, translated by the best model of every run", rows, columns)


def _resampled(name: str) -> Callable[[Figures], str]:
    return lambda row: bounds(figures(row.get(name)).get("resampled"))


def runs(results: Figures) -> str:
    """Every run: its last validation, staleness and test scores."""
    tests: Columns = {
        "test BLEU": lambda point: fixed(figures(point.get("test")).get("bleu"), 2),
        "test chrF": lambda point: fixed(figures(point.get("test")).get("chrf"), 2),
    }  # fmt: skip
    chosen = {  # what a policy sets is in the file; here its name says it
        key: point | {"settings": {name: value for name, value in settings(point).items() if name != "set"}}
        for key, point in points(results).items()
    }  # fmt: skip
    return of_points("Runs", chosen, {**END_OF_RUN, **tests})
