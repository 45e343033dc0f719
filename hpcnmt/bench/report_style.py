"""How the pictures of a report look: colours, panels, legends, labels.

Invariants: colours are Okabe and Ito's, which stay apart for the colour-blind, and never the only difference; text from files is drawn
as it stands, never read as mathematics. Drawn without a display. Used by report_pictures.py and report.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcnmt.bench.report_fields import short_labels, show

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "black", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#BBBBBB"
LINES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX"
STYLE: Any = {
    "text.parse_math": False, "font.size": 10.0, "axes.titlesize": 10.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False, "figure.titlesize": 12.0,
    "figure.titleweight": "bold", "figure.dpi": 130.0, "savefig.facecolor": "white",
}  # fmt: skip
WIDTH = 9.0  # inches
LONGEST_LABEL = 60


@dataclass(frozen=True)
class Picture:
    """A PNG with its title, how to read it, and the name of its file."""

    name: str
    title: str
    caption: str
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """matplotlib with STYLE; a decorator of everything that draws."""
    with matplotlib.rc_context(STYLE):
        yield


def finish(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """The picture, with its title on it, so that the PNG can stand alone."""
    figure.suptitle(title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return Picture(name, title, caption, stream.getvalue())


def panels(count: int, most_columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `most_columns` beside each other, each `height` inches high."""
    columns = min(count, most_columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def bar_rows(labels: Sequence[str], columns: int = 1, bars: int = 1) -> tuple[Figure, list[Axes]]:
    """`columns` panels of horizontal bars, a row for each label from the top down, with room for `bars` bars in a row."""
    height = 1.5 + len(labels) * (0.24 * bars + 0.08)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False, sharey=True).flat)
    axes[0].set_yticks(range(len(labels)), list(map(shorten, labels)))
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    for axis in axes:
        axis.grid(visible=False, axis="y")
    return figure, axes


def legend(figure: Figure, axes: Iterable[Axes], columns: int = 5, shared: str = "") -> None:
    """One legend for all panels, below them, headed by what all points share."""
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    found = list(handles.values())
    figure.legend(
        found, list(handles), loc="outside lower center", ncols=max(1, min(columns, len(found))), title=shared or None, title_fontsize=9
    )


def looks(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label; no two labels share both (up to 49)."""
    count = len(LINES)
    pairs = ((LINES[i % count], MARKERS[(i + i // count) % len(MARKERS)]) for i in range(count * len(MARKERS)))
    return dict(zip(dict.fromkeys(labels), cycle(pairs), strict=False))


def shorten(text: object) -> str:
    """A label of bounded length."""
    found = show(text)
    return found if len(found) <= LONGEST_LABEL else found[: LONGEST_LABEL - 1] + "…"


def shared_words(keys: Mapping[str, object]) -> str:
    """The words that short labels leave out, said once for all points."""
    first, label = next(iter(short_labels(list(keys)).items()))
    words = [word for word in first.split() if word not in label.split()]
    return shorten(f"all points: {' '.join(words)}") if words else ""
