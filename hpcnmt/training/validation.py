"""Validation of one snapshot: cross-entropy per word, BLEU and chrF (sacreBLEU), best model, early stopping.

What is validated is what is saved: one consistent set of parameters, never a worker's own replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hpcnmt.data.corpus import TokenCorpus
from hpcnmt.data.loader import ordered_batches
from hpcnmt.data.textio import read_lines
from hpcnmt.data.vocabulary import Vocabularies
from hpcnmt.inference.beam import BeamConfig
from hpcnmt.inference.scores import corpus_scores
from hpcnmt.inference.translate import translate_lines
from hpcnmt.models.seq2seq import Seq2Seq
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.training.journal import Journal
from hpcnmt.training.recipe import ValidationConfig
from hpcnmt.training.run_folder import RunFolder

BATCH_WORDS = 2000


class Interrupted(Exception):
    """A validation was given up half-way."""


class Validation:
    """Validates snapshots with `model`, whose own parameters are put back afterwards."""

    def __init__(
        self, config: ValidationConfig, model: Seq2Seq, flat: FlatParameters, data: Path, run: RunFolder, journal: Journal
    ) -> None:  # fmt: skip
        self.config, self.model, self.flat, self.run, self.journal = config, model, flat, run, journal
        self.corpus, self.vocabularies = TokenCorpus(data, "valid"), Vocabularies.read(data)
        self.sources, self.references = (list(read_lines(data / f"valid.{side}.txt")) for side in ("source", "target"))
        self.best: dict[str, float] = {}
        self.stalled = 0
        self.seconds = 0.0
        self.is_interrupted: Callable[[], bool] = lambda: False
        """Asked between batches: whether a validation under way is to be given up."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of the validations so far."""
        return {"best": self.best, "stalled": self.stalled, "validating_s": self.seconds}

    def load(self, facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best = {str(name): float(score) for name, score in facts["best"].items()}
        self.stalled, self.seconds = int(facts["stalled"]), float(facts["validating_s"])

    @property
    def should_stop(self) -> bool:
        """True once no metric of `stop_on` has improved for `patience` validations."""
        return 0 < self.config.patience <= self.stalled

    @property
    def has_stalled(self) -> bool:
        """True if the last validation has found no new best of any metric of `stop_on`."""
        return self.stalled > 0

    def evaluate(
        self, snapshot: Tensor, target_words: int, final: bool = False, clock: Mapping[str, float] | None = None
    ) -> dict[str, float]:  # fmt: skip
        """Validates the parameters `snapshot` [parameters]; keeps the best, and the last one as final.safetensors.

        `clock` goes into the record: another time than that of this machine. Raises Interrupted, with everything as it was before.
        """
        begin = time.monotonic()
        replica = self.flat.values.clone()
        self.flat.values.copy_(snapshot)
        self.model.eval()
        try:
            translation_scores, signatures = self._translation_scores()
            scores = {"cross_entropy": self._cross_entropy()} | translation_scores
        except Interrupted:
            self.model.train()
            self.flat.values.copy_(replica)
            raise
        improved = {name for name, score in scores.items() if self._is_best(name, score)}
        if self.config.keep_best_by in improved:
            self.run.save_model(self.flat.named_views(self.flat.values), "model")
        if final:
            self.run.save_model(self.flat.named_views(self.flat.values), "final")
        self.stalled = 0 if improved & set(self.config.stop_on) else self.stalled + 1
        self.model.train()
        self.flat.values.copy_(replica)
        took = time.monotonic() - begin
        self.seconds += took
        self.journal.record("validation", target_words, scores | {"took_s": took} | dict(clock or {}) | signatures)
        text = f"cross-entropy {scores['cross_entropy']:.4f} nats/word, BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f}"
        self.journal.say(f"validation at {target_words} target words: {text}")
        return scores

    def _is_best(self, name: str, score: float) -> bool:
        sign = -1.0 if name == "cross_entropy" else 1.0
        if name in self.best and sign * score <= sign * self.best[name]:
            return False
        self.best[name] = score
        return True

    def _look_up(self) -> None:
        if self.is_interrupted():
            raise Interrupted("the validation was given up, because the run is to end")

    def _cross_entropy(self) -> float:
        loss, words = 0.0, 0
        for batch in ordered_batches(self.corpus, BATCH_WORDS):
            self._look_up()
            arguments = (batch.source_ids, batch.source_lengths, batch.target_ids, batch.target_lengths)
            loss += float(self.model.sentence_cross_entropy(*arguments).sum())
            words += batch.target_words
        return loss / words

    def _translation_scores(self) -> tuple[dict[str, float], dict[str, str]]:
        beam = BeamConfig(self.config.beam)
        found = translate_lines(self.model, self.vocabularies, self.sources, beam, between=self._look_up)
        hypotheses = [translations[0].text for translations in found]
        return corpus_scores(hypotheses, self.references)
