"""Broken vocabularies and tokenizer files end in a tokenizer that works or in one sentence."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from spanbert.tokenizer.vocabulary_files import SPECIAL_TOKENS, AddedToken
from spanbert.tokenizer.wordpiece import Tokenizer, whole_characters
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import ODD_VALUES, dump, mutate_bytes, mutate_text, mutate_value

FAST_CASES = 30
WORDS = (
    "the",
    "mill",
    "river",
    "##s",
    "##ed",
    "[unused1]",
    ".",
    ",",
    "1901",
    "José",
    *"abcdeThmr#[]",
    "##a",
    "##e",
    "水",
)
TEXTS = (
    "The mill by the river. [SEP] <ent> a1901", "", "\u0301e\u200d\ud800 水 \x00\u2028 [MASK]<ent><ent>", "a" * 300,
    "DZ\u0130\u1e9e ﬁ 👩\u200d🔬", " [unused1]##s José <e2> ",
)  # fmt: skip


class Changed(NamedTuple):
    """The files of a tokenizer's folder, one of them broken."""

    file: str
    content: bytes
    others: dict[str, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file that a tokenizer may have, of one that has added tokens."""
    folder = tmp_path_factory.mktemp("good")
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *WORDS, "<ent>", "<e2>"))}
    added = (AddedToken("<ent>", special=True, normalized=False), AddedToken("<e2>", lstrip=True))
    Tokenizer(vocabulary, added=added).save(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["vocab.txt"] = "".join(f"{token}\n" for token in (*SPECIAL_TOKENS, *WORDS)).encode()
    files["added_tokens.json"] = json.dumps({token: vocabulary[token] for token in ("<ent>", "<e2>")}).encode()
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special: dict[str, Any] = {name: {"content": token, **flags} for name, token in zip(names, SPECIAL_TOKENS)}
    files["special_tokens_map.json"] = json.dumps({**special, "additional_special_tokens": ["<ent>"]}).encode()
    settings = json.loads(files["tokenizer_config.json"])
    settings["additional_special_tokens"] = ["<ent>"]
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    return files


#: What is broken → the files beside it. The settings of a vocab.txt say more than those of a tokenizer.json.
FORMATS = {
    "tokenizer.json": ("tokenizer_config.json",),
    "vocab.txt": ("added_tokens.json",),
    "tokenizer_config.json": ("vocab.txt",),
    "tokenizer_config.json beside tokenizer.json": ("tokenizer.json",),
    "added_tokens.json": ("vocab.txt", "special_tokens_map.json"),
    "special_tokens_map.json": ("vocab.txt", "tokenizer.json"),
}


def set_option(draw: random.Random, value: Any) -> None:
    """An odd value for one of the settings, which are few beside a vocabulary."""
    found = [value, *value.values()] if isinstance(value, dict) else []
    found += (
        value.get("added_tokens", []) if isinstance(value, dict) and isinstance(value.get("added_tokens"), list) else []
    )
    objects = [one for one in found if isinstance(one, dict) and one and "[UNK]" not in one]
    if objects:
        chosen = draw.choice(objects)
        key = draw.choice([key for key in chosen if key != "vocab"] or list(chosen))
        chosen[key] = copy.deepcopy(draw.choice(ODD_VALUES))


def maker(name: str, good: dict[str, bytes]) -> Callable[[random.Random], Changed]:
    file = name.split()[0]
    others = {other: good[other] for other in FORMATS[name]}

    def make(draw: random.Random) -> Changed:
        text = good[file].decode()
        if file.endswith(".json"):
            value = json.loads(text)
            for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
                value = mutate_value(draw, value)
                if draw.random() < 0.5:
                    set_option(draw, value)
            text = dump(draw, value)
        else:
            lines = text.split("\n")
            for _ in range(draw.randrange(3)):
                lines = mutate_value(draw, lines)
            text = "\n".join(str(line) for line in lines)
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            text = mutate_text(draw, text)
        content = text.encode("utf-8", "surrogatepass")
        return Changed(file, mutate_bytes(draw, content) if draw.random() < 0.15 else content, others)

    return make


def reader(folder: Path) -> Callable[[Changed], str]:
    """Load, encode in both ways, decode, save and load again. What a tokenizer says of a text must hold everywhere."""

    def read(changed: Changed) -> str:
        for old in folder.iterdir():
            old.unlink()
        for name, content in {**changed.others, changed.file: changed.content}.items():
            (folder / name).write_bytes(content)
        tokenizer = Tokenizer.load(folder)
        encodings = tokenizer.encode_batch(TEXTS)
        for text, (ids, offsets) in zip(TEXTS, encodings, strict=True):
            assert np.array_equal(tokenizer.encode_ids(text), ids)
            assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
            assert ((offsets[:, 0] >= 0) & (offsets[:, 0] <= offsets[:, 1])).all()
            assert (offsets[:, 1] <= len(whole_characters(text))).all()
            tokenizer.decode(ids).encode()
        for old in folder.iterdir():
            old.unlink()
        tokenizer.save(folder)
        again = Tokenizer.load(folder)
        assert again.fingerprint == tokenizer.fingerprint
        assert [again.encode(text).ids.tolist() for text in TEXTS] == [one.ids.tolist() for one in encodings]
        return "loaded"

    return read


@pytest.mark.parametrize("name", FORMATS)
def test_broken_tokenizers_work_or_are_refused(name: str, good: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = fuzz(name, FAST_CASES, maker(name, good), reader(tmp_path))
    assert outcomes["loaded"]
    assert outcomes["refused"] or name.startswith("special")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_broken_tokenizers(name: str, seconds: float, good: dict[str, bytes], tmp_path: Path) -> None:
    fuzz(name, None, maker(name, good), reader(tmp_path), SEED + 1, seconds=seconds)
