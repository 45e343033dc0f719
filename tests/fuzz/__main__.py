"""Feeds changed valid files and random bytes to every reader of outside input, in processes of their own.

    python -m tests.fuzz                                   # 1,000 inputs to each reader
    python -m tests.fuzz --inputs 100000 --out fuzz.json   # goes on where fuzz.json stopped
    python -m tests.fuzz --seconds 60 recipe checkpoint
    python -m tests.fuzz --show checkpoint 4711 --folder /tmp/x   # writes that input and reads it

A crash is anything but success or a refusal of one line; a process that dies (a segmentation fault) or stands still is a crash or a hang
too: its input is counted, its files are saved, and the next process goes on behind it. Exit code 1 when there was any.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import Bench
from tests.fuzz.readers import READERS
from tests.fuzz.samples import remove_prepared
from tests.fuzz.scratch import SCRATCH, scratch

ROOT = Path(__file__).resolve().parents[2]
STANDS_STILL_S = 180.0
"""Without a finished input for so long a process is killed: its alarm, in processor time, cannot see a wait."""
MOST_FAILURES = 200
MOST_A_PROCESS = 5000
"""Inputs of one process; then --out is written."""
FORMAT = 1


@dataclass
class Tally:
    """What is known of one reader; next: the first input that was not read."""

    inputs: int = 0
    ok: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    cpu_s: float = 0.0
    next: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, counts: Counter[str], cpu_s: float) -> None:
        """Inputs of one process."""
        self.inputs += counts.total()
        self.ok += counts["ok"]
        self.refused += counts["refused"]
        self.hangs += counts["hang"]
        self.crashes += counts.total() - counts["ok"] - counts["refused"] - counts["hang"]
        self.cpu_s += cpu_s

    def fail(self, number: int, outcome: str, said: str) -> None:
        """Notes a failure, its last lines only."""
        if len(self.failures) < MOST_FAILURES:
            self.failures.append({"input": number, "outcome": outcome, "said": said.strip().splitlines()[-3:]})


class Fuzzer:
    """All readers of one command."""

    def __init__(self, seed: int, save: Path | None, out: Path | None) -> None:
        self.seed, self.save, self.out, self.tallies = seed, save, out, _read(out, seed)
        self.lock = threading.Lock()

    def fuzz(self, reader: str, inputs: int, seconds: float) -> None:
        """Inputs next, next + 1, ... until so many are read, or the seconds are over."""
        tally, until_s = self.tallies[reader], time.monotonic() + seconds
        while tally.next < inputs and time.monotonic() < until_s:
            self._one_process(reader, tally, min(inputs, tally.next + MOST_A_PROCESS), max(until_s - time.monotonic(), 0.1))
            if self.out is not None:
                with self.lock:
                    _write(self.out, self.seed, self.tallies)

    def _one_process(self, reader: str, tally: Tally, inputs: int, seconds: float) -> None:
        folder = scratch()  # the process may not live to remove what it has made there
        board = folder / "progress"
        board.write_bytes(struct.pack("<q", -1))
        first = tally.next
        command = [sys.executable, "-m", "tests.fuzz.worker", reader, *map(str, (self.seed, first, inputs - first, seconds, board))]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", SCRATCH: str(folder)}
        counts, cpu_s, done = Counter[str](), 0.0, first
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
            watch = threading.Thread(target=_kill_when_still, args=(process, board), daemon=True)
            watch.start()
            if process.stdout is None or process.stderr is None:
                raise RuntimeError("a pipe is missing")
            for line in process.stdout:
                record = json.loads(line)
                if "failure" in record:
                    tally.fail(record["failure"], record["outcome"], record["said"])
                    self._keep(reader, record["failure"], record["said"])
                else:
                    counts, cpu_s, done = Counter(record["counts"]), record["cpu_s"], record["next"]
            errors = process.stderr.read()
        code, last = process.returncode, struct.unpack("<q", board.read_bytes())[0]
        shutil.rmtree(folder)
        if code != 0:
            if last < first:
                raise RuntimeError(f"the process for {reader} ended with {code} before its first input:\n{errors}")
            how = "hang" if code == -9 else f"process ended with {code}"
            counts["ok"] += last - done  # between the last report and the end
            counts[how] += 1
            tally.fail(last, how, errors)
            self._keep(reader, last, f"{how}\n{errors}")
            done = last + 1
        with self.lock:
            tally.add(counts, cpu_s)
            tally.next = done

    def _keep(self, reader: str, number: int, said: str) -> None:
        if self.save is None:
            return
        bench = Bench(reader, self.seed)
        for name, content in bench.make(number).items():
            path = self.save / f"{reader}-{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (self.save / f"{reader}-{number}.txt").write_text(said, "utf-8", "replace")
        bench.close()


def _kill_when_still(process: subprocess.Popen[str], board: Path) -> None:
    seen, since_s = b"", time.monotonic()
    while process.poll() is None:
        time.sleep(1.0)
        found = board.read_bytes() if board.exists() else b""
        if found != seen:
            seen, since_s = found, time.monotonic()
        elif time.monotonic() - since_s > STANDS_STILL_S:
            process.kill()


def _read(out: Path | None, seed: int) -> dict[str, Tally]:
    """What `out` holds of earlier runs with the same seed."""
    tallies = {name: Tally() for name in READERS}
    if out is not None and out.exists():
        content = json.loads(out.read_text("utf-8"))
        if content["format"] != FORMAT or content["seed"] != seed:
            raise ValueError(f"{out} is of another seed or version: choose another --out")
        tallies |= {name: Tally(**entry) for name, entry in content["readers"].items() if name in READERS}
    return tallies


def _write(out: Path, seed: int, tallies: dict[str, Tally]) -> None:
    from hpcnmt.bench.results import machine

    readers = {name: asdict(tally) for name, tally in tallies.items() if tally.inputs}
    total = {name: sum(entry[name] for entry in readers.values()) for name in ("inputs", "crashes", "hangs")}
    content = {"format": FORMAT, "kind": "fuzz", "machine": machine(), "seed": seed, "total": total, "readers": readers}
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    temporary.replace(out)


def _show(reader: str, number: int, seed: int, folder: Path | None) -> int:
    bench = Bench(reader, seed)
    for name, content in bench.make(number).items():
        print(f"{name}: {content[:2000]!r}")
        if folder is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    outcome, said = bench.run(number)
    print(outcome, said, sep="\n")
    bench.close()
    remove_prepared()
    return int(outcome not in ("ok", "refused"))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--inputs", type=int, help="for each reader, those of earlier runs in --out included (default 1000)")
    parser.add_argument("--seconds", type=float, help="for each reader")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="folder for the inputs that fail")
    parser.add_argument("--out", type=Path, help="results, JSON")
    parser.add_argument("--show", nargs=2, metavar=("READER", "NUMBER"), help="one input: its files, and what becomes of it")
    parser.add_argument("--folder", type=Path, help="with --show: where to write the files")
    arguments = parser.parse_args()
    if arguments.show:
        return _show(arguments.show[0], int(arguments.show[1]), arguments.seed, arguments.folder)
    if unknown := [name for name in arguments.readers if name not in READERS]:
        parser.error(f"found the reader {unknown[0]!r}, expected one of {', '.join(READERS)}")
    chosen = arguments.readers or list(READERS)
    inputs = arguments.inputs or (10**12 if arguments.seconds else 1000)
    fuzzer = Fuzzer(arguments.seed, arguments.save, arguments.out)
    failed = False

    def one(name: str) -> None:
        fuzzer.fuzz(name, inputs, arguments.seconds or float("inf"))
        tally = fuzzer.tallies[name]
        rate = tally.inputs / tally.cpu_s if tally.cpu_s else 0.0
        print(
            f"{name:12} {tally.inputs:8} inputs, {tally.refused / max(tally.inputs, 1):4.0%} refused, {tally.crashes} crashes, "
            f"{tally.hangs} hangs, {rate:.0f} inputs/s", flush=True,
        )  # fmt: skip

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, chosen))
    remove_prepared()
    for name in chosen:
        tally = fuzzer.tallies[name]
        failed |= bool(tally.crashes or tally.hangs)
        for failure in tally.failures[:10]:
            print(f"{name} {failure['input']}: {failure['outcome']}: {' | '.join(failure['said'])}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
