"""A model begins in one way, whatever trains it: its vocabulary and positions are checked, what is new is named."""

from __future__ import annotations

import pytest
import torch

from spanbert.errors import UserError
from spanbert.model.models import (
    SpanBertForPretraining,
    SpanBertForQuestionAnswering,
    SpanBertForSequenceClassification,
)
from spanbert.training.init_model import init_model, model_path

COMMON = {
    "size": "mini",
    "seed": 1,
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "backend": "auto",
    "device": torch.device("cpu"),
}


def test_random_weights_take_the_vocabulary_and_the_length_of_the_data(tokenizer):
    started = init_model(SpanBertForPretraining, init="random", tokenizer=tokenizer, min_positions=600, **COMMON)
    config = started.model.config
    assert (config.vocab_size, config.max_position_embeddings) == (tokenizer.vocab_size, 600) and started.report is None
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
    assert started.model.encoder.backend == "eager"
    again = init_model(SpanBertForPretraining, init="random", tokenizer=tokenizer, min_positions=600, **COMMON).model
    assert all(torch.equal(a, b) for a, b in zip(started.model.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match="random weights need a tokenizer"):
        init_model(SpanBertForPretraining, init="random", tokenizer=None, **COMMON)


def test_a_new_head_is_initialised_and_named(model_folder):
    started = init_model(SpanBertForQuestionAnswering, init=model_folder, tokenizer=None, **COMMON)
    assert any(name.startswith("qa_outputs") for name in started.report.initialised)
    assert "initialised, not in the file: qa_outputs" in str(started.report)
    other = init_model(
        SpanBertForSequenceClassification, init=str(model_folder), tokenizer=None, head={"num_labels": 5}, **COMMON
    )
    assert other.model.classifier.out_features == 5


def test_refuses_another_tokenizer_and_too_few_positions(model_folder, tokenizer):
    from pretrain.data.train_tokenizer import train_wordpiece

    init_model(SpanBertForPretraining, init=model_folder, tokenizer=tokenizer, min_positions=24, **COMMON)
    with pytest.raises(UserError, match="has only 24 positions, and the data has sequences of 25 tokens"):
        init_model(SpanBertForPretraining, init=model_folder, tokenizer=tokenizer, min_positions=25, **COMMON)
    other = train_wordpiece(["a different text about other things"] * 5, vocab_size=50)
    with pytest.raises(UserError, match=r"has another tokenizer .* than the data"):
        init_model(SpanBertForPretraining, init=model_folder, tokenizer=other, **COMMON)


def test_a_checkpoint_of_the_run_goes_before_init_and_is_not_reported(model_folder, tokenizer):
    started = init_model(SpanBertForPretraining, init="random", tokenizer=tokenizer, checkpoint=model_folder, **COMMON)
    assert started.model.config.hidden_size == 16 and started.report is None


def test_bundled_names_the_encoder_that_comes_along(tmp_path, monkeypatch):
    monkeypatch.setattr("spanbert.training.init_model.encoder_path", lambda: tmp_path)
    assert model_path("bundled") == model_path("shipped") == tmp_path
    with pytest.raises(UserError, match="no such folder"):
        model_path(tmp_path / "nowhere")
