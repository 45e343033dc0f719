"""What the rules say of the local optimizer: whether to have one, how far its steps go, and its betas. Pure; called by advise_findings.py.

Local steps carry the replica to where the parameters will be when the push is applied, so that gradients suit those: the look-ahead rule
makes both ways equally long. It is this project's own, and its figures are in docs/method.md.
"""

from __future__ import annotations

from hpcnmt.advise_setting import Finding, Setting, number
from hpcnmt.optim import rules

FACTOR = "worker.local.learning_rate_factor"
LOCAL_BETA1, AVERAGED_BETA1 = 0.5, 0.7
"""Measured: at tau 4 and factor 4, 0.5 ends 0.86 nats/word below 0.9; averaged ways like what suits synchronous training."""
MEASURED = "measured: docs/method.md"
PAPER = "Bogoychev et al. 2018, arXiv 1808.08859: its code"


def _mode(setting: Setting) -> str:
    """The local steps that have an effect in a setting: those of the recipe, where it has some; `carry` where they are to be carried.

    Under overlap they always are: the next swap erases them long before the shards' own steps arrive.
    """
    chosen, overlap = setting.recipe.worker.local.mode, setting.recipe.worker.overlap
    if overlap and (chosen in ("always", "warmup") or (chosen == "off" and setting.in_lockstep)):
        return "carry"
    if chosen == "compensate" or (overlap and chosen == "off"):
        return "compensate"
    return "off" if setting.delay == 1 else "always" if chosen == "off" else chosen


def look_ahead(setting: Setting) -> float:
    """The factor by the look-ahead rule; 0 where no local step has an effect. N where ways are averaged."""
    if setting.averages:
        return float(setting.workers)
    mode = _mode(setting)
    if mode == "off" or (mode == "compensate" and setting.workers == 1):
        return 0.0
    if mode == "compensate":
        return rules.compensation_factor(setting.staleness)
    if setting.in_lockstep:
        return float(setting.workers)
    if mode == "carry":
        return rules.carried_factor(setting.staleness, setting.delay)
    return rules.look_ahead_factor(setting.staleness, setting.delay)


def local_findings(setting: Setting) -> list[Finding]:
    """The rows of the table."""
    s, tau, n = setting.staleness, setting.delay, setting.workers
    batch_words = setting.push_words / tau
    batches, (beta1, beta2) = rules.PAPER_LOCAL_BATCHES, rules.PAPER_LOCAL_BETAS
    lasts = rules.batches_in_words(batches, n, batch_words)
    formula = f"{batches} batches x N x batch words = {batches} x {n} x {number(batch_words)}"
    found = [
        Finding("local optimizer", "local beta1", beta1, f"beta2 {beta2}, as intended", PAPER),
        Finding("paper's local optimizer", "words it lasts", lasts, formula, PAPER),
    ]
    factor = look_ahead(setting)
    if not factor:
        return found
    if setting.averages:
        formula = f"N = {n} (averaged ways)"
    elif _mode(setting) == "compensate":
        formula = f"S = {number(s)}, worker.local.mode=compensate"
    elif setting.in_lockstep:
        formula = f"N = {n} (lockstep)"
    elif _mode(setting) == "carry":
        formula = f"2 S tau / (3 tau - 1) = 2 x {number(s)} x {tau} / {3 * tau - 1}, worker.local.carry=true"
    else:
        formula = f"2 S tau / (tau - 1) = 2 x {number(s)} x {tau} / {tau - 1}"
    return [*found, Finding("look-ahead of local steps", "factor", factor, formula, MEASURED, True)]


def advised_local(setting: Setting) -> dict[str, int | float | str]:
    """Option -> value; nothing where no local step has an effect."""
    factor = look_ahead(setting)
    if not factor:
        return {}
    mode, more, beta1 = _mode(setting), dict[str, int | float | str](), LOCAL_BETA1
    if mode == "carry":
        chosen = setting.recipe.worker.local.mode
        mode, more = "always" if chosen == "off" else chosen, {"worker.local.carry": True}
    if setting.averages:
        mode, more, beta1 = "always", more | {"worker.local.average": True}, AVERAGED_BETA1
    return more | {
        "worker.local.mode": mode, FACTOR: round(factor, 1), "worker.local.optimizer.beta1": beta1,
        "worker.local.optimizer.beta2": setting.adam_beta2,
    }  # fmt: skip
