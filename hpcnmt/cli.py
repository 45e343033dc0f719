"""The console command `hpcnmt`: its arguments, and one small function for each command.

User errors (ValueError, and OSError: a folder that is not writable, a full disk) end with one line and exit code 2; what comes of errors
while a model is trained is said in training/command.py. Heavy imports stay inside the commands, so that --help is quick.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

from hpcnmt.advise_measured import MODELS
from hpcnmt.slurm_script import add_arguments as add_slurm_arguments
from hpcnmt.slurm_script import write_job_script
from hpcnmt.training.command import add_arguments as add_train_arguments
from hpcnmt.training.command import train
from hpcnmt.training.exits import USER_ERROR
from hpcnmt.training.say import one_line, say

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hpcnmt", description="Asynchronous training of translation models over MPI.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _data_commands(commands)
    train = commands.add_parser("train", help="train; starts local ranks itself, or takes its place under mpiexec / srun / torchrun")
    add_train_arguments(train)
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
    picked.add_argument("--model", choices=MODELS, help="which kind of model (default transformer)")
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
    "sample-corpus": _sample_corpus, "prepare": _prepare, "train": train, "translate": _translate,
    "score": _score, "evaluate": _evaluate, "summary": _summary, "status": _status, "trace": _trace, "replay": _replay,
    "report": _report, "advise": _advise, "doctor": _doctor, "slurm": write_job_script,
}  # fmt: skip


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
        say(one_line(error))
        tell_code(USER_ERROR)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
