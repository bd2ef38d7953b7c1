"""What every comparison of runs needs: folders that belong to one process at a time, and runs that go on where they stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from finetune.tasks.qa.commands import FinetuneQAConfig
from pretrain.config import PretrainConfig
from spanbert.errors import UserError
from spanbert.locks import try_lock
from spanbert.training.signals import Stopped

Name = TypeVar("Name", bound=str)


def run_folders(output: Path, arms: Iterable[Name], seeds: Iterable[int]) -> Iterator[tuple[Name, int, Path]]:
    """All runs, one seed after the other: a whole comparison stands as early as can be."""
    for seed in seeds:
        for name in arms:
            yield name, seed, output / "runs" / name / f"seed-{seed}"


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours, rather than that of another process at work in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = try_lock(folder / ".lock")
    try:
        yield handle is not None
    finally:
        if handle is not None:
            handle.close()


def finish(command: Callable[[Any], None], options: PretrainConfig | FinetuneQAConfig) -> None:
    """Begin, or resume, the run in ``options.output`` until it has left its model."""
    finished = options.output / "model"
    if not finished.is_dir():
        try:
            command(dataclasses.replace(options, resume=(options.output / "config.json").exists()))
        except Stopped as stopped:
            raise KeyboardInterrupt from stopped
    if not finished.is_dir():  # a signal asked it to stop, and it did so politely
        raise KeyboardInterrupt


@contextlib.contextmanager
def said_in(path: Path) -> Iterator[None]:
    """What is printed meanwhile goes to the end of this file."""
    log = path.open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def exit_status(function: Callable[[], None]) -> int:
    """Run a command → 0, 2 after a UserError, 130 when it was asked to stop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's word for Ctrl-C
    try:
        function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if multiprocessing.parent_process() is None:
            print("stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0
