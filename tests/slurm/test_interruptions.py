"""Worlds of both MPI families and of CPU and GPU nodes; what Slurm does to a running job by itself: preemption, requeue, a lost node."""

from __future__ import annotations

import shlex

import pytest
from mpi4py import MPI

from tests.processes import ROOT
from tests.slurm.cluster import DEADLINE_S, Cluster
from tests.slurm.stand_in import StandIn

pytestmark = pytest.mark.slurm
OPEN_MPI = "Open MPI" in MPI.Get_library_version()


@pytest.mark.mpi
def test_one_world_of_the_installed_mpi_reads_a_copy_on_each_node(slurm: Cluster) -> None:
    job = StandIn(slurm, "world", "--nodes=2", "--ntasks-per-node=2", "--partition=gpu", "--gpus-per-node=2", ranks=4)
    job.end("COMPLETED")
    staged = slurm.local / f"hpcnmt-stage-{job.job}" / "data"
    assert job.events("start") == [f"start count ranks=4 hosts=g1:0,1,g2:0,1 data={staged} read=True"]
    assert job.events("finished") and not slurm.on_nodes("g1,g2", "ls", slurm.local)


@pytest.mark.skipif(OPEN_MPI, reason="srun starts no Open MPI across components")
def test_a_heterogeneous_job_is_one_world_with_the_workers_first(slurm: Cluster) -> None:
    workers = ("--partition=gpu", "--nodes=2", "--ntasks=3", "--ntasks-per-node=2", "--gpus-per-node=2")
    parts = (*workers, ":", "--partition=cpu", "--nodes=1", "--ntasks=1")
    job = StandIn(slurm, "het", *parts, ranks=4, plan="wait")
    job.wait_counting()
    slurm.run("scancel", "--batch", "--signal=USR1", job.job)
    job.went_on()
    assert all(" ranks=4 hosts=c1:,g1:0,1,g2:0,1 " in line and "read=True" in line for line in job.events("start")), job.events("start")


def test_preempted_jobs_are_requeued_once(slurm: Cluster) -> None:
    """main: a grace time and the job's own signal. bare: TERM comes at once, and Slurm requeues by itself."""
    jobs = [StandIn(slurm, f"preempted-{name}", "--nodes=2", f"--partition={name}", plan="wait") for name in ("main", "bare")]
    for job in jobs:
        job.wait_counting()
    high = slurm.submit("--partition=high", "--nodes=4", "--exclusive", "--output=high.log", "--wrap", "sleep 1")
    slurm.wait_state(high, "COMPLETED")
    for job in jobs:
        job.went_on()
    assert "requeued (saved)" in jobs[0].log.read_text() and "requeued" not in jobs[1].log.read_text()


def test_a_lost_node_and_the_operator_requeue_once(slurm: Cluster) -> None:
    lost = StandIn(slurm, "lost", "--nodelist=c1,c2", "--nodes=2", plan="wait")
    job = StandIn(slurm, "operator", "--nodelist=g1,g2", "--nodes=2", plan="wait")
    lost.wait_counting()
    slurm.run("scontrol", "update", "nodename=c2", "state=down", "reason=test")
    job.wait_counting()
    slurm.run("scontrol", "requeue", job.job)
    slurm.wait(f"job {lost.job} off its nodes", lambda: slurm.fields(lost.job)["JobState"] not in ("RUNNING", "SIGNALING"), DEADLINE_S)
    slurm.run("scontrol", "update", "nodename=c2", "state=resume", good=False)
    job.went_on()
    assert lost.end("COMPLETED")["Restarts"] == "1" and lost.events("finished"), lost.log.read_text()


def test_the_shipped_scripts_find_their_common_part(slurm: Cluster) -> None:
    """Each ends with one line about what is to be edited, in place of a training."""
    for name in ("train", "sync", "hetjob"):
        wrap = f"cd {shlex.quote(str(ROOT))} && exec bash slurm/{name}.sbatch"
        job = slurm.submit("--ntasks=1", f"--output={name}.log", "--wrap", wrap)
        slurm.wait_state(job, "FAILED")
        assert "tasks" in (slurm.folder / f"{name}.log").read_text()
