"""Target words per second of our models, forward and backward on one thread, beside a straightforward torch version of the same nets.

    python benchmarks/models.py PREPARED [--rounds 9]

PREPARED: Multi30k with a vocabulary of 8,000. Both sides get the same batches of about 2,000 target words, in turns; median of ratios.
In fp32, and in bf16 (model.precision; the yardstick under torch.autocast).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import write_result
from torch import Tensor, nn
from yardstick_models import YardstickGru, YardstickTransformer

from hpcnmt.data.batching import Batch
from hpcnmt.data.corpus import TokenCorpus, read_description
from hpcnmt.data.loader import Loader, LoaderConfig
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig
from hpcnmt.optim.flat import FlatParameters

LossSum = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def timed(loss_sum: LossSum, gradients: Tensor, batches: list[Batch]) -> float:
    """Target words per second over `batches`."""
    begin = time.perf_counter()
    for batch in batches:
        gradients.zero_()
        loss_sum(batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths).backward()
    return sum(b.target_words for b in batches) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = int(read_description(arguments.data)["vocabulary_size"])
    bare = ModelConfig(vocabulary_size=vocabulary, embedding_dim=256, dropout=0.0, label_smoothing=0.0)
    gru = replace(bare, type="gru", hidden_dim=512, layer_norm=False)
    transformer = replace(bare, feedforward_dim=1024, heads=4, encoder_layers=3, decoder_layers=3)
    pairs: dict[str, tuple[ModelConfig, nn.Module]] = {
        "gru": (gru, YardstickGru(vocabulary, 256, 512)),
        "transformer": (transformer, YardstickTransformer(vocabulary, 256, 1024, 4, 3)),
    }
    loader = Loader(TokenCorpus(arguments.data, "train"), LoaderConfig(batch_words=2000), 0, 1)
    rounds = [[loader.next_batch() for _ in range(2)] for _ in range(arguments.rounds + 1)]
    loader.close()
    result: dict[str, object] = {"vocabulary": vocabulary, "threads": 1}
    for (name, (config, yardstick)), precision in itertools.product(pairs.items(), ("fp32", "bf16")):
        model = build_model(replace(config, precision=precision), 1)
        ours, theirs = FlatParameters(model), FlatParameters(yardstick)
        rates: dict[str, list[float]] = {"hpcnmt": [], "yardstick": []}
        for batches in rounds:
            rates["hpcnmt"].append(timed(lambda *a, model=model: model.loss_sum(*a)[0], ours.gradients, batches))  # type: ignore[misc]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                rates["yardstick"].append(timed(yardstick.loss_sum, theirs.gradients, batches))
        rates = {side: values[1:] for side, values in rates.items()}  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(rates["hpcnmt"], rates["yardstick"], strict=True))
        medians = {side: statistics.median(values) for side, values in rates.items()}
        print(name, precision, {side: round(value) for side, value in medians.items()}, f"ratio {ratio:.2f}", ours.size, theirs.size)
        result[f"{name}-{precision}"] = {
            "target_words_per_s": rates, "median": medians, "median_ratio": ratio,
            "parameters": ours.size, "yardstick_parameters": theirs.size,
        }  # fmt: skip
    write_result("models", result)


if __name__ == "__main__":
    main()
