"""Words of Chinese text: found, written beside the corpus, and what masks are made of."""

import dataclasses
import json
import re

import numpy as np
import pytest

from pretrain.data.blocks import Blocks
from pretrain.data.corpus import Corpus
from pretrain.data.prepare import run_prepare
from pretrain.data.segment import SegmentConfig, run_segment, spans_of_documents, word_spans
from pretrain.data.train_tokenizer import train_wordpiece
from pretrain.masking.masker import MaskConfig, Masker, truncated_geometric
from spanbert.errors import UserError

PAIRS = ["北京", "大学", "海淀", "学生", "老師", "電腦", "山水", "火車"]  # no character is in two of them
DOCUMENT = "".join(PAIRS[i * i % 5 + i % 3] for i in range(300))  # 300 words of two characters, no sign between them


def by_pairs(text: str):
    """A segmenter that knows those words, and takes any other character by itself."""
    return iter(re.findall("|".join(PAIRS) + r"|(?s:.)", text))


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_words_of_several_characters_are_marked():
    """Latin words and single characters are words to the tokenizer as they are."""
    words = ["北京", "在", "Apple", " ", "T恤", "2010", "，", "火車", "山"]
    text = "".join(words)
    assert [text[a:b] for a, b in word_spans(text, lambda _: iter(words))] == ["北京", "T恤", "火車"]


def test_a_line_for_each_document_even_in_parts_or_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.corpus.PART_BYTES", 7)  # characters, of what comes as JSON
    texts = ["", "我在北京大学。", "", " ", "海淀 北京 在山水 火車", "x", ""]
    lines = list(spans_of_documents(Corpus((write_jsonl(tmp_path / "in.jsonl", texts),)), by_pairs))
    found = [[text[a:b] for a, b in spans] for text, spans in zip(texts, lines, strict=True)]
    assert found == [[], ["北京", "大学"], [], [], ["海淀", "北京", "山水", "火車"], [], []]


@pytest.fixture
def chinese(tmp_path, configure):
    """A corpus of one document in blocks of 50, with its words as annotations; and its tokenizer."""
    tokenizer = train_wordpiece([DOCUMENT], 40, min_frequency=1, character_coverage=1.0)
    tokenizer.save(tmp_path / "tok")
    inputs = (write_jsonl(tmp_path / "zh.jsonl", [DOCUMENT]),)
    (tmp_path / "words.jsonl").write_text(
        "".join(json.dumps(spans) + "\n" for spans in spans_of_documents(Corpus(inputs), by_pairs))
    )
    config = configure(
        inputs=inputs, tokenizer=tmp_path / "tok", spans=tmp_path / "words.jsonl", block_length=50, validation_share=0.0
    )
    run_prepare(config)
    return Blocks.open(config.output, "train"), tokenizer


def masks_of(blocks, tokenizer, draws=400, **settings):
    """(epoch, block, first token, tokens) of every masked run of all blocks, in many epochs."""
    masker = Masker.from_tokenizer(MaskConfig(**settings), tokenizer, seed=0)
    indices = np.repeat(np.arange(len(blocks)), draws)
    packed, spans = blocks.packed(indices)
    epochs = np.tile(np.arange(draws), len(blocks))
    batch = masker.mask(packed, epoch=epochs, indices=indices, spans=spans)
    row = np.searchsorted(packed.cu_seqlens, batch.targets.left_S, side="right") - 1
    size = batch.targets.right_S - batch.targets.left_S - 1
    return batch.targets.left_S - packed.cu_seqlens[row], size, packed.cu_seqlens[row + 1] - packed.cu_seqlens[row] - 2


@pytest.mark.parametrize("scheme", ["whole_word", "geometric"])
def test_chinese_words_of_two_characters_are_masked_whole(chinese, scheme):
    """Every block has 48 characters of 24 words. By the tokenizer's words, half of the runs begin inside of one."""
    blocks, tokenizer = chinese
    first, size, room = masks_of(blocks, tokenizer, scheme=scheme, words="annotated")
    assert (room % 2 == 0).all() and (first % 2 == 0).all() and (size % 2 == 0).all()
    first, size, _ = masks_of(blocks, tokenizer, scheme=scheme)
    assert 0.4 < (first % 2).mean() < 0.6 and (size % 2).any()


def test_geometric_lengths_are_counted_in_annotated_words(chinese):
    """A share of all but everything leaves the first span of a block as long as it was drawn."""
    blocks, tokenizer = chinese
    settings = {"max_span_words": 4, "mask_share": 8 / 48}  # eight characters: the longest span fits, and is then alone
    _, size, _ = masks_of(blocks, tokenizer, words="annotated", **settings)
    shares = np.bincount(size // 2, minlength=5)[1:] / len(size)
    assert size.max() == 8
    # the longest are never cut, since a shorter span before them would have left too little: those drawn first stay
    longest = (size == 8).sum() / (len(blocks) * 400)
    drawn = np.diff(truncated_geometric(0.2, 4), prepend=0)
    assert abs(longest - drawn[3]) < 4 * (drawn[3] * (1 - drawn[3]) / (len(blocks) * 400)) ** 0.5
    assert shares[0] > drawn[0]


def test_the_command_writes_what_prepare_reads(tmp_path, configure, capsys):
    pytest.importorskip("jieba")
    text = "北京大学在海淀区，1898年创办。"
    (tmp_path / "zh.txt").write_text(f"{text}\n\nonly English\n\n{text}", encoding="utf-8")
    inputs = (str(tmp_path / "zh.txt"),)
    config = SegmentConfig(inputs, tmp_path / "words.jsonl")
    run_segment(config)
    lines = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and lines[0] == lines[2] and lines[1] == []
    words = [text[a:b] for a, b in lines[0]]
    assert "海淀区" in words and all(len(word) > 1 for word in words)
    assert "3 documents" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"words\.jsonl exists"):
        run_segment(config)
    with pytest.raises(UserError, match="is one of the inputs"):
        run_segment(dataclasses.replace(config, output=tmp_path / "zh.txt", overwrite=True))
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no text found"):
        run_segment(SegmentConfig((str(tmp_path / "blank.txt"),), tmp_path / "words.jsonl", overwrite=True))
    assert [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()] == lines, "it stands"
    run_prepare(configure(inputs=inputs, spans=tmp_path / "words.jsonl"))


def test_without_jieba_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jieba", None)
    (tmp_path / "zh.txt").write_text("北京", encoding="utf-8")
    with pytest.raises(UserError, match=r"spanbert\[chinese\]"):
        run_segment(SegmentConfig((str(tmp_path / "zh.txt"),), tmp_path / "words.jsonl"))
