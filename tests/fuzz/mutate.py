"""Mutations of valid files: of bytes, of JSON values (types, sizes, keys that stand twice, nesting, cuts), of YAML and of lines of text.

Everything is drawn from one random.Random, so an input is known by its number. Used by readers.py.
"""

from __future__ import annotations

import copy
import gzip
import json
import lzma
import random
from dataclasses import dataclass
from typing import Any

Random = random.Random
NUMBERS = (0, -1, 1, 2, 3, 255, 256, 65536, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"))
TEXTS = (
    "", "a", "0", "-1", "../../etc/passwd", "/dev/null", "\x00", "\n", "\x1b[2J", "\ud800", "ü" * 300, "x" * 5000, "<b>", "{x}", "%s", "=",
)  # fmt: skip
DTYPES = ("<u2", "<i4", "<f8", "O", "V0", "S5", "<U3", "M8[ns]", "i4,i4", "float32", "bfloat16", "F8_E4M3")
YAML_PIECES = (
    "&a ", "*a", "!!python/object/apply:os.getpid []", "!!int ''", "!!float ''", "!!timestamp x", "!!binary '='", "!!bool x", "!!set {a}",
    "!!omap [a]", "!!pairs [a: b]", "2001-13-45", "2001-01-01 99:99:99", "<<: *a", "<<: 3", "? [a, b]\n: c", "---\n", "...\n",
    "%YAML 9.9\n",
    "%TAG ! x\n", "\t", "|\n", ">\n", "[" * 400, "{a: " * 30, "- " * 300, "1:2:3", "0x", "0o9", "0b", "1_0", ".inf", ".nan", "~", "null",
    "yes", "=", "@", "`", "\u2028", "\ufeff", "\x85", "'", '"', '"\\x"', "#", ": ", "- ", "[", "]", "{", "}", ",", "1e400", "9" * 5000,
)  # fmt: skip
JSON_PIECES = (
    "[" * 3000, '{"a":' * 3000, "9" * 5000, "-", "1e999", "NaN", "Infinity", "null", "true", '"\\ud800"', '"\\u12"', "\\", ",", ":", "}",
)  # fmt: skip


class Twice(dict[str, Any]):
    """A mapping that is written with its first key a second time, with `again`."""

    again: Any = None


@dataclass(frozen=True)
class Raw:
    """Text that is written as it stands: values nested too deep for a recursive writer."""

    text: str


def weird(chance: Random, lists: bool = True) -> Any:
    """A value that hardly anything expects."""
    kind = chance.randrange(9 if lists else 8)
    if kind < 3:
        return chance.choice(NUMBERS)
    if kind < 5:
        return chance.choice(TEXTS)
    if kind == 5:
        return chance.choice((None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": {}}}))
    if kind == 6:
        depth = chance.choice((2, 2, 2, 5, 5, 30, 30, 400, 1500))
        left, right = chance.choice((("[", "]"), ('{"a": ', "}"), ('[{"b": ', "}]")))
        return Raw(left * depth + "0" + right * depth)
    if kind == 7:
        return chance.choice(DTYPES)
    return [weird(chance, lists=False) for _ in range(chance.choice((1, 2, 50)))]


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in items:
        found.append((value, key))
        _places(element, found)


def mutate_value(value: Any, chance: Random) -> Any:
    """`value` (of JSON; changed in place) with one to three changes."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _places(value, places)
        if not places:
            return weird(chance)
        holder, key = chance.choice(places)
        value = _change(value, holder, key, places, chance)
    return value


def _change(whole: Any, holder: Any, key: Any, places: list[tuple[Any, Any]], chance: Random) -> Any:
    old = holder[key]
    kind = chance.randrange(10)
    if kind < 4:
        holder[key] = weird(chance)
    elif kind == 4 and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[key] = chance.choice((old + 1, old - 1, -old, float(old), str(old), old * 1000))
    elif kind == 5:
        del holder[key]
    elif kind == 6 and isinstance(holder, dict):
        name = chance.choice(TEXTS)
        holder[name if chance.random() < 0.5 else f"{key}{name[:3]}"] = holder.pop(key)
    elif kind == 7:
        holder[key] = chance.choice(([old], {"a": old}, str(old)[:1000], [old, old]))
    elif kind == 8:
        other, name = chance.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif isinstance(old, dict) and old:
        again = Twice(old)
        again.again = weird(chance)
        holder[key] = again
    else:
        return weird(chance) if chance.random() < 0.1 else whole
    return whole


def json_text(value: Any) -> str:
    """JSON of `value`; keys of a Twice stand twice."""
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {json_text(element)}" for key, element in value.items()]
        if isinstance(value, Twice) and value:
            parts.append(f"{json.dumps(next(iter(value)))}: {json_text(value.again)}")
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return value.text if isinstance(value, Raw) else json.dumps(value)


def mutate_bytes(data: bytes, chance: Random, most: int = 4) -> bytes:
    """Bytes flipped, cut, repeated, inserted; sometimes nothing of the original."""
    if chance.random() < 0.03:
        return chance.randbytes(chance.choice((0, 1, 7, 64, 3000)))
    found = bytearray(data)
    for _ in range(chance.randint(1, most)):
        place = chance.randrange(len(found) + 1)
        length = chance.choice((1, 1, 2, 4, 8, 60))
        kind = chance.randrange(6)
        if kind < 2 and place < len(found):
            found[place] ^= chance.choice((1, 2, 4, 8, 16, 32, 64, 128, 255, chance.randrange(1, 256)))
        elif kind == 2:
            found[place : place + length] = chance.randbytes(length)
        elif kind == 3:
            found[place:place] = chance.choice((chance.randbytes(length), bytes(length), b"\xff" * length))
        elif kind == 4:
            del found[place : place + length]
        elif chance.random() < 0.5:
            del found[place:]
        else:
            found += found[place : place + length * 10]
    return bytes(found)


def mutate_text(text: str, pieces: tuple[str, ...], chance: Random) -> bytes:
    """Pieces of syntax put in, over and out; words moved; sometimes bytes that are no text."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        begin = chance.randrange(len(text) + 1)
        end = min(len(text), begin + chance.choice((0, 0, 1, 5, 40)))
        text = text[:begin] + (chance.choice(pieces) if chance.random() < 0.8 else chance.choice(TEXTS)) + text[end:]
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(data, chance) if chance.random() < 0.1 else data


def mutate_json(data: bytes, chance: Random) -> bytes:
    """A JSON file."""
    kind = chance.random()
    if kind < 0.15:
        return mutate_bytes(data, chance)
    if kind < 0.3:
        return mutate_text(data.decode(), JSON_PIECES, chance)
    try:
        return json_text(mutate_value(json.loads(data), chance)).encode("utf-8", "surrogatepass")
    except RecursionError:  # of values that an earlier change has nested
        return mutate_bytes(data, chance)


def mutate_lines(data: bytes, chance: Random) -> bytes:
    """A file of one JSON value a line."""
    lines = data.split(b"\n")
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(len(lines))
        if chance.random() < 0.15 or not lines[place]:
            lines.insert(place, chance.choice((b"", b"null", b"[]", b"3", *lines)))
        else:
            try:
                lines[place] = mutate_json(lines[place], chance)
            except ValueError:  # changed before
                lines[place] = mutate_bytes(lines[place], chance)
    data = b"\n".join(lines)
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.05 else data


def mutate_yaml(data: bytes, chance: Random) -> bytes:
    """A YAML file that may be written as JSON, or a text with pieces of YAML's syntax."""
    import yaml

    if chance.random() < 0.5:
        return mutate_text(data.decode(), YAML_PIECES, chance)
    return json_text(mutate_value(yaml.safe_load(data), chance)).encode("utf-8", "surrogatepass")


def mutate_packed(data: bytes, chance: Random, ending: str) -> bytes:
    """An archive with changes, or an archive of changed text."""
    unpack, pack = (gzip.decompress, gzip.compress) if ending == "gz" else (lzma.decompress, lzma.compress)
    if chance.random() < 0.5:
        return mutate_bytes(data, chance)
    packed = pack(mutate_bytes(unpack(data), chance))
    return packed + pack(b"more\n") if chance.random() < 0.1 else packed
