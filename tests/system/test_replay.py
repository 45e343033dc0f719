"""hpcnmt replay on a real run over MPI: equal bit for bit; a record that was changed is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hpcnmt.cli import main
from hpcnmt.distributed.layout import Layout
from hpcnmt.training.record import RecordFormat, read_record
from hpcnmt.training.replay import _read_run
from tests.commands import hpcnmt, train

pytestmark = [pytest.mark.system, pytest.mark.mpi, pytest.mark.one_family]
SETTINGS = (
    "training.record=true", "training.ema_alpha=0.001", "worker.delay=2", "worker.overlap=1", "worker.local.mode=compensate",
    "model.dropout=0.2", "schedule.restart_on_stall=true", "loader.batch_words=400", "validation.every_words=3000",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    done = train(folder, "run", "--workers", 3, "--shards", 2, settings=SETTINGS)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_of_several_workers_and_shards_replays_bit_for_bit(folder: Path) -> None:
    done = hpcnmt("replay", "--run", folder / "run", "--data", folder / "prepared")
    assert done.returncode == 0 and done.stdout.endswith("equal bit for bit\n") and "deviation" not in done.stdout, done


def swap_two_pushes(run: Path, layout: Layout) -> None:
    """Two pushes of different workers change places on shard 0, in the middle of the run."""
    form, log = RecordFormat("shard", 0, layout), read_record(run, layout).shards[0]
    path, size = form.path(run), form.entry_bytes
    first = next(i for i in range(len(log) // 2, len(log)) if log[i].worker != log[i + 1].worker)
    begin = len(form.header) + first * size
    data = path.read_bytes()
    path.write_bytes(data[:begin] + data[begin + size : begin + 2 * size] + data[begin : begin + size] + data[begin + 2 * size :])


def test_a_changed_record_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "run", folder / "changed")
    swap_two_pushes(folder / "changed", _read_run(folder / "run", folder / "prepared").layout)
    replay = ["replay", "--run", str(folder / "changed"), "--data", str(folder / "prepared")]
    code = main(replay)
    output = "".join(capsys.readouterr())
    assert code in (1, 2) and ("DIFFERENT", "contradict")[code - 1] in output, output
    assert main([*replay, "--check"]) == 0  # each is applied once, and in the order of its worker
    (folder / "changed" / "record" / "worker-1.bin").write_bytes(b"nothing of the kind" * 4)
    capsys.readouterr()
    assert main([*replay, "--check"]) == 2
    output = capsys.readouterr().err
    assert output.startswith("hpcnmt: ") and output.count("\n") == 1 and "is no record of hpcnmt" in output, output
