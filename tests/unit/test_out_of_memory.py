"""A batch that does not fit into memory ends with its shape: under a real limit of the address space, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hpcnmt.training.setup import is_out_of_memory
from tests.processes import ROOT

PROGRAM = """
import resource
from pathlib import Path
import torch
from hpcnmt.data.batching import make_batch
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import ModelConfig
from hpcnmt.optim.flat import FlatParameters
from hpcnmt.training.recipe import Recipe
from hpcnmt.training.setup import Trainee
import numpy as np

torch.set_num_threads(1)
model = build_model(ModelConfig(vocabulary_size=8000, source_vocabulary_size=8000, embedding_dim=8, hidden_dim=8), 1)
trainee = Trainee(Recipe(), Path("."), model, FlatParameters(model))
def batch(sentences):
    rows = [np.full(40, 5) for _ in range(sentences)]
    return make_batch(rows, rows, range(7, 7 + sentences))
trainee.add_gradient(batch(2))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (1 << 28), resource.RLIM_INFINITY))  # 256 MiB more
trainee.add_gradient(batch(2))
try:
    trainee.add_gradient(batch(3000))  # logits alone: 3000 x 41 x 8000 floats
except RuntimeError as error:
    print(error)
"""


def test_a_batch_that_does_not_fit_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(
        "out of memory on cpu with a batch of 3000 sentences x 41 source pieces, x 41 target pieces, 123000 + 123000 words, "
        "training sentences 7, 8, 9, 10, 11 ...: lower loader.batch_words"
    ), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_errors_that_mean_it(error: BaseException) -> None:
    assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("size mismatch"))
