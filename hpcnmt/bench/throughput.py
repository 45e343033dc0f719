"""Words per second against workers, tau, wire, overlap and mode, with speedup over one worker and over the best synchronous baseline.

Compute is simulated by default (a sleep of --batch-s seconds a batch; engine, MPI and bytes are real); --compute real trains a recipe.
Variants of one setting are measured in turns, --rounds times; figures are medians, ratios stay inside one run.

examples:
  # on this host: simulated batches of 0.2 s, a model of 10M parameters
  hpcnmt bench throughput --out t.json --workers 1,2 --shards 1 --delay 2 --batch-s 0.2
  # a cluster of 7 virtual hosts at 1 Gbit/s, asynchronous beside synchronous training
  sudo benchmarks/virtual_cluster.sh up 7 1gbit
  hpcnmt bench throughput --out t.json --launcher "benchmarks/virtual_cluster.sh run" --network 1gbit --mode async,sync,off \\
      --workers 2,3,4,5 --shards 2 --delay 1,2,4 --batch-s 0.4 --baseline torch --baseline horovod-mpich=.venv/mpich/bin/python
  # real training on this host
  hpcnmt bench throughput --out t.json --compute real --data prepared --recipe multi30k-transformer --mode plain,async --workers 1,2
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcnmt.bench.comm import link_bytes_per_s
from hpcnmt.bench.launch import BETWEEN_HOSTS, launch
from hpcnmt.bench.options import choices, numbers
from hpcnmt.bench.results import Figures, Results
from hpcnmt.bench.throughput_program import WARMUP_S, Point, argument
from hpcnmt.bench.throughput_real import RealRuns
from hpcnmt.bench.throughput_summary import summarize

SIMULATED = ("async", "sync", "off")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--out", type=Path, required=True, help="results file; one that exists is gone on with")
    parser.add_argument("--mode", default="async", help="of async, sync, off (simulated, no communication), plain (real): comma-separated")
    parser.add_argument("--workers", default="1,2", help="numbers of workers, comma-separated")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument(
        "--shard-hosts", type=int, default=0, help="hosts that the shards share (default: one for each), see virtual_cluster.sh"
    )
    parser.add_argument("--delay", default="1", help="tau, comma-separated")
    parser.add_argument("--wire", default="fp32", help="fp32, bf16 or both, comma-separated (async)")
    parser.add_argument("--overlap", default="1", help="0, 1 or both, comma-separated (async)")
    parser.add_argument("--lockstep", default="off", help="off, on or both, comma-separated (async): updates wait for all workers")
    parser.add_argument("--straggler", default="1", help="slowness of worker 0, comma-separated: 2 takes twice the time (simulated)")
    parser.add_argument(
        "--baseline", action="append", metavar="BACKEND[-LABEL][=PYTHON]",
        help="synchronous backend: torch, or horovod, with the Python of another environment; repeatable; the best counts",
    )  # fmt: skip
    parser.add_argument("--trace", type=Path, metavar="DIR", help="write what every rank does to DIR/POINT (hpcnmt trace --run DIR/POINT)")
    parser.add_argument("--compute", choices=["simulated", "real"], default="simulated")
    parser.add_argument("--batch-s", default="0.2", help="simulated seconds of a batch, comma-separated (default 0.2)")
    parser.add_argument("--batch-words", type=int, default=2000, help="simulated target words of a batch")
    parser.add_argument("--parameters", type=float, default=10e6, help="simulated size of the model")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured seconds of a simulated run, after the warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--launcher", default="", help="command that starts ranks, followed by RANKS PROGRAM...; default: mpiexec here")
    parser.add_argument("--network", default="host", help="name of the network, for the report: 1gbit, infiniband, ...")
    parser.add_argument("--data", type=Path, help="--compute real: folder of hpcnmt prepare")
    parser.add_argument("--recipe", default="sample", help="--compute real: recipe")
    parser.add_argument("--words", type=int, default=100_000, help="--compute real: target words of a run, for each worker")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="--compute real: option of the recipe")


@dataclass(frozen=True)
class Variant:
    """A point and how it is started."""

    point: Point
    label: str = ""
    """Of a synchronous baseline, as horovod-mpich."""
    python: str = sys.executable

    @property
    def key(self) -> str:
        """Its name in the results file."""
        p = self.point
        parts = [f"sync {self.label}" if p.mode == "sync" else p.mode, f"n{p.workers}"]
        parts += [f"s{p.shards}", p.wire, f"overlap{p.overlap}"] if p.mode == "async" else []
        parts += [f"tau{p.delay}", f"c{p.batch_s:g}"]
        return " ".join(parts + ["lockstep"] * p.lockstep + ([f"straggler{p.straggler:g}"] if p.straggler != 1 else []))


def baselines(texts: list[str] | None) -> list[tuple[str, str, str]]:
    """(backend, label, Python) of every --baseline; default: torch in this environment."""
    parsed = []
    for text in texts or ["torch"]:
        label, _, python = text.partition("=")
        backend = label.split("-")[0]
        if backend not in ("torch", "horovod"):
            raise ValueError(f"found --baseline {text}, expected torch or horovod, as in horovod-mpich=.venv/mpich/bin/python")
        if python and not Path(python).is_file():
            raise ValueError(f"found no {python} of --baseline {text}, expected the Python of an environment with {backend}")
        parsed.append((backend, label, str(Path(python).absolute()) if python else sys.executable))
    return parsed


def groups(arguments: argparse.Namespace) -> Iterator[list[Variant]]:
    """The variants that are measured in turns: all modes of one tau, number of workers, seconds of a batch and straggler."""
    modes = choices(arguments.mode, SIMULATED, "mode")
    wires, overlaps = choices(arguments.wire, ("fp32", "bf16"), "wire"), choices(arguments.overlap, ("0", "1"), "overlap")
    lockstep = [text == "on" for text in choices(arguments.lockstep, ("off", "on"), "lockstep")]
    axes = (
        numbers(arguments.batch_s, float, "batch-s"), numbers(arguments.straggler, float, "straggler"),
        numbers(arguments.workers, int, "workers"), numbers(arguments.delay, int, "delay"),
    )  # fmt: skip
    for batch_s, straggler, workers, delay in itertools.product(*axes):
        if batch_s <= 0 or straggler < 1 or workers < 1 or delay < 1 or arguments.shards < 1 or arguments.rounds < 1:
            raise ValueError("expected --batch-s above 0, --straggler, --workers, --shards, --delay and --rounds of at least 1")
        base = Point(
            "off", workers, 0, delay, "fp32", 0, batch_s, arguments.batch_words, int(arguments.parameters), straggler, arguments.seconds
        )  # fmt: skip
        variants, hosts = [], arguments.shard_hosts or arguments.shards
        if "async" in modes:
            engine = replace(base, mode="async", shards=arguments.shards, shard_hosts=hosts)
            variants += [
                Variant(replace(engine, wire=wire, overlap=int(overlap), lockstep=together))
                for wire in wires for overlap in overlaps for together in lockstep
            ]  # fmt: skip
        if "sync" in modes:
            variants += [
                Variant(replace(base, mode="sync", backend=backend), label, python)
                for backend, label, python in baselines(arguments.baseline)
            ]  # fmt: skip
        if "off" in modes:
            variants.append(Variant(base))
        yield variants


def measure(variant: Variant, arguments: argparse.Namespace) -> Figures:
    """One run of a variant: rates summed and shares averaged over the workers."""
    point = variant.point
    ranks = point.workers + point.shards
    deadline_s = 120 + 3 * (WARMUP_S + point.seconds + 4 * point.delay * point.batch_s * point.straggler)
    if arguments.trace:
        point = replace(point, trace=str((arguments.trace / variant.key.replace(" ", "-")).absolute()))
    program = ["hpcnmt.bench.throughput_program", argument(point)]
    environment = {"HPCNMT_RANKS_PER_HOST": ",".join(map(str, point.ranks_per_host))} if arguments.launcher else {}
    environment |= BETWEEN_HOSTS if arguments.launcher and point.mode == "async" else {}
    output = launch(program, ranks, arguments.launcher, deadline_s, environment, variant.python)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    workers = [line for line in lines if "worker" in line]
    if len(workers) != point.workers:
        raise RuntimeError(f"found the figures of {len(workers)} workers, expected {point.workers}:\n{output}")
    rate = sum(worker["target_words_per_s"] for worker in workers)
    names = sorted({name for worker in workers for name in worker["shares"]})
    alone = bool(arguments.launcher) and all(worker["alone"] for worker in workers)  # a single rank here shares the host, too
    staleness: dict[str, int] = {}
    for shard in (line for line in lines if "shard" in line):
        for steps, count in shard["staleness"].items():
            staleness[steps] = staleness.get(steps, 0) + count
    return {
        "target_words_per_s": rate, "windows": sum(w["windows"] for w in workers),
        "seconds": statistics.mean(w["seconds"] for w in workers),
        "shares": {name: statistics.mean(w["shares"].get(name, 0.0) for w in workers) for name in names},
        "bytes_sent": sum(w["sent_per_window"] for w in workers) if alone else None,
        "bytes_received": sum(w["received_per_window"] for w in workers) if alone else None,
        "staleness": dict(sorted(staleness.items(), key=lambda item: int(item[0]))),
    }  # fmt: skip


def combine(variant: Variant, rounds: list[Figures], network: Figures) -> Figures:
    """The figures of a point from its rounds: rates are medians, everything else is that of the median round."""
    rates = [figures["target_words_per_s"] for figures in rounds]
    middle = sorted(rounds, key=lambda figures: float(figures["target_words_per_s"]))[(len(rounds) - 1) // 2]
    rate = statistics.median(rates)
    settings = asdict(variant.point) | {"backend": variant.label, "compute": "simulated"} | network
    # simulated sentences have as many source words as target words
    return middle | {
        "settings": settings, "rounds": rates, "target_words_per_s": rate, "source_words_per_s": rate, "total_words_per_s": 2 * rate,
    }  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measures what is not in the results file yet."""
    names = ("shards", "shard_hosts", "batch_words", "parameters", "seconds", "rounds", "network", "compute")
    config = {name: getattr(arguments, name) for name in names}
    if arguments.compute == "real":
        runs = RealRuns(arguments)
        return runs.measure(Results(arguments.out, "throughput", config | runs.config))
    planned = list(groups(arguments))
    results = Results(arguments.out, "throughput", config)
    network: Figures = {"network": arguments.network}
    if arguments.launcher:  # ranks of one host share memory and have no link
        network["link_bytes_per_s"] = link_bytes_per_s(arguments.launcher)
        print(f"link: {network['link_bytes_per_s'] / 1e6:.1f} MB/s each way (raw puts)", flush=True)
    for variants in planned:
        todo = [variant for variant in variants if variant.key not in results]
        rounds: dict[str, list[Figures]] = {variant.key: [] for variant in todo}
        for turn, variant in itertools.product(range(arguments.rounds), todo):
            rounds[variant.key].append(measure(variant, arguments))
            rate = rounds[variant.key][-1]["target_words_per_s"]
            print(f"{variant.key}: {rate:,.0f} target words/s (round {turn + 1} of {arguments.rounds})", flush=True)
        for variant in todo:
            results.add(variant.key, combine(variant, rounds[variant.key], network))
        results.summarize(summarize(results.points))
    print(f"wrote {arguments.out}: hpcnmt report {arguments.out} --out report.html shows it")
    return 0
