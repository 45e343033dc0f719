"""A real Slurm for tests: four virtual nodes of cluster.sh, up for the length of a `with`; every command to it has a deadline.

Jobs run the Python of the tests on this tree. The cluster ends with its keeper's standard input, so also when the tests are killed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.need import need
from tests.processes import ROOT, run

SCRIPT = ROOT / "tests" / "slurm" / "cluster.sh"
START_S = 90.0
COMMAND_S = 60.0
DEADLINE_S = 180.0
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")


class Cluster:
    """Commands to a cluster that runs in the namespaces of process `inside`."""

    def __init__(self, folder: Path, inside: int) -> None:
        self.folder = folder
        self.local = folder / "local"
        """The local disk of whatever node looks at it."""
        self.environment = {"SLURM_CONF": str(folder / "etc" / "slurm.conf"), "HPCNMT_PYTHON": sys.executable, "TMPDIR": str(self.local)}
        self._enter = ["nsenter", "--target", str(inside), "--pid", "--mount", "--net", "--uts", "--ipc"]

    def run(self, *command: object, deadline_s: float = COMMAND_S, good: bool = True, **environment: str) -> str:
        """Standard output of a command on the login node; fails the test when the command fails, unless `good` is False."""
        done = run([*self._enter, f"--wd={self.folder}", *command], deadline_s, environment=self.environment | environment)
        if good and done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def submit(self, *command: object, **environment: str) -> str:
        """Submits with sbatch; the job's number."""
        return self.run("sbatch", "--parsable", *command, **environment).strip().partition(";")[0]

    def fields(self, job: str) -> dict[str, str]:
        """What scontrol says of a job; empty when it says nothing."""
        shown = self.run("scontrol", "show", "job", job, "--oneliner", good=False).splitlines()
        return dict(re.findall(r"(\w+)=(\S*)", shown[0])) if shown else {}

    def wait(self, what: str, condition: Callable[[], bool], deadline_s: float) -> None:
        """Polls until `condition`; fails the test at the deadline, with the queue."""
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"waited {deadline_s} s for {what}:\n{self.run('squeue', '-o', '%i %j %T %r %N')}{self.logs()}")
            time.sleep(0.2)

    def wait_state(self, job: str, *states: str, deadline_s: float = DEADLINE_S) -> None:
        self.wait(f"job {job} to be {' or '.join(states)}", lambda: self.fields(job).get("JobState") in states, deadline_s)

    def wait_text(self, path: Path, text: str, deadline_s: float = DEADLINE_S) -> None:
        self.wait(f"{text!r} in {path}", lambda: path.exists() and text in path.read_text(), deadline_s)

    def logs(self) -> str:
        """The jobs' logs."""
        return "".join(f"\n== {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(self.folder.glob("*.log")))

    def on_nodes(self, nodes: str, *command: object) -> str:
        """Output of a command on each of `nodes`, whatever runs there."""
        count = len(nodes.split(","))
        place = (f"--nodelist={nodes}", f"--nodes={count}", f"--ntasks={count}")
        return self.run("srun", "--partition=high", *place, "--overcommit", *command)

    def cancel_all(self) -> None:
        """An empty queue, all nodes up."""
        self.run("scancel", "--user=root", good=False)
        self.wait("an empty queue", lambda: not self.run("squeue", "-h").strip(), DEADLINE_S)
        for node in ("c1", "c2", "g1", "g2"):
            self.run("scontrol", "update", f"nodename={node}", "state=resume", good=False)
        up = ("idle", "mix", "alloc")
        self.wait("all nodes up", lambda: all(state in up for state in self.run("sinfo", "-hNp", "main", "-o", "%t").split()), DEADLINE_S)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with its files in `folder`."""
    able = os.getuid() == 0 and all(shutil.which(program) for program in PROGRAMS)
    need("slurm", able, "a Slurm cluster needs root and Slurm's packages: bash env/slurm.sh")
    keeper = subprocess.Popen(
        [SCRIPT, "run", folder, "bash", "-c", "echo ready; cat"], text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "cluster.err").open("w"),
    )  # fmt: skip
    try:
        assert keeper.stdin and keeper.stdout
        if keeper.stdout.readline().strip() != "ready":
            pytest.fail(f"found no cluster: {(folder / 'cluster.err').read_text()}")
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        yield Cluster(folder, int(children[0]))
        keeper.stdin.close()
        keeper.wait(START_S)
    finally:
        keeper.kill()
        keeper.wait()
