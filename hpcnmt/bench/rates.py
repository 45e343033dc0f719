"""Words per second of a policy, looked up in results of throughput with simulated compute: a column for each network and time of a batch.

A policy of virtual time has the rate of the asynchronous point with its workers, delay, overlap and wire; sync-equivalent that of the
fastest synchronous baseline with its workers and delay; plain that of one worker without communication. Where delay or overlap change, or
lockstep ends, within a run, each phase has a rate of its own. A rate of simulated compute stands for other machines: seconds made with
it are predictions, and say so. Used by ablation.py, ablation_summary.py and report_ablation.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcnmt.bench.product import matching, read_kind
from hpcnmt.bench.results import Figures
from hpcnmt.bench.runs import GROWING
from hpcnmt.distributed.worker import WorkerConfig


@dataclass(frozen=True)
class Phase:
    """A part of a run: from so many global target words on it trains at this rate, that of the throughput point `throughput`."""

    from_words: int
    target_words_per_s: float
    throughput: str = ""


def seconds_to(words: float, phases: Sequence[Phase]) -> float:
    """Predicted seconds up to so many global target words; `phases` in order, the first from 0 on."""
    ends = [*(phase.from_words for phase in phases[1:]), words]
    return sum(
        (min(end, words) - phase.from_words) / phase.target_words_per_s
        for phase, end in zip(phases, ends, strict=True) if phase.from_words < words
    )  # fmt: skip


@dataclass(frozen=True)
class Column:
    """Simulated points of one file that share network, batch and model."""

    label: str
    points: dict[str, Figures]
    compute: tuple[Any, ...] = ()
    """Seconds and words of a batch, and parameters: what is the same for columns that differ in the network alone."""

    @property
    def link_bytes_per_s(self) -> float:
        """The median of the points; 0 where none says."""
        return statistics.median([float(p["settings"].get("link_bytes_per_s", 0.0)) for p in self.points.values()] or [0.0])

    def phases(self, settings: Figures) -> list[Phase]:
        """The rates of a policy, in order; none when a phase has none."""
        found = [(from_words, self._rate(phase)) for from_words, phase in phase_settings(settings)]
        phases = [Phase(from_words, rate[1], rate[0]) for from_words, rate in found if rate is not None]
        return phases if len(phases) == len(found) else []

    def _rate(self, settings: Figures) -> tuple[str, float] | None:
        """(key, target words per second) of the fastest point that fits the settings of a policy; None when there is none."""
        alone = settings["mode"] == "plain"  # workers that do not communicate have the rate of one each
        rates = [
            (key, float(point["target_words_per_s"]) / (point["settings"]["workers"] if alone else 1))
            for key, point in matching(self.points, rate_settings(settings)).items()
        ]  # fmt: skip
        return max(rates, key=lambda item: item[1], default=None)


def phase_settings(settings: Figures) -> list[tuple[int, Figures]]:
    """(global target words from which on, settings) of every phase of a policy, within which delay, overlap and lockstep do not change.

    None for synchronous workers whose delay grows: one process that stands for them grows it in other steps.
    """
    ramp, overlap_from, lockstep = (int(settings.get(name, 0)) for name in GROWING)
    if not (ramp or overlap_from or lockstep):
        return [(0, settings)]
    if settings["mode"] == "sync-equivalent":
        return []
    config = WorkerConfig(settings["delay"], settings["overlap"], delay_ramp_words=ramp, overlap_from_words=overlap_from)
    steps = [-(-step * ramp // (config.delay - 1)) for step in range(1, config.delay)] if ramp else []
    return [
        (words, settings | {"delay": config.delay_at(words), "overlap": int(config.overlaps_at(words)), "lockstep": words < lockstep})
        for words in sorted({0, overlap_from, lockstep, *steps})
    ]


def rate_settings(settings: Figures) -> dict[str, Any]:
    """What a throughput point must have to give the rate of a policy."""
    if settings["mode"] == "plain":
        return {"mode": "off"}
    shared = {name: settings[name] for name in ("workers", "delay")}
    if settings["mode"] == "sync-equivalent":
        return {"mode": "sync"} | shared
    lockstep = {"lockstep": settings.get("lockstep", False)}
    return {"mode": "async"} | shared | {name: settings[name] for name in ("overlap", "wire")} | lockstep


def read_columns(paths: Sequence[Path]) -> list[Column]:
    """The columns of all files. Raises ValueError for a file of another kind or without simulated compute."""
    columns: dict[tuple[Any, ...], dict[str, Figures]] = {}
    for path in paths:
        points = {k: p for k, p in read_kind(path, "throughput")["points"].items() if p["settings"].get("compute") == "simulated"}
        if not points:
            raise ValueError(f"found no point of simulated compute in {path}, expected some: measure with hpcnmt bench throughput --out")
        for key, point in points.items():
            s = point["settings"]
            group = (path.stem, s.get("network", ""), s["batch_s"], s["batch_words"], s["parameters"])
            columns.setdefault(group, {})[key] = point
    if len({group[1:] for group in columns}) < len(columns):
        raise ValueError("found two throughput files of the same network, batch and model, expected one for each: leave one out")
    return [Column(_label(*group[1:]), points, group[2:]) for group, points in columns.items()]


def _label(network: str, batch_s: float, batch_words: int, parameters: int) -> str:
    batch = f"{batch_s:g} s a batch of {batch_words:,} words"
    return ", ".join(filter(None, [network, batch, f"{parameters / 1e6:.3g}M parameters"]))
