"""Odd values of every option of every command end in a sentence and an exit status, never in a traceback.

Each command is called with inputs that are not there, so that it ends where it first looks at them: after its options
were parsed and, where it does so first, checked.
"""

import dataclasses
import importlib
import io
import random
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanbert.cli import COMMANDS, main
from tests.fuzz.cases import SEED, fuzz

FAST_CASES = 4

TRAIN = ["--train", "nothing", "--output", "out", "--init", "nothing"]
ARGUMENTS = {
    "tokenizer train": ["nothing", "--output", "out"], "prepare": ["nothing", "--tokenizer", "nothing", "--output", "out"],
    "init": ["nothing", "--output", "out"], "pretrain": ["nothing", "--output", "out"],
    "index": ["nothing", "--output", "out"], "calibrate": ["nothing", "nothing"],
    "ask": ["nothing", "When?", "--context", "nothing"], "serve": ["nothing", "--index", "nothing"], "explore": ["--model", "nothing", "--reader", "nothing"], "fill": ["nothing", "a [SPAN:2] b"],
    "classify": ["nothing", "--prompt", "{text} is [SPAN:1]", "--words", "good", "bad"],
    "masks": ["a text", "--tokenizer", "nothing"], "runs": ["nothing"], "plot": ["nothing"], "import": ["nothing", "out"],
    "export": ["nothing", "out"],
}  # fmt: skip
NUMBERS = (
    "0", "-1", "1", "2", "3", "0.5", "-0.0", "1.0", "nan", "inf", "-inf", "1e308", "1e-320", "1e400", "9" * 30, "9" * 400, "9" * 5000,
    str(2**63), str(2**63 - 1), "0x10", "1_000", "20", "1e-3",
)  # fmt: skip
ODD = (
    *NUMBERS, "½", "٣", "", " ", "auto", "cuda", "cuda:99", "cuda:-1", "cuda:x", "cpu",
    "None", "true", "False", "[]", "{}", "a/b", "é", "\u202e", "\udcff", "~", "-", "--", "a" * 300, "a" * 5000, "rank=8",
    "rank=0,alpha=nan", "rank=" + "9" * 20, "0-3", "3-0", "embeddings,0-" + "9" * 12, "\n", "a\nb", "%s", "{x}", "\x1b[31m",
    "mini", "large", "bf16", "fp32", "geometric", "span", "/dev/null", "/dev/null/x", "hf:", "hf:a:b:c:d", ".", "..",
    "http://", "http://127.0.0.1:9/name", "https://127.0.0.1:9/a,b",
)  # fmt: skip


def arguments_of(words: str) -> list[str]:
    verb = words.split()[0]
    return ARGUMENTS.get(words) or {"finetune": TRAIN}.get(verb, ["nothing", "nothing"])


def flags_of(words: str) -> list[str]:
    module, function, _ = COMMANDS[words]
    hints = typing.get_type_hints(getattr(importlib.import_module(module), function))
    (config,) = (hint for name, hint in hints.items() if name != "return")
    return list(_flags(config, ""))


def _flags(config: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name], f"{prefix}{field.name}.")
            yield from _flags(hints[field.name], prefix)  # where a command leaves the name out
        else:
            yield f"--{prefix}{field.name}".replace("_", "-")


def maker(words: str) -> Callable[[random.Random], list[str]]:
    flags = flags_of(words)

    def make(draw: random.Random) -> list[str]:
        arguments = list(arguments_of(words))
        if draw.random() < 0.15:
            arguments[draw.randrange(len(arguments))] = draw.choice(ODD)
        else:
            arguments += [draw.choice(flags), draw.choice(draw.choice((NUMBERS, ODD)))]
            arguments = arguments[: len(arguments) - (draw.random() < 0.1)]
        return [*words.split(), *arguments]

    return make


def reader(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    def read(arguments: list[str]) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        try:
            status = main(arguments)
        except SystemExit as end:  # the parser's
            status = end.code if isinstance(end.code, int) else 0
            assert status in (0, 2), status
            capsys.readouterr()
            return "not parsed" if status else "help"
        shown = capsys.readouterr().err
        assert "Traceback" not in shown, shown
        assert "this is a bug" not in shown, shown
        assert status in (0, 1, 2), (status, shown)
        if status:
            last = shown.strip().split("\n")[-1]
            assert "error: " in shown, shown
            assert len(shown) < 12_000, len(shown)
            last.encode()
        return {0: "done", 1: "failed by the system", 2: "refused"}[status]

    return read


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """In an empty folder, with no terminal's width to look for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return monkeypatch


@pytest.mark.parametrize("words", COMMANDS)
def test_odd_options_end_in_a_sentence(
    words: str, alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (set(arguments_of(words)) - {"out"}) & {path.name for path in Path().iterdir()}
    outcomes = fuzz(words, FAST_CASES, maker(words), reader(alone, capsys))
    assert not outcomes["help"]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS)
def test_many_odd_options(
    words: str, seconds: float, alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzz(words, None, maker(words), reader(alone, capsys), SEED + 1, seconds=seconds)
