"""From which network speed on does synchronous training win? Predicted seconds of an ablation's policies beside its synchronous policy's.

Seconds to a target hardly depend on the speed x of the links but through the time of the transfers, which is proportional to 1 / x. So
between two measured networks both are taken as linear in 1 / x, and the speed at which they are equal is computed, not measured. Nothing
is said beyond the slowest and the fastest network measured. Pure; called by ablation_summary.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcnmt.bench.rates import Column
from hpcnmt.bench.results import Figures

METRIC = "seconds_to_cross_entropy"


def synchronous_wins(rows: Sequence[Figures], seconds: Sequence[Figures], columns: Sequence[Column]) -> list[Figures]:
    """For every synchronous policy and every other one: the ratio of seconds at each network and where it passes 1; `rows` are the
    policies, `seconds` the entries of the summary. Only columns that differ in nothing but the network stand beside each other."""
    synchronous = [row["name"] for row in rows if row["mode"] == "sync-equivalent"]
    by_label = {(entry["rates"], entry["name"]): entry[METRIC] for entry in seconds}
    found = []
    for group in dict.fromkeys(column.compute for column in columns):
        networks = sorted((c for c in columns if c.compute == group and c.link_bytes_per_s), key=lambda c: c.link_bytes_per_s)
        for against in synchronous:
            for name in (row["name"] for row in rows if row["name"] not in synchronous):
                points = [
                    (column, float(by_label[column.label, name]), float(by_label[column.label, against])) for column in networks
                    if by_label.get((column.label, name)) and by_label.get((column.label, against))
                ]  # fmt: skip
                if points:
                    found.append({"name": name, "against": against} | _compared(points))
    return found


def _compared(points: Sequence[tuple[Column, float, float]]) -> Figures:
    """`points`: (network, seconds of the policy, seconds of synchronous training), slowest network first."""
    curve = [(1.0 / column.link_bytes_per_s, theirs - ours) for column, ours, theirs in points]  # below 0: synchronous training wins
    wins = [gain < 0.0 for _, gain in curve]
    first = next((index for index in range(len(wins)) if all(wins[index:])), None)
    at = None
    if first:
        (x, gain), (x_before, gain_before) = curve[first], curve[first - 1]
        at = 1.0 / (x + (x_before - x) * gain / (gain - gain_before))
    elif first == 0:
        at = points[0][0].link_bytes_per_s
    ratios = [{"rates": column.label, "ratio": theirs / ours} for column, ours, theirs in points]
    ends = [points[0][0].link_bytes_per_s, points[-1][0].link_bytes_per_s]
    return {"ratios": ratios, "from_link_bytes_per_s": at, "already_at_slowest": first == 0, "measured_link_bytes_per_s": ends}


def in_words(row: Mapping[str, Any]) -> str:
    """From which speed on synchronous training wins, in Gbit/s."""
    slowest, fastest = (8e-9 * float(speed) for speed in row["measured_link_bytes_per_s"])
    at = row["from_link_bytes_per_s"]
    if at is None:
        return f"not up to {fastest:.2g} Gbit/s"
    return f"already at {slowest:.2g} Gbit/s" if row["already_at_slowest"] else f"{8e-9 * float(at):.2g} Gbit/s"
