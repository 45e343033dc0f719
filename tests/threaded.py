"""Ranks as threads of one process: a Collective that really sums, for tests of what stands on it. Wrong orders fail, waits have a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

LIMIT_S = 20.0


class _Meeting:
    """What the ranks of one world share: the n-th operation of each rank is the n-th of all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Condition()
        self.operations: list[tuple[str, list[Tensor]]] = []
        self.done: list[Tensor | None] = []

    def join(self, number: int, name: str, tensor: Tensor) -> None:
        with self.lock:
            if number == len(self.operations):
                self.operations.append((name, []))
                self.done.append(None)
            expected, tensors = self.operations[number]
            assert (name, tensor.shape) == (expected, (tensors or [tensor])[0].shape), f"{name} meets {expected}"
            tensors.append(tensor.clone())
            if len(tensors) == self.size:
                self.done[number] = sum(tensors[1:], tensors[0])
                self.lock.notify_all()

    def result(self, number: int) -> Tensor:
        with self.lock:
            assert self.lock.wait_for(lambda: self.done[number] is not None, LIMIT_S), f"operation {number} is incomplete"
            found = self.done[number]
        assert found is not None
        return found


class ThreadedCollective:
    """See hpcnmt.distributed.collective.Collective; `started` = names in the order of their start."""

    description = "threads of one process"

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.started: list[str] = []

    def start_sum(self, tensor: Tensor, name: str) -> tuple[int, Tensor]:
        number = len(self.started)
        self.started.append(name)
        self._meeting.join(number, name, tensor)
        return number, tensor

    def finish(self, handle: tuple[int, Tensor]) -> None:
        number, tensor = handle
        tensor.copy_(self._meeting.result(number))

    def broadcast(self, tensor: Tensor) -> None:
        if self.rank:
            tensor.zero_()
        self.finish(self.start_sum(tensor, "broadcast"))

    def close(self) -> None:
        """Nothing is held."""


def run_ranks(size: int, program: Callable[[ThreadedCollective], Any]) -> list[Any]:
    """What `program` returns on each of `size` ranks."""
    meeting = _Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: program(ThreadedCollective(rank, meeting)), range(size)))
