"""Variants of time-to-bleu: what is written is what is trained, and anything else is refused."""

from __future__ import annotations

import pytest

from hpcnmt.bench.variants import Variant, parse_variant, parse_variants


def test_a_variant_says_mode_ranks_and_options() -> None:
    found = parse_variant("fast:mode=async,workers=4,shards=2,worker.delay=2,validation.stop_on=[bleu, chrf],worker.overlap=1")
    settings = ("training.mode=async", "worker.delay=2", "validation.stop_on=[bleu, chrf]", "worker.overlap=1")
    assert found == Variant("fast", "async", 4, 2, settings)
    assert parse_variant("bare:mode=plain,optimizer={}") == Variant("bare", "plain", 1, 0, ("training.mode=plain", "optimizer={}"))
    assert parse_variant("one:mode=plain") == Variant("one", "plain", 1, 0, ("training.mode=plain",))
    assert parse_variant("all:mode=sync,workers=3") == Variant("all", "sync", 3, 0, ("training.mode=sync",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mode=plain", "expected NAME:KEY=VALUE"),
        ("a/b:mode=plain", "expected NAME:KEY=VALUE"),
        ("..:mode=plain", "expected NAME:KEY=VALUE"),
        ("a:", "expected KEY=VALUE"),
        ("a:mode=plain,", "expected KEY=VALUE"),
        ("a:mode=plain,mode=sync", "found mode twice"),
        ("a:workers=2", "found no mode"),
        ("a:mode=virtual,workers=2", "expected mode=plain|sync|async"),
        ("a:mode=plain,workers=2", "workers has no effect with mode=plain"),
        ("a:mode=sync,workers=2,shards=1", "shards has no effect with mode=sync"),
        ("a:mode=async,workers=2", "mode=async needs shards=NUMBER"),
        ("a:mode=async,workers=0,shards=1", "expected a whole number of at least 1"),
        ("a:mode=async,workers=2,shards=two", "expected a whole number of at least 1"),
        ("a:mode=plain,delay=2", "expected mode, workers, shards or an option"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_variant(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_variant_has_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match="found 2 variants named a"):
        parse_variants(["a:mode=plain", "b:mode=plain", "a:mode=sync,workers=2"])
