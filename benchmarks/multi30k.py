"""Multi30k en-de: asynchronous training with 2 workers + 1 shard beside one plain process with the same model and words.

    python benchmarks/multi30k.py TEXT WORK [--recipe multi30k-transformer] [--plain-set A.B=C ...] [--async-set A.B=C ...]

TEXT holds train, val and test_2016_flickr (.en.gz, .de.gz). Writes benchmarks/results/multi30k-*.json and docs/multi30k-*.png.
A run that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from common import ROOT, records, run_hpcnmt, set_options, write_result

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def measure(name: str, arguments: argparse.Namespace, flags: list[object], settings: list[str]) -> dict[str, Any]:
    """Trains (unless done) and evaluates one run."""
    run = arguments.work / f"{arguments.recipe}-{name}"
    if not (run.is_dir() and records(run, "end")):
        run_hpcnmt("train", arguments.recipe, "--data", arguments.work / "prepared", "--run", run, *flags, *set_options(settings))
    text = arguments.text / "test_2016_flickr"
    scores = run / "evaluation.json"
    run_hpcnmt("evaluate", "--run", run, "--src", f"{text}.en.gz", "--ref", f"{text}.de.gz", "--json", output=scores)
    staleness = [json.loads(p.read_text())["staleness"] for p in sorted(run.glob("shard-*.json"))]
    config = json.loads((run / "config.json").read_text())
    return {
        "settings": settings, "test_2016": json.loads(scores.read_text()), "validation": records(run, "validation"),
        "end": records(run, "end")[0], "staleness": staleness, "config": config,
    }  # fmt: skip


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """BLEU and cross-entropy against words and against seconds."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex="col")
    for label, result in results.items():
        points = result["validation"]
        # seconds of training: worker 0 validates while others train, the plain process stands still meanwhile
        seconds = [p["seconds"] - (0 if result["staleness"] else sum(q["took_s"] for q in points[: i + 1])) for i, p in enumerate(points)]
        for column, xs in enumerate(([p["target_words"] / 1e6 for p in points], seconds)):
            axes[0][column].plot(xs, [p["bleu"] for p in points], marker="o", label=label)
            axes[1][column].plot(xs, [p["cross_entropy"] for p in points], marker="o", label=label)
    axes[0][0].set_ylabel("validation BLEU (greedy)")
    axes[1][0].set_ylabel("cross-entropy, nats per target word")
    axes[1][0].set_xlabel("target words, millions")
    axes[1][1].set_xlabel("seconds of training")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(path.stem)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="multi30k-transformer")
    parser.add_argument("--plain-set", action="append", default=[])
    parser.add_argument("--async-set", action="append", default=[])
    arguments = parser.parse_args()
    if not (arguments.work / "prepared").is_dir():
        files = [f"--{split}-{side}={arguments.text / f'{name}.{end}.gz'}" for split, name in (("train", "train"), ("valid", "val"))
                 for side, end in (("source", "en"), ("target", "de"))]  # fmt: skip
        run_hpcnmt("prepare", *files, "--vocabulary-size", 4000, "--out", arguments.work / "prepared")
    results = {
        "asynchronous, 2 workers + 1 shard": measure("async", arguments, ["--workers", 2, "--shards", 1], arguments.async_set),
        "one plain process": measure("plain", arguments, [], ["training.mode=plain", *arguments.plain_set]),
    }
    difference = {
        name: [r["validation"][-1][name] for r in results.values()] for name in ("cross_entropy", "bleu", "chrf")
    } | {"test_2016_bleu": [r["test_2016"]["bleu"] for r in results.values()]}  # fmt: skip
    print(json.dumps(difference, indent=1))
    write_result(arguments.recipe, {"results": results, "asynchronous_and_plain": difference})
    draw(results, ROOT / "docs" / f"{arguments.recipe}.png")


if __name__ == "__main__":
    main()
