"""Horovod as a Collective (collective.py): the only file that imports it.

Horovod waits in a thread of its own and has no time limit for a single sum. What it has is a watch over sums that some ranks have started
and others have not: it warns, and later ends the job. Both limits are set here from the deadlines unless the environment already sets them.
"""

from __future__ import annotations

import os

import torch
from mpi4py import MPI  # before horovod: it loads the MPI library that both are to use
from torch import Tensor

from hpcnmt.distributed.collective import World
from hpcnmt.distributed.deadlines import DeadlineConfig

try:
    import horovod
    import horovod.torch as hvd
except ImportError as error:  # built for another torch or MPI
    raise ValueError(
        f"Horovod is installed but does not load ({error}): bash env/horovod.sh mpich (or openmpi) builds it for this torch and MPI; "
        "or --set sync.backend=torch"
    ) from error


class HorovodCollective:
    """See Collective."""

    def __init__(self, world: World, device: torch.device, deadlines: DeadlineConfig) -> None:
        if device.type == "cuda" and not hvd.nccl_built():
            raise ValueError(
                "this Horovod was built without NCCL, but the workers compute on GPUs: build it with HOROVOD_GPU_OPERATIONS=NCCL, "
                "or --set sync.backend=torch"
            )
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(1, round(deadlines.stall_warning_s))))
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(max(2, round(deadlines.peer_s))))
        hvd.init(comm=MPI.COMM_WORLD)
        self.rank, self.size = hvd.rank(), hvd.size()
        if self.size != world.size:
            raise RuntimeError(f"found {self.size} ranks in Horovod, expected the {world.size} of MPI: do both load the same MPI library?")
        self.description = f"Horovod {horovod.__version__}, {MPI.Get_library_version().splitlines()[0].strip(chr(0))}"

    def start_sum(self, tensor: Tensor, name: str) -> int:
        handle: int = hvd.allreduce_async_(tensor, name=name, op=hvd.Sum)
        return handle

    def finish(self, handle: int) -> None:
        try:
            hvd.synchronize(handle)
        except RuntimeError as error:
            raise RuntimeError(
                f"a sum over {self.size} ranks failed on rank {self.rank} ({error}): is one dead? "
                "Raise deadlines.peer_s if one is only slow (rank 0 validates while the others wait)"
            ) from error

    def broadcast(self, tensor: Tensor) -> None:
        hvd.broadcast_(tensor, root_rank=0, name="broadcast")

    def close(self) -> None:
        hvd.barrier()  # the first rank to shut down would stop the others in the middle of their last sum
        hvd.shutdown()
