"""Train a WordPiece vocabulary on a sample of the corpus: the command `spanbert tokenizer train`."""

from __future__ import annotations

import hashlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, trainers
from tqdm import tqdm

from pretrain.data.corpus import Corpus, Document
from spanbert.config import check_range
from spanbert.errors import UserError
from spanbert.files import atomic_folder, check_writable
from spanbert.tokenizer.vocabulary_files import FILES
from spanbert.tokenizer.wordpiece import CONTINUATION, SPECIAL_TOKENS, Tokenizer, bert_normalizer


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """Train a WordPiece vocabulary."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files (.txt, .jsonl, .ndjson, .json, .parquet, each also .gz/.bz2/.xz/.zst), folders, hf:NAME[:CONFIG[:SPLIT]], or -
    (standard input)."""
    output: Path
    """Folder to write: tokenizer.json, vocab.txt, tokenizer_config.json."""
    vocab_size: int = 28_996
    """Tokens in the vocabulary, special tokens included (28,996: as the released SpanBERT models)."""
    lowercase: bool = False
    """Lower-case the text and strip accents (BERT's "uncased"). SpanBERT is cased."""
    sample_mb: float = 64.0
    """Train on a random sample of whole documents of at most this many MB of text; 0 takes everything."""
    smoothing: float = 1.0
    """With several inputs, each a language: an input with the share p of the text gets a share of the sample proportional to
    p to this power. 1 leaves the shares, 0.7 (multilingual BERT's) lifts small languages, 0 makes all equal."""
    min_frequency: int = 2
    """A merge of two tokens must occur this often."""
    character_coverage: float = 0.9999
    """Rarest characters are left out ([UNK]) beyond this share of the sample's characters."""
    text_field: str = "text"
    """Field or column that holds the text in JSON, parquet and Hugging Face data sets; a.b is field b of the object in a."""
    document_per_file: bool = False
    """Each text file is one document; otherwise blank lines separate documents."""
    seed: int = 0
    """Seed of the sample."""


def run_train_tokenizer(config: TrainTokenizerConfig) -> None:
    check_range(config, 2 * len(SPECIAL_TOKENS), 10_000_000, "vocab_size")
    check_range(config, 1, 2**63, "min_frequency", below=True)
    check_range(config, 0, math.inf, "sample_mb")
    check_range(config, 0, 1, "smoothing")
    if config.smoothing < 1 and len(config.inputs) < 2:
        raise UserError(
            "--smoothing shares the sample out among inputs, and there is one: name a file or folder for each language"
        )
    check_range(config, 0, 2**63, "seed", below=True)
    if not 0 < config.character_coverage <= 1:
        raise UserError(f"--character-coverage {config.character_coverage} is not in (0, 1]")
    check_output(config.output)
    check_writable(config.output, "folder")
    began = time.perf_counter()
    corpus = Corpus(config.inputs, text_field=config.text_field, document_per_file=config.document_per_file)
    sample = sample_documents(corpus, config.sample_mb, config.seed, config.smoothing)
    texts = sample.texts
    if not texts:
        raise UserError(f"no text found in {', '.join(config.inputs)}")
    print(
        f"training on {len(texts):,} of {corpus.counts.documents:,} documents: "
        f"{sum(sample.taken.values()) / 1e6:.1f} of {sum(sample.read.values()) / 1e6:.1f} MB "
        f"(sample limit {config.sample_mb:g} MB, seed {config.seed})"
    )
    for number, name in enumerate(config.inputs if len(config.inputs) > 1 else ()):
        print(f"  {name}: {describe_share(sample.taken, number)} of {describe_share(sample.read, number)}")
    tokenizer = train_wordpiece(
        texts,
        config.vocab_size,
        lowercase=config.lowercase,
        min_frequency=config.min_frequency,
        character_coverage=config.character_coverage,
    )
    check_output(config.output)  # somebody may have put something there meanwhile
    with atomic_folder(config.output) as folder:
        tokenizer.save(folder)
    if tokenizer.vocab_size < config.vocab_size:
        print(f"note: the text gave {tokenizer.vocab_size:,} tokens, fewer than the {config.vocab_size:,} asked for")
    print(f"wrote {config.output}: {tokenizer.vocab_size:,} tokens in {time.perf_counter() - began:.0f} s")
    print(f"next: spanbert prepare {' '.join(config.inputs)} --tokenizer {config.output} --output CORPUS_FOLDER")


def check_output(folder: Path) -> None:
    """Raise UserError when the folder holds anything but a tokenizer: a model's weights belong to its vocabulary."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: name a folder for the tokenizer")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if others:
        raise UserError(
            f"{folder} holds {others[0]}{f' and {len(others) - 1} more' * (len(others) > 1)}, which is no part of a "
            "tokenizer: choose another --output (a model would lose the vocabulary that its weights belong to)"
        )


class Sample(NamedTuple):
    """texts: in corpus order. read, taken: bytes of UTF-8 in all and in the sample, by number of the input."""

    texts: list[str]
    read: dict[int, int]
    taken: dict[int, int]


def describe_share(bytes_of: dict[int, int], number: int) -> str:
    share = bytes_of.get(number, 0) / max(sum(bytes_of.values()), 1)
    return f"{bytes_of.get(number, 0) / 1e6:.1f} MB ({share:.1%})"


class _Entry(NamedTuple):
    negative_priority: int
    position: int
    text: str
    size: int
    input: int


class _Reservoir:
    """A uniform sample of at most `limit` bytes of documents, in one pass and bounded memory.

    Each document has a random priority; the lowest that fit are kept. So to lower the limit afterwards leaves what
    the lower one would have kept from the beginning.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.held = limit, 0
        self.kept: list[_Entry] = []  # heap by highest priority value, to drop first
        self._threshold: int | None = None  # once something was dropped, only smaller priorities may enter

    def offer(self, entry: _Entry) -> None:
        if self._threshold is None or -entry.negative_priority < self._threshold:
            heapq.heappush(self.kept, entry)
            self.held += entry.size
            self.shrink(self.limit)

    def shrink(self, limit: float) -> None:
        self.limit = limit
        while self.held > limit and len(self.kept) > 1:
            dropped = heapq.heappop(self.kept)
            self.held, self._threshold = self.held - dropped.size, -dropped.negative_priority


def sample_documents(corpus: Iterable[Document], limit_mb: float, seed: int, smoothing: float = 1.0) -> Sample:
    """A random sample of whole documents of at most `limit_mb` MB in UTF-8 (0: no limit), in corpus order.

    With a smoothing below 1 the inputs' shares of it are those of `smoothed_limits`, for which up to `limit_mb` of each
    input are held in memory while reading; else it is uniform over all documents. A document's priority is drawn from
    (seed, position), so the sample does not depend on anything else.
    """
    limit = limit_mb * 1e6 if limit_mb > 0 else float("inf")
    reservoirs: dict[int, _Reservoir] = {}
    read: Counter[int] = Counter()
    with _reading_bar(corpus) as bar:
        for position, document in enumerate(corpus):
            size = len(document.text) if document.text.isascii() else len(document.text.encode())
            read[document.input] += size
            digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
            pool = document.input if smoothing < 1 else 0
            reservoir = reservoirs.setdefault(pool, _Reservoir(limit))
            priority = int.from_bytes(digest, "big")
            reservoir.offer(_Entry(-priority, position, document.text, size, document.input))
            if isinstance(corpus, Corpus):
                bar.update(corpus.progress.bytes - bar.n)
    if smoothing < 1:
        for number, share in smoothed_limits(read, limit, smoothing).items():
            reservoirs[number].shrink(share)
    kept = sorted(
        (entry for reservoir in reservoirs.values() for entry in reservoir.kept), key=lambda entry: entry.position
    )
    taken: Counter[int] = Counter()
    for entry in kept:
        taken[entry.input] += entry.size
    return Sample([entry.text for entry in kept], dict(read), dict(taken))


def smoothed_limits(read: dict[int, int], limit: float, smoothing: float) -> dict[int, float]:
    """Bytes of each input in the largest sample, up to `limit` bytes, that has the smoothed shares and repeats nothing.

    An input with the share p of all text gets the share p^smoothing / Σ p^smoothing (as multilingual BERT and XLM: Conneau &
    Lample 2019). The text that is scarcest beside its share decides how large the sample can be.
    """
    weight = {number: (size / sum(read.values())) ** smoothing for number, size in read.items()}
    share = {number: one / sum(weight.values()) for number, one in weight.items()}
    whole = min([limit, *(size / share[number] for number, size in read.items())])
    return {number: share[number] * whole for number in read}


def _reading_bar(corpus: Iterable[Document]) -> tqdm:
    total = corpus.stored_bytes if isinstance(corpus, Corpus) else None
    return tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=total is None, mininterval=0.5)


def train_wordpiece(
    texts: Sequence[str],
    vocab_size: int,
    *,
    lowercase: bool = False,
    min_frequency: int = 2,
    character_coverage: float = 0.9999,
) -> Tokenizer:
    """A WordPiece vocabulary: [PAD] [UNK] [CLS] [SEP] [MASK] as ids 0…4, then characters, then merged tokens.

    Deterministic: equal texts give an equal vocabulary. The library numbers continuation characters ("##x") in the
    order of a randomised hash map and breaks ties between merges by those numbers; so they are all numbered here,
    by handing the whole alphabet to it sorted, as special tokens of the training tokenizer.
    """
    normalizer = bert_normalizer(lowercase, None, True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    single, continuing = choose_alphabet(counts, character_coverage, (vocab_size - len(SPECIAL_TOKENS)) // 2)
    fixed = [*SPECIAL_TOKENS, *single, *(CONTINUATION + c for c in continuing)]
    trainee = FastTokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    trainee.normalizer = normalizer
    trainee.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=fixed,
        initial_alphabet=single,
        limit_alphabet=len(single),
        continuing_subword_prefix=CONTINUATION,
        show_progress=True,
    )
    trainee.train_from_iterator(texts, trainer, length=len(texts))
    return Tokenizer(trainee.get_vocab(with_added_tokens=False), lowercase=lowercase)


def choose_alphabet(counts: Counter[str], coverage: float, limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters that make up `coverage` of the text, at most `limit` tokens of vocabulary.

    Returns (characters, those that can continue a word), both sorted: a Chinese character or a punctuation mark is
    always a word of its own and needs no "##" form.
    """
    splitter, normalizer = pre_tokenizers.BertPreTokenizer(), bert_normalizer(False, None, True)
    visible = {c: n for c, n in counts.items() if not c.isspace()}
    total, covered, used = sum(visible.values()), 0, 0
    single: list[str] = []
    continuing: list[str] = []
    for character, count in sorted(visible.items(), key=lambda item: (-item[1], item[0])):
        if covered >= coverage * total or used >= limit:
            break
        continues = len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{character}a"))) == 1
        single.append(character)
        used += 1
        if continues:
            continuing.append(character)
            used += 1
        covered += count
    return sorted(single), sorted(continuing)
