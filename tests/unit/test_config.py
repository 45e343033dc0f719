"""Recipes: strict keys and types, overrides, options without effect, and every shipped recipe loads."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.config import RECIPES, from_mapping, load_recipe, override
from hpcnmt.optim import rules
from hpcnmt.optim.adam import AdamConfig, LaterBetas
from hpcnmt.training.recipe import Recipe, build_recipe

AVERAGE = ("worker.local.mode=always", "worker.local.average=true")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert isinstance(build_recipe(load_recipe(path.stem)), Recipe)


def test_the_recipes_of_the_paper_differ_in_the_slip_of_its_code_alone() -> None:
    paper, as_coded = (build_recipe(load_recipe(name)) for name in ("paper", "paper-as-coded"))
    local = paper.worker.local
    assert (local.optimizer.beta1, local.optimizer.beta2) == rules.PAPER_LOCAL_BETAS and local.warmup_batches == rules.PAPER_LOCAL_BATCHES
    slip = replace(local, optimizer=replace(local.optimizer, beta1=0.997, beta2=0.998))
    assert as_coded == replace(paper, worker=replace(paper.worker, local=slip))
    later = paper.optimizer.later
    assert later.words == rules.batches_in_words(rules.PAPER_SWITCH_BATCHES, 4, paper.loader.batch_words)
    assert [(b.beta1, b.beta2) for b in (paper.optimizer, later)] == [rules.PAPER_BETAS, rules.PAPER_LATER_BETAS]
    assert paper.worker.delay == rules.PAPER_DELAY


def test_the_paper_updates_at_eta_by_words_from_the_first_update_on() -> None:
    schedule = build_recipe(load_recipe("paper")).schedule
    for words in (1920, 3840, 10**9):
        assert schedule.at(words, 1920) == pytest.approx(1e-4) and schedule.at(words, 1000) == pytest.approx(1e-4 * 1000 / 1920)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["worker.dely=2"], "unknown option worker.dely: did you mean 'delay'"),
        (["wroker.delay=2"], "unknown option wroker: did you mean 'worker'"),
        (["worker.delay=two"], "found 'two' for worker.delay, expected a value of type int"),
        (["worker.delay=0"], "worker.delay is 0, expected at least 1"),
        (["worker.delay=true"], "found True for worker.delay"),
        (["training.mode=asink"], "expected one of 'async', 'sync', 'plain', 'virtual'"),
        (["validation.stop_on=bleu", "validation.patience=2"], "found 'bleu' for validation.stop_on, expected a list"),
        (["validation.stop_on=[blue]", "validation.patience=2"], r"validation.stop_on\[0\], expected one of"),
        (["model.hidden_dim=100"], "model.hidden_dim has no effect with model.type=transformer"),
        (["training.mode=plain", "worker.overlap=1"], "worker.overlap has no effect with training.mode=plain"),
        (["training.mode=sync", "worker.overlap=1"], "worker.overlap has no effect with training.mode=sync"),
        (["training.mode=sync", "training.wire=bf16"], "training.wire has no effect with training.mode=sync"),
        (["training.mode=sync", "clock.batch_s=1"], "clock has no effect with training.mode=sync"),
        (["training.mode=sync", "shard.buffer_pushes=2"], "shard has no effect with training.mode=sync"),
        (["training.mode=plain", "shard.damp_staleness=true"], "shard has no effect with training.mode=plain"),
        (["shard.buffer_pushes=0"], "shard.buffer_pushes is 0, expected at least 1"),
        (["optimizer.later.beta1=0.5"], "optimizer.later has no effect with optimizer.later.words=0"),
        (["optimizer.later={words: 9, beta1: 1}"], "optimizer.later.beta1 is 1.0, expected a number between -1 and 1"),
        (["optimizer.later.words=-1"], "optimizer.later.words is -1, expected 0"),
        (["schedule.normaliser_start=9000"], "schedule.normaliser_start has no effect with schedule.warmup=rate"),
        (["schedule.restart_on_stall=true", "validation.stop_on=[]"], "validation.stop_on is empty, .* schedule.restart_on_stall"),
        (["validation.stop_on=[bleu]"], "validation.stop_on has no effect with validation.patience=0"),
        (["worker.local.warmup_words=9"], "worker.local has no effect with worker.local.mode=off"),
        (["worker.delay=2", "worker.local.mode=always", "worker.local.warmup_words=9"], "warmup_words has no effect with"),
        (["worker.delay=2", "worker.local.mode=warmup"], "exactly one of them above 0 with worker.local.mode=warmup"),
        (["worker.overlap=1", "worker.local.mode=compensate", "worker.local.write_back=true"], "write_back has no effect with"),
        (["worker.overlap=1", "worker.local.mode=compensate", "worker.local.carry=true"], "carry has no effect with"),
        ([*AVERAGE, "optimizer.beta1=0.5"], "optimizer has no effect with worker.local.average=True: remove it .--set optimizer=..., or"),
        ([*AVERAGE, "optimizer={}", "shard.damp_staleness=true"], "shard.damp_staleness has no effect with worker.local.average=True"),
        (["training.wire=bf16", "worker.local.mode=always", "worker.local.write_back=true"], "expected training.wire=fp32"),
        (["training.mode=plain", "worker.delay=2", "worker.local.mode=always"], "worker.local has no effect with training.mode=plain"),
        (["sync.backend=torch"], "sync has no effect with training.mode=async"),
        (["training.mode=sync", "sync.backend=gloo"], "found 'gloo' for sync.backend, expected one of 'horovod', 'torch'"),
        (["loader.max_epochs=-1"], "loader.max_epochs is -1, expected 0"),
        (["clock.batch_s=1"], "clock has no effect with training.mode=async"),
        (["model.vocabulary_size=10"], "model.vocabulary_size has no effect"),
        (["worker"], "expected --set SECTION.OPTION=VALUE"),
        (["worker.delay.x=1"], "delay is not a section"),
        (["worker=3"], "found 3 for worker., expected a mapping"),
        (["worker.delay=[1"], r"found --set 'worker.delay=\[1', whose value is not valid YAML"),
        (["schedule.learning_rate=.nan"], "found nan for schedule.learning_rate, expected a finite number"),
        (["worker.clip_norm=.inf"], "found inf for worker.clip_norm, expected a finite number"),
        (["schedule.learning_rate=fast"], "found 'fast' for schedule.learning_rate, expected a finite number"),
        (["training.max_target_words=0"], "training.max_target_words is 0, expected at least 1"),
        (["training.ema_alpha=1"], "training.ema_alpha is 1.0"),
        (["training.seed=-1"], "training.seed is -1"),
        (["loader.seed=-1"], "loader.seed is -1"),
        (["validation.stop_on=[]", "validation.patience=2"], "validation.stop_on is empty"),
    ],
)
def test_wrong_options_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_recipe(override(load_recipe("sample"), settings))


def test_overrides_are_typed() -> None:
    recipe = build_recipe(override(load_recipe("sample"), ["schedule.learning_rate=1e-3", "worker.clip_norm=2", "validation.patience=3"]))
    assert (recipe.schedule.learning_rate, recipe.worker.clip_norm, recipe.validation.patience) == (0.001, 2.0, 3)


def test_a_section_given_in_part_keeps_the_defaults_of_the_field_that_holds_it() -> None:
    local = Recipe().worker.local
    settings = ["worker.delay=2", "worker.local.mode=always", "worker.local.optimizer={later: {words: 1000}}"]
    found = build_recipe(override(load_recipe("sample"), settings)).worker.local
    assert local.optimizer != AdamConfig(), "the field's default differs from the class's"
    assert found == replace(local, mode="always", optimizer=replace(local.optimizer, later=LaterBetas(1000)))
    again = build_recipe(override(load_recipe("sample"), [*settings, "worker.local.optimizer.beta1=0.5"])).worker.local
    assert again.optimizer == replace(found.optimizer, beta1=0.5)
    assert build_recipe({"optimizer": {"beta2": 0.99}}).optimizer == AdamConfig(beta2=0.99)


def test_stop_on_has_effect_where_a_stall_has() -> None:
    recipe = build_recipe(override(load_recipe("sample"), ["schedule.restart_on_stall=true", "validation.stop_on=[bleu]"]))
    assert recipe.validation.stop_on == ("bleu",)


METHOD = Path(__file__).parents[2] / "docs" / "method.md"
OPTION = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:\.\*|(?:=|: )(.+))?")
"""SECTION.OPTION, SECTION.OPTION.*, SECTION.OPTION=VALUE, SECTION.OPTION: VALUE, or SECTION.OPTION: {NAME, ...}."""


def options_named(text: str) -> list[tuple[str, str]]:
    """(option, what follows it) of all that stands in backticks and looks like an option."""
    return [(found[1], found[2] or "") for quoted in re.findall("`([^`]+)`", text) if (found := OPTION.fullmatch(quoted))]


def test_every_option_and_value_that_the_method_names_exists() -> None:
    named = options_named(METHOD.read_text("utf-8"))
    assert {"worker.delay", "shard.buffer_pushes", "schedule.warmup", "optimizer.later"} <= {name for name, _ in named}
    for name, rest in named:
        place: Any = Recipe()
        for part in name.split("."):
            assert part in {field.name for field in fields(place)}, f"{name} is no option"
            place = getattr(place, part)
        if rest.startswith("{"):
            assert set(rest.strip("{}").split(", ")) == {field.name for field in fields(place)}, f"{name}: {rest}"
        for value in [] if rest.startswith("{") else filter(None, rest.split(" | ")):
            from_mapping(Recipe, override({}, [f"{name}={value}"]))  # raises for a value that the option does not take


def test_missing_and_broken_recipes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no recipe 'sampel': did you mean 'sample'"):
        load_recipe("sampel")
    broken = tmp_path / "r.yaml"
    broken.write_text("a: [\n")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_recipe(str(broken))
    for deep in ("[" * 2000, '{"a": ' * 2000, "- " * 2000):
        broken.write_text(deep)
        with pytest.raises(ValueError, match="nested (deeper than 50|too deep)"):
            load_recipe(str(broken))
    broken.write_text("- 1\n")
    with pytest.raises(ValueError, match="found list in"):
        load_recipe(str(broken))
