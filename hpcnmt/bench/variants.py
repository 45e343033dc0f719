"""What `--variant NAME:KEY=VALUE,...` of time-to-bleu says, checked before anything is trained.

Keys are mode, workers and shards, options of the recipe, and its sections (optimizer={} leaves that section out). Commas inside brackets
belong to a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from hpcnmt.training.recipe import Recipe

OWN = ("mode", "workers", "shards")
SECTIONS = tuple(field.name for field in fields(Recipe))
NEEDED = {"plain": (), "sync": ("workers",), "async": ("workers", "shards")}
EXAMPLE = "--variant fast:mode=async,workers=2,shards=1,worker.delay=2"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMA = re.compile(r",(?![^\[{]*[\]}])")


@dataclass(frozen=True)
class Variant:
    """One way of training: `settings` are for --set, mode included; no shards but in mode async, one worker in mode plain."""

    name: str
    mode: str
    workers: int
    shards: int
    settings: tuple[str, ...]


def parse_variant(text: str) -> Variant:
    """The variant that `text` describes. Raises ValueError for anything that is not exactly one."""
    name, colon, rest = text.partition(":")
    if not colon or not NAME.fullmatch(name):
        raise ValueError(f"found --variant {text!r}, expected NAME:KEY=VALUE,... with a name of letters, digits, . _ -, such as {EXAMPLE}")
    pairs: dict[str, str] = {}
    for part in _COMMA.split(rest):
        key, equals, value = (field.strip() for field in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"found {part!r} in --variant {text!r}, expected KEY=VALUE, such as {EXAMPLE}")
        if key in pairs:
            raise ValueError(f"found {key} twice in --variant {text!r}, expected it once")
        if "." not in key and key not in OWN + SECTIONS:
            raise ValueError(f"found {key} in --variant {text!r}, expected mode, workers, shards or an option SECTION.OPTION of the recipe")
        pairs[key] = value
    return _checked(text, name, pairs)


def _checked(text: str, name: str, pairs: dict[str, str]) -> Variant:
    mode = pairs.get("mode")
    if mode not in NEEDED:
        found = "no mode" if mode is None else f"mode {mode!r}"
        raise ValueError(f"found {found} in --variant {text!r}, expected mode={'|'.join(NEEDED)}")
    for key in ("workers", "shards"):
        if (key in pairs) != (key in NEEDED[mode]):
            what = f"{key} has no effect with mode={mode}: remove it" if key in pairs else f"mode={mode} needs {key}=NUMBER"
            raise ValueError(f"--variant {text!r}: {what}")
        if key in pairs and not (pairs[key].isascii() and pairs[key].isdigit() and int(pairs[key]) > 0):
            raise ValueError(f"found {key}={pairs[key]} in --variant {text!r}, expected a whole number of at least 1")
    settings = tuple(f"{key}={value}" for key, value in pairs.items() if key not in OWN)
    return Variant(name, mode, int(pairs.get("workers", 1)), int(pairs.get("shards", 0)), (f"training.mode={mode}", *settings))


def parse_variants(texts: Sequence[str]) -> list[Variant]:
    """All variants, each with a name of its own."""
    variants = [parse_variant(text) for text in texts]
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"found {names.count(name)} variants named {name}, expected a name of its own for each --variant")
    return variants
