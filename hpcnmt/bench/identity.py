"""Whether two configurations are the same: of a run folder and a run, of a results file and a benchmark.

Invariant: an option of recipes that a file does not have, because it was written before there was such an option, counts as having its
default: a new option changes nothing until it is set. Used by runs.py, results.py and product.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hpcnmt.training.recipe import Recipe

LONGEST = 60
"""Characters of a value in a message."""
OF_A_RECIPE = "options"
"""Where the configuration of a results file holds all options of a recipe."""


def flat_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flat_options(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return dict(json.loads(json.dumps(flat)))


def completed(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a recipe by their dotted names: those of `options` (nested or flat), and the defaults of what is not there."""
    return flat_options(asdict(Recipe())) | flat_options(options)


def first_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first option in which two flat mappings differ, in words; "" when they are equal."""
    name = next((n for n in [*expected, *found] if found.get(n) != expected.get(n)), None)
    if name is None:
        return ""
    values = [_short(side[name]) if name in side else "not there" for side in (found, expected)]
    return f"{name}: found {values[0]}, expected {values[1]}"


def configuration_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first difference of the configurations of two results files, in words; "" when they are of the same benchmark."""
    return first_difference(_flat_configuration(found), _flat_configuration(expected))


def _flat_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flat_options({name: value for name, value in config.items() if name != OF_A_RECIPE})
    return flat | (completed(config[OF_A_RECIPE]) if isinstance(config.get(OF_A_RECIPE), Mapping) else {})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
