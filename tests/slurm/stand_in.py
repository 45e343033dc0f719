"""Jobs of stand_in.sh: the job scripts' own logic (signals, requeue, back-off) with a quick program in the place of the training."""

from __future__ import annotations

from tests.processes import ROOT
from tests.slurm.cluster import DEADLINE_S, Cluster


class StandIn:
    """One such job, just submitted."""

    def __init__(self, slurm: Cluster, name: str, *options: str, plan: str = "", ranks: int = 3, **environment: str) -> None:
        self.slurm, self.run, self.log = slurm, slurm.folder / f"run of {name}", slurm.folder / f"{name}.log"
        corpus = slurm.folder / "a corpus"
        corpus.mkdir(exist_ok=True)
        (corpus / "corpus").write_text("corpus")
        self.run.mkdir()
        (self.run / "plan").write_text(plan)
        sizes = () if ":" in options else (f"--ntasks={ranks}",)
        command = (f"--job-name={name}", *sizes, *options, ROOT / "tests" / "slurm" / "stand_in.sh", ROOT, self.run, corpus, ranks)
        self.job = slurm.submit(*command, HPCNMT_PAUSE_S="1", **environment)

    def events(self, word: str = "") -> list[str]:
        """Lines of RUN/events that begin with `word`."""
        path = self.run / "events"
        return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []

    def wait_counting(self, starts: int = 1) -> None:
        self.slurm.wait(f"start {starts} of {self.run}", lambda: len(self.events("from")) >= starts, DEADLINE_S)

    def end(self, state: str, deadline_s: float = DEADLINE_S) -> dict[str, str]:
        """What Slurm says when the job has ended in `state`."""
        self.slurm.wait_state(self.job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", deadline_s=deadline_s)
        fields = self.slurm.fields(self.job)
        assert fields["JobState"] == state, (fields, self.log.read_text())
        return fields

    def went_on(self) -> None:
        """The job has ended well, after exactly one requeue, and no count was lost."""
        assert self.end("COMPLETED")["Restarts"] == "1", self.log.read_text()
        saved = [line.split()[1] for line in self.events("saved")]
        assert len(saved) == 1 and [line.split()[1] for line in self.events("from")] == ["0", *saved], self.events()
        assert self.events("finished") == [f"finished {int(saved[0]) + 5}"]
