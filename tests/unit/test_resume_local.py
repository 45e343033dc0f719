"""Going on from a cut, in one process: a worker that was resumed equals one that never stopped, bit for bit, under every policy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcnmt.distributed import shard_state
from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import END, SAVE, Layout
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.shard_state import ShardState
from hpcnmt.distributed.virtual import LocalShards
from hpcnmt.distributed.worker import WorkerConfig, WorkerLoop
from hpcnmt.optim.local import LocalConfig
from hpcnmt.optim.update import UpdateConfig
from tests import quadratic

WINDOWS, AFTER = 30, 13
UPDATE = UpdateConfig(quadratic.UPDATE.adam, quadratic.UPDATE.schedule, ema_alpha=0.01)
WORKERS = {
    "plain": WorkerConfig(),
    "delay with ramp": WorkerConfig(3, delay_ramp_words=900),
    "overlap": WorkerConfig(overlap=1),
    "overlap later": WorkerConfig(2, overlap=1, overlap_from_words=600),
    "local": WorkerConfig(3, local=LocalConfig("always")),
    "local overlap": WorkerConfig(2, overlap=1, local=LocalConfig("always")),
    "local carry": WorkerConfig(2, overlap=1, local=LocalConfig("always", carry=True)),
    "averaged": WorkerConfig(2, local=LocalConfig("always", average=True)),
    "averaged overlap": WorkerConfig(2, overlap=1, local=LocalConfig("always", average=True, carry=True)),
    "local warm-up": WorkerConfig(2, local=LocalConfig("warmup", warmup_batches=40)),
    "compensate": WorkerConfig(2, overlap=1, local=LocalConfig("compensate")),
    "write-back": WorkerConfig(2, local=LocalConfig("always", write_back=True)),
}


class Run:
    """One worker and its shards."""

    def __init__(self, worker: WorkerConfig, policy: ShardPolicy, shards: int, wire: Any) -> None:
        layout = Layout(quadratic.SIZE, 1, shards, wire=wire)
        self.world = LocalShards(layout, ShardConfig(replace(UPDATE, average=worker.local.average), policy=policy))
        self.replica, self.gradient = quadratic.initial(), torch.zeros(quadratic.SIZE)
        compute = quadratic.batches(self.replica, self.gradient, 0)
        self.batches = 0

        def counted() -> Any:
            self.batches += 1
            return compute()

        self.skip = compute
        exchange = Exchange(self.world.transport, 0, DeadlineConfig())
        self.loop = WorkerLoop(exchange, worker, self.replica, self.gradient, counted, quadratic.local_of(worker))
        self.states: list[ShardState] = []
        for shard in self.world.shards:
            shard.save = lambda word, shard=shard: self.states.append(_copy(shard_state.live_state(shard, word)))  # type: ignore[misc]

    def windows_to_the_cut(self, most: int) -> dict[str, Any]:
        """Asks for the end after `AFTER` windows; what a checkpoint holds of the worker."""
        for number in range(most):
            self.world.shards[0].end_asked = number >= AFTER
            self.loop.window()
            if self.loop.cut:
                assert self.loop.cut & SAVE and self.loop.cut & END
                tensors = {name: tensor.clone() for name, tensor in self.loop.tensors().items()}
                return {"tensors": tensors, "facts": json.loads(json.dumps(self.loop.facts())), "windows": number + 1, "cut": self.loop.cut}
        raise AssertionError("no cut was marked")

    def go_on(self, saved: dict[str, Any], states: list[ShardState], batches: int) -> None:
        for shard in self.world.shards:
            shard_state.load(shard, states)
        for _ in range(batches):
            self.skip()  # the loader of a resumed worker begins there
        self.gradient.zero_()
        self.loop.resume(saved["tensors"], saved["facts"], saved["cut"], saved["cut"])
        for _ in range(WINDOWS - saved["windows"]):
            self.loop.window()

    def finish(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Parameters and, where there are some, moments [1 or 3, parameters], and what else the shards step by."""
        self.loop.finish()
        self.loop.close()
        out = torch.empty(quadratic.SIZE)
        self.world.step_rest()
        self.world.parameters(out)
        states = [shard.update.rule.tensors() for shard in self.world.shards]
        moments = [torch.cat([state[name] for state in states]) for name in states[0]]
        return torch.stack([out, *moments]), [shard.update.facts() for shard in self.world.shards]


def _copy(state: ShardState) -> ShardState:
    return ShardState({name: tensor.clone() for name, tensor in state.tensors.items()}, json.loads(json.dumps(state.facts)))


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", ["plain", "hybrid", "lockstep"])
@pytest.mark.parametrize("name", WORKERS)
@pytest.mark.parametrize(("shards", "later_shards"), [(2, 2), (3, 1)])
def test_a_resumed_run_equals_one_that_never_stopped(name: str, policy: str, wire: str, shards: int, later_shards: int) -> None:
    worker = WORKERS[name]
    if worker.local.write_back and wire == "bf16":
        return  # refused by the recipe
    whole = Run(worker, quadratic.POLICIES[policy], shards, wire)
    whole.loop.start(initial=True)
    for _ in range(WINDOWS):
        whole.loop.window()
    first = Run(worker, quadratic.POLICIES[policy], shards, wire)
    first.loop.start(initial=True)
    saved = first.windows_to_the_cut(WINDOWS)
    first.loop.finish()
    first.loop.close()
    assert len(first.states) == shards
    if later_shards != shards:
        saved["facts"] |= {"sequence": 0}
    second = Run(worker, quadratic.POLICIES[policy], later_shards, wire)
    second.go_on(saved, first.states, first.batches)
    (expected, rules), (found, rules_found) = whole.finish(), second.finish()
    assert torch.equal(found, expected)
    assert [r["stepped_words"] for r in rules_found[:1]] == [r["stepped_words"] for r in rules[:1]]
    if later_shards == shards:
        assert rules_found == rules
        assert [s.staleness for s in second.world.shards] == [s.staleness for s in whole.world.shards]


def test_states_of_another_model_or_of_two_cuts_are_refused() -> None:
    run = Run(WorkerConfig(), ShardPolicy(), 2, "fp32")
    run.loop.start(initial=True)
    run.windows_to_the_cut(WINDOWS)
    run.loop.close()
    other = Run(WorkerConfig(), ShardPolicy(), 2, "fp32")
    first, second = run.states
    with pytest.raises(ValueError, match="expected them to tile"):
        shard_state.load(other.world.shards[0], [first])
    with pytest.raises(ValueError, match="different cuts"):
        shard_state.load(other.world.shards[0], [first, ShardState(second.tensors, second.facts | {"cut": 99})])
    other.loop.close()
