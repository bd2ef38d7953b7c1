"""Names and numbers are found by the rule, hidden apart from each other, and right when every token is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.ablation.mechanism.fills import (
    GROUPS,
    Hole,
    candidates,
    choose_holes,
    find_tasks,
    hide_holes,
    score_answers,
    score_fills,
    spans_of_words,
)
from pretrain.data.blocks import Blocks
from spanbert.checkpoint.model_folder import build_model
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer


def test_names_numbers_and_other_words_are_found_by_the_rule():
    text = "In May the poet Anna Maria Ruiz , Lima , saw 1 , 500 of 3 . 5 in 1984 . New York in old New Delhi"
    words = text.split()
    found = spans_of_words(words)
    named = [(kind, " ".join(words[first : first + count])) for kind, first, count in found if kind != "other"]
    assert named == [("name", "Anna Maria Ruiz"), ("name", "Lima"), ("year", "1984"), ("name", "New Delhi")]
    others = {" ".join(words[first : first + count]) for kind, first, count in found if kind == "other"}
    assert others == {"the poet", "the", "poet", "saw", "of", "in", "in old", "old"}
    assert ("name", 2, 3) not in found and not [f for f in spans_of_words(["the", "A", "B"]) if f[0] == "name"]
    four = ["the", "Royal", "Bank", "Of", "Scotland", "is"]
    assert [kind for kind, *_ in spans_of_words(four) if kind != "other"] == [], "more than three words"


def test_holes_are_apart_within_their_room_and_the_same_each_time(corpus):
    tokenizer, blocks = Tokenizer.load(corpus / "tokenizer"), Blocks.open(corpus, "validation")
    tasks = find_tasks(blocks, np.arange(len(blocks)), tokenizer, most=5)
    counted = [group for task in tasks for group in task.groups]
    assert all(counted.count(group) <= 5 for group in GROUPS) and {"name", "other"} <= {kind for kind, _ in counted}
    assert tasks == find_tasks(blocks, np.arange(len(blocks)), tokenizer, most=5)
    for task in tasks:
        assert all(after[0] - before[1] >= 12 for before, after in zip(task.masked.spans, task.masked.spans[1:]))
        for (begin, end), answer in zip(task.masked.spans, task.answers, strict=True):
            assert task.masked.ids[begin - 1 : end - 1] == [tokenizer.mask_id] * len(answer)
            assert tokenizer.starts_word[answer[0]] and not set(answer) & set(tokenizer.special_ids.tolist())
    ids = blocks.packed(np.array([0]))[0].input_ids_T[1:-1].tolist()
    holes = candidates(ids, tokenizer)
    assert not choose_holes(holes, np.random.default_rng(0), dict.fromkeys(GROUPS, 0))


def test_an_answer_that_stands_elsewhere_is_not_fresh():
    ids = [5, 6, 7, 8, 5, 6, 9, 7]
    holes = [Hole(("name", 2), 0, 2), Hole(("name", 1), 2, 3), Hole(("name", 1), 3, 4)]
    task = hide_holes(ids, holes, mask_id=4)
    assert task.masked.ids == [4, 4, 4, 4, 5, 6, 9, 7] and task.masked.spans == [(1, 3), (3, 4), (4, 5)]
    assert task.answers == ((5, 6), (7,), (8,)) and task.fresh == (False, False, True)


def test_a_fill_is_right_when_all_its_tokens_are_first():
    log_probs = torch.full((4, 6), -9.0)
    log_probs[[0, 1, 2, 3], [1, 2, 3, 4]] = torch.tensor([-0.5, -1.0, -0.25, -0.75])
    assert score_answers(log_probs, [(1, 2), (3,), (4,)]) == [(True, 0.75), (True, 0.25), (True, 0.75)]
    assert score_answers(log_probs, [(1, 5), (3, 4)]) == [(False, 4.75), (True, 0.5)]


def test_fills_are_counted_by_head_kind_and_freshness(corpus, shape, monkeypatch):
    """A stub that knows the answers of odd tasks alone."""
    tokenizer, blocks = Tokenizer.load(corpus / "tokenizer"), Blocks.open(corpus, "validation")
    tasks = find_tasks(blocks, np.arange(len(blocks)), tokenizer, most=30)
    number = {id(task.masked): at for at, task in enumerate(tasks)}

    def stub(_model, _tokenizer, sequences, head):
        answers = []
        for sequence in sequences:
            at = number[id(sequence)]
            ids = torch.tensor([token for answer in tasks[at].answers for token in answer])
            log_probs = torch.full((len(ids), shape.vocab_size), -8.0)
            log_probs[torch.arange(len(ids)), ids if at % 2 else tokenizer.unk_id] = -1.0
            answers.append(log_probs if head == "mlm" else log_probs * 0)
        return answers

    monkeypatch.setattr("benchmarks.ablation.mechanism.fills.span_log_probs", stub)
    found = score_fills(build_model(SpanBertForPretraining, shape, 0), tokenizer, tasks, ("mlm", "sbo"), "fp32")
    for kind, words in GROUPS:
        rows = [
            (at % 2, fresh) for at, t in enumerate(tasks) for g, fresh in zip(t.groups, t.fresh) if g == (kind, words)
        ]
        if not rows:
            continue
        scores = found["mlm"][f"{kind} {words}"]
        right = sum(known for known, _ in rows)
        assert (scores["spans"], scores["fresh_spans"]) == (len(rows), sum(fresh for _, fresh in rows))
        assert scores["exact"] == right / len(rows)
        assert scores["nats"] == pytest.approx((right + 8 * (len(rows) - right)) / len(rows))
        fresh = [known for known, is_fresh in rows if is_fresh]
        assert scores["fresh_exact"] == (sum(fresh) / len(fresh) if fresh else None)
        assert found["sbo"][f"{kind} {words}"]["exact"] == 0
