"""Collective: what synchronous training needs of a communication library, and the choice of one.

A sum over all ranks that goes on in the background, a broadcast at the start, and an orderly end: no more, so that Horovod
(collective_horovod.py) and torch.distributed (collective_torch.py) stand behind the same door. Invariants: every rank starts the same sums
in the same order; a process has windows (mpi.py) or a collective, never both. `find_world` comes first, because a rank must know its place
on its host before it chooses a GPU. Called by training/synchronous.py and by benchmarks; libraries are imported only when they are chosen.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hpcnmt.distributed.deadlines import DeadlineConfig

Backend = Literal["horovod", "torch"]
Handle = Any
"""A sum under way; its type is the library's own."""
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Collective(Protocol):
    """Collective operations of one rank, on contiguous tensors of the device that it was opened for."""

    rank: int
    size: int
    description: str
    """Library and version, for the run folder."""

    def start_sum(self, tensor: Tensor, name: str) -> Handle:
        """Starts to replace `tensor` by its sum over the ranks; it may not be touched until `finish`. Sums under way differ in `name`."""

    def finish(self, handle: Handle) -> None:
        """Waits for the sum. Raises RuntimeError when a rank has failed, or does not come within the deadline."""

    def broadcast(self, tensor: Tensor) -> None:
        """Replaces `tensor` by that of rank 0."""

    def close(self) -> None:
        """The orderly end, on all ranks: waits for all of them, then leaves."""


@dataclass(frozen=True)
class World:
    """The ranks of a synchronous run and who started them."""

    rank: int
    size: int
    local_rank: int
    """Number of this rank on its host."""
    launcher: Literal["mpi", "torchrun"]


def is_started_by_torchrun() -> bool:
    """True where torchrun (or a script after its manner) has named rank, size and meeting point in the environment."""
    return all(os.environ.get(name) for name in TORCH_VARIABLES)


def check_backend(backend: Backend) -> None:
    """Raises ValueError with what to type when the library is not installed."""
    if backend == "horovod" and importlib.util.find_spec("horovod") is None:
        raise ValueError(
            "sync.backend is horovod, found no Horovod in this environment: bash env/horovod.sh mpich (or openmpi) builds it; "
            "or --set sync.backend=torch"
        )
    if backend == "torch" and not torch.distributed.is_available():
        raise ValueError("sync.backend is torch, but this torch was built without torch.distributed: --set sync.backend=horovod")


def find_world(backend: Backend, workers: int) -> World:
    """The place of this rank, from torchrun's environment (backend torch) or from MPI.

    Raises ValueError or RuntimeError when the world does not have `workers` ranks; silent singletons are found out.
    """
    check_backend(backend)
    if is_started_by_torchrun():
        if backend == "horovod":
            raise ValueError(
                "sync.backend is horovod, which needs MPI, but found the environment of torchrun: start with mpiexec or srun, "
                "or --set sync.backend=torch"
            )
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if size != workers:
            raise RuntimeError(f"found {size} ranks of torchrun, expected {workers} workers: use --workers {size}")
        return World(rank, size, int(os.environ.get("LOCAL_RANK", "0")), "torchrun")
    from hpcnmt.distributed.mpi import check_world, ranks_of_this_host  # initialises MPI

    check_world(workers, 0)
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    return World(rank, workers, ranks_of_this_host().index(rank), "mpi")


def open_collective(backend: Backend, world: World, device: torch.device, deadlines: DeadlineConfig) -> Collective:
    """Opens the library on all ranks of `world`, for tensors on `device`."""
    if backend == "horovod":
        from hpcnmt.distributed.collective_horovod import HorovodCollective

        return HorovodCollective(world, device, deadlines)
    from hpcnmt.distributed.collective_torch import TorchCollective

    return TorchCollective(world, device, deadlines)
