"""Slices tile the parameters; wrong sizes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.message import Kind, PushHeader


@given(st.integers(1, 10**9), st.integers(1, 64))
def test_slices_tile_the_parameters(parameters: int, shards: int) -> None:
    shards = min(shards, parameters)
    slices = Layout(parameters, 1, shards).slices()
    assert len(slices) == shards and slices[0][0] == 0 and slices[-1][1] == parameters
    assert all(left[1] == right[0] for left, right in zip(slices, slices[1:], strict=False))
    sizes = [end - begin for begin, end in slices]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)


def test_more_shards_than_parameters() -> None:
    with pytest.raises(ValueError, match="found 4 shards for 3 parameters"):
        Layout(3, 1, 4)


@given(st.floats(allow_nan=False), st.integers(0, 2**40), st.integers(-1, 2**40))
def test_header_round_trip(loss_sum: float, words: int, version: int) -> None:
    header = PushHeader(Kind.GRADIENT, words, words, 3, loss_sum, version, 2, 1)
    assert PushHeader.unpack(header.pack()) == header
