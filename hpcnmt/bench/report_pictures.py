"""The pictures of a report: PNGs from results, one function for each, None where a file has nothing to draw.

Invariants: axes carry their units; every picture says what its points have in common, so that it can stand alone. Used by report.py.
"""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hpcnmt.bench.report_fields import (
    count_workers,
    curve,
    entries,
    figures,
    histogram,
    loses,
    mean,
    number,
    numbers,
    pairs,
    points,
    ratio,
    settings,
    short_labels,
    show,
)
from hpcnmt.bench.report_style import (
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Picture,
    bar_rows,
    finish,
    legend,
    looks,
    panels,
    shared_words,
    shorten,
    style,
)
from hpcnmt.bench.results import Figures

ACTIVITIES = {"compute": BLUE, "wait": VERMILLION, "copy": ORANGE, "pack": GREEN, "step": PURPLE}
MOST_PANELS = 24
MOST_BARS = 60


def _first(chosen: dict[str, Any], most: int) -> tuple[dict[str, Any], str]:
    """The first `most` points, and a sentence when these are not all."""
    left_out = f" The first {most} of {len(chosen)} points." if len(chosen) > most else ""
    return dict(list(chosen.items())[:most]), left_out


def _panel_of(entry: Figures) -> str:
    """Network and time of a batch, which have panels of their own."""
    batch_s = entry.get("batch_s")
    parts = [show(entry["network"]) if entry.get("network") else "", f"{show(batch_s)} s a batch" if number(batch_s) is not None else ""]
    return ", ".join(filter(None, parts))


@style()
def speedup(results: Figures) -> Picture | None:
    """Speedup over one worker against the number of workers, with the ideal line."""
    found: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for entry in entries(figures(results.get("summary")).get("speedup")):
        line = sorted(pairs(numbers(entry.get("workers")), numbers(entry.get("speedup"))))
        if line:
            found.setdefault(_panel_of(entry), []).append((shorten(entry.get("label")), line))
    if not found:
        return None
    look = looks(label for lines in found.values() for label, _ in lines)
    largest = max(x for lines in found.values() for _, line in lines for x, _ in line)
    figure, axes = panels(len(found), 3, 4.2, sharey=True, sharex=True)
    for axis, (panel, lines) in zip(axes, found.items(), strict=True):
        axis.plot([1, largest], [1, largest], "--", color="grey", label="ideal")
        for label, line in lines:
            colour, marker = look[label]
            axis.plot(*zip(*line, strict=True), color=colour, marker=marker, label=label)
        axis.set_title(shorten(panel) if panel else "")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("workers")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("speedup over one worker, times")
    legend(figure, axes)
    caption = "Words per second over those of one worker with the same settings; the dashed line is as many times as there are workers."
    return finish(figure, "speedup", "Speedup against workers", caption)


@style()
def shares(results: Figures) -> Picture | None:
    """Shares of time of the workers' main threads, one bar for each point."""
    found = {key: figures(point["shares"]) for key, point in points(results).items() if figures(point.get("shares"))}
    chosen, left_out = _first(found, MOST_BARS)
    if not chosen:
        return None
    figure, (axis,) = bar_rows(list(short_labels(list(chosen)).values()))
    rows = range(len(chosen))
    left = [0.0] * len(chosen)
    for name, colour in ACTIVITIES.items():
        widths = [100 * (number(share.get(name)) or 0.0) for share in chosen.values()]
        bars = axis.barh(rows, widths, left=left, color=colour, label=name, edgecolor="white", linewidth=0.5)
        axis.bar_label(bars, [f"{width:.0f}" if width >= 5 else "" for width in widths], label_type="center", color="white", fontsize=8)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axis.barh(rows, [max(0.0, 100 - begin) for begin in left], left=left, color=GREY, label="other", edgecolor="white", linewidth=0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of the workers' time, %")
    legend(figure, [axis], len(ACTIVITIES) + 1, shared_words(chosen))
    caption = f"Main threads, mean over the workers; what overlaps with computing is no time of theirs.{left_out}"
    return finish(figure, "shares", "Shares of time", caption)


@style()
def async_to_sync(results: Figures) -> Picture | None:
    """Measured ratio to the best synchronous training as bars, the ideal as marks, and the line below which asynchrony loses."""
    rows = [row for row in entries(figures(results.get("summary")).get("async_to_sync")) if number(row.get("measured")) is not None]
    rows = rows[:MOST_BARS]
    if not rows:
        return None
    figure, (axis,) = bar_rows(list(map(_setting, rows)))
    for index, row in enumerate(rows):
        measured = float(row["measured"])
        look: dict[str, Any] = {"color": VERMILLION, "hatch": "///", "edgecolor": "white"} if loses(row) else {"color": BLUE}
        axis.barh(index, measured, **look)
        box = {"facecolor": look["color"], "edgecolor": "none", "pad": 1.5}
        said = f"{measured:.2f}" + " LOSES" * loses(row)
        axis.annotate(said, (0, index), (5, 0), textcoords="offset points", va="center", color="white", fontsize=9, weight="bold", bbox=box)
    axis.axvline(1, color="black", linewidth=1)
    handles: list[Any] = [
        Patch(facecolor=BLUE, label="async wins"),
        Patch(facecolor=VERMILLION, hatch="///", edgecolor="white", label="async LOSES"),
    ]
    marks = {"ideal": ("ideal", "black"), "ideal_overlapped": ("ideal, all-reduce hidden by backward", "white")}
    for name, (label, colour) in marks.items():
        ideals = [(ideal, index) for index, row in enumerate(rows) if (ideal := number(row.get(name))) is not None]
        if ideals:
            mark: dict[str, Any] = {"marker": "D", "color": colour, "edgecolor": "black", "zorder": 3, "label": label}
            handles.append(axis.scatter(*zip(*ideals, strict=True), **mark))
    axis.set_xlabel("words/s of async / words/s of the best synchronous training")
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    caption = (
        "n workers, s shards, tau batches a window; the vertical line is equal speed. "
        "The ideal follows from the time of a batch, the bytes of the model and the speed of the network."
    )
    return finish(figure, "async-to-sync", "Asynchronous against the best synchronous training", caption)


def _setting(row: Figures) -> str:
    names = (("workers", "n"), ("shards", "s"), ("delay", "tau"))
    parts = [f"{short}{show(row[name])}" for name, short in names if name in row]
    slow = number(row.get("straggler")) or 1
    parts += [f"straggler {show(slow)}"] if slow > 1 else []
    return ", ".join(filter(None, [" ".join(parts), _panel_of(row)]))


@style()
def staleness(results: Figures) -> Picture | None:
    """Histograms of staleness, a panel for each point, with measured and expected mean."""
    found = {key: point for key, point in points(results).items() if histogram(point.get("staleness"))}
    chosen, left_out = _first(found, MOST_PANELS)
    if not chosen:
        return None
    labels = short_labels(list(chosen))
    figure, axes = panels(len(chosen), 3, 2.3 if len(chosen) > 3 else 3.2)
    for axis, (key, point) in zip(axes, chosen.items(), strict=True):
        _histogram(axis, shorten(labels[key]), histogram(point["staleness"]), number(point.get("expected_staleness")))
    legend(figure, axes, shared=shared_words(chosen))
    caption = f"Updates of a shard between the version that a gradient was computed on and its own.{left_out}"
    return finish(figure, "staleness", "Staleness", caption)


def _histogram(axis: Axes, title: str, counts: dict[int, float], expected: float | None) -> None:
    total, measured = sum(counts.values()), mean(counts) or 0.0
    axis.bar(list(counts), [100 * count / total for count in counts.values()], width=0.9 if max(counts) < 30 else 1.0, color=SKY)
    axis.axvline(measured, color=BLUE, label="measured mean")
    said = f"mean {measured:.2f}"
    if expected is not None:
        axis.axvline(expected, color=VERMILLION, linestyle="--", label="expected mean")
        said += f", expected {expected:.2f}"
    axis.set_title(f"{title}\n{said}", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlim(-0.7, max(counts) + 0.7)
    axis.set_ylabel("pushes, %")
    axis.set_xlabel("staleness, updates")


@style()
def time_to_bleu(results: Figures) -> Picture | None:
    """BLEU against seconds and against words; one colour for each run, one line for each seed."""
    target = number(figures(results.get("config")).get("bleu"))
    runs = points(results)
    look = looks(_name(key, point) for key, point in runs.items())
    figure, axes = panels(2, 2, 4.4, sharey=True)
    for key, point in runs.items():
        name = _name(key, point)
        colour, marker = look[name]
        for axis, x, unit in zip(axes, ("seconds", "target_words"), (1.0, 1e6), strict=True):
            line = [(value / unit, bleu) for value, bleu in curve(point, x, "bleu")]
            if line:
                axis.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=shorten(name))
            reached = ratio(figures(point.get("reached")).get(x), unit)
            if reached is not None and target is not None:
                axis.plot(reached, target, marker="*", markersize=11, color=colour, markeredgecolor="black", zorder=3)
    if not any(axis.lines for axis in axes):
        return None
    for axis, label in zip(axes, ("seconds of training", "target words, millions"), strict=True):
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
        if target is not None:
            axis.axhline(target, color="black", linestyle="--", linewidth=1, label=f"target, BLEU {target:g}")
    axes[0].set_ylabel("validation BLEU")
    legend(figure, axes)
    caption = "One line for each seed; a star where the run reached the target."
    return finish(figure, "bleu", "BLEU against seconds and against words", caption)


def _name(key: str, point: Figures) -> str:
    """What the seeds of one run share: its name and its workers."""
    found = settings(point)
    workers = f", {count_workers(found['workers'])}" if "workers" in found else ""
    return f"{show(found['name'])}{workers}" if "name" in found else key


@style()
def quality(results: Figures) -> Picture | None:
    """Cross-entropy and BLEU against words; the darker a line, the more workers."""
    runs = points(results)
    counts = {key: number(settings(point).get("workers")) for key, point in runs.items()}
    order = sorted({count for count in counts.values() if count is not None})
    colours = matplotlib.colormaps["viridis_r"]
    look = {count: (colours(0.12 + 0.88 * i / max(1, len(order) - 1)), MARKERS[i % len(MARKERS)]) for i, count in enumerate(order)}
    figure, axes = panels(2, 2, 4.4)
    for key, point in sorted(runs.items(), key=lambda item: counts[item[0]] or 0.0):
        count = counts[key]
        colour, marker = (GREY, ".") if count is None else look[count]
        label = shorten(key) if count is None else count_workers(count)
        for axis, y in zip(axes, ("cross_entropy", "bleu"), strict=True):
            line = [(words / 1e6, value) for words, value in curve(point, "target_words", y)]
            if line:
                axis.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    if not any(axis.lines for axis in axes):
        return None
    for axis, name in zip(axes, ("cross-entropy, nats per target word", "validation BLEU"), strict=True):
        axis.set_xlabel("target words, millions")
        axis.set_ylabel(name)
    legend(figure, axes, columns=6)
    caption = "One line for each seed; the darker a line, the more workers."
    return finish(figure, "quality", "Cross-entropy and BLEU against words", caption)


@style()
def comm(results: Figures) -> Picture | None:
    """Bandwidth of push beside raw Put, of pull beside raw Get, and of memcpy, each pair with a scale of its own."""
    bars = {
        "push": ("push_gb_per_s", BLUE), "raw Put": ("raw_put_gb_per_s", SKY), "pull": ("pull_gb_per_s", VERMILLION),
        "raw Get": ("raw_get_gb_per_s", ORANGE), "memcpy": ("memcpy_gb_per_s", GREY),
    }  # fmt: skip
    fields = [name for name, _ in bars.values()]
    found = {key: point for key, point in points(results).items() if any(number(point.get(name)) is not None for name in fields)}
    chosen, left_out = _first(found, MOST_BARS)
    if not chosen:
        return None
    figure, axes = bar_rows(list(short_labels(list(chosen)).values()), columns=3, bars=2)
    groups = (("push", "raw Put"), ("pull", "raw Get"), ("memcpy",))
    for axis, names in zip(axes, groups, strict=True):
        for place, name in enumerate(names):
            field, colour = bars[name]
            rates = [(row, rate) for row, point in enumerate(chosen.values()) if (rate := number(point.get(field))) is not None]
            rows = [row + 0.4 * (place - (len(names) - 1) / 2) for row, _ in rates]
            drawn = axis.barh(rows, [rate for _, rate in rates], height=0.38, color=colour, label=name)
            axis.bar_label(drawn, [f" {rate:.3g}" for _, rate in rates], fontsize=8)
        axis.margins(x=0.2)
        axis.set_xlabel("GB/s")
    legend(figure, axes, shared=shared_words(chosen))
    caption = f"Bytes of all workers over the median of their time: higher is better. Each panel has a scale of its own.{left_out}"
    return finish(figure, "bandwidth", "Push and pull beside raw Put, Get and memcpy", caption)


@style()
def memory(results: Figures) -> Picture | None:
    """Resident memory of every rank against time; workers and shards apart."""
    found = {key: point for key, point in points(results).items() if entries(point.get("memory"))}
    chosen, left_out = _first(found, MOST_PANELS)
    if not chosen:
        return None
    labels = short_labels(list(chosen))
    figure, axes = panels(len(chosen), 2, 3.6)
    for axis, (key, point) in zip(axes, chosen.items(), strict=True):
        samples = [(record.get("seconds"), numbers(record.get("rss_mb"))) for record in entries(point["memory"])]
        workers = number(settings(point).get("workers"))
        for rank in range(max(len(rss) for _, rss in samples)):
            line = pairs((seconds for seconds, _ in samples), (rss[rank] if rank < len(rss) else None for _, rss in samples))
            is_shard = workers is not None and rank >= workers
            colour, dashes, label = (VERMILLION, "--", "shards") if is_shard else (BLUE, "-", "ranks" if workers is None else "workers")
            if line:
                axis.plot(*zip(*line, strict=True), color=colour, linestyle=dashes, linewidth=0.9, label=label)
        axis.set_title(shorten(labels[key]))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("seconds")
        axis.set_ylabel("resident memory of a rank, MB")
    legend(figure, axes, shared=shared_words(chosen))
    return finish(figure, "memory", "Memory against time", f"One line for each rank.{left_out}")
