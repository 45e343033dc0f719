"""Test sentences translated by the best model of every run of an ablation, their scores, and the comparison with the baseline's.

Invariants: all files of --test are one set of sentences, told from others by a digest of the text; its translation by a run lies in the
run's folder, whole or not at all, and is not made again. Translating is done by children (`hpcnmt translate`). Used by ablation.py.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcnmt.bench.children import Child, in_parallel, said_last
from hpcnmt.bench.launch import program_environment
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.runs import Run
from hpcnmt.bench.significance import TESTED, quantiles, resampled_scores
from hpcnmt.data.textio import read_lines, read_parallel
from hpcnmt.inference.scores import corpus_scores
from hpcnmt.training.run_folder import replace_file

EXAMPLE = "--test 2016=test16.en,test16.de"
DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Sentences:
    """All test sentences."""

    names: tuple[str, ...]
    sources: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the text, references too."""
        text = "\n".join((*self.sources, *self.references))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:DIGEST_CHARACTERS]

    @property
    def identity(self) -> Figures:
        """Which sentences a score is of."""
        return {"names": list(self.names), "sentences": len(self.sources), "digest": self.digest}


def read_tests(texts: Sequence[str]) -> Sentences | None:
    """The sentences of every NAME=SOURCE,REFERENCE, joined; None without any. ValueError for anything else."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for text in texts:
        name, equals, files = text.partition("=")
        paths = files.split(",")
        if not (name and equals and len(paths) == 2 and all(paths)):
            raise ValueError(f"found --test {text!r}, expected NAME=SOURCE,REFERENCE, such as {EXAMPLE}")
        if name in pairs:
            raise ValueError(f"found --test {name} twice, expected a name of its own for each")
        pairs[name] = read_parallel(Path(paths[0]), Path(paths[1]))
    sources, references = (tuple(pair[side] for found in pairs.values() for pair in found) for side in (0, 1))
    return Sentences(tuple(pairs), sources, references) if pairs else None


def check_tested(results: Results, tests: Sentences | None) -> None:
    """ValueError when points have scores of other sentences."""
    for key, point in results.points.items():
        if tests and "test" in point and point["test"]["digest"] != tests.digest:
            names = ", ".join(point["test"]["names"])
            raise ValueError(f"{results.path} has scores of {key!r} on other sentences ({names}): give the same --test, or another --out")


def test_all(runs: Sequence[Run], tests: Sentences, results: Results, baseline: str, jobs: int) -> list[str]:
    """Notes the scores of every run in its point, and resamples it against the baseline of its seed; returns what went wrong."""
    untested = [run for run in runs if "test" not in results.points[run.key]]
    failures = _translate_all([run for run in untested if not _translation(run, tests).is_file()], tests, jobs)
    for run in untested:
        if _translation(run, tests).is_file():  # otherwise its failure has been noted
            scores, signatures = corpus_scores(_read(run, tests), tests.references)
            test = tests.identity | {"beam": run.recipe.validation.beam} | scores | signatures
            results.add(run.key, results.points[run.key] | {"test": test})
            print(f"{run.key}: test BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f}", flush=True)
    for seed in sorted({run.recipe.training.seed for run in runs}):
        _compare([run for run in runs if run.recipe.training.seed == seed], tests, results, baseline)
    return failures


def _compare(runs: Sequence[Run], tests: Sentences, results: Results, baseline: str) -> None:
    """Resamples the runs of one seed against the baseline's."""
    theirs = next((run for run in runs if run.name == baseline and _translation(run, tests).is_file()), None)
    waiting = [
        run for run in runs
        if theirs and run is not theirs and "resampled" not in results.points[run.key].get("test", {"resampled": None})
        and _translation(run, tests).is_file()
    ]  # fmt: skip
    if theirs is None or not waiting:
        return
    compared = {metric: resampled_scores(_read(theirs, tests), tests.references, metric) for metric in TESTED}
    for run in waiting:
        ours = _read(run, tests)
        samples = {metric: quantiles(resampled_scores(ours, tests.references, metric) - compared[metric]) for metric in TESTED}
        point = results.points[run.key]
        results.add(run.key, point | {"test": point["test"] | {"resampled": samples}})


def _translation(run: Run, tests: Sentences) -> Path:
    return run.folder / f"test-{tests.digest}.txt"


def _read(run: Run, tests: Sentences) -> list[str]:
    lines = list(read_lines(_translation(run, tests)))
    if len(lines) != len(tests.sources):
        raise ValueError(f"found {len(lines)} lines in {_translation(run, tests)}, expected {len(tests.sources)}: remove the file")
    return lines


def _translate_all(runs: Sequence[Run], tests: Sentences, jobs: int) -> list[str]:
    """Translates with `jobs` children at once, which share the cores."""
    for run in runs:
        if not (run.folder / "model.safetensors").is_file():
            raise ValueError(f"found no model in {run.folder}, which --test needs: give the --work of the trainings, or another --out")
    if not runs:
        return []
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    source = runs[0].folder.with_name(f"test-{tests.digest}.source")
    replace_file(source, "".join(f"{line}\n" for line in tests.sources))

    def part(run: Run) -> Path:
        return _translation(run, tests).with_suffix(".part")

    def log(run: Run) -> Path:
        return run.folder.with_name(f"{run.folder.name}.test.log")

    def start(run: Run) -> Child:
        print(f"{run.key}: translating {len(tests.sources)} sentences", flush=True)
        command = [sys.executable, "-m", "hpcnmt", "translate", "--run", str(run.folder), "--beam", str(run.recipe.validation.beam)]
        with source.open("rb") as stdin, part(run).open("wb") as out, log(run).open("wb") as errors:
            return subprocess.Popen(
                command, env=program_environment() | threads, stdin=stdin, stdout=out, stderr=errors, start_new_session=True
            )  # fmt: skip

    def over(run: Run, process: Child) -> str:
        if process.returncode:
            return said_last(f"{run.key}: translation", process, log(run))
        part(run).replace(_translation(run, tests))
        return ""

    return in_parallel(runs, jobs, start, over)
