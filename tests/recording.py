"""Keeping the record of a run in this process, and repeating it on the quadratic problem."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.record import Event, Record, ShardEntry, WindowEntry
from hpcnmt.distributed.replay import Replay
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.virtual import GradientOf, VirtualCluster
from hpcnmt.distributed.worker import WorkerConfig
from tests import quadratic


def keep(shards: Sequence[Shard], workers: Sequence[object] = ()) -> Record:
    """A record into which these shards and workers (WorkerLoops, or those of a VirtualCluster) note from now on."""
    record = Record([list[ShardEntry]() for _ in shards], [list[WindowEntry]() for _ in workers])
    for noting, log in zip([*shards, *workers], [*record.shards, *record.workers], strict=True):
        noting.log = log  # type: ignore[attr-defined]
    return record


def keep_virtual(cluster: VirtualCluster) -> Record:
    return keep(cluster.shards.shards, cluster.workers)


def gradients_of(log: Sequence[ShardEntry]) -> list[tuple[int, int, int]]:
    """(worker, sequence, version) of every push."""
    return [tuple(entry[:3]) for entry in log if entry.event == Event.GRADIENT]


def repeat(
    record: Record, layout: Layout, config: ShardConfig, worker: WorkerConfig | None = None, gradient_of: GradientOf | None = None,
    until: int | None = None,
) -> Tensor:  # fmt: skip
    """The parameters that a replay of `record` ends with; its losses are checked too."""
    worker = WorkerConfig() if worker is None else worker
    local_of = None if quadratic.local_of(worker) is None else (lambda: quadratic.local_of(worker))
    replay = Replay(
        record, layout, config, worker, gradient_of or quadratic.gradients(layout.workers), quadratic.initial(), local_of=local_of
    )
    replay.run(until)
    assert replay.deviation is None, replay.deviation
    assert not any(shard.kept for shard in replay.shards) or until or not record.ended  # nothing is kept longer than it is wanted
    out = torch.empty(layout.parameters)
    replay.parameters(out)
    return out
