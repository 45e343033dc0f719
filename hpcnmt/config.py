"""Recipes: strict YAML into nested frozen dataclasses. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import typing
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from hpcnmt.reading import short

T = TypeVar("T")
RECIPES = Path(__file__).parent / "recipes"
LARGEST_YAML_BYTES = 1 << 18
"""Seconds of reading; a recipe has a few thousand."""
DEEPEST_YAML = 50
"""Brackets within brackets; the time to read them grows with the square of their depth."""
Mapping = dict[str, Any]


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}? " if close else ""


def from_mapping(cls: type[T], mapping: object, path: str = "", default: T | None = None) -> T:
    """Builds the dataclass `cls` from `mapping`; what is not there is as in `default`, else as in the class.

    Raises ValueError for unknown keys and values of the wrong type.
    """
    if not isinstance(mapping, dict):
        raise ValueError(f"found {short(mapping)} for {path or 'the recipe'}, expected a mapping of options")
    hints, defaults = _type_hints(typing.cast(Hashable, cls)), _defaults(cls, default)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    for key in mapping:
        if key not in names:
            known = f"{_nearest(str(key)[:60], names)}valid here: {', '.join(names)}"
            raise ValueError(f"found the unknown option {path}{str(key)[:60]}: {known}")
    return cls(**(defaults | {key: _value(hints[key], value, f"{path}{key}", defaults.get(key)) for key, value in mapping.items()}))


@functools.cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _defaults(cls: type[Any], default: object) -> Mapping:
    """Field -> value of `default`; without it the values that the class gives, which for a section may differ from that section's own."""
    found = {}
    for field in dataclasses.fields(cls):
        if default is not None:
            found[field.name] = getattr(default, field.name)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _value(expected: Any, value: Any, path: str, default: Any = None) -> Any:
    if dataclasses.is_dataclass(expected):
        return from_mapping(typing.cast(Any, expected), value, f"{path}.", default)
    if typing.get_origin(expected) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"found {short(value)} for {path}, expected a mapping by name")
        return {name: _value(typing.get_args(expected)[1], element, f"{path}.{str(name)[:60]}") for name, element in value.items()}
    if typing.get_origin(expected) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"found {short(value)} for {path}, expected a list")
        return tuple(_value(typing.get_args(expected)[0], element, f"{path}[{i}]") for i, element in enumerate(value))
    if typing.get_origin(expected) is Literal:
        choices = typing.get_args(expected)
        if value in choices and type(value) in {type(c) for c in choices}:
            return value
        raise ValueError(f"found {short(value)} for {path}, expected one of {', '.join(map(repr, choices))}")
    if expected is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise ValueError(f"found {short(value)} for {path}, expected a finite number")
    elif expected is int and type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"found {short(value)} for {path}, expected a whole number of at most 64 bits")
    elif type(value) is expected:
        return value
    raise ValueError(f"found {short(value)} for {path}, expected a value of type {getattr(expected, '__name__', expected)}")


def load_recipe(name: str) -> Mapping:
    """A shipped recipe by name, or a YAML file by path."""
    shipped = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{name}.yaml" if name in shipped else Path(name)
    if not path.is_file():
        raise ValueError(f"found no recipe {name!r}: {_nearest(name, shipped)}shipped: {', '.join(shipped)}; or a YAML file")
    return read_yaml(path)


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, to which a key that stands twice is an error (the last one would silently count), and brackets nested too deep.

    Not the library's loader in C, though it is ten times as fast: deep nesting overflows its stack, a segmentation fault.
    """

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        if self.flow_level >= DEEPEST_YAML:
            said = f"found brackets nested deeper than {DEEPEST_YAML}"
            raise yaml.scanner.ScannerError(None, None, said, self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in counts.items():
            if count > 1:
                said = f"found {short(key)} {count} times, expected once"
                raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text if isinstance(text, str) else text.decode("utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # the library refuses some scalars (`!!int ''`, `!!timestamp x`) with whatever its own reading of them raised
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{where} is not valid YAML: {reason}") from error


def read_yaml(path: Path) -> Mapping:
    """The options in a YAML file. Raises ValueError when it holds anything else, or a key twice."""
    if path.stat().st_size > LARGEST_YAML_BYTES:
        raise ValueError(f"found {path.stat().st_size} bytes in {path}, expected at most {LARGEST_YAML_BYTES}")
    mapping = _parse_yaml(path.read_bytes(), str(path))
    if not isinstance(mapping, dict):
        raise ValueError(f"found {type(mapping).__name__} in {path}, expected a mapping of options")
    return mapping


def override(mapping: Mapping, settings: list[str]) -> Mapping:
    """`mapping` with every "a.b=value" of `settings` set; values are YAML."""
    result: Mapping = {key: dict(value) if isinstance(value, dict) else value for key, value in mapping.items()}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"found --set {short(setting)}, expected --set SECTION.OPTION=VALUE")
        *sections, last = name.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"found --set {short(setting)}, but {section[:60]} is not a section")
        place[last] = _parse_yaml(text, f"found --set {short(setting)}, whose value")
    return result
