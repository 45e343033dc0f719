"""Virtual time and scripts: equality with the plain loop, predicted staleness, golden traces of scripted interleavings.

Golden traces are written anew with WRITE_GOLDEN=1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcnmt.distributed.layout import SNAPSHOT_WORDS, Layout
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.scripted import Script
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.virtual import ClockConfig, LocalShards, VirtualCluster
from hpcnmt.distributed.worker import WorkerConfig
from hpcnmt.optim.local import LocalConfig, LocalOptimizer
from tests import quadratic

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = ShardConfig(quadratic.UPDATE)


def cluster(workers: int, shards: int, worker: WorkerConfig, clock: ClockConfig, pushes: int) -> VirtualCluster:
    world = LocalShards(Layout(quadratic.SIZE, workers, shards), CONFIG)
    virtual = VirtualCluster(world, worker, clock, quadratic.gradients(workers), quadratic.initial())
    while world.shards[0].version < pushes:
        virtual.step()
    return virtual


def parameters(virtual: VirtualCluster) -> torch.Tensor:
    out = torch.empty(quadratic.SIZE)
    virtual.shards.parameters(out)
    return out


@pytest.mark.parametrize("delay", [1, 2])
def test_one_virtual_worker_equals_the_plain_loop_bit_for_bit(delay: int) -> None:
    virtual = cluster(1, 1, WorkerConfig(delay), ClockConfig(), 50)
    assert torch.equal(parameters(virtual), quadratic.plain_loop(50, delay))


@pytest.mark.parametrize(("workers", "overlap", "expected"), [(4, 0, 3), (16, 0, 15), (4, 1, 7)])
def test_staleness_is_as_predicted(workers: int, overlap: int, expected: int) -> None:
    clock = ClockConfig(batch_s=1.0, batch_spread=0.4, transfer_s=0.01)
    virtual = cluster(workers, 1, WorkerConfig(overlap=overlap), clock, 80 * workers)
    staleness = virtual.shards.shards[0].staleness
    mean = sum(k * v for k, v in staleness.items()) / sum(staleness.values())
    assert 0.88 * expected < mean <= expected  # workers start in step, which lowers the mean at first


def golden(name: str, trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trace on record; `trace` is that trace from now on if WRITE_GOLDEN is set."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(step) for step in trace) + "\n]\n", "utf-8")
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return found


SCRIPTS = {
    "shards_in_different_orders": (
        "push 0|serve 0|push 1|serve 0|serve 1|pull 0|push 1|serve 1|push 0|serve 0|serve 1|pull 1|push 1|serve 1|serve 0|"
        "farewell 0|farewell 1|serve 1|serve 0"
    ),
    "cut": (
        "push 0|serve 0|serve 1|push 1|serve 0|serve 1|push 0|serve 0|serve 1|pull 0|push 0|serve 0|serve 1|push 0|serve 0|serve 1|"
        "pull 1|push 1|serve 1|serve 0|serve 0|serve 1|read 0|pull 0|push 0|serve 0|serve 1|farewell 0|farewell 1|serve 1|serve 0"
    ),
    "farewell_completes_a_cut": (
        "push 0|serve 0|serve 1|push 0|serve 0|serve 1|push 0|serve 0|serve 1|pull 0|push 0|serve 1|serve 0|farewell 1|serve 0|serve 1"
    ),
    # Worker 1 falls silent after cut 1 is raised; worker 0 is held, shard 0 cancels after 60 s, worker 0 carries that to shard 1 with its
    # next pull. Worker 1 comes back with its late mark, which is ignored, and cut 2 is raised and published once both were heard.
    "silent_worker_cancels_a_cut": (
        "push 0|serve 0|serve 1|push 0|serve 0|serve 1|push 0|serve 0|serve 1|pull 0|pull 1|push 0|serve 0|serve 1|push 0|serve 0|serve 1|"
        "wait 61|serve 0|serve 0|serve 1|pull 0|serve 1|serve 1|push 0|serve 0|serve 1|push 1|serve 0|serve 1|push 0|serve 0|serve 1|"
        "pull 0|pull 1|push 0|serve 0|serve 1|push 1|serve 0|serve 1|read 0"
    ),
    # The mark of worker 1 has reached shard 1, which publishes cut 1, but not shard 0, which cancels it: never read.
    "half_published_cut_is_cancelled": (
        "push 0|serve 0|serve 1|push 0|serve 0|serve 1|push 0|serve 0|serve 1|pull 0|pull 1|push 0|serve 0|serve 1|push 1|serve 1|"
        "wait 61|serve 0|serve 0|pull 0|serve 1|push 0|serve 0|serve 1|pull 0|pull 1|push 0|serve 0|serve 1|push 1|serve 0|serve 1|read 0"
    ),
    # B = 3: the third push is a step and raises the cut; the marked fourth and fifth stay in the buffer at the cut, the sixth steps.
    "hybrid_cut_with_a_partial_buffer": (
        "push 0|serve 0|serve 1|push 1|serve 1|serve 0|push 0|serve 0|serve 1|pull 0|pull 1|push 0|serve 0|serve 1|push 1|serve 1|serve 0|"
        "read 0|pull 0|push 0|serve 0|serve 1"
    ),
    # Three pushes and B = 2, in different orders: worker 1 is acknowledged at once; the last farewell steps the third push by its words.
    "hybrid_farewell_with_a_partial_buffer": (
        "push 0|push 1|serve 0|pull 0|serve 1|push 0|serve 1|serve 0|farewell 1|serve 0|serve 1|farewell 0|serve 1|serve 0"
    ),
    # Updates by one push of each: nobody is acknowledged before. The second one raises the cut, both mark their push of the third.
    "lockstep_cut": (
        "push 0|serve 0|serve 1|push 1|serve 1|serve 0|pull 0|pull 1|push 1|serve 0|serve 1|push 0|serve 0|serve 1|pull 0|pull 1|push 0|"
        "serve 0|serve 1|push 1|serve 1|serve 0|read 0"
    ),
    # Worker 0 waits for worker 1, which leaves: the update is made by what is there, and the next ones are those of worker 0 alone.
    "lockstep_farewell": (
        "push 1|push 0|serve 1|serve 0|pull 0|pull 1|push 0|serve 0|serve 1|farewell 1|serve 1|serve 0|pull 0|push 0|serve 0|serve 1"
    ),
    # Cut 1 holds worker 0 when worker 1 dies, whose last message is not whole: the cut stands without it, and so does the end.
    "dead_worker_completes_a_cut": (
        "push 0|serve 0|serve 1|push 0|serve 0|serve 1|push 1|serve 1|serve 0|pull 0|push 0|serve 0|serve 1|push 0|serve 0|serve 1|"
        "flag_first 1|fail 1|serve 0|serve 1|serve 1|serve 0|read 0|pull 0|push 0|serve 0|serve 1|farewell 0|serve 1|serve 0"
    ),
    # Worker 1 dies with a whole push in the inbox, which counts, while worker 0 waits for the update in lockstep.
    "lockstep_dead_worker": (
        "push 0|push 1|serve 1|serve 0|pull 0|push 0|serve 0|serve 1|fail 1|serve 0|serve 1|pull 0|push 0|serve 0|serve 1"
    ),
    "flag_before_header": "flag_first 1|serve 0|serve 1|push 1|serve 0|serve 1",
    "slow_worker_is_stale": (
        "push 0|serve 0|serve 1|pull 0|push 0|serve 0|serve 1|pull 0|push 0|serve 0|serve 1|push 1|serve 1|serve 0"
    ),
}


SCRIPT_POLICIES = {
    "hybrid_cut_with_a_partial_buffer": ShardPolicy(3), "hybrid_farewell_with_a_partial_buffer": ShardPolicy(2),
    "lockstep_cut": ShardPolicy(lockstep_words=60), "lockstep_farewell": ShardPolicy(lockstep_words=1000),
    "lockstep_dead_worker": ShardPolicy(lockstep_words=1000),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_golden_trace(name: str) -> None:
    layout = Layout(quadratic.SIZE, 2, 2)
    policy = SCRIPT_POLICIES.get(name, ShardPolicy())
    config = ShardConfig(quadratic.UPDATE, cut_words=30 if "cut" in name else 0, cut_deadline_s=60.0, policy=policy)
    trace = Script(layout, config, quadratic.gradients(2), quadratic.initial()).run(SCRIPTS[name].split("|"))
    assert len({json.dumps([s["words"], s["applied"]]) for s in trace[-1]["shards"]}) == 1  # every push applied once on both shards
    assert trace == golden(name, trace)


def local() -> LocalOptimizer:
    return LocalOptimizer(quadratic.SIZE, LocalConfig("always", write_back=True), quadratic.SCHEDULE, 1.0)


def serve_all(*moves: str) -> str:
    return "|".join(f"{move}|serve 0|serve 1|serve 2" for move in moves)


# Two workers over three shards: the parts of both workers meet on shard 1.
WRITE_BACKS = {
    # Worker 0 has not seen the push of worker 1: its write-back takes that out of part 0 again, and moves shards 0 and 1 once more with
    # its push, which has missed one optimizer step.
    "write_back_discards_an_update": (
        serve_all("push 1", "write_back 0", "write_back 0", "push 0") + "|pull 0|pull 1|" + serve_all("push 1")
    ),
    "write_back_is_held_by_a_cut": (
        serve_all("push 0", "push 0", "push 0") + "|pull 0|pull 1|" + serve_all("push 0", "write_back 0", "push 1", "read 0", "push 0")
    ),
}  # fmt: skip


def write_backs(moves: str, cut_words: int = 0) -> tuple[list[dict[str, Any]], Script]:
    layout, config = Layout(quadratic.SIZE, 2, 3), ShardConfig(quadratic.UPDATE, cut_words=cut_words, cut_deadline_s=60.0)
    script = Script(layout, config, quadratic.gradients(2), quadratic.initial(), local_of=local)
    return script.run(moves.split("|")), script


@pytest.mark.parametrize("name", WRITE_BACKS)
def test_golden_trace_of_write_backs(name: str) -> None:
    trace, script = write_backs(WRITE_BACKS[name], cut_words=30 if "cut" in name else 0)
    assert len({json.dumps([s["words"], s["staleness"]]) for s in trace[-1]["shards"]}) == 1  # no words, no staleness of their own
    cuts = [shard.cuts for shard in script.world.shards]
    assert cuts[0] == cuts[1] == cuts[2] and bool(cuts[0]) == ("cut" in name)
    assert trace == golden(name, trace)


def test_a_write_back_discards_what_others_pushed_there_and_only_there() -> None:
    with_push, without_push = write_backs(serve_all("push 1", "write_back 0"))[1], write_backs(serve_all("write_back 0"))[1]
    found, expected, before = (torch.empty(quadratic.SIZE) for _ in range(3))
    with_push.world.parameters(found)
    without_push.world.parameters(expected)
    write_backs(serve_all("push 1"))[1].world.parameters(before)
    begin, end = with_push.world.layout.part(0)
    assert (begin, end) == (0, quadratic.SIZE // 2)
    assert torch.equal(found[:end], expected[:end]) and torch.equal(found[:end], with_push.replicas[0][:end])
    assert torch.equal(found[end:], before[end:])
    assert not torch.equal(found[:end], before[:end]) and not torch.equal(found[end:], expected[end:])
    assert [shard.steps for shard in with_push.world.shards] == [1, 1, 1]
    assert [shard.version for shard in with_push.world.shards] == [2, 2, 1]


def test_the_snapshot_of_a_cut_holds_what_is_stepped_and_its_words_are_those_received() -> None:
    config = ShardConfig(quadratic.UPDATE, cut_words=30, policy=ShardPolicy(3))
    script = Script(Layout(quadratic.SIZE, 2, 2), config, quadratic.gradients(2), quadratic.initial())
    moves = SCRIPTS["hybrid_cut_with_a_partial_buffer"].split("|")
    script.run(moves[: moves.index("read 0")])
    for shard in script.world.shards:
        assert (shard.version, shard.buffer.pushes) == (1, 2) and shard.cuts == [(1, shard.words)]
        assert shard.words == shard.update.words + shard.buffer.target_words == int(shard.memory.control[SNAPSHOT_WORDS])
        assert torch.equal(shard.memory.ring[script.world.layout.ring_slots], shard.memory.ring[1])


def test_a_wrong_move_is_refused() -> None:
    script = Script(Layout(quadratic.SIZE, 1, 1), CONFIG, quadratic.gradients(1), quadratic.initial())
    with pytest.raises(ValueError, match="found the move 'jump 1'"):
        script.run(["jump 1"])
    with pytest.raises(ValueError, match="worker 0 may not push"):
        script.run(["push 0", "push 0"])
    with pytest.raises(ValueError, match="worker 0 may not write back"):
        script.run(["serve 0", "write_back 0"])
