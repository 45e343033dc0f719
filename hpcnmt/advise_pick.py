"""`hpcnmt advise --pick`: the measured method that reaches the same quality soonest on a network, and the recipe that it is shipped as.

Predicted seconds = words to the quality (virtual time, advise_measured.py) / words per second: those of the simulated clusters, put
between by 1 / speed, or those of the user's own `hpcnmt bench throughput`. Where synchronous training wins, that is what is picked.
What counts for the words per second is the time of a transfer in batches, so another model or batch is another network. Called by
advise.py.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpcnmt.advise_measured import BATCH_S, MEASURED, PARAMETERS, RATE_WORKERS, RATES, Measured, Method
from hpcnmt.bench.rates import read_columns

TABLE_COLUMNS = 150
USUAL_GBIT = 1.0
NOT_FOR_PICK = ("delay", "batch_words", "overlap", "staleness", "wait", "recipe", "run")
"""Flags of the rules."""
ONLY_FOR_PICK = ("network_gbit", "throughput", "parameters", "batch_s", "model")


@dataclass(frozen=True)
class Row:
    """A method with its predicted seconds; None: not reached, or no words per second."""

    name: str
    recipe: str
    words: float | None
    words_per_s: float | None
    seconds: float | None


@dataclass(frozen=True)
class Choice:
    """What is picked, out of `rows` (soonest first), and what to know about it."""

    recipe: str
    reason: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    workers: int


def pick(arguments: Namespace) -> int:
    """Prints the choice; returns the exit code. Raises ValueError for wrong input."""
    chosen = choose(arguments)
    if arguments.json:
        print(json.dumps(asdict(chosen)))
    else:
        _print(chosen)
    return 0


def check_flags(arguments: Namespace) -> None:
    """ValueError for flags that belong to the other half of advise."""
    wrong = [name for name in (NOT_FOR_PICK if arguments.pick else ONLY_FOR_PICK) if vars(arguments)[name] is not None]
    wrong += ["set"] if arguments.pick and arguments.set else []
    if wrong:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        what = "together with --pick, which chooses among whole recipes" if arguments.pick else "without --pick"
        raise ValueError(f"found {flags} {what}: remove one or the other" if arguments.pick else f"found {flags} {what}: add --pick")


def choose(arguments: Namespace) -> Choice:
    """The method with the fewest predicted seconds."""
    if arguments.workers is None or arguments.workers < 1:
        raise ValueError(f"found --workers {arguments.workers}, expected the number of workers: hpcnmt advise --pick --workers 4")
    measured = _nearest(arguments.model or "transformer", arguments.workers)
    rates, notes = _own_rates(arguments, measured) if arguments.throughput else _simulated_rates(arguments)
    if measured.workers != arguments.workers:
        notes.append(
            f"words to the quality were measured with {measured.workers} workers, not {arguments.workers}: more workers mean more "
            "staleness, which counts against the asynchronous methods, and larger synchronous updates"
        )
    if measured.seeds < 5:
        notes.append(f"measured with {measured.seeds} seed{'s' if measured.seeds > 1 else ''}: differences of a few per cent say nothing")
    rows = sorted((_row(method, rates.get(method.name)) for method in measured.methods), key=lambda row: row.seconds or math.inf)
    best = rows[0]
    if best.seconds is None:
        raise ValueError(f"found words per second of none of {', '.join(m.name for m in measured.methods)}, expected those of some")
    return Choice(best.recipe, _reason(measured, rows), tuple(rows), tuple(notes), arguments.workers)


def _nearest(model: str, workers: int) -> Measured:
    of_model = [measured for measured in MEASURED if measured.model == model]
    return min(of_model, key=lambda measured: abs(math.log(measured.workers / workers)))


def _row(method: Method, rate: float | None) -> Row:
    seconds = None if method.words is None or rate is None else method.words / rate
    return Row(method.name, method.recipe, method.words, rate, seconds)


def _reason(measured: Measured, rows: Sequence[Row]) -> str:
    best, baseline = rows[0], next(row for row in rows if row.name == measured.methods[0].name)
    second = next((row for row in rows[1:] if row.seconds is not None), None)
    parts = [f"{best.name} is predicted to reach {measured.cross_entropy:.3f} nats/word first ({measured.what}; {measured.source})"]
    if best.seconds and baseline.seconds and best is not baseline:
        parts.append(f"in {best.seconds / baseline.seconds:.2f} of the seconds of {baseline.name}")
    if best.seconds and second and second.seconds:
        parts.append(f"the next, {second.name}, needs {second.seconds / best.seconds:.2f} times as long")
    return ", ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:])


def _own_rates(arguments: Namespace, measured: Measured) -> tuple[dict[str, float], list[str]]:
    if arguments.network_gbit is not None:
        raise ValueError("found --throughput together with --network-gbit: the file says it itself, remove one or the other")
    path: Path = arguments.throughput
    wanted = (arguments.batch_s, None, arguments.parameters)  # None: any
    columns = [c for c in read_columns([path]) if all(w is None or w == f for w, f in zip(wanted, c.compute, strict=True))]
    if len(columns) != 1:
        labels = "; ".join(column.label for column in columns) or "none"
        raise ValueError(f"found not one network, batch and model in {path}, but {labels}: choose with --batch-s and --parameters")
    rates = {}
    for method in measured.methods:
        phases = columns[0].phases(method.rate_settings(arguments.workers))
        if phases:
            rates[method.name] = phases[0].target_words_per_s
    missing = [method.name for method in measured.methods if method.name not in rates]
    notes = [f"words per second: {path} ({columns[0].label})"]
    return rates, notes + ([f"{path} has no words per second of {', '.join(missing)} with {arguments.workers} workers"] if missing else [])


def _simulated_rates(arguments: Namespace) -> tuple[dict[str, float], list[str]]:
    gbit = USUAL_GBIT if arguments.network_gbit is None else arguments.network_gbit
    parameters = PARAMETERS if arguments.parameters is None else arguments.parameters
    batch_s = BATCH_S if arguments.batch_s is None else arguments.batch_s
    for flag, value in (("--network-gbit", gbit), ("--parameters", parameters), ("--batch-s", batch_s)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"found {flag} {value}, expected a positive number")
    scale = BATCH_S / batch_s
    speed = gbit * PARAMETERS / parameters / scale  # the network on which the measured model and batch would wait as many batches
    rates, said = _between(speed)
    notes = [
        f"words per second: simulated compute, {RATE_WORKERS} workers, 4 shards, links of {gbit:g} Gbit/s each way, {parameters / 1e6:g}M "
        f"parameters, {batch_s:g} s a batch of 2,000 words; {said}"
    ]
    if arguments.workers != RATE_WORKERS:
        notes.append(f"words per second are those of {RATE_WORKERS} workers: measure yours with hpcnmt bench throughput (--throughput)")
    return {name: rate * scale for name, rate in rates.items()}, notes


def _between(speed: float) -> tuple[dict[str, float], str]:
    """Words per second at a speed: seconds per word are linear in 1 / speed between two measured networks."""
    slower, faster = (max((s for s in RATES if s <= speed), default=min(RATES)), min((s for s in RATES if s >= speed), default=max(RATES)))
    files = " and ".join(dict.fromkeys(RATES[s][0] for s in (slower, faster)))
    if slower == faster:
        beyond = "" if slower == speed else f", which is the nearest to what was asked ({speed:.3g} for that model and batch)"
        return dict(RATES[slower][1]), f"{files}: {slower:g} Gbit/s{beyond}"
    share = (1 / speed - 1 / faster) / (1 / slower - 1 / faster)
    low, high = RATES[slower][1], RATES[faster][1]
    rates = {name: 1 / (share / low[name] + (1 - share) / high[name]) for name in low if name in high}
    return rates, f"between {slower:g} and {faster:g} Gbit/s of {files}, by 1 / speed"


def _print(choice: Choice) -> None:
    table = Table(title=f"Predicted seconds to the same quality, {choice.workers} workers")
    for column in ("method", "recipe", "target words", "words/s", "seconds"):
        table.add_column(column, justify="left" if column in ("method", "recipe") else "right")
    for row in choice.rows:
        words = "not reached" if row.words is None else f"{row.words:,.0f}"
        rate = "not measured" if row.words_per_s is None else f"{row.words_per_s:,.0f}"
        table.add_row(row.name, row.recipe, words, rate, "-" if row.seconds is None else f"{row.seconds:.1f}")
    console = Console(width=None if Console().is_terminal else TABLE_COLUMNS, highlight=False)
    console.print(table)
    console.print(f"Picked: {choice.recipe}. {choice.reason}.", markup=False)
    for note in choice.notes:
        console.print(f"Note: {note}.", markup=False)
    shards = "" if choice.recipe.endswith("-sync") else " --shards 1"
    print(f"hpcnmt train {choice.recipe} --data PREPARED --run RUN --workers {choice.workers}{shards}")  # one line, to be pasted
