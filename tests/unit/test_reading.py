"""Careful reading: values of the right shape pass, everything else is one bounded line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnmt.reading import FINITE, check, parse_json, read_json, short

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
)  # fmt: skip
SHAPE: Any = {"name": str, "sizes": [int], "share?": FINITE, "by": {str: (int, None)}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a", "sizes": [1, 2], "by": {"x": None, "y": 3}}, ""),
        ({"name": "a", "sizes": [], "by": {}, "share": 0.5, "more": 1}, ""),
        ({"name": "a", "sizes": []}, "found no by in file, expected a mapping"),
        ({"name": 1, "sizes": [], "by": {}}, "found 1 for name in file, expected text"),
        ({"name": "a", "sizes": [1, True], "by": {}}, r"found True for sizes\[1\] in file, expected a whole number"),
        ({"name": "a", "sizes": [2**64], "by": {}}, "expected a whole number"),
        ({"name": "a", "sizes": [], "by": {"x": "y"}}, "for by.x in file, expected a whole number or nothing"),
        ({"name": "a", "sizes": [], "by": {}, "share": float("nan")}, "found nan for share in file, expected a finite number"),
        ([], "for the whole in file, expected a mapping"),
    ],
)
def test_shapes(value: object, message: str) -> None:
    if not message:
        assert check(value, SHAPE, "file") is value
        return
    with pytest.raises(ValueError, match=message):
        check(value, SHAPE, "file")


@given(JSON)
def test_any_value_passes_or_is_refused_in_a_bounded_line(value: object) -> None:
    assert len(short(value)) < 2000
    assert check(value, object, "file") is value
    try:
        check(value, SHAPE, "file")
    except ValueError as error:
        assert len(str(error)) < 2500


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b""])
def test_what_is_no_json_is_a_value_error(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file is not valid JSON"):
        parse_json(text, "file")
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")
