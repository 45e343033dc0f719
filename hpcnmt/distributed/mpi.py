"""MPI windows: the transport of a real run, and the main loop of a shard rank.

Windows come from MPI.Win.Allocate only (zero bytes on workers) and stay in one passive epoch for the whole run. The shard touches its own
memory alone and calls Iprobe for progress; workers Rput and Flush, Rget, and Rget_accumulate. No blocking collective: start and end use
Ibarrier with Test and sleep, because blocking calls burn the core of an oversubscribed machine.

Only puts are flushed. With MPICH over libfabric a Flush, of whatever window and rank, returns only when every transfer of the process
is complete: one flush to read a control word would stop all that runs beside the transfer in flight. A get and a fetching accumulate
are complete when their request is, for the data are back. With MPIR_CVAR_CH4_NUM_VCIS=8 MPICH counts each window's transfers apart;
so every lane of shards (layout.py) has an inbox window of its own, and the flush of one push does not wait for the push beside it.

Best effort, where Open MPI was started with `mpiexec --with-ft ulfm`: a shard learns of dead processes in Iprobe, drops dead workers and
serves the others; at the end the survivors agree among themselves, free nothing and finalize nothing, for both would wait for the dead.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from hpcnmt.distributed.activity import Activity
from hpcnmt.distributed.deadlines import DeadlineConfig, Silence
from hpcnmt.distributed.layout import LANES, Layout
from hpcnmt.distributed.shard import Shard, ShardConfig
from hpcnmt.distributed.transport import ShardMemory, Words, wire_type

CHUNK_ELEMENTS = 1 << 20
POLL_S = 2e-4
IDLE_NAP_S = 3e-4
SPIN_POLLS = 50


def expected_world_size() -> int | None:
    """Number of ranks the launcher meant to start, read from its environment; None without a launcher."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def check_world(workers: int, shards: int) -> None:
    """Raises ValueError when the world is not one world of `workers` + `shards` ranks (silent singletons included)."""
    found, expected = MPI.COMM_WORLD.size, workers + shards
    launched = expected_world_size()
    if found == 1 and launched is not None and launched > 1:
        raise ValueError(
            f"found a world of 1 rank although the launcher started {launched}: the MPI library does not speak the launcher's protocol; "
            "use srun --mpi=pmi2 with MPICH, srun --mpi=pmix with Open MPI, or the mpiexec of the same installation"
        )
    if found != expected:
        raise ValueError(
            f"found a world of {found} ranks, expected {workers} workers + {shards} shards = {expected}: "
            f"start {expected} ranks or change the number of workers or shards"
        )
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise ValueError("the MPI library grants no MPI_THREAD_SERIALIZED, which the exchange thread needs: use another MPI build")


def ranks_of_this_host() -> list[int]:
    """Ranks of the world that share this host, in order. Collective: only at the start.

    By the hosts' names: what MPI itself takes for one host can be switched off (slurm/hetjob.sbatch has to).
    """
    names = _hosts()
    return [rank for rank, name in enumerate(names) if name == names[MPI.COMM_WORLD.rank]]


def _hosts() -> list[str]:
    """The host of every rank. Collective."""
    return MPI.COMM_WORLD.allgather(MPI.Get_processor_name())


def check_memory(layout: Layout, ranks: list[int]) -> None:
    """Raises ValueError when the shards among the `ranks` of this host would not fit into /dev/shm (where windows of one host live)."""
    if MPI.COMM_WORLD.rank != min(ranks):
        return  # one rank of the host says it; the others wait for it where windows are allocated
    needed = sum(layout.shard_bytes(rank - layout.workers) for rank in ranks if rank >= layout.workers)
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize if os.path.isdir("/dev/shm") else needed
    if needed > free:
        raise ValueError(
            f"the shards of this host need {needed / 1e6:.0f} MB of window memory, found {free / 1e6:.0f} MB free in /dev/shm: "
            "use a smaller model, fewer workers, a smaller ring_slots, or more nodes"
        )


def has_lost_ranks() -> bool:
    """Whether the end of the run was one without some ranks, which have died: MPI cannot be finalized."""
    return bool(_dead)


_dead: set[int] = set()
"""Ranks that have died and were noticed; there is one world."""


class MpiWindows:
    """Allocates the windows on all ranks and is a worker's transport (see transport.Transport)."""

    def __init__(self, layout: Layout, deadlines: DeadlineConfig, activity: Activity | None = None) -> None:
        layout = layout.with_hosts(_hosts()[layout.workers :])
        self.layout, self.deadlines = layout, deadlines
        self.activity = activity or Activity()
        self.comm = MPI.COMM_WORLD
        self.shard_index = self.comm.rank - layout.workers  # negative on workers
        mine = self.shard_index >= 0
        size = layout.slice_size(self.shard_index) if mine else 0
        inbox_bytes = layout.wire_bytes * size * layout.workers
        lanes = [mine and layout.lane(self.shard_index) == lane for lane in range(LANES)]
        self.inboxes = [MPI.Win.Allocate(inbox_bytes if here else 0, layout.wire_bytes, comm=self.comm) for here in lanes]
        self.ring = MPI.Win.Allocate(4 * size * (layout.ring_slots + 1), 4, comm=self.comm)
        self.control = MPI.Win.Allocate(8 * layout.control_words if mine else 0, 8, comm=self.comm)
        self.windows = (*self.inboxes, self.ring, self.control)
        self._requests: dict[int, list[MPI.Request]] = {shard: [] for shard in range(layout.shards)}
        self._unflushed: dict[int, MPI.Win] = {}  # by shard: the window that was put to
        self.memory: ShardMemory | None = None
        if mine:
            inbox = torch.frombuffer(cast(Any, self.inbox_of(self.shard_index).tomemory()), dtype=wire_type(layout))
            ring = torch.frombuffer(cast(Any, self.ring.tomemory()), dtype=torch.float32)
            words: Words = np.frombuffer(cast(Any, self.control.tomemory()), np.int64)
            self.memory = ShardMemory.view(layout, self.shard_index, inbox, ring, words)
        for window in self.windows:
            window.Lock_all()
        self.control.Sync()
        self.barrier("the start of all ranks")

    def _rank(self, shard: int) -> int:
        return self.layout.workers + shard

    def inbox_of(self, shard: int) -> MPI.Win:
        """The window that holds the inbox of `shard`."""
        return self.inboxes[self.layout.lane(shard)]

    def put(self, shard: int, worker: int, data: Tensor) -> None:
        inbox = self.inbox_of(shard)
        self._transfer(inbox.Rput, shard, worker * self.layout.slice_size(shard), data)
        self._unflushed[shard] = inbox

    def put_initial(self, shard: int, parameters: Tensor) -> None:
        self._transfer(self.ring.Rput, shard, 0, parameters)
        self._unflushed[shard] = self.ring

    def get(self, shard: int, slot: int, out: Tensor) -> None:
        self._transfer(self.ring.Rget, shard, slot * self.layout.slice_size(shard), out)

    def _transfer(self, operation: Any, shard: int, offset: int, data: Tensor) -> None:
        half = data.dtype == torch.bfloat16  # MPI and numpy know 16 bits, not bfloat16
        flat, kind = (data.view(torch.int16).numpy(), MPI.INT16_T) if half else (data.numpy(), MPI.FLOAT)
        for begin in range(0, flat.size, CHUNK_ELEMENTS):
            chunk = flat[begin : begin + CHUNK_ELEMENTS]
            target = (offset + begin, chunk.size, kind)
            self._requests[shard].append(operation([chunk, kind], self._rank(shard), target=target))

    def is_complete(self, shard: int) -> bool:
        return bool(MPI.Request.Testall(self._requests[shard]))

    def flush(self, shard: int) -> None:
        self.deadlines.wait(f"data transfer with shard {shard}", lambda: self.is_complete(shard), self.pause)
        self._requests[shard].clear()
        window = self._unflushed.pop(shard, None)
        if window is not None:
            window.Flush(self._rank(shard))

    def write_words(self, shard: int, offset: int, words: Words) -> None:
        self._fetch(shard, offset, words, MPI.REPLACE)

    def raise_flag(self, shard: int, offset: int, sequence: int) -> None:
        self._fetch(shard, offset, np.array([sequence], np.int64), MPI.REPLACE)

    def read_words(self, shard: int, offset: int, count: int) -> Words:
        return self._fetch(shard, offset, np.zeros(count, np.int64), MPI.NO_OP)

    def _fetch(self, shard: int, offset: int, words: Words, operation: MPI.Op) -> Words:
        """Control words as they were before `operation` took `words` to them; at the shard it is done when they are back."""
        before: Words = np.empty_like(words)
        target = (offset, words.size, MPI.LONG)
        request = self.control.Rget_accumulate([words, MPI.LONG], [before, MPI.LONG], self._rank(shard), target=target, op=operation)
        self.deadlines.wait(f"control words of shard {shard}", lambda: bool(request.Test()), self.pause)
        return before

    def pause(self) -> None:
        time.sleep(POLL_S)

    def barrier(self, what: str) -> None:
        """A nonblocking barrier with sleep and deadline; only at start and end."""
        request = self.comm.Ibarrier()
        self.deadlines.wait(what, lambda: bool(request.Test()), self.pause, self.deadlines.job_s)

    def serve(self, config: ShardConfig, shard_class: type[Shard] = Shard, watch: Callable[[Shard], None] = lambda shard: None) -> Shard:
        """The whole life of a shard rank: serves until every worker has said farewell; `watch` gets to see the shard before.

        RuntimeError after job_s without a word from any worker: a shard whose host is cut off would otherwise stay for ever.
        """
        if self.memory is None:
            raise RuntimeError(f"rank {self.comm.rank} is a worker and owns no shard memory")
        shard = shard_class(self.shard_index, self.layout, config, self.memory)
        shard.activity, shard.progress = self.activity, self._progress
        shard.failed_workers = lambda: _dead
        watch(shard)
        idle, silence = 0, Silence(self.deadlines)
        while not shard.finished:
            self._progress()
            for window in self.windows:
                window.Sync()
            worked = shard.serve_once()
            self.ring.Sync()
            self.control.Sync()
            idle = 0 if worked else idle + 1
            silence.heard(worked, f"a push of any worker to shard {shard.index}")
            if idle > SPIN_POLLS:
                with self.activity("idle"):
                    time.sleep(IDLE_NAP_S)
        return shard

    def _progress(self) -> None:
        """Lets MPI move the transfers of others: over TCP nothing moves unless the target is inside an MPI call."""
        try:
            self.comm.Iprobe()
        except MPI.Exception as error:
            self._note_dead(error)

    def _note_dead(self, error: MPI.Exception) -> None:
        """Takes note of the ranks that have died; raises `error` if it is another one, RuntimeError where the run cannot go on."""
        if error.Get_error_class() != getattr(MPI, "ERR_PROC_FAILED", None):
            raise error
        group = self.comm.Get_failed()
        found = set(MPI.Group.Translate_ranks(group, list(range(group.size)), self.comm.group)) - _dead
        self.comm.Ack_failed()
        for rank in sorted(found):
            role = f"worker {rank}" if rank < self.layout.workers else f"shard {rank - self.layout.workers}"
            if not 0 < rank < self.layout.workers:
                raise RuntimeError(f"{role} has died, without which training cannot go on: --resume goes on from the newest checkpoint")
            if self.shard_index == 0:
                print(f"{role} has died: the others train on, without further checkpoints", file=sys.stderr, flush=True)
        _dead.update(found)

    def free(self) -> None:
        """Orderly end on all ranks: agree, close the epochs, free the windows. Where a worker has died the others only agree."""
        self._progress()
        if not _dead:
            try:
                self.barrier("the end of all ranks")
            except MPI.Exception as error:
                self._note_dead(error)
        if _dead:
            agreement = ThreadPoolExecutor(1).submit(self.comm.Shrink)  # blocks, and Ishrink of Open MPI 5.0 fails
            self.deadlines.wait("the end of all ranks that are left", agreement.done, self.pause, self.deadlines.job_s)
            agreement.result()
            return
        self.memory = None
        for window in self.windows:
            window.Unlock_all()
            window.Free()
