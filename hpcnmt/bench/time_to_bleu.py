"""Seconds and words until a BLEU target, by real runs of several variants and seeds, one run at a time.

A variant is NAME:KEY=VALUE,... with mode=plain|sync|async, workers (sync, async), shards (async) and options SECTION.OPTION of the recipe.
The target is reached where the mean of the last 3 validations is first at least --bleu; words and seconds between two validations are
interpolated. Seconds are seconds of training up to the parameters that were validated: validation is off the clock where training stands
still meanwhile (plain, sync); asynchronous training goes on while worker 0 validates, and so does its clock. The summary
has medians over seeds, where a seed that never gets there counts as later than all.

With --from-quality and --from-throughput (results of these kinds) every variant that they cover gets the product: words to the target of
so many logical workers / words per second = predicted seconds, beside the measured ones. Measured in the same place with real compute,
the ratio should be within 10 %.

Under srun or on a virtual cluster --launcher starts the ranks: a command to which RANKS PROGRAM... is appended.

example:
  hpcnmt bench time-to-bleu multi30k-transformer --data prepared --bleu 30 --seeds 1,2,3 --work runs --out time-to-bleu.json \\
      --variant plain:mode=plain,optimizer.beta1=0.9 --variant async:mode=async,workers=2,shards=1 \\
      --from-quality quality.json --from-throughput throughput.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcnmt.bench.children import train_all, work_folder
from hpcnmt.bench.crossing import crossing, median_over_seeds
from hpcnmt.bench.product import Product
from hpcnmt.bench.quality import add_training_arguments, configuration, not_measured, report_failures
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.runs import Run, integers, plan_run, read_curve, read_staleness, refuse_own_options
from hpcnmt.bench.variants import EXAMPLE, Variant, parse_variants


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    add_training_arguments(parser)
    parser.add_argument("--bleu", type=float, required=True, help="the target, of validation BLEU")
    parser.add_argument(
        "--variant", action="append", default=[], required=True, metavar="NAME:KEY=VALUE,...",
        help=f"one way of training, repeatable; such as {EXAMPLE}",
    )  # fmt: skip
    parser.add_argument("--launcher", default="", help="starts ranks, such as 'srun -n' (default: mpiexec on this host)")
    parser.add_argument("--from-quality", type=Path, metavar="FILE", help="results of hpcnmt bench quality")
    parser.add_argument("--from-throughput", type=Path, metavar="FILE", help="results of hpcnmt bench throughput")


def run(arguments: argparse.Namespace) -> int:
    """Trains and notes all points; returns the exit code, 1 when a run has failed."""
    if not 0.0 < arguments.bleu <= 100.0:
        raise ValueError(f"found --bleu {arguments.bleu}, expected a score between 0 and 100")
    variants, seeds = parse_variants(arguments.variant), integers(arguments.seeds, "--seeds")
    refuse_own_options(arguments.set, "--set")
    planned = {variant.name: _plan(variant, arguments, seeds) for variant in variants}
    product = Product.read(arguments.from_quality, arguments.from_throughput, arguments.data)
    if product:
        product.check({name: runs[0] for name, runs in planned.items()})
    shared = configuration(arguments.recipe, arguments.set, arguments.set, arguments.data)
    results = Results(arguments.out, "time-to-bleu", shared | {"bleu": arguments.bleu})
    runs = [planned[variant.name][index] for index in range(len(seeds)) for variant in variants]  # variants in turns

    def summarize() -> None:
        summary = summarize_points(results.points)
        if product:
            summary |= product.summary({name: runs[0] for name, runs in planned.items()}, summary["runs"], arguments.bleu)
        results.summarize(summary)

    def note(run: Run) -> None:
        curve = read_curve(run)
        reached = crossing(curve, arguments.bleu)
        results.add(run.key, {"settings": run.identity(), "curve": curve, "reached": reached, "staleness": read_staleness(run)})
        summarize()
        place = f"after {reached['seconds']:.0f} s, {reached['target_words']:.0f} target words" if reached else "not reached"
        print(f"{run.key}: BLEU {arguments.bleu:g} {place}", flush=True)

    with work_folder(arguments.work):
        failures = train_all(not_measured(runs, results), 1, arguments.launcher, note)
    summarize()  # the product may be new
    return report_failures(failures, arguments.out)


def _plan(variant: Variant, arguments: argparse.Namespace, seeds: Sequence[int]) -> list[Run]:
    refuse_own_options(variant.settings[1:], f"--variant {variant.name}")  # the first is the mode
    settings = [*arguments.set, *variant.settings]
    return [
        plan_run(variant.name, arguments.recipe, settings, seed, arguments.data, arguments.work, variant.workers, variant.shards)
        for seed in seeds
    ]  # fmt: skip


def summarize_points(points: Mapping[str, Figures]) -> Figures:
    """Medians over the seeds of every variant."""
    reached: dict[str, list[Mapping[str, float] | None]] = {}
    for point in points.values():
        reached.setdefault(point["settings"]["name"], []).append(point["reached"])
    return {"runs": [
        {"name": name, "seeds": len(found), "reached": sum(point is not None for point in found),
         "median_seconds": median_over_seeds(found, "seconds"), "median_target_words": median_over_seeds(found, "target_words")}
        for name, found in reached.items()
    ]}  # fmt: skip
