"""The engine on real MPI windows, 2 to 6 ranks. Each run has a deadline and kills only its own process group."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.record import Event, Record, ShardEntry, WindowEntry, check_record
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.optim.local import LocalConfig
from tests import quadratic
from tests.need import mpiexec
from tests.processes import run
from tests.recording import repeat

pytestmark = pytest.mark.mpi


def run_ranks(
    ranks: int, *arguments: int | str, program: str = "engine_program.py", deadline_s: float = 90
) -> tuple[int, list[dict[str, Any]], str]:  # fmt: skip
    """Runs a program of this folder on `ranks` ranks; returns exit code, JSON lines and the whole output."""
    command = [mpiexec(), "-n", ranks, sys.executable, "-m", "mpi4py", Path(__file__).with_name(program), *arguments]
    done = run(command, deadline_s)
    output = done.stdout + done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], output


def record_of(lines: list[dict[str, Any]]) -> Record:
    """What all ranks have noted."""
    shards = [line["log"] for line in sorted((x for x in lines if "shard" in x), key=lambda x: x["shard"])]
    workers = [line["windows"] for line in sorted((x for x in lines if "worker" in x), key=lambda x: x["worker"])]
    windows = [[WindowEntry(*entry[:-2], *map(tuple, entry[-2:])) for entry in log] for log in workers]
    return Record([[ShardEntry(*entry[:3], Event(entry[3])) for entry in log] for log in shards], windows)


@pytest.mark.parametrize("delay", [1, 2])
def test_one_worker_one_shard_equals_the_plain_loop_bit_for_bit(delay: int) -> None:
    code, lines, output = run_ranks(2, 1, 1, delay, 0, 50, -1)
    assert code == 0, output
    expected = hashlib.sha256(quadratic.plain_loop(50, delay).numpy().tobytes()).hexdigest()
    assert [line["digest"] for line in lines if "digest" in line] == [expected]


def test_a_warmup_with_write_backs_equals_the_loop_by_hand_bit_for_bit() -> None:
    code, lines, output = run_ranks(2, 1, 1, 2, 0, 20, -1, "write_back")
    assert code == 0, output
    config = WorkerConfig(2, local=LocalConfig("warmup", warmup_batches=7, write_back=True))
    expected = hashlib.sha256(quadratic.by_hand(config, 20)[0].numpy().tobytes()).hexdigest()
    assert [line["digest"] for line in lines if "digest" in line] == [expected]


def test_compensation_under_overlap_equals_the_plain_loop_bit_for_bit() -> None:
    code, lines, output = run_ranks(2, 1, 1, 2, 1, 20, -1, "compensate")
    assert code == 0, output
    expected = hashlib.sha256(quadratic.plain_loop(20, 2).numpy().tobytes()).hexdigest()
    assert [line["digest"] for line in lines if "digest" in line] == [expected]


def test_averaged_ways_of_two_workers_are_repeated_bit_for_bit() -> None:
    code, lines, output = run_ranks(4, 2, 2, 2, 1, 15, -1, "average")
    assert code == 0, output
    record = record_of(lines)
    check_record(record)
    config = WorkerConfig(2, 1, local=LocalConfig("always", average=True, carry=True))
    again = repeat(record, Layout(quadratic.SIZE, 2, 2), ShardConfig(replace(quadratic.UPDATE, average=True)), config)
    assert [x["final"] for x in lines if "final" in x] == [hashlib.sha256(again.numpy().tobytes()).hexdigest()]


def test_parts_that_cross_shards_are_written_back_beside_every_push() -> None:
    code, lines, output = run_ranks(5, 2, 3, 2, 0, 15, -1, "write_back")
    assert code == 0, output
    logs = [line for line in lines if "shard" in line]
    record = record_of(lines)
    check_record(record)
    assert len({line["words"] for line in logs}) == 1 and [record.pushes(shard) for shard in range(3)] == [30] * 3
    write_backs = [line["version"] - 30 for line in sorted(logs, key=lambda line: line["shard"])]
    assert write_backs == [7, 14, 7]  # of worker 0, of both, of worker 1
    config = WorkerConfig(2, local=LocalConfig("warmup", warmup_batches=7, write_back=True))
    again = repeat(record, Layout(quadratic.SIZE, 2, 3), ShardConfig(quadratic.UPDATE), config)
    assert [x["final"] for x in lines if "final" in x] == [hashlib.sha256(again.numpy().tobytes()).hexdigest()]


@pytest.mark.parametrize(("workers", "shards", "overlap"), [(2, 1, 0), (3, 1, 1), (2, 2, 1), (4, 2, 0)])
def test_every_push_is_applied_exactly_once(workers: int, shards: int, overlap: int) -> None:
    code, lines, output = run_ranks(workers + shards, workers, shards, 1, overlap, 15, -1)
    assert code == 0, output
    logs = [line for line in lines if "shard" in line]
    assert len(logs) == shards and len({line["words"] for line in logs}) == 1
    expected = sorted([w, s] for w in range(workers) for s in range(1 + (w == 0), 16 + (w == 0)))
    assert all(sorted([w, s] for w, s, _, event in line["log"] if event == Event.GRADIENT) == expected for line in logs)
    check_record(record_of(lines))


@pytest.mark.parametrize(
    ("overlap", "wire", "policy"),
    [
        (0, "fp32", "plain"), (1, "fp32", "plain"), (1, "bf16", "plain"), (1, "fp32", "hybrid"), (0, "fp32", "lockstep"),
        (1, "bf16", "lockstep"),
    ],
)
def test_the_logs_of_the_shards_replay_bit_for_bit_in_one_process(overlap: int, wire: Literal["fp32", "bf16"], policy: str) -> None:
    code, lines, output = run_ranks(4, 2, 2, 1, overlap, 15, -1, wire, policy)
    assert code == 0, output
    layout = Layout(quadratic.SIZE, 2, 2, wire=wire)
    config = ShardConfig(quadratic.UPDATE, policy=quadratic.POLICIES[policy])
    (version,) = {x["version"] for x in lines if "shard" in x}
    assert version in {"plain": {30}, "hybrid": {8}, "lockstep": range(20, 27)}[policy]  # hybrid: 7 full buffers of 4, the rest at the end
    again = repeat(record_of(lines), layout, config, WorkerConfig(1, overlap))
    assert [x["final"] for x in lines if "final" in x] == [hashlib.sha256(again.numpy().tobytes()).hexdigest()]


def test_no_replica_is_torn_and_a_planted_bug_is_caught() -> None:
    code, lines, output = run_ranks(4, "sound", 5, program="torn_program.py")
    assert code == 0, output
    assert [line["torn"] for line in lines] == [0, 0, 0], output
    assert max(line["version"] for line in lines) > 50
    code, lines, output = run_ranks(4, "planted", 30, program="torn_program.py")
    assert code == 0, output
    assert sum(line["torn"] for line in lines) > 0, output


@pytest.mark.parametrize("rank", [1, 3])  # a worker, the shard
def test_an_exception_on_one_rank_ends_the_whole_job_with_its_traceback(rank: int) -> None:
    code, _, output = run_ranks(4, 3, 1, 1, 0, 200, rank)
    assert code != 0
    assert f"planted failure on rank {rank}" in output and "Traceback" in output


def test_a_world_of_the_wrong_size_is_refused() -> None:
    code, _, output = run_ranks(2, 2, 1, 1, 0, 5, -1)
    assert code != 0
    assert "found a world of 2 ranks, expected 2 workers + 1 shards = 3" in output
