"""One input: made from its number, laid over the valid files, read, judged. Used by worker.py and tests/unit/test_fuzz_readers.py.

Outcomes: "ok"; "refused" (ValueError or OSError whose message is one line); "hang" (LIMIT_S seconds of processor time); anything else is
a crash and named by its exception.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import traceback
import types
from collections.abc import Iterator

from tests.fuzz.readers import READERS
from tests.fuzz.samples import Files
from tests.fuzz.scratch import scratch

LIMIT_S = 10.0
LONGEST_MESSAGE = 1500


class Hang(BaseException):
    """The reader has used up its time."""


def _ring(_: int, __: types.FrameType | None) -> None:
    raise Hang


class Bench:
    """The valid files of one reader in a folder of their own, and inputs laid over them one after the other."""

    def __init__(self, reader: str, seed: int) -> None:
        self.name, self.reader, self.seed = reader, READERS[reader], seed
        self.folder = scratch()
        self.reader.prepare(self.folder)
        self.originals: Files = {
            str(path.relative_to(self.folder)): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()
        }

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def make(self, number: int) -> Files:
        """The changed files of input `number`; number -1 changes nothing."""
        if number < 0:
            return {}
        return self.reader.make(dict(self.originals), random.Random(f"{self.seed} {self.name} {number}"))

    def run(self, number: int) -> tuple[str, str]:
        """Outcome of input `number`, and what was said."""
        return self.run_files(self.make(number), number)

    def run_files(self, changed: Files, number: int = 1) -> tuple[str, str]:
        """The same of these changed files."""
        for name, content in changed.items():
            (self.folder / name).write_bytes(content)
        try:
            with _alarm():
                return self._judge(number)
        finally:
            self._restore(changed)

    def _judge(self, number: int) -> tuple[str, str]:
        from hpcnmt.training.say import one_line

        try:
            self.reader.read(self.folder, number)
        except (ValueError, OSError) as error:
            message = one_line(error)
            if message and len(message) <= LONGEST_MESSAGE and len(message.splitlines()) == 1 and message.isprintable():
                return "refused", message
            return f"message of {len(message)} characters, {len(message.splitlines())} lines", message[:300]
        except Hang:
            return "hang", traceback.format_exc()
        except BaseException as error:
            return type(error).__name__, traceback.format_exc()
        return "ok", ""

    def _restore(self, changed: Files) -> None:
        for name in changed:
            if name in self.originals:
                (self.folder / name).write_bytes(self.originals[name])
            else:
                (self.folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raises Hang after LIMIT_S seconds of this process's time: waiting for a processor that others use is no hang."""
    previous = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
