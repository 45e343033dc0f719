"""Summaries of an ablation: spreads and intervals over seeds, targets, seconds as a product, and paired resampling."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from hpcnmt.bench.ablation_summary import summarize, targets, unequal_trials, without_rate
from hpcnmt.bench.crossing import crossing
from hpcnmt.bench.grid import Grid, Policy, Target
from hpcnmt.bench.rates import Column, Phase, read_columns, seconds_to
from hpcnmt.bench.seeds import T_975, difference
from hpcnmt.bench.significance import QUANTILES, pooled_interval, quantiles, resampled_scores

GRID = Grid("sample", baseline="base", policies={"base": Policy(4), "other": Policy(4)})


def point(name: str, seed: int, *entropy: float, mode: str = "virtual", **settings: Any) -> dict[str, Any]:
    curve = [{"target_words": 100 * (i + 1), "cross_entropy": e, "bleu": 10 - e, "chrf": 20 - e} for i, e in enumerate(entropy)]
    shared = {"name": name, "seed": seed, "mode": mode, "workers": 4, "delay": 1, "overlap": 0, "wire": "fp32", "batch_words": 1000}
    return {"settings": shared | settings, "curve": curve, "staleness": {"3": 1} if mode == "virtual" else {}, "end": {}}


def points(*found: dict[str, Any]) -> dict[str, Any]:
    return {f"{p['settings']['name']} seed{p['settings']['seed']}": p for p in found}


def test_the_t_quantiles_hold_95_percent_of_their_distribution() -> None:
    for freedom, quantile in enumerate(T_975, 1):
        constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        x = np.linspace(0.0, quantile, 100_001)
        density = constant * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        held = float(np.sum((density[1:] + density[:-1]) / 2) * (x[1] - x[0]))
        assert held == pytest.approx(0.475, abs=3e-5), freedom  # three decimals


def test_a_difference_is_of_common_seeds_and_needs_two_for_an_interval() -> None:
    assert difference({1: 3.0}, {2: 1.0}) is None
    assert difference({1: 3.0, 2: 4.0}, {2: 1.0}) == {"mean": 3.0, "interval": None, "seeds": 1}
    found = difference({1: 3.0, 2: 5.0, 3: 9.0}, {1: 1.0, 2: 2.0, 3: 5.0, 4: 0.0})
    assert found is not None and found["mean"] == 3.0 and found["seeds"] == 3
    assert found["interval"] == pytest.approx([3 - 4.303 / math.sqrt(3), 3 + 4.303 / math.sqrt(3)])


def test_cross_entropy_reaches_its_target_from_above() -> None:
    curve = point("base", 1, 9, 8, 7, 6, 5)["curve"]
    assert crossing(curve, 7.0, "cross_entropy") == {"target_words": 300}
    assert crossing(curve, 5.9, "cross_entropy") is None
    assert crossing(curve, 10 - 7.0, "bleu") == {"target_words": 300}


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5])
def test_the_baseline_reaches_what_it_reaches_at_its_end(seeds: int) -> None:
    found = points(*(point("base", seed, 9, 8, 7 - seed / 10, 6 - seed / 10, 5 + seed / 10) for seed in range(1, seeds + 1)))
    row = summarize(found, GRID, [])["policies"][0]
    for metric in ("cross_entropy", "bleu"):  # exactly at its end where that seed is in the middle; of two, the other is a little sooner
        assert row[f"words_to_{metric}"] == 400 if seeds % 2 else 350 < row[f"words_to_{metric}"] < 400
    assert row["reached_cross_entropy"] > seeds / 2
    ends = [statistics.fmean(r["cross_entropy"] for r in p["curve"][-3:]) for p in found.values()]
    assert summarize(found, GRID, [])["target"]["cross_entropy"] in ends
    by_seed = {p["settings"]["seed"]: p for p in found.values()}
    assert targets(Target(cross_entropy=3.0), by_seed)["cross_entropy"] == 3.0
    assert targets(Target(), {1: point("base", 1, 9, 8)}) == {"cross_entropy": None, "bleu": None}


def test_a_policy_stands_beside_the_baseline() -> None:
    found = points(
        point("other", 1, 8, 7, 5, 4), point("base", 1, 9, 8, 7, 6), point("base", 2, 9, 8, 7, 6.5), point("other", 2, 8, 7, 5, 4),
        point("gone", 2, 9, 9, 9, 9, mode="sync-equivalent"),
    )  # fmt: skip
    summary = summarize(found, GRID, [])
    base, other, gone = summary["policies"]  # in the order of the grid; policies that have left it come last
    assert (base["name"], base["seeds"], base["cross_entropy_difference"]) == ("base", [1, 2], None)
    assert base["cross_entropy"] == {"mean": 6.25, "smallest": 6, "largest": 6.5} and base["mean_staleness"] == 3.0
    assert other["cross_entropy_difference"]["mean"] == -2.25 and other["bleu_difference"]["mean"] == 2.25
    assert other["words_to_cross_entropy"] == 200 and other["reached_bleu"] == 2
    assert (gone["mean_staleness"], gone["words_to_cross_entropy"], gone["reached_bleu"]) == (None, None, 0)
    assert "seconds" not in summary and base["test"] is None


def test_the_best_trial_of_a_method_is_named_and_unequal_numbers_are_said() -> None:
    trials = {"a-1": Policy(4, set=("x=1",), trial_of="a"), "a-2": Policy(4, set=("x=2",), trial_of="a"), "b-1": Policy(4, trial_of="b")}
    grid = Grid("sample", baseline="base", policies={"base": Policy(4), **trials, "b-2": Policy(4, trial_of="b")})
    base = point("base", 1, 9, 8, 7, 6)
    found = points(base, point("a-1", 1, 9, 8, 7, 4), point("a-2", 1, 9, 8, 7, 3), point("b-1", 1, 9, 8, 7, 5))
    summary = summarize(found, grid, [])
    first, second = summary["tuned"]
    assert (first["method"], first["trials"], first["best"], first["set"], first["cross_entropy"]["mean"]) == ("a", 2, "a-2", ["x=2"], 3)
    assert (second["method"], second["trials"], second["best"]) == ("b", 1, "b-1")
    assert unequal_trials(summary) == "methods have different numbers of trials: a 2, b 1"
    assert unequal_trials(summarize(found | points(point("b-2", 1, 9, 8, 7, 6)), grid, [])) == ""
    assert summarize(points(base), grid, [])["tuned"] == [{"method": "a", "trials": 0}, {"method": "b", "trials": 0}]


def rate(mode: str, words: float, **settings: Any) -> dict[str, Any]:
    shared = {"mode": mode, "workers": 4, "delay": 1, "overlap": 0, "wire": "fp32", "compute": "simulated", "straggler": 1,
              "batch_s": 0.4, "batch_words": 2000, "parameters": 1e7, "network": "1gbit"}  # fmt: skip
    return {"settings": shared | settings, "target_words_per_s": words}


def test_seconds_are_words_by_the_rate_of_the_same_setting() -> None:
    rates = {
        "a": rate("async", 10.0), "tau": rate("async", 99.0, delay=2), "lap": rate("async", 99.0, overlap=1), "slow": rate("sync", 4.0),
        "fast": rate("sync", 5.0), "late": rate("sync", 99.0, straggler=2), "off": rate("off", 80.0, workers=8),
    }  # fmt: skip
    column = Column("1gbit", rates)
    found = points(
        point("base", 1, 9, 8, 7, 6), point("other", 1, 8, 7, 5, 4), point("sync", 1, 8, 7, 5, 4, mode="sync-equivalent"),
        point("one", 1, 8, 7, 5, 4, mode="plain", workers=1), point("large", 1, 8, 7, 5, 4, batch_words=2000),
        point("tau4", 1, 8, 7, 5, 4, delay=4),
    )  # fmt: skip
    summary = summarize(found, GRID, [column])
    entries = {entry["name"]: entry for entry in summary["seconds"]}
    found_rates = {name: (entry["throughput"], entry["seconds_to_bleu"], entry["ratio_bleu"]) for name, entry in entries.items()}
    assert found_rates == {
        "base": ("a", 30.0, 1.0), "other": ("a", 20.0, 2 / 3), "sync": ("fast", 40.0, 4 / 3), "one": ("off", 20.0, 2 / 3)
    }  # fmt: skip
    assert without_rate(summary, [column]) == ["large (1gbit)", "tau4 (1gbit)"]


def test_a_policy_that_changes_within_a_run_has_the_rates_of_its_phases() -> None:
    rates = {
        "slow": rate("async", 10.0), "lap": rate("async", 20.0, overlap=1), "fast": rate("async", 40.0, delay=2, overlap=1),
        "faster": rate("async", 80.0, delay=3, overlap=1), "sync": rate("sync", 5.0, delay=2),
    }  # fmt: skip
    late = {"delay": 3, "overlap": 1, "delay_ramp_words": 200, "overlap_from_words": 50}
    found = points(
        point("base", 1, 9, 8, 7, 6), point("late", 1, 9, 8, 7, 6, **late),
        point("gap", 1, 9, 8, 7, 6, **late | {"overlap_from_words": 150}),
        point("sync", 1, 9, 8, 7, 6, mode="sync-equivalent", delay=2, delay_ramp_words=200),
    )  # fmt: skip
    summary = summarize(found, GRID, [Column("1gbit", rates)])
    entry = {entry["name"]: entry for entry in summary["seconds"]}["late"]
    assert [(phase["from_words"], phase["target_words_per_s"]) for phase in entry["phases"]] == [(0, 10), (50, 20), (100, 40), (200, 80)]
    assert entry["throughput"] == "slow, then lap, then fast, then faster"
    assert entry["seconds_to_cross_entropy"] == 50 / 10 + 50 / 20 + 100 / 40 + 100 / 80 == 400 / entry["target_words_per_s"] - 100 / 80
    assert [seconds_to(words, [Phase(0, 10.0), Phase(50, 20.0)]) for words in (20, 50, 70)] == [2.0, 5.0, 6.0]
    assert without_rate(summary, [Column("1gbit", rates)]) == ["gap (1gbit)", "sync (1gbit)"]  # no rate without overlap at delay 2


def test_lockstep_is_a_phase_with_a_rate_of_its_own() -> None:
    rates = {"a": rate("async", 10.0), "together": rate("async", 5.0, lockstep=True)}
    found = points(point("base", 1, 9, 8, 7, 6), point("other", 1, 9, 8, 7, 6, lockstep_words=100))
    entries = {entry["name"]: entry for entry in summarize(found, GRID, [Column("1gbit", rates)])["seconds"]}
    assert entries["base"]["throughput"] == "a" and entries["other"]["throughput"] == "together, then a"
    assert entries["other"]["seconds_to_cross_entropy"] == 100 / 5 + 200 / 10


def test_networks_and_batches_have_columns_of_their_own(tmp_path: Path) -> None:
    def file(name: str, *found: dict[str, Any]) -> Path:
        path = tmp_path / f"{name}.json"
        content = {"format": 1, "kind": "throughput", "config": {}, "points": {str(i): p for i, p in enumerate(found)}, "summary": {}}
        path.write_text(json.dumps(content))
        return path

    one = file("one", rate("async", 1.0), rate("async", 2.0, batch_s=0.2), rate("async", 9.0, compute="real"))
    ten = file("ten", rate("async", 3.0, network="10gbit"))
    columns = read_columns([one, ten])
    assert [column.label.split(" a batch")[0] for column in columns] == ["1gbit, 0.4 s", "1gbit, 0.2 s", "10gbit, 0.4 s"]
    assert [list(column.points) for column in columns] == [["0"], ["1"], ["0"]]
    with pytest.raises(ValueError, match="found two throughput files of the same network"):
        read_columns([one, file("again", rate("async", 1.0))])
    with pytest.raises(ValueError, match="no point of simulated compute"):
        read_columns([file("real", rate("async", 1.0, compute="real"))])
    assert read_columns([]) == []


def test_resampling_is_that_of_sacrebleu() -> None:
    references = [f"the cat number {i} sat on the mat of house {i % 7}" for i in range(40)]
    ours = [line.replace("sat", "sits") if i % 3 else line for i, line in enumerate(references)]
    theirs = [line.replace("mat", "rug") if i % 2 else line for i, line in enumerate(references)]
    metrics = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}
    _, said = PairedTest([("theirs", theirs), ("ours", ours)], metrics, [references], "bs")()
    for metric, name in (("bleu", "BLEU"), ("chrf", "chrF2")):
        a, b = (resampled_scores(lines, references, metric) for lines in (ours, theirs))
        result: Any = said[name][1]
        assert a.mean() == pytest.approx(result.mean)
        differences = np.abs(a - b)
        centred = differences - differences.mean()
        real = abs(metrics[metric].corpus_score(ours, [references]).score - metrics[metric].corpus_score(theirs, [references]).score)
        assert ((centred > real).sum() + 1) / (len(a) + 1) == pytest.approx(result.p_value), "the resamples are paired"
        assert len(quantiles(a - b)) == QUANTILES


def test_intervals_of_several_seeds_are_pooled() -> None:
    spread = np.linspace(-1.0, 1.0, 1001)
    assert pooled_interval([]) is None
    assert pooled_interval([quantiles(spread)]) == pytest.approx([-0.95, 0.95], abs=0.01)
    assert pooled_interval([quantiles(spread - 10), quantiles(spread + 10)]) == pytest.approx([-10.9, 10.9], abs=0.02)


def test_resamples_that_are_not_paired_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    with pytest.raises(ValueError, match="SACREBLEU_SEED"):
        resampled_scores(["a"], ["a"], "bleu")
