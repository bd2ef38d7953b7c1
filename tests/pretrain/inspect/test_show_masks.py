"""`spanbert masks`: the printed text and table, the page, and mistakes."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pretrain.inspect.mask_text import render, width
from pretrain.inspect.show_masks import MasksConfig, draw_masks, make_masker, read_texts, run_masks, take_marked
from pretrain.masking.masker import MaskConfig
from spanbert.errors import UserError
from spanbert.terminal import colour
from spanbert.tokenizer.wordpiece import Tokenizer

WORDS = "the quick brown fox jump ##s ##ed over lazy dog New York is a large city . , Ann said 漢 字 & < > ##ly"
TEXT = "the quick brown fox jumps over the lazy dog, said Ann. New York is a large city."


@pytest.fixture
def tokenizer_folder(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    Tokenizer({piece: number for number, piece in enumerate(pieces)}).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def shown(config):
    """The draws of a configuration's texts, as run_masks makes them."""
    tokenizer, masker, _ = make_masker(config)
    return [draw for text in config.texts for draw in draw_masks(text, tokenizer, masker, config)]


def test_prints_spans_boundaries_and_targets(tokenizer_folder, capsys):
    run_masks(MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder))
    out = capsys.readouterr().out
    (draw,) = shown(MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder))
    line = next(line for line in out.splitlines() if "[SEP]" in line)
    assert re.sub(r"[{}<>~=]|\[(CLS|SEP)\] ?", "", line).strip() == TEXT  # the text itself, and marks
    assert "\033" not in out
    masked = re.findall(r"\{[~=]?([^}]*)\}", line)
    assert len(masked) == len({target.span for target in draw.targets})
    assert len(re.findall(r"<[^>]+>", line)) == sum(piece.is_boundary for piece in draw.tokens)
    for target in draw.targets:
        row = next(row for row in out.splitlines() if row.split()[-3:-1] == [str(target.position), target.token])
        assert row.endswith("kept" if target.stand_in == "kept" else target.seen)
    assert f"{len(draw.targets)} of {len(draw.tokens) - 2} tokens masked" in out


def test_a_target_knows_its_boundaries_and_position(tokenizer_folder):
    for draw in shown(MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder, draws=30, sbo_positions=2)):
        tokens = [piece.token for piece in draw.tokens]
        for target in draw.targets:
            inside = [i for i, span in enumerate(draw.span_of) if span == target.span]
            assert tokens[inside[target.position - 1]] == target.token
            assert (tokens[inside[0] - 1], tokens[inside[-1] + 1]) == (target.left, target.right)
            assert target.has_sbo == (target.position <= 2)
            assert (target.seen == "[MASK]") == (target.stand_in == "mask")
            assert (target.seen == target.token) == (target.stand_in == "kept")


def test_marked_words_are_masked_whole(tokenizer_folder, capsys):
    """漢字 is one word of two tokens where it is marked as one, and two words where it is not."""
    texts = ("the [[漢字]] said",)
    runs = {}
    for words in ("annotated", "tokenizer"):
        mask = MaskConfig(scheme="whole_word", words=words, mask_share=0.4)
        text = texts if words == "annotated" else ("the 漢字 said",)
        config = MasksConfig(texts=text, tokenizer=tokenizer_folder, draws=40, mask=mask)
        runs[words] = {tuple(target.token for target in draw.targets) for draw in shown(config)}
    assert {found for found in runs["annotated"] if set("漢字") & set(found)} == {("漢", "字")}
    assert {("the", "漢"), ("字", "said")} <= runs["tokenizer"]
    run_masks(MasksConfig(texts=texts, tokenizer=tokenizer_folder, mask=MaskConfig(words="annotated")))
    assert "scheme geometric, words as annotated" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--words annotated needs spans: mark them"):
        run_masks(MasksConfig(texts=("the 漢字",), tokenizer=tokenizer_folder, mask=MaskConfig(words="annotated")))


def test_all_three_stand_ins_are_shown(tokenizer_folder):
    draws = shown(MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder, draws=60))
    assert {target.stand_in for draw in draws for target in draw.targets} == {"mask", "random", "kept"}
    plain = render(draws, "", colour=False)
    assert "{~" in plain and "{=" in plain
    coloured = render(draws, "", colour=True)
    assert coloured.count(colour("0")) == coloured.count("\033") / 2


def test_colour_only_on_a_terminal_and_unless_refused(tokenizer_folder, capsys, monkeypatch):
    config = MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run_masks(config)
    assert "\033" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run_masks(config)
    assert "\033" not in capsys.readouterr().out


def test_short_texts_several_texts_and_standard_input(tokenizer_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the fox\r\n\nlazy dog\n")))
    run_masks(MasksConfig(texts=("Ann", "-", "漢字"), tokenizer=tokenizer_folder, draws=2))
    out = capsys.readouterr().out
    assert out.count("tokens masked") == 8
    assert "text 1, draw 1: 1 of 1 tokens masked (100.0 %) in 1 span" in out
    assert "text 4, draw 2: 1 of 2 tokens masked (50.0 %) in 1 span" in out


def test_a_long_text_is_cut_into_blocks_and_loses_nothing(tokenizer_folder):
    draws = shown(MasksConfig(texts=(" ".join([TEXT] * 5),), tokenizer=tokenizer_folder, block_length=22))
    whole = "".join(piece.gap + piece.text for draw in draws for piece in draw.tokens[1:-1])
    assert "".join(whole.split()) == "".join(TEXT.split()) * 5
    assert all(len(draw.tokens) <= 22 for draw in draws)
    assert draws[1].title.startswith("tokens 21–40, ")


def test_marked_spans_for_the_linguistic_schemes(tokenizer_folder, capsys):
    assert take_marked("[[New York]] is [[a]] city") == ("New York is a city", [(0, 8), (12, 13)])
    text = "the fox jumps over a dog. " * 3 + "[[New York]] is large. " + "the lazy fox jumps. " * 4
    config = MasksConfig(texts=(text,), tokenizer=tokenizer_folder, mask=MaskConfig(scheme="entities"), draws=20)
    spans = set()
    for draw in shown(config):
        for number in {target.span for target in draw.targets}:
            spans.add(" ".join(target.token for target in draw.targets if target.span == number))
    assert "New York" in spans
    with pytest.raises(UserError, match=r"\[\[New York\]\]"):
        run_masks(MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder, mask=MaskConfig(scheme="entities")))


def test_a_prepared_corpus_gives_its_frequencies(tokenizer_folder, tmp_path):
    counts = np.zeros(Tokenizer.load(tokenizer_folder).vocab_size, np.int64)
    counts[[0, 7]] = 5  # only one ordinary token was ever seen
    np.save(tmp_path / "unigram.npy", counts)
    config = MasksConfig(texts=(TEXT,), tokenizer=tmp_path, draws=40)
    seen = {target.seen for draw in shown(config) for target in draw.targets if target.stand_in == "random"}
    assert seen == {Tokenizer.load(tokenizer_folder).token(7)}
    assert "frequency" in make_masker(config)[2]


class Checker(HTMLParser):
    """Collects text and attributes, and insists that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.text += data


def test_the_page_is_whole_escaped_and_needs_nothing_else(tokenizer_folder, tmp_path, capsys):
    text = f"{TEXT} <script>alert('the fox') & dog</script>"
    target = tmp_path / "masks.html"
    run_masks(MasksConfig(texts=(text, TEXT), tokenizer=tokenizer_folder, draws=3, html=target))
    assert str(target) in capsys.readouterr().out
    content = target.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(content)
    assert checker.open == []
    assert content.count("<script>") == 1  # the page's own
    assert not any(name in ("src", "href") for name, _ in checker.attributes)
    assert "prefers-color-scheme: dark" in content
    for draw in shown(MasksConfig(texts=(text,), tokenizer=tokenizer_folder, draws=3)):
        assert draw.summary in checker.text


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"texts": ()}, "no text"),
        ({"texts": ("  ",)}, "no text"),
        ({"texts": ("☃☃",)}, "nothing to mask"),
        ({"draws": 0}, "draws"),
        ({"block_length": 2}, "block_length is 2: expected 3 to"),
    ],
)
def test_mistakes_are_one_sentence(tokenizer_folder, settings, message):
    with pytest.raises(UserError, match=message):
        run_masks(MasksConfig(**{"texts": (TEXT,), "tokenizer": tokenizer_folder, **settings}))


def test_columns_of_wide_and_combining_characters():
    assert [width(text) for text in ("ab", "漢字", "e\u0301")] == [2, 4, 1]


def test_a_page_replaces_only_a_page(tmp_path, tokenizer_folder):
    """--html notes.txt overwrote the notes."""
    config = MasksConfig(texts=(TEXT,), tokenizer=tokenizer_folder, html=tmp_path / "a.html")
    run_masks(config)
    run_masks(config)
    (tmp_path / "notes.txt").write_text("notes")
    mistaken = dataclasses.replace(config, html=tmp_path / "notes.txt")
    with pytest.raises(UserError, match="exists and is not such a page"):
        run_masks(mistaken)
    assert (tmp_path / "notes.txt").read_text() == "notes"
    run_masks(dataclasses.replace(mistaken, overwrite=True))
    assert (tmp_path / "notes.txt").read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="is a folder"):
        run_masks(dataclasses.replace(config, html=tmp_path))


def test_standard_input_that_is_not_text_is_said(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fox \xff")))
    with pytest.raises(UserError, match=r"standard input is not UTF-8 text \(byte 4\)"):
        read_texts(("-",))
