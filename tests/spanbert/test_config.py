"""Configurations: JSON both ways, strict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spanbert.config import from_dict, load_json, read_json, save_json, to_dict
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig


@dataclass(frozen=True)
class Inner:
    scheme: str = "a"


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
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"a": 1')
    with pytest.raises(UserError, match=r"half.json: not valid JSON .* cut off"):
        read_json(tmp_path / "half.json")


def test_presets_are_the_papers():
    base, large = EncoderConfig.preset("base"), EncoderConfig.preset("large", vocab_size=100)
    assert (base.num_hidden_layers, base.hidden_size, base.intermediate_size, base.head_dim) == (12, 768, 3072, 64)
    assert (large.num_hidden_layers, large.hidden_size, large.vocab_size, large.head_dim) == (24, 1024, 100, 64)
    assert base == EncoderConfig()
    with pytest.raises(UserError, match="unknown size 'huge': choose one of mini, small, base, large"):
        EncoderConfig.preset("huge")
    with pytest.raises(UserError, match="must be a multiple"):
        EncoderConfig(hidden_size=10, num_attention_heads=3)
