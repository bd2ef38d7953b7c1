"""The front door: every command explains every option, and mistakes are one sentence with exit status 2."""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing

import pytest

from spanbert.cli import COMMANDS, main


def config_of(words: str) -> type:
    module, function, _ = COMMANDS[words]
    (config,) = (
        t for name, t in typing.get_type_hints(getattr(importlib.import_module(module), function)).items()
        if name != "return"
    )  # fmt: skip
    return config


def plain(text: str) -> str:
    """Without colours, boxes and line breaks."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", text))


@pytest.mark.parametrize("words", COMMANDS)
def test_help_explains_every_option(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--help"])
    shown = plain(capsys.readouterr().out)
    assert end.value.code in (0, None)
    helps: dict[str, str] = {}

    def check(config: type, prefix: str) -> None:
        lines = _attribute_docs(config)
        for field in dataclasses.fields(config):
            hint = typing.get_type_hints(config)[field.name]
            if dataclasses.is_dataclass(hint):
                check(hint, f"{prefix}{field.name}.")
                continue
            helps[prefix + field.name] = lines.get(field.name, "")
            assert lines.get(field.name), f"{words}: {prefix}{field.name} has no help line"
            beginning = plain(lines[field.name])[:30].strip()
            assert beginning in shown, f"{words}: the help of {prefix}{field.name} is not shown"

    check(config_of(words), "")
    assert helps


def _attribute_docs(config: type) -> dict[str, str]:
    """Field → the docstring below it, in the class or in one that it inherits from."""
    import ast
    import inspect
    import textwrap

    docs = {}
    for cls in reversed([c for c in config.__mro__ if dataclasses.is_dataclass(c)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for one, two in zip(body.body, body.body[1:], strict=False):
            if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant):
                docs[one.target.id] = str(two.value.value)
    return docs


def test_overview_names_every_command(capsys):
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {words} " in shown for words in COMMANDS)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("spanbert ")


def test_mistakes_are_one_sentence(capsys, tmp_path):
    assert main(["pretrian"]) == 2
    assert "did you mean 'pretrain'?" in capsys.readouterr().err
    assert main(["finetune"]) == 2
    assert "finetune qa" in capsys.readouterr().err
    for arguments, says in [
        (
            ["pretrain", str(tmp_path), "--output", str(tmp_path / "r"), "--steps", "5", "--tokens", "9"],
            "exclude each other",
        ),
        (["pretrain", str(tmp_path), "--output", str(tmp_path / "r")], "is not a prepared corpus"),
        (["pretrain", str(tmp_path), "--output", str(tmp_path / "r"), "--mask.mask-share", "2"], "mask share"),
    ]:
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and says in shown and "Traceback" not in shown
        assert shown.count("\n") == 1
    with pytest.raises(SystemExit) as end:
        main(["pretrain", str(tmp_path), "--output", "r", "--no-such-option", "1"])
    assert end.value.code == 2
    assert "no-such-option" in plain(capsys.readouterr().err)


def test_the_older_word_for_init_still_works_and_is_not_shown(capsys):
    with pytest.raises(SystemExit) as left:
        main(["start", "--help"])
    assert left.value.code == 0 and "usage: spanbert init" in capsys.readouterr().out
    main(["--help"])
    shown = capsys.readouterr().out
    assert "  init " in shown and "  start " not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["masks", "a text", "--seed", "-1"],
        ["masks", "a text", "--draws", "1000000000000"],
        ["fill", "a [SPAN:1] text", "--top-k", "100000000"],
        ["tokenizer", "train", "x", "--output", "y", "--vocab-size", "1000000000000"],
        ["tokenizer", "train", "x", "--output", "y", "--vocab-size", "100", "--min-frequency", "-3"],
        ["tokenizer", "train", "x", "--output", "y", "--vocab-size", "100", "--sample-mb", "nan"],
        ["import", "x", "y", "--seed", "-1"],
        ["pretrain", "x", "--output", "y", "--clip-norm", "nan"],
        ["pretrain", "x", "--output", "y", "--weight-decay", "-1"],
        ["init", "x", "--output", "y", "--seed", "-1"],
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(arguments, capsys):
    """A trillion tokens crashed the tokenizers library, a seed of −1 was taken by some commands, NaN by others."""
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    name = arguments[-2].removeprefix("--").replace("-", "_")
    assert shown.startswith(f"error: {name} is ") and "expected" in shown and shown.count("\n") == 1
