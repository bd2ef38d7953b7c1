"""What goes into the explorer's one file: weights in fewer bits, the tokenizer's classes of characters; what is refused.

That a browser reads it back, and that it is right, is the affair of test_standalone.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import normalizers, pre_tokenizers

from spanbert.checkpoint.architectures import WORDS
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import bundled_path
from web.explorer.pack import FIRST, character_classes, int8_rows, kind_of, pack, pack_tokenizer
from web.explorer.standalone import write_html


def test_int8_is_off_by_half_a_step_at_most():
    matrix = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 1e3, 0.0, 1e-20])[:, None]
    numbers, scale_R = int8_rows(matrix)
    assert numbers.dtype == torch.int8 and numbers[3].eq(0).all() and scale_R[3] == 0
    assert numbers[:3].abs().amax(1).eq(127).all()
    error = (numbers.float() * scale_R[:, None] - matrix).abs()
    assert (error <= 0.5001 * scale_R[:, None]).all()


def test_tensors_lie_where_their_entries_say():
    made = {
        "bert.encoder.w": torch.randn(3, 4),
        "bert.encoder.b": torch.randn(5),
        "cls.predictions.w": torch.randn(2, 3),
    }
    packed = pack(made, "int8")
    kinds = {name: entry["kind"] for name, entry in packed.tensors.items()}
    assert kinds == {"bert.encoder.w": "int8", "bert.encoder.b": "fp32", "cls.predictions.w": "bf16"}
    assert [entry["begin"] for entry in packed.tensors.values()] == [0, 3 * 4 + 12, 3 * 4 + 12 + 5 * 4]
    numbers, scale_R = int8_rows(made["bert.encoder.w"])
    assert np.frombuffer(packed.data, "<f4", 3).tolist() == scale_R.tolist()
    assert np.frombuffer(packed.data, np.int8, 12, 12).tolist() == numbers.flatten().tolist()
    assert np.frombuffer(packed.data, "<f4", 5, 24).tolist() == made["bert.encoder.b"].tolist()
    high, low = np.frombuffer(packed.data, np.uint8, 12, 44).reshape(2, 6).astype(np.uint32)
    halves = ((high << 24) | (low << 16)).view("<f4")
    assert halves.tolist() == made["cls.predictions.w"].to(torch.bfloat16).float().flatten().tolist()
    assert all(kind_of(name, tensor, "bf16") == "bf16" for name, tensor in made.items())


def test_the_first_word_embeddings_are_exact_and_the_others_int8():
    matrix = torch.randn(FIRST + 3, 4).to(torch.bfloat16).float()
    packed = pack({WORDS: matrix}, "int8")
    assert packed.tensors[WORDS] == {"shape": [FIRST + 3, 4], "kind": "first", "begin": 0, "first": FIRST}
    high, low = np.frombuffer(packed.data, np.uint8, 8 * FIRST).reshape(2, 4 * FIRST).astype(np.uint32)
    assert ((high << 24) | (low << 16)).view("<f4").tolist() == matrix[:FIRST].flatten().tolist()
    numbers, scale_R = int8_rows(matrix[FIRST:])
    assert packed.data[8 * FIRST :] == scale_R.numpy().tobytes() + numbers.numpy().tobytes()
    assert pack({WORDS: matrix[:5]}, "int8").tensors[WORDS]["first"] == 5


def test_classes_of_characters_are_those_of_the_library():
    """Asked of the library one by one: at the ends of all ranges and beyond them, and of characters at random."""
    classes = character_classes()
    draw = random.Random(0)
    codes = {0, *draw.sample(range(0x110000), 3000)}
    codes |= {
        end + step
        for ranges in classes.values()
        for first, last in ranges
        for end in (first, last)
        for step in (-1, 0, 1)
    }
    cleaner = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
    )
    stripper = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    asked = {
        "control": lambda c: cleaner.normalize_str(c) == "",
        "punctuation": lambda c: [word for word, _ in splitter.pre_tokenize_str(f"a{c}b")] == ["a", c, "b"],
        "accents": lambda c: stripper.normalize_str(c) == "",
    }
    for name, belongs in asked.items():
        held = {code for first, last in classes[name] for code in range(first, last + 1)}
        valid = [code for code in codes if 0 <= code < 0x110000 and not 0xD800 <= code <= 0xDFFF]
        assert [code for code in valid if belongs(chr(code)) != (code in held)] == [], name


def test_a_tokenizer_that_the_page_cannot_follow_is_refused():
    ids = {token: number for number, token in enumerate(Tokenizer.load(bundled_path("encoder")).tokens)}
    with pytest.raises(UserError, match="control characters left in the text, which a page does not do"):
        pack_tokenizer(Tokenizer(ids, clean_text=False))


@pytest.fixture
def small(tmp_path) -> Path:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    tokenizer = Tokenizer.load(bundled_path("encoder"))
    config = EncoderConfig(vocab_size=tokenizer.vocab_size, sbo_position_size=8, **shape)
    save_model(tmp_path / "small", SpanBertForPretraining(config), tokenizer)
    return tmp_path / "small"


def test_a_page_that_would_be_too_large_is_refused(small, tmp_path):
    """At once where the weights alone are too large, and also where only the whole page is."""
    page = tmp_path / "page.html"
    with pytest.raises(
        UserError, match=r"page would have 0\.\d MB \(encoder 0\.\d MB\), .* take int8 or a smaller model"
    ):
        write_html(small, None, page, "bf16", limit=1000)
    size = write_html(small, None, page)
    assert size == page.stat().st_size
    page.unlink()
    with pytest.raises(UserError, match=r"more than the 0\.\d MB that it may have: take a smaller model"):
        write_html(small, None, page, limit=size - 1)
    assert [file.name for file in tmp_path.iterdir()] == ["small"]


@pytest.mark.slow
def test_both_bundled_models_as_they_are_would_be_too_large(tmp_path):
    with pytest.raises(
        UserError, match=r"2\d\.\d MB \(encoder .*, reader .*\), more than the 20\.0 MB .* int8 or a smaller reader"
    ):
        write_html(bundled_path("encoder"), bundled_path("scratch"), tmp_path / "page.html", "bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        write_html(tmp_path / "nothing", None, tmp_path / "page.html")
    with pytest.raises(UserError, match="has no trained head for this task"):
        write_html(bundled_path("encoder"), bundled_path("encoder"), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
