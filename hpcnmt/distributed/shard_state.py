"""The state of a shard at a consistent cut: what a checkpoint holds of it, and how shards go on from there, the same or other ones.

Tensors [slice]: parameters (the newest version), moment1, moment2, ema where it is on, buffered_sum where a partial update stands in the
gradient buffer. Facts (JSON values): everything else that decides what comes next. With the same workers and shards a run goes on bit for
bit. On other ones the slices are cut anew; what a shard counts for itself (staleness, sequence numbers) begins anew, and what may differ
between shards (denominators of betas that change with words, versions with write-backs) is that of the old shard with the largest share.

Invariant: `load` leaves the control words as they stood right after the cut was published, so that workers go on with the same protocol.
Called by training/checkpoint.py; knows nothing of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcnmt.distributed.layout import APPLIED, CANCELLED, CUT, FLAG, GLOBAL_WORDS, SNAPSHOT, SNAPSHOT_WORDS, VERSION
from hpcnmt.distributed.shard import Shard

Facts = dict[str, Any]


@dataclass(frozen=True)
class ShardState:
    """Of the parameters [begin, end): tensors of this length, and facts."""

    tensors: Mapping[str, Tensor]
    facts: Facts

    @property
    def begin(self) -> int:
        """First parameter."""
        return int(self.facts["begin"])

    @property
    def end(self) -> int:
        """One past the last parameter."""
        return int(self.facts["end"])


def live_state(shard: Shard, cut: int) -> ShardState:
    """The state at the cut of word `cut`; its tensors are the shard's own, which go on changing: copy them before it serves again."""
    begin, end = shard.layout.slices()[shard.index]
    current = shard.memory.ring[shard.version % shard.layout.ring_slots]
    tensors = {"parameters": current} | shard.update.tensors() | shard.buffer.tensors()
    facts = {
        "begin": begin, "end": end, "cut": cut, "version": shard.version, "words": shard.words, "stalls": shard.stalls,
        "next_cut_words": shard.next_cut_words, "taken": list(shard.taken), "write_backs": list(shard.write_backs),
        "staleness": [list(pair) for pair in sorted(shard.staleness.items())], "next_worker": shard.next_worker,
    }  # fmt: skip
    return ShardState(tensors, facts | shard.update.facts() | shard.buffer.facts())


def load(shard: Shard, states: Sequence[ShardState]) -> None:
    """Puts `shard`, which has not served yet, back to the cut of `states`, those of all shards. ValueError if they do not fit."""
    begin, end = shard.layout.slices()[shard.index]
    parts = _overlapping(states, begin, end, shard.layout.parameters)
    largest = max(parts, key=lambda part: part[2] - part[1])[0]
    facts = dict(largest.facts)
    same = len(states) == shard.layout.shards and len(facts["taken"]) == shard.layout.workers
    if not same:
        facts["version"] = max(int(state.facts["version"]) for state in states)
        facts |= {"taken": [0] * shard.layout.workers, "write_backs": [0] * len(facts["write_backs"]), "staleness": [], "next_worker": 0}
    tensors = {
        name: torch.cat([state.tensors[name][first - state.begin : last - state.begin] for state, first, last in parts])
        for name in largest.tensors
    }
    if shard.update.ema is not None and "ema" not in tensors:
        raise ValueError("found no moving average in the checkpoint, expected one with training.ema_alpha above 0: keep the run's recipe")
    _adopt(shard, tensors, facts)


def _overlapping(states: Sequence[ShardState], begin: int, end: int, parameters: int) -> list[tuple[ShardState, int, int]]:
    """What of [begin, end) lies in every state, in order."""
    ordered = sorted(states, key=lambda state: state.begin)
    bounds = [0] + [state.end for state in ordered]
    if [state.begin for state in ordered] + [parameters] != bounds:
        raise ValueError(f"found slices that end at {bounds[1:]}, expected them to tile {parameters} parameters: is it of this model?")
    if len({(state.facts["cut"], state.facts["words"]) for state in ordered}) != 1:
        raise ValueError("the shards of the checkpoint stand on different cuts, expected one: it is damaged")
    parts = [(state, max(begin, state.begin), min(end, state.end)) for state in ordered]
    return [part for part in parts if part[1] < part[2]]


def _adopt(shard: Shard, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    layout, control = shard.layout, shard.memory.control
    shard.version, shard.words, shard.cut, shard.stalls = (int(facts[name]) for name in ("version", "words", "cut", "stalls"))
    shard.next_cut_words = int(facts["next_cut_words"]) if facts["next_cut_words"] else shard.words + shard.config.cut_words
    shard.taken = [int(sequence) for sequence in facts["taken"]]
    shard.write_backs = [int(version) for version in facts["write_backs"]]
    shard.staleness = Counter({int(steps): int(pushes) for steps, pushes in facts["staleness"]})
    shard.next_worker = int(facts["next_worker"]) % layout.workers
    current = shard.memory.ring[shard.version % layout.ring_slots]
    current.copy_(tensors["parameters"])
    shard.update.load(tensors, facts)
    shard.buffer.load(tensors, facts)
    shard.memory.ring[layout.ring_slots].copy_(shard.update.published(current))
    for worker, sequence in enumerate(shard.taken):
        control[layout.worker_block(worker) + FLAG] = control[layout.worker_block(worker) + APPLIED] = sequence
    control[CUT] = control[SNAPSHOT] = shard.cut
    control[CANCELLED] = 0
    control[SNAPSHOT_WORDS] = control[GLOBAL_WORDS] = shard.words
    control[VERSION] = shard.version  # last: from here on workers pull
