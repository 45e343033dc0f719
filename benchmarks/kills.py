"""Random SIGKILLs against a supervised training: whether it ends in good order, with nothing lost but what came after its checkpoints.

    python benchmarks/kills.py --kills 100

Every kill hits one rank of the life that is running: at a random moment, or aimed at a phase (PHASES), each of which is hit a tenth of the
times or more. Afterwards: exit code 0, all words on all shards, every checkpoint that is left readable, no process, no shared memory, no
temporary file left, and the cross-entropy of runs without kills (--references). Exit code 1 when any of this does not hold.
tests/system/test_kills.py runs this with small numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, records, run_hpcnmt, set_options

from hpcnmt.bench.results import machine
from hpcnmt.training import leftovers
from hpcnmt.training.checkpoint_files import Checkpoint, checkpoints_folder, newest_complete

PHASES = ("push", "cut", "rename", "start-up")
"""push: a worker waits for a shard to take its gradient; cut: parts of a checkpoint are being written; rename: its folder has its name, and
COMPLETE is not there yet or has just appeared; start-up: ranks run, but have not trained a new window."""
SHARE = 0.12
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
MARK = "HPCNMT_KILLS"
AIM_S, LIFE_S, END_S = 60.0, 300.0, 7200.0
JUST_S = 0.05
"""A checkpoint that has been complete for less has just appeared."""


class RunEnded(Exception):
    """The training is over before the next kill."""


class Victim:
    """The supervised run and its present life: the ranks of one start, known by the token of the launcher."""

    def __init__(self, command: list[str], run: Path, temporary: Path, workers: int, shards: int, log: Path) -> None:
        self.run, self.temporary, self.workers, self.size = run, temporary, workers, workers + shards
        self.mark, self.token = secrets.token_hex(8), ""
        self.ranks: dict[int, int] = {}  # rank -> process id
        self.segments: set[leftovers.Segment] = set()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), MARK: self.mark}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )

    def left(self) -> dict[int, dict[str, str]]:
        """Living processes of this run, the supervisor included."""
        found = {pid: leftovers.environment_of(pid) or {} for pid in leftovers.processes()}
        return {pid: variables for pid, variables in found.items() if variables.get(MARK) == self.mark}

    def until(self, done: Callable[[], bool], limit_s: float, what: str, pause_s: float) -> bool:
        """Polls; False after `limit_s` when `what` is nothing, else an error. RunEnded when the training is over."""
        end = time.monotonic() + limit_s
        while not done():
            if self.process.poll() is not None:
                raise RunEnded
            if time.monotonic() > end:
                if what:
                    raise RuntimeError(f"waited {limit_s:.0f} s for {what}")
                return False
            time.sleep(pause_s)
        return True

    def next_life(self) -> None:
        """Waits until all ranks of another start than the last are there."""
        old = self.token
        self.until(lambda: self._look(old), LIFE_S, "the next start of the ranks", 0.1)

    def _look(self, old: str) -> bool:
        of_ranks = {pid: v for pid, v in self.left().items() if v.get(leftovers.TOKEN, old) != old and any(n in v for n in RANK_VARIABLES)}
        own = {pid: v for pid, v in of_ranks.items() if _parent(pid) not in of_ranks}  # not what ranks have started
        self.ranks = {int(next(v[name] for name in RANK_VARIABLES if name in v)): pid for pid, v in own.items()}
        if len(self.ranks) < self.size:
            return False
        self.token = next(iter(own.values()))[leftovers.TOKEN]
        return True

    def name(self, rank: int) -> str:
        return f"worker-{rank}" if rank < self.workers else f"shard-{rank - self.workers}"

    def status(self, rank: int) -> dict[str, Any]:
        """What this rank last said in this life; nothing before."""
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.run / "status" / f"{self.name(rank)}.json").read_text("utf-8"))
            if found["pid"] == self.ranks.get(rank):
                return found
        return {}

    def words(self) -> int:
        """Global target words, as any rank of this life has last said (at most a second ago)."""
        said = [self.status(rank).get("counters", {}) for rank in range(self.size)]
        return max((int(counters.get("global_words", counters.get("target_words", 0))) for counters in said), default=0)

    def windows(self) -> int:
        return int(self.status(0).get("counters", {}).get("windows", 0))

    def kill(self, rank: int) -> None:
        self.segments |= leftovers.segments_of(self.ranks.values())
        os.kill(self.ranks[rank], signal.SIGKILL)


def _parent(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int((leftovers.PROC / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])
    return 0


class Killer:
    """Draws phases and ranks, and says of every kill what it has hit."""

    def __init__(self, victim: Victim, kills: int, first_s: float, last_s: float, seed: int) -> None:
        self.victim, self.kills, self.first_s, self.last_s = victim, kills, first_s, last_s
        self.random = random.Random(seed)
        self.start_up_s = 4.0  # from the first look at the ranks of a life to its first window
        self.done: list[dict[str, Any]] = []
        self.folder = checkpoints_folder(victim.run)

    def draw(self) -> str:
        quota, hits = max(1, round(self.kills * SHARE)), Counter(kill["hit"] for kill in self.done)
        needed = [phase for phase in PHASES for _ in range(quota - hits[phase])]
        others = ["random"] * (self.kills - len(self.done) - len(needed))
        return self.random.choice(needed + others)

    def all(self) -> None:
        """All kills, as long as the run goes on."""
        with suppress(RunEnded):
            while len(self.done) < self.kills:
                self.one()

    def one(self) -> None:
        victim = self.victim
        victim.next_life()
        begin = time.monotonic()
        resumed = newest_complete(victim.run, say=lambda line: None)
        windows = int(resumed.facts("worker-0")["windows"]) if resumed else 0
        if self.done:
            self.done[-1] |= {"resumed_from": resumed.number if resumed else 0, "words_after": resumed.words if resumed else 0}
        phase, rank = self.draw(), self.random.randrange(victim.size)
        has_begun = lambda: victim.windows() > windows  # noqa: E731
        if phase == "start-up":
            begun = victim.until(has_begun, self.random.uniform(0, 0.8 * self.start_up_s), "", 0.05)
            hit = "random" if begun else "start-up"
        else:
            victim.until(has_begun, LIFE_S, "the first window after a start", 0.05)
            self.start_up_s = time.monotonic() - begin
            victim.until(lambda: False, self.random.uniform(self.first_s, self.last_s), "", 0.05)
            hit, rank = self.aim(phase, rank)
        facts = {"aimed_at": phase, "rank": victim.name(rank), "life_s": round(time.monotonic() - begin, 2), "words_before": victim.words()}
        if hit != "push":
            victim.kill(rank)
        before = resumed.words if resumed else 0
        self.done.append(facts | {"hit": hit, "words_at_start": before, "progress_words": max(facts["words_before"] - before, 0)})
        print(f"kill {len(self.done)}: {self.done[-1]}", flush=True)

    def aim(self, phase: str, rank: int) -> tuple[str, int]:
        """Waits for the moment of `phase`; what it has come to, and the rank to kill. A push is killed here, between stop and continue."""
        if phase == "push":
            return self._push()
        if phase == "cut":
            found = self.victim.until(lambda: any(self.folder.glob(".cut-*.part/*")), AIM_S, "", 0.002)
            return ("cut" if found else "random"), rank
        if phase == "rename":
            found = self.victim.until(self._is_renamed, AIM_S, "", 0.0003)
            return ("rename" if found else "random"), (0 if self.random.random() < 0.7 else rank)  # worker 0 is who renames
        return "random", rank

    def _is_renamed(self) -> bool:
        for path in self.folder.glob("cut-*"):
            with suppress(OSError):
                if time.time() - (path / "COMPLETE").stat().st_mtime < JUST_S:
                    return True
                continue
            if path.is_dir():
                return True
        return False

    def _push(self) -> tuple[str, int]:
        """Stops a shard, so that pushes to it stay in flight, then kills it or a worker that waits for it."""
        victim = self.victim
        shard = self.random.randrange(victim.workers, victim.size)
        stopped_s = time.time()
        os.kill(victim.ranks[shard], signal.SIGSTOP)
        try:
            waiting: list[int] = []

            def in_flight() -> bool:
                waiting[:] = [rank for rank in range(victim.workers) if _exchanges(victim.status(rank), stopped_s)]
                return bool(waiting)

            found = victim.until(in_flight, AIM_S, "", 0.02)
            rank = self.random.choice([shard, *waiting])
            victim.kill(rank)
        finally:
            with suppress(ProcessLookupError):
                os.kill(victim.ranks[shard], signal.SIGCONT)
        return ("push" if found else "random"), rank


def _exchanges(status: dict[str, Any], since_s: float) -> bool:
    """Whether a worker said after `since_s` that it has been exchanging for longer than exchanges take."""
    long = any(name == "exchange" and seconds > 0.3 for name, _, seconds in status.get("now", {}).values())
    return long and status["time_s"] > since_s + 0.3


def checks(victim: Victim, code: int, target_words: int, kills: int, done: list[dict[str, Any]]) -> dict[str, Any]:
    """What must hold at the end; every value is true, or says what was found."""
    run, found = victim.run, Counter(kill["hit"] for kill in done)
    shards = [json.loads(path.read_text())["target_words"] for path in sorted(run.glob("shard-*.json"))]
    readable: Any = True
    folders = [path for path in checkpoints_folder(run).iterdir() if path.name.startswith("cut-")]
    for folder in folders:
        try:
            Checkpoint(folder).check()
        except (ValueError, OSError) as error:
            readable = str(error)
    names = {name for name, _ in victim.segments}
    temporary = [str(p) for p in run.rglob("*") if p.name.startswith(".removed") or p.name.endswith((".part", ".tmp"))]
    temporary += [str(path) for path in victim.temporary.iterdir() if not path.name.startswith("torchinductor")]  # torch's cache stays
    at_least = max(1, round(kills * 0.1))
    return {
        "exit_code": code == 0 or code,
        "all_kills": len(done) == kills or len(done),
        "every_phase": all(found[phase] >= at_least for phase in PHASES) or dict(found),
        "words": (len(shards) == victim.size - victim.workers and len(set(shards)) == 1 and shards[0] >= target_words) or shards,
        "checkpoints_readable": readable if folders else "found no checkpoint",
        "no_process": not victim.left() or list(victim.left()),
        "no_segment": (bool(victim.segments) and not names & set(os.listdir("/dev/shm"))) or sorted(names),
        "no_temporary_file": not temporary or temporary,
    }


def train_command(arguments: argparse.Namespace, data: Path, run: Path) -> list[str]:
    sizes = ["--workers", str(arguments.workers), "--shards", str(arguments.shards)]
    settings = [f"training.max_target_words={arguments.words}", "checkpoint.every_s=3", *arguments.set]
    return ["train", "sample", "--data", str(data), "--run", str(run), *sizes, *set_options(settings)]


def prepare(folder: Path) -> Path:
    """The generated corpus, prepared as in the quick start."""
    run_hpcnmt("sample-corpus", "--out", folder / "text")
    files = [f"--{split}-{side}={folder / 'text' / f'{split}.{end}'}" for split in ("train", "valid")
             for side, end in (("source", "src"), ("target", "trg"))]  # fmt: skip
    run_hpcnmt("prepare", *files, "--vocabulary-size", 400, "--out", folder / "prepared")
    return folder / "prepared"


def final_entropy(run: Path) -> float:
    return float(records(run, "validation")[-1]["cross_entropy"])


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = arguments.data or prepare(folder)
    temporary, log = folder / "tmp", folder / "kills.log"
    temporary.mkdir()
    supervised = ["--supervise", "--resume", "--back-off", "0", "--restarts", "20"]
    command = [sys.executable, "-m", "hpcnmt", *train_command(arguments, data, folder / "kills"), *supervised]
    begin = time.monotonic()
    victim = Victim(command, folder / "kills", temporary, arguments.workers, arguments.shards, log)
    killer = Killer(victim, arguments.kills, arguments.first_s, arguments.last_s, arguments.seed)
    try:
        killer.all()
        code = victim.process.wait(END_S)
        seconds = time.monotonic() - begin
        held = checks(victim, code, arguments.words, arguments.kills, killer.done)
    finally:
        for pid in victim.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if held["exit_code"] is not True:
        print(log.read_text()[-4000:], file=sys.stderr)
    resumes = records(victim.run, "resume") if held["exit_code"] is True else []
    if killer.done and "resumed_from" not in killer.done[-1] and resumes:
        killer.done[-1] |= {"resumed_from": resumes[-1]["checkpoint"], "words_after": resumes[-1]["target_words"]}
    for kill in killer.done:
        kill["lost_words"] = max(kill["words_before"] - kill.get("words_after", 0), 0)
    result: dict[str, Any] = {
        "seed": arguments.seed, "workers": arguments.workers, "shards": arguments.shards, "target_words": arguments.words,
        "seconds": round(seconds, 1), "hits": dict(Counter(kill["hit"] for kill in killer.done)), "checks": held, "kills": killer.done,
    }  # fmt: skip
    if arguments.references and held["exit_code"] is True:
        for number in range(arguments.references):
            run_hpcnmt(*train_command(arguments, data, folder / f"reference-{number}"))
        without = [final_entropy(folder / f"reference-{number}") for number in range(arguments.references)]
        entropy, mean, spread = final_entropy(victim.run), sum(without) / len(without), max(without) - min(without)
        result["cross_entropy"] = {"with_kills": entropy, "without": without}
        held["cross_entropy"] = entropy - mean <= max(3 * spread, arguments.tolerance) or entropy - mean
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--first-s", type=float, default=5.0, help="earliest kill, in seconds after the first window of a life")
    parser.add_argument("--last-s", type=float, default=40.0, help="latest")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--words", type=int, help="target words (default 140000 for each kill, about what two cores train between two)")
    parser.add_argument("--references", type=int, default=2, help="runs without kills to compare with; 0 = none")
    parser.add_argument("--tolerance", type=float, default=0.02, help="nats a word that always count as noise")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="change an option of the recipe")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the generated corpus)")
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json")
    arguments = parser.parse_args()
    arguments.words = arguments.words or 140_000 * arguments.kills
    with tempfile.TemporaryDirectory() as name:
        result = measure(arguments, Path(name))
    arguments.out.write_text(json.dumps({"machine": machine()} | result, indent=1) + "\n")
    print(f"wrote {arguments.out}: {result['checks']}")
    return 0 if all(held is True for held in result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
