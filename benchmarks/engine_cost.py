"""What the engine costs: words per second of 1 worker + 1 shard (tau 2, overlap 1), the same with a local optimizer, and virtual time with
4 and 16 workers, each beside the plain loop with the same model, batches, threads and tau, in turns; medians of the ratios.

    python benchmarks/engine_cost.py PREPARED WORK [--words 120000] [--rounds 3] [--recipe multi30k-transformer]

Validation is off the clock: it happens once, at the end.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path

from common import records, run_hpcnmt, set_options, write_result

VARIANTS = {
    "plain": (["training.mode=plain", "worker.delay=2"], []),
    "engine": (["worker.delay=2", "worker.overlap=1"], ["--workers", 1, "--shards", 1]),
    "engine_local": (["worker.delay=2", "worker.overlap=1", "worker.local.mode=always"], ["--workers", 1, "--shards", 1]),
    "virtual_4": (["training.mode=virtual", "worker.delay=2"], ["--workers", 4]),
    "virtual_16": (["training.mode=virtual", "worker.delay=2"], ["--workers", 16]),
}


def words_per_second(arguments: argparse.Namespace, name: str) -> float:
    """One run of a variant."""
    settings, flags = VARIANTS[name]
    run = arguments.work / f"cost-{name}"
    shutil.rmtree(run, ignore_errors=True)
    common = [f"training.max_target_words={arguments.words}", "validation.every_words=1000000000"]
    run_hpcnmt("train", arguments.recipe, "--data", arguments.data, "--run", run, *flags, *set_options([*settings, *common]))
    return float(records(run, "end")[0]["target_words_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path, help="folder for the runs")
    parser.add_argument("--words", type=int, default=120000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="multi30k-transformer")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name in VARIANTS:
            rates[name].append(words_per_second(arguments, name))
    ratios = {name: [r / p for r, p in zip(rates[name], rates["plain"], strict=True)] for name in VARIANTS if name != "plain"}
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    local = statistics.median(a / b for a, b in zip(rates["engine_local"], rates["engine"], strict=True))
    print(medians, f"local optimizer on/off: {local:.3f}")
    figures = {"target_words_per_s": rates, "ratio_to_plain": ratios, "median_ratio": medians, "local_optimizer_on_to_off": local}
    write_result(f"engine_cost-{arguments.recipe}", {"recipe": arguments.recipe, "words": arguments.words} | figures)


if __name__ == "__main__":
    main()
