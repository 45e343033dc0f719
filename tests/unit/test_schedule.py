"""The learning rate: shape of the warm-ups, restarts on words and on stalls, decay on global words, wrong constants."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.optim.schedule import ScheduleConfig
from hpcnmt.optim.update import Update, UpdateConfig

Warmup = Literal["rate", "normaliser"]
WARMUPS: tuple[Warmup, ...] = ("rate", "normaliser")


def test_linear_warmup_then_inverse_square_root() -> None:
    schedule = ScheduleConfig(1.0, 1000, "inverse_sqrt", 100)
    assert schedule.at(500, 100) == pytest.approx(0.5)
    assert schedule.at(4000, 200) == pytest.approx(1.0)


def test_the_normaliser_falls_linearly_to_the_reference() -> None:
    schedule = ScheduleConfig(1.0, 4000, "constant", 1920, "normaliser", 7200)
    for words, normaliser in ((0, 7200), (1000, 5880), (2000, 4560), (4000, 1920), (9000, 1920)):
        assert schedule.at(words, 960) == pytest.approx(960 / normaliser)


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_after_the_warmup_both_forms_are_one(after_words: int, update_words: int) -> None:
    rate, normaliser = (ScheduleConfig(1e-3, 5000, "inverse_sqrt", 1920, warmup) for warmup in WARMUPS)
    assert normaliser.at(5000 + after_words, update_words) == pytest.approx(rate.at(5000 + after_words, update_words))


@pytest.mark.parametrize("warmup", WARMUPS)
@given(cycle=st.integers(0, 50), words=st.integers(1, 3000), update_words=st.integers(1, 400))
def test_every_cycle_is_as_the_first_while_nothing_decays(warmup: Warmup, cycle: int, words: int, update_words: int) -> None:
    schedule = ScheduleConfig(1.0, 2000, "constant", 100, warmup, restart_words=3000)
    words = max(words, update_words)
    assert schedule.at(3000 * cycle + words, update_words) == schedule.at(words, update_words)


@pytest.mark.parametrize("warmup", WARMUPS)
@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_stall_begins_the_warmup_anew_and_decay_goes_on(warmup: Warmup, stalled_at_words: int, words: int) -> None:
    constant, decaying = (ScheduleConfig(1.0, 2000, decay, 100, warmup) for decay in ("constant", "inverse_sqrt"))
    global_words = stalled_at_words + words
    fresh = constant.at(words, 1)
    assert constant.at(global_words, 1, stalled_at_words) == pytest.approx(fresh)
    assert decaying.at(global_words, 1, stalled_at_words) == pytest.approx(fresh * max(global_words / 2000, 1.0) ** -0.5)


def test_the_later_of_the_two_restarts_counts() -> None:
    schedule = ScheduleConfig(1.0, 1000, "constant", 100, restart_words=1000)
    assert schedule.at(2300, 100, stalled_at_words=1800) == pytest.approx(0.3)  # 2000 by words
    assert schedule.at(2300, 100, stalled_at_words=2200) == pytest.approx(0.1)


@pytest.mark.parametrize("restarts", [False, True])
def test_an_update_restarts_at_its_own_count_only_where_the_schedule_says_so(restarts: bool) -> None:
    update = Update(1, UpdateConfig(schedule=ScheduleConfig(restart_on_stall=restarts)))
    update.words = 700
    update.note_stall()
    assert update.stalled_at_words == (700 if restarts else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_words": 0}, "schedule.warmup_words is 0, expected a positive number"),
        ({"warmup": "normaliser", "reference_words": 8000}, "normaliser_start is 7200, expected more than schedule.reference_words=8000"),
        ({"restart_words": 99_999}, "restart_words is 99999, expected 0 .no restarts. or at least schedule.warmup_words=100000"),
        ({"restart_words": -1}, "restart_words is -1"),
    ],
)
def test_wrong_constants(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**options)  # type: ignore[arg-type]
