"""Results files as hpcnmt bench writes them, with figures from a small model of a cluster; for tests of the report.

Nothing in them was measured: they only have to be plausible in shape and size. Used by tests/unit/bench/test_report.py.
"""

from __future__ import annotations

import math
import random
from typing import Any

from hpcnmt.bench.ablation_summary import summarize
from hpcnmt.bench.grid import Grid, Policy
from hpcnmt.bench.rates import Column

Figures = dict[str, Any]
MACHINE = {
    "processor": "AMD EPYC 9V74", "cores": 16, "gpus": ["NVIDIA H100"], "hpcnmt": "0.2.0", "torch": "2.13.0", "python": "3.11.2",
    "commit": "0123abc", "command": "hpcnmt bench throughput --workers 1 2 4 --out throughput.json",
}  # fmt: skip
LINK_BYTES_PER_S = 125e6
MODEL_BYTES = 40e6


def results(kind: str, config: Figures, points: Figures, summary: Figures) -> Figures:
    return {"format": 1, "kind": kind, "machine": MACHINE, "config": config, "points": points, "summary": summary}


def histogram(expected: float, pushes: int, chance: random.Random) -> dict[str, int]:
    drawn = [max(0, round(chance.gauss(expected, 0.4 + expected / 4))) for _ in range(pushes)]
    return {str(value): drawn.count(value) for value in sorted(set(drawn))}


def _window_s(mode: str, workers: int, shards: int, delay: int, batch_s: float) -> float:
    if mode == "sync":
        return delay * batch_s + 2 * (workers - 1) / workers * MODEL_BYTES / LINK_BYTES_PER_S
    return max(delay * batch_s, workers * MODEL_BYTES / (shards * LINK_BYTES_PER_S)) * 1.03


def _throughput_point(mode: str, workers: int, delay: int, batch_s: float, chance: random.Random) -> tuple[str, Figures]:
    shards = workers if mode == "async" else 0
    backend = "torch-gloo" if mode == "sync" else ""
    window_s = _window_s(mode, workers, shards, delay, batch_s)
    rounds = [2000 * delay * workers / window_s * chance.uniform(0.98, 1.02) for _ in range(3)]
    target = sorted(rounds)[1]
    compute = delay * batch_s / window_s * 0.97
    settings = {
        "mode": mode, "backend": backend, "workers": workers, "shards": shards, "delay": delay, "wire": "fp32", "overlap": 1,
        "compute": "simulated", "batch_s": batch_s, "straggler": 1.0, "parameters": 10_000_000, "network": "1gbit",
    }  # fmt: skip
    name = mode + (f" {backend}" if backend else "")
    key = f"{name} n{workers} s{shards} tau{delay} fp32 overlap1 c{batch_s}"
    sent = int(MODEL_BYTES * workers) if mode == "async" or workers > 1 else 0
    return key, {
        "settings": settings, "target_words_per_s": target, "source_words_per_s": 0.94 * target, "total_words_per_s": 1.94 * target,
        "rounds": rounds, "windows": int(60 / window_s), "seconds": 60.0,
        "shares": {"compute": compute, "wait": 0.9 * (1 - compute), "copy": 0.015, "pack": 0.008, "step": 0.004},
        "bytes_sent": sent, "bytes_received": sent, "staleness": histogram(2 * workers - 1, 200, chance) if mode == "async" else {},
    }  # fmt: skip


def throughput() -> Figures:
    """Two times of a batch, two delays, async and sync; asynchrony loses once."""
    chance = random.Random(1)
    points, speedup, ratios = {}, [], []
    for batch_s in (0.1, 0.4):
        for delay in (1, 2):
            rates: dict[str, list[float]] = {"async": [], "sync": []}
            for mode in rates:
                for workers in (1, 2, 3, 4):
                    key, point = _throughput_point(mode, workers, delay, batch_s, chance)
                    points[key] = point
                    rates[mode].append(point["target_words_per_s"])
                factors = [rate / rates[mode][0] for rate in rates[mode]]
                efficiency = [factor / (i + 1) for i, factor in enumerate(factors)]
                speedup.append(
                    {"label": f"{mode} tau{delay}", "network": "1gbit", "batch_s": batch_s, "workers": [1, 2, 3, 4], "speedup": factors,
                     "efficiency": efficiency}
                )  # fmt: skip
            for i in (1, 2, 3):
                measured = rates["async"][i] / rates["sync"][i] * (0.6 if (batch_s, delay, i) == (0.4, 2, 3) else 1)
                ideal = _window_s("sync", i + 1, 0, delay, batch_s) / _window_s("async", i + 1, i + 1, delay, batch_s) * 1.03
                ratios.append(
                    {"workers": i + 1, "shards": i + 1, "delay": delay, "batch_s": batch_s, "network": "1gbit",
                     "async_words_per_s": rates["async"][i], "sync_words_per_s": rates["sync"][i], "sync_backend": "torch-gloo",
                     "measured": measured, "ideal": ideal, "share_of_ideal": measured / ideal}
                )  # fmt: skip
    worst = min(entry["share_of_ideal"] for entry in ratios)
    checks = [
        {"what": "share of the ideal ratio, smallest (at least)", "measured": worst, "target": 0.9, "met": worst >= 0.9},
        {"what": "waiting, tau 2, overlap 1 (below)", "measured": 0.021, "target": 0.05, "met": True},
    ]
    straggler = [{"workers": n, "delay": 2, "measured": 1.9 - 1 / n, "bound": 2 - 1 / n} for n in (2, 4)]
    summary = {"speedup": speedup, "async_to_sync": ratios, "straggler": straggler, "checks": checks}
    return results("throughput", {"batches_s": [0.1, 0.4], "rounds": 3}, points, summary)


def _curve(words: int, rate: float, handicap: float, chance: random.Random, best_bleu: float = 36.0) -> list[Figures]:
    records = []
    for target_words in range(words // 10, words + 1, words // 10):
        progress = target_words / 1.2e6 * (1 - handicap)
        records.append(
            {"target_words": target_words, "seconds": target_words / rate, "simulated_s": target_words / rate,
             "cross_entropy": 1.85 + 4 * math.exp(-progress) + chance.gauss(0, 0.01),
             "bleu": max(0.0, best_bleu * (1 - math.exp(-progress * 0.8)) + chance.gauss(0, 0.2)),
             "chrf": 60 * (1 - math.exp(-progress)) + chance.gauss(0, 0.3)}
        )  # fmt: skip
    return records


def time_to_bleu() -> Figures:
    chance = random.Random(2)
    points, runs = {}, []
    for name, workers, rate, handicap in (("plain", 1, 2800.0, 0.0), ("sync", 2, 4100.0, 0.02), ("async", 2, 4900.0, 0.06)):
        reached = []
        for seed in (1, 2, 3):
            curve = _curve(3_000_000, rate * chance.uniform(0.97, 1.03), handicap, chance)
            first = next((record for record in curve if record["bleu"] >= 30), None)
            found = first and {"target_words": first["target_words"], "seconds": first["seconds"]}
            settings = {"name": name, "mode": name, "workers": workers, "seed": seed}
            points[f"{name} n{workers} seed{seed}"] = {
                "settings": settings, "curve": curve, "reached": found,
                "staleness": histogram(1, 300, chance) if name == "async" else {},
            }  # fmt: skip
            reached += [found] if found else []
        seconds, words = (sorted(each[field] for each in reached) for field in ("seconds", "target_words"))
        runs.append(
            {"name": name, "seeds": 3, "reached": len(reached), "median_seconds": seconds[len(seconds) // 2] if seconds else None,
             "median_target_words": words[len(words) // 2] if words else None}
        )  # fmt: skip
    product = [{"workers": 2, "words_to_quality": 2_100_000, "words_per_s": 4900, "predicted_s": 428.6, "measured_s": 441.0}]
    return results("time-to-bleu", {"bleu": 30.0}, points, {"runs": runs, "product": product})


def quality() -> Figures:
    chance = random.Random(3)
    points = {}
    for workers in (1, 4, 16, 64):
        for seed in (1, 2):
            curve = _curve(3_000_000, 1000.0 * workers, 0.012 * (workers - 1), chance)
            points[f"w{workers} seed{seed}"] = {
                "settings": {"workers": workers, "seed": seed, "overlap": 0}, "curve": curve,
                "staleness": histogram(workers - 1, 400, chance), "end": {"target_words": 3_000_000, "updates": 3000},
            }  # fmt: skip
    return results("quality", {"recipe": "multi30k-transformer"}, points, {})


def ablation() -> Figures:
    """Four policies, two of them with test scores, and throughput at two networks."""
    chance = random.Random(5)
    points = {}
    for name, mode, delay, handicap in (
        ("async", "virtual", 1, 0.1), ("beta1-0", "virtual", 1, 0.05), ("tau2", "virtual", 2, 0.2),
        ("synchronous", "sync-equivalent", 1, 0.0),
    ):  # fmt: skip
        for seed in (1, 2, 3):
            settings = {"name": name, "mode": mode, "workers": 4, "delay": delay, "overlap": 0, "wire": "fp32"}
            settings |= {"batch_words": 1000, "seed": seed} | ({"delay_ramp_words": 500_000} if name == "tau2" else {})
            point: Figures = {"settings": settings, "curve": _curve(1_500_000, 1000.0, handicap, chance), "end": {},
                              "staleness": histogram(3.0, 400, chance) if mode == "virtual" else {}}  # fmt: skip
            if name in ("async", "beta1-0"):
                point["test"] = {"names": ["test"], "sentences": 20, "digest": "00", "bleu": 20 + chance.random(), "chrf": 40.0}
                if name != "async":
                    resampled = [chance.gauss(0.5, 0.3) for _ in range(20)]
                    point["test"]["resampled"] = {"bleu": resampled, "chrf": resampled}
            points[f"{name} seed{seed}"] = point
    grid = Grid("sample", baseline="async", policies={"async": Policy(4), "beta1-0": Policy(4)})
    columns = []
    for network, rate in (("1gbit", 8000.0), ("10gbit", 20000.0)):
        rates = {}
        for mode, delay in (("async", 1), ("async", 2), ("sync", 1)):
            settings = {"mode": mode, "workers": 4, "delay": delay, "overlap": 0, "wire": "fp32"}
            rates[f"{mode} tau{delay}"] = {"settings": settings, "target_words_per_s": rate * (delay if mode == "async" else 0.5)}
        columns.append(Column(f"{network}, 0.4 s a batch of 1,000 words", rates))
    return results("ablation", {"recipe": "sample", "baseline": "async"}, points, summarize(points, grid, columns))


def comm() -> Figures:
    points = {}
    for workers in (1, 4):
        for size, name in ((4_000_000, "4MB"), (40_000_000, "40MB"), (400_000_000, "400MB")):
            for busy in (False, True):
                put_s = workers * size / 118e6
                push_s = put_s * (1.04 + 0.1 * busy) + 0.0004
                pull_s = put_s * (1.06 + 0.1 * busy) + 0.0004
                settings = {"workers": workers, "shards": 1, "bytes": size, "wire": "fp32", "busy": busy, "network": "1gbit"}
                points[f"n{workers} {name} fp32 {'busy' if busy else 'idle'}"] = {
                    "settings": settings, "push_s": push_s, "pull_s": pull_s, "exchange_s": push_s + pull_s, "raw_put_s": put_s,
                    "raw_get_s": put_s * 1.02, "memcpy_s": size / 9.3e9, "latency_us": {"put": 61.0, "get": 118.0, "flag": 74.0},
                    "push_share_of_put": put_s / push_s, "pull_share_of_get": put_s * 1.02 / pull_s,
                    "push_gb_per_s": workers * size / push_s / 1e9, "raw_put_gb_per_s": workers * size / put_s / 1e9,
                    "pull_gb_per_s": workers * size / pull_s / 1e9, "raw_get_gb_per_s": workers * size / put_s / 1.02e9,
                    "memcpy_gb_per_s": 9.3 * workers,
                }  # fmt: skip
    checks = [{"what": "push, share of raw Put (at least)", "measured": 0.957, "target": 0.9, "met": True}]
    return results("comm", {"repeats": 21}, points, {"checks": checks})


def soak() -> Figures:
    chance = random.Random(4)
    memory = [
        {"seconds": second, "rss_mb": [(310 if rank < 12 else 180) + rank + 20 * (1 - math.exp(-second / 20)) for rank in range(16)]}
        for second in range(0, 601, 20)
    ]
    point = {
        "settings": {"workers": 12, "shards": 4, "parameters": 1_000_000, "seconds": 600}, "memory": memory, "growth_share": 0.0021,
        "windows": 51234, "staleness": histogram(11.2, 5000, chance), "mean_staleness": 11.2, "expected_staleness": 11.0, "end": "orderly",
    }  # fmt: skip
    return results("soak", {"seconds": 600}, {"w12 s4": point}, {})


SAMPLES = {"throughput": throughput, "time-to-bleu": time_to_bleu, "quality": quality, "ablation": ablation, "comm": comm, "soak": soak}
