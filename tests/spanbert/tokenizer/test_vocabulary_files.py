"""Tokenizer folders of many kinds give the ids that `transformers` gives for the same folder; what is odd is said."""

import json
import pickle
import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from spanbert.errors import UserError
from spanbert.tokenizer.vocabulary_files import AddedToken
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzé中国Ω"
TOKENS = [*SPECIAL_TOKENS, *LETTERS, *(f"##{c}" for c in LETTERS), *".,?!-\"'()[]<>/0123456789",
          *["the", "canal", "was", "opened", "by", "old", "red", "mill", "bridge", "E1", "[unused1]"]]  # fmt: skip
CASED = [*TOKENS, *"ABCDEÉ", *(f"##{c}" for c in "ABCDE")]
BERT = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
ADDED = {"[E1]": len(CASED), "[E2]": len(CASED) + 1}
PARTS = [
    "the", "Canal", "CANAL", "[E1]", "[e1]", "[E2]", "old-mill", "OLD-Mill", "old mill", " ", "  ", "\t", "\n", "\x01", "\x85",
    "\u200b", "\u3000", "é", "É", "e\u0301", "ǅ", "İ", "中国", "Ω", "[E1][E2]", "a[E1]b", "<S>", "[unused1]", "##a", "abcdefghijk",
    "a" * 101, "é" * 99, "𠮷", "👍🏽", "ﬁ", "red", "bridge", "?!", "\ufffd", "\ufeff", "1869", "E1", "the.", "it's", "[", "]",
]  # fmt: skip


def odd_texts(number: int, seed: int = 3) -> list[str]:
    chance = random.Random(seed)
    glue = ("", " ", " ")
    return [
        "".join(chance.choice(PARTS) + chance.choice(glue) for _ in range(chance.randrange(1, 25)))
        for _ in range(number)
    ]


def entry(number: int, content: str, **flags) -> dict:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": number, "content": content, **plain, **flags}


def with_json(normalizer=None, model=None, added=(), config=None):
    """A folder with a tokenizer.json as the library writes it, changed in places."""

    def write(folder):
        Tokenizer({token: i for i, token in enumerate(CASED)}).save(folder)
        (folder / "vocab.txt").unlink()
        (folder / "tokenizer_config.json").unlink()
        content = json.loads((folder / "tokenizer.json").read_text())
        content["normalizer"] |= normalizer or {}
        content["model"] |= model or {}
        content["added_tokens"] += list(added)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        if config is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return write


def with_txt(tokens=CASED, config=BERT, added=None, end="\n", newline="\n"):
    def write(folder):
        (folder / "vocab.txt").write_text(newline.join(tokens) + end, encoding="utf-8", newline="")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if added:
            (folder / "added_tokens.json").write_text(json.dumps(added))

    return write


N = len(CASED)
MARKER = {"special": True, "normalized": False}
VARIANTS = {
    "txt cased": with_txt(),
    "txt lower-casing": with_txt(config={**BERT, "do_lower_case": True}),
    "txt lower-casing keeps accents": with_txt(config={**BERT, "do_lower_case": True, "strip_accents": False}),
    "txt cased without accents": with_txt(config={**BERT, "strip_accents": True}),
    "txt Chinese not split": with_txt(config={**BERT, "tokenize_chinese_chars": False}),
    "txt added_tokens.json": with_txt(added=ADDED),
    "txt added_tokens.json, lower-casing": with_txt(config={**BERT, "do_lower_case": True}, added=ADDED),
    "txt added_tokens.json, special": with_txt(config={**BERT, "additional_special_tokens": ["[E1]", "[E2]"]}, added=ADDED),
    "txt added_tokens_decoder": with_txt(config={**BERT, "added_tokens_decoder": {N: {"content": "[E1]", **MARKER}}}),
    "txt special that is a word": with_txt(config={**BERT, "additional_special_tokens": ["the", "[E1]"]}),
    "txt another unknown": with_txt(config={**BERT, "unk_token": "?"}),
    "txt blank last line": with_txt(end="\n\n"),
    "txt two blank lines": with_txt([*CASED[:40], "", "", *CASED[40:]]),
    "txt a duplicate": with_txt([*CASED, "canal"]),
    "txt three of one": with_txt([*CASED[:9], "canal", *CASED[9:], "canal"]),
    "txt no last line end": with_txt(end=""),
    "txt Windows line ends": with_txt(newline="\r\n", end="\r\n"),
    "json": with_json(),
    "json lower-casing": with_json({"lowercase": True}),
    "json lower-casing keeps accents": with_json({"lowercase": True, "strip_accents": False}),
    "json Chinese not split": with_json({"handle_chinese_chars": False}),
    "json text not cleaned": with_json({"clean_text": False}),
    "json text not cleaned, lower-casing": with_json({"clean_text": False, "lowercase": True}),
    "json short words": with_json(model={"max_input_chars_per_word": 10}),
    "json another unknown": with_json(model={"unk_token": "?"}),
    "json added": with_json(added=[entry(N, "[E1]", **MARKER), entry(N + 1, "old-mill")]),
    "json added, lower-casing": with_json({"lowercase": True}, added=[entry(N, "[E1]", **MARKER), entry(N + 1, "OLD-Mill")]),
    "json added single words": with_json(added=[entry(N, "Can", single_word=True), entry(N + 1, "bridge!", single_word=True)]),
    "json added takes spaces": with_json(added=[entry(N, "[E1]", lstrip=True, rstrip=True)]),
    "json added word of the vocabulary": with_json(added=[entry(CASED.index("mill"), "mill", **MARKER)]),
    "json added, never a word": with_json({"lowercase": True}, added=[entry(N, "canals", normalized=False), entry(N + 1, "Canal")]),
    "json says lower, settings cased": with_json({"lowercase": True}, config=BERT),
    "json says cased, settings lower": with_json(config={**BERT, "do_lower_case": True}),
    "json of another class": with_json({"lowercase": True}, config={"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}),
}  # fmt: skip


def check(write, folder, number: int) -> None:
    write(folder)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))
    ours.save(folder / "saved")
    again, copy = Tokenizer.load(folder / "saved"), pickle.loads(pickle.dumps(ours))
    assert again.fingerprint == copy.fingerprint == ours.fingerprint and ours.vocab_size == len(again.tokens)
    of_saved = AutoTokenizer.from_pretrained(str(folder / "saved"))
    texts = odd_texts(number)
    for text, one, two in zip(texts, ours.encode_batch(texts), again.encode_batch(texts), strict=True):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert one.ids.tolist() == expected, text
        assert ours.encode_ids(text).tolist() == expected, text
        assert two.ids.tolist() == copy.encode_ids(text).tolist() == expected, text
        assert of_saved(text, add_special_tokens=False)["input_ids"] == expected, text


@pytest.mark.parametrize("name", VARIANTS)
def test_ids_are_those_of_transformers(name, tmp_path):
    """Added tokens, the longest word, clean_text and unk_token were not read: other ids, and not a word about it."""
    check(VARIANTS[name], tmp_path, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_ids_are_those_of_transformers_on_many_texts(name, tmp_path):
    check(VARIANTS[name], tmp_path, 500)


def test_an_entity_marker_is_one_token(tmp_path):
    """[E1] became "[", "E", "##1", "]" in a folder whose added_tokens.json names it."""
    VARIANTS["txt added_tokens.json"](tmp_path)
    one = Tokenizer.load(tmp_path)
    assert [one.token(i) for i in one.encode_ids("the [E1] canal")] == ["the", "[E1]", "canal"]
    assert one.encode("the [E1] canal").offsets.tolist() == [[0, 3], [4, 8], [9, 14]]
    assert one.starts_word[one.id("[E1]")] and one.id("[E1]") not in one.special_ids


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_a_literal_special_token_stays_text_beside_added_tokens(tmp_path, special):
    VARIANTS["json added"](tmp_path)
    one = Tokenizer.load(tmp_path)
    forbidden = set(one.special_ids.tolist()) - {one.unk_id}
    assert not forbidden & set(one.encode_ids(f"[E1] {special} [E1]").tolist())


def test_a_bare_chinese_vocabulary_is_not_cased(tmp_path):
    """Its <S> and <T> were taken for words with upper-case letters, and English names in Chinese text became [UNK]."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "<S>", "<T>", "中", "canal"]) + "\n")
    one = Tokenizer.load(tmp_path)
    assert one.lowercase and np.array_equal(one.encode_ids("中CANAL"), [one.id("中"), one.id("canal")])


CHINESE = [
    "[PAD]", *(f"[unused{i}]" for i in range(1, 4)), *SPECIAL_TOKENS[1:], "<S>", "<T>", *"!.，。0123", "的", "了", "在", "公", "司", "布",
    "發", "爾", "年", *"adeilpｂ", "apple", "ipad", "2010", "##司", "##的", *(f"##{c}" for c in "adeilpｂｃ"),
]  # fmt: skip
CHINESE_TEXTS = ["Apple公司在 2010年發布了iPad。", "ＢＣ的公司！", "Adélaïde 皮爾", "a的b", "司\u3000了\n在"]


def test_a_bare_chinese_vocabulary_is_read_as_bert_reads_it(tmp_path, capsys):
    """Lower-cased, each character a word, as with the settings that bert-base-chinese has beside it; the guess is said once."""
    for name in ("bare", "with settings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join(CHINESE) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "tokenize_chinese_chars": True}
    (tmp_path / "with settings/tokenizer_config.json").write_text(json.dumps(settings))
    bare = Tokenizer.load(tmp_path / "bare/vocab.txt")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "with settings"))
    for text in CHINESE_TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert bare.encode_ids(text).tolist() == bare.encode(text).ids.tolist() == ids, text
    assert [bare.token(i) for i in bare.encode_ids("Apple公司 IPAD")] == ["apple", "公", "司", "ipad"]
    Tokenizer.load(tmp_path / "bare/vocab.txt")
    said = capsys.readouterr().err
    assert said.count("does not say whether it is cased") == 1 and said.count("bare/vocab.txt") == 1
    assert Tokenizer.load(tmp_path / "with settings").fingerprint == bare.fingerprint


def test_a_guess_is_said_only_where_nobody_decided(tmp_path, capsys):
    """Not for a folder with settings, nor where the command line says it, nor where an upper-case letter proves it."""
    (tmp_path / "vocab.txt").write_text("\n".join(CHINESE) + "\n", encoding="utf-8")
    cased = Tokenizer.load(tmp_path / "vocab.txt", lowercase=False)
    assert cased.unk_id in cased.encode_ids("Apple")
    assert Tokenizer.load(tmp_path / "vocab.txt", lowercase=True).lowercase
    (tmp_path / "vocab.txt").write_text("\n".join([*CHINESE, "Apple"]) + "\n", encoding="utf-8")
    assert not Tokenizer.load(tmp_path / "vocab.txt").lowercase
    (tmp_path / "vocab.txt").write_text("\n".join(CHINESE) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert Tokenizer.load(tmp_path / "vocab.txt").lowercase
    assert "upper-case" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("txt blank last line", f"line {N + 1} is blank"),
        ("txt two blank lines", "on lines 41 and 42"),
        ("txt a duplicate", f"'canal' on lines {CASED.index('canal') + 1} and {N + 1}"),
        ("json says lower, settings cased", "do_lower_case False, tokenizer.json True"),
    ],
)
def test_what_is_odd_is_said_once_and_keeps_its_number(name, said, tmp_path, capsys):
    VARIANTS[name](tmp_path)
    Tokenizer.load(tmp_path), Tokenizer.load(tmp_path)
    assert capsys.readouterr().err.count(said) == 1


BAD_SETTINGS = [
    ({"do_lower_case": None}, "do_lower_case is None, expected true or false"),
    ({"do_lower_case": "false"}, "do_lower_case is 'false', expected true or false"),
    ({"tokenize_chinese_chars": None}, "tokenize_chinese_chars is None"),
    ({"strip_accents": "no"}, "strip_accents is 'no'"),
    ({"added_tokens_decoder": {"x": {"content": "[E1]"}}}, "not a table of tokens and ids"),
    ({"added_tokens_decoder": [1]}, "not a table of tokens and ids"),
    ({"added_tokens_decoder": {"3": {"content": "canal"}}}, "given the id 3, but is token"),
    ({"added_tokens_decoder": {"900": {"content": "[E1]"}}}, "does not number its"),
    ({"tokenizer_class": ["BertTokenizer"]}, "tokenizer_class is .*, expected a string or null"),
    ({"additional_special_tokens": ["\ud800"]}, "half a character"),
]


@pytest.mark.parametrize(("settings", "said"), BAD_SETTINGS)
def test_a_bad_setting_is_one_sentence(settings, said, tmp_path):
    """do_lower_case null was guessed, "false" was true, and tokenize_chinese_chars null was a traceback."""
    with_txt(config={**BERT, **settings})(tmp_path)
    with pytest.raises(UserError, match=said):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_is_missing_from_the_file(tmp_path):
    with_json()(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    del content["model"]["vocab"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a 'vocab' from tokens to ids"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("normalizer", {"lowercase": None}, "lowercase is None, expected true or false"),
        ("normalizer", {"clean_text": 1.5}, "clean_text is 1.5"),
        ("normalizer", {"strip_accents": "no"}, "strip_accents is 'no'"),
        ("model", {"unk_token": 7}, "unk_token is 7, expected a string"),
        ("model", {"max_input_chars_per_word": "100"}, "max_input_chars_per_word is '100'"),
        ("model", {"max_input_chars_per_word": 10**40}, "expected a number of characters"),
        ("model", {"vocab": [[1, 2]]}, "expected a 'vocab' from tokens to ids"),
    ],
)
def test_a_bad_setting_of_a_tokenizer_json_is_one_sentence(part, values, said, tmp_path):
    """Each was a TypeError or an OverflowError of the library. Found by the fuzzer."""
    with_json()(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content[part] |= values
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        Tokenizer.load(tmp_path)


def test_an_added_token_numbered_infinity_is_refused(tmp_path):
    """An OverflowError, which was called a bug. Found by the fuzzer."""
    with_txt(config=BERT)(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"[E1]": Infinity}')
    with pytest.raises(UserError, match="not a table of tokens and ids"):
        Tokenizer.load(tmp_path)


def test_an_added_token_that_normalises_to_nothing_is_refused():
    """The library looked for "" in the text, and panicked where a character has several bytes. Found by the fuzzer."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, "a", "\x00"))}
    with pytest.raises(UserError, match="is left once it is normalised"):
        Tokenizer(vocabulary, added=(AddedToken("\x00"),))
