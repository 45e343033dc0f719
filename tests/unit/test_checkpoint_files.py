"""Checkpoints on the disk: what goes in comes out, damage is refused, and a kill at any moment loses no checkpoint that was complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcnmt.training.checkpoint_files import (
    Checkpoint,
    Part,
    checkpoints_folder,
    commit,
    complete_checkpoints,
    complete_numbers,
    discard,
    is_whole,
    newest_complete,
    part_folder,
    remove_newer,
    remove_temporary,
    write_part,
)

NAMES = ("worker-0", "shard-0")
OPERATIONS = ("replace", "rename", "fsync", "link", "unlink", "rmdir")


def make_part(value: float) -> Part:
    tensors = {
        "parameters": torch.full((3, 2), value), "moments": torch.arange(5).to(torch.bfloat16) + value, "count": torch.tensor(7),
        "random": torch.arange(16, dtype=torch.uint8), "empty": torch.empty(0, 4), "transposed": torch.arange(6.0).reshape(2, 3).T,
    }  # fmt: skip
    return Part(tensors, {"words": int(value), "history": [1.5, None, True], "of": {"a": "ü"}})


def save(run: Path, number: int, value: float, keep: int = 2) -> Path:
    for name in NAMES:
        write_part(part_folder(run, number), name, make_part(value))
    model = run / "model.safetensors"
    if not model.exists():
        model.write_bytes(b"a model")
    return commit(run, number, NAMES, {"model.safetensors": model}, keep, words=int(value))


def contents(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that a reader can learn of it; raises ValueError for damage."""
    parts = {name: checkpoint.read(name) for name in checkpoint.names}
    tensors = {n: {k: (t.dtype, t.tolist()) for k, t in sorted(part.tensors.items())} for n, part in parts.items()}
    linked = checkpoint.linked("model.safetensors")
    assert linked is not None
    facts = [(part.facts, checkpoint.facts(name)) for name, part in parts.items()]
    return {"number": checkpoint.number, "words": checkpoint.words, "tensors": tensors, "facts": facts, "linked": linked.read_bytes()}


def newest(run: Path) -> Checkpoint:
    found = newest_complete(run)
    assert found is not None
    return found


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path, 12, 5.0)
    assert folder == tmp_path / "checkpoints" / "cut-00000012"
    checkpoint = newest(tmp_path)
    assert (checkpoint.names, checkpoint.number, checkpoint.words) == (NAMES, 12, 5)
    part, expected = checkpoint.read("shard-0"), make_part(5.0)
    assert part.facts == checkpoint.facts("shard-0") == expected.facts and part.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        assert part.tensors[key].dtype == tensor.dtype and torch.equal(part.tensors[key], tensor)
    assert checkpoint.linked("other.safetensors") is None
    assert (folder / "model.safetensors").stat().st_ino == (tmp_path / "model.safetensors").stat().st_ino
    checkpoint.check()
    (tmp_path / "ordinary").touch()
    assert {p.stat().st_mode for p in folder.iterdir()} == {(tmp_path / "ordinary").stat().st_mode}
    with pytest.raises(ValueError, match="found no part 'worker-1' in .*cut-00000012, which has worker-0, shard-0"):
        checkpoint.read("worker-1")


def test_keeps_the_newest_and_goes_back_to_an_older_one(tmp_path: Path) -> None:
    write_part(part_folder(tmp_path, 1), "worker-0", make_part(0.0))
    for number in (2, 3, 4):
        save(tmp_path, number, number * 10.0)
    folder = checkpoints_folder(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["cut-00000003", "cut-00000004"]
    assert [found.number for found in complete_checkpoints(tmp_path)] == complete_numbers(tmp_path) == [4, 3]
    remove_newer(tmp_path, 3)
    assert newest(tmp_path).number == 3
    write_part(part_folder(tmp_path, 9), "worker-0", make_part(0.0))
    (folder / "cut-00000009").mkdir()
    discard(tmp_path, 9)
    remove_temporary(tmp_path)
    assert [p.name for p in folder.iterdir()] == ["cut-00000003"]


def test_refuses_what_is_not_whole(tmp_path: Path) -> None:
    folder = part_folder(tmp_path, 1)
    assert newest_complete(tmp_path) is None and not is_whole(folder, NAMES)
    write_part(folder, "worker-0", make_part(0.0))
    assert not is_whole(folder, NAMES) and is_whole(folder, NAMES[:1])
    with pytest.raises(ValueError, match="found no shard-0.json in .*part, expected the parts of all 2 ranks"):
        commit(tmp_path, 1, NAMES)
    with pytest.raises(ValueError, match="found the name '../x'"):
        write_part(folder, "../x", make_part(0.0))
    with pytest.raises(TypeError, match=r"found the key 3 in facts\.pushes"):
        write_part(folder, "shard-0", Part({}, {"pushes": {3: 4}}))


def test_a_link_that_is_impossible_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 1, 1.0)
    linked = newest(tmp_path).linked("model.safetensors")
    assert linked is not None and linked.read_bytes() == b"a model" and linked.stat().st_nlink == 1


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pristine")
    save(run, 1, 1.0)
    save(run, 2, 2.0)
    return run


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_without_effect(pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = tmp_path_factory.mktemp("damaged")
    shutil.copytree(pristine, run, dirs_exist_ok=True)
    expected = contents(newest(run))
    path = data.draw(st.sampled_from(sorted((run / "checkpoints" / "cut-00000002").iterdir())))
    raw = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(("byte", "cut", "more", "gone"))):
        case "byte":
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
            path.write_bytes(raw)
        case "cut":
            path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
        case "more":
            path.write_bytes(raw + data.draw(st.binary(min_size=1, max_size=20)))
        case "gone":
            path.unlink()
    said: list[str] = []
    checkpoint = newest_complete(run, say=said.append)
    assert checkpoint is not None and all("\n" not in line and "cut-00000002" in line for line in said)
    if checkpoint.number == 1:
        assert len(said) == 1 or path.name == "COMPLETE"
    try:
        found = contents(checkpoint)
    except ValueError as error:
        assert "\n" not in str(error) and path.name in str(error)
    else:
        assert found == expected or (checkpoint.number == 1 and said) or not path.exists()
    shutil.rmtree(run)


@pytest.mark.parametrize("complete", ["{", "[]", '{"sha256": 3, "content": {}}', "[" * 100_000, "\udcff", "9" * 5000])
def test_garbage_is_passed_over_with_one_line(tmp_path: Path, complete: str) -> None:
    save(tmp_path, 1, 1.0)
    (tmp_path / "checkpoints" / "cut-00000002").mkdir()
    (tmp_path / "checkpoints" / "cut-00000002" / "COMPLETE").write_bytes(complete.encode("utf-8", "surrogateescape"))
    said: list[str] = []
    found = newest_complete(tmp_path, say=said.append)
    assert found is not None and found.number == 1 and len(said) == 1 and "cut-00000002" in said[0] and "\n" not in said[0]


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Callable[[], int]:
    """From file operation number `moment` on all of them raise: nothing tidies up after a kill. Returns how many there were."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            return operation(*arguments, **options)

        return wrapper

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return lambda: count


def test_a_kill_at_any_moment_loses_no_checkpoint(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after each file operation of writing number 3: 2 or 3 is the newest then, whole; and writing 3 again works."""
    seen = set()
    for moment in range(1000):
        run = tmp_path / str(moment)
        shutil.copytree(pristine, run)
        with monkeypatch.context() as patch:
            count = kill_at(patch, moment)
            try:
                save(run, 3, 3.0)
                killed = False
            except Killed:
                killed = True
        found = newest(run)
        contents(found)
        seen.add((killed, found.number))
        remove_temporary(run)
        assert all(not p.name.startswith(".") for p in (run / "checkpoints").rglob("*"))
        save(run, 3, 4.0)
        assert (newest(run).number, newest(run).words) == (3, 4)
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["cut-00000002", "cut-00000003"]
        contents(newest(run))
        shutil.rmtree(run)
        if not killed:
            break
    assert seen == {(True, 2), (True, 3), (False, 3)} and count() == moment


def test_a_full_disk_leaves_nothing_half_written(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 3, 3.0)
    assert not list(part_folder(tmp_path, 3).iterdir()) and newest(tmp_path).number == 2
    discard(tmp_path, 3)
    assert json.loads((save(tmp_path, 3, 3.0) / "COMPLETE").read_text())["content"]["number"] == 3
