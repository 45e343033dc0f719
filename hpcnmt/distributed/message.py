"""What stands in the header of a push, and its packing into int64 control words."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What a push carries."""

    GRADIENT = 1
    INIT = 2
    FAREWELL = 3
    WRITE_BACK = 4


STOP_EARLY, SAVE_AND_END = 1, 2


@dataclass(frozen=True)
class PushHeader:
    """Header of one push: counts of the window and the version (of this shard) that the gradient was computed on."""

    kind: Kind
    target_words: int = 0
    source_words: int = 0
    sentences: int = 0
    loss_sum: float = 0.0
    version: int = -1
    cut: int = 0
    snapshot_read: int = 0
    stop: int = 0
    """STOP_EARLY: worker 0 asks every worker to end; SAVE_AND_END: a worker asks for a cut at which all save and leave."""
    stalls: int = 0
    """Of worker 0: validations without a new best so far."""

    def pack(self) -> list[int]:
        """The header as ten int64 words."""
        loss_bits = struct.unpack("<q", struct.pack("<d", self.loss_sum))[0]
        return [
            int(self.kind), self.target_words, self.source_words, self.sentences,
            loss_bits, self.version, self.cut, self.snapshot_read, self.stop, self.stalls,
        ]  # fmt: skip

    @classmethod
    def unpack(cls, words: list[int]) -> PushHeader:
        """Inverse of `pack`."""
        kind, target_words, source_words, sentences, loss_bits, version, cut, snapshot_read, stop, stalls = words[:10]
        loss_sum = struct.unpack("<d", struct.pack("<q", loss_bits))[0]
        return cls(Kind(kind), target_words, source_words, sentences, loss_sum, version, cut, snapshot_read, stop, stalls)
