"""Run on three virtual hosts with slow links, one worker, two shards: what is still in flight to shard 1 after talking to shard 0."""

from __future__ import annotations

import json

import numpy as np
import torch

from hpcnmt.distributed.deadlines import DeadlineConfig
from hpcnmt.distributed.exchange import Exchange
from hpcnmt.distributed.layout import FLAG, HEAD, HEADER_WORDS, MESSAGE, Layout
from hpcnmt.distributed.mpi import MpiWindows
from hpcnmt.distributed.shard import ShardConfig

SIZE = 10_000_000


def main() -> None:
    torch.set_num_threads(1)
    windows = MpiWindows(Layout(SIZE, 1, 2), DeadlineConfig())
    if windows.comm.rank == 0:
        exchange = Exchange(windows, 0, windows.deadlines)
        replica = torch.arange(SIZE, dtype=torch.float32)
        exchange.send_initial(replica)
        (begin, end), (_, size) = exchange.slices
        fetched, few = torch.zeros(size - end), torch.zeros(1000)
        block = windows.layout.worker_block(0)
        in_flight = {}

        def note(name: str) -> None:
            in_flight[name] = not windows.is_complete(1)

        windows.put(1, 0, replica[end:])
        windows.read_words(0, 0, HEADER_WORDS)
        note("put, read words")
        windows.write_words(0, block + MESSAGE, np.zeros(1, np.int64))
        note("put, write words")
        windows.raise_flag(0, block + FLAG, exchange.sequence)
        note("put, raise flag")
        windows.get(0, 0, few)
        windows.flush(0)
        note("put, get")
        windows.flush(1)
        windows.get(1, 0, fetched)
        windows.read_words(0, block + HEAD, 1)
        note("get, read words")
        windows.flush(1)
        print(json.dumps({"in_flight": in_flight, "few": few.tolist()[:3], "same": torch.equal(fetched, replica[end:])}), flush=True)
        exchange.farewell()
    else:
        windows.serve(ShardConfig())
    windows.free()


if __name__ == "__main__":
    main()
