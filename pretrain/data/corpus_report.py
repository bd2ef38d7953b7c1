"""What a preparation found and made, as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict

from pretrain.data.corpus import ReadCounts
from pretrain.data.readers import describe_left_out
from pretrain.data.shards import ShardCounts

BINS = 8
MOST_UNKNOWN = 10


def make_report(counts: ShardCounts, read: ReadCounts, held_out: dict, block_length: int) -> dict:
    """All numbers that prepare.json keeps. A word is BERT's: split at white space, punctuation and Chinese characters."""
    blocks = sum(counts.block_lengths.values())
    width = -(-block_length // BINS)
    histogram = dict.fromkeys(
        (f"{low + 1}-{min(low + width, block_length)}" for low in range(0, block_length, width)), 0
    )
    names = list(histogram)
    for length, count in counts.block_lengths.items():
        histogram[names[(length + 2 - 1) // width]] += count
    return {
        **asdict(read),
        "words": counts.words,
        "tokens": counts.tokens,
        "tokens_per_word": round(counts.tokens / max(counts.words, 1), 4),
        "unknown_characters": dict(
            sorted(counts.unknown_characters.items(), key=lambda item: (-item[1], item[0]))[:MOST_UNKNOWN]
        ),
        "unknown_rate": counts.unknown / max(counts.tokens, 1),
        "no_token_documents": counts.no_token_documents,
        "blocks": blocks,
        "fill": round(counts.tokens / max(blocks * (block_length - 2), 1), 4),
        "block_length_histogram": histogram,
        "held_out": held_out,
        "spans": counts.spans,
        "dropped_spans": counts.dropped_spans,
    }


def print_report(report: dict) -> None:
    held = report["held_out"]
    lines = [
        ("documents", f"{report['documents']:,}"),
        ("words", f"{report['words']:,}"),
        ("tokens", f"{report['tokens']:,}"),
        ("tokens per word", f"{report['tokens_per_word']:.3f}"),
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
    print("  block length (with [CLS], [SEP])")
    histogram = report["block_length_histogram"]
    most = max(histogram.values())
    for name, count in histogram.items():
        print(f"    {name:>9} {count:>12,} {'#' * round(40 * count / max(most, 1))}")


def commonest_unknown(characters: dict[str, int]) -> str:
    """The commonest characters that a vocabulary lacks, or that it lacks none but longer parts of words."""
    commonest = sorted(characters, key=lambda character: (-characters[character], character))[:MOST_UNKNOWN]
    return " ".join(commonest) if commonest else "none: the words are too long, or lack their later characters"
