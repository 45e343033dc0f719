"""Where a curve reaches its target: the mean of three validations counts, at their middle; and medians over seeds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.bench.crossing import crossing, median_over_seeds
from hpcnmt.bench.runs import training_seconds


def curve(*bleu: float) -> list[dict[str, float]]:
    return [{"target_words": 100 * (i + 1), "seconds": 10.0 * (i + 1), "bleu": b} for i, b in enumerate(bleu)]


def test_one_lucky_validation_does_not_reach_the_target() -> None:
    assert crossing(curve(1, 9, 1, 2, 3), 5) is None
    assert crossing(curve(1, 9, 1, 2, 6, 7, 9), 5) == {"target_words": 500, "seconds": 50.0}  # the means: 11/3, 4, 3, 5, ...
    assert crossing(curve(1, 9, 1, 2, 6, 7, 9), 4.5) == {"target_words": 475, "seconds": 47.5}
    assert crossing(curve(6, 6, 6), 5) == {"target_words": 200, "seconds": 20.0}, "the first mean has none before it"
    assert crossing(curve(9, 9), 5) is None, "two validations have no mean of three"


def test_a_curve_of_virtual_time_has_words_only() -> None:
    assert crossing([{"target_words": 7, "bleu": 5.0, "simulated_s": 1.0}] * 3, 5) == {"target_words": 7}


@given(st.lists(st.integers(0, 100), min_size=3, max_size=20), st.integers(0, 100))
def test_the_crossing_is_at_the_first_window_of_three_that_is_high_enough_or_shortly_before(bleu: list[int], target: int) -> None:
    found = crossing(curve(*bleu), target)
    high = [i for i in range(2, len(bleu)) if sum(bleu[i - 2 : i + 1]) >= 3 * target]
    assert (found is None) == (not high)
    if found:
        assert (200 if high[0] == 2 else 100 * (high[0] - 1)) <= found["target_words"] <= 100 * high[0]
        assert found["seconds"] == pytest.approx(found["target_words"] / 10)


@given(st.integers(1, 50), st.integers(2, 30))
def test_a_straight_line_is_crossed_where_it_is_whatever_the_validations(slope: int, every: int) -> None:
    """Validations far apart make no curve look later than others."""
    line = [{"target_words": float(words), "bleu": slope * words / 100} for words in range(every, 100 + 3 * every, every)]
    assert crossing(line, slope) == {"target_words": pytest.approx(max(100.0, 2.0 * every))}


@given(st.lists(st.integers(0, 100), min_size=3, max_size=20), st.integers(0, 99))
def test_a_higher_target_is_never_reached_sooner(bleu: list[int], target: int) -> None:
    low, high = crossing(curve(*bleu), target), crossing(curve(*bleu), target + 1)
    assert high is None or (low is not None and low["target_words"] <= high["target_words"])


@pytest.mark.parametrize(
    ("words", "median"), [([3, None, 5], 5), ([3, None, None], None), ([3, 5], 4), ([3, None], None), ([None], None), ([], None)]
)  # fmt: skip
def test_a_seed_that_never_gets_there_is_later_than_all(words: list[int | None], median: float | None) -> None:
    assert median_over_seeds([None if w is None else {"target_words": w} for w in words], "target_words") == median


def test_validation_is_off_the_clock_where_training_stands_still() -> None:
    validations: list[dict[str, Any]] = [{"seconds": 12.0, "took_s": 2.0}, {"seconds": 25.0, "took_s": 3.0}]
    assert training_seconds(validations, "plain") == training_seconds(validations, "sync") == [10.0, 20.0]
    assert training_seconds(validations, "async") == [10.0, 22.0]
