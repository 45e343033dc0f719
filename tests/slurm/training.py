"""Real trainings as jobs: scripts of hpcnmt slurm on the small generated corpus, endless until a test has interrupted them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from hpcnmt.config import load_recipe, override
from hpcnmt.training.checkpoint_files import newest_complete
from tests.commands import SMALL, records
from tests.slurm.cluster import Cluster

ENDLESS, MORE = 10**8, 4000
BATCH_WORDS = 500
DEADLINE_S = 240.0
SETTINGS = ("loader.batch_words=500", "validation.every_words=10000000", "deadlines.stall_warning_s=60")


class Training:
    """One run with its recipe, script and job."""

    def __init__(self, slurm: Cluster, name: str, *options: object, settings: tuple[str, ...] = (), words: int = ENDLESS) -> None:
        self.slurm, self.run, self.log = slurm, slurm.folder / f"run {name}", slurm.folder / f"{name}.log"
        self.recipe, self.script = slurm.folder / f"{name}.yaml", slurm.folder / f"{name}.sh"
        self.mapping = override(load_recipe("sample"), [*SMALL, *SETTINGS, *settings])
        self.limit_words(words)
        command = (sys.executable, "-m", "hpcnmt", "slurm", self.recipe, "--data", slurm.folder / "prepared", "--run", self.run)
        slurm.run(*command, "--out", self.script, "--time", "10", *options)
        self.job = ""

    def limit_words(self, words: int) -> None:
        """The next start of the job trains up to `words`."""
        self.recipe.write_text(yaml.safe_dump(override(self.mapping, [f"training.max_target_words={words}"])))

    def submit(self) -> Training:
        self.job = self.slurm.submit(f"--output={self.log}", self.script)
        return self

    def wait_training(self) -> None:
        self.slurm.wait_text(self.run / "metrics.jsonl", '"training"', deadline_s=DEADLINE_S)

    def wait_checkpoint(self) -> None:
        self.slurm.wait(f"a checkpoint of {self.run}", lambda: any(self.run.glob("checkpoints/cut-*/COMPLETE")), DEADLINE_S)

    def interrupted(self) -> Training:
        """Waits until the job is off its nodes, and lets its next start end a few windows later."""
        busy = ("RUNNING", "SIGNALING", "COMPLETING")  # SIGNALING for the moment in which a job is told of its preemption
        self.slurm.wait(f"job {self.job} off its nodes", lambda: self.slurm.fields(self.job)["JobState"] not in busy, DEADLINE_S)
        checkpoint = newest_complete(self.run)
        assert checkpoint is not None, self.log.read_text()
        self.limit_words(checkpoint.words + MORE)
        return self

    def ended(self) -> int:
        """Waits until the job has ended well; how often it was requeued."""
        self.slurm.wait_state(self.job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", deadline_s=DEADLINE_S)
        fields = self.slurm.fields(self.job)
        assert fields["JobState"] == "COMPLETED" and (self.run / "final.safetensors").is_file(), self.log.read_text()
        return int(fields["Restarts"])

    def went_on(self, lost_words: int = 2 * BATCH_WORDS) -> int:
        """The run has ended after it went on from checkpoints; each word counts once, and at most `lost_words` (two windows) were trained
        again each time. How often the job was requeued."""
        restarts = self.ended()
        (end,) = records(self.run, "end")
        words = [record["target_words"] for record in records(self.run, "resume")]
        assert words and 0 < words[0] and words == sorted(words) and words[-1] <= end["target_words"], self.log.read_text()
        assert all(record["lost_target_words"] <= lost_words for record in records(self.run, "resume")), self.log.read_text()
        reports = [json.loads(path.read_text()) for path in sorted(self.run.glob("status/worker-*.json"))]
        if list(self.run.glob("shard-*.json")):
            assert sum(report["counters"]["target_words"] for report in reports) == end["target_words"]
        return restarts


def status_hosts(run: Path) -> dict[str, str]:
    """Host of every rank."""
    return {path.stem: json.loads(path.read_text())["host"] for path in sorted(run.glob("status/*.json"))}
