"""Times env/quickstart.sh in a fresh clone, install included, and notes its scores beside a word-by-word translation.

    python benchmarks/quickstart.py
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import sacrebleu
from common import ROOT, records, write_result

from hpcnmt.data.sample import word_by_word


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "hpcnmt"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "HPCNMT_RUNS")}
        begin = time.perf_counter()
        subprocess.run(["bash", "env/quickstart.sh"], cwd=clone, env=environment, check=True)
        total_s = time.perf_counter() - begin
        folder = next((clone / "runs").iterdir())
        source, reference = ((folder / "text" / f"test.{side}").read_text("utf-8").splitlines() for side in ("src", "trg"))
        write_result("quickstart", {
            "total_s_with_install": total_s, "evaluation": json.loads((folder / "run" / "evaluation.json").read_text("utf-8")),
            "word_by_word_bleu": sacrebleu.corpus_bleu(word_by_word(source, 1), [reference]).score,
            "end": records(folder / "run", "end")[0], "validation": records(folder / "run", "validation"),
        })  # fmt: skip


if __name__ == "__main__":
    main()
