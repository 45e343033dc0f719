"""Shared by the benchmark drivers: running hpcnmt, and writing the result with the machine it was measured on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcnmt.bench.results import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def run_hpcnmt(*arguments: object, output: Path | None = None) -> None:
    """Runs one hpcnmt command; raises when it fails."""
    command = [sys.executable, "-m", "hpcnmt", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if output is None:
        subprocess.run(command, check=True, env=environment)
    else:
        with output.open("w") as stream:
            subprocess.run(command, check=True, env=environment, stdout=stream)


def set_options(settings: Sequence[str]) -> list[str]:
    """--set flags of `settings`."""
    return [part for setting in settings for part in ("--set", setting)]


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind from metrics.jsonl of `run`."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine()} | result, indent=1) + "\n")
    print(f"wrote {path}")
    return path
