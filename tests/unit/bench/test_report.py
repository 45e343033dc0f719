"""The report: its tables, pictures and page from generated results, and from results that are hostile, cut short or wrong."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hpcnmt.bench import report_tables
from hpcnmt.bench.commands import KINDS
from hpcnmt.bench.report import SECTIONS, write_report
from hpcnmt.bench.report_fields import histogram, mean, number, short_labels, show
from hpcnmt.cli import main
from tests.report_samples import SAMPLES, Figures

PICTURES = {
    "throughput": {"speedup", "async-to-sync", "shares", "staleness"}, "time-to-bleu": {"bleu", "staleness"},
    "quality": {"quality", "staleness"}, "ablation": {"words", "seconds", "differences", "staleness"},
    "comm": {"bandwidth"}, "soak": {"memory", "staleness"},
}  # fmt: skip


class Page(HTMLParser):
    """What a browser sees: tags, addresses, and the rows of the tables as (classes, cells)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.attributes: set[str] = set()
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1][1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][1][-1] += data


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def one_point(kind: str) -> Figures:
    """A sample with its last point only, which is quick to draw."""
    results = SAMPLES[kind]()
    key = list(results["points"])[-1]
    return results | {"points": {key: results["points"][key]}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report of all samples: the PNGs, and last the page."""
    folder = tmp_path_factory.mktemp("report")
    return write_report([write(folder, kind, sample()) for kind, sample in SAMPLES.items()], folder / "page" / "report.html")


def test_every_kind_of_benchmark_has_a_section_and_a_sample() -> None:
    assert set(KINDS) == set(SECTIONS) == set(SAMPLES)


def test_the_page_needs_nothing_but_itself(written: list[Path]) -> None:
    html = written[-1].read_text("utf-8")
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.addresses and all(address.startswith(("#file", "data:image/png;base64,")) for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_pictures_are_the_same_valid_pngs_on_the_page_and_beside_it(written: list[Path]) -> None:
    *pictures, page = written
    assert {path.name for path in pictures} == {f"{kind}-{name}.png" for kind, names in PICTURES.items() for name in names}
    assert {path.parent for path in pictures} == {page.parent}
    embedded = [address.split(",")[1] for address in Page(page.read_text("utf-8")).addresses if address.startswith("data:")]
    assert sorted(map(base64.b64decode, embedded)) == sorted(path.read_bytes() for path in pictures)
    for path in pictures:
        image = Image.open(io.BytesIO(path.read_bytes()))
        image.load()
        assert image.format == "PNG" and image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10  # something is drawn


def test_the_head_names_files_and_checks(written: list[Path]) -> None:
    html = written[-1].read_text("utf-8")
    page = Page(html)
    assert "2 of 3 checks met, 1 missed" in html
    for kind, sample in SAMPLES.items():
        points = str(len(sample()["points"]))
        assert ("", [kind, kind, points, "AMD EPYC 9V74, 16 cores, NVIDIA H100", "0123abc", sample()["machine"]["command"]]) in page.rows
    assert [classes for classes, cells in page.rows if cells[-1] == "MISSED"] == ["bad"]
    assert [classes for classes, cells in page.rows if cells[-1] == "met"] == ["good", "good"]


def test_rows_in_which_asynchrony_loses_say_so() -> None:
    results = SAMPLES["throughput"]()
    rows = Page(report_tables.async_to_sync(results)).rows[1:]
    expected = [entry["measured"] < 1 for entry in results["summary"]["async_to_sync"]]
    assert any(expected) and not all(expected)
    marks = {True: ("bad", "async LOSES"), False: ("", "async wins")}
    assert [(classes, cells[-1]) for classes, cells in rows] == [marks[lost] for lost in expected]


def test_words_per_second_of_every_point() -> None:
    results = SAMPLES["throughput"]()
    header, *rows = (cells for _, cells in Page(report_tables.words_per_s(results)).rows)
    assert len(rows) == len(results["points"])
    assert "wire" not in header and "wire fp32" in report_tables.words_per_s(results)  # the same everywhere: said once
    for cells, point in zip(rows, results["points"].values(), strict=True):
        for side in ("source", "target", "total"):
            assert cells[header.index(f"{side} words/s")] == f"{point[f'{side}_words_per_s']:,.0f}"


def test_efficiency_has_a_column_for_each_number_of_workers() -> None:
    curves = [
        {"label": "async", "workers": [1, 4], "speedup": [1, 3], "efficiency": [1, 0.75]},
        {"label": "sync", "workers": [2], "speedup": [1.5], "efficiency": [0.75]},
    ]
    rows = [cells for _, cells in Page(report_tables.efficiency({"summary": {"speedup": curves}})).rows]
    assert rows == [
        ["", "1 worker", "2 workers", "4 workers"],
        ["async", "1.00 (100.0 %)", "–", "3.00 (75.0 %)"],
        ["sync", "–", "1.50 (75.0 %)", "–"],
    ]


def test_other_figures_of_a_summary_are_shown() -> None:
    html = report_tables.further({"summary": {"product": [{"words_per_s": 4900}], "runs": [{"x": 1}], "note": "slow"}}, ("runs",))
    assert [cells for _, cells in Page(html).rows] == [["words per s"], ["4,900"], ["note"], ["slow"]]


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in `value`."""
    for key, element in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield value, key
        yield from _leaves(element)


def _with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every string in it changed, except the empty ones."""
    if isinstance(value, dict):
        return {key: _with_strings(element, change) for key, element in value.items()}
    if isinstance(value, list):
        return [_with_strings(element, change) for element in value]
    return change(value) if isinstance(value, str) and value else value


@pytest.mark.parametrize("kind", KINDS)
def test_text_from_files_is_never_markup(kind: str, tmp_path: Path) -> None:
    plain = one_point(kind)
    evil = _with_strings(plain, lambda text: text + "<script>alert(1)</script><b/onload='x'>&\"$\\frac{")
    evil["points"] = {key + "<img/src=x>$_{": point for key, point in evil["points"].items()}
    evil = evil | {"kind": kind}
    pages = []
    for name, content in (("plain", plain), ("<i>evil", evil)):
        html = write_report([write(tmp_path, name, content)], tmp_path / "out" / "report.html")[-1].read_text("utf-8")
        pages.append(Page(html))
        assert len(pages[-1].tags) > 50
    assert pages[0].tags == pages[1].tags
    assert pages[0].attributes == pages[1].attributes


@pytest.mark.parametrize("kind", KINDS)
def test_runs_cut_short_give_a_page(kind: str, tmp_path: Path) -> None:
    results = one_point(kind)
    (key, point), *_ = results["points"].items()
    base = {"format": 1, "kind": kind}
    for name, points in {"none": {}, "bare": {key: {}}, "settings": {key: {"settings": point["settings"]}}}.items():
        *pictures, page = write_report([write(tmp_path, name, base | {"points": points})], tmp_path / f"{name}.html")
        assert not pictures
        assert Page(page.read_text("utf-8")).rows[1][1][:2] == [name, kind]
    without_summary = write_report([write(tmp_path, "points", base | {"points": {key: point}})], tmp_path / "points.html")
    assert len(without_summary) > 1


JUNK: tuple[Any, ...] = (
    None, "", "$\\foo{$", "\ud800", "x" * 300, "\n", [], {}, [1, "a", None], {"a": 1}, float("nan"), 1e308, -1e308, 10**400, -3, 0, True,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_whatever_json_holds_gives_a_page(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    results = one_point(kind)
    for part in ("points", "summary", "config", "machine"):
        for container, key in list(_leaves(results[part])):
            if chance.random() < 0.15:
                container[key] = copy.deepcopy(chance.choice(JUNK))
    page = write_report([write(tmp_path, "junk", results)], tmp_path / "report.html")[-1]
    assert Page(page.read_text("utf-8")).rows[1][1][:2] == ["junk", kind]


def test_values_of_mixed_types_are_left_out_of_pictures_and_tables(tmp_path: Path) -> None:
    """Found by fuzzing."""
    comm, ablation = one_point("comm"), one_point("ablation")
    (point,) = comm["points"].values()
    point["push_gb_per_s"] = "fast"
    comm["points"]["another"] = point | {"push_gb_per_s": 1.0}
    ablation["summary"]["tuned"] = [{"method": "async", "set": 5}]
    pages = [write_report([write(tmp_path, "junk", results)], tmp_path / "report.html")[-1] for results in (comm, ablation)]
    assert all("junk" in page.read_text("utf-8") for page in pages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        ('{"models": []}', "holds no results of hpcnmt bench"),
        ('{"format": 2, "kind": "comm", "points": {}}', "found format 2 .*expected 1"),
        ('{"format": 1, "kind": "speed", "points": {}}', "found kind 'speed' .*expected one of throughput"),
        ('{"format": 1, "kind": ["comm"], "points": {}}', "found kind .*expected one of throughput"),
        ('{"format": 1, "kind": "comm", "points": []}', "found points of type list"),
    ],
)
def test_wrong_files_are_refused_with_one_line(
    content: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(path), "--out", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)
    assert not (tmp_path / "report.html").exists()


def test_a_page_never_replaces_results(tmp_path: Path) -> None:
    path = write(tmp_path, "soak", one_point("soak"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="expected the name of an HTML page"):
        write_report([path], tmp_path / "." / "soak.json")
    with pytest.raises(ValueError, match="expected the name of an HTML page"):
        write_report([path], tmp_path)
    with pytest.raises(ValueError, match="found no results file"):
        write_report([tmp_path / "missing.json"], tmp_path / "report.html")
    assert path.read_bytes() == before


def test_the_command_keeps_files_of_one_name_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "soak", one_point("soak"))
    out, png = tmp_path / "report.html", tmp_path / "png"
    arguments = [str(tmp_path / folder / "soak.json") for folder in ("a", "b")]
    assert main(["report", *arguments, "--out", str(out), "--png", str(png)]) == 0
    names = {"soak-memory.png", "soak-staleness.png", "soak-2-memory.png", "soak-2-staleness.png"}
    assert {path.name for path in png.iterdir()} == names
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"wrote {path}" for path in (out, *png.iterdir()))
    assert {"#file0", "#file1"} <= set(Page(out.read_text("utf-8")).addresses)


def test_fields_are_read_with_care() -> None:
    assert [number(value) for value in (1, 2.5, True, "3", None, float("nan"), float("inf"), 10**400)] == [1.0, 2.5, *[None] * 6]
    assert histogram({"2": 1, "0": 3, "x": 5, "-1": 2, "1": None}) == {0: 3.0, 2: 1.0}
    assert mean({0: 3.0, 2: 1.0}) == 0.5 and mean({}) is None
    assert short_labels(["async n1 fp32", "async n2 fp32"]) == {"async n1 fp32": "n1", "async n2 fp32": "n2"}
    assert short_labels(["a b", "b a"]) == {"a b": "a b", "b a": "b a"}  # nothing would be left
    assert [show(value) for value in (1234567, 1234.5, 0.12345, 123.4, True, None, "", [1], 0)] == [
        "1,234,567", "1,234", "0.123", "123", "yes", "–", "–", "[1]", "0",
    ]  # fmt: skip


def test_without_matplotlib_it_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("hpcnmt.bench.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(tmp_path / "results.json"), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "found no matplotlib" in error and "pip install matplotlib" in error and error.count("\n") == 1
