"""Grids of an ablation: what they plan, and that everything wrong is said before training begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcnmt.bench.grid import Grid, read_grid
from hpcnmt.cli import main
from hpcnmt.data.prepare import PrepareConfig, prepare
from hpcnmt.data.sample import write_sample_corpus
from hpcnmt.training.recipe import build_recipe

GOOD: dict[str, Any] = {
    "recipe": "sample", "baseline": "async", "set": ["clock.batch_s=0.4"],
    "policies": {
        "async": {"workers": 4, "set": ["optimizer.beta1=0.9"]}, "one": {"workers": 1, "mode": "plain"},
        "sync": {"workers": 4, "mode": "sync-equivalent", "set": ["worker.delay=2"]},
    },
}  # fmt: skip
GRIDS = sorted((Path(__file__).parents[3] / "benchmarks" / "grids").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("grid")
    text = folder / "text"
    write_sample_corpus(text, train=1000, valid=5, test=5)  # batches for 16 workers
    prepare(PrepareConfig(text / "train.src", text / "train.trg", text / "valid.src", text / "valid.trg", folder / "prepared", 200))
    yield folder / "prepared"


def written(folder: Path, content: object) -> Path:
    path = folder / "grid.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return path


def test_synchronous_workers_become_one_process_with_their_batches(data: Path, tmp_path: Path) -> None:
    grid = read_grid(written(tmp_path, GOOD))
    runs = {name: grid.plan(name, 7, data, tmp_path / "work") for name in grid.policies}
    trained = [(run.mode, run.workers, run.recipe.worker.delay) for run in runs.values()]
    assert trained == [("virtual", 4, 1), ("plain", 1, 1), ("plain", 1, 8)]
    names = ("name", "mode", "workers", "delay", "seed")
    assert [[run.identity()[name] for name in names] for run in runs.values()] == [
        ["async", "virtual", 4, 1, 7], ["one", "plain", 1, 1, 7], ["sync", "sync-equivalent", 4, 2, 7],
    ]  # fmt: skip
    assert runs["async"].recipe.clock.batch_s == 0.4  # of virtual time: it would have no effect in the others
    assert len({run.folder for run in runs.values()}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "sink"}, "found baseline 'sink', expected one of the policies async, one, sync"),
        ({"baseline": ""}, "found no baseline"),
        ({"policies": {}}, "found no policies"),
        ({"policies": ["async"]}, "expected a mapping by name"),
        ({"polices": {}}, "found the unknown option polices: did you mean 'policies'"),
        ({"policies": {"async": {"workers": 4, "sets": []}}}, "found the unknown option policies.async.sets: did you mean 'set'"),
        ({"policies": {"async": {"workers": 4, "mode": "sync"}}}, "for policies.async.mode, expected one of 'virtual'"),
        ({"policies": {"async": {}}}, "found workers 0 of policy async"),
        ({"policies": {"async": {"workers": 2, "mode": "plain"}}}, "expected 1 with mode plain"),
        ({"policies": {"a/b": {"workers": 2}}}, "found the policy name 'a/b'"),
        ({"policies": {"async": {"workers": 2, "set": ["training.seed=3"]}}}, "training.seed in set of policy async: use --seeds"),
        ({"policies": {"async": {"workers": 2, "set": ["training.max_target_words=3"]}}}, "the same for all"),
        ({"policies": {"async": {"workers": 2, "set": ["worker.delay=2", "worker.delay=3"]}}}, "found worker.delay 2 times"),
        ({"set": ["training.mode=sync"]}, "found training.mode in set"),
        ({"target": {"bleu": 120}}, "found the target"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_file(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD | change)
    with pytest.raises(ValueError) as error:
        read_grid(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))


def test_a_policy_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe: sample\nbaseline: a\npolicies:\n  a: {workers: 1}\n  b: {workers: 2}\n  a: {workers: 2}\n")
    with pytest.raises(ValueError, match="found 'a' 2 times, expected once"):
        read_grid(path)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"workers": 2, "set": ["worker.delai=2"]}, "policy async: found the unknown option worker.delai"),
        ({"workers": 2, "mode": "sync-equivalent", "set": ["worker.overlap=1"]}, "policy async: worker.overlap has no effect"),
        ({"workers": 1000000}, "policy async: "),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line_that_names_the_policy(
    policy: dict[str, Any], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"recipe": "sample", "baseline": "async", "policies": {"async": policy}})
    places = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    assert main(["bench", "ablation", str(path), *places]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert main(["bench", "ablation", str(tmp_path / "none.yaml"), *places]) == 2 and "found no grid" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_can_be_trained(path: Path, data: Path, tmp_path: Path) -> None:
    grid: Grid = read_grid(path)
    for name in grid.policies:
        assert grid.plan(name, 1, data, tmp_path).recipe != build_recipe({})


def test_there_are_shipped_grids() -> None:
    assert GRIDS
