"""What `hpcnmt advise --pick` knows: words to the same quality (virtual time) and words per second (simulated compute) of each method.

A copy of figures in benchmarks/results, so that an installed package has them; tests/unit/test_advise_pick.py compares them with those
files, and every recipe with the policy that was measured. Pure data; used by advise_pick.py and cli.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """One way of training; `words`: target words to the quality that all are compared at, None where it is not reached."""

    name: str
    recipe: str
    words: float | None
    mode: Literal["virtual", "sync-equivalent"] = "virtual"
    delay: int = 1
    overlap: int = 0
    lockstep: bool = False

    def rate_settings(self, workers: int) -> dict[str, Any]:
        """Settings by which its words per second are found in results of throughput."""
        names = {"mode": self.mode, "workers": workers, "delay": self.delay, "overlap": self.overlap, "wire": "fp32"}
        return names | {"lockstep": self.lockstep}


@dataclass(frozen=True)
class Measured:
    """The methods measured with one model and one number of workers; the first one is the baseline."""

    model: Literal["transformer", "gru"]
    workers: int
    what: str
    cross_entropy: float
    seeds: int
    source: str
    methods: tuple[Method, ...]


MEASURED = (
    Measured("transformer", 4, "2+2 x 128 Transformer, Multi30k en-de, batches of 1,000 words", 2.873, 3, "ablation-multi30k-2x128.json", (
        Method("async", "multi30k-small-async", 1226722.7),
        Method("local-tau4", "multi30k-small-local", 1159697.4, delay=4),
        Method("average-tau2", "multi30k-small-average", 1128798.8, delay=2, overlap=1),
        Method("lockstep-carry-tau2", "multi30k-small-lockstep", 992821.7, delay=2, overlap=1, lockstep=True),
        Method("synchronous", "multi30k-small-sync", 692744.6, "sync-equivalent"),
    )),
    Measured("gru", 4, "GRU with states of 128, Multi30k en-de, batches of 1,000 words", 3.413, 1, "ablation-multi30k-gru.json", (
        Method("async", "multi30k-gru-small-async", 615340.7),
        Method("local-tau4", "multi30k-gru-small-local", 529641.5, delay=4),
        Method("average-tau2", "multi30k-gru-small-average", 537705.8, delay=2, overlap=1),
        Method("synchronous", "multi30k-gru-small-sync", 326374.2, "sync-equivalent"),
    )),
)  # fmt: skip

MODELS = tuple(dict.fromkeys(measured.model for measured in MEASURED))
"""Kinds of model of which anything has been measured."""

PARAMETERS, BATCH_S, RATE_WORKERS = 10_000_000, 0.4, 4
"""Of the measured words per second."""
RATES: dict[float, tuple[str, dict[str, float]]] = {
    1.0: ("throughput-1gbit-methods.json", {
        "async": 7747.0, "local-tau4": 14551.4, "average-tau2": 19082.7,
        "lockstep-carry-tau2": 14701.2, "synchronous": 10841.7,
    }),
    10.0: ("throughput-10gbit-methods.json", {
        "async": 14532.8, "local-tau4": 18058.1, "average-tau2": 19256.4,
        "lockstep-carry-tau2": 19231.1, "synchronous": 17175.9,
    }),
}  # fmt: skip
"""Gbit/s of every link -> file, and target words per second of each method."""

TUNING_SOURCES = tuple(f"ablation-multi30k-2x128-{part}.json" for part in ("tuning", "local", "carry"))
TUNING_WHAT = "validation nats/word of a 2+2 x 128 Transformer after 700,000 words, 4 workers, one seed (docs/method.md)"
TUNING: dict[str, float] = {
    "async-b0-lr1": 3.567, "async-b0-lr2": 3.518, "async-b0-lr3": 3.835, "async-b0.5-lr1": 3.693, "async-b0.5-lr2": 3.814,
    "async-b0.9-lr1": 3.753, "async-overlap-b0-lr1": 4.358, "hybrid4-b0.5-lr1": 3.676, "synchronous-b0.5-lr2": 2.834,
    "synchronous-b.7-lr2.0": 2.776, "synchronous-b0.9-lr1": 3.327, "tau4-lr.5": 4.886, "local-tau4-lr1-f8": 3.323,
    "local-tau4-lr1-f2": 4.233,
}  # fmt: skip
"""Trial, as it is named in those files -> what it ended at."""
