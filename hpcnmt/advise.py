"""`hpcnmt advise`: which betas, learning rate, tau, warm-up and buffer the published rules give for a setting, each with its source.

The setting is a recipe (default: the defaults of every option) with flags put on top, or a run folder whose staleness, words of a push
and waiting are measured. The rules and what is followed stand in advise_findings.py and advise_local.py; here are input and output.
Changes nothing.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hpcnmt.advise_findings import advised_options, all_findings, disagreements, judge, numbers_of, remarks
from hpcnmt.advise_local import FACTOR
from hpcnmt.advise_measured import TUNING_WHAT
from hpcnmt.advise_pick import check_flags, pick
from hpcnmt.advise_setting import Finding, Setting, as_yaml, number
from hpcnmt.config import from_mapping, load_recipe, override
from hpcnmt.distributed.activity import TRAINING
from hpcnmt.reading import read_json
from hpcnmt.training.recipe import Recipe, build_recipe
from hpcnmt.training.run_folder import RunFolder

TABLE_COLUMNS = 150
FLAGS = {"delay": "worker.delay", "overlap": "worker.overlap", "batch_words": "loader.batch_words"}
"""Flags that stand for options of a recipe."""
WITHOUT_A_RECIPE = (*FLAGS.values(), "optimizer.beta1", "worker.local.mode", FACTOR)
"""Options that can be advised without knowing the recipe they will be pasted to."""


def advise(arguments: Namespace) -> int:
    """Prints the advice; returns the exit code. Raises ValueError for wrong input."""
    check_flags(arguments)
    if arguments.pick:
        return pick(arguments)
    if arguments.run is not None:
        given = [name for name in ("workers", "staleness", "wait", "recipe", *FLAGS) if vars(arguments)[name] is not None]
        given += ["set"] if arguments.set else []
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"found --run together with {flags}: the run says these itself, remove them or --run")
    setting, judged = _of_flags(arguments) if arguments.run is None else _of_run(arguments.run, arguments.momentum)
    result = _result(setting, judged)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print(setting, result)
    return 0


def _of_flags(arguments: Namespace) -> tuple[Setting, Recipe | None]:
    """The setting, and the recipe that is to be judged: None where none is named."""
    if arguments.workers is None:
        raise ValueError("found neither --workers nor --run, expected one: hpcnmt advise --workers 4 --delay 2 --batch-words 1000")
    if arguments.set and arguments.recipe is None:
        raise ValueError("found --set without --recipe, expected the recipe that it changes")
    named = override({} if arguments.recipe is None else load_recipe(arguments.recipe), arguments.set)
    flags = [f"{option}={vars(arguments)[flag]}" for flag, option in FLAGS.items() if vars(arguments)[flag] is not None]
    recipe = build_recipe(override(named, flags))
    setting = Setting(recipe, arguments.workers, arguments.staleness, None, arguments.wait, arguments.momentum)
    return setting, None if arguments.recipe is None else build_recipe(named)


def _of_run(run: Path, momentum: float) -> tuple[Setting, Recipe | None]:
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"found no {path}, expected the folder of hpcnmt train")
    try:
        content = read_json(path, {"context": {"workers": int}})
    except ValueError as error:
        raise ValueError(f"{path} is not the configuration of a run ({error})") from error
    workers = content.pop("context")["workers"]
    recipe = from_mapping(Recipe, content)
    folder = RunFolder(run)
    end: dict[str, Any] = next(iter(folder.fields("end", ("target_words",))), {})
    shards = folder.staleness()
    pushes = sum(shards, Counter[int]())
    if not end or not pushes.total():
        return Setting(recipe, workers, total_momentum=momentum), recipe
    staleness = sum(steps * count for steps, count in pushes.items()) / pushes.total()
    push_words = end["target_words"] * len(shards) / pushes.total()  # every shard counts every push
    return Setting(recipe, workers, staleness, push_words, _wait_share(end), momentum), recipe


def _wait_share(end: dict[str, Any]) -> float | None:
    """Of the time of worker 0 without its validations; None where it was not measured (virtual time)."""
    shares = end.get("shares")
    if not shares:
        return None
    trained = sum(shares.get(name, 0.0) for name in TRAINING if name != "validate")
    return float(shares.get("wait", 0.0) / trained) if trained else None


def _result(setting: Setting, recipe: Recipe | None) -> dict[str, Any]:
    findings = all_findings(setting)
    judged = judge(recipe, setting) if recipe else []
    advised = advised_options(setting)
    lines = [j.option for j in judged if not j.fits] if recipe else [option for option in WITHOUT_A_RECIPE if option in advised]
    return {
        "setting": numbers_of(setting), "findings": [asdict(finding) for finding in findings],
        "disagreements": [asdict(disagreement) for disagreement in disagreements(setting, findings)],
        "judged": [asdict(judgement) for judgement in judged], "remarks": remarks(setting),
        "set": [f"{option}={as_yaml(advised[option])}" for option in lines],
    }  # fmt: skip


def _head(setting: Setting) -> str:
    recipe = setting.recipe
    buffer = f"B = {setting.buffer_pushes} pushes an update, " if setting.buffer_pushes > 1 else ""
    measured = "expected" if setting.measured_staleness is None else "measured"
    return (
        f"N = {setting.workers} workers, tau {setting.delay}, overlap {recipe.worker.overlap}, {buffer}"
        f"updates of T = {number(setting.update_words)} words (T_ref = {number(recipe.schedule.reference_words)}), "
        f"staleness S = {number(setting.staleness)} ({measured})"
    )


def _print(setting: Setting, result: dict[str, Any]) -> None:
    table = Table(title=_head(setting), caption="* followed by default")
    for column in ("", "rule", "gives", "formula", "source"):
        table.add_column(column)
    for finding in (Finding(**found) for found in result["findings"]):
        gives = f"{finding.gives} {number(finding.value)}"
        table.add_row("*" if finding.followed else "", finding.rule, gives, finding.formula, finding.source)
    console = Console(width=None if Console().is_terminal else TABLE_COLUMNS, highlight=False)
    console.print(table)
    for disagreement in result["disagreements"]:
        sides = ", ".join(disagreement["sides"])
        console.print(f"{disagreement['about']}: {sides}. Followed: {disagreement['follows']}: {disagreement['why']}.", markup=False)
    console.print(f"Measured: {TUNING_WHAT}.", markup=False)
    for judgement in result["judged"]:
        verdict = "fits" if judgement["fits"] else f"advised: {number(judgement['advised'])}"
        console.print(f"{judgement['option']} is {number(judgement['found'])}: {verdict}", markup=False)
    for remark in result["remarks"]:
        console.print(f"Note: {remark}.", markup=False)
    if result["set"]:
        print(" ".join(f"--set {setting}" for setting in result["set"]))  # one line, to be pasted
    else:
        print("nothing to change")
