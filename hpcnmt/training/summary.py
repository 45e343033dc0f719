"""`hpcnmt summary`: the figures of one run, and of its evaluation where there is one, in a short table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpcnmt.reading import read_json
from hpcnmt.training.run_folder import END, VALIDATION, RunFolder


def _mean_and_largest(staleness: Counter[int]) -> str:
    mean = sum(steps * pushes for steps, pushes in staleness.items()) / max(staleness.total(), 1)
    return f"{mean:.2f} (largest {max(staleness, default=0)})"


def print_summary(run: Path) -> None:
    """Prints the table. Raises ValueError when `run` is no run folder."""
    folder = RunFolder(run)
    validations, end = folder.fields("validation", VALIDATION), next(iter(folder.fields("end", END)), None)
    rows: list[tuple[str, str]] = []
    evaluation = run / "evaluation.json"
    if evaluation.is_file():
        try:
            scores = read_json(evaluation, {"bleu": float, "chrf": float})
        except ValueError as error:
            raise ValueError(f"{evaluation} is not the output of hpcnmt evaluate --json ({error})") from error
        rows += [("test BLEU", f"{scores['bleu']:.2f}"), ("test chrF", f"{scores['chrf']:.2f}")]
    if validations:
        best = min(validations, key=lambda r: float(r["cross_entropy"]))
        rows.append(("best validation", f"{best['cross_entropy']:.4f} nats/word, BLEU {best['bleu']:.2f} at {best['target_words']} words"))
    if end:
        rows.append(("training", f"{end['target_words']} target words in {end['train_s']:.1f} s"))
        names = (("source", "source_words_per_s"), ("target", "target_words_per_s"), ("total", "total_words_per_s"))
        rates = ", ".join(f"{end[key]:.0f} {name}" for name, key in names if key in end)
        rows.append(("words per second", f"{rates} (unpadded)"))
        rows.append(("padding", f"{end['padding_share']:.1%}"))
    else:
        rows.append(("training", "not ended"))
    if staleness := [_mean_and_largest(of_a_shard) for of_a_shard in RunFolder(run).staleness()]:
        rows.append(("mean staleness", ", ".join(staleness)))
    rows.append(("run folder", str(run)))
    table = Table(show_header=False, title="hpcnmt run")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 100).print(table)
