"""A grid of training policies x seeds with the same words each: what does a policy reach, how soon, and how far is it from the baseline?

GRID.yaml names a recipe, options of all policies, the baseline and the policies (docs/benchmarks.md). Each policy and seed is one
training in one process: in virtual time (W logical workers, exact staleness), plain, or sync-equivalent (what W synchronous workers
compute, as one process with windows of W * tau batches). Runs that are complete are not trained again; one that was cut off is trained
anew. The summary has, for every policy: the last cross-entropy, BLEU and chrF (mean, smallest and largest over seeds), the difference to
the baseline over common seeds with its 95 % interval, the median words to a target (mean of 3 validations), and mean staleness.

--from-throughput (results of `bench throughput` with simulated compute, one file for each network) adds seconds to the target =
words / words per second, and their ratio to the baseline's: predictions for the cluster that the simulation stands for.

--test NAME=SOURCE,REFERENCE (repeatable: all files become one set of sentences) translates them with the best model of every run, with
the beam of the recipe's validation: BLEU and chrF of each run, and paired bootstrap resampling (sacreBLEU's) of every policy against the
baseline, seed by seed. It can be asked for later; nothing is translated twice.

examples:
  hpcnmt bench ablation benchmarks/grids/multi30k-transformer-small.yaml --data prepared --seeds 1,2,3 --jobs 2 \\
      --work runs --out ablation.json
  # the same grid with seconds at two network speeds: nothing is trained again
  hpcnmt bench ablation benchmarks/grids/multi30k-transformer-small.yaml --data prepared --seeds 1,2,3 --work runs --out ablation.json \\
      --from-throughput throughput-1gbit.json --from-throughput throughput-10gbit.json
  # ... and with test sentences
  hpcnmt bench ablation GRID.yaml --data prepared --seeds 1,2,3 --work runs --out ablation.json --test 2016=flickr16.en,flickr16.de
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcnmt.bench.ablation_summary import summarize, unequal_trials, without_rate
from hpcnmt.bench.children import train_all, work_folder
from hpcnmt.bench.grid import Grid, read_grid
from hpcnmt.bench.quality import add_jobs, add_places, check_jobs, configuration, not_measured, report_failures, trained_point
from hpcnmt.bench.rates import read_columns
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.runs import Run, integers
from hpcnmt.bench.translations import check_tested, read_tests, test_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="the policies, see docs/benchmarks.md")
    add_places(parser)
    add_jobs(parser)
    parser.add_argument(
        "--from-throughput", type=Path, action="append", default=[], metavar="FILE",
        help="results of hpcnmt bench throughput with simulated compute; repeatable, one for each network",
    )  # fmt: skip
    parser.add_argument(
        "--test", action="append", default=[], metavar="NAME=SOURCE,REFERENCE",
        help="sentences to translate with every best model; repeatable, all are joined",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Trains and notes all points; returns the exit code, 1 when a run has failed."""
    check_jobs(arguments.jobs)
    grid, seeds = read_grid(arguments.grid), integers(arguments.seeds, "--seeds")
    columns, tests = read_columns(arguments.from_throughput), read_tests(arguments.test)
    runs = [grid.plan(name, seed, arguments.data, arguments.work) for seed in seeds for name in grid.policies]  # policies in turns
    results = Results(arguments.out, "ablation", grid_configuration(grid, arguments.data))
    check_tested(results, tests)

    def note_summary() -> Figures:
        summary = summarize(results.points, grid, columns)
        results.summarize(summary)
        return summary

    def note(run: Run) -> None:
        results.add(run.key, trained_point(run))
        note_summary()

    with work_folder(arguments.work):
        failures = train_all(not_measured(runs, results), arguments.jobs, "", note)
        if tests:
            trained = [run for run in runs if run.key in results]
            failures += test_all(trained, tests, results, grid.baseline, arguments.jobs)
    summary = note_summary()  # target and rates may be new
    if uneven := unequal_trials(summary):
        print(uneven, flush=True)
    if missing := without_rate(summary, columns):
        print(f"no words per second of the same setting, and so no seconds: {', '.join(missing)}", flush=True)
    return report_failures(failures, arguments.out)


def grid_configuration(grid: Grid, data: Path) -> Figures:
    """What all points of a results file have in common: policies, seeds and a target may be added later."""
    return {"baseline": grid.baseline} | configuration(grid.recipe, grid.set, grid.settings(grid.baseline), data)
