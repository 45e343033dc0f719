"""`hpcnmt bench` quality, ablation, time-to-bleu and soak as whole commands on a tiny corpus: figures, going on after a cut, good end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, hpcnmt

pytestmark = pytest.mark.system  # on MPICH: interrupted under Open MPI, a rank was seen to outlive its launcher
ROOT = Path(__file__).parents[2]
SETS = [part for setting in SMALL for part in ("--set", setting)]


def command(folder: Path, kind: str, *options: object, sets: list[str] = SETS) -> list[str]:
    places = ("--data", folder / "prepared", "--work", folder / kind, "--out", folder / f"{kind}.json")
    return [str(part) for part in ("bench", kind, "sample", *places, *options, *sets)]


def results(folder: Path, kind: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text())
    return content


def test_quality_trains_what_is_missing_and_nothing_twice(folder: Path) -> None:
    done = hpcnmt(*command(folder, "quality", "--workers", "1,2", "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    found = results(folder, "quality")
    one, two = found["summary"]["workers"]
    assert (one["mean_staleness"], one["bleu_difference_to_one_worker"]) == (0.0, 0.0) and 0.5 < two["mean_staleness"] < 1.5
    curve = found["points"]["w2 seed1"]["curve"]
    assert curve[-1]["cross_entropy"] < curve[0]["cross_entropy"] < 8 and curve[-1]["simulated_s"] > curve[0]["simulated_s"] > 0

    (folder / "quality.json").unlink()
    cut = folder / "quality" / "w2-seed1" / "metrics.jsonl"
    cut.write_text("".join(line + "\n" for line in cut.read_text().splitlines()[:2]))
    done = hpcnmt(*command(folder, "quality", "--workers", "1,2"))
    assert done.returncode == 0, done.stderr
    assert "w2 seed1: training" in done.stdout and "w1 seed1: training" not in done.stdout
    again = results(folder, "quality")
    assert again["points"]["w1 seed1"] == found["points"]["w1 seed1"]
    assert again["points"]["w2 seed1"]["curve"] == curve, "virtual time is reproducible"


def test_an_ablation_goes_on_with_seeds_tests_and_rates(folder: Path) -> None:
    grid = folder / "grid.yaml"
    policies = "{slow: {workers: 2}, momentum: {workers: 2, set: [optimizer.beta1=0.9]}, sync: {workers: 2, mode: sync-equivalent}}"
    grid.write_text(f"recipe: sample\nbaseline: slow\nset: {json.dumps([*SMALL, 'clock.batch_s=0.3'])}\npolicies: {policies}\n")

    def ablation(*options: object, out: str = "ablation") -> subprocess.CompletedProcess[str]:
        places = ("--data", folder / "prepared", "--work", folder / "ablation", "--out", folder / f"{out}.json")
        return hpcnmt("bench", "ablation", grid, *places, "--jobs", 2, *options)

    done = ablation("--seeds", "1")
    assert done.returncode == 0, done.stderr
    first = results(folder, "ablation")
    assert [row["name"] for row in first["summary"]["policies"]] == ["slow", "momentum", "sync"]
    assert first["points"]["sync seed1"]["settings"]["delay"] == 1 and first["points"]["sync seed1"]["staleness"] == {}

    settings = {"mode": "async", "workers": 2, "delay": 1, "overlap": 0, "wire": "fp32", "compute": "simulated", "batch_s": 0.3,
                "batch_words": 500, "parameters": 1000, "network": "1gbit"}  # fmt: skip
    rates = {"format": 1, "kind": "throughput", "config": {}, "points": {"a": {"settings": settings, "target_words_per_s": 500.0}}}
    (folder / "rates.json").write_text(json.dumps(rates))
    tests = [part for i in (1, 2) for part in ("--test", f"t{i}={folder / 'text' / 'test.src'},{folder / 'text' / 'test.trg'}")]
    done = ablation("--seeds", "1,2", *tests, "--from-throughput", folder / "rates.json")
    assert done.returncode == 0, done.stderr
    assert "seed1: training" not in done.stdout and done.stdout.count("seed2: training") == 3
    assert done.stdout.count("translating 40 sentences") == 6 and "so no seconds: sync (1gbit" in done.stdout
    found = results(folder, "ablation")
    slow, momentum, _ = found["summary"]["policies"]
    assert slow["words_to_cross_entropy"] is not None and slow["seeds"] == [1, 2] and momentum["cross_entropy_difference"]["seeds"] == 2
    assert slow["test"]["sentences"] == 40 and len(momentum["test"]["bleu_difference"]["resampled"]) == 2
    seconds = {entry["name"]: entry["seconds_to_cross_entropy"] for entry in found["summary"]["seconds"]}
    assert seconds["slow"] == slow["words_to_cross_entropy"] / 500 and set(seconds) == {"slow", "momentum"}
    assert all(found["points"][key]["curve"] == point["curve"] for key, point in first["points"].items())

    again = ablation("--seeds", "1,2", *tests, out="again")  # the folders of the runs hold everything
    assert again.returncode == 0 and ": training" not in again.stdout and "translating" not in again.stdout, again.stderr
    assert results(folder, "again")["points"] == found["points"]
    other = ablation("--seeds", "1", *tests[:2])
    assert other.returncode == 2 and "on other sentences" in other.stderr and other.stderr.count("\n") == 1
    grid.write_text(grid.read_text().replace("beta1=0.9", "beta1=0.8"))
    changed = ablation("--seeds", "1")
    assert changed.returncode == 2 and "has another point 'momentum seed1' (set: found" in changed.stderr, changed.stderr
    assert changed.stderr.count("\n") == 1
    grid.write_text(grid.read_text().replace("baseline: slow", "baseline: sync"))
    assert "exists with another config (baseline" in ablation("--seeds", "1").stderr


def test_time_to_bleu_runs_variants_and_compares_them_with_the_product(folder: Path) -> None:
    done = hpcnmt(*command(folder, "quality", "--workers", "1,2"))
    assert done.returncode == 0, done.stderr
    quality = results(folder, "quality")
    parameters = quality["points"]["w2 seed1"]["settings"]["parameters"]
    settings = {"mode": "async", "workers": 2, "shards": 1, "delay": 1, "wire": "fp32", "overlap": 0, "parameters": parameters}
    point = {"settings": settings | {"compute": "real"}, "target_words_per_s": 1000.0}
    throughput = {"format": 1, "kind": "throughput", "machine": {}, "config": {}, "points": {"async n2": point}, "summary": {}}
    (folder / "throughput.json").write_text(json.dumps(throughput))
    files = ("--from-quality", folder / "quality.json", "--from-throughput", folder / "throughput.json")
    variants = ("--variant", "one:mode=plain,optimizer.beta1=0.9", "--variant", "two:mode=async,workers=2,shards=1")
    dense = [*SETS, "--set", "validation.every_words=3000"]
    done = hpcnmt(*command(folder, "time-to-bleu", "--bleu", "99", *variants, *files, sets=dense))
    assert done.returncode == 2 and "fit no variant" in done.stderr and "every_words" in done.stderr, done.stderr
    done = hpcnmt(*command(folder, "time-to-bleu", "--bleu", "99", *variants, *files))
    assert done.returncode == 0, done.stderr
    found = results(folder, "time-to-bleu")
    assert [(row["name"], row["seeds"], row["reached"]) for row in found["summary"]["runs"]] == [("one", 1, 0), ("two", 1, 0)]
    assert [(row["name"], row["predicted_seconds"]) for row in found["summary"]["product"]] == [("two", None)]
    assert found["points"]["one seed1"]["staleness"] == {} and sum(found["points"]["two seed1"]["staleness"].values()) > 10
    for point in found["points"].values():
        seconds = [p["seconds"] for p in point["curve"]]
        assert seconds == sorted(seconds) and seconds[0] > 0


def test_an_interruption_leaves_valid_results_and_no_process(folder: Path) -> None:
    sets = [*SETS, "--set", "training.max_target_words=100000000"]
    arguments = command(folder, "time-to-bleu", "--bleu", "99", "--variant", "long:mode=async,workers=2,shards=1", sets=sets)
    arguments[arguments.index("--out") + 1] = str(folder / "interrupted.json")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "hpcnmt", *arguments], env=environment, start_new_session=True)
    try:
        limit = time.monotonic() + 90
        while not (folder / "time-to-bleu" / "long-seed1" / "metrics.jsonl").exists():
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.2)
        assert len(processes(folder)) > 3  # the benchmark, the launcher and its ranks
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        limit = time.monotonic() + 30
        while processes(folder):
            assert time.monotonic() < limit, processes(folder)
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends what it has started
            process.wait(timeout=60)
    assert results(folder, "interrupted")["points"] == {}


def processes(folder: Path) -> list[str]:
    """Command lines of the processes that work in `folder`."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_short_soak_ends_in_good_order(folder: Path, overlap: int) -> None:
    out = folder / "soak.json"
    flags = ("--workers", 2, "--shards", 1, "--parameters", 20000, "--seconds", 4, "--batch-s", 0.05, "--overlap", overlap, "--out", out)
    done = hpcnmt("bench", "soak", *flags)
    point = results(folder, "soak")["points"][f"w2 s1 overlap{overlap}"]
    assert point["wrongly_applied"] == point["different_cuts"] == 0 and point["end"] == "orderly", done.stdout + done.stderr
    assert sum(point["staleness"].values()) == point["windows"] > 0 and len(point["cuts"]) > 1
    assert len(point["memory"]) > 50 and all(len(sample["rss_mb"]) == 3 for sample in point["memory"])
    unmet = [line for line in done.stdout.splitlines() if line.startswith("NOT MET")]
    assert done.returncode == bool(unmet), done.stdout + done.stderr
