"""The console command `hpcnmt`. User errors (ValueError) end with one line and exit code 2; on an MPI rank any error ends the whole job."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hpcnmt", description="Asynchronous training of translation models over MPI.")
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample-corpus", help="write the generated language pair")
    sample.add_argument("--out", type=Path, required=True)
    sample.add_argument("--seed", type=int, default=1)
    prepare = commands.add_parser("prepare", help="text to vocabulary and memory-mapped corpus")
    for name in ("train-source", "train-target", "valid-source", "valid-target", "out"):
        prepare.add_argument(f"--{name}", type=Path, required=True)
    prepare.add_argument("--vocabulary-size", type=int, default=4000)
    prepare.add_argument("--max-length", type=int, default=100, help="longest training sentence in pieces")
    prepare.add_argument("--max-length-ratio", type=float, default=4.0)
    train = commands.add_parser(
        "train", help="train; starts its own ranks, or takes its place under mpiexec / srun",
        epilog="example: hpcnmt train sample --data prepared --run run1 --workers 2 --shards 1 --set worker.delay=2",
    )  # fmt: skip
    train.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    train.add_argument("--data", type=Path, required=True, help="folder of hpcnmt prepare")
    train.add_argument("--run", type=Path, required=True, help="new folder for this run")
    train.add_argument("--workers", type=int, default=2)
    train.add_argument("--shards", type=int, default=1)
    train.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE")
    translate = commands.add_parser("translate", help="standard input to standard output")
    evaluate = commands.add_parser("evaluate", help="translate and score with sacreBLEU")
    for command in (translate, evaluate):
        command.add_argument("--run", type=Path, required=True)
        command.add_argument("--beam", type=int, default=6)
    translate.add_argument("--n-best", type=int, default=1)
    evaluate.add_argument("--src", type=Path, required=True)
    evaluate.add_argument("--ref", type=Path, required=True)
    evaluate.add_argument("--json", action="store_true")
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from hpcnmt.config import from_mapping, load_recipe, override
    from hpcnmt.data.corpus import read_description
    from hpcnmt.training.recipe import Recipe

    recipe = from_mapping(Recipe, override(load_recipe(arguments.recipe), arguments.set))
    read_description(arguments.data)
    launched = any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"))
    if launched:
        from hpcnmt.training.job import run_rank

        run_rank(recipe, arguments.data, arguments.run, arguments.workers, arguments.shards)
        return 0
    if arguments.run.exists():
        raise ValueError(f"{arguments.run} exists already, expected a new run folder: choose another --run or remove it")
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpiexec is None:
        raise ValueError("found no mpiexec: install an MPI with pip install 'hpcnmt[mpich]', or load your site's module")
    environment = {"OMP_NUM_THREADS": str(recipe.training.threads), "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"} | os.environ
    ranks = arguments.workers + arguments.shards
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "hpcnmt.cli", *sys.argv[1:]]
    return subprocess.run(command, env=environment).returncode


def _prepare(arguments: argparse.Namespace) -> int:
    from hpcnmt.data.prepare import PrepareConfig, prepare

    options = {key: value for key, value in vars(arguments).items() if key != "command"}
    report = prepare(PrepareConfig(**options))
    print(f"{report.train_pairs} training and {report.valid_pairs} validation pairs, {report.vocabulary_size} pieces")
    print(f"dropped: {report.dropped}")
    return 0


def _translate(arguments: argparse.Namespace) -> int:
    from hpcnmt.inference.beam import BeamConfig
    from hpcnmt.inference.translate import translate_lines
    from hpcnmt.training.recipe import RunFolder

    model, vocabulary = RunFolder(arguments.run).load()
    lines = [line.rstrip("\n") for line in sys.stdin]
    for number, found in enumerate(translate_lines(model, vocabulary, lines, BeamConfig(arguments.beam, n_best=arguments.n_best))):
        for hypothesis in found:
            print(f"{number} ||| {hypothesis.text} ||| {hypothesis.score:.4f}" if arguments.n_best > 1 else hypothesis.text)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    import sacrebleu

    from hpcnmt.data.textio import read_parallel
    from hpcnmt.inference.beam import BeamConfig
    from hpcnmt.inference.translate import translate_lines
    from hpcnmt.training.recipe import RunFolder

    pairs = read_parallel(arguments.src, arguments.ref)
    model, vocabulary = RunFolder(arguments.run).load()
    hypotheses = [h[0].text for h in translate_lines(model, vocabulary, [p[0] for p in pairs], BeamConfig(arguments.beam))]
    references = [[p[1] for p in pairs]]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    scores = {"bleu": bleu.corpus_score(hypotheses, references).score, "chrf": chrf.corpus_score(hypotheses, references).score}
    signatures = {"bleu_signature": str(bleu.get_signature()), "chrf_signature": str(chrf.get_signature())}
    print(json.dumps(scores | signatures) if arguments.json else f"BLEU {scores['bleu']:.2f}  chrF {scores['chrf']:.2f}  {signatures}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "sample-corpus":
            from hpcnmt.data.sample import write_sample_corpus

            write_sample_corpus(arguments.out, arguments.seed)
            return 0
        return {"prepare": _prepare, "train": _train, "translate": _translate, "evaluate": _evaluate}[arguments.command](arguments)
    except ValueError as error:
        if "mpi4py.MPI" in sys.modules:
            raise  # python -m mpi4py prints the traceback and ends every rank
        sys.stderr.write(f"hpcnmt: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
