"""`hpcnmt report`: one HTML page, and the PNGs beside it, from the results files of hpcnmt bench.

Invariants: the page needs nothing but itself (pictures are data URIs, the style is inline, and a content security policy forbids the
rest); every word from a file is escaped; a file cut short gives a page of what it has. Called by hpcnmt/cli.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from hpcnmt.bench import report_ablation as ablation
from hpcnmt.bench import report_ablation_tables as ablation_tables
from hpcnmt.bench import report_pictures as pictures
from hpcnmt.bench import report_tables as tables
from hpcnmt.bench.report_fields import points
from hpcnmt.bench.report_style import Picture
from hpcnmt.bench.results import Figures, read_results
from hpcnmt.reading import short

Part = Picture | str | None

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>Report of $date.</p>
$head
</header>
<main>
$sections
</main>
</body>
</html>
""")

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #ffffff; --line: #c8c8c8; --soft: #f3f3f3; --quiet: #555;
  --good: #dff3ea; --bad: #fde3d3; --mark: #a33f00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #16181b; --line: #454a50; --soft: #22262b; --quiet: #a8adb3;
  --good: #123a2c; --bad: #4a2410; --mark: #ffa06b; } }
@media print { :root { color-scheme: light; --text: #000; --back: #fff; --line: #999; --soft: #eee; --quiet: #333;
  --good: #dff3ea; --bad: #fde3d3; --mark: #a33f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 16px/1.45 system-ui, sans-serif;
  color: var(--text); background: var(--back); }
h1 { margin: 0.5rem 0 0; } h2 { margin-top: 3rem; padding-bottom: 0.2rem; border-bottom: 2px solid var(--line); }
nav a { margin-right: 1rem; color: inherit; }
p, figcaption, caption span { color: var(--quiet); }
.table { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { padding: 0.3rem 0; text-align: left; font-weight: 600; font-size: 1rem; }
caption span { display: block; font-weight: 400; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { white-space: nowrap; } .prose td { white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
th { background: var(--soft); vertical-align: bottom; } .number { text-align: right; }
tr.good td { background: var(--good); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
tr.bad td { background: var(--bad); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
tr.bad td:last-child { color: var(--mark); font-weight: 700; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; width: 56rem; height: auto; padding: 0.4rem; border-radius: 0.4rem;
  background: #fff; }
figcaption { max-width: 56rem; margin-top: 0.3rem; font-size: 0.85rem; }
pre { padding: 0.6rem; overflow-x: auto; background: var(--soft); font-size: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; } table { font-size: 7.5pt; }
  th, td { padding: 0.1rem 0.3rem; white-space: normal; }
  .table { overflow: visible; } figure, tr { break-inside: avoid; } h2, caption { break-after: avoid; } figure img { padding: 0; } }
""".strip()


def _throughput(results: Figures) -> list[Part]:
    return [
        pictures.speedup(results), tables.efficiency(results), pictures.async_to_sync(results), tables.async_to_sync(results),
        tables.stragglers(results), tables.words_per_s(results), pictures.shares(results), tables.shares(results),
        tables.window_bytes(results), pictures.staleness(results), tables.further(results, ("speedup", "async_to_sync", "straggler")),
    ]  # fmt: skip


def _time_to_bleu(results: Figures) -> list[Part]:
    return [
        pictures.time_to_bleu(results), tables.bleu_summary(results), tables.time_to_bleu(results), tables.further(results, ("runs",)),
        pictures.staleness(results),
    ]  # fmt: skip


def _quality(results: Figures) -> list[Part]:
    return [pictures.quality(results), tables.quality(results), tables.further(results, ()), pictures.staleness(results)]


def _ablation(results: Figures) -> list[Part]:
    return [
        ablation_tables.policies(results), ablation_tables.tuned(results), ablation_tables.seconds(results),
        ablation_tables.networks(results), ablation_tables.tested(results),
        ablation.differences(results), ablation.against_words(results), ablation.against_seconds(results), ablation.staleness(results),
        ablation_tables.runs(results),
        tables.further(results, ("baseline", "target", "policies", "tuned", "seconds", "synchronous_wins")),
    ]  # fmt: skip


def _comm(results: Figures) -> list[Part]:
    return [pictures.comm(results), tables.comm(results), tables.latency(results), tables.further(results, ())]


def _soak(results: Figures) -> list[Part]:
    return [pictures.memory(results), tables.soak(results), tables.further(results, ()), pictures.staleness(results)]


SECTIONS: dict[str, tuple[str, Callable[[Figures], list[Part]]]] = {
    "throughput": ("Words per second", _throughput), "time-to-bleu": ("Time to BLEU", _time_to_bleu),
    "quality": ("Quality against words", _quality), "ablation": ("Ablation", _ablation), "comm": ("Push and pull", _comm),
    "soak": ("Soak", _soak),
}  # fmt: skip
SUMMARIZED = ("throughput", "time-to-bleu")  # kinds whose run ends with a summary


def read_files(paths: Sequence[Path]) -> dict[str, Figures]:
    """Results by the name of their section: the name of the file, with a number where several files have the same."""
    found: dict[str, Figures] = {}
    for path in paths:
        results = read_results(path)
        kind = results["kind"]
        if not isinstance(kind, str) or kind not in SECTIONS:
            raise ValueError(f"found kind {short(kind)} in {path}, expected one of {', '.join(SECTIONS)}")
        if not isinstance(results["points"], dict):
            raise ValueError(f"found points of type {type(results['points']).__name__} in {path}, expected figures by key")
        name, count = path.stem, 1
        while name in found:
            count += 1
            name = f"{path.stem}-{count}"
        found[name] = results
    return found


def picture_html(picture: Picture) -> str:
    """A figure that carries its PNG."""
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def section_html(number: int, title: str, results: Figures, parts: Sequence[Part]) -> str:
    """One file of results."""
    shown = [picture_html(part) if isinstance(part, Picture) else part for part in parts if part]
    if not points(results):
        shown.insert(0, "<p>No point has been measured yet.</p>")
    elif results["kind"] in SUMMARIZED and not results.get("summary"):
        shown.insert(0, "<p>There is no summary: the run was cut short, or goes on.</p>")
    details = {key: results.get(key) for key in ("machine", "config")}
    text = escape(json.dumps(details, indent=1, ensure_ascii=False))
    return "\n".join(
        [f'<section id="file{number}"><h2>{escape(title)}</h2>', *shown,
         f"<details><summary>Machine and configuration</summary><pre>{text}</pre></details></section>"]
    )  # fmt: skip


def page_html(results: Mapping[str, Figures], parts: Mapping[str, Sequence[Part]], date: str) -> str:
    """The whole page."""
    titles = [f"{SECTIONS[content['kind']][0]}: {name}" for name, content in results.items()]
    links = [f'<a href="#file{number}">{escape(title)}</a>' for number, title in enumerate(titles)]
    head = [tables.files(results), tables.checks(results), f"<nav>{' '.join(links)}</nav>" if len(links) > 1 else ""]
    sections = [section_html(i, titles[i], content, parts[name]) for i, (name, content) in enumerate(results.items())]
    return PAGE.substitute(
        title="hpcnmt: measurements", style=STYLE, date=escape(date), head="\n".join(filter(None, head)), sections="\n".join(sections)
    )


def write_report(paths: Sequence[Path], out: Path, png: Path | None = None) -> list[Path]:
    """Writes the page `out` and its pictures into the folder `png` (default: beside the page); returns what was written.

    Raises ValueError when a file holds no results of this version, or `out` would replace one.
    """
    folder = out.parent if png is None else png
    if out.resolve() in {path.resolve() for path in paths} or out.is_dir():
        raise ValueError(f"found --out {out}, which is a folder or one of the results files: expected the name of an HTML page")
    results = read_files(paths)
    parts = {name: SECTIONS[content["kind"]][1](content) for name, content in results.items()}
    written = {
        folder / f"{name}-{part.name}.png": part.png for name, found in parts.items() for part in found if isinstance(part, Picture)
    }  # fmt: skip
    date = datetime.now().astimezone().isoformat(" ", "minutes")
    written[out] = page_html(results, parts, date).encode("utf-8", "replace")
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(written)
