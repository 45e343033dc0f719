"""The files of checkpoints: RUN/checkpoints/cut-00000012/{NAME.safetensors, NAME.json} of every rank NAME, linked files, and COMPLETE.

Every rank writes its part into .cut-00000012.part (`write_part`), its NAME.json last; one rank then gives the folder its name and writes
COMPLETE, which holds the checksum of every NAME.json and linked file (`commit`); NAME.json holds those of the tensors. Invariants: a
folder with COMPLETE is whole, whenever the writers were killed; nothing is pickled; whatever is read is checked for type, size and
checksum first, and refused with one line. No MPI and no threads but those that hash. Called by what saves and resumes training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcnmt.training.checkpoint_format import (
    COMPLETE,
    FILE_NAME,
    FORMAT,
    PART_NAME,
    check_about,
    check_facts,
    content_sha256,
    copy_with_sha256,
    dtype_name,
    expect_format,
    file_sha256,
    parse,
    read_complete,
    tensor_sha256,
)
from hpcnmt.training.say import say

HASH_THREADS = 4
_FOLDER = re.compile(r"cut-([0-9]{8,15})")


@dataclass(frozen=True)
class Part:
    """What one rank keeps: tensors, and facts that are JSON values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def checkpoints_folder(run: Path) -> Path:
    """Where the checkpoints of the run folder `run` lie."""
    return run / "checkpoints"


def part_folder(run: Path, number: int) -> Path:
    """The folder of checkpoint `number` while it is being written."""
    return checkpoints_folder(run) / f".{_name(number)}.part"


def _name(number: int) -> str:
    return f"cut-{number:08d}"


# ---- writing ----


def write_part(folder: Path, name: str, part: Part) -> None:
    """Writes NAME.safetensors, then NAME.json, into `folder` (made where it is missing); each appears whole and on disk, or not at all."""
    if not PART_NAME.fullmatch(name):
        raise ValueError(f"found the name {name!r} for a part of a checkpoint, expected letters, digits, - and _")
    check_facts(part.facts, "facts")
    tensors = {key: tensor.detach().contiguous() for key, tensor in part.tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as beside:  # both the writing and the hashing release the interpreter
        hashing = beside.submit(lambda: {key: tensor_sha256(tensor) for key, tensor in tensors.items()})
        _write_whole(folder / f"{name}.safetensors", lambda path: save_tensors(tensors, path))
        sums = hashing.result()
    about = {key: {"sha256": sums[key], "shape": list(tensor.shape), "dtype": dtype_name(tensor)} for key, tensor in tensors.items()}
    content = {
        "format": FORMAT, "bytes": (folder / f"{name}.safetensors").stat().st_size, "tensors": about, "facts": part.facts,
    }  # fmt: skip
    _write_text(folder / f"{name}.json", json.dumps(content))


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors to `path`, with the mode of ordinary files (safetensors alone would keep it from colleagues).

    What it refuses is an OSError where the disk is the reason.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    path.chmod(mode)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a temporary file beside `path`, brings it to the disk, and gives it its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_text(path: Path, text: str) -> None:
    _write_whole(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"))


def _sync(path: Path) -> None:
    """Waits until the file or folder `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_ahead(path: Path) -> None:
    """Tells the system that all of `path` will be read: pages that are mapped come one by one otherwise."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def is_whole(folder: Path, names: Sequence[str]) -> bool:
    """Whether every rank of `names` has written its part into `folder`."""
    return not _missing(folder, names)


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    return [f"{name}.json" for name in names if not (folder / f"{name}.json").is_file()]


def commit(
    run: Path, number: int, names: Sequence[str], links: Mapping[str, Path] | None = None, keep: int = 2, words: int = 0
) -> Path:  # fmt: skip
    """Makes checkpoint `number` of the parts `names` and the files `links` (name in the checkpoint -> file), and removes older ones.

    `words` are the global target words at the cut. The `keep` newest stay. ValueError when a part is missing.
    """
    folder, target = part_folder(run, number), checkpoints_folder(run) / _name(number)
    if missing := _missing(folder, names):
        raise ValueError(f"found no {', '.join(missing)} in {folder}, expected the parts of all {len(names)} ranks")
    parts = {name: file_sha256(folder / f"{name}.json") for name in names}
    linked = {name: _link(file, folder / name, parts) for name, file in (links or {}).items()}
    _sync(folder)
    _remove(target)  # one of this number is of writers that were killed, or was found damaged
    os.rename(folder, target)
    _sync(target.parent)
    content = {"format": FORMAT, "number": number, "words": words, "parts": parts, "linked": linked}
    _write_text(target / COMPLETE, json.dumps({"sha256": content_sha256(content), "content": content}))
    _sync(target)
    _prune(run, number, keep)
    return target


def _link(file: Path, place: Path, parts: Mapping[str, str]) -> str:
    """Links (where that is impossible copies) `file` to `place`; returns its checksum."""
    if not FILE_NAME.fullmatch(place.name) or place.name == COMPLETE or place.stem in parts:
        raise ValueError(f"found {place.name!r} for a linked file of a checkpoint, expected a plain name that no part has")
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
        _sync(place)
    except FileNotFoundError:
        raise
    except OSError:
        _write_whole(place, lambda temporary: shutil.copyfile(file, temporary))
    return file_sha256(place)


def _prune(run: Path, number: int, keep: int) -> None:
    """Removes what is older than the `keep` newest checkpoints up to `number`, and what was never completed."""
    kept = [found for found in complete_numbers(run) if found <= number][: max(keep, 1)]
    for old in {found for found in _numbers(run) if found <= number}.difference(kept):
        _remove(checkpoints_folder(run) / _name(old))
    for folder in checkpoints_folder(run).glob(".cut-*.part"):
        match = _FOLDER.fullmatch(folder.name[1:-5])
        if match and int(match[1]) < number:
            _remove(folder)


def _numbers(run: Path) -> list[int]:
    """Numbers of the folders named like checkpoints, newest first."""
    folder = checkpoints_folder(run)
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    found = [int(match[1]) for name in names if (match := _FOLDER.fullmatch(name))]
    return sorted((number for number in found if _name(number) in names), reverse=True)


def complete_numbers(run: Path) -> list[int]:
    """Numbers of the complete checkpoints of `run`, newest first; nothing in them is looked at."""
    return [number for number in _numbers(run) if (checkpoints_folder(run) / _name(number) / COMPLETE).is_file()]


def _remove(folder: Path) -> None:
    """Takes the name away first, so that a kill in the midst leaves nothing that looks whole; what cannot be removed stays hidden."""
    if not folder.exists():
        return
    hidden = folder.with_name(f".removed-{folder.name}.{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def discard(run: Path, number: int) -> None:
    """Removes what has been written of checkpoint `number`, which will not be completed."""
    _remove(part_folder(run, number))


def remove_newer(run: Path, number: int) -> None:
    """Removes the checkpoints after `number`: training goes on from that one, and theirs is a past that is given up."""
    for found in _numbers(run):
        if found > number:
            _remove(checkpoints_folder(run) / _name(found))


def remove_temporary(run: Path) -> None:
    """Removes leftovers of killed writers. Call it before any rank writes a part."""
    folder = checkpoints_folder(run)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name.startswith(".removed-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir() and (path.name.startswith(".cut-") or (_FOLDER.fullmatch(path.name) and not (path / COMPLETE).exists())):
            _remove(path)
    for path in folder.glob("cut-*/.*.tmp"):
        path.unlink(missing_ok=True)


# ---- reading ----


class Checkpoint:
    """One complete checkpoint, whose COMPLETE and NAME.json have been checked. The tensors are checked when they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = read_complete(folder / COMPLETE)
        self.number: int = content["number"]
        self.words: int = content["words"]
        """Global target words at the cut."""
        self._loaded: dict[str, Part] = {}
        self._parts: dict[str, str] = content["parts"]
        self._linked: dict[str, str] = content["linked"]
        if _name(self.number) != folder.name:
            raise ValueError(f"found the checkpoint {self.number} in {folder}, expected that of the folder's name")
        for name in self._parts:
            self._about(name)
        for name in self._linked:
            if not (folder / name).is_file():
                raise ValueError(f"found no {folder / name}, expected the file that {COMPLETE} names")

    @property
    def names(self) -> tuple[str, ...]:
        """The parts, in the order in which they were given."""
        return tuple(self._parts)

    def names_of(self, role: Literal["worker", "shard"]) -> list[str]:
        """The parts of all workers, or of all shards, in order."""
        return [name for name in self._parts if name.startswith(f"{role}-")]

    def facts(self, name: str) -> dict[str, Any]:
        """The facts of part `name`."""
        facts: dict[str, Any] = self._about(name)["facts"]
        return facts

    def load(self, names: Sequence[str]) -> None:
        """Reads these parts, each of which the next `read` gives away. Raises ValueError."""
        self._loaded = {name: self.read(name) for name in names}

    def read(self, name: str) -> Part:
        """Part `name`, every tensor checked for shape, type and checksum, in memory of its own. Raises ValueError."""
        if name in self._loaded:
            return self._loaded.pop(name)
        about, path = self._about(name), self.folder / f"{name}.safetensors"
        try:
            _read_ahead(path)
            found = load_file(path)
        except (SafetensorError, RuntimeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
        expected = about["tensors"]
        if found.keys() != expected.keys():
            raise ValueError(f"found the tensors {sorted(found)} in {path}, expected {sorted(expected)}: the file is damaged")

        def checked(key: str) -> Tensor:
            tensor, shape, dtype = found[key], expected[key]["shape"], expected[key]["dtype"]
            if list(tensor.shape) != shape or dtype_name(tensor) != dtype:
                is_now = f"found {dtype_name(tensor)} {list(tensor.shape)} for {key!r} in {path}"
                raise ValueError(f"{is_now}, expected {dtype} {shape}: the file is damaged")
            copy, digest = copy_with_sha256(tensor)  # the file may be removed while the tensor is used
            if digest != expected[key]["sha256"]:
                raise ValueError(f"found another checksum of {key!r} in {path} than when it was written: the file is damaged")
            return copy

        with ThreadPoolExecutor(HASH_THREADS) as pool:
            return Part(dict(zip(found, pool.map(checked, found), strict=True)), about["facts"])

    def linked(self, name: str) -> Path | None:
        """The linked file `name`, its checksum checked; None where the checkpoint has none of this name."""
        if name not in self._linked:
            return None
        path = self.folder / name
        if not path.is_file() or file_sha256(path) != self._linked[name]:
            raise ValueError(f"found another checksum of {path} than when it was written: the file is damaged")
        return path

    def check(self) -> None:
        """Reads and checks everything: as long as it takes to load all parts. Raises ValueError."""
        for name in self._parts:
            self.read(name)
        for name in self._linked:
            self.linked(name)

    def _about(self, name: str) -> dict[str, Any]:
        """NAME.json, checked against COMPLETE; and that NAME.safetensors has the size that it says."""
        if name not in self._parts:
            raise ValueError(f"found no part {name!r} in {self.folder}, which has {', '.join(self._parts) or 'none'}")
        path = self.folder / f"{name}.json"
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self._parts[name]:
            raise ValueError(f"found another checksum of {path} than {COMPLETE} names: the checkpoint is damaged")
        about = parse(content, path)
        expect_format(about, path)
        check_about(about, path)
        tensors = self.folder / f"{name}.safetensors"
        found = tensors.stat().st_size if tensors.is_file() else -1
        if found != about["bytes"]:
            raise ValueError(f"found {found} bytes in {tensors}, expected {about['bytes']}: the checkpoint is damaged")
        return about


def open_checkpoint(run: Path, number: int) -> Checkpoint:
    """Checkpoint `number` of `run`. Raises ValueError when it is not there or damaged."""
    return Checkpoint(checkpoints_folder(run) / _name(number))


def complete_checkpoints(run: Path, say: Callable[[str], None] = say) -> Iterator[Checkpoint]:
    """The complete checkpoints of `run`, newest first; `say` hears of each that is damaged and left out."""
    for number in complete_numbers(run):
        try:
            yield open_checkpoint(run, number)
        except (ValueError, OSError) as error:
            say(passed_over(run, number, error))


def newest_complete(run: Path, say: Callable[[str], None] = say) -> Checkpoint | None:
    """The newest of `complete_checkpoints`."""
    return next(complete_checkpoints(run, say), None)


def passed_over(run: Path, number: int, error: Exception) -> str:
    """What is said of checkpoint `number` that cannot be used."""
    return f"passed over {checkpoints_folder(run) / _name(number)}: {' '.join(str(error).split())}"
