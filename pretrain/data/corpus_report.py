"""What a preparation found and made, as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pretrain.data.corpus import ReadCounts
from pretrain.data.readers import describe_left_out
from pretrain.data.shards import ShardCounts, TokenCounts, commonest

BINS = 8
MOST_UNKNOWN = 10
MOST_INPUTS = 20  # printed


def make_report(
    counts: ShardCounts, read: ReadCounts, inputs: tuple[str, ...], held_out: dict, block_length: int
) -> dict:
    """All numbers that prepare.json keeps. A word is BERT's: split at white space, punctuation and Chinese characters."""
    blocks = sum(counts.block_lengths.values())
    width = -(-block_length // BINS)
    histogram = dict.fromkeys(
        (f"{low + 1}-{min(low + width, block_length)}" for low in range(0, block_length, width)), 0
    )
    names = list(histogram)
    for length, count in counts.block_lengths.items():
        histogram[names[(length + 2 - 1) // width]] += count
    whole = asdict(read)
    documents = whole.pop("documents_of_input")
    total = counts.total
    return {
        **whole,
        **_of_tokens(total),
        "by_input": [
            {"input": name, "documents": documents[number], **_of_tokens(counts.of_input.get(number, TokenCounts()))}
            for number, name in enumerate(inputs)
        ],
        "no_token_documents": counts.no_token_documents,
        "blocks": blocks,
        "fill": round(total.tokens / max(blocks * (block_length - 2), 1), 4),
        "block_length_histogram": histogram,
        "held_out": held_out,
        "spans": counts.spans,
        "dropped_spans": counts.dropped_spans,
    }


def _of_tokens(counts: TokenCounts) -> dict[str, Any]:
    """What is reported of the whole and of each input alike. In Chinese every character is a word: hence both ratios."""
    return {
        "words": counts.words,
        "tokens": counts.tokens,
        "characters": counts.characters,
        "tokens_per_word": round(counts.tokens / max(counts.words, 1), 4),
        "tokens_per_character": round(counts.tokens / max(counts.characters, 1), 4),
        "unknown_rate": counts.unknown / max(counts.tokens, 1),
        "unknown_characters": commonest(counts.unknown_characters, MOST_UNKNOWN),
    }


def print_report(report: dict) -> None:
    held = report["held_out"]
    lines = [
        ("documents", f"{report['documents']:,}"),
        ("words", f"{report['words']:,}"),
        ("tokens", f"{report['tokens']:,}"),
        ("tokens per word, per character", f"{report['tokens_per_word']:.3f}, {report['tokens_per_character']:.3f}"),
        ("unknown", f"{report['unknown_rate']:.4%} of tokens"),
        ("blocks", f"{report['blocks']:,}, {report['fill']:.1%} full"),
        (
            "held out",
            (
                f"{held['validation_blocks']:,} blocks, {held['validation_tokens'] / report['tokens']:.2%} of tokens"
                f" ({held['chosen_by']})"
            ),
        ),
    ]
    if report["spans"] or report["dropped_spans"]:
        lines.append(
            ("spans", f"{report['spans']:,} kept, {report['dropped_spans']:,} cross a block's end and are dropped")
        )
    repaired = {
        "empty files": "empty_files",
        "empty documents": "empty_documents",
        "documents without a token": "no_token_documents",
        "very long documents, cut in parts": "long_documents",
        "invalid UTF-8 sequences, replaced": "invalid_utf8",
        "NUL characters, removed": "nul_characters",
        "malformed records, left out": "malformed_lines",
    }
    lines.extend((name, f"{report[key]:,}") for name, key in repaired.items() if report[key])
    if report["first_malformed"]:
        lines.append(("first malformed record", report["first_malformed"]))
    if report["left_out"]:
        lines.append(("files left out of folders", describe_left_out(report["left_out"])))
    if report["read_as"]:
        lines.append(("files that hold other than named", describe_left_out(report["read_as"])))
    for name, value in lines:
        print(f"  {name:<34}{value}")
    if len(report["by_input"]) > 1:
        _print_inputs(report["by_input"])
    print("  block length (with [CLS], [SEP])")
    histogram = report["block_length_histogram"]
    most = max(histogram.values())
    for name, count in histogram.items():
        print(f"    {name:>9} {count:>12,} {'#' * round(40 * count / max(most, 1))}")


def _print_inputs(inputs: list[dict]) -> None:
    """A table with a row for each input, or the largest, and what the vocabulary lacks of the one that it suits worst."""
    shown = sorted(inputs, key=lambda part: -part["tokens"])[:MOST_INPUTS] if len(inputs) > MOST_INPUTS else inputs
    head = ("input", "documents", "tokens", "per word", "per character", "unknown")
    rows = [
        (
            part["input"],
            f"{part['documents']:,}",
            f"{part['tokens']:,}",
            f"{part['tokens_per_word']:.3f}",
            f"{part['tokens_per_character']:.3f}",
            f"{part['unknown_rate']:.4%}",
        )
        for part in shown
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print("  by input (tokens per word and per character; unknown of tokens)")
    for name, *values in (head, *rows):
        cells = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        print(f"    {name:<{widths[0]}}  {'  '.join(cells)}")
    if len(shown) < len(inputs):
        print(f"    … {len(inputs) - len(shown):,} smaller inputs: prepare.json has them all")
    worst = max(inputs, key=lambda part: part["unknown_rate"])
    if worst["unknown_rate"] > 0:
        print(f"    commonest unknown characters of {worst['input']}: {commonest_unknown(worst['unknown_characters'])}")


def commonest_unknown(characters: dict[str, int]) -> str:
    """The commonest characters that a vocabulary lacks, or that it lacks none but longer parts of words."""
    most = commonest(characters, MOST_UNKNOWN)
    return " ".join(most) if most else "none: the words are too long, or lack their later characters"
