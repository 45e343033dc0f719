"""Slices tile the parameters; wrong sizes are refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.message import Kind, PushHeader
from hpcnmt.distributed.pipeline import lanes_of


@given(st.integers(1, 10**9), st.integers(1, 64))
def test_slices_tile_the_parameters(parameters: int, shards: int) -> None:
    shards = min(shards, parameters)
    slices = Layout(parameters, 1, shards).slices()
    assert len(slices) == shards and slices[0][0] == 0 and slices[-1][1] == parameters
    assert all(left[1] == right[0] for left, right in zip(slices, slices[1:], strict=False))
    sizes = [end - begin for begin, end in slices]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)


@given(st.integers(1, 10**9), st.integers(1, 64), st.integers(1, 64))
def test_parts_of_workers_tile_the_parameters_and_pieces_on_shards_tile_a_part(parameters: int, workers: int, shards: int) -> None:
    layout = Layout(parameters, workers, min(shards, parameters))
    parts = [layout.part(worker) for worker in range(workers)]
    assert parts[0][0] == 0 and parts[-1][1] == parameters
    assert all(left[1] == right[0] for left, right in zip(parts, parts[1:], strict=False))
    sizes = [end - begin for begin, end in parts]
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 1
    for worker in {0, workers // 2, workers - 1}:
        pieces = [piece for shard in range(layout.shards) if (piece := layout.part_on(worker, shard))[0] < piece[1]]
        covered = [*parts[worker]] if not pieces else [pieces[0][0], pieces[-1][1]]
        assert covered == [*parts[worker]] and bool(pieces) == (sizes[worker] > 0)
        assert all(left[1] == right[0] for left, right in zip(pieces, pieces[1:], strict=False))


def test_more_shards_than_parameters() -> None:
    with pytest.raises(ValueError, match="found 4 shards for 3 parameters"):
        Layout(3, 1, 4)


@given(st.floats(allow_nan=False), st.integers(0, 2**40), st.integers(-1, 2**40))
def test_header_round_trip(loss_sum: float, words: int, version: int) -> None:
    header = PushHeader(Kind.GRADIENT, words, words, 3, loss_sum, version, 2, 1, 1, 4)
    assert PushHeader.unpack(header.pack()) == header


@given(st.integers(1, 40), st.integers(1, 40))
def test_every_worker_pushes_to_every_shard_once_and_workers_begin_spread(workers: int, shards: int) -> None:
    layout = Layout(1000, workers, shards)
    begins: Counter[int] = Counter()
    for worker in range(workers):
        lanes = lanes_of(worker, layout)
        assert sorted(shard for lane in lanes for shard in lane) == list(range(shards))
        begins[lanes[0][0] if lanes[0] else lanes[1][0]] += 1
    most = max(1, -(-workers // max(1, sum(layout.lane(s) == 0 for s in range(shards)))))
    assert max(begins.values()) <= most


@given(st.integers(1, 12), st.integers(2, 6), st.integers(1, 4), st.booleans())
def test_all_workers_push_to_the_first_shard_of_every_host_before_the_second(workers: int, hosts: int, each: int, dealt: bool) -> None:
    shards = hosts * each
    names = [f"host{shard % hosts if dealt else shard // each}" for shard in range(shards)]
    layout = Layout(1000, workers, shards).with_hosts(names)
    for worker in range(workers):
        lanes = lanes_of(worker, layout)
        assert sorted(shard for lane in lanes for shard in lane) == list(range(shards))
        for lane in lanes:
            places = [names[:shard].count(names[shard]) for shard in lane]
            assert places == sorted(places)
        if hosts % 2 == 0:  # then both lanes have the same number of shards in every round, and never use one host at once
            assert all(names[:a].count(names[a]) == names[:b].count(names[b]) and names[a] != names[b] for a, b in zip(*lanes, strict=True))


def test_shards_of_one_host_are_begun_with_in_turn() -> None:
    layout = Layout(1000, 4, 8)
    assert layout.with_hosts(["here"] * 8) == layout
    assert [lanes_of(worker, layout)[0][0] for worker in range(4)] == [0, 1, 2, 3]
