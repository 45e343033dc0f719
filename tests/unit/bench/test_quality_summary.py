"""Summaries of quality and time-to-bleu, and which virtual runs and throughput belong to a real run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hpcnmt.bench.product import Product
from hpcnmt.bench.quality import summarize
from hpcnmt.bench.runs import Run
from hpcnmt.bench.time_to_bleu import summarize_points
from hpcnmt.training.recipe import build_recipe


def quality_point(workers: int, seed: int, *bleu: float, staleness: dict[str, int] | None = None) -> dict[str, Any]:
    curve = [{"target_words": 1000 * (i + 1), "cross_entropy": 10.0 - b, "bleu": b} for i, b in enumerate(bleu)]
    return {"settings": {"workers": workers, "seed": seed}, "curve": curve, "staleness": staleness or {"0": 1}, "end": {}}


def test_the_summary_is_of_the_last_validations_and_differences_are_of_the_same_seeds() -> None:
    points = [quality_point(1, 1, 2, 8), quality_point(1, 2, 3, 9), quality_point(4, 2, 1, 6, staleness={"2": 1, "4": 3}),
              quality_point(4, 3, 1, 4, staleness={"3": 2})]  # fmt: skip
    one, four = summarize({str(i): p for i, p in enumerate(points)})["workers"]
    assert one["workers"] == 1 and one["bleu"] == {"mean": 8.5, "smallest": 8, "largest": 9} and one["bleu_difference_to_one_worker"] == 0
    assert four["seeds"] == [2, 3] and four["bleu"] == {"mean": 5.0, "smallest": 4, "largest": 6}
    assert four["bleu_difference_to_one_worker"] == -3.0 and four["cross_entropy_difference_to_one_worker"] == 3.0  # seed 2 alone
    assert four["mean_staleness"] == 3.25
    assert summarize({"w4": points[2]})["workers"][0]["bleu_difference_to_one_worker"] is None


def test_time_to_bleu_has_medians_over_seeds() -> None:
    points = {
        f"a seed{seed}": {"settings": {"name": "a"}, "reached": words and {"target_words": words, "seconds": words / 10}}
        for seed, words in ((1, 100), (2, None), (3, 300))
    }  # fmt: skip
    row = {"name": "a", "seeds": 3, "reached": 2, "median_seconds": 30.0, "median_target_words": 300}
    assert summarize_points(points) == {"runs": [row]}


def planned(mode: str, workers: int, shards: int, **worker: Any) -> Run:
    recipe = build_recipe({"training": {"mode": mode}, "worker": worker})
    return Run(mode, "sample", (), recipe, Path("data"), Path("work"), workers, shards, 1000)


def product(*, delay: int = 1, **throughput: Any) -> Product:
    options = asdict(build_recipe({"training": {"mode": "virtual"}, "worker": {"delay": delay}}))
    points = {"w2 seed1": quality_point(2, 1, 5, 5, 5), "w2 seed2": quality_point(2, 2, 1, 5, 5, 5)}
    settings = {"mode": "async", "workers": 2, "shards": 1, "delay": 1, "wire": "fp32", "overlap": 0, "compute": "real",
                "straggler": 1.0, "parameters": 1000}  # fmt: skip
    point = {"settings": settings | throughput, "target_words_per_s": 100.0}
    return Product({"config": {"options": options}, "points": points}, {"points": {"async n2": point}})


def test_the_product_is_words_of_virtual_time_by_words_per_second() -> None:
    run, measured = planned("async", 2, 1), {"name": "a", "median_seconds": 26.0, "median_target_words": 2600.0}
    summary = product().summary({"a": run}, [measured], 5.0)
    row = summary["product"][0]
    assert row["words_to_target"] == 2500 and row["predicted_seconds"] == 25.0  # the seeds get there after 2000 and 3000 words
    assert row["ratio"] == pytest.approx(26 / 25) == pytest.approx(row["words_ratio"] / row["rate_ratio"])
    assert summary["checks"][0]["met"] is True
    assert product().summary({"a": run}, [measured | {"median_seconds": 30.0}], 5.0)["checks"][0]["met"] is False
    simulated = product(compute="simulated").summary({"a": run}, [measured], 5.0)
    assert simulated["product"][0]["predicted_seconds"] == 25.0 and simulated["checks"] == []
    missed = product().summary({"a": run}, [measured], 6.0)
    assert missed["product"][0]["predicted_seconds"] is None and missed["checks"] == []


@pytest.mark.parametrize(
    ("found", "run", "reason"),
    [
        (product(), planned("async", 2, 1), ""),
        (product(), planned("async", 4, 1), "no point of 4 workers"),
        (product(), planned("async", 2, 1, delay=2), "worker.delay: found 1, expected 2"),
        (product(delay=2), planned("async", 2, 1, delay=2), "the throughput results have no point"),
        (product(straggler=2.0), planned("async", 2, 1), "the throughput results have no point"),
        (product(parameters=10), planned("async", 2, 1), "the throughput results have no point"),
    ],
)  # fmt: skip
def test_only_results_of_the_same_training_are_compared(found: Product, run: Run, reason: str) -> None:
    missing = found.missing(run)
    assert reason in missing and bool(reason) == bool(missing)
    if reason:
        with pytest.raises(ValueError, match="fit no variant"):
            found.check({"a": run})
