"""What a soak concludes from the reports of its ranks: each planted fault is seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hpcnmt.bench.soak import checks, expected_staleness, figures, growth
from hpcnmt.bench.soak_program import SoakConfig

CONFIG = SoakConfig(workers=2, shards=2, parameters=10, seconds=10.0, batch_s=1.0)


def sound() -> list[dict[str, Any]]:
    memory = {"rss_mb": [100.0] * 8, "segments": ["/dev/shm/one"]}
    worker = {"windows": 10, "dropped": 0, "rejected_pulls": 0} | memory
    shard = {"version": 20, "twice": 0, "applied": [10, 10], "staleness": {"0": 2, "1": 16, "2": 2}, "cuts": [[1, 1000]]} | memory
    return [copy.deepcopy(report) for report in (worker, worker, shard, shard)]


def unmet(reports: list[dict[str, Any]], left: tuple[str, ...] = ()) -> list[str]:
    point = figures(CONFIG, reports, left)
    assert (point["end"] == "orderly") is not bool(left)
    return [check["what"].removeprefix("k: ") for check in checks("k", point) if not check["met"]]


def test_a_sound_soak_meets_all() -> None:
    assert unmet(sound()) == []
    assert figures(CONFIG, sound(), [])["windows"] == 20
    assert [expected_staleness(4, overlap) for overlap in (0, 1)] == [3.0, 7.0]


@pytest.mark.parametrize(
    ("rank", "change", "what"),
    [
        (3, {"rss_mb": [100.0] * 4 + [106.0] * 4}, "growth of memory, largest of all ranks"),
        (0, {"windows": 11}, "pushes missed or applied twice"),
        (2, {"applied": [11, 9]}, "pushes missed or applied twice"),
        (2, {"twice": 1}, "pushes missed or applied twice"),
        (3, {"version": 19}, "pushes missed or applied twice"),
        (3, {"staleness": {"2": 20}}, "mean staleness"),
        (3, {"cuts": [[1, 1100]]}, "shards with other cuts"),
    ],
)
def test_a_fault_of_one_rank_is_seen(rank: int, change: dict[str, Any], what: str) -> None:
    reports = sound()
    reports[rank] |= change
    assert unmet(reports) == [what]


def test_what_is_left_in_shared_memory_is_seen() -> None:
    assert unmet(sound(), ("/dev/shm/one",)) == ["shared-memory segments left"]


def test_growth_compares_the_last_half_with_the_first_quarter() -> None:
    assert growth([100, 100, 500, 500, 103, 103, 103, 500]) == pytest.approx(0.03)
    with pytest.raises(RuntimeError, match="at least 4"):
        growth([100.0] * 3)
