"""What a window of a sentence holds: whole words, overlap, labels, and context of the same document."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.tasks.ner.features import IGNORED, SentenceSet, encode_sentences, window_words
from finetune.tasks.ner.records import Sentence, SentenceFile, read_sentences
from finetune.tasks.ner.schemes import Entity
from finetune.tasks.ner.words import split_words
from spanbert.tokenizer.wordpiece import Tokenizer
from tests.sentence_samples import sentence_set


@pytest.mark.parametrize("seed", range(20))
def test_windows_hold_whole_words_overlap_and_decide_about_every_word_once(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 6, draw.integers(1, 60))
    room, overlap = 20, int(draw.integers(0, 15))
    windows = window_words(lengths, room, overlap)
    decided = [word for _, _, begin, end in windows for word in range(begin, end)]
    assert decided == list(range(len(lengths)))
    for first, stop, begin, end in windows:
        assert first <= begin < end <= stop
        assert lengths[first:stop].sum() <= room
    for (left, stop, *_), (first, *_) in itertools.pairwise(windows):
        assert left < first <= stop
    if len(windows) > 1:
        assert lengths[windows[-1][0] - 1 :].sum() > room  # the last one is full


def test_windows_overlap_by_as_much_as_asked_for() -> None:
    assert [window[:2] for window in window_words(np.ones(45, int), 20, 10)] == [(0, 20), (10, 30), (20, 40), (25, 45)]
    assert window_words(np.ones(45, int), 20, 0) == [(0, 20, 0, 20), (20, 40, 20, 32), (25, 45, 32, 45)]
    assert window_words(np.ones(20, int), 20, 5) == [(0, 20, 0, 20)]


def test_labels_stand_on_the_first_tokens_of_words(tokenizer: Tokenizer) -> None:
    features = sentence_set(tokenizer, ["zzyx from that", "the end \u200b"], 64)
    packed, labels = features.packed(np.array([0, 1])), features.labels(np.array([0, 1]))
    tokens = [tokenizer.token(id) for id in packed.input_ids_T]
    assert " ".join(tokens) == "[CLS] z ##z ##y ##x from that [SEP] [CLS] the end [UNK] [SEP]"
    __ = IGNORED
    assert labels.tolist() == [__, 1, __, __, __, 0, 0, __, __, 1, 0, 0, __]
    assert features.count(np.array([0, 1])) == 6
    assert features.select(np.array([1])).packed(np.array([0])).input_ids_T.tolist() == packed.input_ids_T[8:].tolist()
    assert features.select(np.array([1])).labels(np.array([0])).tolist() == labels[8:].tolist()


def test_long_sentences_lose_no_word_and_words_longer_than_a_window_are_said(tokenizer: Tokenizer) -> None:
    features = sentence_set(tokenizer, ["from that " * 9, "z" * 30 + " end"], 10)
    windows = np.arange(len(features.lengths))
    assert features.lengths.max() == 10
    assert features.count(windows) == 20
    assert (features.labels(windows) != IGNORED).sum() == 20
    assert features.notes == [
        "2 sentences longer than 10 tokens, seen in 6 windows that overlap",
        "1 words longer than 8 tokens, of which the rest is not seen",
    ]


def in_context(
    tokenizer: Tokenizer, texts: list[tuple[str, int]], room: int, context: int, overlap: int = 1
) -> SentenceSet:
    """Texts with the number of their document; every first word is an entity."""
    sentences = []
    for n, (text, document) in enumerate(texts):
        words = tuple(split_words(text))
        sentences.append(Sentence(n + 1, text, words, (Entity(0, 1, "X"),), document=document))
    return encode_sentences(
        SentenceFile(sentences, None),
        tokenizer,
        room + 2,
        overlap,
        ("O", "B-X", "I-X"),
        context,  # type: ignore[arg-type]
    )


def tokens_of(features: SentenceSet, tokenizer: Tokenizer, window: int) -> str:
    return " ".join(tokenizer.token(id) for id in features.packed(np.array([window])).input_ids_T[1:-1])


def test_context_is_of_the_same_document_and_nothing_is_learned_about_it(tokenizer: Tokenizer) -> None:
    texts = [("from that", 0), ("the end", 1), ("was zzyx", 1), ("that the from", 1), ("end", 2)]
    features = in_context(tokenizer, texts, room=20, context=3)
    seen = [tokens_of(features, tokenizer, window) for window in range(5)]
    assert seen == [
        "from that",
        "the end was z ##z",
        "the end was z ##z ##y ##x that the from",
        "##z ##y ##x that the from",
        "end",
    ]
    assert features.lengths.tolist() == [4, 7, 12, 8, 3]
    __ = IGNORED
    assert features.labels(np.array([2])).tolist() == [__, __, __, 1, 0, __, __, __, __, __, __, __]
    assert features.starts(2).tolist() == [3, 4]
    assert features.count(np.arange(5)) == 10
    chosen = features.select(np.array([3, 2]))  # a draw of sentences does not take their context away
    assert [tokens_of(chosen, tokenizer, window) for window in range(2)] == [seen[3], seen[2]]
    assert chosen.labels(np.array([1])).tolist() == features.labels(np.array([2])).tolist()
    assert features.notes == ["3 documents, of which up to 3 tokens are seen at either side of a sentence"]


@pytest.mark.parametrize(
    ("room", "seen"),
    [
        (2, "that the"),
        (4, "the that the from"),
        (7, "end was the that the from end"),
        (9, "the end was the that the from end was"),
        (20, "the end was the that the from end was the"),
    ],
)
def test_context_shares_what_is_left_of_a_window(tokenizer: Tokenizer, room: int, seen: str) -> None:
    texts = [("the end was the", 0), ("that the", 0), ("from end was the", 0)]
    features = in_context(tokenizer, texts, room, context=16)
    assert tokens_of(features, tokenizer, int(features.bounds[1])) == seen


def test_one_side_takes_what_the_other_has_no_words_for(tokenizer: Tokenizer) -> None:
    texts = [("end", 0), ("that the", 0), ("from end was the end", 0)]
    assert tokens_of(in_context(tokenizer, texts, 7, context=16), tokenizer, 1) == "end that the from end was the"
    texts = [("from end was the end", 0), ("that the", 0)]
    assert tokens_of(in_context(tokenizer, texts, 5, context=16), tokenizer, 1) == "was the end that the"


def test_a_sentence_in_parts_has_context_at_its_ends_only(tokenizer: Tokenizer) -> None:
    texts = [("end was", 0), ("that the from " * 3, 0), ("the end", 0)]
    features = in_context(tokenizer, texts, room=5, context=16)
    owned = np.diff(features.windows.owned_W2[features.windows.sentence_W == 1])
    assert owned.sum() == 9
    assert features.lengths.max() == 7
    for window in np.flatnonzero(features.windows.sentence_W == 1):
        assert set(tokens_of(features, tokenizer, window).split()) <= {"that", "the", "from"}  # they are full


def test_documents_are_marked_in_every_format(tmp_path: Path) -> None:
    def documents(name: str, text: str, purpose: Any = "evaluate") -> list[int]:
        (tmp_path / name).write_text(text)
        found = [sentence.document for sentence in read_sentences(tmp_path / name, purpose).sentences]
        return [sorted(set(found)).index(document) for document in found]

    assert documents("a", "-DOCSTART- O\n\na B-X\n\nb O\n\n-DOCSTART- O\n\nc O\n") == [0, 0, 1]
    assert documents("b", "# newdoc id = 1\na\tB-X\n\nb\tO\n\n# newdoc\n# text = c\nc\tO\n\n# newdocument\nd\tO\n") == [
        0,
        0,
        1,
        1,
    ]
    assert documents("c", "a B-X\n\nb O\n") == [0, 0]
    lines = [{"tokens": ["a"], "tags": ["B-X"], "document": 7}, {"tokens": ["b"], "tags": ["O"], "document": 7}]
    lines += [{"tokens": ["c"], "tags": ["O"]}, {"tokens": ["d"], "tags": ["O"]}]
    assert documents("d", "".join(json.dumps(line) + "\n" for line in lines)) == [0, 0, 1, 2]
    spans = [{"text": "a", "spans": [], "document": name} for name in ("x", "x", "y")]
    assert documents("e", "".join(json.dumps(line) + "\n" for line in spans)) == [0, 0, 1]
    assert documents("f", "One.\nTwo.\n\nThree.\n", "predict") == [0, 0, 1]
