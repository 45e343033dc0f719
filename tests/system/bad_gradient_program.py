"""The hpcnmt command, but one worker's gradient is not finite in some of its batches.

usage: bad_gradient_program.py RANK FIRST COUNT train RECIPE ...: of rank RANK the batches FIRST, FIRST + 1, ... (COUNT of them) get a NaN.
Stands for what a broken device does; nothing in hpcnmt knows of it. Called by test_divergence.py, on ranks of mpiexec.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from mpi4py import MPI

from hpcnmt.cli import main
from hpcnmt.data.batching import Batch
from hpcnmt.distributed.worker import BatchCounts
from hpcnmt.training.setup import Trainee


def spoil(first: int, count: int) -> None:
    batches, sound = 0, Trainee.add_gradient

    def add_gradient(self: Trainee, batch: Batch, counted: Callable[[BatchCounts], None] | None = None) -> BatchCounts:
        nonlocal batches
        counts = sound(self, batch, counted)
        batches += 1
        if first <= batches < first + count:
            self.flat.gradients[7] = float("nan")
        return counts

    Trainee.add_gradient = add_gradient  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, first, count = map(int, sys.argv[1:4])
    if MPI.COMM_WORLD.rank == rank:
        spoil(first, count)
    sys.exit(main(sys.argv[4:]))
