"""What checkpoints cost. `files`: saving and loading a part of some gigabytes beside dd, in the same folder.

    python benchmarks/checkpoint_cost.py files --gigabytes 2 --repeats 5 --folder /somewhere/on/the/disk --out checkpoint-files.json

Every repeat takes one figure of each kind, in turn, so that a slow disk slows them alike; ratios are taken within a repeat, and all repeats
count. Rates are in bytes of tensors per second, until everything is on the disk (fsync of files and folders; dd: conv=fsync).

    save           write_part and commit, beside dd if=/dev/zero conv=fsync
    load, cached   newest_complete and read with all checksums, beside dd of the same file to /dev/null, both from the page cache
    load, cold     the same after the page cache has been told to forget the file (posix_fadvise), both times
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS

from hpcnmt.bench.results import machine
from hpcnmt.training.checkpoint_files import Part, commit, newest_complete, part_folder, write_part

BLOCK_BYTES = 4 << 20
TENSORS = ("parameters", "first_moments", "second_moments", "average")
TARGET = 0.7


def timed(action: Callable[[], object]) -> float:
    """Seconds of `action`, begun when earlier writes are on the disk."""
    os.sync()
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def dd(*arguments: str) -> None:
    """One run of dd."""
    subprocess.run(["dd", f"bs={BLOCK_BYTES}", *arguments], check=True, capture_output=True)


def forget(path: Path) -> None:
    """Takes the pages of a file, which must be on the disk, out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def load(run: Path, part: Part) -> None:
    """What a rank does at a resume."""
    checkpoint = newest_complete(run)
    if checkpoint is None:
        raise RuntimeError("the checkpoint is not found")
    found = checkpoint.read("shard-0")
    if found.tensors.keys() != part.tensors.keys():
        raise RuntimeError("the checkpoint holds something else")


def save(run: Path, part: Part) -> None:
    """What a shard and the rank that commits do."""
    write_part(part_folder(run, 1), "shard-0", part)
    commit(run, 1, ("shard-0",), words=1)


def one_repeat(folder: Path, part: Part, size: int) -> dict[str, float]:
    """Bytes per second of every kind."""
    run, plain = folder / "run", folder / "plain"
    seconds = {"dd_write": timed(lambda: dd("if=/dev/zero", f"of={plain}", f"count={size // BLOCK_BYTES}", "conv=fsync"))}
    plain.unlink()
    seconds["save"] = timed(lambda: save(run, part))
    tensors = run / "checkpoints" / "cut-00000001" / "shard-0.safetensors"
    for name in ("cached", "cold"):
        if name == "cold":
            forget(tensors)
        seconds[f"dd_read_{name}"] = timed(lambda: dd(f"if={tensors}", "of=/dev/null"))
        if name == "cold":
            forget(tensors)
        seconds[f"load_{name}"] = timed(lambda: load(run, part))
    shutil.rmtree(run)
    return {name: size / value for name, value in seconds.items()}


def summary(rates: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the rates, and of the ratios within a repeat."""
    pairs = {"save": "dd_write", "load_cached": "dd_read_cached", "load_cold": "dd_read_cold"}
    ratios = {f"{ours}_of_{theirs}": [r[ours] / r[theirs] for r in rates] for ours, theirs in pairs.items()}
    ratios |= {f"load_{name}_of_dd_write": [r[f"load_{name}"] / r["dd_write"] for r in rates] for name in ("cached", "cold")}
    return {
        "median_bytes_per_s": {name: round(statistics.median(r[name] for r in rates)) for name in rates[0]},
        "median_ratios": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "target": TARGET,
    }


def files(arguments: argparse.Namespace) -> None:
    """Measures and writes the results."""
    count = int(arguments.gigabytes * 1e9) // len(TENSORS) // BLOCK_BYTES * BLOCK_BYTES // 4
    if count < 1:
        raise SystemExit(f"found --gigabytes {arguments.gigabytes}, expected at least {len(TENSORS) * BLOCK_BYTES / 1e9:.3f}")
    generator = torch.Generator().manual_seed(1)
    part = Part({name: torch.rand(count, generator=generator) for name in TENSORS}, {"words": 1})
    size = 4 * count * len(TENSORS)
    folder = Path(tempfile.mkdtemp(prefix="hpcnmt-checkpoint-cost-", dir=arguments.folder))
    try:
        rates = [one_repeat(folder, part, size) for _ in range(arguments.repeats)]
    finally:
        shutil.rmtree(folder)
    result = {"machine": machine(), "kind": "checkpoint-files", "bytes": size, "repeats": rates, "summary": summary(rates)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result["summary"], indent=1))
    print(f"wrote {arguments.out}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("files", help="save and load beside dd")
    command.add_argument("--gigabytes", type=float, default=2.0)
    command.add_argument("--repeats", type=int, default=5)
    command.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk that is measured (default: this folder)")
    command.add_argument("--out", type=Path, default=RESULTS / "checkpoint-files.json")
    command.set_defaults(do=files)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
