"""Both models: padding changes nothing, steps equal teacher forcing, a copy task is learnt, beam search finds the best."""

from __future__ import annotations

import itertools

import pytest
import torch

from hpcnmt.inference.beam import BeamConfig, beam_search
from hpcnmt.models.build import build_model
from hpcnmt.models.seq2seq import BOS, EOS, ModelConfig, Seq2Seq
from hpcnmt.optim.adam import Adam, AdamConfig
from hpcnmt.optim.flat import FlatParameters

KINDS = ["transformer", "gru"]
SOURCE = torch.tensor([[5, 6, 7, EOS], [8, EOS, 0, 0]])
SOURCE_LENGTHS = torch.tensor([4, 2])
TARGET = torch.tensor([[7, 6, 5, 9, EOS], [8, 9, EOS, 0, 0]])
TARGET_LENGTHS = torch.tensor([5, 3])
PAIR = (SOURCE, SOURCE_LENGTHS, TARGET, TARGET_LENGTHS)


def small(kind: str, **changes: object) -> Seq2Seq:
    sizes = {"vocabulary_size": 12, "embedding_dim": 16, "hidden_dim": 24, "encoder_layers": 1, "decoder_layers": 2}
    config = ModelConfig(**(sizes | {"type": kind, "feedforward_dim": 32, "heads": 2, "dropout": 0.0} | changes))  # type: ignore[arg-type]
    return build_model(config, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    model = small(kind).eval()
    together = model.sentence_cross_entropy(*PAIR)
    alone = []
    for i, (source_time, target_time) in enumerate([(4, 5), (2, 3)]):
        one = slice(i, i + 1)
        alone.append(
            model.sentence_cross_entropy(SOURCE[one, :source_time], SOURCE_LENGTHS[one], TARGET[one, :target_time], TARGET_LENGTHS[one])
        )
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(model.loss_sum(*PAIR)[1], together.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_steps_equal_teacher_forcing(kind: str) -> None:
    model = small(kind).eval()
    with torch.no_grad():
        state = model.start_decoding(SOURCE, SOURCE_LENGTHS).select(torch.tensor([1, 0])).select(torch.tensor([1, 0]))
        previous, total = torch.full((2,), BOS), torch.zeros(2)
        for time in range(5):
            log_probs, state = model.decode_step(previous, state)
            total -= torch.where(time < TARGET_LENGTHS, log_probs[range(2), TARGET[:, time]], 0.0)
            previous = TARGET[:, time]
    torch.testing.assert_close(total, model.sentence_cross_entropy(*PAIR))


@pytest.mark.parametrize("kind", KINDS)
def test_separate_vocabularies_tie_only_target_and_output(kind: str) -> None:
    model = small(kind, source_vocabulary_size=30)
    high_source = torch.where(SOURCE > EOS, SOURCE + 20, SOURCE)  # ids that the target vocabulary does not have
    model.loss_sum(high_source, *PAIR[1:])[0].backward()
    assert model.source_embedding.weight.shape[0] == 30 and model.source_embedding.weight.grad is not None
    assert {i for i in range(30) if model.source_embedding.weight.grad[i].any()} == set(high_source[high_source > 0].tolist())
    joint = small(kind)
    assert joint.source_embedding is joint.embedding


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_reach_every_parameter(kind: str, precision: str) -> None:
    model = small(kind, precision=precision, dropout=0.1)
    flat = FlatParameters(model)
    model.loss_sum(*PAIR)[0].backward()
    assert torch.isfinite(flat.gradients).all()
    silent = [n for n, g in flat.named_views(flat.gradients).items() if not g.any() and "key_value.bias" not in n]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_the_global_generator_is_left_alone(kind: str) -> None:
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    one, two = FlatParameters(small(kind)), FlatParameters(small(kind))
    assert torch.equal(first, torch.rand(3))
    assert torch.equal(one.values, two.values)


@pytest.mark.parametrize("kind", KINDS)
def test_reversal_is_learnt_and_translated(kind: str) -> None:
    model = small(kind, embedding_dim=32, label_smoothing=0.0)
    flat = FlatParameters(model)
    adam = Adam(flat.size, AdamConfig(0.9, 0.98))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 12, (16, 4), generator=generator)
    end, lengths = torch.full((16, 1), EOS), torch.full((16,), 5)
    source, target = torch.cat([ids, end], 1), torch.cat([ids.flip(1), end], 1)
    for _ in range(150):
        flat.gradients.zero_()
        model.loss_sum(source, lengths, target, lengths)[0].backward()
        adam.step(flat.values, flat.gradients / 80, 5e-3)
    model.eval()
    for beam in (1, 4):
        found = beam_search(model, source, lengths, BeamConfig(beam))
        assert [h[0].ids for h in found] == ids.flip(1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_beam_finds_the_best_of_all_sequences(kind: str) -> None:
    model = small(kind, vocabulary_size=6, heads=2).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(8)  # peaked distributions, so that the search has something to find
        model.output_bias[EOS] += 4
    source, lengths = torch.tensor([[4, EOS]]), torch.tensor([2])
    best = (-torch.inf, [])
    for count in range(4):
        for words in itertools.product([1, 4, 5], repeat=count):
            target = torch.tensor([[*words, EOS]])
            entropy = float(model.sentence_cross_entropy(source, lengths, target, torch.tensor([count + 1])))
            best = max(best, (-entropy / (count + 1) ** 0.6, list(words)))
    found = beam_search(model, source, lengths, BeamConfig(60, n_best=5))[0]
    assert found[0].score >= best[0] - 1e-4
    if len(found[0].ids) < 4:
        assert found[0].ids == best[1]
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="model.dropout is 1.0"):
        ModelConfig(dropout=1.0)
    with pytest.raises(ValueError, match=r"model.heads \(3\) must divide model.embedding_dim \(256\)"):
        ModelConfig(heads=3)
    with pytest.raises(ValueError, match="n_best 7 and beam 6"):
        BeamConfig(n_best=7)
