"""Resuming the data: exactly, and with another number of workers, with every sentence of every epoch once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcnmt.data.corpus import FORMAT_VERSION, TokenCorpus, write_split
from hpcnmt.data.loader import Loader, LoaderConfig, batches_by_epoch
from hpcnmt.data.position import State, check_state, pool

SENTENCES = 60
EPOCHS = 3
CONFIG = LoaderConfig(batch_words=40, seed=5, max_epochs=EPOCHS, prefetch_batches=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    rows = [generator.integers(4, 50, generator.integers(1, 15)).tolist() for _ in range(SENTENCES)]
    splits = {"train": write_split(folder, "train", {"source": rows, "target": rows}, 50)}
    content = {"format_version": FORMAT_VERSION, "vocabulary_size": 50, "vocabulary_digest": "v", "splits": splits}
    (folder / "corpus.json").write_text(json.dumps(content))
    return TokenCorpus(folder, "train")


def take(loader: Loader, batches: int) -> list[tuple[int, ...]]:
    """Sentences of the next `batches` batches, fewer at the end of the data."""
    taken = []
    for _ in range(batches):
        batch = loader.next_batch()
        if batch is None:
            break
        assert loader.last_sentence_ids == batch.sentence_ids
        taken.append(batch.sentence_ids)
    return taken


def start(corpus: TokenCorpus, states: list[State]) -> list[Loader]:
    return [Loader(corpus, CONFIG, rank, len(states), json.loads(json.dumps(state))) for rank, state in enumerate(states)]


def close(loaders: list[Loader]) -> list[State]:
    states = [loader.state() for loader in loaders]
    for loader in loaders:
        loader.close()
    return states


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_sentence_of_every_epoch_once_however_often_the_world_changes(corpus: TokenCorpus, data: st.DataObject) -> None:
    loaders = [Loader(corpus, CONFIG, rank, world) for world in [data.draw(st.integers(1, 5))] for rank in range(world)]
    seen: Counter[int] = Counter()
    for _ in range(data.draw(st.integers(0, 4))):
        for loader in loaders:
            for sentences in take(loader, data.draw(st.integers(0, 12))):
                seen.update(sentences)
        states = close(loaders)
        world = data.draw(st.integers(1, 5))
        if world != len(states) or data.draw(st.booleans()):
            states = pool(data.draw(st.permutations(states)), world, batches_by_epoch(corpus, CONFIG))
        loaders = start(corpus, states)
    for loader in loaders:
        for sentences in take(loader, 1000):
            seen.update(sentences)
    assert seen == {sentence: EPOCHS for sentence in range(SENTENCES)}
    ended = start(corpus, close(loaders))
    assert [loader.next_batch() for loader in ended] == [None] * len(ended)
    pooled = start(corpus, pool(close(ended), 2, batches_by_epoch(corpus, CONFIG)))
    assert [loader.next_batch() for loader in pooled] == [None, None]
    close(pooled)


def test_a_backlog_is_resumed_exactly_and_ordered(corpus: TokenCorpus) -> None:
    old = [Loader(corpus, CONFIG, rank, 3) for rank in range(3)]
    for loader, batches in zip(old, (1, 9, 4), strict=True):
        take(loader, batches)
    states = pool(close(old), 2, batches_by_epoch(corpus, CONFIG))
    dealt = [item for pair in zip(*(state["backlog"] for state in states), strict=False) for item in pair]
    assert dealt == sorted(dealt) and abs(len(states[0]["backlog"]) - len(states[1]["backlog"])) <= 1
    whole = start(corpus, states)[0]
    batches = take(whole, 1000)
    for position in range(len(batches) + 1):
        first = start(corpus, states)[0]
        begun = take(first, position)
        second = Loader(corpus, CONFIG, 0, 2, json.loads(json.dumps(first.state())))
        assert begun + take(second, 1000) == batches
        first.close()
        second.close()


def test_wrong_states_are_refused_with_one_line(corpus: TokenCorpus) -> None:
    batches_of = batches_by_epoch(corpus, CONFIG)
    loaders = [Loader(corpus, CONFIG, rank, 2) for rank in range(2)]
    take(loaders[0], 3)
    good = close(loaders)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"epoch": True}, "epoch = True"), ({"epoch": -1}, "epoch = -1"), ({"next_index": 1.0}, "next_index = 1.0"),
        ({"rank": 2}, "rank = 2, world = 2"),
        ({"next_index": 7}, "do not fit each other"), ({"vocabulary": None}, "vocabulary = None"), ({"backlog": {}}, r"backlog = \{\}"),
        ({"backlog": [[0, 1]]}, "rising pairs .* of epochs before 0"), ({"backlog": [[0, "1"]]}, r"\[0, '1'\] in its backlog"),
        ({"epoch": 2, "backlog": [[1, 1], [1, 1]]}, "rising pairs"),
    ]  # fmt: skip
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            check_state(good[0] | change)
    with pytest.raises(ValueError, match="found a list for the state"):
        check_state([])
    with pytest.raises(ValueError, match=r"workers \[0\], expected those of all 2 workers"):
        pool(good[:1], 3, batches_of)
    with pytest.raises(ValueError, match="with seed = 6 and 5"):
        pool([good[0], good[1] | {"seed": 6}], 3, batches_of)
    with pytest.raises(ValueError, match="the same batch in the states of two loaders"):
        pool([good[0] | {"epoch": 1, "backlog": [[0, 3]]}, good[1]], 3, batches_of)
    with pytest.raises(ValueError, match="epochs apart"):
        pool([good[0] | {"epoch": 2**61}, good[1]], 3, batches_of)
    with pytest.raises(ValueError, match="has batch_words = 40, expected 41"):
        Loader(corpus, LoaderConfig(batch_words=41, seed=5), 0, 2, good[0])
    broken = Loader(corpus, CONFIG, 0, 2, good[0] | {"epoch": 1, "backlog": [[0, 1000]]})
    with pytest.raises(RuntimeError, match="found batch 1000 in the loader state"):
        broken.next_batch()
    broken.close()
