"""What ended ranks leave behind on this host, and its removal: processes, shared-memory segments, temporary folders.

Ranks that the launcher starts carry a random token in their environment (HPCNMT_JOB); only processes with that token are ever ended.
Only segments are unlinked that belong to this user, and that no process maps or holds open. A small record in the folder for temporary
files, named by the run's path, lets the next start of the same run clean up after a launcher that was killed.
Used by launch.py; `python -m hpcnmt.training.leftovers` removes unused segments of MPI, for job scripts. Linux only (/proc).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "HPCNMT_JOB"
PROC, SHARED_MEMORY = Path("/proc"), Path("/dev/shm")
SEGMENT = re.compile(r"(mpich_sh(m|ar)_|ucx_shm_|sm_segment\.|osc_sm\.|vader_segment\.|open_mpi\.|psm2?_shm|cray-shared-mem-)[\w.@:-]*")
"""Names that MPICH, UCX, Open MPI and their transports give."""
HYDRA_FILE, HYDRA_PROXY, HYDRA_FILE_S = "hydra_hwloc_xmlfile_", "hydra_pmi_proxy", 60.0
"""MPICH's proxy writes such a file in /tmp as it starts, and removes it at its end, but not when it is killed."""
GONE_S = 10.0
Segment = tuple[str, int]
"""Name in /dev/shm and inode: another file that takes the same name later is another segment."""


def processes() -> Iterator[int]:
    """Process ids of this host."""
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def environment_of(pid: int) -> dict[str, str] | None:
    """The environment that `pid` was started with; empty for a zombie; None when it is gone or belongs to somebody else."""
    try:
        text = (PROC / str(pid) / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)


def started_s(pid: int) -> float | None:
    """When `pid` began, in seconds of the clock of this boot; with the id it names one process only. None when there is none."""
    try:
        fields = (PROC / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def with_token(token: str) -> dict[int, dict[str, str]]:
    """Living processes started with `token`, but this one, and their environments."""
    found = {pid: environment_of(pid) for pid in processes() if pid != os.getpid()}
    return {pid: variables for pid, variables in found.items() if variables is not None and variables.get(TOKEN) == token}


def end_processes(token: str, patience_s: float = 0.0) -> int:
    """Kills what is left with `token` after `patience_s`, and waits until it is gone; returns how many were killed."""
    limit_s, killed = time.monotonic() + patience_s, set[int]()
    while (left := with_token(token)) and time.monotonic() < limit_s:
        time.sleep(0.05)
    limit_s = time.monotonic() + GONE_S
    while left and time.monotonic() < limit_s:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= set(left)
        time.sleep(0.02)
        left = with_token(token)
    return len(killed)


def _lines_of_maps(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []  # gone, or somebody else's


def segments_of(pids: Iterable[int]) -> set[Segment]:
    """Segments of /dev/shm that `pids` map and that have a name still."""
    found = set[Segment]()
    for pid in pids:
        for line in _lines_of_maps(pid):
            if "/dev/shm/" in line and not line.endswith("(deleted)"):
                parts = line.split(None, 5)  # addresses, rights, offset, device, inode, path
                found.add((parts[5].removeprefix("/dev/shm/"), int(parts[4])))
    return {(name, inode) for name, inode in found if "/" not in name}


def _in_use() -> set[int]:
    """Inodes of the files of /dev/shm that any process maps or holds open, as far as this user may see."""
    found = set[int]()
    for pid in processes():
        found |= {inode for _, inode in segments_of([pid])}
        try:
            entries = list((PROC / str(pid) / "fd").iterdir())
        except OSError:
            continue
        for entry in entries:
            with suppress(OSError):
                if os.readlink(entry).startswith("/dev/shm/"):
                    found.add(entry.stat().st_ino)
    return found


def remove_segments(candidates: Iterable[Segment]) -> list[str]:
    """Unlinks those of `candidates` that are still there, are this user's, and that no process uses; returns their names."""
    removed, candidates = [], sorted(candidates)
    used = _in_use() if candidates else set[int]()
    for name, inode in candidates:
        path = SHARED_MEMORY / name
        with suppress(OSError):
            facts = path.lstat()
            if facts.st_ino == inode and facts.st_uid == os.getuid() and stat.S_ISREG(facts.st_mode) and inode not in used:
                path.unlink()
                removed.append(name)
    return removed


def segments_of_mpi(since_s: float = 0.0) -> set[Segment]:
    """Segments with a name of MPI that this user made at `since_s` (seconds since the epoch) or later."""
    found = set[Segment]()
    if not SHARED_MEMORY.is_dir():
        return found
    for path in SHARED_MEMORY.iterdir():
        with suppress(OSError):
            facts = path.lstat()
            if SEGMENT.fullmatch(path.name) and facts.st_uid == os.getuid() and facts.st_ctime >= since_s:
                found.add((path.name, facts.st_ino))
    return found


def remove_hydra_files(since_s: float = 0.0) -> list[str]:
    """Removes this user's files of MPICH's proxies in /tmp, made at `since_s` or later, that no living proxy can have made."""
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    proxies = [started for pid in processes() if _name_of(pid) == HYDRA_PROXY and (started := started_s(pid)) is not None]
    removed = []
    for path in Path("/tmp").glob(f"{HYDRA_FILE}*"):
        with suppress(OSError):
            facts = path.lstat()
            made_s = facts.st_ctime
            if facts.st_uid != os.getuid() or not stat.S_ISREG(facts.st_mode) or made_s < since_s:
                continue
            if any(-1.0 <= made_s - (boot_s + started) <= HYDRA_FILE_S for started in proxies):
                continue
            path.unlink()
            removed.append(path.name)
    return removed


def _name_of(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


@dataclass
class JobRecord:
    """What one start of ranks may leave behind."""

    token: str
    folder: str
    """Its folder for temporary files."""
    began_s: float = field(default_factory=time.time)
    launcher: int = field(default_factory=os.getpid)
    launcher_began_s: float = field(default_factory=lambda: started_s(os.getpid()) or 0.0)
    segments: set[Segment] = field(default_factory=set)

    def look(self) -> bool:
        """Adds the segments that the ranks map now; says whether there are new ones."""
        found = segments_of(with_token(self.token)) - self.segments
        self.segments |= found
        return bool(found)

    def clean(self, patience_s: float = 0.0) -> int:
        """Ends processes, removes segments and the folder; returns how many processes were ended."""
        self.look()
        ended = end_processes(self.token, patience_s)
        remove_segments(self.segments | segments_of_mpi(self.began_s - 1.0))
        remove_hydra_files(self.began_s - 1.0)
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended

    @property
    def is_running(self) -> bool:
        """Whether the launcher that wrote this still lives."""
        return started_s(self.launcher) == self.launcher_began_s


def new_folder() -> str:
    """A folder for the temporary files of one job."""
    return tempfile.mkdtemp(prefix="hpcnmt-job-")


def record_path(run: Path) -> Path:
    """Where the record of the ranks of `run` lies on this host."""
    key = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hpcnmt-{os.getuid()}-{key}.json"


def write_record(run: Path, record: JobRecord) -> None:
    """By rename. Failing to write costs the cleaning after a killed launcher only, so it is no error."""
    facts = {**vars(record), "segments": sorted(record.segments)}
    with suppress(OSError):
        handle, temporary = tempfile.mkstemp(prefix="hpcnmt-record-")  # nobody else may open it
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(facts, file)
            os.replace(temporary, record_path(run))
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def remove_record(run: Path) -> None:
    with suppress(OSError):
        record_path(run).unlink()


def read_record(run: Path) -> JobRecord | None:
    """The record of an earlier start of `run`; None where there is none, or one that this user did not write, or a damaged one."""
    try:
        handle = os.open(record_path(run), os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, encoding="utf-8") as file:
            facts = os.fstat(handle)
            if facts.st_uid != os.getuid() or not stat.S_ISREG(facts.st_mode):
                return None
            return _checked(json.load(file))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checked(mapping: dict[str, object]) -> JobRecord:
    token, folder, segments = str(mapping["token"]), Path(str(mapping["folder"])), mapping["segments"]
    of_ours = folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("hpcnmt-job-")
    if not re.fullmatch(r"[0-9a-f]{16,64}", token) or not of_ours or not isinstance(segments, list):
        raise ValueError("no record of the launcher")
    pairs = {(str(name), int(inode)) for name, inode in segments}
    if any("/" in name or name in ("", ".", "..") for name, _ in pairs):
        raise ValueError("no record of the launcher")
    times = {name: float(str(mapping[name])) for name in ("began_s", "launcher_began_s")}
    return JobRecord(token, str(folder), launcher=int(str(mapping["launcher"])), segments=pairs, **times)


def clean_earlier(run: Path) -> None:
    """Cleans up after a launcher of `run` that was killed. Raises ValueError when one still runs on this host."""
    record = read_record(run)
    if record is None:
        return
    if record.is_running and record.launcher != os.getpid():
        raise ValueError(f"{run} is being trained by process {record.launcher} of this host: wait for its end, or end it with kill")
    ended = record.clean()
    remove_record(run)
    if ended:
        sys.stderr.write(f"hpcnmt: ended {ended} processes that an earlier start of {run} had left behind\n")


def main() -> int:
    """Removes this user's segments of MPI that nobody uses, and files of MPICH's proxies."""
    names = remove_segments(segments_of_mpi()) + remove_hydra_files()
    if names:
        sys.stderr.write(f"hpcnmt: removed {len(names)} leftovers of MPI: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
