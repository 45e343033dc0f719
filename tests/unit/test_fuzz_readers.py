"""Some changed files for every reader of outside input: taken, or refused with one line. python -m tests.fuzz does more."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import pytest

from tests.fuzz.inputs import Bench
from tests.fuzz.readers import READERS
from tests.fuzz.samples import remove_prepared

INPUTS = collections.defaultdict(
    lambda: 100, grid=15, model=30, results=25, corpus=25, checkpoint=60, metrics=60, set=50, recipe=50, status=60
)


@pytest.fixture(scope="module", autouse=True)
def _prepared_is_removed() -> Iterator[None]:
    yield
    remove_prepared()


@pytest.mark.parametrize("reader", READERS)
def test_every_input_is_taken_or_refused_with_one_line(reader: str) -> None:
    bench = Bench(reader, seed=7)
    try:
        assert bench.run(-1) == ("ok", "")
        outcomes: collections.Counter[str] = collections.Counter()
        for number in range(1, INPUTS[reader] + 1):
            outcome, said = bench.run(number)
            assert outcome in ("ok", "refused"), f"python -m tests.fuzz --seed 7 --show {reader} {number}\n{said}"
            outcomes[outcome] += 1
        assert min(outcomes["ok"], outcomes["refused"]) > 0, "inputs that are all alike test nothing"
    finally:
        bench.close()


def test_crashes_and_long_messages_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("position", seed=1)
    try:
        cases = ((KeyError("x"), "KeyError"), (ValueError("x"), "refused"), (ValueError(""), "message of 0 characters, 0 lines"))
        for error, expected in cases:
            def fail(*_: object, error: Exception = error) -> None:
                raise error

            monkeypatch.setattr(bench, "reader", type(bench.reader)(bench.reader.prepare, bench.reader.make, fail))
            assert bench.run(1)[0] == expected
    finally:
        bench.close()
