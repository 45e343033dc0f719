"""hpcnmt advise --pick: its table and its recipes are what was measured, and it names synchronous training where that wins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcnmt import advise_pick
from hpcnmt.advise_measured import BATCH_S, MEASURED, PARAMETERS, RATE_WORKERS, RATES, TUNING, TUNING_SOURCES, Measured, Method
from hpcnmt.bench.grid import read_grid
from hpcnmt.bench.rates import read_columns
from hpcnmt.bench.results import read_results
from hpcnmt.cli import main
from hpcnmt.config import load_recipe, override
from hpcnmt.training.recipe import Recipe, build_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"
GRIDS = {"ablation-multi30k-2x128.json": "multi30k-transformer.yaml", "ablation-multi30k-gru.json": "multi30k-gru.yaml"}


@pytest.mark.parametrize("measured", MEASURED, ids=lambda m: f"{m.model}-{m.workers}")
def test_words_are_those_of_the_results(measured: Measured) -> None:
    summary = read_results(RESULTS / measured.source)["summary"]
    rows = {row["name"]: row for row in summary["policies"]}
    assert summary["baseline"] == measured.methods[0].name
    assert summary["target"]["cross_entropy"] == pytest.approx(measured.cross_entropy, abs=5e-4)
    for method in measured.methods:
        row = rows[method.name]
        assert row["words_to_cross_entropy"] == (None if method.words is None else pytest.approx(method.words, abs=0.5))
        assert (row["mode"], row["workers"]) == (method.mode, measured.workers) and len(row["seeds"]) >= measured.seeds
    assert min(len(rows[method.name]["seeds"]) for method in measured.methods) == measured.seeds


@pytest.mark.parametrize("gbit", RATES)
def test_words_per_second_are_those_of_the_results(gbit: float) -> None:
    name, rates = RATES[gbit]
    columns = [c for c in read_columns([RESULTS / name]) if c.compute[0] == BATCH_S and c.compute[2] == PARAMETERS]
    assert len(columns) == 1
    for method in MEASURED[0].methods:
        (phase,) = columns[0].phases(method.rate_settings(RATE_WORKERS))
        assert phase.target_words_per_s == pytest.approx(rates[method.name], abs=0.5), method.name


def test_quoted_trials_are_those_of_the_results() -> None:
    points = {key: point for name in TUNING_SOURCES for key, point in read_results(RESULTS / name)["points"].items()}
    for trial, entropy in TUNING.items():
        assert points[f"{trial} seed1"]["curve"][-1]["cross_entropy"] == pytest.approx(entropy, abs=5.1e-4), trial


def trained(recipe: Recipe) -> Recipe:
    """What it learns by: not the mode, the clock of virtual time and, for synchronous training, tau."""
    worker = recipe.worker if recipe.worker.local.mode != "off" else replace(recipe.worker, delay=1)
    return replace(recipe, clock=Recipe().clock, training=replace(recipe.training, mode="async"), worker=worker)


@pytest.mark.parametrize("measured", MEASURED, ids=lambda m: f"{m.model}-{m.workers}")
def test_recipes_are_what_was_measured(measured: Measured) -> None:
    grid = read_grid(BENCHMARKS / "grids" / GRIDS[measured.source])
    for method in measured.methods:
        policy = build_recipe(override(load_recipe(grid.recipe), grid.settings(method.name)))
        shipped = build_recipe(load_recipe(method.recipe))
        assert trained(shipped) == trained(policy), method.recipe
        assert shipped.training.mode == ("sync" if method.mode == "sync-equivalent" else "async")
        assert shipped.worker.delay * (measured.workers if method.mode == "sync-equivalent" else 1) == policy.worker.delay
        assert (shipped.worker.delay, shipped.worker.overlap) == (method.delay, method.overlap)
        assert (shipped.shard.lockstep_words >= shipped.training.max_target_words) == method.lockstep


def picked(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["advise", "--pick", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


TWO = (
    Measured("transformer", 4, "made up", 2.0, 5, "none", (
        Method("async", "a", 1000.0), Method("local-tau4", "l", 800.0, delay=4), Method("synchronous", "s", 500.0, "sync-equivalent"),
        Method("never", "n", None),
    )),
)  # fmt: skip
TWO_RATES = {
    1.0: ("slow.json", {"async": 100.0, "local-tau4": 200.0, "synchronous": 100.0, "never": 1e9}),
    10.0: ("fast.json", {"async": 400.0, "local-tau4": 400.0, "synchronous": 400.0, "never": 1e9}),
}  # fmt: skip


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise_pick, "MEASURED", TWO)
    monkeypatch.setattr(advise_pick, "RATES", TWO_RATES)


@pytest.mark.usefixtures("made_up")
def test_the_soonest_is_picked_even_if_it_is_synchronous_training(capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = picked(capsys, "--workers", 4, "--network-gbit", 1), picked(capsys, "--workers", 4, "--network-gbit", 10)
    assert (slow["recipe"], fast["recipe"]) == ("l", "s")
    assert [row["seconds"] for row in slow["rows"]] == [4.0, 5.0, 10.0, None] and "0.40 of the seconds of async" in slow["reason"]
    between = picked(capsys, "--workers", 4, "--network-gbit", 2)
    rate = {row["name"]: row["words_per_s"] for row in between["rows"]}["async"]
    assert 1 / rate == pytest.approx(1 / 400 + (1 / 100 - 1 / 400) * (1 / 2 - 1 / 10) / (1 - 1 / 10))
    assert "nearest" in " ".join(picked(capsys, "--workers", 4, "--network-gbit", 0.1)["notes"])


@pytest.mark.usefixtures("made_up")
def test_another_model_and_batch_are_another_network(capsys: pytest.CaptureFixture[str]) -> None:
    usual = picked(capsys, "--workers", 4, "--network-gbit", 2)
    same = picked(capsys, "--workers", 4, "--network-gbit", 8, "--parameters", 2 * PARAMETERS, "--batch-s", BATCH_S / 2)
    for ours, theirs in zip(same["rows"], usual["rows"], strict=True):
        assert ours["name"] == theirs["name"] and ours["words_per_s"] == pytest.approx(2 * theirs["words_per_s"])
    assert any("measured with 4 workers, not 16" in note for note in picked(capsys, "--workers", 16)["notes"])


def test_the_words_per_second_of_a_cluster_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    path = RESULTS / "throughput-10gbit-methods.json"
    own, shipped = picked(capsys, "--workers", 4, "--throughput", path), picked(capsys, "--workers", 4, "--network-gbit", 10)
    assert [row["name"] for row in own["rows"]] == [row["name"] for row in shipped["rows"]]
    assert [row["words_per_s"] for row in own["rows"]] == pytest.approx([row["words_per_s"] for row in shipped["rows"]], abs=0.5)
    assert picked(capsys, "--workers", 4, "--throughput", path.with_name("throughput-1gbit.json"), "--batch-s", 0.4)["rows"]
    assert main(["advise", "--pick", "--workers", "4"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith(f"hpcnmt train {picked(capsys, '--workers', 4)['recipe']} --data PREPARED")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pick"], "expected the number of workers"),
        (["--pick", "--workers", "0"], "found --workers 0"),
        (["--pick", "--workers", "4", "--network-gbit", "0"], "found --network-gbit 0.0"),
        (["--pick", "--workers", "4", "--batch-s", "nan"], "found --batch-s nan"),
        (["--pick", "--workers", "4", "--delay", "2"], "found --delay together with --pick"),
        (["--workers", "4", "--network-gbit", "2"], "found --network-gbit without --pick"),
        (["--pick", "--workers", "4", "--throughput", "nowhere.json"], "found no results file nowhere.json"),
        (["--pick", "--workers", "4", "--throughput", "x", "--network-gbit", "1"], "found --throughput together with --network-gbit"),
        (["--pick", "--workers", "9", "--throughput", str(RESULTS / "throughput-10gbit.json")], "found words per second of none"),
        (["--pick", "--workers", "4", "--throughput", str(RESULTS / "throughput-1gbit.json")], "choose with --batch-s"),
    ],
)
def test_wrong_input_ends_with_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
