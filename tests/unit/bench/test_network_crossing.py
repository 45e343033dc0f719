"""From which network speed on synchronous training wins: the crossing in 1 / speed, and nothing beyond what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from hpcnmt.bench.ablation_summary import summarize
from hpcnmt.bench.grid import Grid, Policy
from hpcnmt.bench.network_crossing import in_words, synchronous_wins
from hpcnmt.bench.rates import Column
from hpcnmt.bench.report_ablation_tables import networks

ROWS = [{"name": "ours", "mode": "virtual"}, {"name": "together", "mode": "sync-equivalent"}]
CONSTANT_S, TRANSFERS_BYTES = {"ours": 3.0, "together": 2.0}, {"ours": 1e8, "together": 3e8}
CROSSING_BYTES_PER_S = (3e8 - 1e8) / (3.0 - 2.0)


def column(link_bytes_per_s: float, compute: tuple[float, ...] = (0.4,)) -> Column:
    point: dict[str, Any] = {"settings": {"link_bytes_per_s": link_bytes_per_s}, "target_words_per_s": 1.0}
    return Column(f"{link_bytes_per_s:g} {compute}", {"a": point}, compute)


def found(*speeds: float, other: str = "ours") -> list[dict[str, Any]]:
    columns = [column(speed) for speed in speeds]
    seconds = [
        {"rates": c.label, "name": name, "seconds_to_cross_entropy": CONSTANT_S[name] + TRANSFERS_BYTES[name] / c.link_bytes_per_s}
        for c in columns for name in (other, "together")
    ]  # fmt: skip
    return synchronous_wins(ROWS, seconds, columns)


def test_the_crossing_is_exact_where_transfers_take_bytes_by_speed() -> None:
    (row,) = found(1e9, 1e8)  # in any order
    assert row["from_link_bytes_per_s"] == pytest.approx(CROSSING_BYTES_PER_S) and in_words(row) == "1.6 Gbit/s"
    assert [entry["ratio"] for entry in row["ratios"]] == pytest.approx([5 / 4, 2.3 / 3.1])


def test_nothing_is_said_beyond_what_was_measured() -> None:
    assert in_words(found(1e7, 1e8)[0]) == "not up to 0.8 Gbit/s"
    assert in_words(found(1e9, 1e10)[0]) == "already at 8 Gbit/s" == in_words(found(1e9)[0])


def test_only_the_same_compute_stands_beside_each_other_and_who_gets_there() -> None:
    columns = [column(1e8), column(1e9, (0.8,))]
    seconds = [{"rates": c.label, "name": n, "seconds_to_cross_entropy": 9.0} for c in columns for n in ("ours", "together")]
    rows = synchronous_wins(ROWS, seconds, columns)
    assert [len(row["ratios"]) for row in rows] == [1, 1]
    never = [entry | {"seconds_to_cross_entropy": None} if entry["name"] == "ours" else entry for entry in seconds]
    assert synchronous_wins(ROWS, never, columns) == []
    assert synchronous_wins(ROWS[:1], seconds, columns) == []


def test_the_summary_and_the_report_have_it() -> None:
    def point(name: str, mode: str) -> dict[str, Any]:
        curve = [{"target_words": 100 * i, "cross_entropy": 9.0 - i, "bleu": 1.0 * i, "chrf": 1.0 * i} for i in range(1, 5)]
        settings = {"name": name, "seed": 1, "mode": mode, "workers": 4, "delay": 1, "overlap": 0, "wire": "fp32", "batch_words": 1000}
        return {"settings": settings, "curve": curve, "staleness": {}}

    def network(speed: float, ours: float, theirs: float) -> Column:
        shared = {"workers": 4, "delay": 1, "link_bytes_per_s": speed}
        points = {
            "a": {"settings": shared | {"mode": "async", "overlap": 0, "wire": "fp32"}, "target_words_per_s": ours},
            "s": {"settings": shared | {"mode": "sync"}, "target_words_per_s": theirs},
        }
        return Column(f"{speed:g}", points, (0.4,))

    grid = Grid("sample", baseline="ours", policies={"ours": Policy(4), "together": Policy(4, "sync-equivalent")})
    points = {"1": point("ours", "virtual"), "2": point("together", "sync-equivalent")}
    summary = summarize(points, grid, [network(1e8, 10.0, 8.0), network(1e9, 10.0, 12.5)])
    (row,) = summary["synchronous_wins"]
    assert [entry["ratio"] for entry in row["ratios"]] == pytest.approx([1.25, 0.8])
    assert in_words(row) in networks({"summary": summary}) and "0.800" in networks({"summary": summary})
    assert "synchronous_wins" not in summarize(points, grid, [])
