"""The encoder is BERT's: the same numbers as transformers' BertModel, outputs and gradients, on many shapes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import Encoder, count_parameters, initialise, train_flops_per_token
from spanbert.model.models import SpanBertForPretraining

SEEDS = range(24)
BACKENDS = ("eager", "sdpa")


class JustTheEncoder(torch.nn.Module):
    """The encoder under the name that it has inside every model, which is what weights are mapped by."""

    def __init__(self, config: EncoderConfig, backend: str):
        super().__init__()
        self.encoder = Encoder(config, backend)


@pytest.mark.parametrize("seed", SEEDS)
def test_hidden_states_and_gradients_equal_transformers(
    shape_of, batch_of, reference_of, copy_weights, gradient_gap, seed
):
    """Outputs to 1e-5 in evaluation; in training mode with dropout 0, every gradient to 1e-4 for random cotangents."""
    config = shape_of(seed)
    batch = batch_of(config, seed)
    tokens = batch.ids_T.numel()
    cotangent_TH = torch.randn(tokens, config.hidden_size, generator=torch.Generator().manual_seed(seed)) / tokens
    theirs = reference_of("BertModel", config, seed)
    with torch.no_grad():
        expected_TH = theirs(**batch.padded).last_hidden_state[batch.real_BL]
    theirs.train()
    (theirs(**batch.padded).last_hidden_state[batch.real_BL] * cotangent_TH).sum().backward()
    for backend in BACKENDS:
        ours = JustTheEncoder(config, backend)
        copy_weights(ours, theirs)
        with torch.no_grad():
            hidden_TH = ours.eval().encoder(batch.ids_T, batch.cu_seqlens, batch.longest, batch.types_T)
        assert hidden_TH.abs().max() > 0.5
        assert (hidden_TH - expected_TH).abs().max() < 1e-5, backend
        ours.train()
        hidden_TH = ours.encoder(batch.ids_T, batch.cu_seqlens, batch.longest, batch.types_T)
        (hidden_TH * cotangent_TH).sum().backward()
        assert gradient_gap(ours, theirs) < 1e-4, backend


def test_without_token_types_all_are_type_zero(shape_of, batch_of, randomise):
    config = shape_of(3)
    encoder = Encoder(config).eval()
    randomise(encoder, 3)
    batch = batch_of(config, 3)
    zeros_T = torch.zeros_like(batch.ids_T)
    left = encoder(batch.ids_T, batch.cu_seqlens, batch.longest)
    assert torch.equal(left, encoder(batch.ids_T, batch.cu_seqlens, batch.longest, zeros_T))


def test_given_positions_are_used(shape_of, randomise):
    config = shape_of(5)
    encoder = Encoder(config).eval()
    randomise(encoder, 5)
    ids_T, cu_seqlens = torch.tensor([7, 8, 9]), torch.tensor([0, 3], dtype=torch.int32)
    usual = encoder(ids_T, cu_seqlens, 3)
    assert torch.equal(usual, encoder(ids_T, cu_seqlens, 3, position_ids_T=torch.tensor([0, 1, 2])))
    moved = encoder(ids_T, cu_seqlens, 3, position_ids_T=torch.tensor([10, 11, 12]))
    assert (usual - moved).abs().max() > 1e-2


@pytest.mark.parametrize("backend", (*BACKENDS, "triton"))
def test_wanted_states_are_those_of_the_whole_batch(shape_of, batch_of, randomise, backend):
    """Only some tokens, in any order: the rows that all have, and the gradients of a loss that looks at those rows."""
    config = shape_of(9)  # heads of 32, which the kernels have
    assert config.head_dim == 32 and config.num_hidden_layers > 1
    batch = batch_of(config, 9)
    wanted_N = torch.tensor([5, 0, batch.ids_T.numel() - 1])
    cotangent_NH = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(2))
    results = []
    for narrow in (False, True):
        encoder = Encoder(config, backend)
        randomise(encoder, 9)
        options = {"wanted_N": wanted_N} if narrow else {}
        hidden = encoder(batch.ids_T, batch.cu_seqlens, batch.longest, batch.types_T, **options)
        hidden_NH = hidden if narrow else hidden[wanted_N]
        (hidden_NH * cotangent_NH).sum().backward()
        results.append([hidden_NH.detach(), *(parameter.grad for parameter in encoder.parameters())])
    assert results[1][0].shape == (3, config.hidden_size)
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_does_not_see_its_neighbours(shape_of, batch_of, randomise, backend):
    """Change every token of all sequences but one: its hidden states stay the same to the last bit."""
    config = shape_of(1)
    encoder = Encoder(config, backend).eval()
    randomise(encoder, 1)
    batch = batch_of(config, 1)
    start, end = batch.cu_seqlens[2:4].tolist()
    changed_T = (batch.ids_T + 1) % config.vocab_size
    changed_T[start:end] = batch.ids_T[start:end]
    before = encoder(batch.ids_T, batch.cu_seqlens, batch.longest)[start:end]
    after = encoder(changed_T, batch.cu_seqlens, batch.longest)[start:end]
    assert torch.equal(before, after)


def test_dropout_acts_in_training_only_and_follows_the_generator(shape_of, batch_of):
    config = dataclasses.replace(shape_of(2), hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    encoder = Encoder(config)
    batch = batch_of(config, 2)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return encoder(batch.ids_T, batch.cu_seqlens, batch.longest)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    encoder.eval()
    assert torch.equal(run(1), run(2))


def test_initialisation_is_berts():
    """Matrices N(0, 0.02), biases 0, LayerNorm (1, 0)."""
    model = SpanBertForPretraining(EncoderConfig.preset("mini", vocab_size=4000))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            error = 6 * 0.02 / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() - 0.02) < error, name
        elif name.split(".")[-2].startswith("norm") and name.endswith("weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert not parameter.any(), name
    linear = torch.nn.Linear(300, 300)
    initialise(linear, 0.5)
    assert abs(linear.weight.std().item() - 0.5) < 0.01


@pytest.mark.parametrize(("size", "millions"), [("base", 107.72), ("large", 332.53)])
def test_presets_have_the_published_number_of_parameters(size, millions):
    """Encoders of the released SpanBERT checkpoints, without pooler and heads, vocabulary 28,996."""
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.preset(size))
    assert round(count_parameters(encoder) / 1e6, 2) == millions


def test_flops_of_base_are_six_per_weight_and_token_plus_attention():
    config = EncoderConfig.preset("base")
    weights = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    bare = train_flops_per_token(config, length=512, targets_per_token=0.0)
    assert bare == 6 * weights + 12 * 12 * 512 * 768
    last = train_flops_per_token(
        config, 512, 0.0, states_per_token=0.25
    )  # of the last layer, 1 + 8 of 12 H² for a quarter
    assert bare - last == 6 * 0.75 * 9 * 768 * 768
    assert train_flops_per_token(config, 512, 0.0, states_per_token=1.5) == bare
    with_sbo = train_flops_per_token(config, 512, 0.15) - bare
    assert with_sbo == pytest.approx(2 * (train_flops_per_token(config, 512, 0.15, sbo=False) - bare))


@pytest.mark.parametrize("head_dim", [32, 64])
def test_the_triton_backend_is_the_same_model(head_dim):
    """Wired to every kernel: plan, packed attention, fused dropout-add-LayerNorm, GELU, vocabulary loss. On a CPU these run their references."""
    from spanbert.model.batch import PackedBatch, Targets
    from spanbert.model.models import SpanBertForPretraining

    torch.manual_seed(3)
    config = EncoderConfig(
        vocab_size=70,
        hidden_size=2 * head_dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = SpanBertForPretraining(config).train()
    ids_T, cu_seqlens = torch.randint(5, 70, (24,)), torch.tensor([0, 7, 8, 24], dtype=torch.int32)
    one = torch.tensor([0, 1])
    targets = Targets(torch.tensor([2, 11]), torch.tensor([8, 9]), one + 1, one + 12, one, one, one)
    results = []
    for backend in ("eager", "triton"):
        model.encoder.backend = backend
        model.zero_grad()
        mlm, sbo = model(PackedBatch(ids_T, cu_seqlens, 16), targets)
        (mlm.loss_sum + 2 * sbo.loss_sum).backward()
        results.append([mlm.loss_sum.detach(), sbo.loss_sum.detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
