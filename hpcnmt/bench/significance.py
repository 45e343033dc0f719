"""Paired bootstrap resampling of two translations of the same sentences, by sacreBLEU's own resampling (Koehn 2004).

sacreBLEU says a p-value and the spread of each translation alone; what is wanted is the interval of their difference, so its two steps
are called here one by one: both translations are resampled with the same sentences, because sacreBLEU draws them with a fixed seed. A
test holds them against sacrebleu.significance.PairedTest. Samples are kept as QUANTILES quantiles, from which several seeds are pooled.
Used by translations.py and ablation_summary.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from sacrebleu.significance import _bootstrap_resample

SAMPLES = 1000
QUANTILES = 200
TESTED = ("bleu", "chrf")
METRICS = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}


def resampled_scores(hypotheses: Sequence[str], references: Sequence[str], metric: str) -> NDArray[np.float64]:
    """Scores [SAMPLES] of resamples of the sentences, the same resamples for every translation of as many sentences."""
    if os.environ.get("SACREBLEU_SEED", "").lower() == "none":
        raise ValueError("found SACREBLEU_SEED=none, with which resamples are not paired: unset it, or set a number")
    scorer = METRICS[metric]()
    statistics = scorer._extract_corpus_statistics(hypotheses, [references])
    return np.array([score.score for score in _bootstrap_resample(statistics, scorer, SAMPLES)[1]])


def quantiles(samples: NDArray[np.float64]) -> list[float]:
    """The samples as QUANTILES equally likely values."""
    return [round(float(value), 3) for value in np.quantile(samples, (np.arange(QUANTILES) + 0.5) / QUANTILES)]


def pooled_interval(seeds: Sequence[Sequence[float]]) -> list[float] | None:
    """What holds the middle 95 % of the samples of all seeds together; None without any."""
    return [float(value) for value in np.quantile(np.concatenate(seeds), (0.025, 0.975))] if seeds else None
