"""What the job scripts make of signals and exit codes, on a real Slurm. The jobs run beside each other; each test waits for its own."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import DEADLINE_S, Cluster
from tests.slurm.stand_in import StandIn

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def jobs(module_cluster: Cluster) -> dict[str, StandIn]:
    def job(name: str, *options: str, plan: str = "", **environment: str) -> StandIn:
        return StandIn(module_cluster, name, *options, plan=plan, **environment)

    return {
        "limit": job("limit", "--time=1", plan="wait"),
        "failing": job("failing", plan="fail fail fail fail"),
        "advancing": job("advancing", plan="fail fail advance fail count"),
        "slow": job("slow", plan="fail fail fail count", HPCNMT_FAST_S="0"),
        "wrong": job("wrong", plan="wrong"),
        "tasks": job("tasks", "--ntasks=2"),
        "plugin": job("plugin", HPCNMT_SRUN_MPI="pmi9"),
        "signal": job("signal", "--nodes=2", plan="wait"),
        "term": job("term", plan="wait"),
        "cancel": job("cancel", "--nodes=2", plan="wait"),
    }


def test_a_signal_saves_requeues_once_and_goes_on(jobs: dict[str, StandIn], module_cluster: Cluster) -> None:
    for name, word in (("signal", "USR1"), ("term", "TERM")):
        jobs[name].wait_counting()
        module_cluster.run("scancel", "--batch", f"--signal={word}", jobs[name].job)
    jobs["cancel"].wait_counting()
    module_cluster.run("scancel", jobs["cancel"].job)
    jobs["signal"].went_on()
    jobs["term"].went_on()


def test_a_cancelled_job_saves_and_does_not_come_back(jobs: dict[str, StandIn]) -> None:
    assert jobs["cancel"].end("CANCELLED")["Restarts"] == "0"
    assert len(jobs["cancel"].events("saved")) == 1, jobs["cancel"].log.read_text()


def test_wrong_input_is_not_requeued(jobs: dict[str, StandIn]) -> None:
    for name, message in (("wrong", "wrong input"), ("tasks", "found 2 tasks, expected 3"), ("plugin", "found no plugin pmi9")):
        fields = jobs[name].end("FAILED")
        assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0") and message in jobs[name].log.read_text()


def test_a_job_that_fails_fast_gives_up(jobs: dict[str, StandIn]) -> None:
    fields = jobs["failing"].end("FAILED")
    assert (fields["ExitCode"], fields["Restarts"]) == ("1:0", "2") and len(jobs["failing"].events("start")) == 3
    assert "giving up" in jobs["failing"].log.read_text()


def test_progress_resets_the_count_of_failures(jobs: dict[str, StandIn]) -> None:
    assert jobs["advancing"].end("COMPLETED")["Restarts"] == "4" and len(jobs["advancing"].events("start")) == 5
    assert jobs["slow"].end("COMPLETED")["Restarts"] == "3"


def test_the_time_limit_is_no_end(jobs: dict[str, StandIn]) -> None:
    jobs["limit"].went_on()


def test_nothing_is_left_behind(jobs: dict[str, StandIn], module_cluster: Cluster) -> None:
    module_cluster.wait("an empty queue", lambda: not module_cluster.run("squeue", "-h").strip(), DEADLINE_S)
    StandIn(module_cluster, "sweeping", "--nodes=4", ranks=4).end("COMPLETED")  # the cancelled job could not clean its second node
    left = module_cluster.on_nodes("c1,c2,g1,g2", "find", module_cluster.local, "/dev/shm", "-mindepth", "1")
    assert not left, left
    found = [path.name for path in module_cluster.folder.iterdir() if path.name.startswith(".")]
    assert not found
