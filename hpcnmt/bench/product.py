"""Seconds to a quality as a product: words to it (virtual time, quality.py) / words per second (throughput), beside what real runs took.

A real run is compared with those virtual runs only that learn in the same way (LEARNING options and number of workers), and with those
throughput points only that were measured on the same model, mode, ranks and windows. Simulated compute stands for other machines: it
predicts, and is not compared. Used by time_to_bleu.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcnmt.bench.crossing import crossing, median_over_seeds
from hpcnmt.bench.identity import completed, first_difference
from hpcnmt.bench.results import Figures, read_results
from hpcnmt.bench.runs import Run, data_identity

LEARNING = (
    "model.", "loader.batch_words", "worker.", "optimizer.", "schedule.", "training.ema_alpha", "training.wire",
    "validation.every_words", "validation.beam",
)  # fmt: skip
TOLERANCE = 0.1


def read_kind(path: Path, kind: str) -> Figures:
    """A results file of `kind`; ValueError when it is of another."""
    results = read_results(path)
    if results["kind"] != kind:
        raise ValueError(f"found results of {results['kind']} in {path}, expected those of hpcnmt bench {kind}")
    return results


def matching(points: Mapping[str, Figures], wanted: Mapping[str, Any]) -> dict[str, Figures]:
    """The throughput points that have the settings `wanted`, no straggler, and no lockstep unless it is wanted."""
    usual: dict[str, Any] = {"lockstep": False, "straggler": 1.0}  # of points that do not say
    return {
        key: point for key, point in points.items()
        if all((usual | point["settings"]).get(name) == value for name, value in (usual | dict(wanted)).items())
    }  # fmt: skip


def _learning(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in completed(options).items() if name.startswith(LEARNING)}


class Product:
    """The two results files, and which of their points belong to a run."""

    def __init__(self, quality: Figures, throughput: Figures) -> None:
        self.quality, self.throughput = quality, throughput

    @classmethod
    def read(cls, quality: Path | None, throughput: Path | None, data: Path) -> Product | None:
        """None without files. Raises ValueError for one without the other, another kind, or results on another corpus."""
        if quality is None and throughput is None:
            return None
        if quality is None or throughput is None:
            raise ValueError("found only one of --from-quality and --from-throughput, expected both: their quotient is predicted")
        product = cls(read_kind(quality, "quality"), read_kind(throughput, "throughput"))
        if product.quality["config"].get("data") != data_identity(data):
            raise ValueError(f"{quality} was measured on another corpus than {data}: give the results on that corpus")
        return product

    def missing(self, run: Run) -> str:
        """Why there is no product for the variant of `run`; "" when there is one."""
        if run.mode == "sync":
            return "virtual time knows no mode sync"
        difference = first_difference(_learning(self.quality["config"]["options"]), _learning(asdict(run.recipe)))
        if difference:
            return f"in the quality results {difference}"
        if not self._quality_points(run):
            return f"the quality results have no point of {run.workers} workers"
        return "" if self._throughput_points(run) else f"the throughput results have no point with {self._throughput_settings(run)}"

    def check(self, runs: Mapping[str, Run]) -> None:
        """Says which variants have no product; ValueError when none has, so that nothing is trained in vain. `runs` by variant."""
        missing = {name: reason for name, run in runs.items() if (reason := self.missing(run))}
        text = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        if len(missing) == len(runs):
            raise ValueError(f"the results of quality and throughput fit no variant ({text})")
        if missing:
            print(f"no product for some variants ({text})", flush=True)

    def _quality_points(self, run: Run) -> list[Figures]:
        return [p for p in self.quality["points"].values() if p["settings"]["workers"] == run.workers]

    @staticmethod
    def _throughput_settings(run: Run) -> dict[str, Any]:
        settings = {"mode": run.mode, "parameters": run.parameters, "delay": run.recipe.worker.delay}
        if run.mode == "async":
            settings |= {"workers": run.workers, "shards": run.shards}
            settings |= {"wire": run.recipe.training.wire, "overlap": run.recipe.worker.overlap}
        return settings

    def _throughput_points(self, run: Run) -> dict[str, Figures]:
        return matching(self.throughput["points"], self._throughput_settings(run))

    def summary(self, runs: Mapping[str, Run], measured: Sequence[Figures], bleu: float) -> Figures:
        """The fields "product" and "checks" of the summary; `measured` are its rows "runs"."""
        by_name = {row["name"]: row for row in measured}
        rows = [
            self._row(name, run, key, point, by_name[name], bleu)
            for name, run in runs.items() if name in by_name and not self.missing(run)
            for key, point in self._throughput_points(run).items()
        ]  # fmt: skip
        checks = [
            {"what": f"{row['name']}: measured / predicted seconds to BLEU {bleu:g}", "measured": row["ratio"],
             "target": [1.0 - TOLERANCE, 1.0 + TOLERANCE], "met": abs(row["ratio"] - 1.0) <= TOLERANCE}
            for row in rows if row["ratio"] is not None
        ]  # fmt: skip
        return {"product": rows, "checks": checks}

    def _row(self, name: str, run: Run, key: str, point: Figures, measured: Figures, bleu: float) -> Figures:
        words = median_over_seeds([crossing(p["curve"], bleu) for p in self._quality_points(run)], "target_words")
        rate, compute = float(point["target_words_per_s"]), point["settings"]["compute"]
        predicted = None if words is None else words / rate
        row: Figures = {
            "name": name, "throughput": key, "compute": compute, "words_to_target": words, "target_words_per_s": rate,
            "predicted_seconds": predicted, "measured_seconds": measured["median_seconds"], "ratio": None, "words_ratio": None,
            "rate_ratio": None,
        }  # fmt: skip
        if compute == "real" and words is not None and predicted is not None and measured["median_seconds"] is not None:
            seconds, measured_words = measured["median_seconds"], measured["median_target_words"]
            row |= {"ratio": seconds / predicted, "words_ratio": measured_words / words, "rate_ratio": measured_words / seconds / rate}
        return row
