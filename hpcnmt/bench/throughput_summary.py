"""What follows from measured throughput: speedup, asynchronous against synchronous training, stragglers, and the checks.

Ideal times of a window (tau batches of C seconds on N workers, a model of M bytes, shards on S hosts, links of B bytes/s each way):
asynchronous, with overlap: max(tau C, N M / (S B)); synchronous: tau C + R with R = 2 (N-1)/N M / B, a ring all-reduce. The measured
baseline starts its buckets during the last backward pass, which can hide up to 2/3 C of R: `ideal` leaves that out, `ideal_overlapped`
gives it to the baseline in full. Ratios are formed only between points of the same setting, and never from points with more ranks
than cores that really compute. Pure functions; called by throughput.py, shown by report.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcnmt.bench.simulated import BACKWARD_SHARE

Figures = dict[str, Any]
SHARE_OF_IDEAL = 0.9
SHARE_OF_STRAGGLER_BOUND = 0.9
SHARE_OF_SILENCE = 0.95
MOST_WAITING = 0.05


def ideal_ratio(
    workers: int, shard_hosts: int, delay: int, batch_s: float, bytes_of_model: float, bytes_per_s: float, overlapped: bool = False
) -> float:  # fmt: skip
    """Ideal words per second of asynchronous over synchronous training; `overlapped`: buckets go out during the last backward pass."""
    transfer_s = bytes_of_model / bytes_per_s
    reduce_s = 2 * (workers - 1) / workers * transfer_s
    exposed_s = max(0.0, reduce_s - BACKWARD_SHARE * batch_s) if overlapped else reduce_s
    return (delay * batch_s + exposed_s) / max(delay * batch_s, workers * transfer_s / shard_hosts)


def summarize(points: dict[str, Figures]) -> Figures:
    """The summary of a throughput file; points in lockstep are no asynchronous training, and only their rates are used (rates.py)."""
    unfair = ("oversubscribed", "lockstep")
    fair = [figures for figures in points.values() if not any(figures["settings"].get(name) for name in unfair)]
    summary: Figures = {"speedup": _speedup(fair), "async_to_sync": _async_to_sync(fair), "straggler": _straggler(fair)}
    return summary | {"checks": _checks(fair, summary)}


def _same(figures: Figures, *names: str) -> tuple[Any, ...]:
    return tuple(figures["settings"][name] for name in names)


def _speedup(points: list[Figures]) -> list[Figures]:
    """Curves against workers, where one worker was measured."""
    curves: dict[tuple[Any, ...], dict[int, float]] = {}
    for figures in points:
        if figures["settings"]["straggler"] == 1:
            key = _same(figures, "mode", "backend", "delay", "wire", "overlap", "batch_s", "network")
            curves.setdefault(key, {})[figures["settings"]["workers"]] = figures["target_words_per_s"]
    rows = []
    for (mode, backend, delay, wire, overlap, batch_s, network), rates in curves.items():
        if 1 not in rates or len(rates) < 2:
            continue
        parts = [mode, backend, f"tau {delay}"] + ([wire, f"overlap {overlap}"] if mode == "async" else [])
        label = " ".join(filter(None, [*parts, f"C {batch_s:g} s" if batch_s else ""]))
        workers = sorted(rates)
        speedup = [rates[n] / rates[1] for n in workers]
        rows.append(
            {
                "label": label,
                "network": network,
                "batch_s": batch_s,
                "workers": workers,
                "speedup": speedup,
                "efficiency": [s / n for s, n in zip(speedup, workers, strict=True)],
            }  # fmt: skip
        )
    return rows


def _by_setting(points: list[Figures]) -> dict[tuple[Any, ...], list[Figures]]:
    groups: dict[tuple[Any, ...], list[Figures]] = {}
    for figures in points:
        groups.setdefault(_same(figures, "workers", "delay", "batch_s", "straggler", "compute"), []).append(figures)
    return groups


def _best(group: list[Figures], mode: str, accept: Callable[[Figures], bool] = lambda _: True) -> Figures | None:
    found = [figures for figures in group if figures["settings"]["mode"] == mode and accept(figures)]
    return max(found, key=lambda figures: float(figures["target_words_per_s"]), default=None)


def _async_to_sync(points: list[Figures]) -> list[Figures]:
    """Asynchronous (fp32, as the baseline's wire) against the best synchronous baseline of the same setting.

    One worker has nobody to be synchronous with: no row.
    """
    rows = []
    for group in _by_setting([point for point in points if point["settings"]["workers"] > 1]).values():
        fp32 = _best(group, "async", lambda figures: figures["settings"]["wire"] == "fp32")
        sync = _best(group, "sync")
        if fp32 is None or sync is None:
            continue
        settings = fp32["settings"]
        row = {name: settings[name] for name in ("workers", "shards", "shard_hosts", "delay", "batch_s", "straggler", "overlap", "network")}
        row |= {
            "async_words_per_s": fp32["target_words_per_s"], "sync_words_per_s": sync["target_words_per_s"],
            "sync_backend": sync["settings"]["backend"], "measured": fp32["target_words_per_s"] / sync["target_words_per_s"],
        }  # fmt: skip
        if settings.get("link_bytes_per_s") and settings["straggler"] == 1:
            place = (
                settings["workers"],
                settings["shard_hosts"] or settings["shards"],
                settings["delay"],
                settings["batch_s"],
                4 * settings["parameters"],
            )
            for name, overlapped in (("ideal", False), ("ideal_overlapped", True)):
                row[name] = ideal_ratio(*place, settings["link_bytes_per_s"], overlapped)
                row[f"share_of_{name}"] = row["measured"] / row[name]
        rows.append(row)
    return sorted(rows, key=lambda row: (row["straggler"], row["batch_s"], row["delay"], row["workers"]))


def _straggler(points: list[Figures]) -> list[Figures]:
    """With worker 0 slower by f: synchronous training runs at 1/f, asynchronous at (N - 1 + 1/f) / N; their ratio is the bound."""
    rows = []
    for row in _async_to_sync(points):
        factor, workers = row["straggler"], row["workers"]
        if factor > 1:
            bound = factor * (workers - 1 + 1 / factor) / workers
            place = {name: row[name] for name in ("workers", "delay", "batch_s", "network")}
            shares = {"measured": row["measured"], "bound": bound, "share_of_bound": row["measured"] / bound}
            rows.append(place | {"straggler": factor} | shares)
    return rows


def _check(what: str, measured: float, target: float, at_most: bool = False) -> Figures:
    bound, met = ("at most", measured <= target) if at_most else ("at least", measured >= target)
    return {"what": f"{what}, {bound}", "measured": measured, "target": target, "met": met}


def _checks(points: list[Figures], summary: Figures) -> list[Figures]:
    checks = []
    for row in summary["async_to_sync"]:
        if "ideal" in row:
            setting = f"N {row['workers']}, tau {row['delay']}, C {row['batch_s']:g} s"
            checks.append(_check(f"async / sync, share of ideal: {setting}", row["share_of_ideal"], SHARE_OF_IDEAL))
            what = f"async / sync, share of ideal with a fully overlapped baseline: {setting}"
            checks.append(_check(what, row["share_of_ideal_overlapped"], SHARE_OF_IDEAL))
    for row in summary["straggler"]:
        what = f"one straggler at 1/{row['straggler']:g}, share of bound: N {row['workers']}, tau {row['delay']}"
        checks.append(_check(what, row["share_of_bound"], SHARE_OF_STRAGGLER_BOUND))
    for group in _by_setting(points).values():
        silent = _best(group, "off")
        engine = _best(group, "async", lambda figures: figures["settings"]["overlap"] == 1)
        if silent is None or engine is None or engine["settings"]["delay"] < 2:
            continue
        name = f"N {engine['settings']['workers']}, tau {engine['settings']['delay']}, C {engine['settings']['batch_s']:g} s"
        share = engine["target_words_per_s"] / silent["target_words_per_s"]
        checks.append(_check(f"words/s over communication switched off: {name}", share, SHARE_OF_SILENCE))
        checks.append(_check(f"share of time waiting: {name}", engine["shares"].get("wait", 0.0), MOST_WAITING, at_most=True))
    return checks
