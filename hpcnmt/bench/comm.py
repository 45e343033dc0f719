"""Latency and bandwidth of push and pull beside raw Put, Get and memcpy of the same bytes, in turns in the same run.

A point is one size of all parameters, split over the shards, with all workers at once. In every round each worker makes
- one exchange of the engine. Push: from the first byte until data, header and flag are complete at the shard. Apply: until the worker knows
  that the shard has applied the push. Pull: from reading the version until it is found still good.
- one MPI Rput + Flush and one Rget + Flush for each shard, on the engine's own windows (Win.Allocate), while the shards only give progress.
- one copy in its own memory.
A figure is the median over the rounds of the slowest worker; GB/s count the bytes of all workers. With --busy on a shard never idles: it
updates something all the time.

Shares, medians over the rounds: push of Put = seconds of Put / seconds of the push; pull of Get likewise; exchange of raw, with one worker
and one shard that is not busy: (Put + Get) / (whole exchange - the shard's own update), so that all asking and waking counts against
the engine. Target: 0.9 each at the largest size.

examples:
  hpcnmt bench comm --out comm.json                                  # on this host
  sudo benchmarks/virtual_cluster.sh up 5 1gbit
  hpcnmt bench comm --out comm.json --launcher "benchmarks/virtual_cluster.sh run" --network 1gbit --workers 1,2,3 --shards 1,2
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcnmt.bench.comm_program import PHASES, CommPoint, argument
from hpcnmt.bench.launch import BETWEEN_HOSTS, launch
from hpcnmt.bench.options import choices, numbers
from hpcnmt.bench.results import Figures, Results

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
SHARE_OF_RAW = 0.9
LATENCY_BYTES = 64_000
SLOWEST_BYTES_PER_S = 5e6
Lines = list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--out", type=Path, required=True, help="results file; one that exists is gone on with")
    parser.add_argument("--sizes", default="4KB,1MB,10MB,40MB", help="bytes of all parameters in fp32, comma-separated")
    parser.add_argument("--workers", default="1", help="numbers of workers, comma-separated; all of them exchange at once")
    parser.add_argument("--shards", default="1", help="numbers of shards, comma-separated")
    parser.add_argument("--wire", default="fp32", help="of fp32, bf16, comma-separated: type of a push")
    parser.add_argument("--busy", default="off,on", help="of off, on, comma-separated: shards that always update something")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--launcher", default="", help="command that starts ranks, followed by RANKS PROGRAM...; default: mpiexec here")
    parser.add_argument("--network", default="host", help="name of the network, for the report: 1gbit, infiniband, ...")


def size_bytes(text: str) -> int:
    """The bytes that a size as 4KB or 40MB means. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"found --sizes {text}, expected a number with KB, MB or GB, as in 4KB,40MB")
    return int(match[1]) * UNITS[match[2]]


def size_text(count: int) -> str:
    """Inverse of `size_bytes`, with the largest unit that fits."""
    unit = next(unit for unit in reversed(UNITS) if count % UNITS[unit] == 0)
    return f"{count // UNITS[unit]}{unit}"


def key(point: CommPoint) -> str:
    """Its name in the results file."""
    return f"n{point.workers} s{point.shards} {size_text(point.bytes)} {point.wire}{' busy' if point.busy else ''}"


def planned(arguments: argparse.Namespace) -> Iterator[CommPoint]:
    """The points of one call."""
    if arguments.rounds < 1:
        raise ValueError(f"found --rounds {arguments.rounds}, expected at least 1")
    axes = (
        numbers(arguments.workers, int, "workers"), numbers(arguments.shards, int, "shards"),
        choices(arguments.wire, ("fp32", "bf16"), "wire"), choices(arguments.busy, ("off", "on"), "busy"),
        [size_bytes(size) for size in arguments.sizes.split(",")],
    )  # fmt: skip
    for workers, shards, wire, busy, size in itertools.product(*axes):
        point = CommPoint(workers, shards, size, wire, busy == "on", arguments.rounds)
        _ = point.layout  # refuses what cannot be split
        yield point


def measure(point: CommPoint, launcher: str, python: str = sys.executable) -> Lines:
    """Runs the ranks of a point; the JSON lines of its workers and shards."""
    moved = point.workers * point.bytes * (point.rounds + 1) * point.repeats * 4
    program = ["mpi4py", "-m", "hpcnmt.bench.comm_program", argument(point)]
    deadline_s = 120 + moved / SLOWEST_BYTES_PER_S
    output = launch(program, point.workers + point.shards, launcher, deadline_s, BETWEEN_HOSTS if launcher else {}, python)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(lines) != point.workers + point.shards:
        raise RuntimeError(f"found the figures of {len(lines)} ranks, expected {point.workers + point.shards}:\n{output}")
    return lines


def slowest(lines: Lines, name: str) -> list[float]:
    """Seconds of `name` of the slowest rank of every round."""
    return [max(values) for values in zip(*(line["rounds"][name] for line in lines if name in line["rounds"]), strict=True)]


def figures(point: CommPoint, lines: Lines, network: str) -> Figures:
    """The figures of a point from what its ranks printed."""
    rounds = {name: slowest(lines, name) for name in (*PHASES, "update", "raw_put", "raw_get", "memcpy")}
    median = {name: statistics.median(values) for name, values in rounds.items()}
    pushed, pulled = point.layout.wire_bytes * point.layout.parameters, 4 * point.layout.parameters
    sent = {"push": pushed, "raw_put": pushed, "pull": pulled, "raw_get": pulled, "memcpy": pulled}

    def share(raw: str, engine: str) -> float:
        return statistics.median(r / e for r, e in zip(rounds[raw], rounds[engine], strict=True))

    found: Figures = {
        "settings": {"workers": point.workers, "shards": point.shards, "bytes": point.bytes, "wire": point.wire, "busy": point.busy,
                     "network": network},
        **{f"{name}_s": seconds for name, seconds in median.items()},
        "latency_us": {name: 1e6 * seconds for name, seconds in median.items()} if point.bytes <= LATENCY_BYTES else {},
        "push_share_of_put": share("raw_put", "push"), "pull_share_of_get": share("raw_get", "pull"),
        **{f"{name}_gb_per_s": 1e-9 * point.workers * count / median[name] for name, count in sent.items()},
        "rejected_pulls": sum(line["rejected_pulls"] for line in lines if "worker" in line),
    }  # fmt: skip
    if (point.workers, point.shards, point.busy) == (1, 1, False):
        turns = zip(*(rounds[name] for name in ("raw_put", "raw_get", "exchange", "update")), strict=True)
        found["exchange_share_of_raw"] = statistics.median((put + get) / (exchange - update) for put, get, exchange, update in turns)
    return found


def summarize(points: dict[str, Figures]) -> Figures:
    """Whether the engine reaches its share of raw MPI: one worker, one shard that is not busy, the largest size of each wire."""
    alone = [found for found in points.values() if "exchange_share_of_raw" in found]
    checks = []
    for wire in dict.fromkeys(found["settings"]["wire"] for found in alone):
        largest = max((f for f in alone if f["settings"]["wire"] == wire), key=lambda f: int(f["settings"]["bytes"]))
        name = f"{size_text(largest['settings']['bytes'])} {wire}"
        for what, field in (
            (f"bandwidth of push / raw Put, {name}", "push_share_of_put"),
            (f"bandwidth of pull / raw Get, {name}", "pull_share_of_get"),
            (f"raw Put + Get / whole exchange without the update, {name}", "exchange_share_of_raw"),
        ):
            checks.append({"what": what, "measured": largest[field], "target": SHARE_OF_RAW, "met": largest[field] >= SHARE_OF_RAW})
    return {"checks": checks}


def run(arguments: argparse.Namespace) -> int:
    """Measures what is not in the results file yet."""
    points = list(planned(arguments))
    results = Results(arguments.out, "comm", {"rounds": arguments.rounds, "network": arguments.network})
    for point in points:
        if key(point) in results:
            continue
        found = figures(point, measure(point, arguments.launcher), arguments.network)
        results.add(key(point), found)
        results.summarize(summarize(results.points))
        shares = f"{found['push_share_of_put']:.0%} of Put, pull {found['pull_share_of_get']:.0%} of Get"
        print(f"{key(point)}: push {1e3 * found['push_s']:.2f} ms, {shares} {1e3 * found['pull_s']:.2f} ms", flush=True)
    print(f"wrote {arguments.out}: hpcnmt report {arguments.out} --out report.html shows it")
    return 0


def link_bytes_per_s(launcher: str, megabytes: float = 40, python: str = sys.executable) -> float:
    """Bandwidth of raw Rput + Flush between two ranks that `launcher` starts: median of 5 transfers after a warm-up."""
    point = CommPoint(1, 1, 4 * int(megabytes * 1e6 / 4), "fp32", False, rounds=5, raw_only=True)
    return point.bytes / statistics.median(slowest(measure(point, launcher, python), "raw_put"))
