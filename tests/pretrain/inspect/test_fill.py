"""``spanbert fill``: the best fills are exact, and a model that has learnt a text gives it back."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from pretrain.inspect.fill import FillConfig, best_fills, fill, render, run_fill
from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch, Targets
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.packing import cumulative
from spanbert.spans.template import parse_template
from spanbert.terminal import colour
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS
from tests.span_samples import HEADS, TOKENIZER, WORDS, small_model

# --- the best fills -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(1,), (3,), (2, 2), (4,)])
@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_best_fills_are_those_of_brute_force(lengths, top_k):
    pieces = 7
    generator = torch.Generator().manual_seed(sum(lengths) + top_k)
    log_probs_MV = torch.randn(sum(lengths), pieces, generator=generator).log_softmax(-1)
    all_fills = itertools.product(range(pieces), repeat=sum(lengths))
    scored = sorted((sum(log_probs_MV[m, i].item() for m, i in enumerate(f)) for f in all_fills), reverse=True)
    candidates = best_fills(log_probs_MV, lengths, TOKENIZER, top_k)
    assert [c.log_probability for c in candidates] == pytest.approx(scored[:top_k], abs=1e-6)
    for candidate in candidates:
        flat = [TOKENIZER.id(token) for part in candidate.tokens for token in part]
        assert sum(log_probs_MV[m, i].item() for m, i in enumerate(flat)) == pytest.approx(candidate.log_probability)
        assert tuple(map(len, candidate.tokens)) == lengths
        assert candidate.mean_log_probability == pytest.approx(candidate.log_probability / sum(lengths))


@pytest.mark.parametrize("head", HEADS)
def test_impossible_pieces_are_never_chosen(head):
    """No special token, no "##…" at the front of a span, no row beyond the vocabulary; they may well score highest."""
    model = small_model(vocab_size=len(WORDS) + 16)
    with torch.no_grad():
        for bias in (model.mlm.bias, model.sbo.bias):
            bias[:5] += 30.0
            bias[TOKENIZER.id("##like")] += 20.0
            bias[TOKENIZER.vocab_size :] += 25.0
    result = fill(model, TOKENIZER, parse_template("the [SPAN:3] is", TOKENIZER), head, top_k=24)
    for candidate in result.candidates:
        assert not candidate.tokens[0][0].startswith("##")
        assert not set(candidate.tokens[0]) & set(SPECIAL_TOKENS)
    assert result.candidates[0].tokens[0][1:] == ("##like", "##like")
    assert all(math.isfinite(c.log_probability) for c in result.candidates)


@pytest.mark.parametrize("head", HEADS)
def test_lengths_tried_together_score_as_alone(head):
    """One packed batch over all lengths; ranked by the mean log-probability per piece."""
    model = small_model(2)
    result = fill(model, TOKENIZER, parse_template("the [SPAN:1-4] of France", TOKENIZER), head, top_k=12)
    means = [c.mean_log_probability for c in result.candidates]
    assert means == sorted(means, reverse=True)
    alone = []
    for length in range(1, 5):
        template = parse_template(f"the [SPAN:{length}] of France", TOKENIZER)
        alone += [c.mean_log_probability for c in fill(model, TOKENIZER, template, head, top_k=12).candidates]
    assert means == pytest.approx(sorted(alone, reverse=True)[:12], abs=1e-5)


# --- a model that knows its text ----------------------------------------------------------------------------------

SENTENCES = (
    "the big old capital city of France is Paris .",
    "the sunny capital of Spain is Madrid .",
    "the capital of Italy is Rome , old .",
)


@pytest.fixture(scope="module")
def learned() -> SpanBertForPretraining:
    """Trained on every span of one to four pieces of three sentences, with both objectives, until it knows them."""
    model = small_model(3).train()
    ids, targets, cu = [], {name: [] for name in ("at", "ids", "left", "right", "span", "offset")}, [0]
    spans = 0
    for sentence in SENTENCES:
        whole = [TOKENIZER.cls_id, *TOKENIZER.encode(sentence).ids.tolist(), TOKENIZER.sep_id]
        for length in range(1, 5):
            for start in range(1, len(whole) - length):
                base = len(ids)
                ids += [*whole[:start], *[TOKENIZER.mask_id] * length, *whole[start + length :]]
                cu.append(len(ids))
                targets["at"] += range(base + start, base + start + length)
                targets["ids"] += whole[start : start + length]
                targets["left"].append(base + start - 1)
                targets["right"].append(base + start + length)
                targets["span"] += [spans] * length
                targets["offset"] += range(length)
                spans += 1
    count = len(targets["at"])
    packed = Targets(*(torch.tensor(values) for values in targets.values()), torch.arange(count))
    ids_T, cu_seqlens = torch.tensor(ids), torch.tensor(cu, dtype=torch.int32)
    longest = int(cumulative(cu_seqlens.diff()).diff().max())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        mlm, sbo = model(PackedBatch(ids_T, cu_seqlens, longest), packed)
        loss = (mlm.loss_sum + sbo.loss_sum) / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8
    return model.eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the [SPAN:4] of France is Paris .", ("big old capital city",)),
        ("the [SPAN:1-4] of Spain is Madrid .", ("sunny capital",)),
        ("the capital of Italy is [SPAN:3] .", ("Rome, old",)),
        ("the sunny capital of [MASK] is Madrid .", ("Spain",)),
    ],
)
def test_what_was_learned_is_filled_in_with_its_length(learned, head, text, answer):
    result = fill(learned, TOKENIZER, parse_template(text, TOKENIZER), head, top_k=3)
    assert result.candidates[0].fills == answer
    assert result.candidates[0].mean_log_probability > math.log(0.5)
    assert [pieces[0].token for pieces in result.positions] == [t for part in result.candidates[0].tokens for t in part]


# --- heads and messages -------------------------------------------------------------------------------------------


def test_the_command_prints_filled_texts(tmp_path, learned, capsys):
    save_model(tmp_path / "m", learned, TOKENIZER)
    run_fill(FillConfig(str(tmp_path / "m"), "the [SPAN:4] of France is Paris .", top_k=2))
    lines = capsys.readouterr().out.splitlines()
    assert "MLM and SBO heads together" in lines[0]
    assert lines[1].endswith("%  the [big old capital city] of France is Paris .")
    assert lines[4].split()[:2] == ["1.", "big"]
    with pytest.raises(UserError, match="has no trained SBO head"):
        save_model(tmp_path / "n", learned, TOKENIZER, {UNTRAINED: ["sbo"]})
        run_fill(FillConfig(str(tmp_path / "n"), "the [MASK]", head="sbo"))


def test_colour_marks_the_fill():
    model = small_model()
    result = fill(model, TOKENIZER, parse_template("the [MASK] of", TOKENIZER), "mlm", 1)
    (word,) = result.candidates[0].fills
    assert f"the {colour('1;32')}{word}{colour('0')} of" in render(result, "mlm", Path("m"), colour=True)


@pytest.mark.parametrize(
    ("text", "head", "words"),
    [
        ("the [SPAN:7] of", "sbo", "at most 6 tokens, not 7"),
        ("the [SPAN:2-7] of", "both", "at most 6 tokens, not 7"),
        ("the [SPAN:23] of", "mlm", "27 tokens, the model takes 24"),
        ("[SPAN:1-5] of [SPAN:1-5] is [SPAN:1-5] of [SPAN:1-5]", "mlm", "625 combinations"),
    ],
)
def test_what_cannot_be_filled_is_one_clear_sentence(text, head, words):
    with pytest.raises(UserError, match=words):
        fill(small_model(), TOKENIZER, parse_template(text, TOKENIZER), head, 3)


def test_a_probability_of_zero_fills_nothing():
    """One bias of 3e38 left every token that may fill a span a log-probability of -3e38, and they were shown."""
    model = small_model()
    with torch.no_grad():
        model.mlm.bias[TOKENIZER.pad_id] = 3e38
    with pytest.raises(UserError, match="too large to compute with"):
        fill(model, TOKENIZER, parse_template("the [SPAN:2] of", TOKENIZER), "mlm", 3)


def test_a_model_whose_numbers_overflow_is_refused():
    """Weights that are finite, but too large: no token had a probability, and the best of none was asked for. Found by
    the fuzzer."""
    model = small_model()
    with torch.no_grad():
        model.mlm.dense.weight.fill_(3e38)
    with pytest.raises(UserError, match="too large to compute with"):
        fill(model, TOKENIZER, parse_template("the [SPAN:2] of", TOKENIZER), "mlm", 3)
