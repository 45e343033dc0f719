"""Many real ranks for minutes: is memory flat, staleness as predicted, every push applied once, and the end orderly?

Workers and shards are MPI ranks with the real engine; compute is a short sleep with some spread and a cheap gradient, so that many ranks
fit on few cores. Checked at the end (exit code 1 when one is not met):
- memory: for each rank the median resident memory over the last half of the time is less than 5 % above that over the first quarter
  (the first tenth of the time, in which buffers are touched for the first time, is not sampled);
- staleness: the mean is within 15 % (or 0.15, if that is more) of N-1 with overlap 0 and of 2N-1 with overlap 1, for N workers;
- every push of every worker was applied exactly once on every shard, and all shards published the same consistent cuts;
- all ranks ended with exit code 0, and no shared-memory segment that they mapped is left in /dev/shm of this host.

--launcher starts the ranks: a command to which RANKS PROGRAM... is appended, such as 'srun -n'. The folder of --out must be seen by all.

example:
  hpcnmt bench soak --workers 12 --shards 4 --seconds 600 --out soak.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcnmt.bench.launch import launch
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.runs import mean_staleness
from hpcnmt.bench.soak_program import WARM_UP_SHARE, SoakConfig

LARGEST_GROWTH = 0.05
STALENESS_TOLERANCE = 0.15
STARTING_S = 240.0
"""What start and end of all ranks may take besides the soak."""
Report = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--workers", type=int, default=SoakConfig.workers, help=f"default {SoakConfig.workers}")
    parser.add_argument("--shards", type=int, default=SoakConfig.shards, help=f"default {SoakConfig.shards}")
    parser.add_argument("--parameters", type=int, default=SoakConfig.parameters, help=f"default {SoakConfig.parameters}")
    parser.add_argument("--seconds", type=float, default=SoakConfig.seconds, help=f"default {SoakConfig.seconds:.0f}")
    parser.add_argument("--batch-s", type=float, default=SoakConfig.batch_s, help=f"mean time of a batch (default {SoakConfig.batch_s})")
    parser.add_argument("--overlap", type=int, default=SoakConfig.overlap, choices=(0, 1), help=f"default {SoakConfig.overlap}")
    parser.add_argument("--launcher", default="", help="starts ranks, such as 'srun -n' (default: mpiexec on this host)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results; goes on where they exist")


def run(arguments: argparse.Namespace) -> int:
    """Measures the one point, unless the file has it; returns 1 when a check is not met."""
    names = ("workers", "shards", "parameters", "seconds", "batch_s", "overlap")
    config = SoakConfig(**{name: getattr(arguments, name) for name in names})
    key = f"w{config.workers} s{config.shards} overlap{config.overlap}"
    common = {name: value for name, value in asdict(config).items() if name not in ("workers", "shards", "overlap")}
    results = Results(arguments.out, "soak", common | {"launcher": arguments.launcher})
    if key not in results:
        reports, left = soak(config, arguments.launcher, arguments.out.parent)
        results.add(key, figures(config, reports, left))
    summary = [check for key in results.points for check in checks(key, results.points[key])]
    results.summarize({"checks": summary})
    for check in summary:
        print(f"{'met' if check['met'] else 'NOT MET'}: {check['what']}: {check['measured']:.4g}, target {check['target']}")
    return 0 if all(check["met"] for check in summary) else 1


def soak(config: SoakConfig, launcher: str, place: Path) -> tuple[list[Report], list[str]]:
    """Runs the ranks; returns their reports in order, and the segments that they have left in /dev/shm. RuntimeError when a rank fails."""
    ranks = config.workers + config.shards
    with tempfile.TemporaryDirectory(prefix=".soak-", dir=place.absolute()) as name:
        folder = Path(name)
        (folder / "soak.json").write_text(json.dumps(asdict(config)), "utf-8")
        launch(["mpi4py", "-m", "hpcnmt.bench.soak_program", name], ranks, launcher, config.seconds + STARTING_S)
        reports = [json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in range(ranks)]
    segments = sorted({segment for report in reports for segment in report["segments"]})
    return reports, [segment for segment in segments if Path(segment).exists()]


def figures(config: SoakConfig, reports: Sequence[Report], left: Sequence[str]) -> Figures:
    """The point: what the ranks of one soak have reported."""
    workers, shards = reports[: config.workers], reports[config.workers :]
    samples = [report["rss_mb"] for report in reports]
    counts: Counter[int] = Counter()
    for shard in shards:
        counts.update({int(key): count for key, count in shard["staleness"].items()})
    staleness = {str(key): counts[key] for key in sorted(counts)}
    return {
        "settings": asdict(config),
        "memory": [
            {"seconds": round(WARM_UP_SHARE * config.seconds + index * config.sample_s, 2), "rss_mb": list(sizes)}
            for index, sizes in enumerate(zip(*samples, strict=False))
        ],
        "growth_share": max(map(growth, samples)), "windows": sum(worker["windows"] for worker in workers),
        "dropped_windows": sum(worker["dropped"] for worker in workers),
        "rejected_pulls": sum(worker["rejected_pulls"] for worker in workers), "staleness": staleness,
        "mean_staleness": mean_staleness(staleness), "expected_staleness": expected_staleness(config.workers, config.overlap),
        "wrongly_applied": wrongly_applied(workers, shards), "cuts": [number for _, number in shards[0]["cuts"]],
        "different_cuts": sum(shard["cuts"] != shards[0]["cuts"] for shard in shards),
        "segments_left": list(left), "end": "segments left" if left else "orderly",
    }  # fmt: skip


def growth(rss_mb: Sequence[float]) -> float:
    """Median over the last half against that over the first quarter, less one."""
    count = len(rss_mb)
    if count < 4:
        raise RuntimeError(f"found {count} samples of memory, expected at least 4: raise --seconds")
    return statistics.median(rss_mb[count // 2 :]) / statistics.median(rss_mb[: count // 4]) - 1.0


def expected_staleness(workers: int, overlap: int) -> float:
    """Updates of others that pass during a window, in the mean; with overlap its gradient waits for one window more."""
    return 2.0 * workers - 1.0 if overlap else workers - 1.0


def wrongly_applied(workers: Sequence[Report], shards: Sequence[Report]) -> int:
    """Pushes that any shard has missed or applied more than once."""
    pushed = [worker["windows"] for worker in workers]
    return sum(
        shard["twice"] + sum(abs(a - b) for a, b in zip(shard["applied"], pushed, strict=True)) + abs(shard["version"] - sum(pushed))
        for shard in shards
    )


def checks(key: str, point: Mapping[str, Any]) -> list[Figures]:
    """What was to be met, in the fields of a summary."""
    expected, staleness = point["expected_staleness"], point["mean_staleness"]
    tolerance = STALENESS_TOLERANCE * max(expected, 1.0)
    nothing = {"pushes missed or applied twice": point["wrongly_applied"], "shards with other cuts": point["different_cuts"],
               "shared-memory segments left": len(point["segments_left"])}  # fmt: skip
    return [
        {"what": f"{key}: growth of memory, largest of all ranks", "measured": point["growth_share"], "target": LARGEST_GROWTH,
         "met": point["growth_share"] < LARGEST_GROWTH},
        {"what": f"{key}: mean staleness", "measured": staleness, "target": [expected - tolerance, expected + tolerance],
         "met": abs(staleness - expected) <= tolerance},
        *({"what": f"{key}: {what}", "measured": found, "target": 0, "met": found == 0} for what, found in nothing.items()),
    ]  # fmt: skip
