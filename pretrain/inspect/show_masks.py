"""``spanbert masks``: what span masking does to a text, in the terminal or as a page.

A text is masked exactly as in pretraining: cut into blocks of the block length, one draw for each epoch.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from pretrain.data.unigram import read_unigram_counts
from pretrain.inspect.mask_html import PAGE_BEGIN, page
from pretrain.inspect.mask_text import render
from pretrain.inspect.mask_view import Draw, describe
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.config import check_range
from spanbert.errors import UserError
from spanbert.files import TEXT_BYTES, check_writable, read_bounded, write_atomic
from spanbert.model.batch import pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import tokenizer_path


@dataclass(frozen=True)
class MasksConfig:
    """Show which words of a text are masked, with which boundaries and targets."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT …]")] = ()
    """Texts to mask; - reads them from standard input, one a line. The schemes entities and noun_phrases, and --words annotated,
    want spans marked in the text: "[[New York]] is large", "[[北京]][[大学]]在[[海淀区]]"."""
    tokenizer: Path | None = None
    """Tokenizer folder, vocab.txt or tokenizer.json (left out: the bundled one), or a folder that
    `spanbert prepare` wrote, whose token frequencies random tokens are then drawn from."""
    seed: int = 0
    """Seed of the masks."""
    draws: int = 1
    """How many masks of each text to show: draw n is what epoch n − 1 would see."""
    block_length: int = 512
    """Tokens in a block, with [CLS] and [SEP]; a longer text is cut as in pretraining."""
    sbo_positions: int = 20
    """Targets further into their span than this have no SBO target."""
    html: Path | None = None
    """Write a page instead of printing; an existing file is replaced only if it is such a page."""
    overwrite: bool = False
    """Replace the file of --html whatever it is."""
    mask: Annotated[MaskConfig, tyro.conf.arg(name="")] = field(default_factory=MaskConfig)


def run_masks(config: MasksConfig) -> None:
    """Mask, then print or write a page."""
    check_range(config, 1, 10_000, "draws", "sbo_positions")
    check_range(config, 3, 1_000_000, "block_length")  # [CLS], a token, [SEP]
    check_range(config, 0, 2**63, "seed", below=True)
    if config.html is not None:
        check_writable(config.html, "file", "--html")
        if not config.overwrite:
            _check_page(config.html)
    tokenizer, masker, note = make_masker(config)
    texts = read_texts(config.texts)
    draws = []
    for number, text in enumerate(texts, 1):
        name = f"text {number}, " if len(texts) > 1 else ""
        draws += draw_masks(text, tokenizer, masker, config, name)
    if not any(draw.targets for draw in draws):
        raise UserError("there is nothing to mask: the text holds no word that the tokenizer knows")
    of_words = ", words as annotated" if config.mask.words == "annotated" else ""
    about = f"scheme {config.mask.scheme}{of_words}, seed {config.seed}; {note}"
    if config.html is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(render(draws, about, colour))
    else:
        write_atomic(config.html, page(draws, about))
        print(f"wrote {config.html}: open it in a browser")


def _check_page(path: Path) -> None:
    """Raise UserError when the file exists and is no page of this command: its name may be a mistake."""
    if path.exists():
        with path.open("rb") as handle:
            if PAGE_BEGIN not in handle.read(1000):
                raise UserError(f"--html {path} exists and is not such a page: choose another name, or --overwrite")


def make_masker(config: MasksConfig) -> tuple[Tokenizer, Masker, str]:
    """The tokenizer, the masker, and where its random tokens come from."""
    path = config.tokenizer if config.tokenizer is not None else tokenizer_path()
    counts_path = path / "unigram.npy"
    tokenizer = Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path)
    counts, note = None, "random tokens drawn evenly from the vocabulary"
    if counts_path.is_file() and config.mask.replacement == "unigram":
        counts, note = read_unigram_counts(path, tokenizer.vocab_size), f"random tokens drawn by frequency in {path}"
    masker = Masker.from_tokenizer(
        config.mask, tokenizer, seed=config.seed, unigram_counts=counts, sbo_positions=config.sbo_positions
    )
    return tokenizer, masker, note


def read_texts(texts: tuple[str, ...]) -> list[str]:
    """The texts given, with the lines of standard input in the place of "-". Raises UserError when there are none."""
    found: list[str] = []
    for text in texts:
        found += _typed_lines() if text == "-" else [text]
    found = [text for text in found if text.strip()]
    if not found:
        raise UserError('there is no text to mask: spanbert masks "any text", or - for standard input')
    return found


def _typed_lines() -> list[str]:
    try:
        text = read_bounded("-", TEXT_BYTES, "the texts").decode("utf-8-sig")
        return [line.rstrip("\r") for line in text.split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text (byte {error.start})") from None


def take_marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its [[…]] marks, and the (start, end) characters that were marked."""
    plain, spans = "", []
    for number, part in enumerate(re.split(r"\[\[(.+?)\]\]", text)):
        if number % 2:
            spans.append((len(plain), len(plain) + len(part)))
        plain += part
    return plain, spans


def draw_masks(text: str, tokenizer: Tokenizer, masker: Masker, config: MasksConfig, name: str = "") -> list[Draw]:
    """Every draw of every block of one text. A block's number within its text is its sequence index, so that a text's
    masks do not depend on the others given."""
    marked: list[tuple[int, int]] = []
    needs_spans = config.mask.needs_spans
    if needs_spans:
        text, marked = take_marked(text)
        if not marked:
            what = "--words annotated" if config.mask.words == "annotated" else f"scheme {config.mask.scheme}"
            raise UserError(f'{what} needs spans: mark them in the text, "[[New York]] is large"')
    ids, offsets = tokenizer.encode(text)
    room = config.block_length - 2
    draws = []
    for index, begin in enumerate(range(0, len(ids), room)):
        block, places = ids[begin : begin + room], offsets[begin : begin + room]
        packed = pack_sequences([(block,)], tokenizer.cls_id, tokenizer.sep_id)
        flat_ids = packed.input_ids_T
        inside = [np.flatnonzero((places[:, 0] < end) & (places[:, 1] > start)) for start, end in marked]
        pairs = np.array([(at[0], at[-1] + 1) for at in inside if len(at)], np.int64).reshape(-1, 2)
        spans = [pairs] if needs_spans else None
        for epoch in range(config.draws):
            batch = masker.mask(packed, epoch=epoch, indices=np.array([index]), spans=spans)
            title = name + f"tokens {begin + 1}–{begin + len(block)}, " * (len(ids) > room) + f"draw {epoch + 1}"
            draws.append(describe(title, text, places, flat_ids, batch, tokenizer))
    return draws
