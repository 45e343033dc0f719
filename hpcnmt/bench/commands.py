"""`hpcnmt bench KIND ...`: the kinds of benchmark, and how one is called.

Every kind is a module of this package with `add_arguments(parser)` and `run(arguments) -> int`; its docstring is its help. Modules are
imported only when they are called.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

KINDS = {
    "throughput": "words per second against workers, tau, wire, overlap and mode; speedup over one worker and over synchronous training",
    "comm": "latency and bandwidth of push and pull beside raw Put, Get and memcpy",
    "time-to-bleu": "seconds and words until a BLEU target, over seeds",
    "quality": "cross-entropy and BLEU against words for any number of logical workers (virtual time)",
    "ablation": "a grid of training policies: quality against words and seconds, and differences to a baseline (virtual time)",
    "soak": "many ranks for minutes: memory, staleness, orderly end",
}


def bench_parser(kind: str) -> argparse.ArgumentParser:
    """The parser of one kind, with the help of its module."""
    module = importlib.import_module(f"hpcnmt.bench.{kind.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"hpcnmt bench {kind}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def bench(arguments: Sequence[str]) -> int:
    """Runs `hpcnmt bench ARGUMENTS`; returns the exit code."""
    width = max(map(len, KINDS))
    kinds = "\n".join(f"  {name:{width}}  {text}" for name, text in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="hpcnmt bench", description="Measures hpcnmt, and writes one JSON file that a run cut short goes on with.",
        epilog=f"kinds:\n{kinds}\n\n`hpcnmt bench KIND --help` explains one; `hpcnmt report` shows the results.",
        formatter_class=argparse.RawDescriptionHelpFormatter, usage="hpcnmt bench KIND [options]",
    )  # fmt: skip
    parser.add_argument("kind", choices=KINDS, metavar="KIND")
    kind = parser.parse_args(arguments[:1]).kind
    parsed = bench_parser(kind).parse_args(arguments[1:])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as Ctrl-C: what was started is ended on the way out
    try:
        result: int = parsed.run(parsed)
    except RuntimeError as error:  # a measured program failed: its own words say why, our traceback would hide them
        sys.stderr.write(f"hpcnmt bench {kind}: {error}\n")
        return 1
    return result
