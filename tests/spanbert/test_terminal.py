"""Users' texts are shown on the terminal, never obeyed; streams that are closed, full or ASCII end no command badly."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from spanbert.cli import COMMANDS, main
from spanbert.terminal import colour, printable, safe_output

TITLE = "\x1b]0;mine now\x07"
LINE = f"Ada{TITLE} wrote \x9b31mred\x7f \x1b[1;32mnotes\x1b[0m."


def run_in_shell(arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, with the shell's redirections."""
    return subprocess.run(
        f"{sys.executable} -m spanbert {arguments}",
        shell=True,
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
    )


def test_control_characters_are_shown_and_the_programs_own_colours_pass(capsys):
    with safe_output():
        print(f"{colour('1;32')}{LINE}{colour('0')}\tend")
        print("\r", LINE, file=sys.stderr, sep="")
        print("a\rb", file=sys.stderr)
    shown = capsys.readouterr()
    assert shown.out == (
        "\x1b[1;32mAda\\u001b]0;mine now\\u0007 wrote \\u009b31mred\\u007f \\u001b[1;32mnotes\\u001b[0m.\x1b[0m\tend\n"
    )
    assert shown.err.startswith("\rAda\\u001b]0;") and "\na\\u000db\n" in shown.err
    assert printable("a\nb\x1b") == "a\\u000ab\\u001b"


def test_a_message_begins_a_line_of_its_own_below_an_open_bar(capsys):
    """``error:`` was glued to the progress bar."""
    with safe_output():
        print("\rtraining:  50%", end="", file=sys.stderr)
        print("error: no more", file=sys.stderr)
        print("\rtraining: 100%\n", end="", file=sys.stderr)
        print("done", file=sys.stderr)
    assert capsys.readouterr().err.startswith("\rtraining:  50%\nerror: no more\n\rtraining: 100%\n")


def test_json_means_the_same_whatever_the_text(capsys):
    """An escape is written as JSON writes it, so what a program reads is the text itself."""
    values = {"text": LINE + "\x85\u2028 »ß𝄞\udc80"}
    with safe_output():
        print(json.dumps(values, ensure_ascii=False))
    out = capsys.readouterr().out
    assert json.loads(out) == values and not {"\x1b", "\x7f", "\x9b", "\x07"} & set(out)


def test_no_text_name_or_message_reaches_the_terminal_raw(capsys, tmp_path):
    """`ask` over such a text set the title of the window, and so did the name of a missing file."""
    assert main(["masks", f"{LINE} What a fine day it is."]) == 0
    assert main(["ask", str(tmp_path), "Who?", "--context", f"{tmp_path}/{TITLE}"]) == 2
    assert main([TITLE]) == 2
    (tmp_path / f"run{TITLE}\n").mkdir()
    (tmp_path / f"run{TITLE}\n" / "config.json").write_text("{}")
    (tmp_path / f"run{TITLE}\n" / "metrics.jsonl").write_text("")
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert not {"\x1b", "\x7f", "\x9b", "\x07"} & set(shown.out + shown.err)
    assert "run\\u001b]0;mine now\\u0007\\u000a" in shown.out
    assert shown.err.count("\\u001b]0;mine now\\u0007") == 2


@pytest.mark.parametrize("command", ["masks", "fill"])
def test_colours_on_a_terminal_are_the_programs_own(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main([command, "The [SPAN:1] \x1b[31mof France." if command == "fill" else LINE]) == 0
    out = capsys.readouterr().out
    assert "\x1b[" in out and "\x1b[31m" not in out and "\x1b]" not in out


def test_an_ascii_terminal_shows_what_it_can():
    """LC_ALL=C ended `ask` with a UnicodeEncodeError at »."""
    done = run_in_shell("masks 'Größe » 𝄞'", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and not done.stderr and rb"Gr\u00f6\u00dfe" in done.stdout


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere(closed, tmp_path):
    """tqdm died of "'NoneType' object has no attribute 'write'"; and the next file opened got the stream's number."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    done = run_in_shell(
        f"tokenizer train {tmp_path}/text.txt --output {tmp_path}/t --vocab-size 60 {closed}", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    vocabulary = (tmp_path / "t" / "vocab.txt").read_text()
    assert vocabulary.startswith("[PAD]") and "wrote" not in vocabulary


def test_a_full_or_closed_output_is_said():
    done = run_in_shell("masks 'What a day it is.' > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: standard output cannot be written (No space left on device)\n"
    done = run_in_shell("masks 'What a day it is.' --draws 3000 | head -1")
    assert not done.stderr


def test_files_of_undecodable_names(capsys, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.txt")
    assert main(["ask", str(tmp_path), "Who?", "--context", path]) == 2
    assert r"\udcff\udcfe.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "error: a/b: Permission denied\n"),
        (NotADirectoryError(20, "Not a directory", b"\xff"), "error: \\udcff: Not a directory\n"),
        (OSError(5, "Input/output error"), "error: Input/output error\n"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "error: a → b: Invalid cross-device link\n"),
        (MemoryError(), "error: memory ran out\n"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), "error: memory ran out ("),
        (RecursionError("maximum recursion depth exceeded"), "error: the input is nested too deeply to be read\n"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(error, says, capsys, monkeypatch):
    """PermissionError, EIO, memory: each was a traceback."""
    assert failing(monkeypatch, error) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(says) and shown.count("\n") == 1


def test_a_bug_keeps_its_traceback_and_says_that_it_is_one(capsys, monkeypatch):
    assert failing(monkeypatch, TypeError(f"not an int{TITLE}")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "\\u001b" in lines[-2] and "\x1b" not in lines[-2]
    assert lines[-1].startswith("error: this is a bug in spanbert") and "report" in lines[-1]


def failing(monkeypatch, error: Exception) -> int:
    def fail(_config):
        raise error

    fail.__annotations__ = {"_config": __import__("spanbert.training.list_runs", fromlist=["x"]).RunsConfig}
    monkeypatch.setattr("spanbert.training.list_runs.run_runs", fail)
    assert COMMANDS["runs"][1] == "run_runs"
    return main(["runs"])
