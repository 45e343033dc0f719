"""The record of a run as files: RUN/record/shard-N.bin and worker-N.bin, entries of one fixed size each.

    header   magic, format, role, index, workers, shards, bytes of an entry (little-endian, 40 bytes with the number of parameters)
    entry    the fields of ShardEntry or WindowEntry (distributed/record.py), the versions of all shards, CRC-32 of what comes before

Invariants: whatever is there is whole entries, but for a tail that was being written; a damaged entry or header is refused. A writer
buffers, and flushes about once a second; `position()` flushes and says how many entries there are, and a writer that is opened at a
position cuts off what comes after it: so a run that goes on from a checkpoint records as if it had never stopped. Written by
asynchronous.py, read by replay.py.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpcnmt.distributed.layout import Layout
from hpcnmt.distributed.record import Event, NoLog, Record, ShardEntry, WindowEntry

MAGIC = b"HPCNMTRE"
FORMAT = 1
FLUSH_EVERY_S = 1.0
ROLES = ("shard", "worker")
_HEADER = struct.Struct("<8sIIIIIIQ")
_CRC = struct.Struct("<I")
_SHARD = struct.Struct("<HHqq")
DROPPED, OVERLAPPED, FRESH, SWAPPED = 1, 2, 4, 8
"""Flags of a window."""


@dataclass(frozen=True)
class RecordFormat:
    """Whose entries a file holds, and how they are packed."""

    role: str
    index: int
    layout: Layout

    @property
    def _window(self) -> struct.Struct:
        return struct.Struct(f"<qqdqqII{2 * self.layout.shards}q")

    @property
    def entry_bytes(self) -> int:
        return (_SHARD if self.role == "shard" else self._window).size + _CRC.size

    @property
    def header(self) -> bytes:
        """The first bytes of the file."""
        layout = self.layout
        numbers = (ROLES.index(self.role), self.index, layout.workers, layout.shards, self.entry_bytes, layout.parameters)
        return _HEADER.pack(MAGIC, FORMAT, *numbers)

    def path(self, run: Path) -> Path:
        return run / "record" / f"{self.role}-{self.index}.bin"

    def pack(self, entry: ShardEntry | WindowEntry) -> bytes:
        """One entry with its checksum."""
        if isinstance(entry, ShardEntry):
            packed = _SHARD.pack(entry.event, entry.worker, entry.sequence, entry.version)
        else:
            flags = DROPPED * entry.dropped | OVERLAPPED * entry.overlapped | FRESH * entry.fresh | SWAPPED * entry.swapped
            words = (entry.began_words, entry.sealed_words)
            packed = self._window.pack(
                entry.sequence, entry.target_words, entry.loss_sum, *words, entry.batches, flags, *entry.began_on, *entry.sealed_on
            )
        return packed + _CRC.pack(zlib.crc32(packed))

    def unpack(self, data: bytes) -> ShardEntry | WindowEntry:
        """Inverse of `pack`; ValueError when it is damaged."""
        packed, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
        if crc != zlib.crc32(packed):
            raise ValueError(f"found the checksum {crc:08x}, expected {zlib.crc32(packed):08x}")
        if self.role == "shard":
            event, worker, sequence, version = _SHARD.unpack(packed)
            if worker >= self.layout.workers:
                raise ValueError(f"found worker {worker}, expected one of {self.layout.workers}")
            return ShardEntry(worker, sequence, version, Event(event))
        sequence, target_words, loss_sum, began_words, sealed_words, batches, flags, *versions = self._window.unpack(packed)
        half = self.layout.shards
        return WindowEntry(
            sequence, batches, target_words, loss_sum, bool(flags & DROPPED), bool(flags & OVERLAPPED), bool(flags & FRESH),
            bool(flags & SWAPPED), began_words, sealed_words, tuple(versions[:half]), tuple(versions[half:]),
        )  # fmt: skip


class RecordWriter:
    """Where a shard (Shard.log) or a worker (WorkerLoop.log) of the run `run` notes. Appends after the first `position` entries."""

    def __init__(self, run: Path, form: RecordFormat, position: int = 0) -> None:
        """With `position` 0 the file is made when there is something to write. ValueError when the file holds fewer entries."""
        self.path, self.form = form.path(run), form
        self._count = position
        self._buffer = bytearray()
        self._flushed_s = time.monotonic()
        self._file: BinaryIO | None = None
        if position:
            self._file = self._reopened(position)

    def append(self, entry: ShardEntry | WindowEntry) -> None:
        """Notes `entry`; what was noted goes to the file about once a second."""
        self._buffer += self.form.pack(entry)
        self._count += 1
        if time.monotonic() - self._flushed_s > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered to the file (OSError where that fails), for other processes to see."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # RUN is there: worker 0 has made it before it sent anything
            self._file = self.path.open("wb", buffering=0)
            self._buffer[:0] = self.form.header
        while self._buffer:
            del self._buffer[: self._file.write(self._buffer)]
        self._flushed_s = time.monotonic()

    @property
    def has_noted(self) -> bool:
        """Whether there is anything in the file or for it."""
        return self._count > 0

    def position(self) -> int:
        """Entries so far, all of them in the file: what a checkpoint notes. `sync` brings them to the disk."""
        self.flush()
        return self._count

    def sync(self) -> None:
        """Waits until what was flushed stands on the disk; may be called from another thread."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """The last flush."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _reopened(self, position: int) -> BinaryIO:
        found = len(read_entries(self.path, self.form))
        if found < position:
            raise ValueError(f"{self.path} holds {found} entries, expected at least {position}, which the checkpoint was made after")
        file = self.path.open("r+b", buffering=0)
        file.truncate(_HEADER.size + position * self.form.entry_bytes)
        file.seek(0, os.SEEK_END)
        return file


@contextmanager
def recording(run: Path, form: RecordFormat, enabled: bool, position: int = 0) -> Iterator[RecordWriter | NoLog]:
    """The log of a shard or worker while the block runs; what it has noted is in the file afterwards, however the block ends.

    After an exception nothing is made where nothing was noted: there may be no run folder yet.
    """
    if not enabled:
        yield NoLog()
        return
    writer = RecordWriter(run, form, position)
    try:
        yield writer
    except BaseException:
        if writer.has_noted:
            writer.close()
        raise
    writer.close()


def read_entries(path: Path, form: RecordFormat) -> list[ShardEntry | WindowEntry]:
    """All whole entries of `path`. Raises ValueError when it is missing, damaged or of another run."""
    if not path.is_file():
        raise ValueError(f"found no {path}, expected the record of a run with training.record=true")
    data = path.read_bytes()
    _check_header(data[: _HEADER.size], path, form)
    size, entries = form.entry_bytes, []
    for begin in range(_HEADER.size, len(data) - size + 1, size):
        try:
            entries.append(form.unpack(data[begin : begin + size]))
        except ValueError as error:
            number = (begin - _HEADER.size) // size
            raise ValueError(f"{path} is damaged at entry {number}, byte {begin}: {error}") from error
    return entries


def _check_header(header: bytes, path: Path, form: RecordFormat) -> None:
    if header == form.header:
        return
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} is no record of hpcnmt: it begins with {header[:8]!r}, expected {MAGIC!r}")
    _, number, *found = _HEADER.unpack(header)
    _, _, *expected = _HEADER.unpack(form.header)
    if number != FORMAT:
        raise ValueError(f"found the format {number} in {path}, expected {FORMAT}: it is of another version of hpcnmt")
    names = ("role", "index", "workers", "shards", "entry bytes", "parameters")
    differ = [f"{name} {a} (expected {b})" for name, a, b in zip(names, found, expected, strict=True) if a != b]
    raise ValueError(f"{path} is of another run: found {', '.join(differ)}")


def read_record(run: Path, layout: Layout) -> Record:
    """The record of all ranks of `run`. Raises ValueError."""
    shards: list[list[ShardEntry]] = []
    for index in range(layout.shards):
        form = RecordFormat("shard", index, layout)
        shards.append([entry for entry in read_entries(form.path(run), form) if isinstance(entry, ShardEntry)])
    workers: list[list[WindowEntry]] = []
    for index in range(layout.workers):
        form = RecordFormat("worker", index, layout)
        workers.append([entry for entry in read_entries(form.path(run), form) if isinstance(entry, WindowEntry)])
    return Record(shards, workers)
