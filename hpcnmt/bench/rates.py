"""Words per second of a policy, looked up in results of throughput with simulated compute: a column for each network and time of a batch.

A policy of virtual time has the rate of the asynchronous point with its workers, delay, overlap and wire; sync-equivalent that of the
fastest synchronous baseline with its workers and delay; plain that of one worker without communication. A rate of simulated compute
stands for other machines: seconds made with it are predictions, and say so. Used by ablation.py and ablation_summary.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcnmt.bench.product import matching, read_kind
from hpcnmt.bench.results import Figures


@dataclass(frozen=True)
class Column:
    """Simulated points of one file that share network, batch and model."""

    label: str
    points: dict[str, Figures]

    def rate(self, settings: Figures) -> tuple[str, float] | None:
        """(key, target words per second) of the fastest point that fits the settings of a policy; None when there is none."""
        alone = settings["mode"] == "plain"  # workers that do not communicate have the rate of one each
        rates = [
            (key, float(point["target_words_per_s"]) / (point["settings"]["workers"] if alone else 1))
            for key, point in matching(self.points, rate_settings(settings)).items()
        ]  # fmt: skip
        return max(rates, key=lambda item: item[1], default=None)


def rate_settings(settings: Figures) -> dict[str, Any]:
    """What a throughput point must have to give the rate of a policy."""
    if settings["mode"] == "plain":
        return {"mode": "off"}
    shared = {name: settings[name] for name in ("workers", "delay")}
    if settings["mode"] == "sync-equivalent":
        return {"mode": "sync"} | shared
    return {"mode": "async"} | shared | {name: settings[name] for name in ("overlap", "wire")}


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
    return [Column(_label(*group[1:]), points) for group, points in columns.items()]


def _label(network: str, batch_s: float, batch_words: int, parameters: int) -> str:
    batch = f"{batch_s:g} s a batch of {batch_words:,} words"
    return ", ".join(filter(None, [network, batch, f"{parameters / 1e6:.3g}M parameters"]))
