"""Classification without training: a prompt around each text, and how well each class's word fits its masked span.

``{text} It was [SPAN:2].`` becomes ``a fine film It was [MASK].`` for words of one token and ``… It was [MASK] [MASK].`` for
words of two. A word's score is the mean log-probability of its tokens, in nats; words of equal length are read from the
same forward pass. The parts of a prompt and the text are tokenized one by one, so that a text is never part of a prompt's
word: leave a space between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune.predict import budget_batches
from finetune.records import printable
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import Head, span_log_probs
from spanbert.spans.template import ALMOST, HOLE, HOLES, Masked, Template, parse_template
from spanbert.tokenizer.wordpiece import Tokenizer

PLACE = "{text}"
EXAMPLE = f'--prompt "{PLACE} It was [SPAN:1]."'
SPECIALS = 2  # [CLS] and [SEP]


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt: those around the text, and those on the other side of the span."""

    template: Template
    before: list[int]
    after: list[int]
    side: int  # 0: the text comes before the span, 1: after it

    @property
    def width(self) -> int:
        """The most tokens that a word may have."""
        return self.template.blanks[0].longest

    @property
    def tokens(self) -> int:
        """Without text, span, [CLS] and [SEP]."""
        return len(self.before) + len(self.after) + len(self.template.ids[1 - self.side])

    def filled(self, text: np.ndarray, masks: int, tokenizer: Tokenizer) -> Masked:
        """The prompt around a text's tokens, with ``masks`` mask tokens for its span."""
        ids = list(self.template.ids)
        ids[self.side] = [*self.before, *text.tolist(), *self.after]
        return Template(self.template.texts, ids, self.template.blanks).with_masks((masks,), tokenizer)


def parse_prompt(text: str, tokenizer: Tokenizer, positions: int) -> Prompt:
    """Raises UserError for a prompt without exactly one ``{text}`` and exactly one ``[SPAN:n]`` (``[MASK]`` is
    ``[SPAN:1]``), or with a span of no one length."""
    shown = printable(text, 200)
    if text.count(PLACE) != 1:
        raise UserError(f"the prompt {shown!r} needs {PLACE} exactly once, where each text goes, as in {EXAMPLE}.")
    spans = [match[0] for match in re.finditer(HOLE, text)]
    if len(spans) != 1 and not ALMOST.search(HOLES.sub(" ", text)):
        raise UserError(
            f"the prompt {shown!r} has {len(spans)} spans: it needs exactly one [SPAN:n], n being the tokens of the "
            f"longest word, as in {EXAMPLE}."
        )
    template = parse_template(text, tokenizer, positions)
    if template.blanks[0].shortest != template.blanks[0].longest:
        longest = template.blanks[0].longest
        raise UserError(f"{spans[0]} in the prompt: give the length of the longest word alone, [SPAN:{longest}].")
    side = int(PLACE not in template.texts[0])
    before, after = (part.ids.tolist() for part in tokenizer.encode_batch(template.texts[side].split(PLACE)))
    return Prompt(template, before, after, side)


def parse_words(words: Sequence[str], tokenizer: Tokenizer, width: int) -> list[np.ndarray]:
    """The tokens of each word. Raises UserError for fewer than two, and for one that cannot be told from another, is
    empty, is not in the vocabulary's characters, or has more than ``width`` tokens."""
    if len(words) < 2:
        raise UserError(f"--words: there are {len(words)}, give one for each class, at least 2.")
    found: dict[tuple[int, ...], str] = {}
    for word, encoded in zip(words, tokenizer.encode_batch(words), strict=True):
        shown, ids = printable(word, 200), encoded.ids.tolist()
        if not ids:
            raise UserError(f"--words: {shown!r} is empty: it has no token.")
        if set(ids) & set(tokenizer.special_ids.tolist()):
            raise UserError(f"--words: {shown!r} is not in the model's vocabulary: take another word.")
        if len(ids) > width:
            tokens = printable(" ".join(map(tokenizer.token, ids)), 200)
            raise UserError(
                f"--words: {shown!r} has {len(ids)} tokens ({tokens}), the prompt's span {width}: write [SPAN:{len(ids)}] "
                "in the prompt or take another word."
            )
        if tuple(ids) in found:
            raise UserError(
                f"--words: {found[tuple(ids)]!r} and {shown!r} are the same tokens: give each class its own."
            )
        found[tuple(ids)] = shown
    return [np.array(ids, dtype=np.int64) for ids in found]


def room_for_text(prompt: Prompt, words: Sequence[np.ndarray], positions: int) -> int:
    """How many tokens of a text fit beside the prompt and its longest word. Raises UserError when none does."""
    taken = prompt.tokens + max(map(len, words)) + SPECIALS
    if taken >= positions:
        raise UserError(
            f"the prompt takes {taken} of {positions} tokens with its span, [CLS] and [SEP]: shorten it, for there is no "
            "room for a text."
        )
    return positions - taken


@torch.inference_mode()
def word_scores(
    model: SpanBertForPretraining,
    tokenizer: Tokenizer,
    prompt: Prompt,
    words: Sequence[np.ndarray],
    texts: Sequence[np.ndarray],
    head: Head,
    batch_tokens: int,
) -> np.ndarray:
    """(texts, words) float64: the mean log-probability of each word's tokens. ``texts`` are token ids that fit.

    Raises UserError when the model gives one that is not finite.
    """
    sizes = sorted({len(word) for word in words})
    words_of = {size: [number for number, word in enumerate(words) if len(word) == size] for size in sizes}
    device = model.mlm.bias.device
    ids_of = {size: torch.from_numpy(np.stack([words[n] for n in words_of[size]])).to(device) for size in sizes}
    row_of = {size: torch.arange(size, device=device) for size in sizes}
    asked = [(number, size) for number in range(len(texts)) for size in sizes]
    lengths = np.array([len(texts[number]) + prompt.tokens + size + SPECIALS for number, size in asked])
    scores_EW = np.empty((len(texts), len(words)))
    for group in budget_batches(lengths, batch_tokens):
        some = [asked[place] for place in group]
        sequences = [prompt.filled(texts[number], size, tokenizer) for number, size in some]
        found = span_log_probs(model, tokenizer, sequences, head)
        means = [rows_MV[row_of[size], ids_of[size]].mean(1) for rows_MV, (_, size) in zip(found, some, strict=True)]
        places = [(number, word) for number, size in some for word in words_of[size]]
        rows, columns = zip(*places, strict=True)
        scores_EW[rows, columns] = torch.cat(means).double().cpu().numpy()
    if not np.isfinite(scores_EW).all():
        raise UserError(
            "the model's log-probabilities are not finite: the checkpoint is damaged or its training diverged."
        )
    return scores_EW


def softmax(scores_EW: np.ndarray) -> np.ndarray:
    """Over the words."""
    weights_EW = np.exp(scores_EW - scores_EW.max(1, keepdims=True))
    return weights_EW / weights_EW.sum(1, keepdims=True)
