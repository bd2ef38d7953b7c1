"""Chinese text to words: the command `spanbert segment`, whose span annotations make masks count words, not characters.

Chinese is written without spaces, and BERT's tokenizer makes a word of every character. jieba finds words by a dictionary
of frequencies, and by a hidden Markov model where that ends; its dictionary is of simplified characters for the most part.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from pretrain.data.corpus import Corpus
from pretrain.data.span_annotations import LONGEST_LINE
from spanbert.errors import UserError
from spanbert.files import atomic_file, check_writable

#: Of a text, its words in order, which together are the text.
Segment = Callable[[str], Iterator[str]]


@dataclass(frozen=True)
class SegmentConfig:
    """Write the words of Chinese text as span annotations, for `spanbert prepare --spans` and `--mask.words annotated`."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files (.txt, .jsonl, .ndjson, .json, .parquet, each also .gz/.bz2/.xz/.zst), folders, hf:NAME[:CONFIG[:SPLIT]], or -
    (standard input): the same as for `spanbert prepare`, in the same order."""
    output: Path
    """JSON lines to write, one a document: [[start, end], ...] in characters, of the words of two characters and more."""
    text_field: str = "text"
    """Field or column that holds the text in JSON, parquet and Hugging Face data sets; a.b is field b of the object in a."""
    document_per_file: bool = False
    """Each text file is one document; otherwise blank lines separate documents."""
    overwrite: bool = False
    """Replace the output file."""


def run_segment(config: SegmentConfig) -> None:
    check_writable(config.output, "file")
    if config.output.exists() and not config.overwrite:
        raise UserError(f"--output {config.output} exists: choose another name, or replace it with --overwrite")
    corpus = Corpus(config.inputs, text_field=config.text_field, document_per_file=config.document_per_file)
    if any(source != "-" and Path(source).resolve() == config.output.resolve() for source in corpus.sources):
        raise UserError(f"--output {config.output} is one of the inputs: choose another name")
    segment = load_jieba()
    began, words, characters = time.perf_counter(), 0, 0
    bar = tqdm(total=corpus.stored_bytes, unit="B", unit_scale=True, desc="segmenting", mininterval=0.5)
    with atomic_file(config.output) as handle, bar:
        for number, spans in enumerate(spans_of_documents(corpus, segment), start=1):
            line = json.dumps(spans, separators=(",", ":"))
            if len(line) >= LONGEST_LINE:
                raise UserError(
                    f"document {number} has {len(spans):,} words, more than a line of span annotations holds: split it"
                )
            handle.write(line.encode() + b"\n")
            words += len(spans)
            characters += sum(end - start for start, end in spans)
            bar.update(corpus.progress.bytes - bar.n)
        if corpus.counts.documents == corpus.counts.empty_documents:
            raise UserError(f"no text found in {', '.join(config.inputs)}")
    print(
        f"wrote {config.output}: {corpus.counts.documents:,} documents, {words:,} words of two characters and more "
        f"({characters / max(words, 1):.2f} on average) in {time.perf_counter() - began:.0f} s"
    )
    print(
        f"next: spanbert prepare {' '.join(config.inputs)} --spans {config.output} --tokenizer TOKENIZER --output CORPUS_FOLDER"
    )


def spans_of_documents(corpus: Corpus, segment: Segment) -> Iterator[list[tuple[int, int]]]:
    """For each document of a corpus, empty ones included, the spans of its words, in characters of the document."""
    index = 0
    spans: list[tuple[int, int]] = []
    for document in corpus:
        while index < document.index:  # the document before is whole; those between are empty
            yield spans
            index, spans = index + 1, []
        spans += [(start + document.start, end + document.start) for start, end in word_spans(document.text, segment)]
    while index < corpus.counts.documents:
        yield spans
        index, spans = index + 1, []


def word_spans(text: str, segment: Segment) -> Iterator[tuple[int, int]]:
    """(start, end) of the words with a Chinese character and another one: all others are words to any tokenizer."""
    end = 0
    for word in segment(text):
        start, end = end, end + len(word)
        if len(word) > 1 and any("\u3400" <= character <= "\u9fff" for character in word):
            yield start, end


def load_jieba() -> Segment:
    """jieba's cut, with a dictionary read for this process alone: jieba would keep one in the folder that all users share."""
    try:
        import jieba
    except ImportError:
        raise UserError("`spanbert segment` needs jieba: pip install 'spanbert[chinese]'") from None
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer.cut
