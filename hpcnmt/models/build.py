"""Builds a model from its configuration, the same one for the same seed on every rank."""

from __future__ import annotations

import torch

from hpcnmt.models.gru import ShallowGru
from hpcnmt.models.seq2seq import ModelConfig, Seq2Seq
from hpcnmt.models.transformer import Transformer


def build_model(config: ModelConfig, seed: int) -> Seq2Seq:
    """The model that `config.type` names, initialised from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(config) if config.type == "transformer" else ShallowGru(config)
