"""Text in, batches out: refusals, exact resumption, disjoint ranks."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcnmt.data.batching import make_batch, plan_epoch
from hpcnmt.data.corpus import TokenCorpus, read_description
from hpcnmt.data.loader import Loader, LoaderConfig, ordered_batches
from hpcnmt.data.prepare import PrepareConfig, PrepareReport, prepare
from hpcnmt.data.sample import write_sample_corpus
from hpcnmt.data.textio import read_lines
from hpcnmt.data.vocabulary import EOS, Vocabularies

WORDS = "red green blue house tree river walks sees the a small large".split()


def write_text(folder: Path, lines: int = 400) -> PrepareConfig:
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(WORDS, generator.integers(1, 20))) for _ in range(lines)]
    sentences[3], sentences[5] = "", " ".join(WORDS * 30)
    (folder / "a.txt").write_text("\n".join(sentences) + "\n", "utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(s[::-1] for s in sentences) + "\n")
    (folder / "v.txt").write_text("the house\na tree\n", "utf-8")
    return PrepareConfig(folder / "a.txt", folder / "b.txt.gz", folder / "v.txt", folder / "v.txt", folder / "out", 120)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    config = write_text(tmp_path_factory.mktemp("text"))
    return config.out, prepare(config)


def test_prepare_counts_what_it_drops_and_round_trips(prepared: tuple[Path, PrepareReport]) -> None:
    out, report = prepared
    assert report.dropped == {"empty": 1, "too long": 1} and report.train_pairs == 398
    vocabularies = Vocabularies.read(out)
    corpus = TokenCorpus(out, "valid", vocabularies.digest)
    assert [vocabularies.source.decode(corpus.source(i).tolist()) for i in range(2)] == ["the house", "a tree"]
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".out")]


def test_separate_vocabularies(tmp_path: Path) -> None:
    config = replace(write_text(tmp_path), separate_vocabularies=True)
    report = prepare(config)
    vocabularies = Vocabularies.read(config.out)
    assert not vocabularies.joint and (vocabularies.source.size, vocabularies.target.size) == (report.source_pieces, report.target_pieces)
    corpus = TokenCorpus(config.out, "valid", vocabularies.digest)
    assert vocabularies.source.decode(corpus.source(0).tolist()) == vocabularies.target.decode(corpus.target(0).tolist()) == "the house"
    assert vocabularies.source.encode(["house"]) != vocabularies.target.encode(["house"])  # the target text is written backwards
    assert read_description(config.out)["source_vocabulary_size"] == report.source_pieces


def test_prepare_refuses(tmp_path: Path) -> None:
    config = write_text(tmp_path)
    (tmp_path / "v.txt").write_text("the house\n\n", "utf-8")
    with pytest.raises(ValueError, match=r"v\.txt:2: found an empty line"):
        prepare(config)
    (tmp_path / "v.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"v\.txt:2: found bytes that are not UTF-8"):
        prepare(config)
    (tmp_path / "a.txt").write_text("one line\n", "utf-8")
    with pytest.raises(ValueError, match="found 1 lines .* and 400 in"):
        prepare(config)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"found no file .*a\.txt"):
        prepare(config)
    config.out.mkdir()
    with pytest.raises(ValueError, match="exists already"):
        prepare(config)


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_archives_are_read_and_broken_ones_refused(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    lines = [f"sentence {i} of {i * i % 97}" for i in range(500)]
    path = tmp_path / f"text.{ending}"
    data = pack("\n".join(lines).encode())
    path.write_bytes(data)
    assert list(read_lines(path)) == lines
    for broken in (data[: len(data) // 2], b"no archive", data[:40] + bytes(20) + data[60:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="found a broken archive after line"):
            list(read_lines(path))


def test_prepare_refuses_numbers_it_cannot_use(tmp_path: Path) -> None:
    config = write_text(tmp_path)
    with pytest.raises(ValueError, match="cannot train a vocabulary of 9 pieces"):
        prepare(replace(config, vocabulary_size=9))
    for changes in ({"max_length": 0}, {"max_length_ratio": float("nan")}):
        with pytest.raises(ValueError, match="expected at least 1 for both"):
            replace(config, **changes)
    assert not config.out.exists() and not list(tmp_path.glob(".out*"))


def test_the_sample_corpus_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_sample_corpus(tmp_path / "text", train=10, valid=2, test=2)
    assert list(tmp_path.iterdir()) == []
    write_sample_corpus(tmp_path / "text", train=10, valid=2, test=2)
    assert len(list((tmp_path / "text").iterdir())) == 6


def test_a_damaged_corpus_and_another_vocabulary_are_refused(tmp_path: Path) -> None:
    config = write_text(tmp_path)
    prepare(config)
    with pytest.raises(ValueError, match="found the vocabulary 000000000000"):
        TokenCorpus(config.out, "train", "0" * 64)
    ids = config.out / "train.source.ids"
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="the corpus is damaged"):
        TokenCorpus(config.out, "train")
    raw = bytearray((config.out / "train.target.ids").read_bytes())
    raw[0] ^= 1  # a byte of the right number of bytes
    (config.out / "train.target.ids").write_bytes(raw)
    ids.write_bytes(whole)
    with pytest.raises(ValueError, match="another checksum of the target side of 'train'"):
        TokenCorpus(config.out, "train").check()
    TokenCorpus(config.out, "valid").check()
    raw[1] = 255
    (config.out / "train.target.ids").write_bytes(raw)
    with pytest.raises(ValueError, match="found an id beyond the vocabulary of .* the target side of sentence 0 of 'train'"):
        TokenCorpus(config.out, "train").target(0)
    description = json.loads((config.out / "corpus.json").read_text())
    (config.out / "corpus.json").write_text(json.dumps(description | {"format_version": 9}))
    with pytest.raises(ValueError, match="found corpus format 9"):
        TokenCorpus(config.out, "train")


def test_ranks_are_disjoint_and_cover_the_epoch_and_resume_is_exact(prepared: tuple[Path, PrepareReport]) -> None:
    corpus = TokenCorpus(prepared[0], "train")
    config = LoaderConfig(batch_words=150, seed=3)
    seen: list[int] = []
    for rank in range(3):
        loader = Loader(corpus, config, rank, 3)
        batches = []
        while True:
            state = loader.state()
            batch = loader.next_batch()
            if loader.epoch:
                break
            batches.append(batch.sentence_ids)
        resumed = Loader(corpus, config, rank, 3, json.loads(json.dumps(state)))
        assert resumed.next_batch().sentence_ids == batch.sentence_ids
        assert resumed.next_batch().sentence_ids == loader.next_batch().sentence_ids
        seen += [i for ids in batches for i in ids]
        loader.close()
        resumed.close()
    assert sorted(seen) == list(range(len(corpus)))
    with pytest.raises(ValueError, match="has world = 3, expected 2"):
        Loader(corpus, config, 0, 2, state | {"rank": 0})


def test_an_error_of_the_prefetch_thread_reaches_the_caller(prepared: tuple[Path, PrepareReport]) -> None:
    loader = Loader(TokenCorpus(prepared[0], "train"), LoaderConfig(batch_words=10**6), 0, 2)
    with pytest.raises(RuntimeError, match="found 1 batches in an epoch for 2 workers"):
        loader.next_batch()
    loader.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 300), st.integers(0, 5))
def test_a_plan_holds_every_sentence_once_within_the_budget(lengths: list[int], batch_words: int, epoch: int) -> None:
    array = np.array(lengths)
    plan = plan_epoch(array, array, batch_words, 1, epoch)
    assert sorted(int(i) for batch in plan for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or (array[batch] + 1).sum() <= batch_words for batch in plan)


def test_batches_end_with_eos_and_count_unpadded_words(prepared: tuple[Path, PrepareReport]) -> None:
    batch = make_batch([np.array([5, 6]), np.array([7])], [np.array([8]), np.array([9, 9, 9])], [0, 1])
    assert batch.source_ids.tolist() == [[5, 6, EOS], [7, EOS, 0]]
    assert batch.target_lengths.tolist() == [2, 4] and (batch.source_words, batch.target_words) == (5, 6)
    corpus = TokenCorpus(prepared[0], "valid")
    assert sorted(i for b in ordered_batches(corpus, 50) for i in b.sentence_ids) == [0, 1]
