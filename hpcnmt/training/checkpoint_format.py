"""The fields of a checkpoint's JSON files, checked for type before anything is used, and checksums (SHA-256).

Invariant: whatever bytes such a file holds, reading it gives the fields that are documented here or a ValueError of one line.

    COMPLETE   {"sha256": of the canonical content, "content": {"format", "number", "words", "parts": {NAME: sha256 of NAME.json},
               "linked": {FILE: sha256}}}
    NAME.json  {"format", "bytes": size of NAME.safetensors, "tensors": {TENSOR: {"sha256", "shape", "dtype"}}, "facts": {...}}

Used by checkpoint_files.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
COMPLETE = "COMPLETE"
"""Name of the file that makes a checkpoint whole."""
LARGEST_COMPLETE_BYTES = 1 << 24
PIECE_BYTES = 1 << 20
PART_NAME = re.compile(r"[A-Za-z0-9_-]+")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_facts(value: object, where: str) -> None:
    """Raises TypeError for what JSON would change or cannot hold: a key that is no text, a tuple, an array."""
    if isinstance(value, dict):
        for key, element in value.items():
            if not isinstance(key, str):
                raise TypeError(f"found the key {key!r} in {where} of a checkpoint, expected text")
            check_facts(element, f"{where}.{key}")
    elif isinstance(value, list):
        for element in value:
            check_facts(element, where)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"found a {type(value).__name__} for {where} of a checkpoint, expected a JSON value")


def parse(text: bytes, path: Path) -> dict[str, Any]:
    """The JSON mapping in `text`. Raises ValueError for anything else."""
    try:
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"found a {type(found).__name__} in {path}, expected a mapping")
    return found


def expect_format(content: dict[str, Any], path: Path) -> None:
    """Raises ValueError where `content` is not of this format."""
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise ValueError(f"found format {content.get('format')!r} in {path}, expected {FORMAT}: it is of another version of hpcnmt")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def read_complete(path: Path) -> dict[str, Any]:
    """The content of COMPLETE, its checksum and types checked."""
    if not path.is_file() or path.stat().st_size > LARGEST_COMPLETE_BYTES:
        raise ValueError(f"{path} is no file of at most {LARGEST_COMPLETE_BYTES} bytes: the checkpoint is damaged")
    outer = parse(path.read_bytes(), path)
    content = outer.get("content")
    if not isinstance(content, dict) or outer.get("sha256") != content_sha256(content):
        raise ValueError(f"found another checksum in {path} than that of its content: the checkpoint is damaged")
    expect_format(content, path)
    for name in ("number", "words"):
        if not _is_size(content.get(name)):
            raise ValueError(f"found {name} {content.get(name)!r} in {path}, expected a number of at least 0")
    for field, pattern in (("parts", PART_NAME), ("linked", FILE_NAME)):
        sums = content.get(field)
        if not isinstance(sums, dict) or not all(pattern.fullmatch(key) and _is_sha256(value) for key, value in sums.items()):
            raise ValueError(f"found no checksums by name for {field} in {path}: the checkpoint is damaged")
    return content


def check_about(about: dict[str, Any], path: Path) -> None:
    """Raises ValueError where NAME.json has not the fields and types that `write_part` gives it."""
    tensors = about.get("tensors")
    if not _is_size(about.get("bytes")) or not isinstance(about.get("facts"), dict) or not isinstance(tensors, dict):
        raise ValueError(f"{path} does not describe a part: expected the fields bytes, facts and tensors")
    for key, entry in tensors.items():
        fits = isinstance(entry, dict) and _is_sha256(entry.get("sha256")) and type(entry.get("dtype")) is str
        shape = entry.get("shape") if fits else None
        if not isinstance(shape, list) or not all(map(_is_size, shape)):
            raise ValueError(f"{path} does not describe the tensor {key!r}: expected sha256, shape and dtype")


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def dtype_name(tensor: Tensor) -> str:
    """float32, bfloat16 ..."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_sha256(tensor: Tensor) -> str:
    """Of its values as they lie in memory; empty and scalar tensors too."""
    flat = tensor.reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def copy_with_sha256(tensor: Tensor) -> tuple[Tensor, str]:
    """A copy, and the checksum of the copy; piece by piece, so that memory is read once. Releases the interpreter."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    if not tensor.numel():
        return copy, hashlib.sha256().hexdigest()
    source, target, digest = tensor.reshape(-1).view(torch.uint8), copy.view(-1).view(torch.uint8), hashlib.sha256()
    for begin in range(0, len(target), PIECE_BYTES):
        piece = target[begin : begin + PIECE_BYTES]
        piece.copy_(source[begin : begin + PIECE_BYTES])
        digest.update(piece.numpy().data)
    return copy, digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(content: dict[str, Any]) -> str:
    """Of the canonical form, so that only what counts counts."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
