"""Fuzzing of one reader guided by coverage, with atheris (pip install atheris).

    python -m tests.fuzz.guided READER [--seconds S] [--work DIR]

The bytes of one file are what atheris changes; its first byte says which file. It begins with the valid files, and keeps in DIR what
reaches new code. Ends with the failing input in the current folder (crash-...) at the first crash. Needs Linux and a Python that atheris
has a wheel for; python -m tests.fuzz needs neither.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.scratch import SCRATCH, scratch


def main() -> None:
    """The command. A child does the work, because libFuzzer ends its process without tidying up."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("reader")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    if SCRATCH not in os.environ:
        folder = scratch()
        try:
            command = [sys.executable, "-m", "tests.fuzz.guided", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=os.environ | {SCRATCH: str(folder)}, check=False).returncode)
        finally:
            shutil.rmtree(folder)
    try:
        import atheris
    except ImportError as error:
        raise SystemExit("found no atheris: pip install atheris, or use python -m tests.fuzz") from error
    with atheris.instrument_imports(include=["hpcnmt", "yaml"]):
        from tests.fuzz.inputs import Bench

        bench = Bench(arguments.reader, 1)
        bench.run(-1)  # imports what the reader needs
    _fuzz(atheris, bench, arguments.work or scratch(), arguments.seconds)


def _fuzz(atheris: Any, bench: Any, work: Path, seconds: int) -> None:
    names = list(bench.originals)
    work.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        (work / f"valid-{index}").write_bytes(bytes([index]) + bench.originals[name])

    def one(data: bytes) -> None:
        if not data:
            return
        outcome, said = bench.run_files({names[data[0] % len(names)]: data[1:]})
        if outcome not in ("ok", "refused"):
            raise RuntimeError(f"{outcome}: {said}")

    atheris.Setup([sys.argv[0], str(work), f"-max_total_time={seconds}", "-max_len=20000"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
