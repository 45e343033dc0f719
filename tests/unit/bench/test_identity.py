"""A file from before an option existed is recognised; one that differs is refused with the first option that does, in a short line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hpcnmt.bench.grid import read_grid
from hpcnmt.bench.identity import completed, configuration_difference, flat_options
from hpcnmt.bench.results import Results, read_results
from hpcnmt.config import load_recipe, override
from hpcnmt.training.recipe import Recipe, build_recipe

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
OPTIONS = asdict(build_recipe(load_recipe("sample")))
CONFIG = {"recipe": "sample", "set": ["worker.delay=1"], "options": OPTIONS}


def without(section: str, name: str | None = None) -> dict[str, object]:
    """CONFIG of a time when a section, or an option of it, did not exist."""
    options = json.loads(json.dumps(OPTIONS))
    del (options if name is None else options[section])[section if name is None else name]
    return CONFIG | {"options": options}


def test_what_an_old_file_does_not_have_counts_as_its_default() -> None:
    for section in asdict(Recipe()):
        default = OPTIONS[section] == asdict(Recipe())[section]
        assert (configuration_difference(without(section), CONFIG) == "") == default, section
    assert not configuration_difference(without("training", "trace"), CONFIG)
    asked = CONFIG | {"options": asdict(build_recipe(override(load_recipe("sample"), ["training.trace=true"])))}
    assert configuration_difference(without("training", "trace"), asked) == "training.trace: found False, expected True"


def test_an_option_of_another_version_is_a_difference() -> None:
    newer = CONFIG | {"options": OPTIONS | {"telepathy": {"distance_m": 3}}}
    assert configuration_difference(newer, CONFIG) == "telepathy.distance_m: found 3, expected not there"


def test_only_the_first_difference_is_named_and_shortened(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(path, "quality", CONFIG)
    other = CONFIG | {"set": [f"worker.delay={n}" for n in range(100)], "options": OPTIONS | {"clock": {}}}
    with pytest.raises(ValueError, match="another config .set: found .*worker.delay=1.*: choose another --out") as refused:
        Results(path, "quality", other)
    assert len(str(refused.value)) < 300 and "clock" not in str(refused.value)


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": 1, "kind": "quality", "points": {}, "config": "x"}))
    with pytest.raises(ValueError, match="found 'x' for config in .*, expected a mapping"):
        Results(path, "quality", CONFIG)


def test_flat_options_are_completed_as_nested_ones() -> None:
    assert completed(flat_options(OPTIONS)) == completed(OPTIONS) == flat_options(OPTIONS)


GRIDS = {
    "multi30k-transformer-first": "ablation-multi30k-2x128-first", "multi30k-transformer-local-trials": "ablation-multi30k-2x128-local",
    "multi30k-transformer-carry-trials": "ablation-multi30k-2x128-carry",
    "multi30k-transformer-average-trials": "ablation-multi30k-2x128-average",
}  # fmt: skip


@pytest.mark.parametrize("grid, results", GRIDS.items())
def test_published_results_can_be_gone_on_with(grid: str, results: str) -> None:
    planned = read_grid(BENCHMARKS / "grids" / f"{grid}.yaml")
    options = asdict(build_recipe(override(load_recipe(planned.recipe), planned.settings(planned.baseline))))
    found = read_results(BENCHMARKS / "results" / f"{results}.json")["config"]
    now = {"baseline": planned.baseline, "recipe": planned.recipe, "set": list(planned.set), "data": found["data"], "options": options}
    assert configuration_difference(found, now) == ""
