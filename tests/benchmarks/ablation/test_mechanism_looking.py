"""Looking at a model: where hidden tokens lie, what the probe finds, and what the cross table adds up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.ablation.mechanism.cross_table import SCHEMES, in_bins, score_masks
from benchmarks.ablation.mechanism.probe import SpanStates, loss_gradients, score_probe, span_states, train_probe
from benchmarks.ablation.mechanism.spans import BATCH, PLACES, UNIFORM_P, choose_blocks, hidden, means, where
from pretrain.data.blocks import Blocks
from pretrain.masking.masker import MaskConfig
from spanbert.checkpoint.model_folder import build_model
from spanbert.model.batch import MaskedBatch, PackedBatch, Targets
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer

# --- where hidden tokens lie -----------------------------------------------------------------------------------------


def test_words_places_and_distances_of_a_mask_made_by_hand():
    """[CLS] a ##b c d [SEP] with "a ##b c" hidden, and [CLS] e f g h i j k [SEP] with e and g … k hidden.

    Ids 5 … are letters; 6 ("##b") alone continues a word.
    """
    ids = np.array([2, 5, 6, 7, 8, 3, 2, 9, 10, 11, 12, 13, 14, 15, 3])
    positions = np.array([1, 2, 3, 7, 9, 10, 11, 12, 13])
    masked = MaskedBatch(
        PackedBatch(ids, np.array([0, 6, 15], np.int32), 9),
        Targets(
            positions_M=positions, ids_M=ids[positions], left_S=np.array([0, 6, 8]), right_S=np.array([4, 8, 14]),
            span_M=np.array([0, 0, 0, 1, 2, 2, 2, 2, 2]), offset_M=np.array([0, 1, 2, 0, 0, 1, 2, 3, 4]), sbo_K=np.arange(9),
        ),
    )  # fmt: skip
    starts_word = np.ones(16, bool)
    starts_word[6] = False
    found = where(masked, starts_word)
    assert found.words_M.tolist() == [2, 2, 2, 1, 5, 5, 5, 5, 5]
    assert [PLACES[place] for place in found.place_M] == [
        "first", "middle", "last", "only", "first", "middle", "middle", "middle", "last",
    ]  # fmt: skip
    assert found.distance_M.tolist() == [1, 2, 1, 1, 1, 2, 3, 2, 1]
    loss = np.arange(1.0, 10.0)
    scores = in_bins(loss, loss > 4, np.ones(9, bool), np.zeros(9, bool), *found)
    assert scores["by_words"]["targets"] == [1, 3, 0, 0, 5, 0, 0, 0, 0, 0]
    assert scores["by_words"]["loss"][:5] == [4.0, 2.0, None, None, 7.0] and scores["by_words"]["accuracy"][4] == 1.0
    assert scores["by_place"]["loss"] == [4.0, (1 + 5) / 2, (2 + 6 + 7 + 8) / 4, (3 + 9) / 2]
    assert (scores["loss"], scores["targets"]) == (5.0, 9)
    seen = np.arange(9) == 3  # the target that is alone in its span is shown
    scores = in_bins(loss, loss > 4, ~seen, seen, *found)
    assert (scores["by_words"]["targets"][:2], scores["by_place"]["targets"][0], scores["targets"]) == ([0, 3], 0, 8)
    assert (scores["as_trained"]["targets"], scores["kept"]["loss"]) == (9, 4.0)


def test_a_span_that_begins_inside_a_word_counts_its_first_token_as_one():
    targets = Targets(np.array([1, 2]), np.array([6, 7]), np.array([0]), np.array([3]), np.array([0, 0]), np.array([0, 1]), np.arange(2))  # fmt: skip
    masked = MaskedBatch(PackedBatch(np.array([2, 6, 7, 3]), np.array([0, 4], np.int32), 4), targets)
    starts_word = np.ones(16, bool)
    starts_word[6] = False
    assert where(masked, starts_word).words_M.tolist() == [2, 2]


def test_what_is_in_no_bin_is_left_out():
    assert means(np.array([1.0, 2.0, 9.0]), np.array([0.0, 1.0, 1.0]), np.array([1, 2, 11]), range(1, 3)) == {
        "loss": [1.0, 2.0], "accuracy": [0.0, 1.0], "targets": [1, 1],
    }  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_hidden_can_be_read(corpus, scheme):
    """Pretraining leaves a tenth of spans as they are; here every target is [MASK], and every [MASK] a target."""
    tokenizer, blocks = Tokenizer.load(corpus / "tokenizer"), Blocks.open(corpus, "validation")
    chosen = choose_blocks(blocks, 20)
    assert chosen[:7].tolist() == choose_blocks(blocks, 7).tolist()
    seen = 0
    for part in hidden(blocks, chosen, tokenizer, MaskConfig(scheme=scheme)):
        at = np.flatnonzero(part.packed.input_ids_T == tokenizer.mask_id)
        assert at.tolist() == part.targets.positions_M.tolist()
        seen += len(at)
    assert seen > 100


def test_spans_for_the_score_are_of_every_length_alike(corpus):
    """Lengths as drawn are uniform; the budget shortens the last span of a block, so long ones are a little rarer."""
    tokenizer, blocks = Tokenizer.load(corpus / "tokenizer"), Blocks.open(corpus, "train")
    counts = {}
    for name, p in (("uniform", UNIFORM_P), ("geometric", 0.2)):
        mask = MaskConfig(geometric_p=p, max_span_words=4)
        parts = hidden(blocks, np.arange(len(blocks)), tokenizer, mask)
        words = np.concatenate(
            [where(part, tokenizer.starts_word).words_M[part.targets.offset_M == 0] for part in parts]
        )
        counts[name] = np.bincount(words, minlength=5)[1:] / len(words)
    assert counts["uniform"][3] > 1.2 * counts["geometric"][3]
    assert counts["uniform"][0] < counts["geometric"][0]


# --- the probe -------------------------------------------------------------------------------------------------------


def planted(shape: EncoderConfig, informative: bool, spans: int, seed: int) -> SpanStates:
    """Spans of two tokens: the first is told by the left state and the second by the right one, or neither is."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 26, (spans, 2), generator=rng)
    codes = torch.randn(26, shape.hidden_size, generator=torch.Generator().manual_seed(9))
    told = ids if informative else torch.randint(10, 26, (spans, 2), generator=rng)
    size = torch.full((spans,), 2)
    return SpanStates(
        codes[told[:, 0]], codes[told[:, 1]], ids.flatten(), torch.arange(spans).repeat_interleave(2),
        torch.tensor([0, 1]).repeat(spans), size.cumsum(0) - size, size,
    )  # fmt: skip


def test_probe_finds_what_is_in_the_states_and_nothing_where_nothing_is(shape):
    embedding = torch.randn(shape.vocab_size, shape.hidden_size, generator=torch.Generator().manual_seed(3))
    log_frequency = np.full(shape.vocab_size, -20.0)
    log_frequency[10:26] = -math.log(16)
    losses = {}
    for informative in (True, False):
        probe = train_probe(planted(shape, informative, 1000, 1), shape, embedding, log_frequency, 300, "fp32")
        loss, right = score_probe(probe, planted(shape, informative, 400, 2), embedding, "fp32")
        losses[informative] = loss.mean()
        assert (right.mean() > 0.9) == informative
    assert losses[True] < 0.5, "of log 16 = 2.77 nats"
    assert losses[False] > math.log(16) - 0.05, "on spans that it was not trained on"


def test_gradients_of_the_frozen_vocabulary_are_those_of_autograd():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(700, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(30, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, generator=rng, dtype=torch.float64)
    ids = torch.randint(30, (700,), generator=rng)
    torch.nn.functional.cross_entropy(features @ weight.T + bias, ids).backward()
    d_features, d_bias = loss_gradients(features.detach(), weight, bias.detach(), ids)
    torch.testing.assert_close(d_features, features.grad)
    torch.testing.assert_close(d_bias, bias.grad)


def test_probe_is_the_same_each_time_and_leaves_the_embeddings_alone(shape):
    embedding = torch.randn(shape.vocab_size, shape.hidden_size)
    before, states = embedding.clone(), planted(shape, True, 200, 1)
    flat = np.full(shape.vocab_size, -math.log(shape.vocab_size))
    one, other = (train_probe(states, shape, embedding, flat, 5, "fp32") for _ in range(2))
    assert one.bias.equal(other.bias) and one.dense2.weight.equal(other.dense2.weight) and embedding.equal(before)
    another = train_probe(states, shape, embedding, flat, 5, "fp32", seed=1)
    assert not one.dense2.weight.equal(another.dense2.weight)


def test_states_are_those_beside_the_span(corpus, shape):
    tokenizer, blocks = Tokenizer.load(corpus / "tokenizer"), Blocks.open(corpus, "validation")
    parts = hidden(blocks, np.arange(20), tokenizer, MaskConfig())
    assert len(parts) > 1
    model = build_model(SpanBertForPretraining, shape, 0).eval()
    states = span_states(model.encoder, parts, "fp32")
    span = 0
    for part in parts:
        with torch.no_grad():
            hidden_states = model.encoder(*part.packed.tensors())
        edges = part.packed.cu_seqlens
        for number, (left, right) in enumerate(zip(part.targets.left_S, part.targets.right_S)):
            block = int(np.flatnonzero(edges[:-1] <= left)[-1])
            expected = {
                "boundary": (left, right),
                "beyond": (max(left - 2, edges[block]), min(right + 2, edges[block + 1] - 1)),
            }
            for reach, (before, after) in expected.items():
                torch.testing.assert_close(states[reach].left_SH[span], hidden_states[before])
                torch.testing.assert_close(states[reach].right_SH[span], hidden_states[after])
            first, size = int(states["boundary"].first_S[span]), int(states["boundary"].size_S[span])
            ids = part.targets.ids_M[part.targets.span_M == number]
            assert states["boundary"].ids_K[first : first + size].tolist() == ids[: shape.sbo_positions].tolist()
            span += 1
    assert span == len(states["boundary"].size_S)


@pytest.mark.parametrize("as_trained", [False, True])
def test_cross_table_is_the_models_own_loss(corpus, shape, as_trained):
    """The sum over all targets is what the model's own objective says of the same batch; bins have those at [MASK]."""
    tokenizer, blocks = Tokenizer.load(corpus / "tokenizer"), Blocks.open(corpus, "validation")
    counts = np.load(corpus / "unigram.npy") if as_trained else None
    (part,) = hidden(blocks, np.arange(BATCH), tokenizer, MaskConfig(scheme="subword"), counts)
    model = build_model(SpanBertForPretraining, shape, 0).eval()
    scores = score_masks(model, [part], tokenizer, "fp32", with_sbo=True)
    with torch.no_grad():
        mlm, sbo = model(*part.tensors())
    at_mask = int((part.packed.input_ids_T == tokenizer.mask_id).sum())
    for head, own, count in (("mlm", mlm, len(part.targets.ids_M)), ("sbo", sbo, len(part.targets.sbo_K))):
        everything = scores[head]["as_trained"]
        assert everything["targets"] == count
        assert everything["loss"] * count == pytest.approx(float(own.loss_sum), rel=1e-5)
        assert everything["accuracy"] * count == pytest.approx(int(own.correct))
        assert scores[head]["targets"] == sum(scores[head]["by_place"]["targets"])
    assert scores["mlm"]["targets"] == at_mask
    kept = int((part.packed.input_ids_T[part.targets.positions_M] == part.targets.ids_M).sum())
    assert scores["mlm"]["kept"]["targets"] == kept and (kept > 0) == as_trained
    assert "sbo" not in score_masks(model, [part], tokenizer, "fp32", with_sbo=False)
