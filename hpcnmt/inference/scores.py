"""BLEU and chrF of sacreBLEU with their signatures: the same numbers for `hpcnmt evaluate` and for validation."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """({"bleu", "chrf"}, {"bleu_signature", "chrf_signature"}) of `hypotheses`, one reference each."""
    scores, signatures = {}, {}
    for name, metric in (("bleu", sacrebleu.BLEU(force=True)), ("chrf", sacrebleu.CHRF())):
        scores[name] = metric.corpus_score(hypotheses, [references]).score
        signatures[f"{name}_signature"] = str(metric.get_signature())
    return scores, signatures
