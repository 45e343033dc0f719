"""A process that reads inputs of one reader: python -m tests.fuzz.worker READER SEED FIRST COUNT SECONDS PROGRESS.

PROGRESS is a file: the number of the input in hand (8 bytes), so that whoever waits knows what killed this process. What is found goes
to standard output, a JSON record a line: counts, and every failure. Started by __main__.py.
"""

from __future__ import annotations

import collections
import json
import mmap
import os
import resource
import struct
import sys
import time
from pathlib import Path

from tests.fuzz import samples
from tests.fuzz.inputs import Bench

MEMORY_BYTES = 6 << 30
"""Of address space: a reader that believes in a size of 10^12 fails here instead of taking the machine's memory."""
REPORT_S = 1.0


def main(arguments: list[str]) -> None:
    """Reads inputs until there are no more or the time is over."""
    reader, (seed, first, count), seconds, progress = arguments[0], map(int, arguments[1:4]), float(arguments[4]), Path(arguments[5])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bench = Bench(reader, seed)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C++ say much of bad files
    try:
        outcome, said = bench.run(-1)
        if outcome != "ok":
            raise RuntimeError(f"the valid files of {reader} are refused: {said}")
        with progress.open("r+b") as stream, mmap.mmap(stream.fileno(), 8) as board:
            _read_all(bench, range(first, first + count), time.monotonic() + seconds, board, out)
    finally:
        bench.close()
        samples.remove_prepared()


def _read_all(bench: Bench, numbers: range, until_s: float, board: mmap.mmap, out: object) -> None:
    counts: collections.Counter[str] = collections.Counter()
    begin_s, next_report_s = time.process_time(), 0.0

    def report(record: dict[str, object]) -> None:
        print(json.dumps(record), file=out, flush=True)  # type: ignore[call-overload]

    for number in numbers:
        board[:] = struct.pack("<q", number)
        outcome, said = bench.run(number)
        counts[outcome] += 1
        if outcome not in ("ok", "refused"):
            report({"failure": number, "outcome": outcome, "said": said})
        now_s = time.monotonic()
        if now_s >= next_report_s or number == numbers[-1] or now_s > until_s:
            report({"counts": counts, "next": number + 1, "cpu_s": time.process_time() - begin_s})
            next_report_s = now_s + REPORT_S
        if now_s > until_s:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
