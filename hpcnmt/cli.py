"""The console command `hpcnmt`: its arguments, and one small function for each command.

User errors (ValueError, and OSError: a folder that is not writable, a full disk) end with one line and exit code 2. On an MPI rank any
error ends the whole job: a user error with one line, anything else with its traceback. Heavy imports stay inside the commands, so
that --help is quick.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hpcnmt.slurm_script import add_arguments as add_slurm_arguments
from hpcnmt.slurm_script import write_job_script

if TYPE_CHECKING:
    from hpcnmt.training.recipe import Recipe

EXAMPLES = """examples:
  hpcnmt sample-corpus --out text
  hpcnmt prepare --train-source text/train.src --train-target text/train.trg \\
                 --valid-source text/valid.src --valid-target text/valid.trg --vocabulary-size 400 --out prepared
  hpcnmt train sample --data prepared --run run1 --workers 2 --shards 1 --set worker.delay=2
  hpcnmt translate --run run1 < text/test.src > test.hyp
  hpcnmt evaluate --run run1 --src text/test.src --ref text/test.trg
"""
REPORT = """One HTML page that needs no network, with tables and pictures of everything in the results files, and the pictures as PNGs.
Files of a run cut short give a page of what they hold; a page of the same name is replaced.

example:
  hpcnmt report benchmarks/results/throughput.json benchmarks/results/quality.json --out report.html
"""
ADVISE = """Every rule with its formula and source, where rules disagree, which one is followed and why, and --set options to paste.

examples:
  hpcnmt advise --workers 4 --delay 2 --batch-words 1000 --overlap 1
  hpcnmt advise --workers 4 --recipe multi30k-transformer --set optimizer.beta1=0.9
  hpcnmt advise --run run1
  hpcnmt advise --pick --workers 4 --network-gbit 1
"""
USER_ERROR = 2
LONGEST_ERROR = 1000
"""Characters of a message to the user."""
RANK_ZERO_FIRST_S = 1.0
"""Seconds the other ranks leave to rank 0, so that an error which all of them find is told once."""
TO_BE_HEARD_S = 0.5
"""Between the message and the end of the job: a launcher that kills its ranks at once can lose what it has not yet passed on."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hpcnmt", description="Asynchronous training of translation models over MPI.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _data_commands(commands)
    train = commands.add_parser("train", help="train; starts local ranks itself, or takes its place under mpiexec / srun / torchrun")
    train.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    train.add_argument("--data", type=Path, required=True, help="folder of hpcnmt prepare")
    train.add_argument("--run", type=Path, required=True, help="new folder for this run")
    train.add_argument("--workers", type=int, help="default 2; not in mode plain")
    train.add_argument("--shards", type=int, help="default 1; not in modes plain and sync")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of RUN; begin where there is none")
    train.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="change an option of the recipe")
    train.add_argument("--trace", action="store_true", help="write what every rank does when to RUN/trace (training.trace=true)")
    _supervision(train)
    _inference_commands(commands)
    _run_commands(commands)
    _replay_command(commands)
    commands.add_parser("bench", help="measure: throughput, comm, time-to-bleu, quality, ablation, soak", add_help=False)
    _report_command(commands)
    slurm = commands.add_parser("slurm", help="write a filled-in job script for Slurm; its arguments are those of train, and the job's")
    add_slurm_arguments(slurm)
    _advise_command(commands)
    doctor = commands.add_parser("doctor", help="check MPI, launcher, devices and versions; says what to fix")
    doctor.add_argument("--json", action="store_true")
    return parser


def _supervision(train: argparse.ArgumentParser) -> None:
    train.add_argument("--supervise", action="store_true", help="start local ranks again from the newest checkpoint when they fail")
    train.add_argument("--restarts", type=int, metavar="N",
                       help="failures in a row without a new checkpoint after which --supervise gives up (default 3)")  # fmt: skip
    train.add_argument("--back-off", type=float, metavar="SECONDS",
                       help="wait before a restart, doubled up to 60 while there is no new checkpoint (default 1; 0 = none)")  # fmt: skip


def _run_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = commands.add_parser("summary", help="the figures of a run in a table")
    status = commands.add_parser("status", help="who of a run does or waits for what, while it trains and afterwards")
    trace = commands.add_parser("trace", help="traces of all ranks (train --trace) in one file for ui.perfetto.dev; seconds by activity")
    for command in (summary, status, trace):
        command.add_argument("--run", type=Path, required=True, help="folder of hpcnmt train")
    status.add_argument("--watch", action="store_true", help="refresh every second until the run is over")
    status.add_argument("--json", action="store_true", help="the reports of all ranks as one line of JSON")
    trace.add_argument("--out", type=Path, help="the merged file (default RUN/trace/trace.json)")


def _replay_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    replay = commands.add_parser("replay", help="repeat an asynchronous run (training.record=true) in one process, bit for bit")
    replay.add_argument("--run", type=Path, required=True, help="folder of hpcnmt train")
    replay.add_argument("--data", type=Path, required=True, help="folder of hpcnmt prepare that the run was trained on")
    replay.add_argument("--until", type=int, metavar="PUSHES", help="only until every shard has applied so many pushes")
    replay.add_argument("--check", action="store_true", help="only check that every push was applied once and in order")


def _data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sample = commands.add_parser("sample-corpus", help="write the generated language pair")
    sample.add_argument("--out", type=Path, required=True, help="new folder")
    sample.add_argument("--seed", type=int, default=1)
    prepare = commands.add_parser("prepare", help="text to vocabulary and memory-mapped corpus")
    for name in ("train-source", "train-target", "valid-source", "valid-target"):
        prepare.add_argument(f"--{name}", type=Path, required=True, help="one sentence a line; plain, .gz or .xz")
    prepare.add_argument("--out", type=Path, required=True, help="new folder")
    prepare.add_argument("--vocabulary-size", type=int, default=4000, help="sentencepiece pieces (default 4000)")
    prepare.add_argument("--separate-vocabularies", action="store_true", help="one vocabulary for each side instead of a joint one")
    prepare.add_argument("--max-length", type=int, default=100, help="longest training sentence in pieces (default 100)")
    prepare.add_argument("--max-length-ratio", type=float, default=4.0, help="longest ratio of the two sides (default 4)")


def _inference_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    translate = commands.add_parser("translate", help="translate standard input to standard output")
    score = commands.add_parser("score", help="log-probability of given translations, one number a line")
    evaluate = commands.add_parser("evaluate", help="translate, and score with sacreBLEU")
    for command in (translate, score, evaluate):
        command.add_argument("--run", type=Path, required=True, help="folder of hpcnmt train")
    for command in (translate, evaluate):
        command.add_argument("--beam", type=int, default=6)
        command.add_argument("--length-penalty", type=float, default=0.6)
        command.add_argument("--batch-sentences", type=int, default=64)
    translate.add_argument("--n-best", type=int, default=1, help="print N ||| TEXT ||| SCORE lines when above 1")
    for command in (score, evaluate):
        command.add_argument("--src", type=Path, required=True)
        command.add_argument("--ref", type=Path, required=True)
    score.add_argument("--normalize", action="store_true", help="divide by the target words (EOS counted)")
    evaluate.add_argument("--json", action="store_true")


def _report_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report", help="results of hpcnmt bench as an HTML page and PNGs",
        description=REPORT, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    report.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json", help="files of hpcnmt bench, of any kind")
    report.add_argument("--out", type=Path, required=True, help="the page")
    report.add_argument("--png", type=Path, metavar="DIR", help="folder of the PNGs (default: that of the page)")


def _advise_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    advise = commands.add_parser(
        "advise", help="what published rules give for a setting: betas, learning rate, tau, warm-up, each with its source",
        description=ADVISE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    advise.add_argument("--workers", type=int)
    advise.add_argument("--delay", type=int, metavar="TAU", help="batches of a push (worker.delay)")
    advise.add_argument("--batch-words", type=int, help="target words of a batch (loader.batch_words)")
    advise.add_argument("--overlap", type=int, metavar="0|1", help="worker.overlap")
    advise.add_argument("--staleness", type=float, help="measured mean of a push (default: what is expected)")
    advise.add_argument("--wait", type=float, metavar="SHARE", help="measured share of its time that a worker waits, 0 to 1")
    advise.add_argument("--recipe", help="name of a shipped recipe, or a YAML file: gives what is not given here, and is judged")
    advise.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="change an option of the recipe")
    advise.add_argument("--run", type=Path, help="folder of hpcnmt train: gives all of these, measured, and is judged")
    advise.add_argument("--momentum", type=float, default=0.9, help="beta1 that is best without staleness (default 0.9)")
    advise.add_argument("--json", action="store_true")
    picked = advise.add_argument_group("with --pick: which of the measured methods reaches the same quality soonest, as a shipped recipe")
    picked.add_argument("--pick", action="store_true", help="needs --workers; says where synchronous training wins, too")
    picked.add_argument("--model", choices=("transformer", "gru"), help="which kind of model (default transformer)")
    picked.add_argument("--network-gbit", type=float, metavar="X", help="speed of every link (default 1)")
    picked.add_argument("--parameters", type=float, metavar="COUNT", help="of the model (default 1e7, as measured)")
    picked.add_argument("--batch-s", type=float, metavar="SECONDS", help="of one batch on a worker (default 0.4, as measured)")
    picked.add_argument("--throughput", type=Path, metavar="FILE", help="your own results of hpcnmt bench throughput, simulated compute")


def _sample_corpus(arguments: argparse.Namespace) -> int:
    from hpcnmt.data.sample import write_sample_corpus

    write_sample_corpus(arguments.out, arguments.seed)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from hpcnmt.data.prepare import PrepareConfig, prepare

    report = prepare(PrepareConfig(**{key: value for key, value in vars(arguments).items() if key != "command"}))
    print(f"{report.train_pairs} training and {report.valid_pairs} validation pairs, {report.source_pieces}/{report.target_pieces} pieces")
    print(f"dropped: {', '.join(f'{count} {reason}' for reason, count in report.dropped.items()) or 'nothing'}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from hpcnmt.config import load_recipe, override
    from hpcnmt.optim.window import Diverged
    from hpcnmt.training.launch import is_launched
    from hpcnmt.training.parent import is_ours
    from hpcnmt.training.recipe import build_recipe
    from hpcnmt.training.resume import check_run, is_finished
    from hpcnmt.training.start import check_supervision, start_local

    recipe = build_recipe(override(load_recipe(arguments.recipe), arguments.set + ["training.trace=true"] * arguments.trace))
    mode = recipe.training.mode
    check_supervision(arguments, mode)
    if mode == "plain" and not (arguments.workers is None and arguments.shards is None):
        raise ValueError("--workers and --shards have no effect with training.mode=plain: remove them")
    if mode == "sync" and arguments.shards is not None:
        raise ValueError("--shards has no effect with training.mode=sync, whose workers all hold the parameters: remove it")
    workers = 1 if mode == "plain" else 2 if arguments.workers is None else arguments.workers
    shards = 0 if mode == "sync" else 1 if arguments.shards is None else arguments.shards
    if arguments.resume and mode == "virtual":
        raise ValueError("--resume has no effect with training.mode=virtual, which makes no checkpoints: remove it and choose a new --run")
    if arguments.resume and is_finished(arguments.run):
        sys.stderr.write(f"hpcnmt: the run {arguments.run} is finished already: nothing is left to train\n")
        return 0
    if mode in ("async", "sync") and is_launched(mode):
        return _train_rank(recipe, arguments.data, arguments.run, workers, shards, arguments.resume)
    check_run(arguments.run, recipe, arguments.resume)
    if mode in ("async", "sync"):
        _check_start(recipe, arguments.data, workers, shards)
        return start_local(arguments, recipe, workers + shards)
    from hpcnmt.doctor import launched_size
    from hpcnmt.training.local import train_plain, train_virtual
    from hpcnmt.training.setup import check_sizes

    check_sizes(recipe, arguments.data, workers, max(shards, 1))
    if launched := launched_size(os.environ):
        raise ValueError(f"training.mode={mode} is one process, but the launcher started {launched}: start it without mpiexec or srun")
    if arguments.supervise and not is_ours():
        return start_local(arguments, recipe, 0)
    try:
        if mode == "plain":
            return train_plain(recipe, arguments.data, arguments.run, arguments.resume)
        train_virtual(recipe, arguments.data, arguments.run, workers, shards)
    except Diverged as error:
        return _failure(error, arguments.run)
    return 0


def _check_start(recipe: Recipe, data: Path, workers: int, shards: int) -> None:
    """The checks before local ranks are started."""
    from hpcnmt.training.setup import check_sizes

    if recipe.training.mode == "sync":
        from hpcnmt.distributed.collective import check_backend

        check_backend(recipe.sync.backend)
    check_sizes(recipe, data, workers, max(shards, 1))


def _failure(error: BaseException, run: Path) -> int:
    """Says what went wrong while `run` was trained, a divergence and a user's error in one line; returns the exit code."""
    from hpcnmt.optim.window import Diverged
    from hpcnmt.training.exits import DIVERGED, FAILED
    from hpcnmt.training.fall_back import report_divergence

    if isinstance(error, Diverged):
        sys.stderr.write(f"hpcnmt: {report_divergence(run, error)}\n")
        return DIVERGED
    if isinstance(error, (ValueError, OSError)):
        sys.stderr.write(f"hpcnmt: {_one_line(error)}\n")
        return USER_ERROR
    traceback.print_exception(error)
    return FAILED


def _train_rank(recipe: Recipe, data: Path, run: Path, workers: int, shards: int, resume: bool) -> int:
    """One rank: any error ends the whole job, because the others would wait for this rank until their deadlines."""
    from hpcnmt.optim.window import Diverged
    from hpcnmt.training.launch import abort, end_world, is_first

    try:
        if recipe.training.mode == "sync":
            from hpcnmt.training import synchronous

            code = synchronous.run_rank(recipe, data, run, workers, resume)
        else:
            from hpcnmt.training import asynchronous

            code = asynchronous.run_rank(recipe, data, run, workers, shards, resume)
    except BaseException as error:
        if isinstance(error, (ValueError, OSError, Diverged)):
            time.sleep(0.0 if is_first(recipe.training.mode) else RANK_ZERO_FIRST_S)
        code = _failure(error, run)
        sys.stderr.flush()
        time.sleep(TO_BE_HEARD_S)
        return abort(recipe.training.mode, code)
    return end_world(recipe.training.mode, code)


def _translate(arguments: argparse.Namespace) -> int:
    from hpcnmt.inference.beam import BeamConfig
    from hpcnmt.inference.commands import translate

    if sys.stdin is None or sys.stdout is None:
        raise ValueError("standard input or output is closed: hpcnmt translate --run RUN < SOURCE > TRANSLATION")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # what comes in is UTF-8 too, whatever the locale
    beam = BeamConfig(arguments.beam, arguments.length_penalty, n_best=arguments.n_best)
    translate(arguments.run, sys.stdin.buffer, sys.stdout, beam, arguments.batch_sentences)
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from hpcnmt.inference.commands import score

    for value in score(arguments.run, arguments.src, arguments.ref, arguments.normalize):
        print(f"{value:.6f}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    import json

    from hpcnmt.inference.beam import BeamConfig
    from hpcnmt.inference.commands import evaluate

    scores = evaluate(
        arguments.run, arguments.src, arguments.ref, BeamConfig(arguments.beam, arguments.length_penalty), arguments.batch_sentences
    )
    if arguments.json:
        print(json.dumps(scores))
    else:
        print(f"BLEU {scores['bleu']:.2f}  ({scores['bleu_signature']})\nchrF {scores['chrf']:.2f}  ({scores['chrf_signature']})")
    return 0


def _summary(arguments: argparse.Namespace) -> int:
    from hpcnmt.training.summary import print_summary

    print_summary(arguments.run)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from hpcnmt.training.status_table import show_status

    show_status(arguments.run, arguments.watch, arguments.json)
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from hpcnmt.training.trace import merge_traces

    merge_traces(arguments.run, arguments.out)
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from hpcnmt.training.replay import replay_run

    return replay_run(arguments.run, arguments.data, arguments.until, arguments.check)


def _report(arguments: argparse.Namespace) -> int:
    try:
        from hpcnmt.bench.report import write_report
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ValueError("found no matplotlib, which draws the pictures of hpcnmt report: pip install matplotlib") from error

    for path in write_report(arguments.results, arguments.out, arguments.png):
        print(f"wrote {path}")
    return 0


def _advise(arguments: argparse.Namespace) -> int:
    from hpcnmt.advise import advise

    return advise(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from hpcnmt.doctor import run_doctor

    return run_doctor(arguments.json)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "sample-corpus": _sample_corpus, "prepare": _prepare, "train": _train, "translate": _translate,
    "score": _score, "evaluate": _evaluate, "summary": _summary, "status": _status, "trace": _trace, "replay": _replay,
    "report": _report, "advise": _advise, "doctor": _doctor, "slurm": write_job_script,
}  # fmt: skip


def _one_line(error: BaseException) -> str:
    """What is said of an error: one line, no longer than a person reads, nothing that a terminal would obey."""
    is_of_file = isinstance(error, OSError) and error.filename is not None
    text = f"cannot use {error.filename}: {error.strerror}" if is_of_file and isinstance(error, OSError) else str(error)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= LONGEST_ERROR else f"{text[: LONGEST_ERROR - 200]} ... {text[-190:]}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from hpcnmt.training.parent import die_with_parent, tell_code

    die_with_parent()
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["bench"]:
            from hpcnmt.bench.commands import bench

            return bench(words[1:])
        arguments = _parser().parse_args(words)
        return COMMANDS[arguments.command](arguments)
    except BrokenPipeError:  # the reader of our output has left, as with `| head`
        sys.stderr.close()
        return 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"hpcnmt: {_one_line(error)}\n")
        tell_code(USER_ERROR)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
