"""What a model may have seen before its examination: evaluation texts in the pretraining corpus and in the training file.

    python -m benchmarks.release.contamination dev-v1.1.json.gz --corpus wikipedia.txt.xz --train train-v1.1.json.gz \
      [--predictions qa/predictions.json] [--json contamination.json]

SQuAD's paragraphs are Wikipedia's, so a corpus made from Wikipedia holds some of them: not the questions and answers,
but the texts to answer from. A text is compared by its windows of 13 words (lower case, without punctuation), a length at
which two texts share a window by copying and hardly by chance; it counts as seen when at least half of its windows
occur. Memory is bounded: only the windows of the evaluation file are kept, as 64-bit hashes, while the corpus
streams by. With predictions, EM and F1 are given apart for the questions on seen and on unseen paragraphs. Ends with
status 1 when a paragraph of the evaluation file is whole in a training file. (Parts may be: Wikipedia's articles quote one
another, and three paragraphs of SQuAD 1.1 dev are more than half in articles of its training file.)
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from finetune.tasks.qa.metrics import qa_metrics
from finetune.tasks.qa.records import Paragraph, read_questions
from pretrain.data.corpus import Corpus
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import write_atomic

MOST_WORDS = 2_000_000  # remembered hashes of words; then it starts again
BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class ContaminationConfig:
    """Look for an evaluation file's texts in a corpus and in training files."""

    file: tyro.conf.Positional[Path]
    """Labelled questions, as for `spanbert evaluate qa`."""
    corpus: tuple[str, ...] = ()
    """What the encoder was pretrained on, as for `spanbert prepare`."""
    train: tuple[Path, ...] = ()
    """What the model was fine-tuned on, as for `spanbert finetune qa`."""
    predictions: Path | None = None
    """Question id → answer, of the model in question."""
    words: int = 13
    """Words in a window."""
    share: float = 0.5
    """Share of its windows from which on a paragraph counts as seen."""
    json: Path | None = None
    """Also write the results here."""


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


class WindowHashes(dict):
    """Text → (windows,) uint64, one hash for every `length` neighbouring words. The same in every process."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __missing__(self, word: str) -> int:
        self[word] = value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        return value

    def of(self, text: str) -> np.ndarray:
        words = words_of(text)
        if len(self) > MOST_WORDS:
            self.clear()
        hashes = np.fromiter(map(self.__getitem__, words), np.uint64, len(words))
        count = max(len(words) - self.length + 1, 0)
        windows = np.zeros(count, np.uint64)
        for place in range(self.length if count else 0):
            windows = windows * BASE + hashes[place : place + count]
        return windows


def shares_found(paragraphs: list[str], texts: Iterable[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """How much of each paragraph occurs in the texts.

    → (paragraphs,) number of its windows that occur, (paragraphs,) number of its windows; one pass over the texts.
    """
    hashes = WindowHashes(length)
    own = [hashes.of(paragraph) for paragraph in paragraphs]
    lengths = np.array([len(windows) for windows in own])
    if not lengths.sum():
        return np.zeros_like(lengths), lengths
    wanted = np.unique(np.concatenate(own))
    found = np.zeros(len(wanted) + 1, bool)  # the last is for windows that nobody asked for
    for text in texts:
        windows = hashes.of(text)
        at = np.searchsorted(wanted, windows)
        at[wanted[np.minimum(at, len(wanted) - 1)] != windows] = len(wanted)
        found[at] = True
    found[-1] = False
    counts = [int(found[np.searchsorted(wanted, windows)].sum()) for windows in own]
    return np.array(counts), lengths


def measure(
    paragraphs: list[Paragraph], texts: Iterable[str], config: ContaminationConfig
) -> tuple[dict[str, Any], set[int]]:
    """→ figures, and which paragraphs count as seen."""
    found, windows = shares_found([p.context for p in paragraphs], texts, config.words)
    shares = found / np.maximum(windows, 1)
    seen = set(np.flatnonzero((shares >= config.share) & (windows > 0)).tolist())
    return {
        "paragraphs": len(paragraphs),
        "paragraphs_seen": len(seen),
        "paragraphs_whole": int(((found == windows) & (windows > 0)).sum()),
        "paragraphs_untouched": int((found == 0).sum()),
        "paragraphs_too_short": int((windows == 0).sum()),
        "questions": sum(len(p.questions) for p in paragraphs),
        "questions_on_seen": sum(len(paragraphs[i].questions) for i in seen),
        "windows": int(windows.sum()),
        "windows_found": int(found.sum()),
        "articles": len({p.article for p in paragraphs}),
        "articles_with_seen": len({paragraphs[i].article for i in seen}),
    }, seen


def scores(paragraphs: list[Paragraph], chosen: set[int], predictions: dict[str, str]) -> dict[str, Any]:
    """EM, F1 and how many questions, on the chosen paragraphs and on the others."""
    parts = {}
    for name, wanted in (("seen", True), ("unseen", False)):
        golds = {q.id: q.answers for i, p in enumerate(paragraphs) if (i in chosen) is wanted for q in p.questions}
        if golds:
            metrics = qa_metrics(golds, predictions, version_2=any(not answers for answers in golds.values()))
            parts[name] = {key: metrics[key] for key in ("exact", "f1", "total", "missing")}
    return parts


def shared_questions(paragraphs: list[Paragraph], training: list[Paragraph]) -> list[str]:
    """Questions of the evaluation file that are asked, word for word, in a training file too."""
    asked = {tuple(words_of(q.text)) for p in training for q in p.questions}
    return [q.text for p in paragraphs for q in p.questions if tuple(words_of(q.text)) in asked]


def corpus_texts(corpus: Corpus) -> Iterator[str]:
    with tqdm(total=corpus.stored_bytes, unit="B", unit_scale=True, desc="reading the corpus") as bar:
        for document in corpus:
            yield document.text
            bar.update(corpus.progress.bytes - bar.n)


def run(config: ContaminationConfig) -> dict[str, Any]:
    """All figures, printed and as a dictionary."""
    if config.words < 1 or not 0 < config.share <= 1:
        raise UserError("--words must be at least 1, --share above 0 and at most 1")
    if not config.corpus and not config.train:
        raise UserError("name what to compare with: --corpus, --train or both")
    paragraphs = read_questions(config.file, "evaluate").paragraphs
    result: dict[str, Any] = {"file": config.file.name, "words": config.words, "share": config.share}
    if config.corpus:
        corpus = Corpus(config.corpus)
        figures, seen = measure(paragraphs, corpus_texts(corpus), config)
        names = [Path(source).name for source in config.corpus]
        result["corpus"] = {"inputs": names, "documents": corpus.counts.documents, **figures}
        print(describe(", ".join(names), figures, config))
        if config.predictions is not None:
            result["scores"] = scores(paragraphs, seen, read_json(config.predictions))
            for name, part in result["scores"].items():
                print(
                    f"  {name} paragraphs: EM {part['exact']:.2f}   F1 {part['f1']:.2f}   ({part['total']:,} questions)"
                )
    result["train"] = []
    for path in config.train:
        training = read_questions(path, "train").paragraphs
        figures, _ = measure(paragraphs, (p.context for p in training), config)
        repeated = shared_questions(paragraphs, training)
        result["train"].append({"file": path.name, **figures, "questions_repeated": repeated})
        print(describe(path.name, figures, config))
        print(f"  questions asked in both, word for word: {len(repeated)}", *repeated[:5], sep="\n    ")
    if config.json is not None:
        write_atomic(config.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def describe(name: str, figures: dict[str, Any], config: ContaminationConfig) -> str:
    return (
        f"{name}: {figures['paragraphs_seen']:,} of {figures['paragraphs']:,} paragraphs have at least "
        f"{config.share:.0%} of their {config.words}-word windows there, {figures['paragraphs_whole']:,} all, "
        f"{figures['paragraphs_untouched']:,} none\n"
        f"  {figures['questions_on_seen']:,} of {figures['questions']:,} questions are on them; "
        f"{figures['windows_found']:,} of {figures['windows']:,} windows occur "
        f"({figures['windows_found'] / max(figures['windows'], 1):.1%}); "
        f"articles with such a paragraph: {figures['articles_with_seen']} of {figures['articles']}"
    )


def main() -> int:
    try:
        result = run(tyro.cli(ContaminationConfig, description=ContaminationConfig.__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any(part["paragraphs_whole"] for part in result["train"]) else 0


if __name__ == "__main__":
    sys.exit(main())
