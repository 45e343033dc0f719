"""torch.distributed as a Collective (collective.py): gloo between CPUs, NCCL between GPUs.

Where the ranks meet: at torchrun's MASTER_ADDR and MASTER_PORT; under MPI rank 0 listens on a free port, on MASTER_ADDR if that is set,
otherwise on loopback (one host) or on the name of its host, and tells the others through MPI. Every operation has the limit
`deadlines.peer_s`, kept by the library.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hpcnmt.distributed.collective import World
from hpcnmt.distributed.deadlines import DeadlineConfig

ADDRESS_BYTES = 256


def _meet_through_mpi(world: World, limit: timedelta) -> Any:
    """A key-value store that rank 0 serves and all ranks of MPI's world reach."""
    from mpi4py import MPI

    from hpcnmt.distributed.mpi import ranks_of_this_host

    one_host = len(ranks_of_this_host()) == world.size
    address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if one_host else socket.gethostname())
    store, place = None, np.zeros(ADDRESS_BYTES, np.uint8)
    new_store: Any = dist.TCPStore  # type: ignore[attr-defined]  # torch's stubs leave it out
    if world.rank == 0:
        store = new_store(address, 0, world.size, is_master=True, timeout=limit, wait_for_workers=False)
        text = f"{store.port} {address}".encode()
        place[: len(text)] = np.frombuffer(text, np.uint8)
    MPI.COMM_WORLD.Bcast(place, root=0)
    if store is not None:
        return store
    port, _, address = place.tobytes().rstrip(b"\0").decode().partition(" ")
    try:
        return new_store(address, int(port), world.size, is_master=False, timeout=limit, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"rank {world.rank} cannot reach rank 0 at {address}:{port} ({error}): set MASTER_ADDR to an address of the first host, "
            "and GLOO_SOCKET_IFNAME to the network interface between the hosts"
        ) from error


class TorchCollective:
    """See Collective."""

    def __init__(self, world: World, device: torch.device, deadlines: DeadlineConfig) -> None:
        self.rank, self.size = world.rank, world.size
        self._limit_s = deadlines.peer_s
        limit = timedelta(seconds=deadlines.peer_s)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if world.launcher == "mpi":
            store = _meet_through_mpi(world, limit)
            dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=limit)
        else:
            dist.init_process_group(backend, timeout=limit)
        self.description = f"torch.distributed {backend}, torch {torch.__version__}"

    def start_sum(self, tensor: Tensor, name: str) -> tuple[dist.Work, str]:
        work = dist.all_reduce(tensor, dist.ReduceOp.SUM, async_op=True)
        if work is None:
            raise RuntimeError(f"torch.distributed did not start the sum {name!r}: rank {self.rank} is not in its group")
        return work, name

    def finish(self, handle: tuple[dist.Work, str]) -> None:
        work, name = handle
        try:
            work.wait()
        except RuntimeError as error:
            raise RuntimeError(
                f"the sum {name!r} over {self.size} ranks failed on rank {self.rank} ({error}); each rank has {self._limit_s:.0f} s: "
                "is one dead? Raise deadlines.peer_s if one is only slow (rank 0 validates while the others wait)"
            ) from error

    def broadcast(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, 0)

    def close(self) -> None:
        dist.barrier()
        dist.destroy_process_group()
