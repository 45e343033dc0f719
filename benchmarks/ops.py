"""GB/s of the local step and the shard step, beside plain copy loops, the best torch sequence and the unfused reference.

    python benchmarks/ops.py [--sizes 1e5,1e6,1e7,1e8,2.5e8] [--rounds 9] [--threads 2] [--device cpu|cuda] [--name ops-cpu]

All variants of one size run in turns in every round on the same memory; figures are medians over rounds, ratios are medians of ratios
within a round. Bytes are those that a fused kernel must move (docs/kernels.md), for every variant. Gradients are fresh random numbers. The
copy loops are stream_copy.cpp (CPU only); on a GPU the yardstick is the device's copy. The torch sequence does no division by words.
Writes results/NAME.json and docs/NAME.png.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from common import ROOT, write_result
from torch import Tensor

from hpcnmt import ops
from hpcnmt.ops import reference

matplotlib.use("Agg")
ADAM = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.98, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False}
BYTES = {"local": 40.0, "shard": 36.0, "shard_bf16": 34.0, "copy": 8.0}
TITLES = {"local": "local step", "shard": "shard step, fp32 wire", "shard_bf16": "shard step, bf16 wire"}
REFERENCE_UP_TO = 20_000_000  # parameters: it needs several vectors more


def copy_loops() -> ctypes.CDLL:
    """Compiles stream_copy.cpp for this processor."""
    library = Path(tempfile.mkdtemp()) / "stream_copy.so"
    source = ROOT / "benchmarks" / "stream_copy.cpp"
    subprocess.run(["g++", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class Memory:
    """Vectors of one size, shared by all variants: the largest size must fit into memory once."""

    def __init__(self, size: int, device: str) -> None:
        self.size = size
        self.p, self.g, self.a, self.m, self.v, self.e = (torch.zeros(size, device=device) for _ in range(6))
        self.half = torch.zeros(size, dtype=torch.bfloat16, device=device)
        self.v.fill_(1e-4)
        self.refresh()
        self.factors = ops.StepFactors(1e-4, 1e-3, 0.9, 0.98, 1e-8, 0.5, 0.5, 0.0, 0.01).fill(torch.empty(ops.FACTORS, device=device))
        self.stats = ops.new_stats(device)
        self.step = torch.tensor(5.0, device=device)

    def refresh(self) -> None:
        """Fresh gradients; the second moment may not run away."""
        self.g.normal_()
        self.half.copy_(self.g)


def local_variants(x: Memory, loops: ctypes.CDLL | None) -> dict[str, Callable[[], object]]:
    def torch_sequence() -> None:
        torch._foreach_add_([x.a], [x.g])
        torch._fused_adam_([x.p], [x.g], [x.m], [x.v], [], [x.step], **ADAM)
        x.g.zero_()

    variants: dict[str, Callable[[], object]] = {
        "hpcnmt": lambda: ops.local_step_(x.p, x.g, x.m, x.v, x.factors, x.stats, x.a),
        "torch": torch_sequence,
    }
    if x.size <= REFERENCE_UP_TO:
        variants["reference"] = lambda: reference.step(x.g, x.p, x.m, x.v, x.factors, x.stats, accumulator=x.a, zero_gradient=True)
    if loops:
        variants["copy loop"] = lambda: loops.local_streams(*pointers(x.p, x.g, x.a, x.m, x.v), ctypes.c_int64(x.size))
    return variants


def shard_variants(x: Memory, wire: Tensor, loops: ctypes.CDLL | None) -> dict[str, Callable[[], object]]:
    half = wire.dtype == torch.bfloat16
    out = x.a  # another buffer than the parameters

    def torch_sequence() -> None:
        if half:
            x.g.copy_(wire)
        out.copy_(x.p)
        torch._fused_adam_([out], [x.g], [x.m], [x.v], [], [x.step], **ADAM)
        x.e.lerp_(out, 0.01)

    variants: dict[str, Callable[[], object]] = {
        "hpcnmt": lambda: ops.shard_step_(wire, x.p, x.m, x.v, x.factors, x.stats, out=out, ema=x.e),
        "torch": torch_sequence,
    }
    if x.size <= REFERENCE_UP_TO:
        variants["reference"] = lambda: reference.step(wire, x.p, x.m, x.v, x.factors, x.stats, out=out, ema=x.e)
    if loops:
        loop = loops.shard_streams_bf16 if half else loops.shard_streams
        variants["copy loop"] = lambda: loop(*pointers(wire, x.p, out, x.m, x.v, x.e), ctypes.c_int64(x.size))
    return variants


def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """Mean seconds of a call; on a GPU by events."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def measure(size: int, rounds: int, device: str, loops: ctypes.CDLL | None) -> dict[str, Any]:
    x = Memory(size, device)
    groups = {
        "local": local_variants(x, loops), "shard": shard_variants(x, x.g, loops), "shard_bf16": shard_variants(x, x.half, loops),
        "copy": {"torch": lambda: x.a.copy_(x.p)},
    }  # fmt: skip
    repeats = max(1, int(5e6 / size))
    result: dict[str, Any] = {}
    for group, variants in groups.items():
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(rounds + 1):
            x.refresh()
            for name, function in variants.items():
                took = seconds(function, repeats, device)
                if turn:  # the first round warms up
                    times[name].append(took)
        gb = {name: BYTES[group] * size / statistics.median(t) / 1e9 for name, t in times.items()}
        ratios = {
            name: statistics.median(b / a for a, b in zip(times["hpcnmt"], t, strict=True)) for name, t in times.items() if name != "hpcnmt"
        } if "hpcnmt" in times else {}  # fmt: skip
        result[group] = {"gb_per_s": gb, "hpcnmt_faster_by": ratios}
        speeds = "  ".join(f"{name} {speed:.1f}" for name, speed in gb.items())
        print(f"{size:>12,} {group:11}{speeds}", {name: round(ratio, 2) for name, ratio in ratios.items()}, flush=True)
    for group in ("local", "shard", "shard_bf16"):  # on a GPU the yardstick; on a CPU the copy loop of the same streams is
        result[group]["share_of_copy"] = result[group]["gb_per_s"]["hpcnmt"] / result["copy"]["gb_per_s"]["torch"]
    return result


def draw(results: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    sizes = [int(size) for size in results]
    for axis, group in zip(axes, ("local", "shard", "shard_bf16"), strict=True):
        names = list(dict.fromkeys(name for r in results.values() for name in r[group]["gb_per_s"]))
        for name in names:
            points = [(s, r[group]["gb_per_s"][name]) for s, r in zip(sizes, results.values(), strict=True) if name in r[group]["gb_per_s"]]
            axis.plot(*zip(*points, strict=True), marker="o", label=name, linestyle="--" if name == "copy loop" else "-")
        axis.set(xscale="log", xlabel="parameters", title=TITLES[group])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("GB/s of a fused pass")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e5,1e6,1e7,1e8,2.5e8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--name", default="ops-cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cpu = arguments.device == "cpu"
    loops = copy_loops() if cpu else None
    if loops:
        ctypes.CDLL(None).omp_set_num_threads(arguments.threads)
    device = f"CPU, {arguments.threads} threads" if cpu else torch.cuda.get_device_name()
    results = {str(int(float(s))): measure(int(float(s)), arguments.rounds, arguments.device, loops) for s in arguments.sizes.split(",")}
    write_result(arguments.name, {"device": device, "kernels": ops.IN_USE, "rounds": arguments.rounds, "by_parameters": results})
    draw(results, ROOT / "docs" / f"{arguments.name}.png", f"{device}: {ops.IN_USE}")


if __name__ == "__main__":
    main()
