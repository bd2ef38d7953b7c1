"""What the exercises are checked by: random cases, each with the project's own function as the oracle.

Every check takes a function and raises `Wrong`, with the smallest case that it finds and what was expected.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from finetune.tasks.qa import metrics
from finetune.tasks.qa.features import Windows
from kernels.attention_reference import LOG2_E, attention_forward_reference
from pretrain.masking.counter_rng import below, draw, sequence_keys, stream
from pretrain.masking.masker import truncated_geometric
from pretrain.masking.span_sampler import LENGTH, START, SpanRule, choose_spans, draw_lengths
from pretrain.masking.word_sampler import find_words
from spanbert.model.batch import Targets
from spanbert.model.config import EncoderConfig
from spanbert.model.heads import SBOHead


class Wrong(AssertionError):
    """The function gives something else than it should."""


def verdict(check: Callable[[Callable], None], function: Callable, file: str) -> str | None:
    """What to tell the reader; None when all is right. What the function raises by itself is not caught."""
    try:
        check(function)
    except NotImplementedError:
        return f"not written yet: {function.__name__} in {file}"
    except Wrong as wrong:
        return f"{function.__name__} in {file}: {wrong}"
    return None


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise Wrong(message)


# --- the span sampler ----------------------------------------------------------------------------------------------------

LENGTHS = truncated_geometric(0.2, 10)
MOST_TRIES = 1000


class Draws:
    """The draws of one sequence: the same that the project's masker would make."""

    def __init__(self, words: int, seed: int) -> None:
        self.words = words
        self.key = sequence_keys(seed, 0, np.array([0]))

    def length(self, span: int) -> int:
        expect(span <= self.words, f"asks for span {span} in a sequence of {self.words} words")
        return int(draw_lengths(LENGTHS, draw(stream(self.key, LENGTH), np.array([span])))[0])

    def start(self, span: int, attempt: int) -> int:
        expect(attempt < MOST_TRIES, f"still looks for a start after {MOST_TRIES:,} tries; a span gives up before")
        bits = draw(stream(self.key, START), np.array([(span << 32) + attempt]))
        return int(below(bits, np.array([self.words]))[0])


def project_spans(word_sizes: list[int], budget: int, draws: Draws) -> list[tuple[int, int]]:
    """(first word, last word + 1) of the spans that the project chooses, ascending."""
    first, continues, special = 1, 2, 0
    ids = [special, *(token for size in word_sizes for token in [first] + [continues] * (size - 1)), special]
    words = find_words(
        np.array(ids), np.array([0, len(ids)], np.int32), np.array([True, True, False]), np.array([True, False, False])
    )
    units = choose_spans(words, np.array([budget]), draws.key, SpanRule(LENGTHS, cut_mid_word=False))
    word = words.of_token  # the first is [CLS]
    return [(int(word[a]) - 1, int(word[a + n - 1])) for a, n in zip(units.first, units.size, strict=True)]


def check_span_sampler(sample_spans: Callable) -> None:
    numbers = random.Random(0)
    cases = [(words, share) for words in (1, 2, 5, 12, 40, 150) for share in (0.15, 0.3, 0.6) for _ in range(12)]
    for seed, (words, share) in enumerate(cases):
        sizes = [numbers.choice((1, 1, 1, 2, 3, 6)) for _ in range(words)]
        budget, draws = math.ceil(share * sum(sizes)), Draws(words, seed)
        found = sorted((int(a), int(b)) for a, b in sample_spans(list(sizes), budget, draws.length, draws.start))
        case = f"sizes {sizes}, budget {budget}: your spans {found}"
        expect(bool(found), f"{case}; there should be at least one")
        expect(all(0 <= a < b <= words for a, b in found), f"{case}; a span is empty or leaves the {words} words")
        expect(
            all(b < c for (_, b), (c, _) in itertools.pairwise(found)),
            f"{case}; two overlap or touch each other",
        )
        spent = sum(sum(sizes[a:b]) for a, b in found)
        alone = len(found) == 1 and found[0][1] - found[0][0] == 1
        expect(spent <= budget or alone, f"{case}; they cost {spent} tokens")
        right = project_spans(sizes, budget, draws)
        expect(found == right, f"{case}; by the procedure they are {right}")


# --- the SBO features ----------------------------------------------------------------------------------------------------


def check_sbo_features(sbo_features: Callable) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        config = EncoderConfig(
            vocab_size=11, hidden_size=8, num_attention_heads=2, sbo_positions=4, sbo_position_size=5
        )
        head = SBOHead(config)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_()
        sizes = [1, 6, 2, 3][: 1 + seed % 4 + (seed > 3)]
        first = torch.tensor([2 + sum(sizes[:i]) + 3 * i for i in range(len(sizes))])
        size_S = torch.tensor(sizes)
        span_M = torch.arange(len(sizes)).repeat_interleave(size_S)
        offset_M = torch.cat([torch.arange(n) for n in sizes])
        targets = Targets(
            first[span_M] + offset_M,
            torch.zeros_like(span_M),
            first - 1,
            first + size_S,
            span_M,
            offset_M,
            torch.nonzero(offset_M < config.sbo_positions)[:, 0],
        )
        hidden_TH = torch.randn(int(first[-1]) + sizes[-1] + 2, config.hidden_size)
        with torch.no_grad():
            found = sbo_features(head, hidden_TH, targets)
            right = project_features(head, hidden_TH, targets)
        case = f"spans of {sizes} tokens"
        expect(isinstance(found, torch.Tensor), f"{case}: expected a tensor, got {type(found).__name__}")
        expect(
            found.shape == right.shape,
            f"{case}, of which {len(right)} tokens have an SBO target: expected shape {tuple(right.shape)}, got {tuple(found.shape)}",
        )
        row = int((found - right).abs().sum(1).argmax())
        expect(
            torch.allclose(found, right, atol=1e-4),
            f"{case}: row {row} (span {int(span_M[targets.sbo_K][row])}, offset {int(offset_M[targets.sbo_K][row])}) "
            f"differs by {float((found - right).abs().max()):.2g}",
        )


def project_features(head: SBOHead, hidden_TH: torch.Tensor, targets: Targets) -> torch.Tensor:
    span_K, offset_K = targets.span_M[targets.sbo_K], targets.offset_M[targets.sbo_K]
    return head(hidden_TH[targets.left_S], hidden_TH[targets.right_S], span_K, offset_K)


# --- the owned range of a window -----------------------------------------------------------------------------------------


def project_ranges(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    first_W, last_W = np.array(windows).T
    owned = Windows(np.zeros(len(windows), np.int64), first_W, last_W - first_W + 1).owned
    return list(zip(*(one.tolist() for one in owned), strict=True))


def check_owned_range(owned_ranges: Callable) -> None:
    numbers = random.Random(1)
    for case in range(200):
        room = numbers.randint(2, 8 if case < 50 else 60)
        stride = numbers.randint(1, room - 1)
        tokens = numbers.randint(1, 6 * stride + room)
        firsts = range(0, max(tokens - room, 0) + stride, stride)
        windows = [(first, min(first + room, tokens) - 1) for first in firsts]
        found = [(int(a), int(b)) for a, b in owned_ranges(list(windows))]
        right = project_ranges(windows)
        expect(found == right, f"windows {windows}: expected {right}, got {found}")


# --- token F1 ------------------------------------------------------------------------------------------------------------

WORDS = (
    "the",
    "The",
    "a",
    "An",
    "cat",
    "Cat",
    "cat's",
    "sat",
    "to",
    "to",
    "be",
    "U.S.",
    "co-op",
    "1,000",
    "mat.",
    "—",
    "",
)
FIRST_PAIRS = (
    ("cat", "cat"),
    ("cat", "mat"),
    ("", "cat"),
    ("the", "a"),
    ("the cat", "a Cat."),
    ("to to", "to"),
    ("to be to", "to and to"),
    ("another cat", "other cat"),
    ("a.n cat", "cat"),
    ("cat\tsat", "cat sat"),
)


def check_token_f1(token_f1: Callable) -> None:
    numbers = random.Random(2)
    pairs = list(FIRST_PAIRS)
    pairs += [tuple(" ".join(numbers.choices(WORDS, k=numbers.randint(0, 7))) for _ in range(2)) for _ in range(500)]
    for prediction, gold in pairs:
        found, right = token_f1(prediction, gold), metrics.token_f1(prediction, gold, version_2=False)
        expect(abs(found - right) < 1e-9, f"({prediction!r}, {gold!r}): expected {right:.4f}, got {found:.4f}")


# --- the online softmax --------------------------------------------------------------------------------------------------


def project_attention(q_D: np.ndarray, blocks: Any) -> tuple[np.ndarray, float]:
    k_LD, v_LD = (torch.from_numpy(np.concatenate(part)) for part in zip(*blocks, strict=True))
    q_LD = torch.from_numpy(q_D).expand_as(k_LD)
    cu_seqlens = torch.tensor([0, len(k_LD)], dtype=torch.int32)
    scale = len(q_D) ** -0.5
    out, lse = attention_forward_reference(q_LD[:, None], k_LD[:, None], v_LD[:, None], cu_seqlens, scale, 0.0, 0)
    return out[0, 0].numpy(), float(lse[0, 0]) / LOG2_E


def check_online_softmax(online_attention: Callable) -> None:
    numbers = np.random.default_rng(3)
    for case in range(120):
        width = int(numbers.integers(1, 9))
        q = numbers.normal(size=width)
        sizes = numbers.integers(1, 6, int(numbers.integers(1, 7)))
        blocks = [(numbers.normal(size=(n, width)), numbers.normal(size=(n, width))) for n in sizes]
        # scores near 0, near −3000, near +3000, and with thousands between one block and the next
        level_B = np.full(len(blocks), (0.0, -3000.0, 3000.0, 0.0)[case % 4])
        if case % 4 == 3:
            level_B = numbers.choice([-2000.0, 0.0, 2000.0], len(blocks))
        towards = q * width**0.5 / (q @ q)
        blocks = [(keys + level * towards, values) for level, (keys, values) in zip(level_B, blocks, strict=True)]
        with np.errstate(all="ignore"):
            out, lse = online_attention(q.copy(), iter(blocks))
        right, right_lse = project_attention(q, blocks)
        scores = np.concatenate([keys @ q * width**-0.5 for keys, _ in blocks])
        told = f"D = {width}, blocks of {sizes.tolist()} keys, scores from {scores.min():.1f} to {scores.max():.1f}"
        expect(np.shape(out) == right.shape, f"{told}: expected an output of shape {right.shape}, got {np.shape(out)}")
        expect(bool(np.allclose(out, right, atol=1e-6)), f"{told}: expected {right.round(4)}, got {np.round(out, 4)}")
        expect(
            abs(float(lse) - right_lse) < 1e-6, f"{told}: expected log-sum-exp {right_lse:.4f}, got {float(lse):.4f}"
        )
