"""What the heads expect in masked spans: of several sequences as of each alone, and of both heads together."""

from __future__ import annotations

import pytest
import torch

from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.load_report import LoadReport
from spanbert.errors import UserError
from spanbert.model.batch import pack_sequences
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.spans.log_probs import check_width, choose_head, span_log_probs
from spanbert.spans.template import parse_template
from tests.span_samples import HEADS, TOKENIZER, small_model


def test_both_is_the_normalised_geometric_mean_of_the_two():
    """The bare product called a 1 in 10 guess of an undertrained model 80 % sure: both heads knew only what is frequent."""
    model = small_model(1)
    template = parse_template("the [SPAN:2] of [SPAN:3]", TOKENIZER)
    with torch.no_grad():
        mlm, sbo, both = (
            span_log_probs(model, TOKENIZER, [template.with_masks((2, 3), TOKENIZER)], head)[0] for head in HEADS
        )
    mean_MV = (mlm + sbo) / 2
    finite_MV = torch.isfinite(both)
    assert torch.equal(finite_MV, torch.isfinite(mean_MV))
    difference_MV = torch.where(finite_MV, both - mean_MV, torch.nan)
    spread_M = difference_MV.nan_to_num(nan=-9e9).amax(-1) - difference_MV.nan_to_num(nan=9e9).amin(-1)
    assert spread_M.max() < 1e-5  # the same constant for every piece of a position
    assert (both.exp().sum(-1) <= 1 + 1e-5).all()


def report(initialised: tuple[str, ...] = (), untrained: tuple[str, ...] = ()) -> LoadReport:
    names = {"mlm": "cls.predictions.bias", "sbo": "cls.pair_target_predictions.bias"}
    loaded = tuple(name for head, name in names.items() if head not in initialised)
    return LoadReport("m", loaded, tuple(names[h] for h in initialised), (), {UNTRAINED: list(untrained)})


def test_only_trained_heads_are_used():
    assert choose_head("auto", report(), "m") == "both"
    assert choose_head("auto", report(initialised=("sbo",)), "m") == "mlm"
    assert choose_head("auto", report(untrained=("mlm",)), "m") == "sbo"
    for asked in ("sbo", "both"):
        with pytest.raises(UserError, match=r"no trained SBO head.*--head mlm"):
            choose_head(asked, report(untrained=("sbo",)), "m")
    with pytest.raises(UserError, match="no trained MLM or SBO head, only an encoder"):
        choose_head("auto", report(initialised=("mlm", "sbo")), "m")


@pytest.mark.parametrize("head", ["mlm", "sbo"])
def test_every_span_is_scored_where_it_stands(head):
    """Several spans of several sequences in one pass: each row is the head's answer for that token, worked out by itself."""
    model = small_model(4)
    texts = ("the [SPAN:2] of [SPAN:1] is big", "[SPAN:3] is old .", "Rome , [MASK]")
    sequences = [
        template.with_masks(tuple(blank.longest for blank in template.blanks), TOKENIZER)
        for template in (parse_template(text, TOKENIZER) for text in texts)
    ]
    words = model.encoder.embeddings.word.weight
    with torch.no_grad():
        found = span_log_probs(model, TOKENIZER, sequences, head)
        assert [len(rows) for rows in found] == [3, 3, 1]
        for sequence, rows_MV in zip(sequences, found, strict=True):
            packed = pack_sequences([(sequence.ids,)], TOKENIZER.cls_id, TOKENIZER.sep_id)
            hidden_TH = model.encoder(*packed.tensors())
            places = [(start, end, at - start) for start, end in sequence.spans for at in range(start, end)]
            for (start, end, offset), row_V in zip(places, rows_MV, strict=True):
                if head == "mlm":
                    features = model.mlm(hidden_TH[start + offset][None])
                else:
                    zero = torch.zeros(1, dtype=torch.long)
                    features = model.sbo(hidden_TH[start - 1][None], hidden_TH[end][None], zero, zero + offset)
                bias = getattr(model, head).bias
                by_hand_V = vocabulary_logits(features, words, bias)[0].log_softmax(-1)
                finite_V = torch.isfinite(row_V)
                assert finite_V.sum() >= len(TOKENIZER.special_ids)
                torch.testing.assert_close(row_V[finite_V], by_hand_V[finite_V], atol=1e-5, rtol=1e-5)


def test_a_span_wider_than_the_sbo_table_is_refused():
    model = small_model()
    check_width(model, "mlm", 7)
    check_width(model, "sbo", 6)
    with pytest.raises(UserError, match="at most 6 tokens, not 7: use --head mlm"):
        check_width(model, "both", 7)
