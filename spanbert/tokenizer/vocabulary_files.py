"""Reading a tokenizer's files as transformers reads them: tokenizer.json, vocab.txt, and the settings beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spanbert.config import read_json, read_json_object
from spanbert.errors import UserError
from spanbert.files import SETTINGS_BYTES, read_bounded

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
LONGEST_WORD = 100  # characters; BERT turns a longer word into one [UNK]
FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text itself, before words. The flags are those of the `tokenizers` library."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    """Whether it is looked for after the text was normalised (lower-cased, cleaned) rather than before."""
    special: bool = False
    in_vocabulary: bool = False
    """Whether words may become it, too."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "in_vocabulary"}


@dataclass
class TokenizerFiles:
    """What a tokenizer's files say. settings: arguments of `Tokenizer`. notes: what is odd about them.

    guess: why the text is lower-cased, where the files do not say that it is to be.
    """

    path: Path
    vocabulary: dict[str, int]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    guess: str | None = None


def read_tokenizer(path: Path) -> TokenizerFiles:
    """Read a folder (tokenizer.json, else vocab.txt), a vocab.txt or a tokenizer.json, and the settings beside it."""
    if path.is_dir():
        found = next((path / name for name in FILES[:2] if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                f"{path} holds neither tokenizer.json nor vocab.txt: name a folder or file with a vocabulary"
            )
        path = found
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a folder, a vocab.txt or a tokenizer.json")
    config_path = path.parent / "tokenizer_config.json"
    config = read_json_object(config_path, "a tokenizer's settings") if config_path.is_file() else {}
    for name, kinds in (
        ("do_lower_case", bool), ("tokenize_chinese_chars", bool), ("strip_accents", bool | None),
        ("tokenizer_class", str | None),
    ):  # fmt: skip
        _check_setting(config_path, config, name, kinds)
    files = _read_tokenizer_json(path, config) if path.suffix == ".json" else _read_vocab_txt(path, config)
    _add_extra(files, config)
    try:
        "".join(files.vocabulary).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path} or a file beside it has a token with half a character (a lone surrogate)") from error
    return files


#: Types of settings, in words.
EXPECTED: dict[Any, str] = {
    bool: "true or false", bool | None: "true, false or null", str: "a string", str | None: "a string or null",
}  # fmt: skip


def _check_setting(path: Path, values: dict[str, Any], name: str, kinds: Any) -> None:
    if name in values and not isinstance(values[name], kinds):
        raise UserError(f"{path}: {name} is {values[name]!r}, expected {EXPECTED[kinds]} (or leave it out)")


def _read_vocab_txt(path: Path, config: dict[str, Any]) -> TokenizerFiles:
    """One token a line; the line number is the id."""
    data = read_bounded(path, SETTINGS_BYTES, "a vocabulary")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): expected one token a line") from error
    if lines[-1] == "":
        lines.pop()
    files = TokenizerFiles(path, {}, {"numbered": False})
    if data.startswith(b"\xef\xbb\xbf"):
        files.notes.append(f"{path} begins with a byte order mark, which is not a part of its first token")
    for number, line in enumerate(lines):
        token = line.rstrip("\r")
        if token in files.vocabulary:
            _replace(files, token, number)
        elif not token:
            files.notes.append(f"{path} line {number + 1} is blank: it takes the id {number}, which no text has")
        files.vocabulary[token] = number
    lowercase = config.get("do_lower_case")
    if lowercase is None:  # names in brackets ([CLS], <S>) say nothing about the words
        words = (token for token in files.vocabulary if not token.startswith(("[", "<")))
        lowercase = not any(c != c.lower() for token in words for c in token)
        if lowercase:
            files.guess = (
                f"{path} does not say whether it is cased, and none of its words has an upper-case letter: text is lower-cased "
                'and its accents are stripped; a tokenizer_config.json beside it with {"do_lower_case": false} keeps both'
            )
    files.settings |= {
        "lowercase": lowercase,
        "strip_accents": config.get("strip_accents"),
        "split_chinese": config.get("tokenize_chinese_chars", True),
        "unk_token": _content(config.get("unk_token", "[UNK]")),
    }
    return files


def _replace(files: TokenizerFiles, token: str, number: int) -> None:
    """The later of two equal lines counts, as in transformers; the earlier keeps its id under a name no text has."""
    earlier = files.vocabulary.pop(token)
    files.vocabulary[f"[line {earlier + 1}, replaced by line {number + 1}]"] = earlier
    files.notes.append(
        f"{files.path} has {token!r} on lines {earlier + 1} and {number + 1}: the later one counts, as in transformers"
    )


def _read_tokenizer_json(path: Path, config: dict[str, Any]) -> TokenizerFiles:
    content = read_json_object(path, "a tokenizer")
    model, splitter, normalizer = (_object(content.get(name)) for name in ("model", "pre_tokenizer", "normalizer"))
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else "unknown")
    found = f"{kind} model, {normalizer.get('type', 'no')} normalizer, {splitter.get('type', 'none')} pre-tokenizer"
    if (kind, splitter.get("type"), normalizer.get("type")) != ("WordPiece", "BertPreTokenizer", "BertNormalizer"):
        raise UserError(
            f"{path} is not a BERT tokenizer ({found}): expected WordPiece, BertNormalizer, BertPreTokenizer"
        )
    if model.get("continuing_subword_prefix", CONTINUATION) != CONTINUATION:
        raise UserError(f"{path} marks word continuations by {model['continuing_subword_prefix']!r}, expected '##'")
    for name in ("lowercase", "handle_chinese_chars", "clean_text"):
        _check_setting(path, normalizer, name, bool)
    _check_setting(path, normalizer, "strip_accents", bool | None)
    _check_setting(path, model, "unk_token", str)
    longest = model.get("max_input_chars_per_word", LONGEST_WORD)
    if type(longest) is not int or not 0 <= longest < 1 << 31:
        raise UserError(f"{path}: max_input_chars_per_word is {longest!r}, expected a number of characters")
    try:
        vocabulary = dict(model["vocab"])
        words = set(vocabulary)
        added = tuple(_added(entry, words) for entry in content.get("added_tokens") or [])
        for entry in content.get("added_tokens") or []:
            vocabulary.setdefault(entry["content"], entry["id"])
        good = all(isinstance(token, str) and type(number) is int for token, number in vocabulary.items())
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"{path}: expected a 'vocab' from tokens to ids, and 'added_tokens' with 'content' and 'id'")
    theirs = {
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
    }
    files = TokenizerFiles(path, vocabulary, {"added": added})
    if (config.get("tokenizer_class") or "BertTokenizer").removesuffix("Fast") == "BertTokenizer":
        for name in theirs:
            if name in config and config[name] != theirs[name]:
                files.notes.append(
                    f"{path.parent / 'tokenizer_config.json'} has {name} {config[name]}, {path.name} {theirs[name]}: "
                    "the former counts, as in transformers"
                )
                theirs[name] = config[name]
    files.settings |= {
        "lowercase": theirs["do_lower_case"],
        "strip_accents": theirs["strip_accents"],
        "split_chinese": theirs["tokenize_chinese_chars"],
        "clean_text": normalizer.get("clean_text", True),
        "unk_token": model.get("unk_token", "[UNK]"),
        "longest_word": longest,
    }
    return files


def _add_extra(files: TokenizerFiles, config: dict[str, Any]) -> None:
    """Added tokens that stand in the other files: the settings', and for a vocab.txt also added_tokens.json's."""
    path = files.path
    extra = [_content(token) for name in ("additional_special_tokens", "extra_special_tokens")
             if isinstance(config.get(name), list) for token in config[name]]  # fmt: skip
    known = {token.content: token for token in files.settings.get("added", ())}
    words, entries = set(files.vocabulary), []
    try:
        if path.suffix != ".json":
            if "added_tokens_decoder" in config:
                entries = [{"id": int(number), **token} for number, token in config["added_tokens_decoder"].items()]
            elif (path.parent / "added_tokens.json").is_file():
                given = read_json(path.parent / "added_tokens.json")
                flags = {True: {"special": True, "normalized": False}, False: {}}
                entries = [{"id": int(n), "content": token, **flags[token in extra]} for token, n in given.items()]
        for entry in sorted(entries, key=lambda entry: entry["id"]):
            token = _added(entry, words)
            known[token.content] = token
            if files.vocabulary.setdefault(token.content, entry["id"]) != entry["id"]:
                raise UserError(
                    f"{path.parent}: the added token {token.content!r} is given the id {entry['id']}, but is token "
                    f"{files.vocabulary[token.content]} of {path.name}: correct one of them"
                )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path.parent}: the added tokens beside {path.name} are not a table of tokens and ids"
        ) from error
    for name in extra:
        if name not in known:
            known[name] = AddedToken(name, normalized=False, special=True, in_vocabulary=name in words)
            files.vocabulary.setdefault(name, len(files.vocabulary))
    files.settings["added"] = tuple(known.values())


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _added(entry: dict[str, Any], words: set[str]) -> AddedToken:
    content = entry["content"]
    if not isinstance(content, str) or type(entry["id"]) is not int:
        raise TypeError
    flags = {name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "special") if name in entry}
    normalized = bool(entry.get("normalized", not flags.get("special", False)))
    return AddedToken(content, normalized=normalized, in_vocabulary=content in words, **flags)


def _content(token: Any) -> str:
    """A special token's name, which may be given with its flags."""
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)
