"""Run under mpiexec: the quadratic problem on real windows; worker 0 and the shards print JSON lines that the tests read."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace

import torch

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.mpi import MpiWindows, check_memory, check_world, ranks_of_this_host
from hpcnmt.distributed.policy import ShardPolicy
from hpcnmt.distributed.record import ShardEntry, WindowEntry
from hpcnmt.distributed.shard import ShardConfig
from hpcnmt.distributed.worker import WorkerConfig, WorkerLoop
from hpcnmt.optim.local import LocalConfig
from tests import quadratic

LOCAL = {
    "write_back": LocalConfig("warmup", warmup_batches=7, write_back=True),
    "compensate": LocalConfig("compensate", optimizer=quadratic.UPDATE.adam),
    "average": LocalConfig("always", average=True, carry=True),
}  # fmt: skip


def report(**fields: object) -> None:
    """One JSON line in a single write, so that the lines of several ranks do not run into each other."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    workers, shards, delay, overlap, windows_count, fail_rank = (int(a) for a in sys.argv[1:7])
    torch.set_num_threads(1)
    check_world(workers, shards)
    layout = Layout(quadratic.SIZE, workers, shards, wire="bf16" if "bf16" in sys.argv else "fp32")
    check_memory(layout, ranks_of_this_host())
    windows = MpiWindows(layout, DeadlineConfig(10, 40, 60))
    rank, policy_of_workers = windows.comm.rank, LOCAL.get(sys.argv[-1], LocalConfig())
    if rank >= workers:
        if rank == fail_rank:
            raise ValueError(f"planted failure on rank {rank}")
        policy = next((policy for name, policy in quadratic.POLICIES.items() if name in sys.argv), ShardPolicy())
        log: list[ShardEntry] = []
        update = replace(quadratic.UPDATE, average=policy_of_workers.average)
        shard = windows.serve(ShardConfig(update, policy=policy), watch=lambda shard: setattr(shard, "log", log))
        report(shard=rank, words=shard.words, version=shard.version, log=log)
    else:
        replica, accumulator = quadratic.initial(), torch.zeros(quadratic.SIZE)
        compute = quadratic.batches(replica, accumulator, rank)
        config = WorkerConfig(delay, overlap, local=policy_of_workers)
        exchange, local = Exchange(windows, rank, windows.deadlines), quadratic.local_of(config)
        loop = WorkerLoop(exchange, config, replica, accumulator, compute, local)
        windows_log: list[WindowEntry] = []
        loop.log = windows_log
        loop.start(initial=rank == 0)
        for step in range(windows_count):
            if rank == fail_rank and step == 3:
                raise ValueError(f"planted failure on rank {rank}")
            loop.window()
        loop.finish()
        digest = hashlib.sha256(loop.replica.numpy().tobytes()).hexdigest()
        report(worker=rank, digest=digest, windows=windows_log)
        if rank == 0:
            loop.call(loop.exchange.read_snapshot, replica)
            report(final=hashlib.sha256(replica.numpy().tobytes()).hexdigest())
        loop.close()
    windows.free()


if __name__ == "__main__":
    main()
