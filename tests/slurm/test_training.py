"""Real trainings on a real Slurm: preempted, out of time, without a node, cancelled; all go on from where they were."""

from __future__ import annotations

import sys

import pytest
from mpi4py import MPI

from tests.commands import prepare_sample, records
from tests.slurm.cluster import Cluster
from tests.slurm.training import ENDLESS, Training, status_hosts

pytestmark = pytest.mark.slurm
OPEN_MPI = "Open MPI" in MPI.Get_library_version()
mpich_only = pytest.mark.skipif(OPEN_MPI, reason="independent of the MPI, and measured with MPICH")


@pytest.fixture(scope="module", autouse=True)
def corpus(module_cluster: Cluster) -> None:
    prepare_sample(module_cluster.folder)


@pytest.mark.mpi
@pytest.mark.skipif(not OPEN_MPI, reason="with MPICH the tests below say more")
def test_a_signal_saves_and_the_job_goes_on(slurm: Cluster) -> None:
    # On one node: over TCP this Open MPI was seen to stall where a shard shares its host with some of the workers only.
    job = Training(slurm, "signal", "--nodes", 1).submit()
    job.wait_training()
    slurm.run("scancel", "--batch", "--signal=USR1", job.job)
    assert job.interrupted().went_on() == 1


@mpich_only
def test_preempted_trainings_go_on(slurm: Cluster) -> None:
    """With a grace time and the job's own signal, and without either: Slurm then sends TERM, and requeues by itself."""
    nodes = ("--hetjob", "--gpu-partition", "gpu", "--cpu-partition", "cpu", "--gpus-per-node", 2, "--nodes", 2)
    grace, het = Training(slurm, "grace", "--nodes", 2, "--partition", "main").submit(), Training(slurm, "het", *nodes).submit()
    grace.wait_training()
    het.wait_training()
    high = slurm.submit("--partition=high", "--nodes=4", "--exclusive", "--output=high.log", "--wrap", "sleep 1")
    grace.interrupted()
    het.interrupted()
    slurm.wait_state(high, "COMPLETED", deadline_s=240)
    assert grace.went_on() >= 1 and het.went_on() >= 1  # more often where the small job had to wait for the nodes
    assert "caught USR1" in grace.log.read_text()
    hosts = status_hosts(het.run)
    assert {hosts["worker-0"], hosts["worker-1"]} == {"g1", "g2"} and hosts["shard-0"] in ("c1", "c2"), hosts


@mpich_only
def test_a_lost_node_a_time_limit_and_a_cancellation_cost_no_run(slurm: Cluster) -> None:
    synchronous = ("training.mode=sync", "sync.backend=torch")
    limit = Training(slurm, "limit", "--partition", "gpu", "--time", "1", settings=synchronous).submit()
    lost = Training(slurm, "lost", "--nodes", 2, "--partition", "cpu", settings=("checkpoint.every_s=0.5",)).submit()
    lost.wait_checkpoint()
    slurm.run("scontrol", "update", "nodename=c2", "state=down", "reason=test")
    lost.interrupted()
    limit.interrupted()
    slurm.run("scontrol", "update", "nodename=c2", "state=resume", good=False)
    cancelled = Training(slurm, "cancelled", "--partition", "gpu").submit()
    cancelled.wait_training()
    slurm.run("scancel", cancelled.job)
    cancelled.interrupted()
    fields = slurm.fields(cancelled.job)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    assert cancelled.submit().went_on() == 0
    assert lost.went_on(lost_words=ENDLESS) == 1
    assert limit.went_on() >= 1  # as often as its minute was over


@mpich_only
def test_an_array_of_seeds_ends_with_a_report(slurm: Cluster) -> None:
    run, script = slurm.folder / "seeds" / "run", slurm.folder / "seeds.sh"
    small = Training(slurm, "array", words=3000)  # for its recipe
    command = (sys.executable, "-m", "hpcnmt", "slurm", small.recipe, "--data", slurm.folder / "prepared", "--run", run, "--array", "1-2")
    said = slurm.run(*command, "--out", script, "--time", "10", "--submit")
    report = said.split("report job ")[1].split(":")[0]
    slurm.wait_state(report, "COMPLETED", deadline_s=240)
    text = (run.parent / "run-report.txt").read_text()
    for seed in (1, 2):
        folder = run.parent / f"run-base-seed{seed}"
        assert records(folder, "end") and str(folder) in text and f'"seed": {seed}' in (folder / "config.json").read_text()
    assert text.count("words per second") == 2, text
