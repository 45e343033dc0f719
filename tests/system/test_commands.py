"""Whole commands on a small generated corpus: every mode trains, translates and scores; wrong input ends with one line and exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcnmt.data.sample import word_by_word, write_sample_corpus
from hpcnmt.data.vocabulary import train_vocabulary
from tests.commands import here, hpcnmt, records, train, train_here
from tests.need import mpiexec

pytestmark = [pytest.mark.system, pytest.mark.mpi]
one_family = pytest.mark.one_family


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    done = train(folder, "async", "--workers", 2, "--shards", 2, "--trace", settings=("worker.overlap=1", "worker.delay=2"))
    assert done.returncode == 0, done.stderr
    return folder


def test_asynchronous_training_leaves_a_whole_run_folder(folder: Path) -> None:
    run = folder / "async"
    shards = [json.loads((run / f"shard-{i}.json").read_text()) for i in range(2)]
    end = records(run, "end")[0]
    assert {s["target_words"] for s in shards} == {end["target_words"]} and end["target_words"] >= 12000
    assert {r["bleu_signature"].startswith("nrefs:1") for r in records(run, "validation")} == {True}
    assert len(records(run, "validation")) >= 2 and (run / "tensorboard").is_dir()
    assert {p.name for p in run.glob("*.safetensors")} == {"model.safetensors", "final.safetensors"}


def test_every_rank_reports_its_end_and_leaves_a_trace(folder: Path) -> None:
    run = folder / "async"
    done = hpcnmt("status", "--run", run, "--json", "--watch")
    assert done.returncode == 0, done.stderr
    ranks = {f"{s['role']}-{s['index']}": s for s in json.loads(done.stdout)}
    assert list(ranks) == ["worker-0", "worker-1", "shard-0", "shard-1"] and {s["state"] for s in ranks.values()} == {"ended"}
    end = records(run, "end")[0]
    assert {ranks[name]["counters"]["target_words"] for name in ("shard-0", "shard-1")} == {end["target_words"]}
    assert sum(ranks[name]["counters"]["target_words"] for name in ("worker-0", "worker-1")) == end["target_words"]
    assert hpcnmt("status", "--run", run).stdout.count("ended") == 4
    done = hpcnmt("trace", "--run", run, "--out", folder / "trace.json")
    assert done.returncode == 0 and "compute" in done.stdout, done.stderr
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    found = {name: {e["name"] for e in events if e["ph"] == "X" and names[e["pid"]] == name} for name in names.values()}
    assert list(found) == ["worker 0", "worker 1", "shard 0", "shard 1"]
    assert all({"compute", "wait", "pack", "exchange"} <= found[f"worker {index}"] for index in range(2))
    assert all({"apply", "idle"} <= found[f"shard {index}"] for index in range(2))
    assert "validate" in found["worker 0"] and "validate" not in found["worker 1"]


@one_family
@pytest.mark.parametrize(("mode", "options"), [("plain", ()), ("virtual", ("--workers", 4))])
def test_the_modes_in_one_process_train_the_same_way(folder: Path, mode: str, options: tuple[object, ...]) -> None:
    done = train(folder, mode, *options, settings=(f"training.mode={mode}", "training.trace=true"))
    assert done.returncode == 0, done.stderr
    spans = json.loads((folder / mode / "trace" / "worker-0.json").read_text())["traceEvents"]
    assert {e["name"] for e in spans if e["ph"] == "X"} == {"compute", "validate", "step" if mode == "plain" else "apply"}
    assert hpcnmt("status", "--run", folder / mode).stdout.count("ended") == 1
    curve = [r["cross_entropy"] for r in records(folder / mode, "validation")]
    assert curve[-1] < curve[0] < 8
    shown = hpcnmt("summary", "--run", folder / mode).stdout
    assert all(word in shown for word in ("source", "target", "total", "staleness")[: 4 if mode == "virtual" else 3]), shown


@one_family
def test_a_shard_follows_the_policies_of_the_recipe(folder: Path) -> None:
    settings = ("shard.buffer_pushes=4", "shard.damp_staleness=true", "schedule.restart_on_stall=true")
    done = train(folder, "hybrid", "--workers", 2, "--shards", 1, settings=settings)
    assert done.returncode == 0, done.stderr
    shard = json.loads((folder / "hybrid" / "shard-0.json").read_text())
    assert shard["updates"] == -(-sum(shard["staleness"].values()) // 4)  # the rest at the end
    assert shard["target_words"] == records(folder / "hybrid", "end")[0]["target_words"]


@one_family
def test_separate_vocabularies_from_text_to_translation(folder: Path) -> None:
    files = [f"--{split}-{side}={folder / 'text' / f'{split}.{end}'}" for split in ("train", "valid")
             for side, end in (("source", "src"), ("target", "trg"))]  # fmt: skip
    apart = folder / "apart"
    done = hpcnmt("prepare", *files, "--out", apart / "prepared", "--vocabulary-size", 200, "--separate-vocabularies")
    assert done.returncode == 0, done.stderr
    done = train(apart, "plain", settings=("training.mode=plain",))
    assert done.returncode == 0, done.stderr
    done = hpcnmt("translate", "--run", apart / "plain", stdin=(folder / "text" / "test.src").read_bytes())
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 20, done.stderr


@one_family
def test_early_stopping_ends_all_ranks(folder: Path) -> None:
    stop = ("validation.patience=1", "validation.stop_on=[bleu, chrf]", "schedule.learning_rate=1.0e-9", "validation.every_words=1500",
            "training.max_target_words=500000")  # fmt: skip
    done = train(folder, "early", settings=stop)
    assert done.returncode == 0, done.stderr
    assert records(folder / "early", "end")[0]["target_words"] < 100000


@one_family
def test_translate_keeps_the_order_and_score_matches_it(folder: Path) -> None:
    lines = (folder / "text" / "test.src").read_text().splitlines()
    text = "\n".join([lines[0], "", *lines[1:]]) + "\n"
    done = hpcnmt("translate", "--run", folder / "async", "--n-best", 3, stdin=text.encode())
    assert done.returncode == 0, done.stderr
    fields = [line.split(" ||| ") for line in done.stdout.splitlines()]
    assert [int(f[0]) for f in fields] == sorted(int(f[0]) for f in fields) and {int(f[0]) for f in fields} == set(range(21))
    assert [f[1] for f in fields if f[0] == "1"] == [""]
    single = hpcnmt("translate", "--run", folder / "async", stdin=text.encode()).stdout.splitlines()
    assert single == [next(f[1] for f in fields if int(f[0]) == i) for i in range(21)]
    files = ("--run", folder / "async", "--src", folder / "text" / "test.src", "--ref", folder / "text" / "test.trg")
    scores = hpcnmt("score", *files)
    assert len(scores.stdout.split()) == 20 and all(float(s) < 0 for s in scores.stdout.split())
    assert json.loads(hpcnmt("evaluate", *files, "--json").stdout)["sentences"] == 20
    assert "words per second" in hpcnmt("summary", "--run", folder / "async").stdout


@one_family
def test_wrong_input_is_one_line_and_writes_nothing(folder: Path) -> None:
    runs = [
        (train_here(folder, "async"), "exists already"),
        (train_here(folder, "new", "--shards", 1000000), "use fewer --shards"),
        (train_here(folder, "new", "--workers", 5000), "use fewer --workers"),
        (train_here(folder, "new", "--workers", 0, settings=("training.mode=plain",)), "no effect with training.mode=plain"),
        (train_here(folder, "new", "--workers", 5000, settings=("training.mode=virtual",)), "use fewer --workers"),
        (train(folder, "text/test.src/new"), "cannot use"),
        (train(folder, "new", settings=("training.ring_slots=10000000",)), "in /dev/shm: use a smaller model"),
        (here("sample-corpus", "--out", folder / "text" / "test.src" / "new"), "cannot use"),
        (here("translate", "--run", folder / "async", "--n-best", 7), "expected 1 <= n_best <= beam"),
        (hpcnmt("translate", "--run", folder / "async", "--batch-sentences", -1, stdin=b"x\n"), "expected at least 1"),
        (here("train", "sample", "--data", folder / "none", "--run", folder / "new"), "run hpcnmt prepare"),
        (hpcnmt("translate", "--run", folder / "none", stdin=b"x\n"), "give --run the folder of hpcnmt train"),
        (hpcnmt("translate", "--run", folder / "async", stdin=b"x\n\xff\n"), "standard input:2: found bytes that are not UTF-8"),
        (here("status", "--run", folder / "none", "--watch"), "give --run the folder of a run"),
        (here("status", "--run", folder / "text"), "found no reports of ranks"),
        (here("trace", "--run", folder / "text"), "train with --trace"),
        (here("sample-corpus", "--out", folder / "text"), "exists already"),
    ]
    for done, message in runs:
        assert done.returncode == 2, (message, done.stderr)
        assert message in done.stderr and own_lines(done.stderr) == 1, done.stderr
    assert not (folder / "new").exists()


def own_lines(text: str) -> int:
    """Different lines of hpcnmt or of Python: several ranks may say the same, and launchers add words about an aborted job."""
    return len({line for line in text.splitlines() if line.startswith(("hpcnmt:", "Traceback"))})


def launched(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return hpcnmt(*arguments, launcher=(mpiexec(), "-n", str(ranks)))


def test_a_wrong_world_is_refused_in_one_line_before_anything_is_written(folder: Path) -> None:
    command = ("train", "sample", "--data", folder / "prepared", "--run", folder / "new")
    runs = [
        (launched(2, *command), "found a world of 2 ranks, expected 2 workers + 1 shards = 3"),
        (launched(3, *command, "--set", "loader.batch_words=1000000"), "found 1 batches in an epoch for 2 workers"),
        (launched(3, *command[:-1], folder / "async"), "exists already"),
    ]
    for done, message in runs:
        assert done.returncode == 2 and message in done.stderr and own_lines(done.stderr) == 1, done.stderr
    done = launched(2, *command, "--set", "training.mode=plain")
    assert done.returncode == 2 and "is one process, but the launcher started 2" in done.stderr, done.stderr
    assert not (folder / "new").exists()


def test_divergence_ends_all_ranks_with_one_line_and_its_code(folder: Path) -> None:
    done = train(folder, "diverged", settings=("schedule.learning_rate=1.0e38", "training.max_target_words=500000"))
    assert done.returncode == 3 and "Traceback" not in done.stderr and own_lines(done.stderr) == 1, done.stderr
    assert "hpcnmt: training has diverged: found" in done.stderr and "; this window has the training sentences " in done.stderr
    facts = json.loads((folder / "diverged" / "diverged.json").read_text())
    assert 0 <= facts["began_words"] < 500000 and "in a row" in facts["reason"]


@one_family
def test_a_vocabulary_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    write_sample_corpus(tmp_path / "text", seed=2, train=600, valid=20, test=20)
    lines = [line for end in ("src", "trg") for line in (tmp_path / "text" / f"train.{end}").read_text().splitlines()]
    train_vocabulary(lines, tmp_path / "vocab.model", 300)
    for name in ("prepared", "async"):
        shutil.copytree(folder / name, tmp_path / name)
        shutil.copyfile(tmp_path / "vocab.model", tmp_path / name / "vocab.model")
    runs = [
        (train_here(tmp_path, "new", settings=("training.mode=plain",)), "was prepared with the vocabulary"),
        (hpcnmt("translate", "--run", tmp_path / "async", stdin=b"x\n"), "take that of the same run"),
    ]
    for done, message in runs:
        assert done.returncode == 2 and message in done.stderr and own_lines(done.stderr) == 1, done.stderr
    assert not (tmp_path / "new").exists()


@one_family
def test_the_sample_needs_more_than_a_dictionary_and_holds_unseen_combinations(folder: Path) -> None:
    import sacrebleu

    text = {name: (folder / "text" / name).read_text().splitlines() for name in ("train.src", "test.src", "test.trg")}
    assert not set(text["train.src"]) & set(text["test.src"])
    assert sacrebleu.corpus_bleu(word_by_word(text["test.src"], 1), [text["test.trg"]]).score < 40
