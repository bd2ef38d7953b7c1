"""Sentences with an entity each, as the features that a model is trained on."""

from __future__ import annotations

from finetune.tasks.ner.features import SentenceSet, encode_sentences
from finetune.tasks.ner.records import Sentence, SentenceFile, Span
from finetune.tasks.ner.schemes import Entity
from finetune.tasks.ner.task import NerSettings, NerTask
from finetune.tasks.ner.words import split_words
from spanbert.tokenizer.wordpiece import Tokenizer


def sentence_set(tokenizer: Tokenizer, texts: list[str], window: int, overlap: int = 4) -> SentenceSet:
    """The first word of each text is an entity."""
    task = NerTask(NerSettings(window, overlap, labels=("O", "B-X", "I-X")))
    sentences = []
    for n, text in enumerate(texts):
        words = tuple(split_words(text))
        sentences.append(Sentence(n + 1, text, words, (Entity(0, 1, "X"),), (Span(*words[0], "X"),)))
    return encode_sentences(SentenceFile(sentences, None), tokenizer, window, overlap, task.settings.labels)  # type: ignore[arg-type]
