"""The commands that README.md and sample/demo.sh show are ones that the command line takes."""

import importlib
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import tyro

from spanbert.cli import COMMANDS

ROOT = Path(__file__).parents[1]


def shown_commands() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    in_readme = [line for line in readme.splitlines() if line.startswith("spanbert ")]
    demo = (ROOT / "sample" / "demo.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    in_demo = ["spanbert " + line[4:] for line in demo.splitlines() if line.startswith("run ")]
    return in_readme + [re.sub(r"\$\w+", "x", line).replace('--minutes "x"', "--minutes 1") for line in in_demo]


@pytest.mark.parametrize("line", shown_commands())
def test_the_command_line_takes_it(line):
    words = shlex.split(line, comments=True)[1:]
    name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
    module, function, _ = COMMANDS[name]
    hints = typing.get_type_hints(getattr(importlib.import_module(module), function))
    (config_class,) = (kind for key, kind in hints.items() if key != "return")
    tyro.cli(config_class, args=words[len(name.split()) :])


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`spanbert {name}`" not in readme] == []


@pytest.mark.slow
def test_the_demo_runs(tmp_path):
    """All steps of `make demo`, with seconds of pretraining instead of minutes."""
    spanbert = tmp_path / "spanbert"

    spanbert.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m spanbert "$@"\n')
    spanbert.chmod(0o755)
    environment = {"SPANBERT": str(spanbert), "DEMO_MINUTES": "0.2", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(ROOT / "sample" / "demo.sh"), str(tmp_path / "out")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out" / "qa" / "model" / "config.json").is_file()
    for evaluation in ("bundled", "evaluation"):
        assert (tmp_path / "out" / evaluation / "predictions.json").is_file()
