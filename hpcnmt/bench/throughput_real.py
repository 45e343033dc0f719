"""`hpcnmt bench throughput --compute real`: trains a recipe in each mode and reads words per second from the run folders.

Validation is off the clock (once, at the end). With more ranks than cores a waiting rank gives its core to the others, so that waiting
costs nothing: such points are measured, but their settings say `oversubscribed`, and no ratio is formed from them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcnmt.bench.options import choices, numbers
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.runs import data_identity
from hpcnmt.bench.throughput_summary import summarize
from hpcnmt.training.run_folder import RunFolder

NEVER = 10**15


@dataclass(frozen=True)
class RealPoint:
    """One training run."""

    mode: str
    workers: int
    shards: int
    delay: int
    wire: str
    overlap: int
    backend: str = ""

    @property
    def key(self) -> str:
        """Its name in the results file."""
        parts = [f"{self.mode} {self.backend}".strip(), f"n{self.workers}"]
        parts += [f"s{self.shards}", self.wire, f"overlap{self.overlap}"] if self.mode == "async" else []
        return " ".join([*parts, f"tau{self.delay}", "real"])

    def options(self) -> list[str]:
        """Options of hpcnmt train."""
        settings = [f"training.mode={self.mode}", f"worker.delay={self.delay}"]
        flags = [] if self.mode == "plain" else ["--workers", str(self.workers)]
        if self.mode == "async":
            flags += ["--shards", str(self.shards)]
            settings += [f"worker.overlap={self.overlap}", f"training.wire={self.wire}"]
        if self.mode == "sync":
            settings.append(f"sync.backend={self.backend}")
        return flags + [part for setting in settings for part in ("--set", setting)]


class RealRuns:
    """Plans and measures the training runs of one call."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        if arguments.data is None:
            raise ValueError("found --compute real without --data, expected --data PREPARED (the folder of hpcnmt prepare)")
        if arguments.launcher:
            raise ValueError("--launcher has no effect with --compute real: hpcnmt train starts its ranks itself")
        self.arguments = arguments
        modes = choices(arguments.mode, ("plain", "async", "sync"), "mode")
        wires, overlaps = choices(arguments.wire, ("fp32", "bf16"), "wire"), numbers(arguments.overlap, int, "overlap")
        self.groups = []
        for workers, delay in itertools.product(numbers(arguments.workers, int, "workers"), numbers(arguments.delay, int, "delay")):
            group = [RealPoint("plain", 1, 0, delay, "fp32", 0)] if "plain" in modes else []
            if "async" in modes:
                group += [RealPoint("async", workers, arguments.shards, delay, w, o) for w, o in itertools.product(wires, overlaps)]
            if "sync" in modes:
                backends = [text.partition("=")[0] for text in arguments.baseline or ["torch"]]
                group += [RealPoint("sync", workers, 0, delay, "fp32", 0, backend) for backend in backends]
            self.groups.append(group)

    @property
    def config(self) -> Figures:
        """What a results file must agree on."""
        names = ("recipe", "words", "set")
        return {"data": data_identity(self.arguments.data)} | {name: getattr(self.arguments, name) for name in names}

    def measure(self, results: Results) -> int:
        """Measures what is not in `results` yet, group by group, in turns."""
        for group in self.groups:
            todo = [point for point in group if point.key not in results]
            rounds: dict[str, list[dict[str, Any]]] = {point.key: [] for point in todo}
            for turn, point in itertools.product(range(self.arguments.rounds), todo):
                rounds[point.key].append(self._train(point))
                rate = rounds[point.key][-1]["target_words_per_s"]
                print(f"{point.key}: {rate:,.0f} target words/s (round {turn + 1} of {self.arguments.rounds})", flush=True)
            for point in todo:
                results.add(point.key, self._combine(point, rounds[point.key]))
        results.summarize(summarize(results.points))
        return 0

    def _train(self, point: RealPoint) -> Figures:
        arguments = self.arguments
        with tempfile.TemporaryDirectory() as name:
            run = Path(name) / "run"
            words = [f"training.max_target_words={arguments.words * point.workers}", f"validation.every_words={NEVER}"]
            settings = [part for setting in [*arguments.set, *words] for part in ("--set", setting)]
            command = [sys.executable, "-m", "hpcnmt", "train", arguments.recipe, "--data", str(arguments.data), "--run", str(run)]
            done = subprocess.run([*command, *settings, *point.options()], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{point.key} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
            end = next(record for record in RunFolder(run).records() if record["kind"] == "end")
            staleness: dict[str, int] = {}
            for path in run.glob("shard-*.json"):
                for steps, count in json.loads(path.read_text("utf-8"))["staleness"].items():
                    staleness[steps] = staleness.get(steps, 0) + count
            config = json.loads((run / "config.json").read_text("utf-8"))
            return end | {"staleness": staleness, "parameters": config["context"]["parameters"]}

    def _combine(self, point: RealPoint, rounds: list[Figures]) -> Figures:
        names = ("target_words_per_s", "source_words_per_s", "total_words_per_s")
        cores = os.cpu_count() or 1
        settings = vars(point) | {"parameters": rounds[0]["parameters"]} | {
            "compute": "real", "batch_s": 0.0, "straggler": 1.0, "network": "host", "oversubscribed": point.workers + point.shards > cores
        }  # fmt: skip
        return {
            "settings": settings, "rounds": [figures["target_words_per_s"] for figures in rounds],
            **{name: statistics.median(figures[name] for figures in rounds) for name in names if name in rounds[0]},
            "seconds": rounds[-1]["train_s"], "shares": rounds[-1].get("shares", {}), "bytes_sent": None, "bytes_received": None,
            "staleness": rounds[-1]["staleness"],
        }  # fmt: skip
