"""hpcnmt advise: what it advises can be pasted and is then judged to fit; where it reads a run; disagreements; wrong input."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.advise_findings import advised_options, all_findings, disagreements, remarks
from hpcnmt.advise_setting import Setting
from hpcnmt.cli import main
from hpcnmt.config import RECIPES, load_recipe, override
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.optim import rules
from hpcnmt.optim.local import LocalConfig
from hpcnmt.training.recipe import Recipe, build_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml") if not path.stem.endswith("-sync"))  # which knows no staleness


def advised(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["advise", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def values(setting: Setting) -> dict[str, float]:
    return {finding.rule: finding.value for finding in all_findings(setting)}


def write_run(path: Path, recipe: Recipe, staleness: dict[str, int], end: dict[str, Any] | None, workers: int = 4) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(asdict(recipe) | {"context": {"workers": workers}}))
    for index in range(2):
        (path / f"shard-{index}.json").write_text(json.dumps({"staleness": staleness}))
    (path / "metrics.jsonl").write_text("" if end is None else json.dumps({"kind": "end", "target_words": 0} | end) + "\n")
    return path


@pytest.mark.parametrize("recipe", SHIPPED)
@pytest.mark.parametrize(
    "flags", [["--workers=1"], ["--workers=4", "--overlap=1", "--wait=0.4"], ["--workers=16", "--delay=4", "--batch-words=500"]]
)
def test_what_is_advised_can_be_pasted_and_then_fits(recipe: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--recipe", recipe]
    if "--overlap=1" in flags and build_recipe(load_recipe(recipe)).worker.local.write_back:
        named += ["--set", "worker.local.write_back=false"]  # excludes overlap
    first = advised(capsys, *named, *flags)
    pasted = [word for line in first["set"] for word in ("--set", line)]
    assert build_recipe(override(load_recipe(recipe), [*named[3:], *first["set"]]))
    again = advised(capsys, *named, *pasted, flags[0])  # the other flags are options by now
    assert again["set"] == [] and all(judgement["fits"] for judgement in again["judged"])
    assert {j["option"] for j in first["judged"] if not j["fits"]} == {line.split("=")[0] for line in first["set"]}


def test_the_printed_line_is_that_of_the_json_and_the_table_holds_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workers", "4", "--recipe", "multi30k-transformer", "--set", "optimizer.beta1=0.9"]
    result = advised(capsys, *words)
    assert main(["advise", *words]) == 0
    shown = capsys.readouterr().out
    assert shlex.split(shown.splitlines()[-1]) == ["--set", "optimizer.beta1=0.15"] == ["--set", *result["set"]]
    assert all(finding["rule"] in shown for finding in result["findings"])
    assert all(finding["formula"] and finding["source"] for finding in result["findings"])


def test_without_a_recipe_only_what_does_not_depend_on_one_is_advised(capsys: pytest.CaptureFixture[str]) -> None:
    result = advised(capsys, "--workers", 2, "--delay", 2, "--batch-words", 500, "--overlap", 1)
    assert result["judged"] == []
    flags = ["worker.delay=2", "worker.overlap=1", "loader.batch_words=500"]
    assert result["set"] == [*flags, "optimizer.beta1=0.15", "worker.local.mode=compensate", "worker.local.learning_rate_factor=3.0"]


def test_local_steps_look_as_far_ahead_as_the_parameters_move() -> None:
    def factor(workers: int, *, lockstep: bool = False, **worker: Any) -> float | None:
        recipe = Recipe(worker=WorkerConfig(**worker), shard=ShardPolicy(lockstep_words=10**12 if lockstep else 0))
        return values(Setting(recipe, workers)).get("look-ahead of local steps")

    assert factor(4, delay=4) == 8.0 and factor(4, delay=2) == 12.0 and factor(16, delay=4) == 40.0
    assert factor(4, delay=4, lockstep=True) == 4.0 and factor(4, delay=1) is None
    assert factor(4, delay=2, overlap=1) == 7.0 == factor(4, delay=1, overlap=1)
    assert factor(4, delay=2, overlap=1, local=LocalConfig("always")) == 5.6 == rules.carried_factor(7, 2)  # they are to be carried
    assert factor(4, delay=2, overlap=1, lockstep=True) == 4.0 and rules.carried_factor(7, 1) == rules.compensation_factor(7)
    assert factor(1, delay=2, overlap=1) is None


@pytest.mark.parametrize("overlap", [0, 1])
def test_where_ways_are_averaged_the_optimizer_of_the_workers_is_advised(overlap: int) -> None:
    local = LocalConfig("always", average=True, carry=bool(overlap))
    setting = Setting(Recipe(worker=WorkerConfig(1, overlap, local=local)), 4)
    found, options = values(setting), advised_options(setting)
    assert found["look-ahead of local steps"] == 4.0 == options["worker.local.learning_rate_factor"]
    assert not {"explicit momentum", "linear in words", "hybrid buffer"} & set(found)
    assert options["worker.local.average"] is True and not any(option.startswith("optimizer.") for option in options)
    assert found["untuned warm-up"] == pytest.approx(2 / (1 - local.optimizer.beta2) * 4 * setting.recipe.loader.batch_words)


def test_measured_staleness_takes_the_place_of_the_rule() -> None:
    recipe = Recipe()
    assert values(Setting(recipe, 4))["explicit momentum"] == values(Setting(recipe, 2, measured_staleness=3))["explicit momentum"]
    assert "measured staleness" not in values(Setting(recipe, 4))
    slow = Setting(recipe, 2, measured_staleness=9)
    assert any("far above the expected 1" in remark for remark in remarks(slow))
    assert not any("far above" in remark for remark in remarks(Setting(recipe, 2, measured_staleness=1.1)))


def test_a_buffer_makes_larger_updates_and_rarer_steps() -> None:
    recipe = build_recipe({"worker": {"delay": 2, "overlap": 1}, "loader": {"batch_words": 500}, "shard": {"buffer_pushes": 4}})
    setting = Setting(recipe, 4)
    assert (setting.push_words, setting.update_words, setting.staleness) == (1000, 4000, 7 / 4)
    found, plain = values(setting), values(Setting(replace(recipe, shard=ShardPolicy()), 4))
    assert found["explicit momentum"] == pytest.approx(0.9 - 7 / 11) and plain["explicit momentum"] == pytest.approx(0.9 - 7 / 8)
    assert found["linear in words"] == 4 * plain["linear in words"] and found["untuned warm-up"] == 4 * plain["untuned warm-up"]
    by_batches = ("paper's warm-up", "paper's local optimizer", "hybrid buffer", "paper's delay")
    assert [found[rule] for rule in by_batches] == [plain[rule] for rule in by_batches], "counted in batches and pushes"
    assert "large updates or low momentum" not in {d.about for d in disagreements(setting, all_findings(setting))}


@pytest.mark.parametrize(("pushes", "workers", "expected"), [(1, 4, 1), (4, 4, 4), (2, 4, 4), (8, 4, 4), (2, 1, 1)])
def test_a_buffer_is_judged_by_the_hybrid_rule(pushes: int, workers: int, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--recipe", "sample", "--set", f"shard.buffer_pushes={pushes}", "--workers", workers)
    judged = {judgement["option"]: judgement for judgement in advised(capsys, *words)["judged"]}["shard.buffer_pushes"]
    assert (judged["found"], judged["advised"], judged["fits"]) == (pushes, expected, pushes == expected)


def test_a_run_with_a_buffer_is_measured_in_its_own_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = build_recipe({"shard": {"buffer_pushes": 2}})
    run = write_run(tmp_path / "run", recipe, {"1": 50, "2": 50}, {"target_words": 100_000})
    result = advised(capsys, "--run", run)
    setting = result["setting"]
    assert (setting["measured_staleness"], setting["measured_push_words"], setting["buffer_pushes"]) == (1.5, 1000.0, 2)
    assert (setting["staleness"], setting["update_words"]) == (0.75, 4000), "four pushes a step are advised in place of two"
    assert "shard.buffer_pushes=4" in result["set"] and not any("far above" in remark for remark in result["remarks"])
    again = json.loads((run / "config.json").read_text()) | {"shard": {"buffer_pushes": 4}}
    (run / "config.json").write_text(json.dumps(again))
    setting = advised(capsys, "--run", run)["setting"]
    assert (setting["staleness"], setting["update_words"]) == (1.5, 4000)


def test_beta1_is_not_advised_below_what_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    result = advised(capsys, "--workers", 64)
    rule = next(finding for finding in result["findings"] if finding["rule"] == "explicit momentum")
    assert rule["value"] < 0 and "untried" in rule["formula"] and "optimizer.beta1=0.0" in result["set"]


def test_rules_that_agree_are_not_said_to_disagree() -> None:
    alone = Setting(build_recipe({"worker": {"delay": 2}, "loader": {"batch_words": 1000}, "schedule": {"reference_words": 2000}}), 1)
    assert {d.about for d in disagreements(alone, all_findings(alone))} == {"warm-up"}
    four = Setting(build_recipe({"worker": {"delay": 4}}), 4)
    about = {d.about: d for d in disagreements(four, all_findings(four))}
    assert set(about) == {"beta1", "learning rate", "large updates or low momentum", "tau", "warm-up"}
    assert "explicit momentum 0.15" in about["beta1"].sides and "paper's tuning 0.91" in about["beta1"].sides


def test_a_run_gives_its_own_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = build_recipe({"worker": {"delay": 2, "overlap": 1}, "optimizer": {"beta1": 0.8}})
    shares = {"compute": 0.3, "wait": 0.3, "validate": 0.4, "exchange": 0.9}
    run = write_run(tmp_path / "run", recipe, {"2": 50, "4": 50}, {"target_words": 350_000, "shares": shares})
    result = advised(capsys, "--run", run)
    setting = result["setting"]
    assert (setting["workers"], setting["measured_staleness"], setting["measured_push_words"]) == (4, 3.0, 3500.0)
    assert setting["wait_share"] == pytest.approx(0.5)
    by_option = {judgement["option"]: judgement for judgement in result["judged"]}
    assert (by_option["worker.delay"]["found"], by_option["worker.delay"]["advised"]) == (2, 4)
    assert by_option["optimizer.beta1"]["advised"] == 0.15
    assert setting["update_words"] == 7000, "the advised tau doubles the words of a push"
    assert any(line.startswith("worker.delay=4") for line in result["set"])


def test_a_run_in_virtual_time_and_one_that_has_not_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = build_recipe({"training": {"mode": "virtual"}})
    virtual = write_run(tmp_path / "virtual", recipe, {}, {"target_words": 1000, "staleness": {"3": 10}})
    for path in virtual.glob("shard-*.json"):
        path.unlink()
    setting = advised(capsys, "--run", virtual)["setting"]
    assert (setting["measured_staleness"], setting["measured_push_words"], setting["wait_share"]) == (3.0, 100.0, None)
    begun = write_run(tmp_path / "begun", recipe, {}, None)
    setting = advised(capsys, "--run", begun)["setting"]
    assert setting["measured_staleness"] is None and setting["staleness"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found neither --workers nor --run"),
        (["--workers", "0"], "found 0 workers"),
        (["--workers", "4", "--delay", "0"], "worker.delay is 0"),
        (["--workers", "4", "--overlap", "2"], "worker.overlap is 2"),
        (["--workers", "4", "--batch-words", "0"], "loader.batch_words is 0"),
        (["--workers", "4", "--staleness", "-1"], "found staleness -1.0"),
        (["--workers", "4", "--staleness", "nan"], "found staleness nan"),
        (["--workers", "4", "--wait", "1"], "found a waiting share of 1.0"),
        (["--workers", "4", "--momentum", "1"], "found momentum 1.0"),
        (["--workers", "4", "--recipe", "multi30k-gruu"], "found no recipe"),
        (["--workers", "4", "--set", "worker.delay=2"], "found --set without --recipe"),
        (["--workers", "4", "--recipe", "sample", "--set", "training.mode=sync"], "found training.mode=sync, which knows no staleness"),
        (["--workers", "4", "--run", "."], "found --run together with --workers"),
        (["--run", "nowhere"], "found no nowhere/config.json"),
    ],
)
def test_wrong_input_ends_with_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_damaged_run_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", Recipe(), {"1": 2}, {"target_words": 10})
    (run / "shard-0.json").write_text('{"staleness": {"1": 0}}')  # a shard without a push, beside one with some: found by fuzzing
    (run / "shard-1.json").write_text('{"staleness": {"1": 2}}')
    assert advised(capsys, "--run", run)["setting"]["measured_push_words"] == 10
    (run / "shard-0.json").write_text('{"staleness": [1]}')
    assert main(["advise", "--run", str(run)]) == 2 and "is not the report of a shard" in capsys.readouterr().err
    (run / "config.json").write_text("{}")
    assert main(["advise", "--run", str(run)]) == 2 and "is not the configuration of a run" in capsys.readouterr().err
