"""`hpcnmt train` in mode sync with both libraries, its errors, and runs of a fixed number of epochs in every mode."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpcnmt.data.corpus import TokenCorpus
from tests.commands import hpcnmt, records, train, train_command, train_here
from tests.need import mpiexec, need_backend
from tests.processes import run

pytestmark = [pytest.mark.system, pytest.mark.mpi]
one_family = pytest.mark.one_family
TORCH = ("training.mode=sync", "sync.backend=torch")


@pytest.mark.parametrize("backend", ["horovod", pytest.param("torch", marks=one_family)])
def test_synchronous_training_leaves_a_whole_run_folder_that_translates(folder: Path, backend: str) -> None:
    need_backend(backend)
    settings = ("training.mode=sync", f"sync.backend={backend}", "sync.bucket_bytes=20000", "worker.delay=2", "training.ema_alpha=1e-3")
    done = train(folder, backend, "--workers", 2, "--trace", settings=settings)
    assert done.returncode == 0, done.stderr
    path = folder / backend
    (end,) = records(path, "end")
    curve = [r["cross_entropy"] for r in records(path, "validation")]
    assert end["target_words"] >= 12000 and end["dropped_windows"] == 0 and curve[-1] < curve[0] < 8
    assert end["total_words_per_s"] == pytest.approx(end["source_words_per_s"] + end["target_words_per_s"])
    assert {p.name for p in path.glob("*.safetensors")} == {"model.safetensors", "final.safetensors"}
    context = json.loads((path / "config.json").read_text())["context"]
    assert context["workers"] == 2 and {"horovod": "Horovod 0.28.1", "torch": "gloo"}[backend] in context["mpi"]
    statuses = json.loads(hpcnmt("status", "--run", path, "--json").stdout)
    assert {s["state"] for s in statuses} == {"ended"} and sum(s["counters"]["target_words"] for s in statuses) == end["target_words"]
    spans = json.loads((path / "trace" / "worker-1.json").read_text())["traceEvents"]
    assert {e["name"] for e in spans if e["ph"] == "X"} == {"compute", "wait", "pack", "step"}
    done = hpcnmt("translate", "--run", path, stdin=(folder / "text" / "test.src").read_bytes())
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 20, done.stderr


@one_family
def test_it_takes_its_place_under_torchrun(folder: Path) -> None:
    command = train_command(folder, "torchrun", "--workers", 2, settings=TORCH)
    done = run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "--", "hpcnmt", *command], deadline_s=120)
    assert done.returncode == 0, done.stderr
    assert records(folder / "torchrun", "end")[0]["target_words"] >= 12000


@one_family
def test_early_stopping_ends_all_ranks(folder: Path) -> None:
    stop = ("validation.patience=1", "schedule.learning_rate=1.0e-9", "validation.stop_on=[bleu, chrf]", "validation.every_words=1500",
            "training.max_target_words=500000")  # fmt: skip
    done = train(folder, "early", settings=(*TORCH, *stop))
    assert done.returncode == 0, done.stderr
    assert records(folder / "early", "end")[0]["target_words"] < 100000


@pytest.mark.parametrize(
    ("mode", "options", "settings"),
    [
        pytest.param("plain", (), (), marks=one_family),
        pytest.param("virtual", ("--workers", 3), ("worker.overlap=1",), marks=one_family),
        ("async", ("--workers", 2, "--shards", 2), ("worker.overlap=1",)),
        pytest.param("sync", ("--workers", 3), ("sync.backend=torch",), marks=one_family),
    ],
)
def test_one_epoch_trains_every_sentence_once_and_ends(
    folder: Path, mode: str, options: tuple[object, ...], settings: tuple[str, ...]
) -> None:
    corpus = TokenCorpus(folder / "prepared", "train")
    words = int(corpus.target_lengths.sum()) + len(corpus)
    epoch = ("loader.max_epochs=1", "worker.delay=3", "training.max_target_words=1000000", "validation.every_words=1000000")
    done = train(folder, f"epoch-{mode}", *options, settings=(f"training.mode={mode}", *epoch, *settings))
    assert done.returncode == 0, done.stderr
    assert [r["target_words"] for r in records(folder / f"epoch-{mode}", "end")] == [words]


@one_family
def test_wrong_input_is_one_line_and_writes_nothing(folder: Path) -> None:
    without_horovod = "import sys; sys.modules['horovod'] = None; import hpcnmt.cli; sys.exit(hpcnmt.cli.main(sys.argv[1:]))"
    wrong = [
        (train_here(folder, "new", "--shards", 1, settings=TORCH), "--shards has no effect with training.mode=sync"),
        (train_here(folder, "new", settings=(*TORCH, "worker.overlap=1")), "worker.overlap has no effect with training.mode=sync"),
        (train_here(folder, "new", settings=("sync.bucket_bytes=1000",)), "sync has no effect with training.mode=async"),
        (train_here(folder, "new", "--workers", 5000, settings=TORCH), "use fewer --workers"),
        (run([sys.executable, "-c", without_horovod, *train_command(folder, "new", settings=("training.mode=sync",))], 60),
         "bash env/horovod.sh mpich (or openmpi) builds it; or --set sync.backend=torch"),
    ]  # fmt: skip
    for done, message in wrong:
        assert done.returncode == 2, (message, done.stderr)
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (folder / "new").exists()


def test_a_world_of_the_wrong_size_is_refused(folder: Path) -> None:
    command = train_command(folder, "new", "--workers", 3, settings=TORCH)
    done = run([mpiexec(), "-n", 2, sys.executable, "-m", "hpcnmt", *command], deadline_s=90)
    assert done.returncode != 0 and "found a world of 2 ranks, expected 3 workers" in done.stderr
    assert not (folder / "new").exists()
