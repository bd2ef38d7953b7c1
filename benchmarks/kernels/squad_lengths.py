"""The length distribution of question-answering windows: how the bundled histogram was made.

    python -m benchmarks.kernels.squad_lengths train-v1.1.json.gz bert-base-cased-vocab.txt benchmarks/squad_windows.json

A window is `[CLS] question [SEP] part of the context [SEP]`: the question cut to 64 tokens, 384 tokens in all, and the
next window of a long context starts 128 tokens after the last one. Only the histogram is kept: how many windows have
each length. `draw_lengths` turns it back into batches, which is what a fine-tuning step really sees: on SQuAD 1.1 more
than half of a batch padded to 384 would be padding.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

HISTOGRAM = Path(__file__).with_name("squad_windows.json")
WINDOW, STEP, QUESTION = 384, 128, 64


def window_lengths(question: int, context: int) -> list[int]:
    """Lengths of the windows of one question (tokens) over one context (tokens)."""
    question = min(question, QUESTION)
    room = WINDOW - question - 3
    lengths, start = [], 0
    while True:
        taken = min(room, context - start)
        lengths.append(question + taken + 3)
        if start + taken >= context:
            return lengths
        start += STEP


def count_windows(squad_path: Path, vocab_path: Path) -> Counter[int]:
    """Counter of window lengths over a SQuAD 1.1 or 2.0 file (JSON, gzipped or not)."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(vocab_path), lowercase=False)
    opener = gzip.open if squad_path.suffix == ".gz" else open
    with opener(squad_path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    counts: Counter[int] = Counter()
    for article in articles:
        for paragraph in article["paragraphs"]:
            texts = [paragraph["context"]] + [qa["question"] for qa in paragraph["qas"]]
            context, *questions = (len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False))
            for question in questions:
                counts.update(window_lengths(question, context))
    return counts


def draw_lengths(tokens: int, seed: int = 0, histogram: Path = HISTOGRAM) -> list[int]:
    """Window lengths drawn from the histogram until the batch holds about `tokens` tokens (never more)."""
    record = json.loads(histogram.read_text())
    lengths = np.array([int(k) for k in record["windows_of_length"]])
    counts = np.array(list(record["windows_of_length"].values()), dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(lengths, size=tokens // int(lengths.min()) + 1, p=counts / counts.sum())
    return [int(x) for x in drawn[np.cumsum(drawn) <= tokens]]


def main() -> None:
    squad_path, vocab_path, out_path = map(Path, sys.argv[1:4])
    counts = count_windows(squad_path, vocab_path)
    lengths = np.repeat(list(counts), list(counts.values()))
    record = {
        "what": f"windows of {WINDOW} tokens, step {STEP}, question cut to {QUESTION}",
        "data": squad_path.name,
        "vocabulary": vocab_path.name,
        "command": "python -m benchmarks.kernels.squad_lengths " + " ".join(Path(a).name for a in sys.argv[1:4]),
        "windows": int(lengths.size),
        "mean": round(float(lengths.mean()), 2),
        "median": float(np.median(lengths)),
        "windows_of_length": {str(k): counts[k] for k in sorted(counts)},
    }
    out_path.write_text(json.dumps(record, indent=None) + "\n")
    print({k: v for k, v in record.items() if k != "windows_of_length"})


if __name__ == "__main__":
    main()
