"""The supervisor with scripted starts: when it restarts, waits, gives up, and falls back behind a divergence."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from hpcnmt.optim.window import Diverged
from hpcnmt.training.checkpoint_files import Part, checkpoints_folder, commit, complete_numbers, part_folder, write_part
from hpcnmt.training.command import failure
from hpcnmt.training.divergence import DivergenceConfig, LossMonitor, lowered
from hpcnmt.training.fall_back import FallBack, report_divergence
from hpcnmt.training.supervise import supervise


def checkpoint(run: Path, number: int, words: int = 0, complete: bool = True) -> None:
    if complete:
        write_part(part_folder(run, number), "worker-0", Part({"parameters": torch.zeros(2)}, {}))
        commit(run, number, ["worker-0"], keep=9, words=words)
    else:
        (checkpoints_folder(run) / f"cut-{number:08d}").mkdir()


class Script:
    """`starts`: for each start its exit code, and the number of the checkpoint that it makes (0 = none)."""

    def __init__(self, run: Path, *starts: tuple[int, int], signal_in_pause: int = 99) -> None:
        self.run, self.starts, self.signal_in_pause = run, list(starts), signal_in_pause
        self.arguments: list[list[str]] = []
        self.waits: list[float] = []
        self.interrupted = False

    def start(self, arguments: list[str]) -> int:
        self.arguments.append(arguments)
        code, number = self.starts.pop(0)
        if number:
            checkpoint(self.run, number)
        return code

    def pause(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return len(self.waits) > self.signal_in_pause

    def supervise(self, restarts: int = 3, back_off_s: float = 1.0) -> int:
        return supervise(self.start, self.run, restarts, back_off_s, self.pause, lambda: self.interrupted, lambda: None)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_an_orderly_end_is_the_end(tmp_path: Path, code: int) -> None:
    script = Script(tmp_path, (code, 0))
    assert script.supervise() == code and script.arguments == [[]]


def test_failures_without_progress_wait_longer_and_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path, 12)
    checkpoint(tmp_path, 13, complete=False)
    script = Script(tmp_path, (137, 0), (1, 0), (139, 0), (137, 0), (137, 0))
    assert script.supervise(restarts=5, back_off_s=30.0) == 137
    assert script.waits == [30, 60, 60, 60] and script.arguments == [[]] + [["--resume"]] * 4
    lines = capsys.readouterr().err.splitlines()
    said = "hpcnmt: ended with code 137 (killed by SIGKILL); restarting from checkpoint 12 in 30 s (1 of 5 without progress)"
    assert lines[0] == said and "gives up" in lines[-1] and "out-of-memory" in lines[-1] and len(lines) == 5


def test_a_disk_that_fails_is_tried_again_and_a_wrong_folder_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), tmp_path) == 1
    assert failure(PermissionError(errno.EACCES, "Permission denied", "run"), tmp_path) == failure(ValueError("wrong"), tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[0] == "hpcnmt: cannot use metrics.jsonl: No space left on device"


def test_progress_is_a_newer_checkpoint_and_resets_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(tmp_path, (137, 0), (137, 1), (137, 0), (1, 2), (137, 0), (137, 0))
    assert script.supervise(restarts=2) == 137
    assert script.waits == [1, 1, 1, 1, 1]
    assert "restarting from the beginning in 1 s (1 of 2 without progress)" in capsys.readouterr().err


def test_a_signal_ends_whatever_the_code(tmp_path: Path) -> None:
    script = Script(tmp_path, (143, 0))
    script.interrupted = True
    assert script.supervise() == 143
    assert Script(tmp_path, (137, 0), signal_in_pause=0).supervise() == 75


def test_a_divergence_falls_back_with_lowered_options_at_most_so_often(tmp_path: Path) -> None:
    config = DivergenceConfig(fall_backs=2)

    def settings(falls: int) -> list[str]:
        return [w for k, v in lowered(config, 0.008, 4, falls).items() for w in ("--set", f"{k}={v}")]

    fall_back = FallBack(tmp_path, config, settings)
    for number, words in ((1, 1000), (2, 2000), (3, 3000)):
        checkpoint(tmp_path, number, words)
    report_divergence(tmp_path, Diverged("nan", 2500))
    script = Script(tmp_path, (3, 0), (3, 0), (137, 0), (3, 0))
    code = supervise(script.start, tmp_path, 3, 0.0, script.pause, lambda: False, fall_back)
    assert code == 3 and complete_numbers(tmp_path) == [2, 1]
    once = ("--set", "schedule.learning_rate=0.004", "--set", "worker.delay=2")
    twice = ("--set", "schedule.learning_rate=0.002", "--set", "worker.delay=1")
    assert script.arguments == [[], ["--resume", *once], ["--resume", *twice], ["--resume", *twice]]
    assert json.loads((tmp_path / "diverged-1.json").read_text())["began_words"] == 2500 and not (tmp_path / "diverged.json").exists()
    assert not list((tmp_path / "checkpoints").glob(".*"))
    again = Script(tmp_path, (0, 0))  # started once more: the options stay lowered
    assert supervise(again.start, tmp_path, 3, 0.0, again.pause, lambda: False, fall_back, settings=fall_back.settings()) == 0
    assert again.arguments == [[*twice]]


def test_without_a_checkpoint_from_before_it_a_fall_back_begins_anew(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5, 3000)
    report_divergence(tmp_path, Diverged("loss", 2500))
    assert FallBack(tmp_path, DivergenceConfig(), lambda falls: ["--set", f"a={falls}"])() == ["--set", "a=1"]
    assert complete_numbers(tmp_path) == []


def feed(monitor: LossMonitor, losses: list[float], words: int = 0) -> int:
    for loss in losses:
        words += 100
        monitor.after(loss, words)
    return words


def test_the_loss_monitor_says_since_when() -> None:
    monitor = LossMonitor(DivergenceConfig(margin_nats=2.0, windows=30))
    words = feed(monitor, [9.0 - 0.03 * i for i in range(200)])
    resumed = LossMonitor(monitor.config)
    resumed.load(json.loads(json.dumps(monitor.state())))
    for one in (monitor, resumed):
        with pytest.raises(Diverged, match="for 30 windows in a row") as caught:
            feed(one, [12.0] * 100, words)
        assert caught.value.began_words == words


def test_spikes_and_noise_are_no_divergence_but_nan_is() -> None:
    monitor = LossMonitor(DivergenceConfig(margin_nats=2.0, windows=30))
    words = feed(monitor, ([3.0, 3.4, 2.9] * 20 + [40.0, 12.0, float("nan")]) * 5)
    assert monitor.above == 0 and monitor.lowest < 3.2
    with pytest.raises(Diverged) as caught:
        feed(monitor, [float("nan")] * 60, words)
    assert words - 3000 < caught.value.began_words < words + 1000
    off = LossMonitor(DivergenceConfig(margin_nats=0.0))
    feed(off, [3.0] * 50 + [99.0] * 500)


@pytest.mark.parametrize("facts", [{}, {"windows": 1, "above": 0, "sound_words": 3}, {"windows": "1", "above": 0, "sound_words": 0},
                                   {"windows": 1, "above": 0, "sound_words": 0, "smoothed": float("nan"), "lowest": 1.0}])  # fmt: skip
def test_wrong_facts_of_a_monitor_are_refused(facts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected the facts of a loss monitor"):
        LossMonitor(DivergenceConfig()).load(facts)
