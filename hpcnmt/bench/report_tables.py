"""The tables of a report: HTML from results, one function for each table, "" where a file has nothing for it.

Invariants: every word that comes from a file passes html.escape in `table`; a column without any entry is left out, so that a run cut
short gives a narrow table instead of an empty one; settings that are the same in all rows stand once below the caption. Used by report.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

from hpcnmt.bench.report_fields import (
    MISSING,
    count_workers,
    curve,
    entries,
    figures,
    fixed,
    histogram,
    loses,
    mean,
    number,
    numbers,
    percent,
    points,
    ratio,
    settings,
    show,
)
from hpcnmt.bench.results import Figures
from hpcnmt.distributed.activity import TRAINING

Columns = Mapping[str, Callable[[Figures], str]]  # title: what a row shows there
NUMERIC = re.compile(r"[-+]?[\d.,]+( |$)")
# settings of a point by name, and what a reader calls them
SETTINGS = {
    "name": "run", "mode": "mode", "backend": "backend", "workers": "workers", "shards": "shards", "delay": "tau", "bytes": "bytes",
    "wire": "wire", "overlap": "overlap", "busy": "busy shard", "compute": "compute", "batch_s": "s a batch", "network": "network",
    "straggler": "straggler factor", "parameters": "parameters", "seconds": "seconds", "seed": "seed",
}  # fmt: skip


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] = (), note: str = "") -> str:
    """An HTML table of plain text; `marks` are CSS classes of the rows."""
    kept = [column for column in range(len(header)) if any(row[column] != MISSING for row in rows)]
    if not kept:
        return ""
    right = {column for column in kept if all(row[column] == MISSING or NUMERIC.match(row[column]) for row in rows)}

    def line(cells: Sequence[str], tag: str) -> str:
        align = (' class="number"' if column in right else "" for column in kept)
        return "".join(f"<{tag}{style}>{escape(cells[column])}</{tag}>" for column, style in zip(kept, align, strict=True))

    classes = [f' class="{escape(mark)}"' if mark else "" for mark in marks] or [""] * len(rows)
    body = "\n".join(f"<tr{style}>{line(row, 'td')}</tr>" for row, style in zip(rows, classes, strict=True))
    below = f"<span>{escape(note)}</span>" if note else ""
    return (
        f'<div class="table"><table><caption>{escape(caption)}{below}</caption>\n'
        f"<thead><tr>{line(header, 'th')}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def by_columns(caption: str, rows: Sequence[Figures], columns: Columns, mark: Callable[[Figures], str] = lambda row: "") -> str:
    """A table of `rows`; `mark` gives the CSS class of each."""
    return table(caption, list(columns), [[show_cell(row) for show_cell in columns.values()] for row in rows], list(map(mark, rows)))


def of_points(caption: str, chosen: Mapping[str, Figures], columns: Columns) -> str:
    """A table with the settings of each point before its figures; settings that all points share stand below the caption."""
    rows = list(chosen.values())
    names = [*SETTINGS, *{name: None for row in rows for name in settings(row) if name not in SETTINGS}]
    shown = {name: [show(settings(row).get(name)) for row in rows] for name in names}
    shown = {name: cells for name, cells in shown.items() if set(cells) != {MISSING}}
    shared = {name: cells[0] for name, cells in shown.items() if len(rows) > 1 and len(set(cells)) == 1}
    varied = [name for name in shown if name not in shared]
    note = ", ".join(f"{SETTINGS.get(name, name)} {value}" for name, value in shared.items())
    lines = [[*(shown[name][i] for name in varied), *(cell(row) for cell in columns.values())] for i, row in enumerate(rows)]
    if not any(cell != MISSING for line in lines for cell in line[len(varied) :]):
        return ""
    return table(caption, [*(SETTINGS.get(name, name) for name in varied), *columns], lines, note=note and f"In all rows: {note}.")


def _prose(html: str) -> str:
    """A table whose cells may hold sentences: they wrap."""
    return f'<div class="prose">{html}</div>'


def field(name: str, show_value: Callable[[object], str] = show) -> Callable[[Figures], str]:
    """A column of the field `name`."""
    return lambda row: show_value(row.get(name))


def decimals(name: str, digits: int) -> Callable[[Figures], str]:
    """A column of the field `name` with a fixed number of decimals."""
    return lambda row: fixed(row.get(name), digits)


def files(results: Mapping[str, Figures]) -> str:
    """On what, from which commit and by which command each file was measured."""
    rows = []
    for name, content in results.items():
        machine = figures(content.get("machine"))
        gpus = machine.get("gpus")
        devices = ", ".join(map(str, gpus)) if isinstance(gpus, list) else ""
        cores = f"{show(machine.get('cores'))} cores"
        host = ", ".join(filter(None, [show(machine.get("processor")), cores, devices])) if machine else MISSING
        rows.append(
            [name, show(content.get("kind")), show(len(points(content))), host, show(machine.get("commit")), show(machine.get("command"))]
        )
    return _prose(table("Files", ["file", "kind", "points", "machine", "commit", "command"], rows))


def checks(results: Mapping[str, Figures]) -> str:
    """Every check of the summaries, met or missed, with its figures."""
    rows = [entry | {"file": name} for name, content in results.items() for entry in entries(figures(content.get("summary")).get("checks"))]
    words = {True: "met", False: "MISSED"}

    def verdict(row: Figures) -> str:
        met = row.get("met")
        return words[met] if isinstance(met, bool) else "not known"

    if not rows:
        return ""
    verdicts = [verdict(row) for row in rows]
    said = f"{verdicts.count('met')} of {len(rows)} checks met, {verdicts.count('MISSED')} missed"
    columns: Columns = {
        "file": field("file"), "check": field("what"), "measured": field("measured"), "target": field("target"), "result": verdict,
    }  # fmt: skip
    return _prose(by_columns(said, rows, columns, lambda row: {"met": "good", "MISSED": "bad"}.get(verdict(row), "")))


def words_per_s(results: Figures) -> str:
    """Source, target and total words per second of every point."""

    def spread(point: Figures) -> str:
        rounds = [value for value in numbers(point.get("rounds")) if value is not None]
        return f"{min(rounds):,.0f} to {max(rounds):,.0f} ({len(rounds)})" if rounds else MISSING

    columns: Columns = {
        "source words/s": decimals("source_words_per_s", 0), "target words/s": decimals("target_words_per_s", 0),
        "total words/s": decimals("total_words_per_s", 0), "target words/s of the rounds (number)": spread,
        "windows": field("windows"), "measured for, s": field("seconds"),
    }  # fmt: skip
    return of_points("Words per second, without padding: medians of the rounds", points(results), columns)


def efficiency(results: Figures) -> str:
    """Speedup over one worker and parallel efficiency, a row for each curve and a column for each number of workers."""
    curves = entries(figures(results.get("summary")).get("speedup"))
    workers = sorted({count for entry in curves for count in numbers(entry.get("workers")) if count is not None})
    rows = []
    for entry in curves:
        found = numbers(entry.get("workers"))
        by_workers = dict(zip(found, zip(numbers(entry.get("speedup")), numbers(entry.get("efficiency")), strict=False), strict=False))
        cells = [by_workers.get(count, (None, None)) for count in workers]
        texts = [MISSING if factor is None else f"{factor:.2f}" + f" ({percent(share)})" * (share is not None) for factor, share in cells]
        rows.append([show(entry.get("label")), show(entry.get("network")), show(entry.get("batch_s")), *texts])
    header = ["", "network", "s a batch", *map(count_workers, workers)]
    return table("Speedup over one worker (parallel efficiency)", header, rows)


def async_to_sync(results: Figures) -> str:
    """Asynchronous against the best synchronous training; rows in which asynchrony loses say so."""
    rows = entries(figures(results.get("summary")).get("async_to_sync"))
    columns: Columns = {
        "workers": field("workers"), "shards": field("shards"), "tau": field("delay"), "s a batch": field("batch_s"),
        "network": field("network"), "async words/s": decimals("async_words_per_s", 0),
        "best sync words/s": decimals("sync_words_per_s", 0), "best sync": field("sync_backend"),
        "async / sync": decimals("measured", 2), "ideal": decimals("ideal", 2), "share of ideal": field("share_of_ideal", percent),
        "ideal, overlapped sync": decimals("ideal_overlapped", 2), "share of it": field("share_of_ideal_overlapped", percent),
        "result": lambda row: MISSING if number(row.get("measured")) is None else "async LOSES" if loses(row) else "async wins",
    }  # fmt: skip
    return by_columns("Asynchronous against the best synchronous training", rows, columns, lambda row: "bad" if loses(row) else "")


def stragglers(results: Figures) -> str:
    """One slow worker: measured gain over synchronous training beside its bound."""
    rows = entries(figures(results.get("summary")).get("straggler"))
    columns: Columns = {
        "workers": field("workers"), "shards": field("shards"), "tau": field("delay"), "s a batch": field("batch_s"),
        "network": field("network"), "straggler factor": field("straggler"), "async / sync": decimals("measured", 2),
        "bound": decimals("bound", 2), "share of bound": lambda row: percent(ratio(row.get("measured"), row.get("bound"))),
    }  # fmt: skip
    return by_columns("One straggler", rows, columns)


def shares(results: Figures) -> str:
    """Share of each activity in the time of the workers' main threads."""
    chosen = {key: point for key, point in points(results).items() if figures(point.get("shares"))}
    found = {name for point in chosen.values() for name in figures(point["shares"])}
    names = [name for name in TRAINING if name in found]  # what the exchange thread does beside them is no time of theirs

    def column(name: str) -> Callable[[Figures], str]:
        return lambda point: percent(figures(point["shares"]).get(name))

    return of_points("Share of the workers' time", chosen, {name: column(name) for name in names})


def window_bytes(results: Figures) -> str:
    """Bytes that all workers together send and receive in one window."""
    columns: Columns = {
        "sent, bytes a window": field("bytes_sent"), "received, bytes a window": field("bytes_received"),
        "sent, bytes a parameter": lambda point: fixed(ratio(point.get("bytes_sent"), settings(point).get("parameters")), 2),
    }  # fmt: skip
    chosen = {key: point for key, point in points(results).items() if number(point.get("bytes_sent")) is not None}
    return of_points("Bytes on the wire, all workers together", chosen, columns)


def last_of_curve(x: str, y: str, digits: int, which: int = 1) -> Callable[[Figures], str]:
    """A column of the last record of a curve: `y`, or `x` with which = 0."""
    return lambda point: next((fixed(pair[which], digits) for pair in reversed(curve(point, x, y))), MISSING)


def staleness_cell(point: Figures) -> str:
    """Mean and largest staleness."""
    counts = histogram(point.get("staleness"))
    return f"{fixed(mean(counts), 2)} (largest {max(counts)})" if counts else MISSING


def time_to_bleu(results: Figures) -> str:
    """Every run: when it reached the target, and how far it came."""
    target = number(figures(results.get("config")).get("bleu"))
    columns: Columns = {
        "seconds to the target": lambda point: fixed(figures(point.get("reached")).get("seconds"), 1),
        "target words to the target": lambda point: show(figures(point.get("reached")).get("target_words")),
        "reached": lambda point: show(bool(point["reached"])) if "reached" in point else MISSING,
        "last BLEU": last_of_curve("target_words", "bleu", 2), "last cross-entropy": last_of_curve("target_words", "cross_entropy", 3),
        "target words in all": last_of_curve("target_words", "bleu", 0, 0), "mean staleness": staleness_cell,
    }  # fmt: skip
    return of_points("Runs" if target is None else f"Runs to BLEU {show(target)}", points(results), columns)


def bleu_summary(results: Figures) -> str:
    """Medians over seeds."""
    columns: Columns = {
        "run": field("name"), "seeds": field("seeds"), "reached the target": field("reached"),
        "median seconds": decimals("median_seconds", 1), "median target words": decimals("median_target_words", 0),
    }  # fmt: skip
    return by_columns("Medians over the seeds", entries(figures(results.get("summary")).get("runs")), columns)


def quality(results: Figures) -> str:
    """Cross-entropy and BLEU at the end of every run, with its staleness."""
    return of_points("Quality by number of workers", points(results), END_OF_RUN)


END_OF_RUN: Columns = {
    "target words": last_of_curve("target_words", "cross_entropy", 0, 0),
    "last cross-entropy, nats/word": last_of_curve("target_words", "cross_entropy", 4),
    "best BLEU": lambda point: fixed(max((bleu for _, bleu in curve(point, "target_words", "bleu")), default=None), 2),
    "last BLEU": last_of_curve("target_words", "bleu", 2), "last chrF": last_of_curve("target_words", "chrf", 2),
    "mean staleness": staleness_cell,
}  # fmt: skip


def comm(results: Figures) -> str:
    """Push and pull beside raw Put, Get and memcpy."""

    def ms(name: str) -> Callable[[Figures], str]:
        return lambda point: show(ratio(point.get(name), 1e-3))

    columns: Columns = {
        "push, ms": ms("push_s"), "raw Put, ms": ms("raw_put_s"), "push GB/s": field("push_gb_per_s"),
        "of raw Put": field("push_share_of_put", percent), "pull, ms": ms("pull_s"), "raw Get, ms": ms("raw_get_s"),
        "pull GB/s": field("pull_gb_per_s"), "of raw Get": field("pull_share_of_get", percent), "push and pull, ms": ms("exchange_s"),
        "memcpy, ms": ms("memcpy_s"),
    }  # fmt: skip
    return of_points("Push and pull, medians", points(results), columns)


def latency(results: Figures) -> str:
    """Latencies of small messages, in microseconds."""
    chosen = {key: point for key, point in points(results).items() if figures(point.get("latency_us"))}
    names = {name: None for point in chosen.values() for name in figures(point["latency_us"])}

    def column(name: str) -> Callable[[Figures], str]:
        return lambda point: show(figures(point["latency_us"]).get(name))

    return of_points("Latency, microseconds", chosen, {name: column(name) for name in names})


def soak(results: Figures) -> str:
    """Growth of memory, staleness and the end of every run."""

    def measured_s(point: Figures) -> str:
        return next((show(record.get("seconds")) for record in reversed(entries(point.get("memory")))), MISSING)

    columns: Columns = {
        "last sample at, s": measured_s, "growth of memory": field("growth_share", percent), "windows": field("windows"),
        "mean staleness": decimals("mean_staleness", 2), "expected staleness": decimals("expected_staleness", 2), "end": field("end"),
    }  # fmt: skip
    return of_points("Memory, staleness and end", points(results), columns)


def further(results: Figures, shown: Sequence[str]) -> str:
    """Whatever else the summary holds, one table for each entry that is not in `shown`."""
    parts = []
    for name, value in figures(results.get("summary")).items():
        rows = [value] if isinstance(value, dict) else entries(value)
        if name in shown or name == "checks":
            continue
        if not rows:
            rows = [{name: value}]
        columns = {key.replace("_", " "): field(key) for row in rows for key in row}
        parts.append(_prose(by_columns(name.replace("_", " "), rows, columns)))
    return "\n".join(parts)
