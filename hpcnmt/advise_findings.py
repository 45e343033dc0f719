"""What the rules of hpcnmt.optim.rules say of one setting, where they disagree, which is followed, and what that means for a recipe.

Pure: a Setting in, findings out; every finding carries its formula with the numbers put in and its source. Invariant: a recipe with the
options of `advised_options` set is judged to fit. Called by advise.py.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from hpcnmt.advise_local import FACTOR, advised_local, local_findings
from hpcnmt.advise_measured import TUNING as M
from hpcnmt.advise_setting import WORTH_HIDING, Disagreement, Finding, Judgement, Setting, number
from hpcnmt.optim import rules
from hpcnmt.training.recipe import Recipe

LOWEST_BETA1 = 0.0
"""Below this nobody has tried here, whatever the rule gives."""
BETA1_TOLERANCE = 0.1
"""Differences that no measurement has told apart yet."""
FACTOR_TOLERANCE = 1.5
"""The same for a factor."""
STALE_BEYOND_RULE = 1.5
WARMUP_STEP_WORDS = 1000
USUAL_EMA_ALPHA = 1e-4

IMPLICIT = "Mitliagkas et al. 2016, arXiv 1605.09774"
PAPER = "Bogoychev et al. 2018, arXiv 1808.08859: its code"
MARIAN = "Marian 1.11"
Values = dict[str, float]
"""Rule -> value."""


def all_findings(setting: Setting) -> list[Finding]:
    """Every rule, in the order of the table."""
    of_the_shards = () if setting.averages else (_momentum, _learning_rate)
    parts = (_staleness, *of_the_shards, _update_size, local_findings, _warmup, _moving_average)
    return [finding for part in parts for finding in part(setting)]


def _staleness(setting: Setting) -> list[Finding]:
    n, overlap, b, run_b = setting.workers, setting.recipe.worker.overlap, setting.buffer_pushes, setting.recipe.shard.buffer_pushes
    formula = f"2 N - 1 = 2 x {n} - 1 (overlap 1)" if overlap else f"N - 1 = {n} - 1 (overlap 0)"
    formula += f", over B = {b}" if b > 1 else ""
    measured = setting.measured_staleness
    found = [Finding("expected staleness", "S", setting.expected_staleness, formula, "i.i.d. work; docs/engine.md", measured is None)]
    if measured is not None:
        of_run = "mean over the pushes" + (f", times B of the run over B advised = {run_b} / {b}" if run_b != b else "")
        found.append(Finding("measured staleness", "S", setting.staleness, of_run, "the run, or --staleness", True))
    return found


def advised_beta1(setting: Setting) -> float:
    """That of the implicit-momentum rule, no lower than what was tried."""
    return round(max(LOWEST_BETA1, rules.explicit_momentum(setting.total_momentum, setting.staleness)), 2)


def _momentum(setting: Setting) -> list[Finding]:
    s, total = setting.staleness, setting.total_momentum
    mu, left = rules.implicit_momentum(s), rules.explicit_momentum(total, s)
    t, t_ref = setting.update_words, setting.recipe.schedule.reference_words
    switch = number(rules.batches_in_words(rules.PAPER_SWITCH_BATCHES, setting.workers, _batch_words(setting)))
    untried = f"; below {number(LOWEST_BETA1)} is untried, so {number(LOWEST_BETA1)}" if left < LOWEST_BETA1 else ""
    betas = setting.recipe.optimizer
    return [
        Finding("implicit momentum", "mu_S", mu, f"S / (1 + S) = {number(s)} / {number(1 + s)}: 1 - 1/M with M = 1 + S", IMPLICIT),
        Finding("explicit momentum", "beta1", left, f"total - mu_S = {number(total)} - {mu:.3g}{untried}", IMPLICIT, True),
        Finding("paper's tuning", "beta1", rules.PAPER_BETAS[0],
                f"beta2 {rules.PAPER_BETAS[1]}; beta1 {rules.PAPER_LATER_BETAS[0]} from {switch} words on "
                f"({rules.PAPER_SWITCH_BATCHES} batches of a worker)", PAPER),
        Finding("betas by words", "beta1", rules.beta_by_words(total, t, t_ref),
                f"beta^(T / T_ref) = {number(total)}^({number(t)} / {number(t_ref)}); "
                f"beta2 {rules.beta_by_words(betas.beta2, t, t_ref):.4g}", "marian-dev issue 221; arXiv 2205.10287"),
    ]  # fmt: skip


def _batch_words(setting: Setting) -> float:
    return setting.push_words / setting.delay


def _learning_rate(setting: Setting) -> list[Finding]:
    eta, t, t_ref = setting.recipe.schedule.learning_rate, setting.update_words, setting.recipe.schedule.reference_words
    linear, root = rules.linear_rate(eta, t, t_ref), rules.square_root_rate(eta, t, t_ref)
    ratio = f"{number(t)} / {number(t_ref)}"
    as_option = root * t_ref / t  # the schedule multiplies by T / T_ref
    return [
        Finding("linear in words", "lr of an update", linear, f"eta T / T_ref = {number(eta)} x {ratio}", f"{PAPER}; {MARIAN}", True),
        Finding("square root", "lr of an update", root,
                f"eta sqrt(T / T_ref) = {number(eta)} x sqrt({ratio}); schedule.learning_rate={as_option:.3g}", "arXiv 2205.10287"),
        Finding("staleness damping", "lr of an update", rules.damped_rate(linear, setting.staleness),
                f"linear / max(1, S) = {number(linear)} / {number(max(1.0, setting.staleness))}", "arXiv 1511.05950"),
    ]  # fmt: skip


def _update_size(setting: Setting) -> list[Finding]:
    n, worker, wait = setting.workers, setting.recipe.worker, setting.wait_share
    b = rules.hybrid_pushes(n)
    stale = rules.expected_staleness(n, worker.overlap, b)
    found = [Finding("paper's delay", "tau", rules.PAPER_DELAY, "the best setting there", PAPER)]
    if wait is not None:
        hides = rules.delay_to_hide(worker.delay, wait, worker.overlap)
        hidden = f"{worker.delay}" if worker.overlap else f"{worker.delay} x {number(wait)}"
        note = "" if worker.overlap else ", with overlap 1 and its staleness"
        formula = f"ceil({hidden} / (1 - {number(wait)})){note}"
        found.append(Finding("exchange hidden", "tau", hides, formula, "waiting of the run, or --wait", hides == setting.delay))
    if n > 1 and not setting.averages:
        formula = f"N: updates of N pushes = {number(b * setting.push_words)} words, expected S {number(stale)}"
        source = "Aji and Heafield 2019, arXiv 1906.03496"
        found.append(Finding("hybrid buffer", "B (pushes)", b, formula, source, setting.buffer_pushes == b))
    return found


def advised_warmup_words(setting: Setting) -> int:
    """The recipe's, raised to what the untuned rule asks for, in whole thousands."""
    least = rules.untuned_warmup_words(setting.adam_beta2, setting.adam_step_words)
    return max(setting.recipe.schedule.warmup_words, math.ceil(least / WARMUP_STEP_WORDS) * WARMUP_STEP_WORDS)


def _warmup(setting: Setting) -> list[Finding]:
    beta2, t, n, words = setting.adam_beta2, setting.adam_step_words, setting.workers, _batch_words(setting)

    def of_the_paper(rule: str, gives: str, batches: int) -> Finding:
        formula = f"{batches} batches x N x batch words = {batches} x {n} x {number(words)}"
        return Finding(rule, gives, rules.batches_in_words(batches, n, words), formula, PAPER)

    return [
        Finding("untuned warm-up", "warm-up words, at least", rules.untuned_warmup_words(beta2, t),
                f"2 T / (1 - beta2) = 2 x {number(t)} / {number(1 - beta2)}", "Ma and Yarats 2021, arXiv 1910.04209", True),
        of_the_paper("paper's warm-up", "warm-up words", rules.PAPER_WARMUP_BATCHES),
    ]  # fmt: skip


def _moving_average(setting: Setting) -> list[Finding]:
    alpha, t_ref = setting.recipe.training.ema_alpha or USUAL_EMA_ALPHA, setting.recipe.schedule.reference_words
    share, memory = rules.ema_share(alpha, setting.update_words, t_ref), rules.ema_memory_words(alpha, t_ref)
    formula = (
        f"1 - (1 - {alpha:g})^(T / T_ref); looks back {number(memory)} words = T_ref / {alpha:g}, or a ninth of the run if that is less"
    )
    return [Finding("moving average", "share of an update", share, formula, MARIAN)]


def disagreements(setting: Setting, findings: list[Finding]) -> list[Disagreement]:
    """Where rules give different values for the same thing; what is followed, and why."""
    values = {finding.rule: finding.value for finding in findings}
    of_the_shards = () if setting.averages else (_on_beta1, _on_learning_rate)
    found = [about(setting, values) for about in (*of_the_shards, _on_buffer, _on_delay, _on_warmup)]
    return [disagreement for disagreement in found if disagreement is not None]


def _on_beta1(setting: Setting, values: Values) -> Disagreement | None:
    sides = ["explicit momentum", "paper's tuning", "betas by words"]
    if abs(values[sides[0]] - values[sides[1]]) <= BETA1_TOLERANCE:
        return None
    why = (
        "staleness already acts as momentum (a rule derived for SGD and exponential times of work, while the paper tuned Adam's beta1 up "
        "for its own data, and betas by words were found counterproductive for Adam). Measured, each at its best learning rate: "
        f"beta1 0 {M['async-b0-lr2']:.2f}, 0.5 {M['async-b0.5-lr1']:.2f}, 0.9 {M['async-b0.9-lr1']:.2f}; synchronous training 0.5 "
        f"{M['synchronous-b0.5-lr2']:.2f}, 0.7 {M['synchronous-b.7-lr2.0']:.2f}, 0.9 {M['synchronous-b0.9-lr1']:.2f}: "
        "so short a run likes low momentum without staleness, too"
    )
    return Disagreement("beta1", _sides(values, sides), f"explicit momentum, {number(advised_beta1(setting))}", why)


def _on_learning_rate(setting: Setting, values: Values) -> Disagreement | None:
    sides = ["linear in words", "square root", "staleness damping"]
    of_sides = [values[side] for side in sides]
    if max(of_sides) <= 1.01 * min(of_sides):
        return None
    why = (
        "the schedule of every recipe, the paper and Marian do so; the square root is derived for Adam without staleness; damping is not "
        f"measured here, and a lower rate did not help: at beta1 0 1e-3 ends at {M['async-b0-lr1']:.2f}, 2e-3 at {M['async-b0-lr2']:.2f}, "
        f"3e-3 at {M['async-b0-lr3']:.2f}"
    )
    return Disagreement("learning rate", _sides(values, sides), "linear in words", why)


def _on_buffer(setting: Setting, values: Values) -> Disagreement | None:
    if "hybrid buffer" not in values or setting.buffer_pushes > 1:  # who has a buffer has chosen; what momentum it leaves is advised
        return None
    why = (
        f"measured: B 4 {M['hybrid4-b0.5-lr1']:.2f} at best, low momentum without a buffer {M['async-b0-lr2']:.2f}. A short budget "
        "flatters many small updates: try the buffer (shard.buffer_pushes) on long runs, and where a Transformer stays behind"
    )
    sides = (f"hybrid buffer of {number(values['hybrid buffer'])}", f"beta1 {number(advised_beta1(setting))}")
    return Disagreement("large updates or low momentum", sides, "low momentum", why)


def _on_delay(setting: Setting, values: Values) -> Disagreement | None:
    sides: list[str] = [rule for rule in ("paper's delay", "exchange hidden") if rule in values]
    given = setting.recipe.worker.delay
    if {values[side] for side in sides} == {given}:
        return None
    why = (
        f"tau pays in seconds, by hiding the exchange: it is raised only where overlap 1 leaves more than {WORTH_HIDING:.0%} of waiting. "
        f"At equal words it costs unless local steps look ahead: tau 1 {M['async-b0-lr2']:.2f}, tau 4 {M['tau4-lr.5']:.2f}, tau 4 with "
        f"local steps {M['local-tau4-lr1-f8']:.2f}; hpcnmt advise --pick compares seconds"
    )
    return Disagreement("tau", (*_sides(values, sides), f"as given {given}"), f"tau {setting.delay}", why)


def _on_warmup(setting: Setting, values: Values) -> Disagreement | None:
    sides = _sides(values, ["untuned warm-up", "paper's warm-up"])
    why = "as in the recipe, unless Adam's second moment needs longer; the paper's count is for its data, and exceeds a short run"
    return Disagreement("warm-up", sides, f"{number(advised_warmup_words(setting))} words", why)


def _sides(values: Values, rules_of: list[str]) -> tuple[str, ...]:
    return tuple(f"{rule} {number(values[rule])}" for rule in rules_of)


def advised_options(setting: Setting) -> dict[str, int | float | str]:
    """Option -> value, of all options that the followed rules speak of."""
    recipe = setting.recipe
    found: dict[str, int | float | str] = {
        "worker.delay": setting.delay, "worker.overlap": recipe.worker.overlap, "loader.batch_words": recipe.loader.batch_words,
    }  # fmt: skip
    if not setting.averages:
        found["optimizer.beta1"] = advised_beta1(setting)
    return found | {
        "schedule.warmup_words": advised_warmup_words(setting),
        "shard.buffer_pushes": setting.recipe.shard.buffer_pushes if setting.in_lockstep else setting.buffer_pushes,
    } | advised_local(setting)  # fmt: skip


def judge(recipe: Recipe, setting: Setting) -> list[Judgement]:
    """The options of `recipe` beside those advised for `setting`."""
    judged = []
    for option, advised in advised_options(setting).items():
        found: Any = recipe
        for name in option.split("."):
            found = getattr(found, name)
        judged.append(Judgement(option, found, advised, _fits(option, found, advised)))
    return judged


def _fits(option: str, found: Any, advised: Any) -> bool:
    if option.endswith("beta1"):
        return bool(abs(found - advised) <= BETA1_TOLERANCE + 1e-9)
    if option == FACTOR:  # rules of thumb: half and twice the value were told apart, less was not
        return bool(advised / FACTOR_TOLERANCE <= found <= advised * FACTOR_TOLERANCE)
    return bool(found == advised)


def remarks(setting: Setting) -> list[str]:
    """What stands in no table."""
    recipe, found = setting.recipe, []
    eta, stale = recipe.schedule.learning_rate, setting.measured_staleness
    expected = rules.expected_staleness(setting.workers, recipe.worker.overlap, recipe.shard.buffer_pushes)  # of the run as it was
    if stale is not None and stale > STALE_BEYOND_RULE * expected + 0.5:
        found.append(
            f"the measured staleness {number(stale)} is far above the expected {number(expected)}: a slow worker, pauses for validation, "
            "or pushes in bursts (hpcnmt status and hpcnmt trace show which)"
        )
    if advised_beta1(setting) <= 0.5 < setting.total_momentum and not setting.averages:
        found.append(
            f"with so low a beta1 a higher learning rate may pay: one trial of schedule.learning_rate={2 * eta:g} if {eta:g} is what suits "
            f"beta1 {number(setting.total_momentum)} (measured at beta1 0: from 1e-3 to 2e-3 {M['async-b0-lr1']:.2f} to "
            f"{M['async-b0-lr2']:.2f}, but 3e-3 {M['async-b0-lr3']:.2f})"
        )
    alpha, words = recipe.training.ema_alpha, recipe.training.max_target_words
    if alpha and 9 * rules.ema_memory_words(alpha, recipe.schedule.reference_words) > words:
        found.append(
            f"alpha {alpha:g} of the moving average never acts: up to the end ({number(words)} words) it looks back a ninth of the run"
        )
    if advised_warmup_words(setting) > words / 2:
        found.append(f"the warm-up is more than half of training.max_target_words ({number(words)}): smaller updates or a longer run")
    return found


def numbers_of(setting: Setting) -> dict[str, float | None]:
    """The setting in figures, for --json and the head of the table."""
    given = {f.name: getattr(setting, f.name) for f in fields(setting) if f.name != "recipe"}
    recipe = setting.recipe
    return given | {
        "delay": recipe.worker.delay, "overlap": recipe.worker.overlap, "batch_words": recipe.loader.batch_words,
        "buffer_pushes": recipe.shard.buffer_pushes, "update_words": setting.update_words, "staleness": setting.staleness,
    }  # fmt: skip
