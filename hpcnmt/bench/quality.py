"""Cross-entropy and BLEU against words for any number of logical workers, trained in virtual time.

Every point is one training of W logical workers in one process (training.mode=virtual): real gradients, exact staleness, simulated time.
So the cost of staleness for quality is measured without a cluster; multiplied with the words per second that `hpcnmt bench throughput`
measures it gives seconds to a quality (`hpcnmt bench time-to-bleu --from-quality`).

A seed is that of parameters and dropout, of the order of batches, and of the simulated clock. Runs that are complete are not trained again;
one that was cut off is trained anew. The summary has, for every W: the last cross-entropy and BLEU (mean, smallest and largest over
seeds), mean staleness, and the mean difference to W=1 over the seeds that both have.

example:
  hpcnmt bench quality multi30k-transformer --data prepared --workers 1,4,16 --seeds 1,2 --set worker.delay=2 --work runs --out quality.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcnmt.bench.children import train_all, work_folder
from hpcnmt.bench.identity import first_difference
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.runs import (
    Run,
    data_identity,
    integers,
    plan_run,
    read_curve,
    read_end,
    read_staleness,
    refuse_own_options,
)  # fmt: skip
from hpcnmt.bench.seeds import difference, last, spread, staleness_over
from hpcnmt.config import load_recipe, override
from hpcnmt.training.recipe import build_recipe

METRICS = ("cross_entropy", "bleu")
MODE = "training.mode=virtual"


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What quality and time-to-bleu share."""
    parser.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="change an option of the recipe")
    add_places(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Data, seeds and where runs and results go: of every benchmark that trains."""
    parser.add_argument("--data", type=Path, required=True, metavar="PREPARED", help="folder of hpcnmt prepare")
    parser.add_argument("--seeds", default="1", help="seeds, such as 1,2 (default 1)")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the run folders; they are kept")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results; goes on where they exist")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    add_training_arguments(parser)
    parser.add_argument("--workers", default="1,4,16,64", help="numbers of logical workers (default 1,4,16,64)")
    add_jobs(parser)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """How many runs are trained at once."""
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default 1)")


def check_jobs(jobs: int) -> None:
    """ValueError for fewer than one."""
    if jobs < 1:
        raise ValueError(f"found --jobs {jobs}, expected at least 1")


def run(arguments: argparse.Namespace) -> int:
    """Trains and notes all points; returns the exit code, 1 when a run has failed."""
    workers, seeds = integers(arguments.workers, "--workers"), integers(arguments.seeds, "--seeds")
    check_jobs(arguments.jobs)
    refuse_own_options(arguments.set, "--set")
    settings = [*arguments.set, MODE]
    runs = [
        plan_run(f"w{count}", arguments.recipe, settings, seed, arguments.data, arguments.work, count, 1)
        for count in workers for seed in seeds
    ]  # fmt: skip
    results = Results(arguments.out, "quality", configuration(arguments.recipe, arguments.set, settings, arguments.data))

    def note(run: Run) -> None:
        results.add(run.key, trained_point(run))
        results.summarize(summarize(results.points))

    with work_folder(arguments.work):
        failures = train_all(not_measured(runs, results), arguments.jobs, "", note)
    return report_failures(failures, arguments.out)


def configuration(recipe: str, chosen: Sequence[str], settings: Sequence[str], data: Path) -> Figures:
    """What all points of a results file have in common; seeds and numbers of workers may be added later.

    `chosen` are the --set options of the command, `settings` are those and what the benchmark adds.
    """
    options = asdict(build_recipe(override(load_recipe(recipe), list(settings))))
    return {"recipe": recipe, "set": list(chosen), "data": data_identity(data), "options": options}


def trained_point(run: Run) -> Figures:
    """The point of a run that has ended; says its last figures."""
    curve = read_curve(run)
    print(f"{run.key}: {curve[-1]['cross_entropy']:.4f} nats/word, BLEU {curve[-1]['bleu']:.2f}", flush=True)
    return {"settings": run.identity(), "curve": curve, "staleness": read_staleness(run), "end": read_end(run)}


def not_measured(runs: Sequence[Run], results: Results) -> list[Run]:
    """The runs without a point. ValueError when a point of that name has other settings."""
    for run in runs:
        if run.key in results and (difference := first_difference(results.points[run.key]["settings"], run.identity())):
            raise ValueError(f"{results.path} has another point {run.key!r} ({difference}): choose another --out or another name")
    return [run for run in runs if run.key not in results]


def report_failures(failures: Sequence[str], out: Path) -> int:
    """Says what went wrong; returns the exit code."""
    for failure in failures:
        sys.stderr.write(failure + "\n")
    if failures:
        sys.stderr.write(f"{len(failures)} runs failed; {out} holds the others, and the same command tries again\n")
    return 1 if failures else 0


def summarize(points: Mapping[str, Figures]) -> Figures:
    """The figures of every number of workers, from the last validation of each of its seeds."""
    points_of: dict[int, dict[int, Figures]] = {}
    for point in points.values():
        points_of.setdefault(point["settings"]["workers"], {})[point["settings"]["seed"]] = point
    rows = []
    for workers in sorted(points_of):
        seeds = points_of[workers]
        row: dict[str, Any] = {"workers": workers, "seeds": sorted(seeds)}
        for name in METRICS:
            found = last(seeds, name)
            to_one = difference(found, last(points_of.get(1, {}), name))
            row[name] = spread(list(found.values()))
            row[f"{name}_difference_to_one_worker"] = to_one and to_one["mean"]
        rows.append(row | {"mean_staleness": staleness_over(seeds)})
    return {"workers": rows}
