"""Run under mpiexec: one shard counts versions up as fast as pushes come; workers check that a replica is one version throughout.

`planted` makes the shard write the new version over the published one: the workers must then see torn replicas.
usage: torn_program.py planted|sound SECONDS
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.mpi import MpiWindows
from hpcnmt.distributed.shard import Shard, ShardConfig

SIZE = 1_000_000


class CountingShard(Shard):
    """Every update adds one to every parameter, so that a replica of version v holds v everywhere."""

    planted = False

    def apply_gradient(self, gradient_sum: Tensor, target_words: int, staleness: int) -> None:
        ring, slots = self.memory.ring, self.layout.ring_slots
        new = ring[self.version % slots] if self.planted else ring[(self.version + 1) % slots]
        torch.add(ring[self.version % slots], 1.0, out=new)
        if self.planted:
            ring[(self.version + 1) % slots].copy_(new)
        self.version += 1


def main() -> None:
    torch.set_num_threads(1)
    CountingShard.planted = sys.argv[1] == "planted"
    windows = MpiWindows(Layout(SIZE, 3, 1), DeadlineConfig(10, 40, 60))
    rank = windows.comm.rank
    if rank == 3:
        windows.serve(ShardConfig(), CountingShard)
        windows.free()
        return
    exchange = Exchange(windows, rank, windows.deadlines)
    replica, gradient = torch.zeros(SIZE), torch.zeros(SIZE)
    if rank == 0:
        exchange.send_initial(replica)
    torn = pulls = 0
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end and torn < 3:
        exchange.pull(replica)
        pulls += 1
        torn += not bool((replica == exchange.versions[0]).all())
        if rank:
            exchange.push(gradient, PushHeader(Kind.GRADIENT, 1))
    exchange.farewell()
    line = {"torn": torn, "pulls": pulls, "rejected": exchange.rejected_pulls, "version": exchange.versions[0]}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    windows.free()


if __name__ == "__main__":
    main()
