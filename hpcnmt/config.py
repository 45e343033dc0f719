"""Recipes: strict YAML into nested frozen dataclasses. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
RECIPES = Path(__file__).parent / "recipes"
Mapping = dict[str, Any]


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}? " if close else ""


def from_mapping(cls: type[T], mapping: object, path: str = "", default: T | None = None) -> T:
    """Builds the dataclass `cls` from `mapping`; what is not there is as in `default`, else as in the class.

    Raises ValueError for unknown keys and values of the wrong type.
    """
    if not isinstance(mapping, dict):
        raise ValueError(f"found {mapping!r} for {path or 'the recipe'}, expected a mapping of options")
    hints, defaults = typing.get_type_hints(cls), _defaults(cls, default)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    for key in mapping:
        if key not in names:
            raise ValueError(f"found the unknown option {path}{key}: {_nearest(str(key), names)}valid here: {', '.join(names)}")
    return cls(**(defaults | {key: _value(hints[key], value, f"{path}{key}", defaults.get(key)) for key, value in mapping.items()}))


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
            raise ValueError(f"found {value!r} for {path}, expected a mapping by name")
        return {name: _value(typing.get_args(expected)[1], element, f"{path}.{name}") for name, element in value.items()}
    if typing.get_origin(expected) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"found {value!r} for {path}, expected a list")
        return tuple(_value(typing.get_args(expected)[0], element, f"{path}[{i}]") for i, element in enumerate(value))
    if typing.get_origin(expected) is Literal:
        choices = typing.get_args(expected)
        if value in choices and type(value) in {type(c) for c in choices}:
            return value
        raise ValueError(f"found {value!r} for {path}, expected one of {', '.join(map(repr, choices))}")
    if expected is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise ValueError(f"found {value!r} for {path}, expected a finite number")
    elif type(value) is expected:
        return value
    raise ValueError(f"found {value!r} for {path}, expected a value of type {getattr(expected, '__name__', expected)}")


def load_recipe(name: str) -> Mapping:
    """A shipped recipe by name, or a YAML file by path."""
    shipped = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{name}.yaml" if name in shipped else Path(name)
    if not path.is_file():
        raise ValueError(f"found no recipe {name!r}: {_nearest(name, shipped)}shipped: {', '.join(shipped)}; or a YAML file")
    return read_yaml(path)


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, to which a key that stands twice is an error: the last one would silently count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                said = f"found {key!r} {keys.count(key)} times, expected once"
                raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Mapping:
    """The options in a YAML file. Raises ValueError when it holds anything else, or a key twice."""
    try:
        mapping = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"found {type(mapping).__name__} in {path}, expected a mapping of options")
    return mapping


def override(mapping: Mapping, settings: list[str]) -> Mapping:
    """`mapping` with every "a.b=value" of `settings` set; values are YAML."""
    result: Mapping = {key: dict(value) if isinstance(value, dict) else value for key, value in mapping.items()}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"found --set {setting!r}, expected --set SECTION.OPTION=VALUE")
        *sections, last = name.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"found --set {setting!r}, but {section} is not a section")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"found --set {setting!r}, whose value is not valid YAML: {error}") from error
    return result
