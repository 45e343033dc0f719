"""Careful reading of JSON from outside: nothing is used before its type is known, and a refusal is one line of bounded length.

A shape says what is expected: `int` (no bool, at most 64 bits), `float` (any number, NaN too), FINITE, `str`, `bool`, `object` (anything);
[shape] a list; {str: shape} a mapping with any names; {"name": shape, "name?": shape} a mapping with at least these fields, those
with ? only if they are there; (shape, ...) one of several, None among them. Used by whatever reads files.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

FINITE = "a finite number"
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 120, 120, 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxlevel = 2


def short(value: object) -> str:
    """repr of bounded length, whatever the value."""
    return _SHORT.repr(value)


def parse_json(text: str | bytes, where: object) -> Any:
    """The value in `text`. Raises ValueError, also for text that is no UTF-8 and for nesting that no file of ours has."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where} is not valid JSON of ours: it is nested too deep") from error


def read_json(path: Path, shape: object = object) -> Any:
    """The value in the file `path`, checked against `shape`. Raises ValueError that names the file."""
    return check(parse_json(path.read_bytes(), path), shape, path)


def check(value: Any, shape: object, where: object, name: str = "") -> Any:
    """`value` where it has this shape. Raises ValueError with the place."""
    if isinstance(shape, dict) and isinstance(value, dict):
        _check_fields(value, shape, where, name)
    elif isinstance(shape, list) and isinstance(value, list):
        for i, element in enumerate(value):
            check(element, shape[0], where, f"{name}[{i}]")
    elif not _is_plain(value, shape):
        raise ValueError(f"found {short(value)} for {short(name).strip(chr(39)) or 'the whole'} in {where}, expected {_called(shape)}")
    return value


def _check_fields(value: dict[str, Any], shape: dict[Any, object], where: object, name: str) -> None:
    if str in shape:
        for key, element in value.items():
            check(element, shape[str], where, f"{name}.{key}" if name else key)
        return
    for field, expected in shape.items():
        key = field.removesuffix("?")
        if key in value:
            check(value[key], expected, where, f"{name}.{key}" if name else key)
        elif key == field:
            raise ValueError(f"found no {f'{name}.{key}' if name else key} in {where}, expected {_called(expected)}")


def _is_plain(value: object, shape: object) -> bool:
    if isinstance(shape, tuple):
        return any(_fits(value, each) for each in shape)
    if shape is object:
        return True
    if shape is int:
        return type(value) is int and -(2**63) <= value < 2**63
    if shape in (float, FINITE):
        is_number = type(value) is float or _is_plain(value, int)
        return is_number and (shape is float or math.isfinite(value))  # type: ignore[arg-type]
    return value is None if shape is None else shape in (str, bool) and type(value) is shape


def _fits(value: object, shape: object) -> bool:
    try:
        check(value, shape, "")
    except ValueError:
        return False
    return True


def _called(shape: object) -> str:
    if isinstance(shape, tuple):
        return " or ".join(map(_called, shape))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "nothing", object: "a value"}
    return "a mapping" if isinstance(shape, dict) else "a list" if isinstance(shape, list) else names.get(shape, str(shape))  # type: ignore[call-overload]
