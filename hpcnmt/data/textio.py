"""Reading parallel text: plain, .gz or .xz, strict UTF-8, equal numbers of lines. Errors name file and line."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast


def open_binary(path: Path) -> IO[bytes]:
    """Opens `path`, unpacking by its ending."""
    if not path.is_file():
        raise ValueError(f"found no file {path}: give the path of a text file (plain, .gz or .xz)")
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def decode_line(raw: bytes, name: str, number: int) -> str:
    """One line as text without its newline; ValueError with `name` and line `number` where it is not UTF-8."""
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}:{number}: found bytes that are not UTF-8 ({error.reason}): convert the text to UTF-8") from error


def read_lines(path: Path) -> Iterator[str]:
    """Lines of `path` without their newline. Raises ValueError with file and line where the text is not UTF-8 or the archive is broken."""
    number = 0
    try:
        with open_binary(path) as stream:
            for raw in stream:
                number += 1
                yield decode_line(raw, str(path), number)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}: found a broken archive after line {number} ({error}): fetch the file again") from error


def read_parallel(source: Path, target: Path) -> list[tuple[str, str]]:
    """Pairs of lines. Raises ValueError when the files differ in length or hold nothing."""
    sources, targets = list(read_lines(source)), list(read_lines(target))
    if len(sources) != len(targets):
        raise ValueError(
            f"found {len(sources)} lines in {source} and {len(targets)} in {target}, expected as many in both: "
            "are the files aligned line by line?"
        )
    if not sources:
        raise ValueError(f"found no lines in {source} and {target}, expected at least one sentence pair")
    return list(zip(sources, targets, strict=True))
