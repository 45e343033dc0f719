"""Rules of thumb for asynchronous training: numbers of a setting in, one number out, each with its source. Pure; called by advise.py.

Symbols: N workers, tau batches a push, T target words of an update (tau * batch words), T_ref the words that a learning rate is given for,
S mean staleness of a push in optimizer steps. A rule says what follows from its assumptions; which of them to trust, and what was measured
against them, stands in advise.py and docs/method.md.
"""

from __future__ import annotations

import math

PAPER_BETAS = (0.91, 0.998)
"""Shard Adam in the experiments' code of Bogoychev et al. 2018; from PAPER_SWITCH_BATCHES of a worker on PAPER_LATER_BETAS."""
PAPER_LATER_BETAS = (0.92, 0.998)
PAPER_LOCAL_BETAS = (0.93, 0.997)
"""The local Adam as intended there."""
PAPER_SWITCH_BATCHES = 4000
PAPER_WARMUP_BATCHES = 4000
PAPER_LOCAL_BATCHES = 3000
PAPER_DELAY = 2


def expected_staleness(workers: int, overlap: int, buffer_pushes: int = 1) -> float:
    """Mean steps between the version of a push and its application where work is i.i.d.: every other worker pushes once meanwhile.

    With overlap 1 a gradient is one window older: N pushes more. A shard that sums `buffer_pushes` pushes makes so many fewer steps.
    """
    return (workers * (1 + overlap) - 1) / buffer_pushes


def implicit_momentum(staleness: float) -> float:
    """mu_S = S / (1 + S): with S = M - 1 this is 1 - 1/M (Mitliagkas et al. 2016, arXiv 1605.09774).

    Derived for SGD with exponential times of work, which make staleness geometric of mean S: the expected step is then mu_S times the
    one before, plus (1 - mu_S) times the gradient.
    """
    return staleness / (1.0 + staleness)


def explicit_momentum(total: float, staleness: float) -> float:
    """The beta1 left to the optimizer so that explicit and implicit momentum make `total`: to first order (the factor of the step before)
    they add. May be negative (the same source)."""
    return total - implicit_momentum(staleness)


def beta_by_words(beta: float, update_words: float, reference_words: float) -> float:
    """beta^(T / T_ref): the same memory in words, for 0 <= beta < 1 (proposed in marian-dev issue 221; to first order the same as in
    Malladi et al. 2022, arXiv 2205.10287)."""
    return float(beta ** (update_words / reference_words))


def linear_rate(learning_rate: float, update_words: float, reference_words: float) -> float:
    """eta * T / T_ref (Bogoychev et al. 2018; Marian 1.11; Goyal et al. 2017, arXiv 1706.02677)."""
    return learning_rate * update_words / reference_words


def square_root_rate(learning_rate: float, update_words: float, reference_words: float) -> float:
    """eta * sqrt(T / T_ref): keeps the noise of Adam's steps (Malladi et al. 2022, arXiv 2205.10287)."""
    return learning_rate * math.sqrt(update_words / reference_words)


def damped_rate(learning_rate: float, staleness: float) -> float:
    """eta / max(1, S) (staleness-aware SGD, Zhang et al. 2016, arXiv 1511.05950)."""
    return learning_rate / max(1.0, staleness)


def untuned_warmup_words(beta2: float, update_words: float) -> float:
    """2 / (1 - beta2) updates, in words: a linear warm-up no shorter than the memory of Adam's second moment (Ma and Yarats 2021,
    arXiv 1910.04209)."""
    return 2.0 / (1.0 - beta2) * update_words


def batches_in_words(batches_of_a_worker: int, workers: int, batch_words: float) -> float:
    """What the paper's code counts in micro-batches of each worker, in global target words."""
    return batches_of_a_worker * workers * batch_words


def hybrid_pushes(workers: int) -> int:
    """B of the gradient buffer that gives an update the words of a synchronous one (after Aji and Heafield 2019, arXiv 1906.03496)."""
    return workers


def look_ahead_factor(staleness: float, delay: int) -> float:
    """2 S tau / (tau - 1): local steps of a window that go, in their mean, as far as the S pushes of tau batches that come before its own.

    A batch sees (tau - 1) / 2 local steps of `factor` times the rate of a batch; the parameters move by S tau such rates meanwhile. This
    project's own (docs/method.md); in the spirit of weight prediction (Kosson et al. 2021, arXiv 2003.11666). Raises ValueError for tau 1.
    """
    if delay < 2:
        raise ValueError(f"found a delay of {delay}, expected at least 2: no batch sees a local step")
    return 2.0 * staleness * delay / (delay - 1)


def carried_factor(staleness: float, delay: int) -> float:
    """2 S tau / (3 tau - 1): the same of local steps that are carried to the next window under overlap 1.

    A batch sees the tau local steps of the window in flight and (tau - 1) / 2 of its own. With tau 1 it is the compensation factor.
    """
    return 2.0 * staleness * delay / (3 * delay - 1)


def compensation_factor(staleness: float) -> float:
    """S: one step by the push in flight that goes as far as the S pushes which come before its successor (the same rule)."""
    return staleness


def delay_to_hide(delay: int, wait_share: float, overlap: int) -> int:
    """Smallest tau whose batches take as long as the exchange, for overlap 1; from a run with `delay` that waits `wait_share` of its time.

    overlap 1: batches and wait together are as long as the exchange. overlap 0: the wait alone is. An upper bound, because fewer
    exchanges also crowd the links less.
    """
    batches = delay / (1.0 - wait_share) if overlap else delay * wait_share / (1.0 - wait_share)
    return max(1, math.ceil(batches - 1e-9))


def ema_share(alpha: float, update_words: float, reference_words: float) -> float:
    """Share of the new parameters in the moving average after one update, once it is running: 1 - (1 - alpha)^(T / T_ref) (Marian 1.11)."""
    return float(1.0 - (1.0 - alpha) ** (update_words / reference_words))


def ema_memory_words(alpha: float, reference_words: float) -> float:
    """Words that the moving average looks back over: T_ref / alpha. Before nine times as many it looks back over a ninth of the run."""
    return reference_words / alpha
