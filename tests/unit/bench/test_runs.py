"""Run folders of a benchmark: what is complete is kept, what was cut off is trained anew, what is something else is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hpcnmt.bench.children import work_folder
from hpcnmt.bench.runs import Run, integers, is_done, plan_run, read_curve, refuse_own_options
from hpcnmt.data.prepare import PrepareConfig, prepare
from hpcnmt.data.sample import write_sample_corpus
from hpcnmt.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bench")
    write_sample_corpus(folder / "text", train=200, valid=5, test=5)
    text = folder / "text"
    prepare(PrepareConfig(text / "train.src", text / "train.trg", text / "valid.src", text / "valid.trg", folder / "prepared", 200))
    yield folder / "prepared"


def planned(data: Path, work: Path, seed: int = 1) -> Run:
    return plan_run("w2", "sample", ["training.mode=virtual"], seed, data, work, 2, 1)


def trained(run: Run, *records: dict[str, object]) -> None:
    RunFolder.create(run.folder, run.recipe, run.data, {"workers": run.workers, "shards": run.shards})
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_seed_is_that_of_parameters_batches_and_clock(data: Path, tmp_path: Path) -> None:
    recipe = planned(data, tmp_path, seed=7).recipe
    assert (recipe.training.seed, recipe.loader.seed, recipe.clock.seed) == (7, 7, 7)
    plain = plan_run("p", "sample", ["training.mode=plain"], 7, data, tmp_path, 1, 0)
    assert plain.recipe.loader.seed == 7 and "--workers" not in plain.command("") and plain.command("srun -n") == plain.command("")
    asynchronous = plan_run("a", "sample", ["training.mode=async"], 7, data, tmp_path, 3, 2)
    assert asynchronous.command("srun -n")[:3] == ["srun", "-n", "5"]


def test_only_the_end_of_the_same_run_is_done(data: Path, tmp_path: Path) -> None:
    run = planned(data, tmp_path)
    assert not is_done(run)
    trained(run, {"kind": "training"})
    assert not is_done(run), "it was cut off"
    (run.folder / "metrics.jsonl").write_text('{"kind": "training"}\n{"kind": "end"}\n')
    assert is_done(run)
    for other in (replace(run, workers=4), replace(run, recipe=planned(data, tmp_path, seed=2).recipe)):
        with pytest.raises(ValueError, match="holds another run"):
            is_done(other)
    content = json.loads((run.folder / "config.json").read_text())
    assert content.keys() - asdict(run.recipe).keys() == {"context"}


def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = planned(data, tmp_path)
    run.folder.mkdir()
    (run.folder / "letters.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run"):
        is_done(run)
    assert (run.folder / "letters.txt").read_text() == "mine"


def test_a_curve_leaves_out_a_second_validation_of_the_same_words(data: Path, tmp_path: Path) -> None:
    run = planned(data, tmp_path)
    validation = {"kind": "validation", "seconds": 1.0, "took_s": 0.5, "cross_entropy": 2.0, "bleu": 1.0, "chrf": 3.0, "simulated_s": 9.0}
    trained(run, *(validation | {"target_words": words} for words in (10, 20, 20)), {"kind": "end"})
    curve = read_curve(run)
    assert [point["target_words"] for point in curve] == [10, 20]
    assert curve[0] == {"target_words": 10, "cross_entropy": 2.0, "bleu": 1.0, "chrf": 3.0, "simulated_s": 9.0}


def test_two_benchmarks_do_not_share_a_work_folder(tmp_path: Path) -> None:
    with work_folder(tmp_path / "work"):
        with pytest.raises(ValueError, match="another benchmark is training"):
            with work_folder(tmp_path / "work"):
                pass
    with work_folder(tmp_path / "work"):
        pass


@pytest.mark.parametrize("text", ["", "1,", "0", "1,1", "-1", "1.5", "a", "1, 2"])
def test_numbers_are_whole_different_and_positive(text: str) -> None:
    assert integers("4,1,16", "--workers") == [4, 1, 16]
    with pytest.raises(ValueError, match="expected different whole numbers"):
        integers(text, "--workers")


def test_what_the_benchmark_sets_cannot_be_set() -> None:
    refuse_own_options(["worker.delay=2"], "--set")
    with pytest.raises(ValueError, match="found loader.seed in --set: use --seeds"):
        refuse_own_options(["worker.delay=2", "loader.seed=3"], "--set")


def test_a_run_folder_of_before_an_option_existed_is_recognised(data: Path, tmp_path: Path) -> None:
    run = planned(data, tmp_path)
    trained(run, {"kind": "end"})
    path = run.folder / "config.json"
    content = json.loads(path.read_text())
    del content["deadlines"], content["training"]["trace"]
    path.write_text(json.dumps(content))
    assert is_done(run)
    content["training"]["mode"] = "plain"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds another run .training.mode: found 'plain', expected 'virtual'."):
        is_done(run)
