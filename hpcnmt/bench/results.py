"""Results of a benchmark: one JSON file that is valid after every point, so that a run cut short goes on where it stopped.

    {"format": 1, "kind": "throughput", "machine": {...}, "config": {...}, "points": {KEY: FIGURES, ...}, "summary": {...}}

A point is measured once, under a key that names its settings ("async n4 s2 tau2 ..."). Invariants: the file is replaced by a rename,
never half-written; a file of another kind, format or configuration is refused and left alone. Used by every module of hpcnmt.bench
and by hpcnmt/bench/report.py.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import hpcnmt
from hpcnmt.bench.identity import configuration_difference
from hpcnmt.reading import check, parse_json, short

FORMAT = 1
Figures = dict[str, Any]


def machine() -> Figures:
    """Processor, devices, versions, commit and command: on what and with what a figure was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    source = Path(hpcnmt.__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=source, capture_output=True, text=True, check=False)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "processor": model, "cores": os.cpu_count(), "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
        "hpcnmt": hpcnmt.__version__, "torch": str(torch.__version__), "python": platform.python_version(),
        "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"), "command": _command(),
    }  # fmt: skip


def _command() -> str:
    """The command, without the folders of this machine."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return " ".join(re.sub(r"(?<![\w.])/[^\s:,=]*/", "", word) for word in words)


def read_results(path: Path) -> Figures:
    """The contents of a results file. Raises ValueError when it is none, or of another version."""
    if not path.is_file():
        raise ValueError(f"found no results file {path}, expected one of hpcnmt bench")
    found = parse_json(path.read_bytes(), path)
    if not isinstance(found, dict) or "kind" not in found or "points" not in found:
        raise ValueError(f"{path} holds no results of hpcnmt bench: expected the fields format, kind and points")
    if found.get("format") != FORMAT:
        raise ValueError(
            f"found format {short(found.get('format'))} in {path}, expected {FORMAT}: it is of another version of hpcnmt; "
            "measure again with another --out"
        )
    return found


class Results:
    """The results file of one benchmark of `kind` with the settings `config`; goes on with `path` where it exists."""

    def __init__(self, path: Path, kind: str, config: Figures) -> None:
        self.path = path
        config = json.loads(json.dumps(config))  # as it will be read back
        if path.exists():
            self._content = read_results(path)
            found = self._content["kind"]
            if found != kind:
                raise ValueError(f"{path} exists with another kind (found {short(found)}, expected {kind!r}): choose another --out")
            if difference := configuration_difference(check(self._content.get("config", {}), {str: object}, path, "config"), config):
                raise ValueError(f"{path} exists with another config ({difference}): choose another --out")
            check(self._content["points"], {str: {str: object}}, path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._content = {"format": FORMAT, "kind": kind, "machine": machine(), "config": config, "points": {}, "summary": {}}
            self._write()

    @property
    def points(self) -> dict[str, Figures]:
        """Figures by key, in the order in which they were measured."""
        points: dict[str, Figures] = self._content["points"]
        return points

    def __contains__(self, key: str) -> bool:
        return key in self.points

    def add(self, key: str, figures: Figures) -> None:
        """Notes one measured point."""
        self.points[key] = figures
        self._write()

    def summarize(self, summary: Figures) -> None:
        """Replaces the summary: what follows from the points."""
        self._content["summary"] = summary
        self._write()

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps(self._content, indent=1) + "\n", "utf-8")
        temporary.replace(self.path)
