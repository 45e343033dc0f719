"""Careful reading of results files for a report, and how a figure looks.

A results file may come from a run cut short or from another machine: any field may be missing or of another type. Invariants: nothing
here raises on what JSON can hold; what is missing is None or empty, never a made-up number. Used by report.py, report_tables.py and
report_pictures.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from hpcnmt.bench.results import Figures

MISSING = "–"
LARGEST = 1e100


def figures(value: object) -> Figures:
    """`value` where it is a mapping, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def entries(value: object) -> list[Figures]:
    """The mappings in the list `value`."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def number(value: object) -> float | None:
    """`value` where it is a number that can be drawn: no NaN, no infinity, nothing beyond LARGEST."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        return None
    return float(value)


def ratio(dividend: object, divisor: object) -> float | None:
    """dividend / divisor where both are numbers and the divisor is not zero."""
    above, below = number(dividend), number(divisor)
    return None if above is None or not below else number(above / below)


def numbers(value: object) -> list[float | None]:
    """Every element of the list `value` as a number."""
    return [number(element) for element in value] if isinstance(value, list) else []


def pairs(xs: Iterable[object], ys: Iterable[object]) -> list[tuple[float, float]]:
    """(x, y) wherever both are numbers."""
    both = ((number(x), number(y)) for x, y in zip(xs, ys, strict=False))
    return [(x, y) for x, y in both if x is not None and y is not None]


def curve(point: Figures, x: str, y: str) -> list[tuple[float, float]]:
    """Two fields of the records in point["curve"]."""
    records = entries(point.get("curve"))
    return pairs((record.get(x) for record in records), (record.get(y) for record in records))


def histogram(value: object) -> dict[int, float]:
    """Counts by whole number, in order."""
    counts = ((int(name), number(count)) for name, count in figures(value).items() if name.isdecimal() and len(name) < 10)
    return {key: count for key, count in sorted(counts, key=lambda item: item[0]) if count is not None and count > 0}


def mean(counts: dict[int, float]) -> float | None:
    """Mean of a histogram."""
    return ratio(sum(key * count for key, count in counts.items()), sum(counts.values()))


def points(results: Figures) -> dict[str, Figures]:
    """Figures by key, those which are mappings."""
    return {key: point for key, point in figures(results.get("points")).items() if isinstance(point, dict)}


def settings(point: Figures) -> Figures:
    """What identifies a point."""
    return figures(point.get("settings"))


def short_labels(keys: Sequence[str]) -> dict[str, str]:
    """Keys without the words that all of them share ("async n2 fp32", "async n4 fp32": "n2", "n4")."""
    words = [key.split() for key in keys]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    short = [" ".join(word for word in each if word not in shared) for each in words]
    return dict(zip(keys, short if len(set(short)) == len(short) and all(short) else keys, strict=True))


def show(value: object) -> str:
    """A value in a table: whole numbers with thousands separated, others with three significant digits."""
    if value is None or value == "" or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair, which JSON may hold, cannot be drawn
    found = number(value)
    if found is None:
        return json.dumps(value, ensure_ascii=False)
    if found == int(found) or abs(found) >= 1000:
        return f"{found:,.0f}" if abs(found) < 1e15 else f"{found:.3g}"
    return f"{found:.0f}" if abs(found) >= 100 else f"{found:.3g}"


def percent(value: object) -> str:
    """A share, 0.123 as 12.3 %."""
    found = number(value)
    return MISSING if found is None else f"{100 * found:.1f} %"


def fixed(value: object, digits: int) -> str:
    """A number with a fixed number of decimals, for columns that are compared by eye."""
    found = number(value)
    return MISSING if found is None else f"{found:,.{digits}f}"


def count_workers(value: object) -> str:
    """ "1 worker", "2 workers"."""
    return f"{show(value)} worker{'' if value == 1 else 's'}"


def loses(entry: Figures) -> bool:
    """Whether asynchrony is slower than the best synchronous training in an entry of async_to_sync."""
    measured = number(entry.get("measured"))
    return measured is not None and measured < 1
