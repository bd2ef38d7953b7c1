"""Configurations: JSON both ways, strict."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spanbert.config import (
    check_range,
    from_dict,
    load_json,
    read_json,
    read_json_lines,
    read_json_object,
    save_json,
    to_dict,
)
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig


@dataclass(frozen=True)
class Inner:
    scheme: str = "a"


@dataclass(frozen=True)
class Needy:
    needed: int
    given: int = 0


@dataclass(frozen=True)
class Outer:
    data: Path = Path("x")
    init: Path | None = None
    many: tuple[Path, ...] = ()
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.1


def test_round_trip(tmp_path):
    config = Outer(Path("a/b"), Path("c"), (Path("d"), Path("e")), Inner("z"), 1e-4)
    save_json(config, tmp_path / "c.json")
    assert load_json(Outer, tmp_path / "c.json") == config
    assert to_dict(Outer())["init"] is None and from_dict(Outer, to_dict(Outer())) == Outer()


def test_unknown_keys_and_broken_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"unknown key 'hiden_size'; EncoderConfig knows .*hidden_size"):
        from_dict(EncoderConfig, {"hiden_size": 3})
    with pytest.raises(UserError, match=r"inner: unknown key 'schema'"):
        from_dict(Outer, {"inner": {"schema": "a"}})
    with pytest.raises(UserError, match=r"c.json: rate is '0.1': expected a number"):
        from_dict(Outer, {"rate": "0.1"}, "c.json")
    with pytest.raises(UserError, match=r"c.json: inner: scheme is 3: expected a string"):
        from_dict(Outer, {"inner": {"scheme": 3}}, "c.json")
    for wrong, words in (
        ({"inner": None}, "inner is null, expected an object"),
        ({"many": 3}, "many is a number, expected a list"),
    ):
        with pytest.raises(UserError, match=f"c.json: {words}"):
            from_dict(Outer, wrong, "c.json")
    with pytest.raises(UserError, match=r"c.json: vocab_size is 0: expected at least 1"):
        from_dict(EncoderConfig, {"vocab_size": 0}, "c.json")
    with pytest.raises(UserError, match=r"c.json: expected a JSON object with the keys of Outer, not a list"):
        from_dict(Outer, [1], "c.json")
    with pytest.raises(UserError, match=r"c.json: lacks the key 'needed'"):
        from_dict(Needy, {"given": 1}, "c.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"a": 1')
    with pytest.raises(UserError, match=r"half.json: not valid JSON .* cut off"):
        read_json(tmp_path / "half.json")


def test_json_is_read_in_one_way(tmp_path):
    """With a byte-order mark or without; a folder, or another kind of value, is one sentence too."""
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1} == read_json_object(path, "a letter")
    path.write_bytes(b'\xff{"a": 1}')
    with pytest.raises(UserError, match=r"a.json: not valid JSON .*utf-8"):
        read_json(path)
    with pytest.raises(UserError, match="is a folder: a JSON file is read from a file"):
        read_json(tmp_path)
    for content, kind in (("[1]", "a list"), ("null", "null"), ("true", "true or false"), ("3", "a number")):
        path.write_text(content)
        with pytest.raises(UserError, match=f"a.json: expected a JSON object with a letter, not {kind}"):
            read_json_object(path, "a letter")


def test_lines_that_are_no_objects_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n[1]\n\n\xff\n{"b": 2}\n{"c": ')
    assert read_json_lines(path) == [{"a": "\u2028"}, {"b": 2}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": "40"}, "vocab_size is '40': expected a whole number"),
        ({"hidden_size": 768.0}, "hidden_size is 768.0: expected a whole number"),
        ({"sbo_positions": 0}, "sbo_positions is 0: expected at least 1"),
        ({"initializer_range": -1}, "initializer_range is -1: expected 0 to 1"),
        ({"attention_probs_dropout_prob": 1.0}, "attention_probs_dropout_prob is 1.0: expected 0 to below 1"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf: expected a number"),
        ({"layer_norm_eps": 10**400}, "expected a number"),
        ({"pad_token_id": -1}, "pad_token_id is -1: expected 0 to 28995"),
    ],
)
def test_every_value_of_a_shape_is_checked(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        EncoderConfig(**changes)


def test_presets_are_the_papers():
    base, large = EncoderConfig.preset("base"), EncoderConfig.preset("large", vocab_size=100)
    assert (base.num_hidden_layers, base.hidden_size, base.intermediate_size, base.head_dim) == (12, 768, 3072, 64)
    assert (large.num_hidden_layers, large.hidden_size, large.vocab_size, large.head_dim) == (24, 1024, 100, 64)
    assert base == EncoderConfig()
    with pytest.raises(UserError, match="unknown size 'huge': choose one of mini, small, base, large"):
        EncoderConfig.preset("huge")
    with pytest.raises(UserError, match="must be a multiple"):
        EncoderConfig(hidden_size=10, num_attention_heads=3)


def test_ranges_refuse_what_is_not_a_number_and_their_open_ends():
    """A NaN compares false with everything, so it passed checks that were written the other way round."""
    from types import SimpleNamespace

    check_range(SimpleNamespace(a=0.5, b=None), 0, 1, "a", "b", above=True, below=True)
    for value in (math.nan, math.inf, -1, 0):
        with pytest.raises(UserError, match=r"a is .*: expected above 0"):
            check_range(SimpleNamespace(a=value), 0, math.inf, "a", above=True)
    with pytest.raises(UserError, match=r"a is 10.*: expected above 0"):  # more than a float holds
        check_range(SimpleNamespace(a=10**400), 0, math.inf, "a", above=True)
    with pytest.raises(UserError, match="a is 1: expected 0 to below 1"):
        check_range(SimpleNamespace(a=1), 0, 1, "a", below=True)
