"""Classification by a prompt: scores are those worked out by hand, texts keep their order, bad input is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.tasks.classification.classify import ClassifyConfig, run_classify
from finetune.tasks.classification.prompt import parse_prompt, parse_words, word_scores
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.spans.log_probs import span_log_probs
from spanbert.spans.template import parse_template
from tests.span_samples import HEADS, TOKENIZER, small_model

TEXTS = ("the city of Rome", "Paris", "the big old capital of Spain is Madrid", "sunny")
WORDS = ("old", "unlike", "big", "unlikely")


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_each_word_and_text_by_itself(head: str) -> None:
    model = small_model(5)
    prompt = parse_prompt("{text} , is [SPAN:3] .", TOKENIZER, 24)
    words = parse_words(WORDS, TOKENIZER, prompt.width)
    assert [len(word) for word in words] == [1, 2, 1, 3]
    texts = [TOKENIZER.encode(text).ids for text in TEXTS]
    found = word_scores(model, TOKENIZER, prompt, words, texts, head, 40)
    for row, text in zip(found, TEXTS, strict=True):
        for score, ids in zip(row, words, strict=True):
            filled = parse_template(f"{text} , is [SPAN:{len(ids)}] .", TOKENIZER).with_masks((len(ids),), TOKENIZER)
            with torch.no_grad():
                (log_probs_MV,) = span_log_probs(model, TOKENIZER, [filled], head)
            by_hand = np.mean([log_probs_MV[place, token].item() for place, token in enumerate(ids)])
            assert score == pytest.approx(by_hand, abs=1e-5)


def test_the_command_keeps_the_order_and_cuts_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", small_model(), TOKENIZER)
    file = tmp_path / "t.tsv"
    lines = [*TEXTS, "Rome " * 40]
    file.write_text("text\tlabel\n" + "".join(f"{text}\tgood\n" for text in lines))
    run_classify(
        ClassifyConfig("{text} is [MASK] .", ("old", "big"), file, ("bad", "good"), str(tmp_path / "m"), label="label")
    )
    shown = capsys.readouterr()
    records = [json.loads(line) for line in shown.out.splitlines()]
    assert [record["text"] for record in records] == lines
    assert "1 of 5 texts have more than the 19 tokens" in shown.err
    right = 100 * sum(record["label"] == "good" for record in records) / 5
    assert f"accuracy {right:.2f}" in shown.err


@pytest.mark.parametrize(
    ("prompt", "words", "message"),
    [
        ("It is [MASK]", ("old", "big"), r"needs \{text\} exactly once"),
        ("{text} is old", ("old", "big"), "has 0 spans"),
        ("{text} [MASK] is [MASK]", ("old", "big"), "has 2 spans"),
        ("{text} [MASK]", ("old",), "at least 2"),
        ("{text} [MASK]", ("old", ""), "is empty"),
        ("{text} [MASK]", ("old", "unlike"), "has 2 tokens"),
        ("{text} [MASK]", ("old", "old"), "same tokens"),
    ],
)
def test_bad_input_is_one_sentence(prompt: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_words(words, TOKENIZER, parse_prompt(prompt, TOKENIZER, 24).width)
