"""The rules of asynchronous training: values computed by hand, limits, and in which direction each goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.optim import rules

STALENESS = st.floats(0, 1000)
WORKERS = st.integers(1, 1000)
WORDS = st.floats(1, 1e6)


def test_expected_staleness_by_hand() -> None:
    assert [rules.expected_staleness(4, overlap) for overlap in (0, 1)] == [3, 7]
    assert rules.expected_staleness(1, 0) == 0
    assert rules.expected_staleness(1, 1) == 1, "one worker alone, one window late"
    assert rules.expected_staleness(4, 0, buffer_pushes=4) == 0.75


def test_momentum_by_hand() -> None:
    assert [rules.implicit_momentum(s) for s in (0, 1, 3)] == [0, 0.5, 0.75]
    assert rules.explicit_momentum(0.9, 0) == 0.9
    assert rules.explicit_momentum(0.9, 3) == pytest.approx(0.15)
    assert rules.explicit_momentum(0.9, 15) == pytest.approx(-0.0375)


@given(WORKERS)
def test_implicit_momentum_is_the_published_form_at_the_expected_staleness(workers: int) -> None:
    assert rules.implicit_momentum(rules.expected_staleness(workers, 0)) == pytest.approx(1 - 1 / workers)


@given(WORKERS, st.integers(0, 1), st.floats(0, 0.999))
def test_more_workers_and_overlap_leave_less_explicit_momentum(workers: int, overlap: int, total: float) -> None:
    def left(n: int, o: int) -> float:
        return rules.explicit_momentum(total, rules.expected_staleness(n, o))

    assert left(workers + 1, overlap) < left(workers, overlap) <= total
    assert left(workers, 1) < left(workers, 0)
    assert left(10**9, 0) == pytest.approx(total - 1)


@given(st.floats(0.01, 0.999), WORDS, WORDS)
def test_betas_by_words_forget_as_much_by_word(beta: float, words: float, more: float) -> None:
    assert rules.beta_by_words(beta, 1000, 1000) == pytest.approx(beta)
    split = rules.beta_by_words(beta, words, 1000) * rules.beta_by_words(beta, more, 1000)
    assert rules.beta_by_words(beta, words + more, 1000) == pytest.approx(split)
    assert rules.beta_by_words(0.9, 2000, 1000) == pytest.approx(0.81)


@given(WORDS, WORDS)
def test_learning_rates_agree_at_the_reference_and_part_above_it(words: float, reference: float) -> None:
    linear, root = rules.linear_rate(1e-3, words, reference), rules.square_root_rate(1e-3, words, reference)
    assert rules.linear_rate(1e-3, words, words) == rules.square_root_rate(1e-3, words, words) == 1e-3
    assert (linear >= root) == (words >= reference) or linear == pytest.approx(root)
    assert root**2 == pytest.approx(linear * 1e-3)


def test_learning_rates_by_hand() -> None:
    assert rules.linear_rate(1e-4, 7680, 1920) == pytest.approx(4e-4)
    assert rules.square_root_rate(1e-4, 7680, 1920) == pytest.approx(2e-4)
    assert [rules.damped_rate(6e-4, s) for s in (0, 0.5, 1, 3)] == pytest.approx([6e-4, 6e-4, 6e-4, 2e-4])


@given(STALENESS, STALENESS)
def test_damping_never_raises_the_rate(less: float, more: float) -> None:
    less, more = sorted((less, more))
    assert rules.damped_rate(1.0, more) <= rules.damped_rate(1.0, less) <= 1.0


def test_warmup_by_hand() -> None:
    assert rules.untuned_warmup_words(0.98, 1000) == pytest.approx(100_000)
    assert rules.untuned_warmup_words(0.998, 2000) == pytest.approx(2_000_000)
    assert rules.batches_in_words(4000, 4, 1000) == 16_000_000


def test_delay_that_hides_the_exchange_by_hand() -> None:
    assert rules.delay_to_hide(1, 0.36, 1) == 2, "1 / 0.64 = 1.56"
    assert rules.delay_to_hide(2, 0.5, 1) == 4
    assert rules.delay_to_hide(2, 0.5, 0) == 2, "the wait is as long as two batches"
    assert rules.delay_to_hide(1, 0.8, 0) == 4


@given(st.integers(1, 64), st.floats(0, 0.95), st.integers(1, 64))
def test_a_hidden_exchange_takes_no_longer_than_the_batches(delay: int, wait: float, batches: int) -> None:
    for overlap in (0, 1):
        exchange = (1.0 if overlap else wait) / (1 - wait) * delay  # in times of a batch
        hidden = rules.delay_to_hide(delay, wait, overlap)
        assert hidden + 1e-6 >= exchange and (hidden == 1 or hidden - 1 < exchange)
    assert rules.delay_to_hide(batches, 0.0, 1) == batches and rules.delay_to_hide(batches, 0.0, 0) == 1


def test_moving_average_by_hand() -> None:
    assert rules.ema_share(1e-4, 1000, 1000) == pytest.approx(1e-4)
    assert rules.ema_share(0.1, 2000, 1000) == pytest.approx(0.19)
    assert rules.ema_memory_words(1e-4, 1000) == pytest.approx(1e7)


@given(WORKERS)
def test_the_hybrid_buffer_leaves_less_than_one_step_of_staleness(workers: int) -> None:
    assert rules.expected_staleness(workers, 0, rules.hybrid_pushes(workers)) < 1
    assert rules.expected_staleness(workers, 1, rules.hybrid_pushes(workers)) < 2
