"""The files of a record: what is read is what was noted; damage is refused in one line; a tail that was being written is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.record import Event, NoLog, Record, ShardEntry, WindowEntry
from hpcnmt.training.recipe import build_recipe
from hpcnmt.training.record import RecordFormat, RecordWriter, read_entries, read_record, recording

LAYOUT = Layout(1000, 3, 2)
SHARD, WORKER = RecordFormat("shard", 1, LAYOUT), RecordFormat("worker", 2, LAYOUT)
PUSHES = [ShardEntry(number % 3, number + 2, number - 1, list(Event)[number % 4]) for number in range(8)]
WINDOWS = [
    WindowEntry(n + 1, 3, 2**40 + n, -1.5 / (n + 1), n == 1, n == 2, n % 2 == 0, n > 1, 2**41, 2**42, (n, n + 1), (n + 2, n + 3))
    for n in range(4)
]  # fmt: skip


def write(run: Path, form: RecordFormat, entries: list[ShardEntry] | list[WindowEntry], position: int = 0) -> int:
    with recording(run, form, True, position) as log:
        for entry in entries:
            log.append(entry)
        return log.position()


def test_what_is_read_is_what_was_noted(tmp_path: Path) -> None:
    shards, workers = [PUSHES, PUSHES[::-1]], [WINDOWS, [], WINDOWS[:2]]
    for role, logs in (("shard", shards), ("worker", workers)):
        for index, log in enumerate(logs):
            assert write(tmp_path / "run", RecordFormat(role, index, LAYOUT), log) == len(log)
    assert read_record(tmp_path / "run", LAYOUT) == Record(shards, workers)
    with recording(tmp_path / "none", SHARD, False) as log:
        log.append(PUSHES[0])
        assert isinstance(log, NoLog) and log.position() == 0
    assert not (tmp_path / "none").exists()


def test_what_an_exception_leaves_behind_is_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="planted"), recording(tmp_path, WORKER, True) as log:
        log.append(WINDOWS[0])
        raise RuntimeError("planted")
    assert read_entries(WORKER.path(tmp_path), WORKER) == WINDOWS[:1]
    with pytest.raises(RuntimeError, match="planted"), recording(tmp_path / "early", WORKER, True):
        raise RuntimeError("planted")
    assert not (tmp_path / "early").exists()  # worker 0 has yet to make it


@pytest.mark.parametrize("form", [SHARD, WORKER], ids=["shard", "worker"])
def test_a_cut_tail_is_left_out_and_damage_refused(form: RecordFormat, tmp_path: Path) -> None:
    entries = PUSHES[:2] if form is SHARD else WINDOWS[:2]
    write(tmp_path, form, entries)
    path, header = form.path(tmp_path), len(form.header)
    sound = path.read_bytes()
    assert len(sound) == header + 2 * form.entry_bytes
    for end in range(header, len(sound) + 1):
        path.write_bytes(sound[:end])
        assert read_entries(path, form) == entries[: (end - header) // form.entry_bytes]
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        with pytest.raises(ValueError, match=str(path)) as refused:
            read_entries(path, form)
        assert "\n" not in str(refused.value)
        assert ("damaged at entry" in str(refused.value)) == (position >= header)
    path.write_bytes(sound + bytes(form.entry_bytes))  # a file system may leave zeros after a crash
    with pytest.raises(ValueError, match="damaged at entry 2"):
        read_entries(path, form)
    for end in (0, header - 1):
        path.write_bytes(sound[:end])
        with pytest.raises(ValueError, match="is no record of hpcnmt"):
            read_entries(path, form)


def test_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, SHARD, PUSHES)
    with pytest.raises(ValueError, match=r"of another run: found workers 3 \(expected 4\), parameters 1000 \(expected 2000\)"):
        read_entries(SHARD.path(tmp_path), RecordFormat("shard", 1, Layout(2000, 4, 2)))
    with pytest.raises(ValueError, match=r"found no .*worker-2.bin, expected the record of a run with training.record=true"):
        read_entries(WORKER.path(tmp_path), WORKER)


def test_a_record_goes_on_from_a_position_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    write(tmp_path, SHARD, PUSHES[:5])
    path = SHARD.path(tmp_path)
    path.write_bytes(path.read_bytes() + b"half an ent")
    assert write(tmp_path, SHARD, PUSHES[3:], position=3) == len(PUSHES)
    assert read_entries(path, SHARD) == PUSHES
    with pytest.raises(ValueError, match="holds 8 entries, expected at least 9"):
        RecordWriter(tmp_path, SHARD, 9)
    assert write(tmp_path, SHARD, PUSHES[:1]) == 1  # a run that begins anew
    assert read_entries(path, SHARD) == PUSHES[:1]


def test_only_asynchronous_runs_are_recorded() -> None:
    assert build_recipe({"training": {"record": True}}).training.record
    for mode in ("sync", "plain", "virtual"):
        with pytest.raises(ValueError, match=f"training.record has no effect with training.mode={mode}"):
            build_recipe({"training": {"record": True, "mode": mode}})
